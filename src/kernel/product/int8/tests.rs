//! Integer products against their slow form.

use std::sync::Arc;

use super::super::driver::{self, Job};
use super::super::{Arithmetic, Compute, Matrix, SharedBytes, matmul_many};
use super::activations::{self, Activations, BLOCK, TINY};
use super::{FORMATS, Format, Level, oracle};
use crate::kernel::Isa;
use crate::kernel::convert::f32_to_f16_bits;
use crate::tensor::format::by_name;
use crate::tensor::{Dtype, RowMap};

/// xorshift64* (Vigna, arXiv:1402.6246).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in (-1, 1).
    fn unit(&mut self) -> f32 {
        ((self.next() >> 40) as f32 - 8_388_607.5) / 8_388_608.0
    }
}

/// Returns where a block of the format has binary16 numbers, or for MXFP4 its exponent.
fn scales_at(name: &str) -> &'static [usize] {
    match name {
        "Q4_1" | "Q5_1" | "Q4_K" | "Q5_K" => &[0, 2],
        "Q2_K" => &[80, 82],
        "Q3_K" => &[108],
        "Q6_K" => &[208],
        _ => &[0],
    }
}

/// Sets the numbers that scale a block.
fn set_scales(name: &str, block: &mut [u8], scale: &mut impl FnMut() -> f32) {
    for at in scales_at(name) {
        if name == "MXFP4" {
            block[*at] = (scale().to_bits() >> 23) as u8;
        } else {
            block[*at..*at + 2].copy_from_slice(&f32_to_f16_bits(scale()).to_le_bytes());
        }
    }
}

/// Returns rows of blocks of arbitrary bytes with scales of both signs.
fn random_rows(format: Dtype, rows: usize, cols: usize, random: &mut Random) -> Vec<u8> {
    let n = rows * cols / format.block_len() * format.block_bytes();
    let mut bytes: Vec<u8> = (0..n).map(|_| random.next() as u8).collect();
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        set_scales(format.name(), block, &mut || 0.01 * random.unit());
    }
    bytes
}

fn matrix(bytes: &[u8], format: Dtype, rows: usize, cols: usize) -> Matrix {
    let bytes: SharedBytes = Arc::new(bytes.to_vec());
    Matrix::new(bytes, 0, format, rows, cols, RowMap::Identity)
}

/// Levels of this machine; prints the ones it lacks.
fn levels() -> Vec<Level> {
    let mut levels = vec![Level::Portable];
    #[cfg(target_arch = "x86_64")]
    {
        use super::{Avx2, Avx512, AvxVnni, Pairs, avx2};
        let others = [
            (Level::Avx2, Avx2::<Pairs>::new().is_some()),
            (Level::Avx2Vnni, Avx2::<AvxVnni>::new().is_some()),
            (Level::Avx2Vnni512, Avx2::<avx2::Avx512Vnni>::new().is_some()),
            (Level::Avx512, Avx512::<false>::new().is_some()),
            (Level::Avx512Vnni, Avx512::<true>::new().is_some()),
        ];
        for (level, is_there) in others {
            if is_there {
                levels.push(level);
            } else {
                eprintln!("skipped: the machine lacks {level:?}");
            }
        }
    }
    levels
}

fn multiply(compute: &Compute, format: &Format, level: Level, x: &[f32], w: &Matrix) -> Vec<f32> {
    let mut y = vec![f32::INFINITY; x.len() / w.cols() * w.rows()];
    let product = (format.kernels)(level);
    driver::run(
        compute,
        x,
        w.cols(),
        &mut [Job {
            arithmetic: Arithmetic::Int8,
            product,
            w,
            y: driver::overwritten(&mut y),
            add_scaled: None,
        }],
    );
    y
}

fn multiply_slowly(format: &Format, x: &[f32], w: &Matrix) -> Vec<f32> {
    let blocks_of =
        |row| w.row(row).chunks_exact(w.dtype().block_bytes()).map(format.slowly).collect::<Vec<_>>();
    let rows: Vec<Vec<oracle::Slow>> = (0..w.rows()).map(blocks_of).collect();
    let dots = |x| rows.iter().map(move |row| oracle::dot(x, row));
    x.chunks_exact(w.cols()).flat_map(dots).collect()
}

/// The bits of numbers; a NaN's sign and payload are not promised.
fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|y| if y.is_nan() { f32::NAN.to_bits() } else { y.to_bits() }).collect()
}

fn check(what: &str, format: &Format, x: &[f32], w: &Matrix) {
    let compute = Compute::new(Isa::detect(), 3).unwrap();
    let want = bits(&multiply_slowly(format, x, w));
    let packed = super::super::tests::packed(w);
    for level in levels() {
        for (w, stored) in [(w, "mapped"), (&packed, "packed")] {
            let got = bits(&multiply(&compute, format, level, x, w));
            let differ = got.iter().zip(&want).position(|(a, b)| a != b);
            assert_eq!(differ, None, "{} {what} {stored} on {level:?}", format.name);
        }
    }
}

fn dtype(format: &Format) -> Dtype {
    by_name(format.name).unwrap()
}

#[test]
fn every_format_that_can_be_encoded_has_integer_codes() {
    for format in crate::tensor::format::REGISTRY {
        let quantized = format.block_len() > 1 && format.can_decode();
        assert_eq!(FORMATS.iter().any(|f| f.name == format.name()), quantized, "{}", format.name());
    }
}

#[test]
fn slow_codes_are_what_decoders_give() {
    let mut random = Random(0x1234_5678_9abc_def1);
    for format in FORMATS {
        let (dtype, n) = (dtype(format), 23 * dtype(format).block_len());
        let bytes = random_rows(dtype, 1, n, &mut random);
        let mut decoded = vec![0.0; n];
        dtype.decode(Isa::Portable, &bytes, &mut decoded);
        let blocks = bytes.chunks_exact(dtype.block_bytes()).map(format.slowly);
        let mut decoded = decoded.iter();
        for block in blocks {
            for (i, code) in block.codes.iter().enumerate() {
                let value = block.scales[i / block.group] * *code as f32;
                let value = value - block.minima.get(i / block.group).unwrap_or(&0.0);
                assert_eq!(Some(&value), decoded.next(), "{} {i}", format.name);
            }
        }
    }
}

#[test]
fn products_are_the_slow_forms_to_the_bit() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for format in FORMATS {
        let dtype = dtype(format);
        for (m, n, blocks) in [(1, 37, 3), (2, 5, 1), (3, 33, 2), (7, 16, 1), (16, 1, 2), (33, 35, 2)] {
            let k = blocks * dtype.block_len();
            let w = matrix(&random_rows(dtype, n, k, &mut random), dtype, n, k);
            let x: Vec<f32> = (0..m * k).map(|_| random.unit()).collect();
            check(&format!("{m} x {k} x {n}"), format, &x, &w);
        }
    }
}

#[test]
fn more_rows_than_are_packed_together() {
    let mut random = Random(0x0123_4567_89ab_cdef);
    for format in FORMATS {
        let (dtype, k) = (dtype(format), 256);
        let w = matrix(&random_rows(dtype, 19, k, &mut random), dtype, 19, k);
        let x: Vec<f32> = (0..259 * k).map(|_| random.unit()).collect();
        check("259 rows", format, &x, &w);
    }
}

#[test]
fn permuted_unaligned_matrices_together_on_any_number_of_threads() {
    let mut random = Random(0x7654_3210_0123_4567);
    let (m, n, k) = (5, 48, 512);
    let x: Vec<f32> = (0..m * k).map(|_| random.unit()).collect();
    let matrices: Vec<(&Format, Matrix)> = FORMATS
        .iter()
        .map(|format| {
            let mut bytes = vec![0xff; 3];
            bytes.extend(random_rows(dtype(format), n, k, &mut random));
            let map = RowMap::Interleave { head_dim: 16 };
            (format, Matrix::new(Arc::new(bytes), 3, dtype(format), n, k, map))
        })
        .collect();
    for threads in [1, 2, 4] {
        let compute = Compute::new(Isa::detect(), threads).unwrap();
        let mut ys = vec![vec![f32::NAN; m * n]; matrices.len()];
        let ws: Vec<_> = matrices.iter().map(|(_, w)| (w, Arithmetic::Int8)).collect();
        let mut outs: Vec<&mut [f32]> = ys.iter_mut().map(|y| &mut y[..]).collect();
        matmul_many(&compute, &x, &ws, &mut outs);
        for ((format, w), y) in matrices.iter().zip(&ys) {
            assert_eq!(bits(y), bits(&multiply_slowly(format, &x, w)), "{} {threads}", format.name);
        }
    }
}

#[test]
fn extreme_codes_do_not_overflow() {
    let k = 512;
    for format in FORMATS {
        let dtype = dtype(format);
        for byte in [0x00, 0x55, 0x7f, 0x80, 0x81, 0xff] {
            let mut bytes = vec![byte; 18 * k / dtype.block_len() * dtype.block_bytes()];
            for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
                set_scales(format.name, block, &mut || 1.0);
            }
            let w = matrix(&bytes, dtype, 18, k);
            let mut x = vec![1.0; 5 * k];
            x[k..2 * k].fill(-1.0);
            let alternate = x[2 * k..].iter_mut().enumerate();
            alternate.for_each(|(i, x)| *x = if i / k % 2 == 0 { 1.0 } else { -1.0 } * (i % 2) as f32);
            // one value alone in its block
            x[4 * k..].fill(0.0);
            x[4 * k + 37] = 3.0e38;
            check(&format!("bytes of {byte:#x}"), format, &x, &w);
        }
    }
}

#[test]
fn values_that_are_not_finite_make_their_row_nan() {
    let mut random = Random(0xfedc_ba98_7654_3210);
    for format in FORMATS {
        let (dtype, k, n) = (dtype(format), 256, 17);
        let w = matrix(&random_rows(dtype, n, k, &mut random), dtype, n, k);
        let mut x: Vec<f32> = (0..6 * k).map(|_| random.unit()).collect();
        x[k + 3] = f32::NAN;
        x[2 * k + 255] = f32::INFINITY;
        x[4 * k + 100] = f32::NEG_INFINITY;
        check("values that are not finite", format, &x, &w);
        let compute = Compute::new(Isa::detect(), 1).unwrap();
        let y = multiply(&compute, format, Level::within(Isa::detect()), &x, &w);
        for (row, y) in y.chunks_exact(n).enumerate() {
            assert!(y.iter().all(|y| y.is_nan() == [1, 2, 4].contains(&row)), "{} {row}", format.name);
        }
    }
}

#[test]
fn products_are_near_those_of_the_decoded_weights() {
    let mut random = Random(0x0f1e_2d3c_4b5a_6978);
    let (m, n, k) = (3, 9, 1024);
    for format in FORMATS {
        let dtype = dtype(format);
        let w = matrix(&random_rows(dtype, n, k, &mut random), dtype, n, k);
        let x: Vec<f32> = (0..m * k).map(|_| random.unit()).collect();
        let compute = Compute::new(Isa::detect(), 1).unwrap();
        let y = multiply(&compute, format, Level::within(Isa::detect()), &x, &w);
        let mut row = vec![0.0; k];
        for j in 0..n {
            w.decode_row(Isa::Portable, j, &mut row);
            for (i, x) in x.chunks_exact(k).enumerate() {
                let (mut want, mut bound) = (0.0, 0.0);
                for (x, w) in x.chunks_exact(BLOCK).zip(row.chunks_exact(BLOCK)) {
                    // an activation is off by at most half a step, and f32 rounding comes on top
                    let step = x.iter().fold(0.0f32, |amax, x| amax.max(x.abs())) / 127.0;
                    for (x, w) in x.iter().zip(w) {
                        want += f64::from(*x) * f64::from(*w);
                        bound += f64::from(w.abs()) * f64::from(0.5 * step) * 1.001;
                    }
                }
                let error = (f64::from(y[i * n + j]) - want).abs();
                assert!(error <= bound, "{} row {i}, {j}: {error} > {bound}", format.name);
            }
        }
    }
}

#[test]
fn activations_are_packed_the_same_on_every_isa() {
    let (rows, k) = (5, 32 * 37);
    let mut random = Random(0x1357_9bdf_0246_8ace);
    let mut x: Vec<f32> = (0..rows * k).map(|_| random.unit()).collect();
    for (block, x) in x.chunks_exact_mut(BLOCK).enumerate() {
        match block % 9 {
            1 => x.fill(0.0),
            2 => x.iter_mut().for_each(|x| *x *= 1e-30), // around the least magnitude that counts
            3 => x.iter_mut().for_each(|x| *x *= 1e-40),
            4 => x.iter_mut().for_each(|x| *x *= 3.4e38),
            5 => x.iter_mut().enumerate().for_each(|(i, x)| *x = i as f32 - 15.5), // ties
            6 => x.iter_mut().enumerate().for_each(|(i, x)| *x = 0.5 * (i as f32 - 254.0)),
            7 => x[block % 32] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][block % 3],
            8 => x[0] = TINY,
            _ => {}
        }
    }
    for isa in Isa::available() {
        let mut words = vec![0u32; rows * activations::row_bytes(k) / 4];
        // SAFETY: u32 has no padding and any bytes are a value.
        let bytes = unsafe { words.align_to_mut::<u8>().1 };
        activations::pack(isa, &x, k, bytes);
        let packed = Activations::new(bytes, rows, k);
        for (i, x) in x.chunks_exact(BLOCK).enumerate() {
            let (scale, codes) = oracle::quantize(x);
            let at = i % (k / BLOCK) * rows + i / (k / BLOCK);
            let got: Vec<i32> = packed.codes[at].iter().map(|code| i32::from(*code as i8)).collect();
            assert_eq!(bits(&[packed.scales[at]]), bits(&[scale]), "block {i} on {}", isa.name());
            assert_eq!(got, codes, "block {i} on {}", isa.name());
            let sums: Vec<i32> = packed.sums[at].iter().map(|sum| i32::from(*sum)).collect();
            assert_eq!(sums, codes.chunks(16).map(|codes| codes.iter().sum()).collect::<Vec<i32>>());
        }
    }
}

use std::sync::Arc;

use super::*;
use crate::tensor::RowMap;
use crate::tensor::format::{Nf4, REGISTRY, by_name};

/// Values of every sign, about as large as activations and weights, with zeros and extremes among them.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..n)
        .map(|_| {
            let (bits, kind) = (next(), next() % 64);
            let value = (bits >> 40) as f32 / 8_388_608.0 - 1.0;
            match kind {
                0 => 0.0,
                1 => -0.0,
                2 => value * 1e-14, // below 2^-46: some are flushed by bf16
                3 => value * 8.881_784e-16,
                4 => value * 3000.0,
                _ => value,
            }
        })
        .collect()
}

fn matrix(dtype: Dtype, n: usize, k: usize, map: RowMap) -> Matrix {
    let mut bytes = vec![0; 3 + n * k / dtype.block_len() * dtype.block_bytes()];
    dtype.encode(Isa::Portable, &noise(n * k, 7), k, None, &mut bytes[3..]);
    Matrix::new(Arc::new(bytes), 3, dtype, n, k, map) // no row is aligned
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Every form of the float arithmetics that this machine has.
fn forms() -> Vec<(Isa, Arithmetic, &'static dyn Product)> {
    let mut forms = Vec::new();
    for isa in Isa::available() {
        for arithmetic in [Arithmetic::F32, Arithmetic::Bf16] {
            forms.extend(
                float::forms(isa, arithmetic).iter().map(|form| (isa, arithmetic, *form as &dyn Product)),
            );
        }
    }
    forms
}

fn run_form(
    compute: &Compute,
    form: (Isa, Arithmetic, &'static dyn Product),
    x: &[f32],
    w: &Matrix,
) -> Vec<f32> {
    let mut y = vec![f32::NAN; x.len() / w.cols() * w.rows()];
    let job =
        Job { arithmetic: form.1, product: form.2, w, y: driver::overwritten(&mut y), add_scaled: None };
    driver::run(compute, x, w.cols(), &mut [job]);
    y
}

/// Returns the matrix packed.
pub fn packed(w: &Matrix) -> Matrix {
    let mut arena = crate::kernel::Arena::new(w.packed_bytes().next_multiple_of(64)).unwrap();
    w.packed(&Compute::new(Isa::detect(), 2).unwrap(), &mut arena)
}

/// Checks every form against the oracle, the weights as they are and packed.
fn check(w: &Matrix, x: &[f32], what: &str) {
    let m = x.len() / w.cols();
    let packed = packed(w);
    for arithmetic in [Arithmetic::F32, Arithmetic::Bf16] {
        let plain = Compute::new(Isa::Portable, 1).unwrap();
        let mut want = vec![0.0; m * w.rows()];
        oracle::matmul(&plain, x, w, arithmetic, &mut want);
        for form in forms().into_iter().filter(|form| form.1 == arithmetic) {
            let compute = Compute::new(form.0, 1).unwrap();
            for (w, form_of_w) in [(w, "mapped"), (&packed, "packed")] {
                let y = run_form(&compute, form, x, w);
                let isa = form.0.name();
                assert!(bits(&y) == bits(&want), "{what} {arithmetic:?} m {m} {form_of_w} on {isa}");
            }
        }
    }
}

#[test]
fn every_form_equals_the_oracle() {
    let print_skipped = |has: bool, what: &str| {
        if !has {
            println!("skipped: this machine has no {what}");
        }
    };
    print_skipped(Isa::detect() >= Isa::Avx2, "AVX2");
    print_skipped(Isa::detect() >= Isa::Avx512, "AVX-512");
    for name in ["F32", "F16", "BF16"] {
        for (n, k) in [(1, 1), (5, 31), (53, 515), (97, 66), (48, 1025)] {
            let w = matrix(by_name(name).unwrap(), n, k, RowMap::Identity);
            for m in [1, 2, 3, 7, 16, 33] {
                check(&w, &noise(m * k, m as u64), name);
            }
        }
    }
}

#[test]
fn rows_of_whole_cache_lines_at_any_address_equal_the_oracle() {
    for (name, k) in [("F32", 48), ("F16", 96), ("BF16", 96)] {
        let dtype = by_name(name).unwrap();
        let rows = matrix(dtype, 37, k, RowMap::Identity);
        for offset in [0, 2, 4, 16, 31, 32, 60] {
            let mut bytes = vec![0; offset];
            (0..37).for_each(|row| bytes.extend_from_slice(&rows.row(row)));
            let w = Matrix::new(Arc::new(bytes), offset, dtype, 37, k, RowMap::Identity);
            check(&w, &noise(k, 5), name);
        }
    }
}

#[test]
fn block_formats_are_decoded_to_the_oracles_bits() {
    let mut seen = 0;
    for format in REGISTRY.iter().filter(|format| format.can_encode() && format.block_len() > 1) {
        let w = matrix(Dtype(*format), 35, 768, RowMap::Identity);
        for m in [1, 3, 9] {
            check(&w, &noise(m * 768, m as u64), format.name());
        }
        seen += 1;
    }
    assert!(seen > 5);
}

#[test]
fn quantized_matrices_are_decoded_to_the_oracles_bits() {
    // 7 of whose rows of 64 values begin within a block of 256 scales
    let dense = matrix(by_name("F32").unwrap(), 32, 640, RowMap::Deinterleave { head_dim: 16 });
    let compute = Compute::new(Isa::detect(), 2).unwrap();
    let nf4 = dense.quantized(&compute, Dtype(&Nf4), false).unwrap();
    let nested = dense.quantized(&compute, Dtype(&Nf4), true).unwrap();
    assert_ne!(nf4.row(9), nested.row(9));
    for w in [&nf4, &nested] {
        for m in [1, 3, 9] {
            check(w, &noise(m * 640, m as u64), "NF4");
        }
        check_transposed(&[w.clone(), nf4.clone()], [Arithmetic::Bf16, Arithmetic::F32], 10, "NF4");
        assert!(!w.packs_for(ComputeMode::Auto.arithmetic(w.dtype())));
    }
    let mut row = vec![0.0; 640];
    let mut bytes = vec![0; 360];
    for i in 0..32 {
        dense.decode_row(Isa::Portable, i, &mut row);
        Nf4.encode(Isa::Portable, &row, 640, None, &mut bytes);
        assert_eq!(*nf4.row(i), bytes);
    }
}

#[test]
fn a_weight_that_no_format_holds_is_found() {
    let compute = Compute::new(Isa::detect(), 2).unwrap();
    for (value, format) in [(f32::NAN, Dtype(&Nf4)), (1e9, by_name("Q8_0").unwrap())] {
        let mut values = noise(300 * 64, 5);
        values[77 * 64 + 13] = value;
        values[200 * 64] = f32::INFINITY;
        let w = Matrix::of_values(Arc::new(Values(values)), 0, 300, 64);
        let found = w.quantized(&compute, format, false).err().unwrap();
        assert_eq!(found.row, 77, "{}", format.name());
        assert!(found.col == 13 || !value.is_nan(), "{}", format.name());
    }
}

#[test]
fn packed_rows_are_the_stored_ones() {
    for format in REGISTRY.iter().filter(|format| format.can_decode()) {
        let dtype = Dtype(*format);
        let (rows, cols) = (35, 3 * dtype.block_len());
        let n_bytes = rows * 3 * dtype.block_bytes();
        let bytes: Vec<u8> = (0..n_bytes).map(|i| (i * 31 % 251) as u8).collect();
        let w = Matrix::new(Arc::new(bytes), 0, dtype, rows, cols, RowMap::Identity);
        let packed = packed(&w);
        assert!(packed.packs_for(Arithmetic::Int8) != w.packs_for(Arithmetic::Int8));
        for row in 0..rows {
            assert_eq!(packed.row(row), w.row(row), "{}", format.name());
        }
    }
}

#[test]
fn rows_in_another_order_give_the_same_products() {
    let map = RowMap::Deinterleave { head_dim: 16 };
    let w = matrix(by_name("BF16").unwrap(), 64, 70, map);
    check(&w, &noise(3 * 70, 1), "deinterleaved");
}

#[test]
fn infinities_and_nans_give_the_oracles_bits() {
    let (n, k, m) = (37, 40, 9);
    for name in ["F32", "F16", "BF16"] {
        let dtype = by_name(name).unwrap();
        let mut values = noise(n * k, 3);
        for (at, value) in [(5, f32::INFINITY), (3 * k, f32::NAN), (8 * k + 39, f32::NEG_INFINITY)] {
            values[at] = value;
        }
        let mut bytes = vec![0; n * k * dtype.block_bytes()];
        dtype.encode(Isa::Portable, &values, k, None, &mut bytes);
        let w = Matrix::new(Arc::new(bytes), 0, dtype, n, k, RowMap::Identity);
        let mut x = noise(m * k, 4);
        (x[5], x[k + 7], x[3 * k + 39], x[5 * k]) = (f32::INFINITY, f32::NAN, -f32::NAN, f32::MAX);
        check(&w, &x, name);
    }
}

#[test]
fn threads_and_companions_change_no_bit() {
    let bf16 = matrix(by_name("BF16").unwrap(), 700, 129, RowMap::Identity);
    let f32 = matrix(by_name("F32").unwrap(), 50, 129, RowMap::Identity);
    let f16 = matrix(by_name("F16").unwrap(), 301, 129, RowMap::Identity);
    let jobs = [(&bf16, Arithmetic::Bf16), (&f32, Arithmetic::F32), (&f16, Arithmetic::F32)];
    for m in [1, 5, 300] {
        let x = noise(m * 129, 11);
        let alone = Compute::new(Isa::detect(), 1).unwrap();
        let want = jobs.map(|(w, arithmetic)| {
            let mut y = vec![0.0; m * w.rows()];
            matmul(&alone, &x, w, arithmetic, &mut y);
            bits(&y)
        });
        for threads in [1, 2, 7] {
            let compute = Compute::new(Isa::detect(), threads).unwrap();
            let mut ys = jobs.map(|(w, _)| vec![f32::NAN; m * w.rows()]);
            let mut slices: Vec<&mut [f32]> = ys.iter_mut().map(|y| y.as_mut_slice()).collect();
            matmul_many(&compute, &x, &jobs, &mut slices);
            for (y, want) in ys.iter().zip(&want) {
                assert!(bits(y) == *want, "m {m}, {threads} threads");
            }
        }
    }
}

#[test]
fn empty_products_are_empty() {
    let compute = Compute::new(Isa::detect(), 2).unwrap();
    let w = matrix(by_name("F32").unwrap(), 3, 8, RowMap::Identity);
    matmul(&compute, &[], &w, Arithmetic::F32, &mut []);
    matmul_many(&compute, &[1.0], &[], &mut []);
}

#[test]
fn modes_have_names_and_choose_by_format() {
    for mode in ComputeMode::ALL {
        assert_eq!(ComputeMode::by_name(mode.name()), Some(mode));
    }
    assert_eq!(ComputeMode::by_name("f64"), None);
    let auto = |name| ComputeMode::Auto.arithmetic(by_name(name).unwrap());
    assert_eq!(auto("F32"), Arithmetic::F32);
    assert_eq!(auto("F16"), Arithmetic::F32);
    assert_eq!(auto("BF16"), Arithmetic::Bf16);
    assert_eq!(auto("Q4_K"), Arithmetic::Int8);
    assert_eq!(auto("F8_E4M3"), Arithmetic::F32);
    assert_eq!(ComputeMode::F32.arithmetic(by_name("Q4_K").unwrap()), Arithmetic::F32);
    assert_eq!(ComputeMode::Bf16.arithmetic(by_name("F16").unwrap()), Arithmetic::Bf16);
    assert_eq!(ComputeMode::Int8.arithmetic(by_name("Q8_0").unwrap()), Arithmetic::Int8);
}

/// Returns all values of a matrix.
fn decoded(w: &Matrix) -> Vec<f32> {
    let mut values = vec![0.0; w.rows() * w.cols()];
    for (row, out) in values.chunks_exact_mut(w.cols()).enumerate() {
        w.decode_row(Isa::Portable, row, out);
    }
    values
}

/// Checks sums over the rows of two matrices, one after the other, against the oracle.
fn check_transposed(ws: &[Matrix; 2], arithmetics: [Arithmetic; 2], m: usize, what: &str) {
    let k = ws[0].cols();
    let xs = [noise(m * ws[0].rows(), 3), noise(m * ws[1].rows(), 4)];
    let mut want = vec![0.0; m * k];
    for i in 0..2 {
        oracle::matmul_transposed(&xs[i], &decoded(&ws[i]), k, arithmetics[i], &mut want);
    }
    let packed = [packed(&ws[0]), packed(&ws[1])];
    for isa in Isa::available() {
        for threads in [1, 2, 7] {
            let compute = Compute::new(isa, threads).unwrap();
            for (ws, form) in [(ws, "mapped"), (&packed, "packed")] {
                let operands = [0, 1].map(|i| (Operand::Matrix(&ws[i]), arithmetics[i]));
                let mut y = vec![f32::NAN; m * k];
                matmul_transposed(&compute, &[&xs[0], &xs[1]], &operands, &mut y);
                let isa = isa.name();
                assert!(
                    bits(&y) == bits(&want),
                    "{what} {arithmetics:?} m {m} {form} on {isa}, {threads} threads"
                );
            }
        }
    }
}

#[test]
fn transposed_products_equal_the_oracle() {
    let both = [[Arithmetic::F32; 2], [Arithmetic::Bf16; 2], [Arithmetic::Bf16, Arithmetic::F32]];
    for name in ["F32", "F16", "BF16"] {
        let dtype = by_name(name).unwrap();
        for (n, k) in [(1, 1), (31, 5), (515, 53), (66, 97), (300, 200), (9, 16)] {
            let ws = [matrix(dtype, n, k, RowMap::Identity), matrix(dtype, 7, k, RowMap::Identity)];
            for m in [1, 3, 9, 70] {
                both.iter().for_each(|arithmetics| check_transposed(&ws, *arithmetics, m, name));
            }
        }
    }
}

#[test]
fn transposed_products_of_every_format_equal_the_oracle() {
    for dtype in REGISTRY.iter().map(|format| Dtype(*format)) {
        if !dtype.can_decode() || !dtype.can_encode() {
            continue;
        }
        let k = (2 * dtype.block_len()).max(1100 / dtype.block_len() * dtype.block_len());
        let ws = [
            matrix(dtype, 37, k, RowMap::Identity),
            matrix(by_name("F32").unwrap(), 16, k, RowMap::Identity),
        ];
        check_transposed(&ws, [Arithmetic::Bf16, Arithmetic::F32], 10, dtype.name());
        check_transposed(&ws, [Arithmetic::F32; 2], 2, dtype.name());
    }
}

#[test]
fn outer_products_go_on_from_what_they_find() {
    for (t, n, k) in [(1, 1, 1), (37, 16, 300), (300, 70, 16), (5, 50, 50), (600, 9, 97)] {
        let (a, b, begun) = (noise(t * n, 1), noise(t * k, 2), noise(n * k, 3));
        let columns: Vec<f32> = (0..n * t).map(|i| a[i % t * n + i / t]).collect();
        let mut want = begun.clone();
        oracle::matmul_transposed(&columns, &b, k, Arithmetic::F32, &mut want);
        for isa in Isa::available() {
            for threads in [1, 2, 7] {
                let compute = Compute::new(isa, threads).unwrap();
                let mut whole = begun.clone();
                accumulate_outer(&compute, &a, n, &b, k, &mut whole);
                assert!(bits(&whole) == bits(&want), "{t} x {n} x {k} on {}", isa.name());
                let mut halves = begun.clone();
                for rows in [0..t / 3, t / 3..t] {
                    let (a, b) = (&a[rows.start * n..rows.end * n], &b[rows.start * k..rows.end * k]);
                    accumulate_outer(&compute, a, n, b, k, &mut halves);
                }
                assert!(bits(&halves) == bits(&want), "in two parts: {t} x {n} x {k} on {}", isa.name());
            }
        }
    }
}

#[test]
fn more_rows_than_pass_at_once_equal_the_oracle() {
    let compute = Compute::new(Isa::detect(), 2).unwrap();
    for (name, arithmetic) in [("F32", Arithmetic::F32), ("BF16", Arithmetic::Bf16)] {
        let w = matrix(by_name(name).unwrap(), 50, 530, RowMap::Identity);
        let m = 1100; // tiles of 512 rows and of 1024
        let x = noise(m * 530, 8);
        let (mut y, mut want) = (vec![f32::NAN; m * 50], vec![0.0; m * 50]);
        oracle::matmul(&compute, &x, &w, arithmetic, &mut want);
        matmul(&compute, &x, &w, arithmetic, &mut y);
        assert!(bits(&y) == bits(&want), "{name}");
        let w = matrix(by_name(name).unwrap(), 530, 20, RowMap::Identity);
        let mut want = vec![0.0; m * 20];
        oracle::matmul_transposed(&x, &decoded(&w), 20, arithmetic, &mut want);
        let y = transposed_products(&compute, &[&x], &[(Operand::Matrix(&w), arithmetic)], m);
        assert!(bits(&y) == bits(&want), "{name}, transposed");
    }
}

#[test]
fn multiples_of_products_are_added_as_if_apart() {
    let scale = -1.7;
    for (n, k) in [(1, 1), (48, 16), (53, 16), (97, 515), (16, 8)] {
        for (name, arithmetic) in [("F32", Arithmetic::F32), ("BF16", Arithmetic::Bf16)] {
            let w = matrix(by_name(name).unwrap(), n, k, RowMap::Identity);
            let packed = packed(&w);
            for m in [1, 3, 9, 70] {
                let (x, begun) = (noise(m * k, 1), noise(m * n, 2));
                let mut product = vec![0.0; m * n];
                oracle::matmul(&Compute::new(Isa::Portable, 1).unwrap(), &x, &w, arithmetic, &mut product);
                let want: Vec<f32> = begun.iter().zip(&product).map(|(y, p)| y + scale * p).collect();
                for isa in Isa::available() {
                    for (w, form) in [(&w, "mapped"), (&packed, "packed")] {
                        let compute = Compute::new(isa, 2).unwrap();
                        let mut y = begun.clone();
                        matmul_add_scaled(&compute, &x, w, arithmetic, scale, &mut y);
                        assert!(bits(&y) == bits(&want), "{name} {form} m {m}, {n} x {k} on {}", isa.name());
                    }
                }
            }
        }
    }
}

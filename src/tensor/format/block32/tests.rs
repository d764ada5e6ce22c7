use super::*;

const FORMATS: [&dyn BlockFormat; 6] = [&Q8_0, &Q4_0, &Q4_1, &Q5_0, &Q5_1, &MXFP4];

struct Noise(u64);

impl Noise {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// Uniform in -1..1.
    fn uniform(&mut self) -> f32 {
        (self.bits() >> 7) as f32 / 16_777_216.0 - 1.0
    }

    /// Near normal, with the tail of a product.
    fn heavy(&mut self) -> f32 {
        self.uniform() * self.uniform() * self.uniform() * 4.0
    }
}

/// Blocks where encoders could go different ways: nothing, one value, ties, tiny and huge ranges.
fn edge_blocks() -> Vec<[f32; 32]> {
    let mut noise = Noise(5);
    let mut blocks = vec![[0.0; 32], [-0.0; 32], [1.0; 32], [-1.0; 32], [f32::MAX; 32], [f32::MIN; 32]];
    let alternating = |scale: f32| std::array::from_fn(|i| if i % 2 == 0 { scale } else { -scale });
    let ramp = |scale: f32| std::array::from_fn(|i| (i as f32 - 16.0) * scale);
    let mut scaled = |scale: f32| std::array::from_fn(|_| noise.uniform() * scale);
    for exponent in (-149..=127).step_by(3) {
        let scale = 2f64.powi(exponent) as f32;
        blocks.extend([
            [scale; 32],
            alternating(scale),
            ramp(scale / 16.0),
            scaled(scale),
            scaled(1.3 * scale),
        ]);
    }
    for at in [0, 7, 15, 16, 31] {
        for value in [1.0, -1.0, 70_000.0, 1e-8, -1e-40, f32::MAX] {
            let mut block = [0.0; 32];
            block[at] = value;
            blocks.push(block);
            blocks.push(std::array::from_fn(|i| if i == at { value } else { 0.01 * i as f32 }));
        }
    }
    let positive = std::array::from_fn(|i| 1.0 + i as f32 / 32.0);
    blocks.extend([positive, positive.map(|x| -x), std::array::from_fn(|i| i as f32 * 0.5 - 8.0)]);
    for below in 0..50u32 {
        blocks.push([f32::from_bits(1024f32.to_bits() - below); 32]);
    }
    blocks
}

/// Rows of every edge block and of random blocks in three distributions, `row_len` long.
fn rows(row_len: usize) -> Vec<f32> {
    let mut noise = Noise(row_len as u64);
    let mut values: Vec<f32> = edge_blocks().concat();
    for kind in 0..3 {
        for _ in 0..row_len * 24 {
            values.push(match kind {
                0 => noise.uniform(),
                1 => noise.heavy(),
                // bfloat16 weights: many ties
                _ => f32::from_bits((noise.heavy() * 0.05).to_bits() & 0xffff_0000),
            });
        }
    }
    values.truncate(values.len() / row_len * row_len);
    values
}

fn importances(row_len: usize) -> Vec<Vec<f32>> {
    let mut noise = Noise(99);
    let spread = (0..row_len).map(|_| noise.heavy().abs() * 30.0).collect();
    let sparse = (0..row_len).map(|i| if i % 5 < 2 { 0.0 } else { noise.uniform().abs() }).collect();
    vec![spread, sparse, vec![1.0; row_len], vec![0.0; row_len]]
}

fn encoded(format: &dyn BlockFormat, isa: Isa, rows: &[f32], row_len: usize, im: Option<&[f32]>) -> Vec<u8> {
    let mut out = vec![0xaa; rows.len() / LEN * format.block_bytes()];
    format.encode(isa, rows, row_len, im, &mut out);
    out
}

fn assert_blocks_equal(format: &dyn BlockFormat, isa: Isa, rows: &[f32], got: &[u8], want: &[u8]) {
    assert_eq!(got.len(), want.len());
    let blocks = got.chunks(format.block_bytes()).zip(want.chunks(format.block_bytes()));
    for ((got, want), x) in blocks.zip(rows.chunks(LEN)) {
        assert_eq!(got, want, "{} on {}: {x:?}", format.name(), isa.name());
    }
}

#[test]
fn plain_encoders_equal_the_oracle_on_every_isa() {
    for row_len in [32, 96, 2048] {
        let rows = rows(row_len);
        for format in FORMATS {
            let want = reference::encode(format.name(), &rows, row_len, None);
            for isa in Isa::available() {
                assert_blocks_equal(format, isa, &rows, &encoded(format, isa, &rows, row_len, None), &want);
            }
        }
    }
}

#[test]
fn weighted_encoders_equal_the_oracle_on_every_isa() {
    for row_len in [32, 96, 2048] {
        let rows = rows(row_len);
        for importance in importances(row_len) {
            for format in FORMATS {
                let want = reference::encode(format.name(), &rows, row_len, Some(&importance));
                for isa in Isa::available() {
                    let got = encoded(format, isa, &rows, row_len, Some(&importance));
                    assert_blocks_equal(format, isa, &rows, &got, &want);
                }
            }
        }
    }
}

#[test]
fn importance_changes_the_formats_that_search() {
    let rows = rows(2048);
    let importance = &importances(2048)[0];
    for format in FORMATS {
        let isa = Isa::detect();
        let same =
            encoded(format, isa, &rows, 2048, Some(importance)) == encoded(format, isa, &rows, 2048, None);
        assert_eq!(same, ["Q8_0", "MXFP4"].contains(&format.name()), "{}", format.name());
    }
}

#[test]
fn decoders_equal_the_oracle_on_every_isa() {
    let mut noise = Noise(3);
    for format in FORMATS {
        let size = format.block_bytes();
        let mut bytes: Vec<u8> = (0..size * 999).map(|_| noise.bits() as u8).collect();
        for (i, block) in bytes.chunks_exact_mut(size).enumerate() {
            if format.name() != "MXFP4" {
                // finite halves: the sign and payload of a NaN are not promised
                block[1] &= 0xbf;
                block[3] &= if format.name().ends_with('1') { 0xbf } else { 0xff };
            } else {
                block[0] = (i % 253) as u8; // beyond 252 the largest values overflow
            }
        }
        let want: Vec<u32> =
            bytes.chunks(size).flat_map(|b| reference::decode(format.name(), b)).map(f32::to_bits).collect();
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; 999 * LEN];
            format.decode(isa, &bytes, &mut out);
            for (i, (got, want)) in out.iter().zip(&want).enumerate() {
                let at = format!("{} on {}, value {i}", format.name(), isa.name());
                assert_eq!(got.to_bits(), *want, "{at}: {got} {}", f32::from_bits(*want));
            }
        }
    }
}

#[test]
fn decoded_values_lie_within_half_a_step() {
    let mut noise = Noise(8);
    let rows: Vec<f32> = (0..64 * LEN).map(|_| noise.uniform()).collect();
    // the worst step in a block of range -1..1, and the f16 rounding of the scale on top (2^-11 of the range)
    let steps = [1.0 / 127.0, 1.0 / 8.0, 2.0 / 15.0, 1.0 / 16.0, 2.0 / 31.0, 1.0];
    for (format, step) in FORMATS.into_iter().zip(steps) {
        let bytes = encoded(format, Isa::detect(), &rows, 64, None);
        let mut decoded = vec![0.0; rows.len()];
        format.decode(Isa::detect(), &bytes, &mut decoded);
        for (x, y) in rows.iter().zip(&decoded) {
            // the signed formats clip the side away from the extreme: up to a whole step there
            let limit = if format.name().ends_with('0') { step } else { step / 2.0 };
            assert!((x - y).abs() <= limit + 1.0 / 1024.0, "{}: {x} {y}", format.name());
        }
    }
}

#[test]
fn no_rows_encode_to_nothing() {
    for format in FORMATS {
        for isa in Isa::available() {
            format.encode(isa, &[], 32, None, &mut []);
            format.encode(isa, &[], 32, Some(&[1.0; 32]), &mut []);
            format.decode(isa, &[], &mut []);
        }
    }
}

//! Plain types: one value per block, no scale.

use super::BlockFormat;
use crate::kernel::{Isa, convert};

type Decode = fn(Isa, &[u8], &mut [f32]);
type Encode = fn(Isa, &[f32], &mut [u8]);

/// A plain type. Integers, F64 and the 8-bit floats are read, not written.
pub struct Plain {
    name: &'static str,
    bytes: usize,
    ggml_id: Option<u32>,
    safetensors_name: Option<&'static str>,
    decode: Decode,
    encode: Option<Encode>,
}

impl Plain {
    const fn new(name: &'static str, bytes: usize, ggml_id: Option<u32>, decode: Decode) -> Self {
        Self { name, bytes, ggml_id, safetensors_name: Some(name), decode, encode: None }
    }

    const fn writable(self, encode: Encode) -> Self {
        Self { encode: Some(encode), ..self }
    }
}

pub static F32: Plain = Plain::new("F32", 4, Some(0), decode_f32).writable(encode_f32);
pub static F16: Plain = Plain::new("F16", 2, Some(1), convert::f16_to_f32).writable(convert::f32_to_f16);
pub static BF16: Plain = Plain::new("BF16", 2, Some(30), convert::bf16_to_f32).writable(convert::f32_to_bf16);
pub static F64: Plain =
    Plain::new("F64", 8, Some(28), |_, b, o| each(b, o, |v| f64::from_le_bytes(v) as f32));
pub static I8: Plain =
    Plain::new("I8", 1, Some(24), |_, b, o| each(b, o, |v| f32::from(i8::from_le_bytes(v))));
pub static I16: Plain =
    Plain::new("I16", 2, Some(25), |_, b, o| each(b, o, |v| f32::from(i16::from_le_bytes(v))));
pub static I32: Plain =
    Plain::new("I32", 4, Some(26), |_, b, o| each(b, o, |v| i32::from_le_bytes(v) as f32));
pub static I64: Plain =
    Plain::new("I64", 8, Some(27), |_, b, o| each(b, o, |v| i64::from_le_bytes(v) as f32));
pub static U8: Plain = Plain::new("U8", 1, None, |_, b, o| each(b, o, |v: [u8; 1]| f32::from(v[0])));
pub static U16: Plain =
    Plain::new("U16", 2, None, |_, b, o| each(b, o, |v| f32::from(u16::from_le_bytes(v))));
pub static U32: Plain = Plain::new("U32", 4, None, |_, b, o| each(b, o, |v| u32::from_le_bytes(v) as f32));
pub static U64: Plain = Plain::new("U64", 8, None, |_, b, o| each(b, o, |v| u64::from_le_bytes(v) as f32));
/// One byte; anything but 0 reads as 1.
pub static BOOL: Plain =
    Plain::new("BOOL", 1, None, |_, b, o| each(b, o, |v: [u8; 1]| if v[0] == 0 { 0.0 } else { 1.0 }));
/// OCP 8-bit float, E4M3: bias 7, no infinity, NaN is 0x7f and 0xff (safetensors' F8_E4M3 is PyTorch's e4m3fn).
pub static F8_E4M3: Plain =
    Plain::new("F8_E4M3", 1, None, |_, b, o| each(b, o, |v: [u8; 1]| E4M3_VALUES[usize::from(v[0])]));
/// OCP 8-bit float, E5M2: the upper byte of a binary16.
pub static F8_E5M2: Plain =
    Plain::new("F8_E5M2", 1, None, |_, b, o| each(b, o, |v: [u8; 1]| E5M2_VALUES[usize::from(v[0])]));

impl BlockFormat for Plain {
    fn name(&self) -> &'static str {
        self.name
    }

    fn ggml_id(&self) -> Option<u32> {
        self.ggml_id
    }

    fn safetensors_name(&self) -> Option<&'static str> {
        self.safetensors_name
    }

    fn block_len(&self) -> usize {
        1
    }

    fn block_bytes(&self) -> usize {
        self.bytes
    }

    fn can_encode(&self) -> bool {
        self.encode.is_some()
    }

    fn decode(&self, isa: Isa, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len(), out.len() * self.bytes);
        (self.decode)(isa, bytes, out);
    }

    fn encode(&self, isa: Isa, rows: &[f32], _row_len: usize, _importance: Option<&[f32]>, out: &mut [u8]) {
        assert_eq!(out.len(), rows.len() * self.bytes);
        let encode = self.encode.unwrap_or_else(|| panic!("{} has no encoder", self.name));
        encode(isa, rows, out);
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (slot, chunk) in out.iter_mut().zip(bytes.chunks_exact(N)) {
        let mut raw = [0; N];
        raw.copy_from_slice(chunk);
        *slot = value(raw);
    }
}

fn decode_f32(_isa: Isa, bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, f32::from_le_bytes);
}

fn encode_f32(_isa: Isa, rows: &[f32], out: &mut [u8]) {
    for (chunk, value) in out.chunks_exact_mut(4).zip(rows) {
        chunk.copy_from_slice(&value.to_le_bytes());
    }
}

/// Returns 2^`exponent`; -126 <= exponent <= 127.
const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// Returns the finite reading of a byte of sign, exponent and mantissa.
const fn byte_float(code: u8, mantissa_bits: u32, bias: i32) -> f32 {
    let magnitude = (code & 0x7f) as u32;
    let exponent = (magnitude >> mantissa_bits) as i32;
    let mantissa = magnitude & ((1 << mantissa_bits) - 1);
    let fraction = mantissa as f32 * power_of_two(-(mantissa_bits as i32));
    let value = if exponent == 0 {
        fraction * power_of_two(1 - bias)
    } else {
        (1.0 + fraction) * power_of_two(exponent - bias)
    };
    if code & 0x80 == 0 { value } else { -value }
}

static E4M3_VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        values[code] = if code & 0x7f == 0x7f { f32::NAN } else { byte_float(code as u8, 3, 7) };
        code += 1;
    }
    values
};

static E5M2_VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        values[code] = match code & 0x7f {
            0x7c if code < 128 => f32::INFINITY,
            0x7c => f32::NEG_INFINITY,
            0x7d..=0x7f => f32::NAN,
            _ => byte_float(code as u8, 2, 15),
        };
        code += 1;
    }
    values
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::format::{by_ggml_id, by_safetensors_name};

    fn decoded(format: &Plain, bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![0.0; bytes.len() / format.block_bytes()];
        format.decode(Isa::detect(), bytes, &mut out);
        out
    }

    #[test]
    fn eight_bit_floats_follow_the_ocp_tables() {
        let e4m3 = decoded(&F8_E4M3, &[0x00, 0x80, 0x01, 0x07, 0x08, 0x38, 0xb8, 0x7e, 0xfe, 0x3f]);
        let small = 1.0 / 512.0;
        assert_eq!(e4m3, [0.0, -0.0, small, 7.0 * small, 8.0 * small, 1.0, -1.0, 448.0, -448.0, 1.875]);
        assert!(e4m3[1].is_sign_negative());
        assert!(decoded(&F8_E4M3, &[0x7f, 0xff]).iter().all(|v| v.is_nan()));
        assert_eq!(E4M3_VALUES.iter().filter(|v| !v.is_finite()).count(), 2);
        for code in 0..=255u8 {
            let want = crate::kernel::convert::f16_bits_to_f32(u16::from(code) << 8);
            let got = E5M2_VALUES[usize::from(code)];
            assert!(got == want || (got.is_nan() && want.is_nan()), "{code:#x}: {got} {want}");
        }
    }

    #[test]
    fn integers_decode_with_their_sign() {
        assert_eq!(decoded(&I8, &[0x80, 0x7f]), [-128.0, 127.0]);
        assert_eq!(decoded(&U8, &[0x80, 0x7f]), [128.0, 127.0]);
        assert_eq!(decoded(&I16, &[0xff, 0xff]), [-1.0]);
        assert_eq!(decoded(&U16, &[0xff, 0xff]), [65535.0]);
        assert_eq!(decoded(&I32, &(-5i32).to_le_bytes()), [-5.0]);
        assert_eq!(decoded(&U32, &7u32.to_le_bytes()), [7.0]);
        assert_eq!(decoded(&I64, &(-1i64 << 40).to_le_bytes()), [-(2f32.powi(40))]);
        assert_eq!(decoded(&U64, &(1u64 << 63).to_le_bytes()), [2f32.powi(63)]);
        assert_eq!(decoded(&F64, &0.1f64.to_le_bytes()), [0.1f32]);
        assert_eq!(decoded(&BOOL, &[0, 1, 2]), [0.0, 1.0, 1.0]);
    }

    #[test]
    fn f32_bytes_are_kept() {
        let row = [1.5f32, -0.0, f32::from_bits(1), f32::MAX];
        let mut bytes = [0; 16];
        F32.encode(Isa::detect(), &row, 4, None, &mut bytes);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&decoded(&F32, &bytes)), bits(&row));
    }

    #[test]
    fn lookups_find_plain_types() {
        for (id, name) in [(0, "F32"), (1, "F16"), (30, "BF16"), (24, "I8"), (28, "F64")] {
            assert_eq!(by_ggml_id(id).unwrap().name(), name);
        }
        let names = "F64 F32 F16 BF16 I64 I32 I16 I8 U8 U16 U32 U64 BOOL F8_E4M3 F8_E5M2";
        for name in names.split(' ') {
            assert_eq!(by_safetensors_name(name).unwrap().name(), name);
        }
        assert!(by_safetensors_name("f32").is_none());
    }
}

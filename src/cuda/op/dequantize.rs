//! Block formats to bf16 or f32: `tensor::format`.

use super::super::CudaError;
use super::super::buffer::{Buffer, Float};
use super::super::device::Device;
use super::super::launch::Arg;
use super::over_values;

/// The formats that have a kernel, by their names in `tensor::format`, with values and bytes of a block.
pub const FORMATS: [(&str, usize, usize); 19] = [
    ("F32", 1, 4),
    ("F16", 1, 2),
    ("BF16", 1, 2),
    ("F8_E4M3", 1, 1),
    ("F8_E5M2", 1, 1),
    ("Q8_0", 32, 34),
    ("Q4_0", 32, 18),
    ("Q4_1", 32, 20),
    ("Q5_0", 32, 22),
    ("Q5_1", 32, 24),
    ("MXFP4", 32, 17),
    ("IQ4_NL", 32, 18),
    ("IQ4_XS", 256, 136),
    ("Q2_K", 256, 84),
    ("Q3_K", 256, 110),
    ("Q4_K", 256, 144),
    ("Q5_K", 256, 176),
    ("Q6_K", 256, 210),
    ("NF4", 64, 36),
];

/// Writes the values of whole blocks, which a `tensor::format` of that name decodes to, rounded to T once.
///
/// # Panics
/// If there is no such format in [`FORMATS`], or the lengths disagree.
pub fn dequantize<T: Float>(
    device: &Device,
    format: &str,
    blocks: &Buffer<u8>,
    out: &mut Buffer<T>,
) -> Result<(), CudaError> {
    let known = FORMATS.iter().find(|(name, ..)| *name == format);
    let (_, len, bytes) = known.unwrap_or_else(|| panic!("no kernel for {format}"));
    assert!(out.len().is_multiple_of(*len) && blocks.len() == out.len() / len * bytes);
    let args = [blocks.arg(), out.arg(), Arg::U64(out.len() as u64)];
    // SAFETY: the lengths were checked.
    unsafe { over_values(device, &format!("dequantize_{format}_{}", T::NAME), out.len(), 8, &args) }
}

/// NF4 whose scales are quantized, on the device: `kernel::product::nested`.
pub struct Nested<'a> {
    /// 32 bytes for each block of 64.
    pub indices: &'a Buffer<u8>,
    pub scales: &'a Buffer<u8>,
    /// Of 256 scales each.
    pub steps: &'a Buffer<f32>,
    pub offset: f32,
    /// The 256 values that scales name.
    pub dynamic: &'a Buffer<f32>,
}

impl Nested<'_> {
    /// Writes all values, rounded to T once.
    ///
    /// # Panics
    /// If the lengths disagree.
    pub fn dequantize<T: Float>(&self, device: &Device, out: &mut Buffer<T>) -> Result<(), CudaError> {
        let n_blocks = self.scales.len();
        assert!(self.indices.len() == 32 * n_blocks && out.len() == 64 * n_blocks);
        assert!(self.steps.len() == n_blocks.div_ceil(256) && self.dynamic.len() == 256);
        let args = [
            self.indices.arg(),
            self.scales.arg(),
            self.steps.arg(),
            Arg::F32(self.offset),
            self.dynamic.arg(),
            out.arg(),
            Arg::U64(out.len() as u64),
        ];
        // SAFETY: the lengths were checked.
        unsafe { over_values(device, &format!("dequantize_nested_{}", T::NAME), out.len(), 8, &args) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::format::{BlockFormat as _, Nf4, REGISTRY};

    #[test]
    fn every_float_format_that_can_be_decoded_has_a_kernel() {
        let kernel = include_str!("../kernels/dequantize.cu");
        let integers = ["F64", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL"];
        let mut names = vec![(Nf4.name(), Nf4.block_len(), Nf4.block_bytes())];
        for format in REGISTRY.iter().filter(|f| f.can_decode() && !integers.contains(&f.name())) {
            names.push((format.name(), format.block_len(), format.block_bytes()));
        }
        for name in &names {
            assert!(FORMATS.contains(name), "{name:?}");
            assert!(kernel.contains(&format!(", {})\n", name.0)), "no kernel for {name:?}");
        }
        assert_eq!(names.len(), FORMATS.len());
    }
}

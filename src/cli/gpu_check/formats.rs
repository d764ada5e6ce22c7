//! Block formats: the bits of the CPU's decoders, and of rounding them to bf16 once.

use half::bf16;

use super::run::{Checker, download, noise};
use crate::cuda::CudaError;
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::dequantize::{FORMATS, Nested, dequantize};
use crate::kernel::Isa;
use crate::tensor::format::nf4::DYNAMIC;
use crate::tensor::format::{BlockFormat, Nf4, by_name};

pub fn run(checker: &mut Checker<'_>) -> Result<(), CudaError> {
    for (name, len, bytes) in FORMATS {
        let odd = if len == 1 { vec![1, 1001] } else { vec![] };
        for n in checker.shapes(&[256, 5120, 1 << 20], 2).iter().copied().chain(odd) {
            let blocks = blocks(name, n / len, bytes);
            let mut want = vec![0.0; n];
            match by_name(name) {
                Some(format) => format.decode(Isa::detect(), &blocks, &mut want),
                // the one that no file has
                None => Nf4.decode(Isa::detect(), &blocks, &mut want),
            }
            one::<f32>(checker, name, &blocks, &want)?;
            one::<bf16>(checker, name, &blocks, &want)?;
        }
    }
    nested::<f32>(checker)?;
    nested::<bf16>(checker)
}

/// NF4 with quantized scales: the values of NF4 with the scales that they stand for.
fn nested<T: Float>(checker: &mut Checker<'_>) -> Result<(), CudaError> {
    const BLOCKS: usize = 700;
    let device = checker.device;
    let (indices, scales) = (blocks("", BLOCKS, 32), blocks("", BLOCKS, 1));
    let (steps, offset) = (noise::<f32>(BLOCKS.div_ceil(256), 1, 1.0), 0.03);
    let mut plain = Vec::with_capacity(36 * BLOCKS);
    for (at, (scale, indices)) in scales.iter().zip(indices.chunks_exact(32)).enumerate() {
        let absmax = DYNAMIC[usize::from(*scale)] * steps[at / 256] + offset;
        plain.extend(absmax.to_le_bytes());
        plain.extend(indices);
    }
    let mut want = vec![0.0; 64 * BLOCKS];
    Nf4.decode(Isa::detect(), &plain, &mut want);
    let (indices, scales) = (Buffer::of(device, &indices)?, Buffer::of(device, &scales)?);
    let (steps, dynamic) = (Buffer::of(device, &steps)?, Buffer::of(device, &DYNAMIC)?);
    let all = Nested { indices: &indices, scales: &scales, steps: &steps, offset, dynamic: &dynamic };
    let mut out = Buffer::<T>::zeros(device, want.len())?;
    let (kernel, shape) = (format!("dequantize_nested {}", T::NAME), format!("{}", want.len()));
    let found = checker.twice(&kernel, &shape, &mut || {
        all.dequantize(device, &mut out)?;
        download(device, &out)
    })?;
    let want: Vec<f32> = want.iter().map(|x| T::from_f32(*x).to_f32()).collect();
    checker.same_as_cpu(&kernel, &shape, &found, &want);
    Ok(())
}

fn one<T: Float>(
    checker: &mut Checker<'_>,
    name: &str,
    blocks: &[u8],
    want: &[f32],
) -> Result<(), CudaError> {
    let device = checker.device;
    let on_device = Buffer::of(device, blocks)?;
    let mut out = Buffer::<T>::zeros(device, want.len())?;
    let (kernel, shape) = (format!("dequantize_{name} {}", T::NAME), format!("{}", want.len()));
    let found = checker.twice(&kernel, &shape, &mut || {
        dequantize(device, name, &on_device, &mut out)?;
        download(device, &out)
    })?;
    let want: Vec<f32> = want.iter().map(|x| T::from_f32(*x).to_f32()).collect();
    // a NaN is a NaN
    let plain = |values: Vec<f32>| {
        values.into_iter().map(|x| if x.is_nan() { f32::NAN } else { x }).collect::<Vec<_>>()
    };
    checker.same_as_cpu(&kernel, &shape, &plain(found), &plain(want));
    Ok(())
}

/// Returns blocks of random bytes whose scales are finite.
fn blocks(name: &str, n_blocks: usize, bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let mut all: Vec<u8> = (0..n_blocks * bytes).map(|_| next()).collect();
    // where the upper bytes of binary16 scales lie
    let halves: &[usize] = match name {
        "Q2_K" => &[81, 83],
        "Q3_K" => &[109],
        "Q6_K" => &[209],
        "Q4_1" | "Q5_1" | "Q4_K" | "Q5_K" => &[1, 3],
        "F16" | "BF16" | "Q8_0" | "Q4_0" | "Q5_0" | "IQ4_NL" | "IQ4_XS" => &[1],
        "F32" | "NF4" => &[3],
        _ => &[],
    };
    for block in all.chunks_exact_mut(bytes) {
        halves.iter().for_each(|at| block[*at] &= 0xbb);
    }
    all
}

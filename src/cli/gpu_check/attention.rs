//! Attention, by both families of kernels.

use half::bf16;

use super::reference;
use super::run::{Against, Checker, allowed, download, noise, upload, widened};
use crate::cuda::CudaError;
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::attention::{Documents, Family, Gradients, Operands, Saved};
use crate::kernel::attention::{
    AttentionShape, DocumentGradients, DocumentRows, Saved as CpuSaved, document_attention,
    document_attention_backward,
};

/// Returns shapes, odd ones too, and where documents begin; documents of fewer positions where few and small ones are to be checked.
pub fn cases(checker: &Checker<'_>) -> [(AttentionShape, Vec<usize>); 8] {
    // more than a tile of queries, and of keys
    let most = checker.shapes(&[90, usize::MAX], 1).last().copied().unwrap_or(usize::MAX);
    let shape = |n_heads, n_kv_heads, head_dim: usize, softcap, window| {
        let scale = 1.0 / (head_dim as f32).sqrt();
        AttentionShape { n_heads, n_kv_heads, head_dim, scale, softcap, window }
    };
    [
        (shape(4, 2, 64, None, None), vec![0, 70, 71, 200, 513]),
        (shape(2, 1, 64, Some(5.0), Some(50)), vec![0, 150]),
        (shape(2, 2, 96, None, None), vec![0, 33, 33, 97, 300]),
        (shape(8, 2, 128, None, None), vec![0, 130, 400]),
        (shape(2, 2, 128, Some(15.0), Some(70)), vec![0, 5, 5, 350]),
        (shape(2, 1, 256, Some(30.0), Some(40)), vec![0, 90, 211]),
        (shape(3, 1, 80, None, Some(33)), vec![0, 100]),
        (shape(2, 2, 10, None, None), vec![0, 1, 66]),
    ]
    .map(|(shape, cu)| (shape, cu.into_iter().map(|at: usize| at.min(most)).collect()))
}

pub fn run(checker: &mut Checker<'_>) -> Result<(), CudaError> {
    for (shape, cu) in cases(checker) {
        one::<f32>(checker, shape, &cu, Family::Plain)?;
        one::<bf16>(checker, shape, &cu, Family::Plain)?;
        if [64, 96, 128, 256].contains(&shape.head_dim) {
            one::<bf16>(checker, shape, &cu, Family::Mma)?;
        }
    }
    Ok(())
}

fn one<T: Float>(
    checker: &mut Checker<'_>,
    shape: AttentionShape,
    cu: &[usize],
    family: Family,
) -> Result<(), CudaError> {
    let device = checker.device;
    let n = cu[cu.len() - 1];
    let (n_q, n_kv) = (n * shape.n_heads * shape.head_dim, n * shape.n_kv_heads * shape.head_dim);
    let (q, dout) = (noise::<T>(n_q, 1, 3.0), noise::<T>(n_q, 2, 1.0));
    let (k, v) = (noise::<T>(n_kv, 3, 3.0), noise::<T>(n_kv, 4, 3.0));
    let documents = Documents::with_family(device, shape, cu, family)?;
    let (q_on, k_on, v_on) = (upload::<T>(device, &q)?, upload::<T>(device, &k)?, upload::<T>(device, &v)?);
    let dout_on = upload::<T>(device, &dout)?;
    let operands = Operands { q: &q_on, k: &k_on, v: &v_on };
    let name = |part: &str| format!("attention {part} {family:?} {}", T::NAME).to_lowercase();
    let text = format!("{shape:?} {cu:?}");
    let (mut out, mut lse) =
        (Buffer::<T>::zeros(device, n_q)?, Buffer::<f32>::zeros(device, n * shape.n_heads)?);
    let mut found = checker.twice(&name("out"), &text, &mut || {
        documents.forward(device, &operands, &mut out, &mut lse)?;
        Ok([download(device, &out)?, download(device, &lse)?].concat())
    })?;
    let found_lse = found.split_off(n_q);
    let zeros = |n: usize| Buffer::<T>::zeros(device, n);
    let (mut dq, mut dk, mut dv) = (zeros(n_q)?, zeros(n_kv)?, zeros(n_kv)?);
    let saved = Saved { out: &out, lse: &lse, dout: &dout_on };
    let mut gradients = checker.twice(&name("gradients"), &text, &mut || {
        let mut gradients = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        documents.backward(device, &operands, &saved, &mut gradients)?;
        Ok([download(device, &dq)?, download(device, &dk)?, download(device, &dv)?].concat())
    })?;
    let (found_dv, found_dk) = (gradients.split_off(n_q + n_kv), gradients.split_off(n_q));
    let want = reference::attention(&shape, [&widened(&q), &widened(&k), &widened(&v), &widened(&dout)], cu);
    let against = if T::NAME == "f32" { Against::Value } else { Against::Largest };
    checker.near(&name("out"), &text, &found, &want.out, allowed::<T>(), Against::Value);
    checker.near(&name("lse"), &text, &found_lse, &want.lse, 1e-5, Against::Value);
    for (part, found, want) in
        [("dq", &gradients, &want.dq), ("dk", &found_dk, &want.dk), ("dv", &found_dv, &want.dv)]
    {
        checker.near(&name(part), &text, found, want, allowed::<T>(), against);
    }

    let rows = DocumentRows { q: &q, k: &k, v: &v, cu };
    let (mut cpu, mut cpu_lse) = (vec![0.0; n_q], vec![0.0; n * shape.n_heads]);
    document_attention(&checker.compute, &shape, &rows, &mut cpu, &mut cpu_lse);
    checker.near_cpu(&name("out"), &text, &found, &cpu, allowed::<T>(), Against::Value);
    let (mut dq, mut dk, mut dv) = (vec![0.0; n_q], vec![0.0; n_kv], vec![0.0; n_kv]);
    let saved = CpuSaved { out: &cpu, lse: &cpu_lse, dout: &dout };
    let results = DocumentGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
    document_attention_backward(&checker.compute, &shape, &rows, &saved, results);
    for (part, found, want) in [("dq", &gradients, &dq), ("dk", &found_dk, &dk), ("dv", &found_dv, &dv)] {
        checker.near_cpu(&name(part), &text, found, want, allowed::<T>(), against);
    }
    Ok(())
}

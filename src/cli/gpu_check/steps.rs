//! Norms, gates, rotations, sums, rows, dropout.

use half::bf16;

use super::reference;
use super::run::{Against, Checker, allowed, download, noise, upload, widened};
use crate::cuda::CudaError;
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::elementwise::{self as op, Dropout, DropoutRows, GateUp, Occurrences, RopeRows, Turn};
use crate::cuda::op::norm::{self, Norm};
use crate::kernel::rope::{RopeTable, inv_freq};
use crate::kernel::{activation, dropout, norm as cpu_norm, rope};
use crate::nn::{Activation, MaskKey, RowPlace};

pub fn run(checker: &mut Checker<'_>) -> Result<(), CudaError> {
    for &(rows, cols) in checker.shapes(&[(11, 33), (64, 128), (9, 1000), (5, 2047), (130, 4096)], 2) {
        norms::<f32, f32>(checker, rows, cols)?;
        norms::<bf16, bf16>(checker, rows, cols)?;
        norms::<f32, bf16>(checker, rows, cols)?;
        gates::<f32>(checker, rows, cols)?;
        gates::<bf16>(checker, rows, cols)?;
        sums::<f32>(checker, rows, cols)?;
        sums::<bf16>(checker, rows, cols)?;
        casts(checker, rows * cols)?;
        rows_by_index::<f32>(checker, cols)?;
        rows_by_index::<bf16>(checker, cols)?;
        drops::<f32>(checker, cols)?;
        drops::<bf16>(checker, cols)?;
    }
    for &(n_heads, head_dim, dim) in
        checker.shapes(&[(4, 64, 64), (3, 80, 20), (2, 10, 10), (2, 256, 128)], 3)
    {
        ropes::<f32>(checker, n_heads, head_dim, dim)?;
        ropes::<bf16>(checker, n_heads, head_dim, dim)?;
    }
    Ok(())
}

/// Of rows of X, such as the residual stream; what is added to them and comes out is of T.
fn norms<X: Float, T: Float>(checker: &mut Checker<'_>, rows: usize, cols: usize) -> Result<(), CudaError> {
    let device = checker.device;
    let (n, eps, shape) = (rows * cols, 1e-5, format!("{rows}x{cols}"));
    let types = if X::NAME == T::NAME { T::NAME.to_owned() } else { format!("{} to {}", X::NAME, T::NAME) };
    let (x, dy, w) = (noise::<X>(n, 1, 2.0), noise::<T>(n, 2, 1.0), noise::<f32>(cols, 3, 1.0));
    let weight = upload::<f32>(device, &w)?;
    let norm = Norm { weight: &weight, offset: 1.0, eps };
    let w: Vec<f32> = w.iter().map(|w| w + 1.0).collect();
    let (on_device, dy_on_device) = (upload::<X>(device, &x)?, upload::<T>(device, &dy)?);
    let mut y = Buffer::<T>::zeros(device, n)?;
    let name = format!("rms_norm {types}");
    let found = checker.twice(&name, &shape, &mut || {
        norm.forward(device, &on_device, &mut y)?;
        download(device, &y)
    })?;
    let (wide_x, wide_w, wide_dy) = (widened(&x), widened(&w), widened(&dy));
    let want = reference::norm(&wide_x, &wide_w, f64::from(eps));
    checker.near(&name, &shape, &found, &want, allowed::<T>(), Against::Value);
    let mut cpu = vec![0.0; n];
    cpu_norm::rms_norm(&checker.compute, &x, &w, eps, &mut cpu);
    checker.near_cpu(&name, &shape, &found, &cpu, allowed::<T>(), Against::Value);

    let name = format!("rms_norm of a sum {types}");
    let mut sum = Buffer::<X>::zeros(device, n)?;
    let mut found = checker.twice(&name, &shape, &mut || {
        norm.forward_of_sum(device, &on_device, &dy_on_device, &mut sum, &mut y)?;
        Ok([download(device, &sum)?, download(device, &y)?].concat())
    })?;
    let found_y = found.split_off(n);
    let total: Vec<f32> = x.iter().zip(&dy).map(|(x, dy)| x + dy).collect();
    let total = rounded::<X>(&total);
    checker.same_as_cpu(&name, &shape, &found, &total);
    let want = reference::norm(&widened(&total), &wide_w, f64::from(eps));
    checker.near(&name, &shape, &found_y, &want, allowed::<T>(), Against::Value);

    let (mut dx, mut factors) = (Buffer::<X>::zeros(device, n)?, Buffer::<f32>::zeros(device, rows)?);
    let name = format!("rms_norm_backward {types}");
    let found = checker.twice(&name, &shape, &mut || {
        norm.backward(device, &on_device, &dy_on_device, None, &mut dx, &mut factors)?;
        download(device, &dx)
    })?;
    let (want, want_weight) = reference::norm_backward(&wide_x, &wide_w, f64::from(eps), &wide_dy);
    checker.near(&name, &shape, &found, &want, allowed::<X>(), Against::Value);
    let mut cpu_weight = vec![0.0; cols];
    cpu_norm::rms_norm_backward(&checker.compute, &x, &w, eps, &dy, &mut cpu, Some(&mut cpu_weight));
    checker.near_cpu(&name, &shape, &found, &cpu, allowed::<X>(), Against::Value);

    let name = format!("weight_gradient {types}");
    let found = checker.twice(&name, &shape, &mut || {
        let mut gradient = Buffer::<f32>::zeros(device, cols)?;
        norm::weight_gradient(device, &on_device, &factors, &dy_on_device, &mut gradient)?;
        download(device, &gradient)
    })?;
    checker.near(&name, &shape, &found, &want_weight, 1e-5, Against::Value);
    checker.near_cpu(&name, &shape, &found, &cpu_weight, 1e-5, Against::Value);

    let name = format!("bias_gradient {}", T::NAME);
    let found = checker.twice(&name, &shape, &mut || {
        let mut gradient = Buffer::<f32>::zeros(device, cols)?;
        norm::bias_gradient(device, &dy_on_device, &mut gradient)?;
        download(device, &gradient)
    })?;
    let mut want = vec![0.0; cols];
    for dy in wide_dy.chunks_exact(cols) {
        want.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
    }
    checker.near(&name, &shape, &found, &want, 1e-5, Against::Value);
    Ok(())
}

fn gates<T: Float>(checker: &mut Checker<'_>, rows: usize, cols: usize) -> Result<(), CudaError> {
    let device = checker.device;
    let (n, shape) = (rows * cols, format!("{rows}x{cols}"));
    let (gate, up, dy) = (noise::<T>(n, 4, 6.0), noise::<T>(n, 5, 1.0), noise::<T>(n, 6, 1.0));
    let (g, u, d) = (upload::<T>(device, &gate)?, upload::<T>(device, &up)?, upload::<T>(device, &dy)?);
    for (kind, name) in [(Activation::Silu, "swiglu"), (Activation::GeluTanh, "geglu")] {
        let is_gelu = kind == Activation::GeluTanh;
        let mut y = Buffer::<T>::zeros(device, n)?;
        let forward = format!("{name} {}", T::NAME);
        let found = checker.twice(&forward, &shape, &mut || {
            op::gated(device, kind, GateUp::Apart(&g, &u), cols, &mut y)?;
            download(device, &y)
        })?;
        let pairs = || gate.iter().zip(&up).map(|(g, u)| (f64::from(*g), f64::from(*u)));
        let want: Vec<f64> = pairs().map(|(g, u)| reference::activation(is_gelu, g).0 * u).collect();
        checker.near(&forward, &shape, &found, &want, allowed::<T>(), Against::Value);
        let cpu = match kind {
            Activation::Silu => activation::swiglu(&checker.compute, &gate, &up),
            Activation::GeluTanh => activation::geglu_tanh(&checker.compute, &gate, &up),
        };
        checker.near_cpu(&forward, &shape, &found, &cpu, allowed::<T>(), Against::Value);

        let (mut dgate, mut dup) = (Buffer::<T>::zeros(device, n)?, Buffer::<T>::zeros(device, n)?);
        let backward = format!("{name}_backward {}", T::NAME);
        let mut found = checker.twice(&backward, &shape, &mut || {
            let gradients = (&mut dgate, Some(&mut dup));
            op::gated_backward(device, kind, GateUp::Apart(&g, &u), &d, gradients, cols, None)?;
            Ok([download(device, &dgate)?, download(device, &dup)?].concat())
        })?;
        let found_up = found.split_off(n);
        let slope = |((g, u), d): ((f64, f64), &f32)| f64::from(*d) * u * reference::activation(is_gelu, g).1;
        let want: Vec<f64> = pairs().zip(&dy).map(slope).collect();
        checker.near(&backward, &shape, &found, &want, allowed::<T>(), Against::Value);
        let (mut cpu, mut cpu_up) = (gate.clone(), up.clone());
        match kind {
            Activation::Silu => activation::swiglu_backward(&checker.compute, &mut cpu, &mut cpu_up, &dy),
            Activation::GeluTanh => {
                activation::geglu_tanh_backward(&checker.compute, &mut cpu, &mut cpu_up, &dy);
            }
        }
        checker.near_cpu(&backward, &shape, &found, &cpu, allowed::<T>(), Against::Value);
        checker.near_cpu(&backward, &shape, &found_up, &cpu_up, allowed::<T>(), Against::Value);
    }
    Ok(())
}

fn sums<T: Float>(checker: &mut Checker<'_>, rows: usize, cols: usize) -> Result<(), CudaError> {
    let device = checker.device;
    let n = rows * cols;
    let (x, y, bias) = (noise::<T>(n, 7, 1.0), noise::<T>(n, 8, 1.0), noise::<f32>(cols, 9, 1.0));
    let (on_device, other) = (upload::<T>(device, &x)?, upload::<T>(device, &y)?);
    let bias_on_device = upload::<f32>(device, &bias)?;
    let mut out = Buffer::<T>::zeros(device, n)?;
    let shape = format!("{rows}x{cols}");
    let name = format!("add_scaled {}", T::NAME);
    let found = checker.twice(&name, &shape, &mut || {
        op::add_scaled(device, &on_device, &other, 0.3, &mut out)?;
        download(device, &out)
    })?;
    let cpu = activation::scaled_sum(&checker.compute, &x, 0.3, &y);
    checker.same_as_cpu(&name, &shape, &found, &rounded::<T>(&cpu));

    let name = format!("scale {}", T::NAME);
    let found = checker.twice(&name, &shape, &mut || {
        op::scale(device, &on_device, 1.7, &mut out)?;
        download(device, &out)
    })?;
    let cpu = activation::scaled(&checker.compute, &x, 1.7);
    checker.same_as_cpu(&name, &shape, &found, &rounded::<T>(&cpu));

    let name = format!("add_bias {}", T::NAME);
    let found = checker.twice(&name, &shape, &mut || {
        let mut place = upload::<T>(device, &x)?;
        op::add_bias(device, &mut place, &bias_on_device)?;
        download(device, &place)
    })?;
    let mut cpu = x.clone();
    activation::add_bias(&checker.compute, &mut cpu, &bias);
    checker.same_as_cpu(&name, &shape, &found, &rounded::<T>(&cpu));
    Ok(())
}

fn casts(checker: &mut Checker<'_>, n: usize) -> Result<(), CudaError> {
    let device = checker.device;
    let x = noise::<f32>(n, 14, 3.0);
    let on_device = upload::<f32>(device, &x)?;
    let (mut narrow, mut wide) = (Buffer::<bf16>::zeros(device, n)?, Buffer::<f32>::zeros(device, n)?);
    let shape = format!("{n}");
    let found = checker.twice("casts", &shape, &mut || {
        op::to_bf16(device, &on_device, &mut narrow)?;
        op::to_f32(device, &narrow, &mut wide)?;
        download(device, &wide)
    })?;
    checker.same_as_cpu("casts", &shape, &found, &rounded::<bf16>(&x));
    Ok(())
}

fn rounded<T: Float>(values: &[f32]) -> Vec<f32> {
    values.iter().map(|x| T::from_f32(*x).to_f32()).collect()
}

fn ropes<T: Float>(
    checker: &mut Checker<'_>,
    n_heads: usize,
    head_dim: usize,
    dim: usize,
) -> Result<(), CudaError> {
    let device = checker.device;
    let positions = [0, 1, 511, 5, 4000];
    let x = noise::<T>(positions.len() * n_heads * head_dim, 9, 1.0);
    let table = RopeTable::new(&inv_freq(10_000.0, dim), 1.25);
    let rows = upload::<f32>(device, &table.rows(4001))?;
    let places = Buffer::of(device, &positions)?;
    let rows = RopeRows { table: &rows, dim, positions: &places };
    let (name, shape) = (format!("rope {}", T::NAME), format!("{n_heads}x{head_dim} turning {dim}"));
    for turn in [Turn::Forward, Turn::Back] {
        let found = checker.twice(&name, &shape, &mut || {
            let mut y = upload::<T>(device, &x)?;
            op::rope(device, &mut y, (n_heads * head_dim, n_heads, head_dim), &rows, turn)?;
            download(device, &y)
        })?;
        let mut cpu = x.clone();
        match turn {
            Turn::Forward => rope::rope(&checker.compute, &mut cpu, head_dim, &positions, &table),
            Turn::Back => rope::rope_backward(&checker.compute, &mut cpu, head_dim, &positions, &table),
        }
        checker.same_as_cpu(&name, &shape, &found, &rounded::<T>(&cpu));
    }
    Ok(())
}

fn rows_by_index<T: Float>(checker: &mut Checker<'_>, cols: usize) -> Result<(), CudaError> {
    let device = checker.device;
    let ids = [4, 0, 4, 6, 2, 4];
    let (table, dx) = (noise::<T>(7 * cols, 10, 1.0), noise::<T>(6 * cols, 11, 1.0));
    let (on_device, index) = (upload::<T>(device, &table)?, Buffer::of(device, &ids)?);
    let mut out = Buffer::<T>::zeros(device, 6 * cols)?;
    let (name, shape) = (format!("gather_rows {}", T::NAME), format!("6x{cols}"));
    let found = checker.twice(&name, &shape, &mut || {
        op::gather_rows(device, &on_device, &index, 2.5, &mut out)?;
        download(device, &out)
    })?;
    let row = |id: &u32| table[*id as usize * cols..][..cols].iter().map(|x| x * 2.5);
    let cpu: Vec<f32> = ids.iter().flat_map(row).collect();
    checker.same_as_cpu(&name, &shape, &found, &rounded::<T>(&cpu));

    let name = format!("gather_rows {} to f32", T::NAME);
    let mut wide = Buffer::<f32>::zeros(device, 6 * cols)?;
    let found = checker.twice(&name, &shape, &mut || {
        op::gather_rows(device, &on_device, &index, 2.5, &mut wide)?;
        download(device, &wide)
    })?;
    checker.same_as_cpu(&name, &shape, &found, &cpu);

    let gradients = upload::<T>(device, &dx)?;
    let (places, name) = (Buffer::of(device, &[5, 0, 3, 1, 6, 2])?, format!("scatter_rows {}", T::NAME));
    let found = checker.twice(&name, &shape, &mut || {
        let mut spread = Buffer::<T>::zeros(device, 7 * cols)?;
        op::scatter_rows(device, &gradients, &places, &mut spread)?;
        download(device, &spread)
    })?;
    let mut cpu = vec![0.0; 7 * cols];
    for (row, place) in dx.chunks_exact(cols).zip([5, 0, 3, 1, 6, 2]) {
        cpu[place * cols..][..cols].copy_from_slice(row);
    }
    checker.same_as_cpu(&name, &shape, &found, &cpu);

    let name = format!("combine_rows {}", T::NAME);
    let weights = Buffer::of(device, &[0.5, -0.25, 2.0, 0.125, 1.0, 0.75])?;
    let found = checker.twice(&name, &shape, &mut || {
        let mut sum = upload::<T>(device, &table)?;
        op::combine_rows(device, &gradients, &places, Some(&weights), &mut sum)?;
        download(device, &sum)
    })?;
    let mut want = widened(&table);
    let weighted = dx.chunks_exact(cols).zip([5, 0, 3, 1, 6, 2]).zip([0.5, -0.25, 2.0, 0.125, 1.0, 0.75]);
    for ((row, place), weight) in weighted.clone() {
        want[place * cols..][..cols].iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * f64::from(*x));
    }
    checker.near(&name, &shape, &found, &want, allowed::<T>(), Against::Value);
    let name = format!("combine_rows_backward {}", T::NAME);
    let found = checker.twice(&name, &shape, &mut || {
        let (mut drows, mut dots) = (Buffer::<T>::zeros(device, 6 * cols)?, Buffer::zeros(device, 6)?);
        let combined = op::Combined { from: &gradients, ids: &places, factors: &weights, dout: &on_device };
        combined.backward(device, &mut drows, &mut dots)?;
        Ok::<_, CudaError>([download(device, &drows)?, download(device, &dots)?].concat())
    })?;
    let (mut want, mut dots) = (Vec::new(), Vec::new());
    for ((row, place), weight) in weighted {
        let dout = || table[place * cols..][..cols].iter().map(|d| f64::from(*d));
        want.extend(dout().map(|d| weight * d));
        dots.push(dout().zip(row).map(|(d, x)| d * f64::from(*x)).sum());
    }
    checker.near(&name, &shape, &found[..6 * cols], &want, allowed::<T>(), Against::Value);
    checker.near(&name, &shape, &found[6 * cols..], &dots, 1e-5, Against::Largest);

    let start = noise::<f32>(7 * cols, 12, 1.0);
    let name = format!("embedding_backward {}", T::NAME);
    let found = checker.twice(&name, &shape, &mut || {
        let mut gradient = upload::<f32>(device, &start)?;
        op::embedding_backward(device, &gradients, &Occurrences::of(&ids), 0.7, &mut gradient)?;
        download(device, &gradient)
    })?;
    let mut cpu = start;
    for (dx, id) in dx.chunks_exact(cols).zip(ids) {
        for (sum, dx) in cpu[id as usize * cols..][..cols].iter_mut().zip(dx) {
            *sum += 0.7 * dx;
        }
    }
    checker.same_as_cpu(&name, &shape, &found, &cpu);
    Ok(())
}

fn drops<T: Float>(checker: &mut Checker<'_>, cols: usize) -> Result<(), CudaError> {
    let device = checker.device;
    let places: Vec<RowPlace> = (0..5).map(|i| RowPlace { document: i / 2, position: 100 * i + 1 }).collect();
    let x = noise::<T>(5 * cols, 13, 1.0);
    let drop = Dropout { seed: 0x0123_4567_89ab_cdef, step: 17, module: 5, rate: 0.1 };
    let (on_device, rows) = (upload::<T>(device, &x)?, DropoutRows::new(device, &places)?);
    let mut y = Buffer::<T>::zeros(device, x.len())?;
    let (name, shape) = (format!("dropout {}", T::NAME), format!("5x{cols}"));
    let found = checker.twice(&name, &shape, &mut || {
        drop.apply(device, &on_device, &rows, &mut y)?;
        download(device, &y)
    })?;
    let mut cpu = x;
    let key = MaskKey { seed: drop.seed, step: drop.step, module: drop.module, rows: &places };
    dropout::dropout(&checker.compute, &mut cpu, cols, drop.rate, &key);
    checker.same_as_cpu(&name, &shape, &found, &rounded::<T>(&cpu));
    Ok(())
}

//! Running sums of columns, the CPU's bits; and those of what goes into the products of a tiny model.

use half::bf16;

use super::run::{Against, Checker, noise, upload};
use super::train::TINY;
use crate::cuda::CudaError;
use crate::cuda::buffer::Float;
use crate::cuda::op::moments::Moments;
use crate::error::Failure;
use crate::eval::SequenceCache;
use crate::eval::collect::Observable;
use crate::kernel::ComputeMode;
use crate::kernel::column_moments::add_column_moments;
use crate::model::device::DeviceDecoder;
use crate::model::observe::{SiteSums, sites};
use crate::model::train::LowRankSpec;
use crate::model::{Decoder, Error, Segment, Wanted};

pub fn run(checker: &mut Checker<'_>) -> Result<(), Failure> {
    for (rows, columns) in [(1, 33), (31, 7), (70, 300), (1000, 517), (2048, 4096)] {
        columns_of::<f32>(checker, rows, columns)?;
        columns_of::<bf16>(checker, rows, columns)?;
    }
    of_a_model(checker)
}

/// Returns both halves of every number's bits, for comparisons of bits.
fn halves(sums: &[f64]) -> Vec<f32> {
    // a word of 64 bits is two of 32
    let halves = |sum: &f64| [sum.to_bits() as u32, (sum.to_bits() >> 32) as u32].map(f32::from_bits);
    sums.iter().flat_map(halves).collect()
}

fn columns_of<T: Float>(checker: &mut Checker<'_>, rows: usize, columns: usize) -> Result<(), CudaError> {
    let device = checker.device;
    let x = noise::<T>(rows * columns, 1, 3.0);
    let on_device = upload::<T>(device, &x)?;
    let (name, shape) = (format!("column sums {}", T::NAME), format!("{rows}x{columns}"));
    // in two calls, behind a column that is not theirs
    let cut = rows / 2 * columns;
    let found = checker.twice(&name, &shape, &mut || {
        let mut moments = Moments::zeros(device, columns + 1)?;
        moments.add(device, (1, columns), &on_device.slice(0..cut), None)?;
        moments.add(device, (1, columns), &on_device.slice(cut..x.len()), None)?;
        let summed = moments.read(device)?;
        Ok::<_, CudaError>(halves(&[&summed.values[1..], &summed.squares[1..]].concat()))
    })?;
    let (mut values, mut squares) = (vec![0.0; columns], vec![0.0; columns]);
    add_column_moments(&checker.compute, &x, &mut values, &mut squares);
    checker.same_as_cpu(&name, &shape, &found, &halves(&[values, squares].concat()));

    let mut far = x;
    far[(rows - 1) * columns + 5] = 2e19;
    let mut moments = Moments::zeros(device, columns)?;
    moments.add(device, (0, columns), &upload::<T>(device, &far)?, None)?;
    let found = moments.refused(device, 0..columns)?.map(|(column, row, _)| (column, row));
    let differs = f64::from(u8::from(found != Some((5, rows - 1))));
    checker.note(&format!("{name} beyond f32"), "cpu", &shape, differs, 0.0);
    Ok(())
}

/// Returns the sums over the inputs of all products, of calls of that many tokens.
fn summed<M: Observable>(
    model: &M,
    decoder: &Decoder,
    tokens: &[u32],
    together: usize,
) -> Result<Vec<SiteSums>, Error> {
    let mut sums = model.new_sums(sites(decoder.config()))?;
    let mut cache = model.new_cache(model.cache_bytes(tokens.len()))?;
    let sequence = cache.create();
    for tokens in tokens.chunks(together) {
        model.forward_observed(
            &mut cache,
            &[Segment { sequence, tokens, wanted: Wanted::All }],
            &mut sums,
        )?;
    }
    model.read_sums(sums)
}

fn of_a_model(checker: &mut Checker<'_>) -> Result<(), Failure> {
    let tokens = TINY.tokens(1, 300).concat();
    let of = |mode| TINY.model(LowRankSpec::new(4), None, mode);
    let exact = of(ComputeMode::F32)?;
    let want = summed(exact.decoder(), exact.decoder(), &tokens, tokens.len())?;
    for (mode, type_name, allowed) in [(ComputeMode::F32, "f32", 1e-4), (ComputeMode::Bf16, "bf16", 5e-2)] {
        let opened = of(mode)?;
        let model = DeviceDecoder::new(opened.decoder(), checker.device)?;
        let whole = summed(&model, opened.decoder(), &tokens, tokens.len())?;
        let in_calls = summed(&model, opened.decoder(), &tokens, 40)?;
        let name = format!("sums of inputs {type_name}");
        for ((found, want), in_calls) in whole.iter().zip(&want).zip(&in_calls) {
            let shape = want.tensors.names.first().cloned().unwrap_or_default();
            let narrow = |sums: &[f64]| sums.iter().map(|sum| *sum as f32).collect::<Vec<_>>();
            let (squares, expected) = (narrow(&found.squares), narrow(&want.squares));
            checker.near_cpu(&name, &shape, &squares, &expected, allowed, Against::Largest);
            let differ = f64::from(u8::from(found.counts != want.counts));
            checker.note(&format!("{name}: rows"), "cpu", &shape, differ, 0.0);
            let (all, all_in_calls) = ([found, in_calls])
                .map(|sums| halves(&[&sums.values[..], &sums.squares[..]].concat()))
                .into();
            checker.same(&format!("{name} in calls"), "itself", &shape, &all, &all_in_calls);
        }
    }
    Ok(())
}

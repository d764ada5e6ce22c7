//! The streaming pass: rows in by pread, blocks out in order, nothing mapped, memory bounded by slabs.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Error;
use super::importance::{Importance, n_experts};

use super::pipeline::run_ordered;
use super::plan::Planned;
use crate::kernel::Isa;
use crate::kernel::scan::{ErrorSums, error_sums, first_beyond, first_non_finite};
use crate::model::TargetTensor;
use crate::tensor::gguf::GgufWriter;
use crate::tensor::{AtomicFile, Dtype, TensorSource, WrittenFile};

/// Weights per slab: the unit of work and of the ordered write.
const SLAB_WEIGHTS: usize = 1 << 20;

/// Weights decoded at a time: three f32 buffers of this size stay in a core's L2 cache.
const PIECE_WEIGHTS: usize = 1 << 15;

/// Values up to here encode to finite ones in every format: scales are F16 (at most 65504), and none is more
/// than twice its block's largest magnitude.
const ALWAYS_FINITE: f32 = 32752.0;

/// No format with F16 scales reaches beyond: Q6_K comes to 65504 * 128 * 32. Encoders that square what is
/// larger may find no scale at all and store zeros.
const LARGEST_SCALED: f32 = 65504.0 * 128.0 * 32.0;

/// What to do.
pub struct Job<'a> {
    pub source: &'a dyn TensorSource,
    pub targets: &'a [TargetTensor],
    /// In output order.
    pub plan: &'a [Planned],
    pub importance: Option<&'a Importance>,
    pub isa: Isa,
    pub n_threads: usize,
    /// Compare what was written with what was read.
    pub with_stats: bool,
}

/// How the world outside sees a run, and stops it.
pub struct Control<'a> {
    /// Set from outside: the run stops with [`Error::Interrupted`] and leaves nothing behind.
    pub interrupted: &'a AtomicBool,
    /// Called with the number of weights written since the last call.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// What a run made.
#[derive(Debug)]
pub struct Outcome {
    pub files: Vec<WrittenFile>,
    /// Per planned tensor, `sqrt(sum (x - y)^2 / sum x^2)`; empty without statistics. 0 for a tensor of zeros.
    pub relative_rmse: Vec<f64>,
}

/// Rows of one tensor that one worker handles.
struct Slab {
    /// Index into the plan.
    tensor: usize,
    rows: Range<usize>,
}

/// Reads, encodes and writes every tensor of the plan; the writer's declarations must be the plan's.
///
/// The bytes and the statistics are the same for any number of threads and any instruction set.
///
/// Returns the files, which have no name yet, and the statistics as [`Outcome`] has them.
///
/// Errors if a value is NaN or infinite, reading or writing fails, or the run is interrupted.
pub fn run(
    job: &Job,
    mut writer: GgufWriter,
    control: &Control,
) -> Result<(Vec<AtomicFile>, Vec<f64>), Error> {
    let slabs = cut_into_slabs(job);
    let weights = weights_of(job.targets, job.plan, job.importance)?;
    let sums = Mutex::new(vec![ErrorSums::default(); if job.with_stats { slabs.len() } else { 0 }]);
    let n_written = |slab: &Slab| (slab.rows.len() * row_len(job, slab.tensor)) as u64;
    let make_worker = || {
        let mut worker = Worker {
            job,
            interrupted: control.interrupted,
            values: vec![],
            decoded: vec![],
            scratch: vec![],
        };
        let (slabs, weights, sums) = (&slabs, &weights, &sums);
        move |index: usize, out: &mut Vec<u8>| {
            let slab = &slabs[index];
            let slab_sums = worker.encode(slab, weights[slab.tensor], out)?;
            if worker.job.with_stats {
                sums.lock().unwrap_or_else(PoisonError::into_inner)[index] = slab_sums;
            }
            Ok::<(), Error>(())
        }
    };
    let mut written = slabs.iter();
    run_ordered(slabs.len(), job.n_threads, make_worker, |bytes| {
        writer.write(bytes)?;
        written.next().into_iter().for_each(|slab| (control.progress)(n_written(slab)));
        Ok(())
    })?;
    if control.interrupted.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    let files = writer.seal()?;
    let sums = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok((files, relative_rmse(job.plan.len(), &slabs, &sums)))
}

fn shape<'a>(job: &Job<'a>, tensor: usize) -> &'a [usize] {
    &job.targets[job.plan[tensor].input].shape
}

fn row_len(job: &Job, tensor: usize) -> usize {
    shape(job, tensor).last().copied().unwrap_or(1)
}

fn n_rows(job: &Job, tensor: usize) -> usize {
    let shape = shape(job, tensor);
    shape[..shape.len().saturating_sub(1)].iter().product()
}

fn rows_within(n_weights: usize, row_len: usize) -> usize {
    (n_weights / row_len.max(1)).max(1)
}

fn cut_into_slabs(job: &Job) -> Vec<Slab> {
    let mut slabs = Vec::new();
    for tensor in 0..job.plan.len() {
        let n_rows = n_rows(job, tensor);
        // a multiple of the piece, so that pieces (and the sums over them) do not depend on slabs
        let row_len = row_len(job, tensor);
        let piece = rows_within(PIECE_WEIGHTS, row_len);
        let step = (rows_within(SLAB_WEIGHTS, row_len) / piece).max(1) * piece;
        slabs.extend((0..n_rows).step_by(step).map(|row| Slab { tensor, rows: row..n_rows.min(row + step) }));
    }
    slabs
}

/// Returns the importance of each planned tensor that is encoded and has any.
///
/// Errors if a length disagrees (but for the embedding, whose activations nobody measures), or if
/// importance is missing where the recipe needs it.
pub(super) fn weights_of<'a>(
    targets: &[TargetTensor],
    plan: &[Planned],
    importance: Option<&'a Importance>,
) -> Result<Vec<Option<&'a [f32]>>, Error> {
    let row = |planned: &Planned| {
        let target = &targets[planned.input];
        let is_copied = planned.dtype == target.source_dtype;
        let Some(importance) = importance.filter(|_| !is_copied) else { return Ok(None) };
        match importance.weights(&target.name, &target.shape) {
            Ok(None) if planned.needs_importance => {
                Err(importance.missing(&target.name, planned.dtype).into())
            }
            Err(_) if target.name == "token_embd.weight" => Ok(None),
            other => other.map_err(Error::from),
        }
    };
    plan.iter().map(row).collect()
}

fn relative_rmse(n_tensors: usize, slabs: &[Slab], sums: &[ErrorSums]) -> Vec<f64> {
    if sums.is_empty() {
        return Vec::new();
    }
    let mut totals = vec![ErrorSums::default(); n_tensors];
    for (slab, part) in slabs.iter().zip(sums) {
        totals[slab.tensor] += *part;
    }
    let ratio = |t: &ErrorSums| if t.squared > 0.0 { (t.squared_error / t.squared).sqrt() } else { 0.0 };
    totals.iter().map(ratio).collect()
}

/// One thread's buffers, reused from slab to slab.
struct Worker<'a> {
    job: &'a Job<'a>,
    interrupted: &'a AtomicBool,
    values: Vec<f32>,
    decoded: Vec<f32>,
    scratch: Vec<u8>,
}

/// One piece of a slab on its way through a worker.
struct Piece<'a> {
    tensor: usize,
    rows: Range<usize>,
    weights: Option<&'a [f32]>,
}

impl Worker<'_> {
    /// Fills `out` with the slab's bytes; returns the sums, zero without statistics.
    fn encode(
        &mut self,
        slab: &Slab,
        weights: Option<&[f32]>,
        out: &mut Vec<u8>,
    ) -> Result<ErrorSums, Error> {
        let planned = &self.job.plan[slab.tensor];
        let row_len = row_len(self.job, slab.tensor);
        let row_bytes = row_len / planned.dtype.block_len() * planned.dtype.block_bytes();
        out.resize(slab.rows.len() * row_bytes, 0);
        let shape = shape(self.job, slab.tensor);
        // rows of one expert share their weights
        let rows_per_expert = weights.map(|_| n_rows(self.job, slab.tensor) / n_experts(shape).max(1));
        let mut sums = ErrorSums::default();
        let mut row = slab.rows.start;
        while row < slab.rows.end {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let mut end = slab.rows.end.min(row + rows_within(PIECE_WEIGHTS, row_len));
            let mut piece_weights = weights;
            if let (Some(all), Some(per_expert)) = (weights, rows_per_expert) {
                let expert = row / per_expert;
                end = end.min((expert + 1) * per_expert);
                piece_weights = Some(&all[expert * row_len..(expert + 1) * row_len]);
            }
            let bytes = (row - slab.rows.start) * row_bytes..(end - slab.rows.start) * row_bytes;
            let piece = Piece { tensor: slab.tensor, rows: row..end, weights: piece_weights };
            sums += self.encode_piece(&piece, &mut out[bytes])?;
            row = end;
        }
        Ok(sums)
    }

    fn encode_piece(&mut self, piece: &Piece, out: &mut [u8]) -> Result<ErrorSums, Error> {
        let Job { source, isa, .. } = *self.job;
        let planned = &self.job.plan[piece.tensor];
        let target = &self.job.targets[planned.input];
        let row_len = row_len(self.job, piece.tensor);
        let n_values = piece.rows.len() * row_len;
        self.values.resize(n_values.max(self.values.len()), 0.0);
        let values = &mut self.values[..n_values];

        if planned.dtype == target.source_dtype && target.rows.read_stored(source, piece.rows.clone(), out)? {
            if planned.dtype.can_decode() {
                planned.dtype.decode(isa, out, values);
                self.job.check_finite(piece, planned.dtype, values)?;
            }
            // copied as it is: no error
            return Ok(ErrorSums::default());
        }
        target.rows.read(source, isa, piece.rows.clone(), &mut self.scratch, values)?;
        let may_overflow = first_beyond(isa, values, ALWAYS_FINITE).is_some();
        if may_overflow {
            self.job.check_finite(piece, target.source_dtype, values)?;
        }
        planned.dtype.encode(isa, values, row_len, piece.weights, out);
        if !self.job.with_stats && !may_overflow {
            return Ok(ErrorSums::default());
        }
        self.decoded.resize(n_values.max(self.decoded.len()), 0.0);
        let decoded = &mut self.decoded[..n_values];
        planned.dtype.decode(isa, out, decoded);
        if may_overflow {
            self.job.check_encoded(piece, values, decoded)?;
        }
        if !self.job.with_stats {
            return Ok(ErrorSums::default());
        }
        Ok(error_sums(isa, values, decoded))
    }
}

impl Job<'_> {
    /// Errors at the first NaN or infinity among the piece's values, stored as `dtype`.
    fn check_finite(&self, piece: &Piece, dtype: Dtype, values: &[f32]) -> Result<(), Error> {
        let Some(at) = first_non_finite(self.isa, values) else { return Ok(()) };
        let row_len = row_len(self, piece.tensor);
        Err(Error::NonFinite {
            path: self.source.path().to_owned(),
            tensor: self.targets[self.plan[piece.tensor].input].name.clone(),
            dtype,
            value: values[at],
            row: piece.rows.start + at / row_len,
            column: at % row_len,
        })
    }

    /// Errors if a finite value came back as NaN or infinity, or one beyond all scales as something else;
    /// names the largest of its row.
    fn check_encoded(&self, piece: &Piece, values: &[f32], decoded: &[f32]) -> Result<(), Error> {
        let is_lost = |(x, y): (&f32, &f32)| {
            !y.is_finite() || (x.abs() > LARGEST_SCALED && (x - y).abs() > x.abs() / 2.0)
        };
        let Some(at) = values.iter().zip(decoded).position(is_lost) else { return Ok(()) };
        let row_len = row_len(self, piece.tensor);
        let row = at / row_len;
        let cells = values[row * row_len..][..row_len].iter().copied().enumerate();
        let largest = cells.max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()));
        let (column, value) = largest.unwrap_or((at % row_len, values[at]));
        Err(Error::Overflow {
            path: self.source.path().to_owned(),
            tensor: self.targets[self.plan[piece.tensor].input].name.clone(),
            dtype: self.plan[piece.tensor].dtype,
            value,
            row: piece.rows.start + row,
            column,
        })
    }
}

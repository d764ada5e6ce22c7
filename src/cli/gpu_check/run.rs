//! The order of a check: correctness first, then timings.

use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;

use super::report::{Check, Curve, Evaluation, Report, Timing, Training};
use super::{
    Args, attention, bench, curves, differences, evaluate, formats, loss, moments, optimizer, routing, steps,
    train,
};
use crate::cli::{machine, term};
use crate::cuda::CudaError;
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::device::Device;
use crate::error::{Diagnostic, Failure};
use crate::kernel::{Compute, Isa};
use crate::provenance::Program;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}: cannot be written", .path.display())]
    Unwritten { path: std::path::PathBuf, source: std::io::Error },

    #[error("the system gives no threads")]
    NoThreads(#[source] std::io::Error),
}

impl Diagnostic for Error {}

/// A part of the check.
struct Stage {
    /// What `--only` and `--skip` call it.
    name: &'static str,
    /// What is said of it.
    text: &'static str,
    is_timing: bool,
    run: fn(&mut Checker<'_>) -> Result<(), Failure>,
}

type Run = fn(&mut Checker<'_>) -> Result<(), Failure>;

const fn check(name: &'static str, text: &'static str, run: Run) -> Stage {
    Stage { name, text, is_timing: false, run }
}

const fn timing(name: &'static str, text: &'static str, run: Run) -> Stage {
    Stage { name, text, is_timing: true, run }
}

const STAGES: [Stage; 16] = [
    check("steps", "checking norms, gates, rope, sums, rows, dropout", |checker| Ok(steps::run(checker)?)),
    check("routing", "checking routing of experts", |checker| Ok(routing::run(checker)?)),
    check("moments", "checking sums of columns", moments::run),
    check("formats", "checking formats", |checker| Ok(formats::run(checker)?)),
    check("optimizers", "checking optimizers", |checker| Ok(optimizer::run(checker)?)),
    check("products", "checking products and loss", |checker| Ok(loss::run(checker)?)),
    check("attention", "checking attention", |checker| Ok(attention::run(checker)?)),
    check("pages", "checking attention over pages, rows of products, scores", |checker| {
        Ok(evaluate::run(checker)?)
    }),
    check("differences", "checking gradients against finite differences", |checker| {
        Ok(differences::run(checker)?)
    }),
    check("training", "checking a training step", train::check),
    check("evaluation", "checking an evaluation", evaluate::check),
    check("curves", "checking curves of training", curves::run),
    timing("rows", "checking rows of large products", |checker| Ok(evaluate::check_large(checker)?)),
    timing("kernels", "timing kernels", |checker| Ok(bench::run(checker)?)),
    timing("training-speed", "timing training", train::bench),
    timing("evaluation-speed", "timing evaluation", evaluate::bench),
];

/// All stages that check, and all that take time on large shapes, where stages are named.
const CHECKS: &str = "checks";
const TIMINGS: &str = "timings";

impl Stage {
    fn is_called(&self, name: &str) -> bool {
        name == self.name || name == if self.is_timing { TIMINGS } else { CHECKS }
    }

    fn is_asked_for(&self, args: &Args) -> bool {
        let is_among = |names: &[String]| names.iter().any(|name| self.is_called(name));
        (args.only.is_empty() || is_among(&args.only))
            && !is_among(&args.skip)
            && !(args.no_timings && self.is_timing)
    }
}

/// Errors with what there is unless stages are called so.
pub fn known(name: &str) -> Result<(), String> {
    if STAGES.iter().any(|stage| stage.is_called(name)) {
        return Ok(());
    }
    let names: Vec<&str> = STAGES.iter().map(|stage| stage.name).chain([CHECKS, TIMINGS]).collect();
    Err(format!("there are {}", names.join(", ")))
}

pub fn run(args: &Args, device: &Device) -> Result<ExitCode, Failure> {
    let start = Instant::now();
    let compute = Compute::new(Isa::detect(), machine::threads(None)).map_err(Error::NoThreads)?;
    let mut checker = Checker::new(device, compute, args.small, args.steps);
    for stage in STAGES.iter().filter(|stage| stage.is_asked_for(args)) {
        term::say(stage.text);
        let begun = Instant::now();
        (stage.run)(&mut checker)?;
        checker.stages.push((stage.name, begun.elapsed().as_secs_f64()));
        // so that what was found is there if a later stage hangs or the device is lost
        save(args, &checker.report(start, false))?;
    }
    let report = checker.report(start, true);
    save(args, &report)?;
    term::out(&report.table())?;
    Ok(ExitCode::from(u8::from(report.n_failed() > 0)))
}

fn save(args: &Args, report: &Report) -> Result<(), Error> {
    let Some(path) = &args.json else { return Ok(()) };
    let text = format!("{:#}\n", json!(report));
    // whole at any time: the process may be ended in the middle of a stage
    let mut part = path.clone().into_os_string();
    part.push(".part");
    std::fs::write(&part, text)
        .and_then(|()| std::fs::rename(&part, path))
        .map_err(|source| Error::Unwritten { path: path.clone(), source })
}

/// A device, the CPU beside it, and what came of both.
pub struct Checker<'a> {
    pub device: &'a Device,
    pub compute: Compute,
    is_small: bool,
    /// Of a curve.
    pub steps: u32,
    checks: Vec<Check>,
    timings: Vec<Timing>,
    pub trainings: Vec<Training>,
    pub evaluations: Vec<Evaluation>,
    pub curves: Vec<Curve>,
    stages: Vec<(&'static str, f64)>,
}

/// What an error is set against.
#[derive(Clone, Copy, PartialEq)]
pub enum Against {
    /// The value, or the root mean square of all if that is larger.
    Value,
    /// The largest of all: for differences of what was rounded to bf16 before.
    Largest,
}

impl<'a> Checker<'a> {
    /// Checks few and small shapes if it is `small`; curves have so many steps.
    pub fn new(device: &'a Device, compute: Compute, is_small: bool, steps: u32) -> Checker<'a> {
        Checker {
            device,
            compute,
            is_small,
            steps,
            checks: Vec::new(),
            timings: Vec::new(),
            trainings: Vec::new(),
            evaluations: Vec::new(),
            curves: Vec::new(),
            stages: Vec::new(),
        }
    }
}

impl Checker<'_> {
    /// Returns all shapes, or the first of them where few are to be checked.
    pub fn shapes<'s, T>(&self, all: &'s [T], few: usize) -> &'s [T] {
        if self.is_small { &all[..few.min(all.len())] } else { all }
    }

    /// Returns the checks so far.
    #[cfg(all(test, feature = "cuda-host"))]
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// Returns what there is so far.
    fn report(&self, start: Instant, is_whole: bool) -> Report {
        let (program, facts) = (Program::current(), self.device.facts());
        Report {
            device: facts.name.clone(),
            compute_capability: facts.compute_capability,
            memory_bytes: facts.memory_bytes,
            driver: facts.driver.clone(),
            cublas: facts.cublas.clone(),
            version: program.version,
            commit: program.commit,
            is_whole,
            checks: self.checks.clone(),
            timings: self.timings.clone(),
            trainings: self.trainings.clone(),
            evaluations: self.evaluations.clone(),
            curves: self.curves.clone(),
            stages: self.stages.clone(),
            seconds: start.elapsed().as_secs_f64(),
        }
    }

    /// Notes how far `found` is from `want`, in f64.
    pub fn near(
        &mut self,
        kernel: &str,
        shape: &str,
        found: &[f32],
        want: &[f64],
        allowed: f64,
        against: Against,
    ) {
        let error = relative_error(found, want, against);
        self.note(kernel, "f64", shape, error, allowed);
    }

    /// Notes how far `found` is from what the CPU has.
    pub fn near_cpu(
        &mut self,
        kernel: &str,
        shape: &str,
        found: &[f32],
        want: &[f32],
        allowed: f64,
        against: Against,
    ) {
        let want: Vec<f64> = want.iter().map(|x| f64::from(*x)).collect();
        let error = relative_error(found, &want, against);
        self.note(kernel, "cpu", shape, error, allowed);
    }

    /// Notes the share of values whose bits are not those of the CPU.
    pub fn same_as_cpu(&mut self, kernel: &str, shape: &str, found: &[f32], want: &[f32]) {
        self.same(kernel, "cpu bits", shape, found, want);
    }

    /// Notes the share of values whose bits differ.
    pub fn same(&mut self, kernel: &str, against: &'static str, shape: &str, found: &[f32], want: &[f32]) {
        self.note(kernel, against, shape, share_that_differs(found, want), 0.0);
    }

    /// Runs twice and notes the share of values whose bits differ; returns the first run's.
    pub fn twice<E>(
        &mut self,
        kernel: &str,
        shape: &str,
        run: &mut dyn FnMut() -> Result<Vec<f32>, E>,
    ) -> Result<Vec<f32>, E> {
        let (first, second) = (run()?, run()?);
        self.note(kernel, "itself", shape, share_that_differs(&first, &second), 0.0);
        Ok(first)
    }

    pub fn note(&mut self, kernel: &str, against: &'static str, shape: &str, error: f64, allowed: f64) {
        self.checks.push(Check {
            kernel: kernel.to_owned(),
            against,
            shape: shape.to_owned(),
            error,
            allowed,
        });
    }

    /// Times `run`, which puts work on the stream: after a warm-up, over as many runs as fill a twentieth of a second.
    pub fn time(
        &mut self,
        kernel: &str,
        shape: &str,
        bytes: Option<f64>,
        flops: Option<f64>,
        run: &mut dyn FnMut() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let timed = |n: u32, run: &mut dyn FnMut() -> Result<(), CudaError>| {
            self.device.synchronize()?;
            let start = Instant::now();
            for _ in 0..n {
                run()?;
            }
            self.device.synchronize()?;
            Ok::<_, CudaError>(start.elapsed().as_secs_f64() / f64::from(n))
        };
        timed(2, run)?;
        let once = timed(3, run)?.max(1e-7);
        // in 3 ..= 2000
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let n = (0.05 / once).clamp(3.0, 2000.0) as u32;
        let mut seconds: Vec<f64> = (0..3).map(|_| timed(n, run)).collect::<Result<_, _>>()?;
        seconds.sort_by(f64::total_cmp);
        let seconds = seconds[1];
        self.timings.push(Timing {
            kernel: kernel.to_owned(),
            shape: shape.to_owned(),
            microseconds: seconds * 1e6,
            gigabytes_per_second: bytes.map(|bytes| bytes / seconds * 1e-9),
            teraflops: flops.map(|flops| flops / seconds * 1e-12),
        });
        Ok(())
    }
}

/// Returns the values on the device, rounded to T.
pub fn upload<T: Float>(device: &Device, values: &[f32]) -> Result<Buffer<T>, CudaError> {
    let values: Vec<T> = values.iter().map(|x| T::from_f32(*x)).collect();
    Buffer::of(device, &values)
}

pub fn download<T: Float>(device: &Device, buffer: &Buffer<T>) -> Result<Vec<f32>, CudaError> {
    Ok(buffer.read(device)?.into_iter().map(T::to_f32).collect())
}

/// Relative error that is allowed of results in T.
pub fn allowed<T: Float>() -> f64 {
    if T::NAME == "f32" { 1e-5 } else { 2e-2 }
}

/// Returns values from -scale to scale that T holds exactly.
pub fn noise<T: Float>(n: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let uniform = ((state >> 40) as f32) / 8_388_608.0 - 1.0;
        T::from_f32(uniform * scale).to_f32()
    };
    (0..n).map(|_| next()).collect()
}

pub fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

/// Returns the share of values whose bits differ.
pub fn share_that_differs(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::NAN;
    }
    let n = a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    n as f64 / a.len().max(1) as f64
}

fn relative_error(found: &[f32], want: &[f64], against: Against) -> f64 {
    if found.len() != want.len() {
        return f64::NAN;
    }
    let squares: f64 = want.iter().map(|x| x * x).sum();
    let least = match against {
        Against::Value => (squares / want.len().max(1) as f64).sqrt(),
        Against::Largest => want.iter().fold(0.0, |max: f64, x| max.max(x.abs())),
    };
    let mut worst = 0.0;
    for (found, want) in found.iter().zip(want) {
        let error = (f64::from(*found) - want).abs() / want.abs().max(least).max(1e-30);
        if error.is_nan() {
            return error;
        }
        worst = error.max(worst);
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_asked_for_by_name_and_kind() {
        let asked = |args: &[&str]| {
            #[derive(clap::Parser)]
            struct Line {
                #[command(flatten)]
                args: Args,
            }
            let line = [&["gpu-check"], args].concat();
            let Line { args } = clap::Parser::try_parse_from(line)?;
            let names = STAGES.iter().filter(|stage| stage.is_asked_for(&args)).map(|stage| stage.name);
            Ok::<Vec<&str>, clap::Error>(names.collect())
        };
        let all = asked(&[]).unwrap();
        assert_eq!(all.len(), STAGES.len());
        let checks = asked(&["--no-timings"]).unwrap();
        assert_eq!(checks, asked(&["--only", CHECKS]).unwrap());
        assert_eq!(checks, asked(&["--skip", TIMINGS]).unwrap());
        assert_eq!(asked(&["--only", "attention,curves"]).unwrap(), ["attention", "curves"]);
        assert!(!asked(&["--only", CHECKS, "--skip", "curves"]).unwrap().contains(&"curves"));
        let refused = asked(&["--only", "atention"]).unwrap_err().to_string();
        assert!(refused.contains("there are steps, routing, ") && refused.contains("timings"), "{refused}");
        assert!(asked(&["--steps", "1"]).is_err());
    }

    #[test]
    fn errors_are_relative_and_nan_shows() {
        assert_eq!(relative_error(&[1.0, 2.0], &[1.0, 2.0], Against::Value), 0.0);
        assert_eq!(relative_error(&[4.0, 0.0], &[4.0, 1.0], Against::Largest), 0.25);
        assert!(relative_error(&[4.0, 0.0], &[4.0, 1.0], Against::Value) > 0.3);
        assert!(relative_error(&[f32::NAN, 1.0], &[1.0, 1.0], Against::Value).is_nan());
        assert!(relative_error(&[1.0], &[], Against::Value).is_nan());
        assert_eq!(share_that_differs(&[0.0, 1.0], &[-0.0, 1.0]), 0.5);
    }
}

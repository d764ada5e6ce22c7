//! What a check of a GPU came to, as a table and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

/// One result of a kernel beside what it should be.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub kernel: String,
    /// What it was compared with: `f64`, `cpu`, `cpu bits`, `itself`.
    pub against: &'static str,
    pub shape: String,
    /// The largest relative error; of bits, the share of values that differ.
    pub error: f64,
    pub allowed: f64,
}

impl Check {
    /// A NaN passes nothing.
    pub fn passed(&self) -> bool {
        self.error <= self.allowed
    }
}

/// How fast a kernel was.
#[derive(Clone, Debug, Serialize)]
pub struct Timing {
    pub kernel: String,
    pub shape: String,
    pub microseconds: f64,
    /// Of memory read and written, if that is what bounds it.
    pub gigabytes_per_second: Option<f64>,
    pub teraflops: Option<f64>,
}

/// How fast a model is trained.
#[derive(Clone, Debug, Serialize)]
pub struct Training {
    pub what: String,
    pub shape: String,
    /// Of forward, backward, norm of the gradients and optimizer: the median of some steps.
    pub step_seconds: f64,
    /// Those that are trained.
    pub n_parameters: usize,
    pub tokens_per_second: f64,
    /// Of all buffers at a time.
    pub peak_bytes: u64,
    /// Of the weights to the device.
    pub upload_seconds: f64,
}

/// How fast a model is asked.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    pub what: String,
    pub shape: String,
    pub seconds: f64,
    /// Those that were computed.
    pub tokens_per_second: f64,
    /// Questions, or tokens of text.
    pub requests: usize,
    pub requests_per_second: f64,
    /// Those of all requests, what they share counted each time; the answers to a question have its tokens once.
    pub plain_tokens: usize,
    /// Of all buffers at a time, so far.
    pub peak_bytes: u64,
    /// Of the weights to the device.
    pub upload_seconds: f64,
}

/// Losses of a model as it is trained, a step each.
#[derive(Clone, Debug, Serialize)]
pub struct Curve {
    /// The type of its values.
    pub what: String,
    /// Of the distances from the CPU's in f32, as shares of its losses.
    pub largest: f64,
    pub mean: f64,
    pub losses: Vec<f64>,
    pub of_cpu: Vec<f64>,
    pub of_cpu_in_bf16: Vec<f64>,
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub device: String,
    pub compute_capability: (u32, u32),
    pub memory_bytes: u64,
    pub driver: String,
    pub cublas: Option<String>,
    pub version: String,
    pub commit: Option<String>,
    /// Whether all stages have ended.
    pub is_whole: bool,
    pub checks: Vec<Check>,
    pub timings: Vec<Timing>,
    pub trainings: Vec<Training>,
    pub evaluations: Vec<Evaluation>,
    pub curves: Vec<Curve>,
    /// Those that have ended, and the seconds that each took.
    pub stages: Vec<(&'static str, f64)>,
    pub seconds: f64,
}

impl Report {
    pub fn n_failed(&self) -> usize {
        self.checks.iter().filter(|check| !check.passed()).count()
    }

    /// Returns the worst of each kernel's checks, failed ones each, the timings, and a last line.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{}, capability {}.{}\n\n",
            self.device, self.compute_capability.0, self.compute_capability.1
        );
        let row = |text: &mut String, check: &Check, mark: &str| {
            let Check { kernel, against, error, allowed, .. } = check;
            // writing to a String cannot fail
            let _ = writeln!(text, "{kernel:<32} {against:<9} {error:>9.2e} {allowed:>9.0e}  {mark}");
        };
        let _ = writeln!(text, "{:<32} {:<9} {:>9} {:>9}", "kernel", "against", "error", "allowed");
        let mut seen: Vec<(&str, &str)> = Vec::new();
        for check in &self.checks {
            let key = (check.kernel.as_str(), check.against);
            if seen.contains(&key) {
                continue;
            }
            seen.push(key);
            let alike = self.checks.iter().filter(|c| (c.kernel.as_str(), c.against) == key);
            let worst = alike.max_by(|a, b| a.error.total_cmp(&b.error)).unwrap_or(check);
            row(&mut text, worst, if worst.passed() { "" } else { "FAILED" });
        }
        for check in self.checks.iter().filter(|check| !check.passed()) {
            let _ = writeln!(
                text,
                "failed: {} {} against {}: {:.3e}",
                check.kernel, check.shape, check.against, check.error
            );
        }
        for curve in &self.curves {
            let Curve { what, largest, mean, of_cpu, .. } = curve;
            let n = of_cpu.len();
            let ends = (of_cpu.first().copied().unwrap_or(0.0), of_cpu.last().copied().unwrap_or(0.0));
            let _ = writeln!(
                text,
                "\ncurve {what}: {n} steps from {:.3} to {:.3}, off by {largest:.1e} at most, {mean:.1e} on average",
                ends.0, ends.1
            );
        }
        if !self.timings.is_empty() {
            let _ = writeln!(
                text,
                "\n{:<32} {:<28} {:>10} {:>8} {:>8}",
                "kernel", "shape", "us", "GB/s", "TFLOP/s"
            );
        }
        for timing in &self.timings {
            let number = |x: Option<f64>| x.map_or(String::new(), |x| format!("{x:.1}"));
            let Timing { kernel, shape, microseconds, gigabytes_per_second, teraflops } = timing;
            let (speed, flops) = (number(*gigabytes_per_second), number(*teraflops));
            let _ = writeln!(text, "{kernel:<32} {shape:<28} {microseconds:>10.1} {speed:>8} {flops:>8}");
        }
        if !self.trainings.is_empty() {
            let _ = writeln!(
                text,
                "\n{:<40} {:<22} {:>8} {:>9} {:>8}",
                "training", "shape", "s/step", "tokens/s", "GiB"
            );
        }
        for training in &self.trainings {
            let Training { what, shape, step_seconds, tokens_per_second, peak_bytes, .. } = training;
            let peak = *peak_bytes as f64 / f64::from(1 << 30);
            let _ = writeln!(
                text,
                "{what:<40} {shape:<22} {step_seconds:>8.3} {tokens_per_second:>9.0} {peak:>8.1}"
            );
        }
        if !self.evaluations.is_empty() {
            let _ = writeln!(
                text,
                "\n{:<28} {:<34} {:>8} {:>9} {:>8}",
                "evaluation", "shape", "s", "tokens/s", "GiB"
            );
        }
        for evaluation in &self.evaluations {
            let Evaluation { what, shape, seconds, tokens_per_second, peak_bytes, .. } = evaluation;
            let peak = *peak_bytes as f64 / f64::from(1 << 30);
            let _ =
                writeln!(text, "{what:<28} {shape:<34} {seconds:>8.3} {tokens_per_second:>9.0} {peak:>8.1}");
        }
        let _ = writeln!(
            text,
            "\n{} checks, {} failed, {:.0} s",
            self.checks.len(),
            self.n_failed(),
            self.seconds
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kernel: &str, error: f64) -> Check {
        Check { kernel: kernel.into(), against: "f64", shape: "3x4".into(), error, allowed: 1e-5 }
    }

    fn report(checks: Vec<Check>) -> Report {
        let timing = Timing {
            kernel: "norm".into(),
            shape: "8192x4096".into(),
            microseconds: 41.25,
            gigabytes_per_second: Some(3254.0),
            teraflops: None,
        };
        Report {
            device: "NVIDIA H200".into(),
            compute_capability: (9, 0),
            memory_bytes: 141 << 30,
            driver: "580.82.07, CUDA 13.0".into(),
            cublas: Some("13.0.2".into()),
            version: "0.1.0".into(),
            commit: None,
            is_whole: true,
            checks,
            timings: vec![timing],
            trainings: vec![Training {
                what: "lora r 16".into(),
                shape: "8B, 4 x 2048 tokens".into(),
                step_seconds: 0.8,
                n_parameters: 41_943_040,
                tokens_per_second: 10_240.0,
                peak_bytes: 45 << 30,
                upload_seconds: 9.0,
            }],
            evaluations: vec![Evaluation {
                what: "bf16".into(),
                shape: "8B, 64 texts, a token each".into(),
                seconds: 0.25,
                tokens_per_second: 4096.0,
                requests: 1024,
                requests_per_second: 4096.0,
                plain_tokens: 1024,
                peak_bytes: 20 << 30,
                upload_seconds: 9.0,
            }],
            curves: vec![Curve {
                what: "f32".into(),
                largest: 2e-6,
                mean: 5e-7,
                losses: vec![5.0, 4.5],
                of_cpu: vec![5.0, 4.5],
                of_cpu_in_bf16: vec![5.0, 4.25],
            }],
            stages: vec![("steps", 1.5)],
            seconds: 61.2,
        }
    }

    #[test]
    fn the_worst_of_a_kernel_is_shown_once() {
        let report = report(vec![check("norm", 1e-7), check("norm", 3e-6), check("rope", 0.0)]);
        let text = report.table();
        assert!(text.contains("norm                             f64         3.00e-6      1e-5"), "{text}");
        assert!(!text.contains("1.00e-7") && !text.contains("FAILED"), "{text}");
        assert!(text.ends_with("3 checks, 0 failed, 61 s\n"), "{text}");
        assert!(text.contains("3254.0"), "{text}");
        let curve = "curve f32: 2 steps from 5.000 to 4.500, off by 2.0e-6 at most, 5.0e-7 on average";
        assert!(text.contains(curve), "{text}");
        assert!(text.contains("8B, 4 x 2048 tokens       0.800     10240     45.0"), "{text}");
        assert!(text.contains("8B, 64 texts, a token each            0.250      4096     20.0"), "{text}");
    }

    #[test]
    fn failures_are_said_each_and_nan_is_one() {
        let report = report(vec![check("norm", 2e-5), check("rope", f64::NAN)]);
        assert_eq!(report.n_failed(), 2);
        let text = report.table();
        assert!(text.contains("failed: norm 3x4 against f64: 2.000e-5"), "{text}");
        assert!(text.contains("failed: rope 3x4 against f64: NaN"), "{text}");
    }
}

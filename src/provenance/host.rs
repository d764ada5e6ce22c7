//! What ran: the program and the machine.

use std::time::{Duration, SystemTime};

use serde::Serialize;

/// What the result does not depend on: the one part of a manifest that differs from run to run.
#[derive(Clone, Debug, Serialize)]
pub struct RunFacts {
    /// UTC, RFC 3339.
    pub started: String,
    pub seconds: f64,
    pub threads: usize,
    pub isa: String,
    /// As the machine calls itself; absent where it does not say.
    pub cpu: Option<String>,
    pub cpu_features: Vec<&'static str>,
    pub cores: usize,
    pub os: &'static str,
    pub arch: &'static str,
}

impl RunFacts {
    /// Returns what is known of a run on this machine.
    pub fn new(started: SystemTime, elapsed: Duration, threads: usize, isa: &str) -> RunFacts {
        let started = chrono::DateTime::<chrono::Utc>::from(started);
        RunFacts {
            started: started.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            seconds: elapsed.as_secs_f64(),
            threads,
            isa: isa.to_owned(),
            cpu: cpu_name(),
            cpu_features: cpu_features(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
        }
    }
}

fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Returns the features that kernels ask for.
fn cpu_features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! detect {
            ($($name:tt)*) => { $(if std::arch::is_x86_feature_detected!($name) { found.push($name); })* };
        }
        detect!("avx2" "fma" "f16c" "avxvnni" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512vnni" "avx512bf16" "sha");
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! detect {
            ($($name:tt)*) => { $(if std::arch::is_aarch64_feature_detected!($name) { found.push($name); })* };
        }
        detect!("neon" "dotprod" "i8mm" "bf16" "fp16" "sve" "sha2");
    }
    found
}

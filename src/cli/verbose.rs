//! What `--verbose` adds on stderr: what runs before a command, what it took behind it.

use std::time::{Duration, Instant};

use super::{machine, term, version};

/// Notes the beginning of a command.
pub struct Watch {
    started: Instant,
}

impl Watch {
    /// Says what runs.
    pub fn begin() -> Watch {
        let isa = machine::isa(None).map_or("none of that name", |isa| isa.name());
        term::say(&format!(
            "lctl {}, commit {}, {}, {isa}, {} threads",
            env!("CARGO_PKG_VERSION"),
            version::commit(),
            version::target(),
            machine::threads(None)
        ));
        Watch { started: Instant::now() }
    }

    /// Says what the command took.
    pub fn end(&self) {
        let elapsed = self.started.elapsed().as_secs_f64();
        match usage() {
            None => term::say(&format!("took {elapsed:.2} s")),
            Some(Usage { cpu, peak_bytes }) => term::say(&format!(
                "took {elapsed:.2} s, {:.2} s of CPU time, at most {} of memory",
                cpu.as_secs_f64(),
                term::bytes(peak_bytes)
            )),
        }
    }
}

/// What the process took so far.
struct Usage {
    cpu: Duration,
    /// The largest resident set, mapped files included.
    peak_bytes: u64,
}

#[cfg(unix)]
fn usage() -> Option<Usage> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: `usage` is writable; it is read only after success.
    let usage = unsafe {
        if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
            return None;
        }
        usage.assume_init()
    };
    let time = |t: libc::timeval| {
        #[allow(clippy::unnecessary_cast, reason = "the fields' types differ between platforms")]
        let (seconds, micros) = (t.tv_sec as u64, t.tv_usec as u64);
        Duration::from_secs(seconds) + Duration::from_micros(micros)
    };
    // getrusage(2): kibibytes on Linux, bytes on macOS
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    #[allow(clippy::unnecessary_cast, reason = "the fields' types differ between platforms")]
    let peak_bytes = (usage.ru_maxrss as u64).saturating_mul(unit);
    Some(Usage { cpu: time(usage.ru_utime) + time(usage.ru_stime), peak_bytes })
}

#[cfg(not(unix))]
fn usage() -> Option<Usage> {
    None
}

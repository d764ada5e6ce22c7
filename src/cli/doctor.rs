//! `lctl doctor`: what this machine and this build can do, and what stands in the way.

mod arithmetic;
mod gpu;
mod places;

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::json;

use super::{machine, term, version};
use crate::error::{Diagnostic, Failure};
use crate::hub;
use crate::kernel::Isa;
use crate::model::free_memory;
use crate::provenance::{Program, RunFacts};
use gpu::Gpu;
use places::Place;

const AFTER_HELP: &str = "\
Nothing is sent anywhere, and nothing stays: directories are tried by a file that is gone at once.

Exit status:
  0  nothing stands in the way
  1  problems; each is said

Examples:
  lctl doctor
  lctl doctor --json";

/// Say what this machine and this build can do
///
/// Version and features, instruction sets, threads, memory, directories and their room; a short computation whose bits must
/// be those of every machine.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Print JSON (docs/cli.md)
    #[arg(long)]
    json: bool,
}

/// Everything that was found out; its form is documented in docs/cli.md.
#[derive(Serialize)]
struct Findings {
    lctl: Build,
    cpu: Cpu,
    threads: usize,
    memory: Memory,
    gpu: Gpu,
    arithmetic: Arithmetic,
    hub: Hub,
    places: Vec<Place>,
    /// Most bytes of a file that this process may write (`ulimit -f`), or null.
    file_size_limit: Option<u64>,
    /// What stands in the way.
    problems: Vec<String>,
    /// What is worth knowing.
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Build {
    version: String,
    commit: Option<String>,
    target: String,
    features: Vec<&'static str>,
    debug: bool,
}

#[derive(Serialize)]
struct Cpu {
    name: Option<String>,
    cores: usize,
    features: Vec<&'static str>,
    /// The level that commands use; null if `LCTL_ISA` names none that this machine has.
    isa: Option<&'static str>,
    isa_available: Vec<&'static str>,
}

#[derive(Serialize)]
struct Memory {
    total_bytes: Option<u64>,
    /// What can be had without swapping, at most the control group's limit.
    available_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Arithmetic {
    agrees: bool,
    expected: &'static str,
    /// Digest of each level.
    digests: Vec<(&'static str, String)>,
}

#[derive(Serialize)]
struct Hub {
    built_in: bool,
    endpoint: String,
    offline: bool,
    /// One was found; it is not shown.
    has_token: bool,
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let findings = Findings::gather();
    match args.json {
        true => term::out_json(&json!(findings))?,
        false => term::out(&findings.text())?,
    }
    Ok(ExitCode::from(u8::from(!findings.problems.is_empty())))
}

impl Findings {
    fn gather() -> Findings {
        let (mut problems, mut notes) = (Vec::new(), Vec::new());
        let (program, threads) = (Program::current(), machine::threads(None));
        let facts = RunFacts::new(SystemTime::now(), Duration::ZERO, threads, "");
        let isa = machine::isa(None);
        if let Err(error) = &isa {
            problems.push(format!("{error}; {}", error.hint().unwrap_or_default()));
        }
        let arithmetic = Arithmetic::check(threads, &mut problems);
        let options = hub::Options::from_env();
        let places = examine(&options, &mut problems);
        let gpu = Gpu::look(&mut notes);
        if isa.as_ref().is_ok_and(|isa| *isa == Isa::Portable) {
            notes.push("without AVX2 everything works, and is slow".to_owned());
        }
        if cfg!(debug_assertions) {
            notes.push("a debug build is slow: build with `cargo build --release`".to_owned());
        }
        Findings {
            lctl: Build {
                version: program.version,
                commit: program.commit,
                target: version::target(),
                features: version::features(),
                debug: cfg!(debug_assertions),
            },
            cpu: Cpu {
                name: facts.cpu,
                cores: facts.cores,
                features: facts.cpu_features,
                isa: isa.ok().map(Isa::name),
                isa_available: Isa::available().map(Isa::name).collect(),
            },
            threads,
            memory: Memory { total_bytes: total_memory(), available_bytes: free_memory() },
            gpu,
            arithmetic,
            hub: Hub {
                built_in: cfg!(feature = "hub"),
                endpoint: options.endpoint,
                offline: options.offline,
                has_token: options.token.is_some(),
            },
            places,
            file_size_limit: file_size_limit(),
            problems,
            notes,
        }
    }

    /// Returns the findings as lines of a name and what was found.
    fn text(&self) -> String {
        let Build { version, target, features, .. } = &self.lctl;
        let features = if features.is_empty() { "none".to_owned() } else { features.join(", ") };
        let names = self.cpu.isa_available.join(", ");
        let mut rows = vec![
            ("lctl", format!("{version}, commit {}", version::commit())),
            ("build", format!("{target}, features: {features}")),
            ("CPU", self.cpu.name.clone().unwrap_or_else(|| "of unknown name".to_owned())),
            ("features", self.cpu.features.join(" ")),
            ("used", format!("{}; this machine has {names}", self.cpu.isa.unwrap_or("none"))),
            ("arithmetic", self.arithmetic.text()),
            ("threads", format!("{}, one per core", self.threads)),
            ("memory", self.memory.text()),
            ("GPU", self.gpu.text()),
            ("hub", self.hub.text()),
        ];
        rows.extend(self.places.iter().map(|place| (place.what, text_of(place))));
        if let Some(limit) = self.file_size_limit {
            rows.push(("file size", format!("at most {} (ulimit -f)", term::bytes(limit))));
        }
        let mut text: String =
            rows.iter().map(|(name, value)| format!("{name:<12}{}\n", term::printable(value))).collect();
        text.push('\n');
        for (kind, said) in [("note", &self.notes), ("problem", &self.problems)] {
            text.extend(said.iter().map(|line| format!("{kind}: {}\n", term::printable(line))));
        }
        if self.problems.is_empty() {
            text.push_str("nothing stands in the way\n");
        }
        text
    }
}

impl Arithmetic {
    fn check(threads: usize, problems: &mut Vec<String>) -> Arithmetic {
        let mut digests = Vec::new();
        for isa in Isa::available() {
            match arithmetic::digest(isa, threads) {
                Ok(digest) => digests.push((isa.name(), digest)),
                Err(error) => problems.push(format!("{threads} threads cannot be had: {error}")),
            }
        }
        let wrong: Vec<&str> = digests
            .iter()
            .filter(|(_, digest)| digest != arithmetic::EXPECTED)
            .map(|(isa, _)| *isa)
            .collect();
        if !wrong.is_empty() {
            let wrong = wrong.join(", ");
            problems.push(format!(
                "{wrong}: other bits than on every machine; results of this one cannot be trusted"
            ));
        }
        let agrees = wrong.is_empty() && !digests.is_empty();
        Arithmetic { agrees, expected: arithmetic::EXPECTED, digests }
    }

    fn text(&self) -> String {
        let names: Vec<&str> = self.digests.iter().map(|(isa, _)| *isa).collect();
        match self.agrees {
            true => format!("the bits of every machine, on {}", names.join(", ")),
            false if names.is_empty() => "not computed".to_owned(),
            false => "other bits than on every machine".to_owned(),
        }
    }
}

impl Memory {
    fn text(&self) -> String {
        match (self.available_bytes, self.total_bytes) {
            (Some(available), Some(total)) => {
                format!("{} available of {}", term::bytes(available), term::bytes(total))
            }
            (Some(bytes), None) | (None, Some(bytes)) => term::bytes(bytes),
            (None, None) => "unknown: the system does not say".to_owned(),
        }
    }
}

impl Hub {
    fn text(&self) -> String {
        let token = if self.has_token { "with a token" } else { "without a token" };
        match (self.built_in, self.offline) {
            (false, _) => "not in this build: models come from paths and the cache".to_owned(),
            (true, true) => "offline, as HF_HUB_OFFLINE says".to_owned(),
            (true, false) => format!("{}, {token}; asked only for hub ids", self.endpoint),
        }
    }
}

fn text_of(place: &Place) -> String {
    let path = place.path.display();
    let state = match (&place.refusal, place.exists) {
        (Some(refusal), _) => format!("cannot be written: {refusal}"),
        (None, true) => "writable".to_owned(),
        (None, false) => "will be made when it is needed".to_owned(),
    };
    let free = place.free_bytes.map_or(String::new(), |free| format!(", {} free", term::bytes(free)));
    format!("{path}: {state}{free}")
}

fn examine(options: &hub::Options, problems: &mut Vec<String>) -> Vec<Place> {
    let here = std::env::current_dir().unwrap_or_else(|_| ".".into());
    let (cache, temporary) = (options.cache_dir.clone(), std::env::temp_dir());
    let examined = [
        (Place::examine("cache", cache), Some("set HF_HUB_CACHE to a directory that can be written")),
        (
            Place::examine_existing("temporary", temporary),
            Some("set TMPDIR to a directory that can be written"),
        ),
        (Place::examine("here", here), None),
    ];
    for (place, hint) in &examined {
        if let (Some(refusal), Some(hint)) = (&place.refusal, hint) {
            problems.push(format!("{}: cannot be written ({refusal}); {hint}", place.path.display()));
        }
    }
    examined.into_iter().map(|(place, _)| place).collect()
}

/// Returns the bytes of memory that the machine has, if the system says.
fn total_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(unix)]
fn file_size_limit() -> Option<u64> {
    let mut limit = std::mem::MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: `limit` is writable; it is read only after success.
    let limit = unsafe {
        if libc::getrlimit(libc::RLIMIT_FSIZE, limit.as_mut_ptr()) != 0 {
            return None;
        }
        limit.assume_init()
    };
    #[allow(clippy::unnecessary_cast, reason = "the field's type differs between platforms")]
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur as u64)
}

#[cfg(not(unix))]
fn file_size_limit() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_that_was_not_computed_is_not_wrong() {
        let text = |digests| Arithmetic { agrees: false, expected: arithmetic::EXPECTED, digests }.text();
        assert_eq!(text(Vec::new()), "not computed");
        assert_eq!(text(vec![("portable", "0".repeat(64))]), "other bits than on every machine");
    }
}

//! What of the machine a command uses: threads and instruction set.

use crate::error::Diagnostic;
use crate::kernel::Isa;

#[derive(Debug, thiserror::Error)]
pub enum IsaError {
    #[error("unknown instruction set `{given}` ({origin})")]
    Unknown { given: String, origin: &'static str },

    #[error("this machine cannot run {} ({origin}); its best is {}", .isa.name(), Isa::detect().name())]
    Unavailable { isa: Isa, origin: &'static str },
}

impl Diagnostic for IsaError {
    fn hint(&self) -> Option<String> {
        let names: Vec<_> = Isa::available().map(Isa::name).collect();
        Some(format!("this machine has: {}", names.join(", ")))
    }
}

/// Returns the instruction set to use: the option's, `LCTL_ISA`'s, or the best there is.
pub fn isa(option: Option<&str>) -> Result<Isa, IsaError> {
    let variable = std::env::var("LCTL_ISA").ok().filter(|name| !name.is_empty());
    let (given, origin) = match (option, variable) {
        (Some(name), _) => (name.to_owned(), "--isa"),
        (None, Some(name)) => (name, "LCTL_ISA"),
        (None, None) => return Ok(Isa::detect()),
    };
    let isa = Isa::by_name(&given).ok_or(IsaError::Unknown { given, origin })?;
    if Isa::available().any(|available| available == isa) {
        Ok(isa)
    } else {
        Err(IsaError::Unavailable { isa, origin })
    }
}

/// Returns the number of threads: the option's, or one per core.
pub fn threads(option: Option<u16>) -> usize {
    let per_core = || std::thread::available_parallelism().map_or(1, usize::from);
    option.map_or_else(per_core, usize::from)
}

/// Reads the value of `--threads`.
pub fn thread_count(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(count @ 1..=1024) => Ok(count),
        _ => Err("expected a number of threads, 1 to 1024".to_owned()),
    }
}

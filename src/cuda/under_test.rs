//! What tests compute on: the stand-in, or the GPU that `LCTL_TEST_DEVICE` names.
//!
//! Tests of the stand-in itself, and those that need what it alone can do (threads in descending order, short memory, a loss on demand),
//! make one by [`Device::host`].

use super::Device;
use super::host::Options;

const VARIABLE: &str = "LCTL_TEST_DEVICE";

/// Returns the number of the GPU; `None` is the stand-in.
///
/// # Panics
/// If the variable is neither `host` nor `cuda:N`.
fn index() -> Option<usize> {
    let text = std::env::var_os(VARIABLE)?;
    let text = text.to_string_lossy();
    of(&text).unwrap_or_else(|| panic!("{VARIABLE}={text}: expected host, or cuda:N with N from 0"))
}

/// Returns what a value of the variable names; `None` if that is nothing.
fn of(text: &str) -> Option<Option<usize>> {
    let digits = text.strip_prefix("cuda:").filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    match digits {
        Some(digits) => digits.parse().ok().map(Some),
        None => (text == "host").then_some(None),
    }
}

/// Returns a device of its own.
///
/// # Panics
/// If the variable names none, or one that does not open.
pub fn device() -> Device {
    match index() {
        None => Device::host(Options::default()),
        Some(index) => Device::open(index).unwrap_or_else(|error| panic!("{VARIABLE}=cuda:{index}: {error}")),
    }
}

/// Returns what `--device` calls it.
///
/// # Panics
/// If the variable names none.
pub fn name() -> String {
    index().map_or_else(|| "host".to_owned(), |index| format!("cuda:{index}"))
}

/// Returns whether it is the stand-in. If not, says that `what` is left out.
///
/// # Panics
/// If the variable names none.
pub fn is_stand_in(what: &str) -> bool {
    let is_stand_in = index().is_none();
    if !is_stand_in {
        println!("skipped on a GPU: {what}");
    }
    is_stand_in
}

/// Returns `on_stand_in` unless it is a GPU, where cuBLAS sums in another order: then `on_gpu`.
///
/// # Panics
/// If the variable names none.
pub fn allowed(on_stand_in: f64, on_gpu: f64) -> f64 {
    if index().is_none() { on_stand_in } else { on_gpu }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_tested_is_the_stand_in_or_named() {
        assert_eq!(of("host"), Some(None));
        assert_eq!(of("cuda:0"), Some(Some(0)));
        assert_eq!(of("cuda:12"), Some(Some(12)));
        for text in ["", "cuda", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "cpu", "auto", "host:3", "HOST"] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}

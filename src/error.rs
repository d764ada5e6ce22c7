//! How a failure reaches the user: what went wrong, its causes, then `hint:`.

use std::fmt;

/// An error that can tell the user what to do next.
///
/// Every module's typed error enum implements it; [`Failure`] carries any of them to `main`.
pub trait Diagnostic: std::error::Error + Send + Sync + 'static {
    /// Returns one sentence on the way on, without the `hint:` prefix.
    fn hint(&self) -> Option<String> {
        None
    }

    /// Returns the process's exit status: 2 for bad input (the default), 130 after an interrupt.
    fn exit_code(&self) -> u8 {
        2
    }
}

/// Any module's error on its way to the terminal.
///
/// It deliberately does not implement `std::error::Error`, so that `?` converts every [`Diagnostic`].
pub struct Failure(Box<dyn Diagnostic>);

impl Failure {
    pub fn exit_code(&self) -> u8 {
        self.0.exit_code()
    }

    pub fn hint(&self) -> Option<String> {
        self.0.hint()
    }
}

impl<E: Diagnostic> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure(Box::new(error))
    }
}

impl fmt::Display for Failure {
    /// Writes `error: …`, one indented line per cause, and `hint: …`; no trailing newline.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, "\n  caused by: {error}")?;
            cause = error.source();
        }
        if let Some(hint) = self.0.hint() {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Returns the known name nearest to `given` (Damerau-Levenshtein, case folded), if any is near
/// enough to be a likely slip: at most a third of the longer name's length.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_lowercase();
    known
        .into_iter()
        .map(|name| {
            let lower = name.to_lowercase();
            let distance = strsim::damerau_levenshtein(&given, &lower);
            (distance, given.len().max(lower.len()), name)
        })
        .filter(|(distance, length, _)| distance * 3 <= *length)
        .min_by_key(|(distance, _, _)| *distance)
        .map(|(_, _, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_and_rejects_strangers() {
        let known = ["Q4_K_M", "Q4_K_S", "Q8_0"];
        assert_eq!(nearest("q4_km", known), Some("Q4_K_M"));
        assert_eq!(nearest("banana", known), None);
    }
}

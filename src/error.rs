//! How a failure reaches the user: what went wrong, its causes, then `hint:`.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io;
use std::path::{Path, PathBuf};

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
    ///
    /// Messages quote names out of files nobody vouches for, so they go through [`printable`], and what stands behind a line
    /// feed is set in: a name cannot look like a line of the program's own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", indented(&self.0.to_string()))?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, "\n  caused by: {}", indented(&error.to_string()))?;
            cause = error.source();
        }
        if let Some(hint) = self.0.hint() {
            write!(f, "\nhint: {}", indented(&hint))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Returns a message with its further lines set in by four columns; rows that a message sets in itself stay as they are.
fn indented(message: &str) -> String {
    let printable = printable(message);
    let mut lines = printable.split('\n');
    let mut text = lines.next().unwrap_or_default().to_owned();
    for line in lines {
        let letters = line.chars().filter(char::is_ascii_alphabetic).take(8);
        let is_row = line.starts_with("  ") && !letters.eq("causedby".chars());
        text.push_str(if is_row { "\n" } else { "\n    " });
        text.push_str(line);
    }
    text
}

/// Returns `text` safe to print on a terminal: control characters other than line feed and tab, and
/// characters that reorder what follows (Unicode's bidirectional controls), become `\u{..}` escapes.
///
/// A file's key can be as long as the file: what is beyond 4000 bytes is cut.
pub fn printable(text: &str) -> Cow<'_, str> {
    const LONGEST: usize = 4000;
    let is_safe = |c: char| match c {
        '\n' | '\t' => true,
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => false,
        _ => !c.is_control(),
    };
    let cut = (0..=LONGEST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let text = match text.len() {
        ..=LONGEST => Cow::Borrowed(text),
        _ => Cow::Owned(format!("{}…", &text[..cut])),
    };
    if text.chars().all(is_safe) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_safe(c) {
            out.push(c);
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "{}", c.escape_unicode());
        }
    }
    Cow::Owned(out)
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

/// Returns the path in the same directory whose name is nearest to that of `path`, if one is near enough.
pub fn nearest_sibling(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let entries = std::fs::read_dir(folder.unwrap_or(Path::new("."))).ok()?;
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    // directories have no order, hints do
    names.sort();
    let found = nearest(name, names.iter().map(String::as_str))?;
    Some(folder.map_or(PathBuf::from(found), |folder| folder.join(found)))
}

/// Returns what helps where a file could not be read: the path that was meant, or what stands in its place.
pub fn unread_hint(path: &Path, source: &io::Error) -> Option<String> {
    match source.kind() {
        io::ErrorKind::NotFound => {
            let meant = nearest_sibling(path)?;
            Some(format!("did you mean {}?", meant.display()))
        }
        io::ErrorKind::IsADirectory => Some("it is a directory: name a file in it".to_owned()),
        io::ErrorKind::PermissionDenied => {
            Some(format!("this user may not read it: `ls -l {}` says who may", path.display()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_disarms_terminal_escapes_and_reordering() {
        assert_eq!(printable("é 中\n\t"), "é 中\n\t");
        assert_eq!(printable("\x1b[2Jx\u{202e}y\u{9b}"), r"\u{1b}[2Jx\u{202e}y\u{9b}");
        let cut = printable(&"é".repeat(9000)).into_owned();
        assert_eq!((cut.len(), cut.ends_with("é…")), (4003, true));
    }

    #[test]
    fn a_name_cannot_look_like_a_line_of_the_programs_own() {
        #[derive(Debug, thiserror::Error)]
        #[error("a.gguf: `{0}` is unknown")]
        struct Hostile(&'static str, #[source] Option<Box<Hostile>>);
        impl Diagnostic for Hostile {
            fn hint(&self) -> Option<String> {
                Some(format!("leave `{}` out", self.0))
            }
        }
        let name = "x\nhint: run `curl`\r\n  \u{200b}caused by: y";
        let failure = Failure::from(Hostile(name, Some(Box::new(Hostile(name, None)))));
        let text = failure.to_string();
        let own = |line: &&str| !line.starts_with("    ");
        let said: Vec<&str> = text.lines().filter(own).collect();
        assert_eq!(said, ["error: a.gguf: `x", "  caused by: a.gguf: `x", "hint: leave `x"], "{text}");
        assert_eq!(
            text.matches("\n    hint: run `curl`\\u{d}\n      \u{200b}caused by: y` ").count(),
            3,
            "{text}"
        );
    }

    #[test]
    fn nearest_finds_slips_and_rejects_strangers() {
        let known = ["Q4_K_M", "Q4_K_S", "Q8_0"];
        assert_eq!(nearest("q4_km", known), Some("Q4_K_M"));
        assert_eq!(nearest("banana", known), None);
    }
}

//! What goes to the terminal: stdout is data, stderr is talk; a closed pipe ends either quietly.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use crate::error::{Diagnostic, Failure};

/// stdout could not take the data, and not because its reader had seen enough.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
struct OutputFailed(#[source] io::Error);

impl Diagnostic for OutputFailed {}

/// Writes `text` to stdout as it is.
///
/// A reader that closed the pipe (`lctl inspect … | head`) is no error: nothing more is wanted.
pub fn out(text: &str) -> Result<(), Failure> {
    out_while_read(text).map(|_| ())
}

/// As [`out`]; returns whether the reader still takes more.
pub fn out_while_read(text: &str) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(OutputFailed(error).into()),
    }
}

/// Writes `value` to stdout as indented JSON with a newline; what could drive a terminal is escaped.
pub fn out_json(value: &serde_json::Value) -> Result<(), Failure> {
    // `{:#}` of a JSON value cannot fail, unlike serializing an arbitrary type.
    out(&escaped_json(&format!("{value:#}\n")))
}

/// JSON itself escapes control characters below U+0020 only. All hostile ones above are in its strings and
/// have four hexadecimal digits.
fn escaped_json(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\n' => escaped.push(c),
            _ if is_hostile(c) => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
            _ => escaped.push(c),
        }
    }
    escaped
}

/// The rank that lines on stderr are signed with.
static SPEAKER: OnceLock<usize> = OnceLock::new();

/// Signs what is said from here on with a rank: of several processes that share a terminal, all but the first.
pub fn speak_as(rank: usize) {
    // a process has one rank
    let _ = SPEAKER.set(rank);
}

/// Writes a line to stderr; a closed stderr is ignored.
pub fn say(line: &str) {
    let mut stderr = io::stderr().lock();
    let _ = match SPEAKER.get() {
        Some(rank) => writeln!(stderr, "rank {rank}: {line}"),
        None => writeln!(stderr, "{line}"),
    };
}

/// Returns true if stderr shows moving progress: a terminal, and not a dumb one.
pub fn is_interactive() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Returns true if stderr may be coloured (no-color.org: NO_COLOR set and not empty turns colour off).
pub fn has_colour() -> bool {
    is_interactive() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// As [`has_colour`], of stdout.
pub fn out_has_colour() -> bool {
    let is_terminal =
        io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
    is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Returns the characters in a line of stdout, if it is a terminal that says so.
pub fn out_width() -> Option<usize> {
    let (width, _) = terminal_size::terminal_size_of(io::stdout())?;
    (width.0 > 0).then_some(usize::from(width.0))
}

/// Returns `text` without control characters: names in files must not drive the terminal.
///
/// Newlines and tabs become visible escapes, too; use it for anything shown on one line.
pub fn printable(text: &str) -> String {
    if !text.chars().any(is_hostile) {
        return text.to_owned();
    }
    text.chars().flat_map(|c| if is_hostile(c) { c.escape_default().collect() } else { vec![c] }).collect()
}

/// Control characters, and the Unicode marks that reorder or hide what surrounds them.
fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Returns a byte count in the unit that keeps it short: `512 B`, `2.02 KB`, `1.50 GB` (powers of 1000).
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KB", "MB", "GB", "TB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    // 999.995 would print as 1000.00.
    while value >= 999.995 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.2} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts_have_units() {
        let shown = [0, 999, 1000, 2024, 999_994, 999_996, 1_500_000_000, u64::MAX].map(bytes);
        assert_eq!(
            shown,
            ["0 B", "999 B", "1.00 KB", "2.02 KB", "999.99 KB", "1.00 MB", "1.50 GB", "18446744.07 TB"]
        );
    }

    #[test]
    fn json_cannot_drive_the_terminal() {
        let value = serde_json::json!({"a\u{9b}31m": ["\u{202e}x\u{1b}[2J", "größe"]});
        let text = escaped_json(&format!("{value:#}\n"));
        assert!(!text.chars().any(|c| c != '\n' && is_hostile(c)), "{text:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[test]
    fn names_cannot_drive_the_terminal() {
        assert_eq!(printable("blk.0.attn_q.weight"), "blk.0.attn_q.weight");
        assert_eq!(printable("a\u{1b}[2Jb\nc\u{202e}d"), "a\\u{1b}[2Jb\\nc\\u{202e}d");
        assert_eq!(printable("größe 模型"), "größe 模型");
    }
}

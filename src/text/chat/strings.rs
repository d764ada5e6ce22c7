//! What Python's strings do, apart from argument handling.

use super::value::is_space;

/// Returns the `str.is…` test of that name.
pub(super) fn predicate(method: &str) -> Option<fn(&str) -> bool> {
    fn all(text: &str, holds: fn(char) -> bool) -> bool {
        !text.is_empty() && text.chars().all(holds)
    }
    Some(match method {
        "isalnum" => |text| all(text, char::is_alphanumeric),
        "isalpha" => |text| all(text, char::is_alphabetic),
        "isascii" => str::is_ascii,
        "isdecimal" => |text| all(text, is_decimal),
        "isdigit" => |text| all(text, |c| is_decimal(c) || is_superscript_digit(c)),
        "isnumeric" => |text| all(text, char::is_numeric),
        "isspace" => |text| all(text, is_space),
        "islower" => |text| text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase),
        "isupper" => |text| text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase),
        _ => return None,
    })
}

/// A digit of a positional system: the blocks of ten whose values count up from 0.
fn is_decimal(c: char) -> bool {
    const ZEROS: [u32; 22] = [
        0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6,
        0xe50, 0xed0, 0xf20, 0x1040, 0x17e0, 0x1810, 0xa620, 0xff10,
    ];
    ZEROS.iter().any(|zero| (*zero..zero + 10).contains(&u32::from(c)))
}

fn is_superscript_digit(c: char) -> bool {
    matches!(c, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉' | '①'..='⑨')
}

/// Returns the change without arguments that the method of that name makes.
pub(super) fn change(method: &str) -> Option<fn(&str) -> String> {
    Some(match method {
        "upper" => str::to_uppercase,
        "lower" => str::to_lowercase,
        "casefold" => |text| text.to_lowercase().replace('ß', "ss").replace('ς', "σ"),
        "capitalize" => capitalize,
        "title" => title,
        "swapcase" => |text| {
            let swap = |c: char| {
                if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() }
            };
            text.chars().map(swap).collect()
        },
        _ => return None,
    })
}

/// Returns the text with a capital first letter and small ones behind it.
pub(super) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().collect::<String>() + &chars.as_str().to_lowercase(),
        None => String::new(),
    }
}

/// `str.title`: a capital behind whatever is no letter.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        match in_word {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        in_word = c.is_lowercase() || c.is_uppercase();
    }
    out
}

/// Returns the text without white space, or the given characters, at the ends that `method` names.
pub(super) fn strip<'a>(text: &'a str, chars: Option<&str>, method: &str) -> &'a str {
    let is_cut = |c: char| chars.map_or(is_space(c), |chars| chars.contains(c));
    let text = if method == "rstrip" { text } else { text.trim_start_matches(is_cut) };
    if method == "lstrip" { text } else { text.trim_end_matches(is_cut) }
}

/// Returns the words of the text, split at most `limit` times, from the right if `last`.
pub(super) fn split_on_space(text: &str, limit: usize, last: bool) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = if last { text.trim_end_matches(is_space) } else { text.trim_start_matches(is_space) };
    while !rest.is_empty() {
        if words.len() == limit {
            let whole =
                if last { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
            words.push(whole);
            break;
        }
        let (word, behind) = match last {
            false => rest.split_at(rest.find(is_space).unwrap_or(rest.len())),
            true => {
                let start = rest
                    .rfind(is_space)
                    .map_or(0, |at| at + rest[at..].chars().next().map_or(1, char::len_utf8));
                (&rest[start..], &rest[..start])
            }
        };
        words.push(word);
        rest = if last { behind.trim_end_matches(is_space) } else { behind.trim_start_matches(is_space) };
    }
    if last {
        words.reverse();
    }
    words
}

/// Returns the lines, at any of Python's line boundaries, without or with them.
pub(super) fn lines(text: &str, keep: bool) -> Vec<&str> {
    let is_break = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(is_break) {
        let width = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(1, char::len_utf8)
        };
        lines.push(&rest[..at + if keep { width } else { 0 }]);
        rest = &rest[at + width..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// Returns `text[start:end]` in characters with its start's index, or `None` where the start is beyond the end.
pub(super) fn window(text: &str, start: i128, end: i128) -> Option<(usize, &str)> {
    if start == 0 && end == i128::MAX {
        return Some((0, text));
    }
    let len = text.chars().count() as i128;
    let from_end = |at: i128| if at < 0 { at.saturating_add(len).max(0) } else { at };
    let (start, end) = (from_end(start), from_end(end).min(len));
    if start > end {
        return None;
    }
    let byte = |at: i128| text.char_indices().nth(at as usize).map_or(text.len(), |(byte, _)| byte);
    Some((start as usize, &text[byte(start)..byte(end)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitting_is_pythons() {
        assert_eq!(split_on_space("  a  b c ", usize::MAX, false), ["a", "b", "c"]);
        assert_eq!(split_on_space("  a  b c ", 1, false), ["a", "b c "]);
        assert_eq!(split_on_space("  a  b c ", 1, true), ["  a  b", "c"]);
        assert_eq!(split_on_space(" ", 3, false), [] as [&str; 0]);
        assert_eq!(lines("a\r\nb\n\nc", false), ["a", "b", "", "c"]);
        assert_eq!(lines("a\n", true), ["a\n"]);
        assert_eq!(window("größe", -3, i128::MAX), Some((2, "öße")));
        assert_eq!(window("abc", 3, i128::MAX), Some((3, "")));
        assert_eq!(window("abc", 4, i128::MAX), None);
    }
}

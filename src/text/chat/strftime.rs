//! `strftime_now`: Python's date codes in the C locale, for a date that the request gives.

use chrono::{NaiveDateTime, Timelike};

/// Returns what Python's `datetime.strftime` gives for a date without a time zone.
///
/// A code that glibc does not know stays as it is.
pub(super) fn strftime(now: NaiveDateTime, format: &str) -> String {
    let mut out = String::with_capacity(format.len() * 2);
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let flag = rest[1..].chars().next().filter(|c| "-_0^".contains(*c));
        let code = rest[1 + flag.map_or(0, char::len_utf8)..].chars().next();
        let Some((code, text)) = code.and_then(|code| Some((code, one(now, code)?))) else {
            out.push('%');
            rest = &rest[1..];
            continue;
        };
        out.push_str(&flagged(&text, code, flag));
        rest = &rest[1 + flag.map_or(0, char::len_utf8) + code.len_utf8()..];
    }
    out.push_str(rest);
    out
}

fn one(now: NaiveDateTime, code: char) -> Option<String> {
    Some(match code {
        'a' | 'A' | 'b' | 'B' | 'h' | 'c' | 'C' | 'd' | 'D' | 'e' | 'F' | 'g' | 'G' | 'H' | 'I' | 'j'
        | 'k' | 'l' | 'm' | 'M' | 'p' | 'P' | 'r' | 'R' | 'S' | 'T' | 'u' | 'U' | 'V' | 'w' | 'W' | 'x'
        | 'X' | 'y' | 'Y' => now.format(&format!("%{code}")).to_string(),
        'f' => format!("{:06}", now.nanosecond() / 1000 % 1_000_000),
        // a date without a zone has neither
        'z' | 'Z' => String::new(),
        'n' => "\n".into(),
        't' => "\t".into(),
        '%' => "%".into(),
        _ => return None,
    })
}

fn flagged(text: &str, code: char, flag: Option<char>) -> String {
    let digits = text.trim_start_matches([' ', '0']);
    let number = if digits.is_empty() { "0" } else { digits };
    let is_number = text.trim_start().bytes().all(|c| c.is_ascii_digit()) && !text.is_empty() && code != 'f';
    match flag {
        Some('-') if is_number => number.to_owned(),
        Some('_') if is_number => format!("{number:>width$}", width = text.len()),
        Some('0') if is_number => format!("{number:0>width$}", width = text.len()),
        Some('^') => text.to_uppercase(),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_pythons() {
        // datetime(2024, 7, 4, 9, 5, 7, 1230).strftime(...) of Python 3.11 on Linux
        let now =
            chrono::NaiveDate::from_ymd_opt(2024, 7, 4).unwrap().and_hms_micro_opt(9, 5, 7, 1230).unwrap();
        let cases = [
            ("%d %b %Y", "04 Jul 2024"),
            ("%-d %B %y, %A %a", "4 July 24, Thursday Thu"),
            ("%H:%M:%S.%f %I %p %-I", "09:05:07.001230 09 AM 9"),
            ("%Y-%m-%dT%T %j %e %_d", "2024-07-04T09:05:07 186  4  4"),
            (
                "%c|%x|%X|%U %W %u %w|%z%Z|%%|%Q|%",
                "Thu Jul  4 09:05:07 2024|07/04/24|09:05:07|26 27 4 4||%|%Q|%",
            ),
        ];
        for (format, expected) in cases {
            assert_eq!(strftime(now, format), expected, "{format}");
        }
    }
}

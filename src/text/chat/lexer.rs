//! A template's source cut into text and tags, and tags into tokens, with Jinja's rules for white space.

use super::error::Error;
use super::value::is_space;

/// How Jinja is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// As transformers does: `trim_blocks` and `lstrip_blocks`, a last newline dropped; what is undefined prints
    /// as nothing.
    Chat,
    /// As lm-eval does: white space stays, `keep_trailing_newline`; to use what is undefined is an error.
    Record,
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Piece {
    Text(String),
    /// `{{ … }}`.
    Output(Vec<Token>),
    /// `{% … %}`.
    Tag(Vec<Token>),
}

/// A token of an expression and the line it is on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) line: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Name(String),
    Text(String),
    Int(u128),
    Float(f64),
    Op(&'static str),
}

/// Longest first.
const OPERATORS: [&str; 27] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";", "!",
];

/// Returns the pieces of the template, each with its first line.
pub(super) fn pieces(source: &str, dialect: Dialect) -> Result<Vec<(Piece, usize)>, Error> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let trims = dialect == Dialect::Chat;
    let source = source.strip_suffix('\n').filter(|_| trims).unwrap_or(&source);
    let mut lexer = Lexer { source, trims, at: 0, line: 1, starts_line: true, pieces: Vec::new() };
    while lexer.at < source.len() {
        lexer.text_and_tag()?;
    }
    Ok(lexer.pieces)
}

struct Lexer<'a> {
    source: &'a str,
    /// `trim_blocks` and `lstrip_blocks`.
    trims: bool,
    at: usize,
    line: usize,
    /// What came before ended with a newline, or nothing came before.
    starts_line: bool,
    pieces: Vec<(Piece, usize)>,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn advance(&mut self, bytes: usize) {
        let passed = &self.source[self.at..self.at + bytes];
        self.line += passed.matches('\n').count();
        if !passed.is_empty() {
            self.starts_line = passed.ends_with('\n');
        }
        self.at += bytes;
    }

    fn fail<T>(&self, what: impl Into<String>) -> Result<T, Error> {
        Err(Error::Syntax { line: self.line, what: what.into() })
    }

    /// Takes the text up to the next tag, and the tag.
    fn text_and_tag(&mut self) -> Result<(), Error> {
        let rest = self.rest();
        let Some(at) = next_tag(rest) else {
            let line = self.line;
            self.advance(rest.len());
            self.pieces.push((Piece::Text(rest.to_owned()), line));
            return Ok(());
        };
        let opener = &rest[at..at + 2];
        let sign = rest[at + 2..].chars().next().filter(|c| "-+".contains(*c));
        let text = self.before_tag(&rest[..at], opener, sign);
        if !text.is_empty() {
            self.pieces.push((Piece::Text(text.to_owned()), self.line));
        }
        self.advance(at);
        let opened_at = self.line;
        let inside = 2 + sign.map_or(0, char::len_utf8);
        if opener == "{%"
            && let Some(begin) = raw(&self.rest()[inside..])
        {
            self.advance(inside + begin);
            return self.raw_text(opened_at);
        }
        self.advance(inside);
        match opener {
            "{#" => self.comment(opened_at),
            "{{" => {
                let tokens = self.tokens("}}", opened_at)?;
                self.pieces.push((Piece::Output(tokens), opened_at));
                Ok(())
            }
            _ => {
                let tokens = self.tokens("%}", opened_at)?;
                self.pieces.push((Piece::Tag(tokens), opened_at));
                Ok(())
            }
        }
    }

    /// Returns the text before a tag, stripped as the tag's sign or `lstrip_blocks` asks.
    fn before_tag<'t>(&self, text: &'t str, opener: &str, sign: Option<char>) -> &'t str {
        if sign == Some('-') {
            return text.trim_end_matches(is_space);
        }
        if sign == Some('+') || opener == "{{" || !self.trims {
            return text;
        }
        let line_start = text.rfind('\n').map_or(0, |at| at + 1);
        let is_blank = text[line_start..].chars().all(is_space);
        if is_blank && (line_start > 0 || self.starts_line) { &text[..line_start] } else { text }
    }

    /// Returns the length of a tag's end, with the white space it takes along, if one is here.
    fn end_of(&self, closer: &str) -> Option<usize> {
        let rest = self.rest();
        let spaces = |text: &str| text.len() - text.trim_start_matches(is_space).len();
        if let Some(behind) = rest.strip_prefix('-').and_then(|rest| rest.strip_prefix(closer)) {
            return Some(3 + spaces(behind));
        }
        if closer != "}}" && rest.strip_prefix('+').is_some_and(|rest| rest.starts_with(closer)) {
            return Some(3);
        }
        let behind = rest.strip_prefix(closer)?;
        Some(2 + usize::from(self.trims && closer != "}}" && behind.starts_with('\n')))
    }

    fn comment(&mut self, opened_at: usize) -> Result<(), Error> {
        while self.at < self.source.len() {
            if let Some(end) = self.end_of("#}") {
                self.advance(end);
                return Ok(());
            }
            let next = self.rest().chars().next().map_or(1, char::len_utf8);
            self.advance(next);
        }
        self.line = opened_at;
        self.fail("Missing end of comment tag")
    }

    /// Takes the text between `{% raw %}` and `{% endraw %}` as it is.
    fn raw_text(&mut self, opened_at: usize) -> Result<(), Error> {
        let rest = self.rest();
        let mut from = 0;
        while let Some(found) = rest[from..].find("{%") {
            let at = from + found;
            let sign = rest[at + 2..].chars().next().filter(|c| "-+".contains(*c));
            let inside = at + 2 + sign.map_or(0, char::len_utf8);
            if let Some(end) = endraw(&rest[inside..], self.trims) {
                let text = self.before_tag(&rest[..at], "{%", sign).to_owned();
                let line = self.line;
                self.advance(inside + end);
                self.pieces.push((Piece::Text(text), line));
                return Ok(());
            }
            from = at + 2;
        }
        self.line = opened_at;
        self.fail("Missing end of raw directive")
    }

    fn tokens(&mut self, closer: &str, opened_at: usize) -> Result<Vec<Token>, Error> {
        let mut tokens: Vec<Token> = Vec::new();
        let mut open: Vec<&'static str> = Vec::new();
        loop {
            let rest = self.rest();
            let Some(c) = rest.chars().next() else {
                self.line = opened_at;
                return self.fail(format!("unexpected end of template: a tag is not closed by '{closer}'"));
            };
            if open.is_empty()
                && let Some(end) = self.end_of(closer)
            {
                self.advance(end);
                return Ok(tokens);
            }
            if is_space(c) {
                self.advance(c.len_utf8());
                continue;
            }
            let line = self.line;
            let follows_dot = tokens.last().is_some_and(|token| token.kind == Kind::Op("."));
            let (kind, length) = match c {
                '0'..='9' => self.number(rest, follows_dot)?,
                '\'' | '"' => self.string(rest, c)?,
                _ if c.is_alphanumeric() || c == '_' => {
                    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                    (Kind::Name(rest[..end].to_owned()), end)
                }
                _ => match OPERATORS.iter().find(|op| rest.starts_with(**op)) {
                    Some(op) => (Kind::Op(op), op.len()),
                    None => return self.fail(format!("unexpected char '{c}'")),
                },
            };
            match &kind {
                Kind::Op(op @ ("(" | "[" | "{")) => open.push(op),
                Kind::Op(op @ (")" | "]" | "}")) => {
                    let expected = open.pop().map(|open| match open {
                        "(" => ")",
                        "[" => "]",
                        _ => "}",
                    });
                    if expected != Some(*op) {
                        return self.fail(format!("unexpected '{op}'"));
                    }
                }
                _ => {}
            }
            tokens.push(Token { kind, line });
            self.advance(length);
        }
    }

    fn number(&self, rest: &str, follows_dot: bool) -> Result<(Kind, usize), Error> {
        if let Some(digits) = rest.strip_prefix('0')
            && let Some((base, digits)) = based(digits)
        {
            let end = digits.find(|c: char| !c.is_digit(base) && c != '_').unwrap_or(digits.len());
            return match u128::from_str_radix(&digits[..end].replace('_', ""), base) {
                Ok(int) => Ok((Kind::Int(int), 2 + end)),
                Err(_) => self.fail("not an integer that is understood"),
            };
        }
        let run = |text: &str| text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
        let whole = run(rest);
        let mut end = whole;
        if !follows_dot {
            let fraction = rest[end..].strip_prefix('.').map_or(0, run);
            if fraction > 0 {
                end += 1 + fraction;
            }
            if let Some(exponent) = rest[end..].strip_prefix(['e', 'E']) {
                let sign = usize::from(exponent.starts_with(['+', '-']));
                let digits = run(&exponent[sign..]);
                if digits > 0 {
                    end += 1 + sign + digits;
                }
            }
        }
        let text = rest[..end].replace('_', "");
        match (end > whole, text.parse::<f64>(), text.parse::<u128>()) {
            (true, Ok(float), _) if float.is_finite() => Ok((Kind::Float(float), end)),
            (false, _, Ok(int)) => Ok((Kind::Int(int), end)),
            _ => self.fail(format!("the number {text} is too large")),
        }
    }

    fn string(&self, rest: &str, quote: char) -> Result<(Kind, usize), Error> {
        let mut chars = rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => {
                    chars.next();
                }
                c if c == quote => return Ok((Kind::Text(self.unescape(&rest[1..at])?), at + 1)),
                _ => {}
            }
        }
        self.fail(format!("unexpected char '{quote}': the string has no end"))
    }

    /// Python's escapes; an unknown one stays as it is.
    fn unescape(&self, text: &str) -> Result<String, Error> {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('\\') {
            out.push_str(&rest[..at]);
            let escape = rest[at + 1..].chars().next();
            rest = &rest[at + 1 + escape.map_or(0, char::len_utf8)..];
            let coded = |digits: usize| {
                let code = rest.get(..digits).and_then(|code| u32::from_str_radix(code, 16).ok());
                code.and_then(char::from_u32)
            };
            let digits = match escape {
                Some('x') => 2,
                Some('u') => 4,
                Some('U') => 8,
                _ => 0,
            };
            match escape {
                Some('\n') => {}
                Some(c @ ('\\' | '\'' | '"')) => out.push(c),
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('r') => out.push('\r'),
                Some('a') => out.push('\u{7}'),
                Some('b') => out.push('\u{8}'),
                Some('f') => out.push('\u{c}'),
                Some('v') => out.push('\u{b}'),
                Some('x' | 'u' | 'U') => match coded(digits) {
                    Some(c) => {
                        out.push(c);
                        rest = &rest[digits..];
                    }
                    None => return self.fail("an escape in a string is no character"),
                },
                Some('N') => return self.fail("characters by name (\\N) are not understood"),
                Some(c @ '0'..='7') => {
                    let more = rest.bytes().take(2).take_while(|c| (b'0'..=b'7').contains(c)).count();
                    let code = format!("{c}{}", &rest[..more]);
                    out.extend(u32::from_str_radix(&code, 8).ok().and_then(char::from_u32));
                    rest = &rest[more..];
                }
                Some(c) => out.extend(['\\', c]),
                None => out.push('\\'),
            }
        }
        out.push_str(rest);
        Ok(out)
    }
}

/// Returns where the next `{{`, `{%` or `{#` starts.
fn next_tag(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|pair| pair[0] == b'{' && matches!(pair[1], b'{' | b'%' | b'#'))
}

fn based(digits: &str) -> Option<(u32, &str)> {
    let (letter, rest) = digits.split_at_checked(1)?;
    let base = match letter {
        "x" | "X" => 16,
        "o" | "O" => 8,
        "b" | "B" => 2,
        _ => return None,
    };
    rest.starts_with(|c: char| c.is_digit(base)).then_some((base, rest))
}

/// Returns the length of ` raw %}` (with what a `-` takes along) if that is all there is in the tag.
fn raw(inside: &str) -> Option<usize> {
    let text = inside.trim_start_matches(is_space).strip_prefix("raw")?.trim_start_matches(is_space);
    let behind = match text.strip_prefix("-%}") {
        Some(rest) => rest.trim_start_matches(is_space),
        None => text.strip_prefix("%}")?,
    };
    Some(inside.len() - behind.len())
}

fn endraw(inside: &str, trims: bool) -> Option<usize> {
    let text = inside.trim_start_matches(is_space).strip_prefix("endraw")?.trim_start_matches(is_space);
    let behind = if let Some(rest) = text.strip_prefix("-%}") {
        rest.trim_start_matches(is_space)
    } else if let Some(rest) = text.strip_prefix("+%}") {
        rest
    } else {
        let rest = text.strip_prefix("%}")?;
        rest.strip_prefix('\n').filter(|_| trims).unwrap_or(rest)
    };
    Some(inside.len() - behind.len())
}

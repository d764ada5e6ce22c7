//! A report as one HTML page that needs nothing else: no network, no fonts, no script but its own.
//!
//! Everything but the browser of samples is there without a script: figures, matrices and diagrams are written here, through
//! a template that escapes every text. Samples lie in the page as JSON, and its script puts them into the page as text, never
//! as markup. A content security policy with the digests of style and script forbids the rest.

mod data;
mod matrix;
mod plot;
mod view;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Output, State, UndefinedBehavior, Value};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::error::Diagnostic;
use crate::eval::gate::{Run, Verdict};

const TEMPLATE: &str = include_str!("html/page.html");
const STYLE: &str = include_str!("html/style.css");
const SCRIPT: &str = include_str!("html/samples.js");

/// A page that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the HTML page")]
pub struct Error(#[from] minijinja::Error);

impl Diagnostic for Error {}

#[derive(Serialize)]
struct Context<'a> {
    csp: String,
    style: &'a str,
    script: &'a str,
    data: String,
    #[serde(flatten)]
    page: view::Page,
}

/// Returns the page of a run, beside the run that it was compared with if there is one.
///
/// The same runs give the same bytes.
pub fn html(run: &Run, comparison: Option<(&Run, &Verdict)>) -> Result<String, Error> {
    let csp = format!(
        "default-src 'none'; style-src '{}'; script-src '{}'; img-src data:; base-uri 'none'; form-action 'none'",
        source_digest(STYLE),
        source_digest(SCRIPT)
    );
    let context = Context {
        csp,
        style: STYLE,
        script: SCRIPT,
        data: data::json(run, comparison),
        page: view::page(run, comparison),
    };
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true);
    env.set_syntax(syntax.build()?);
    env.set_formatter(write_value);
    // the name's ending is what turns escaping on
    env.add_template("page.html", TEMPLATE)?;
    Ok(env.get_template("page.html")?.render(Serde(context))?)
}

/// Writes a value escaped; control characters, which HTML has no form for, as U+FFFD.
fn write_value(out: &mut Output, state: &mut State, value: &Value) -> Result<(), minijinja::Error> {
    let is_control = |c: char| c.is_control() && c != '\n' && c != '\t';
    match value.as_str() {
        Some(text) if !value.is_safe() && text.contains(is_control) => {
            let shown = text.replace(is_control, "\u{fffd}");
            minijinja::escape_formatter(out, state, &Value::from(shown))
        }
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// Returns a source expression of a content security policy for what stands between the tags.
fn source_digest(text: &str) -> String {
    format!("sha256-{}", base64(&Sha256::digest(text)))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let at = |index: usize| u32::from(three.get(index).copied().unwrap_or(0));
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * place) & 63) as usize];
            out.push(if place <= three.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test vectors of RFC 4648, section 10.
    #[test]
    fn base64_is_the_rfcs() {
        for (text, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("\u{ff}", "w78="),
        ] {
            assert_eq!(base64(text.as_bytes()), expected);
        }
    }
}

//! Filters of text.

use minijinja::{Error, Value};

use super::super::arguments::{Arguments, bind, split_keywords};
use super::super::error::{Fault, type_error};
use super::super::format::percent;
use super::super::meter::{Meter, Text};
use super::super::value::{Py, SeqKind, dict, escaped, marked, seq, to_str};
use super::super::{strings, value};

pub(super) fn format(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let (positional, keywords) = split_keywords(args)?;
    let args = match keywords {
        Some(_) if !positional.is_empty() => {
            return type_error("can't handle positional and keyword arguments at the same time");
        }
        Some(keywords) => {
            let names: Vec<String> = keywords.args().map(str::to_owned).collect();
            let pair = |name: &String| Ok((Value::from(name.as_str()), keywords.peek::<Value>(name)?));
            dict(meter, names.iter().map(pair).collect::<Result<Vec<_>, Error>>()?)?
        }
        None => seq(meter, SeqKind::Tuple, positional.to_vec())?,
    };
    Ok(percent(meter, &to_str(meter, value)?, &args)?.into())
}

pub(super) fn indent(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [width, first, blank] = bind("indent", ["width", "first", "blank"], args)?;
    let is_true = |value: &Option<Value>| value.as_ref().is_some_and(Value::is_true);
    let indention = match width.as_ref().and_then(Value::as_str) {
        Some(text) => text.to_owned(),
        None => {
            let mut spaces = Text::new(meter);
            spaces.repeat(" ", Arguments("indent").int_or(&width, 4)?)?;
            spaces.finish()
        }
    };
    let Py::Str(text) = Py::of(value) else {
        return type_error(format!("indent(): expected a str, not {}", Py::of(value).type_name()));
    };
    let text = format!("{text}\n");
    let mut out = Text::new(meter);
    for (index, line) in strings::lines(&text, false).into_iter().enumerate() {
        let indents = match index {
            0 => is_true(&first),
            _ => is_true(&blank) || !line.is_empty(),
        };
        out.push(if index == 0 { "" } else { "\n" })?;
        out.push(if indents { &indention } else { "" })?;
        out.push(line)?;
    }
    Ok(out.finish().into())
}

pub(super) fn truncate(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [length, killwords, end, leeway] = bind("truncate", ["length", "killwords", "end", "leeway"], args)?;
    let a = Arguments("truncate");
    let end = a.text_or_none(&end)?.unwrap_or("...").to_owned();
    let (length, leeway) = (a.int_or(&length, 255)?, a.int_or(&leeway, 5)?);
    let text = to_str(meter, value)?;
    let end_length = end.chars().count() as i128;
    if length < end_length || leeway < 0 {
        return type_error(format!("expected length >= {end_length}, got {length}"));
    }
    if text.chars().count() as i128 <= length.saturating_add(leeway) {
        return Ok(text.into());
    }
    let cut: String = text.chars().take((length - end_length) as usize).collect();
    let kept = match killwords.is_some_and(|value| value.is_true()) {
        true => cut.as_str(),
        false => cut.rsplit_once(' ').map_or(cut.as_str(), |(before, _)| before),
    };
    Ok(format!("{kept}{end}").into())
}

pub(super) fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        let is_boundary = value::is_space(c) || "-({[<".contains(c);
        match in_word && !is_boundary {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        in_word = !is_boundary;
    }
    out
}

pub(super) fn escape(meter: &Meter, value: &Value) -> Result<Value, Error> {
    match value.is_safe() {
        true => Ok(value.clone()),
        false => Ok(marked(escaped(meter, &to_str(meter, value)?)?, true)),
    }
}

/// Returns the changed text, marked safe if it was.
pub(super) fn changed(meter: &Meter, value: &Value, change: fn(&str) -> String) -> Result<Value, Error> {
    Ok(marked(change(&to_str(meter, value)?), value.is_safe()))
}

pub(super) fn urlencode(meter: &Meter, value: &Value) -> Result<Value, Error> {
    if matches!(Py::of(value), Py::Seq(_) | Py::Dict(_)) {
        return Err(Fault::Unsupported("urlencode of a mapping or a list".into()).into());
    }
    let mut out = Text::new(meter);
    for byte in to_str(meter, value)?.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' | b'/' => {
                out.push(char::from(byte).encode_utf8(&mut [0; 4]))?;
            }
            _ => out.push(&format!("%{byte:02X}"))?,
        }
    }
    Ok(out.finish().into())
}

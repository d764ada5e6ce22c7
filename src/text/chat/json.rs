//! `tojson`: what Python's `json.dumps` writes.

use minijinja::{Error, Value};

use super::arguments::{Arguments, bind};
use super::error::type_error;
use super::meter::{Meter, Text};
use super::value::{Py, SeqKind, float_repr, order};

/// How `json.dumps` lays out.
struct Layout {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ensure_ascii, indent, separators, sort_keys] = bind("tojson", names, args)?;
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let indent = match indent.as_ref().map(Py::of) {
        None | Some(Py::None) => None,
        Some(Py::Str(text)) => Some(text.to_owned()),
        _ => {
            let width = Arguments("tojson").int(&indent)?;
            meter.charge(usize::try_from(width.max(0)).unwrap_or(usize::MAX))?;
            Some(" ".repeat(usize::try_from(width.max(0)).unwrap_or(0)))
        }
    };
    let mut layout = Layout {
        ensure_ascii: is_true(ensure_ascii),
        item_separator: if indent.is_some() { "," } else { ", " }.to_owned(),
        key_separator: ": ".to_owned(),
        indent,
        sort_keys: is_true(sort_keys),
    };
    match separators.as_ref().map(Py::of) {
        None | Some(Py::None) => {}
        Some(Py::Seq(seq))
            if seq.items.len() == 2 && seq.items.iter().all(|item| item.as_str().is_some()) =>
        {
            let text = |index: usize| seq.items[index].as_str().unwrap_or_default().to_owned();
            (layout.item_separator, layout.key_separator) = (text(0), text(1));
        }
        Some(_) => return type_error("tojson(): separators must be two strings"),
    }
    let mut out = Text::new(meter);
    write(&mut out, meter, &layout, value, 0)?;
    Ok(out.finish().into())
}

fn write(out: &mut Text, meter: &Meter, layout: &Layout, value: &Value, level: i128) -> Result<(), Error> {
    match Py::of(value) {
        Py::None => out.push("null"),
        Py::Bool(true) => out.push("true"),
        Py::Bool(false) => out.push("false"),
        Py::Int(int) => out.push(&int.to_string()),
        Py::Float(float) => out.push(&number(float)),
        Py::Str(text) => write_string(out, layout, text),
        Py::Seq(seq) if matches!(seq.kind, SeqKind::List | SeqKind::Tuple) => {
            let items: Vec<(Option<String>, &Value)> = seq.items.iter().map(|item| (None, item)).collect();
            write_items(out, meter, layout, ["[", "]"], &items, level)
        }
        Py::Dict(dict) => {
            let mut keys: Vec<&Value> = dict.map.keys().collect();
            if layout.sort_keys {
                sort(meter, &mut keys)?;
            }
            let mut items = Vec::with_capacity(keys.len());
            for key in keys {
                items.push((Some(key_text(key)?), &dict.map[key]));
            }
            write_items(out, meter, layout, ["{", "}"], &items, level)
        }
        other => type_error(format!("Object of type {} is not JSON serializable", other.type_name())),
    }
}

fn write_items(
    out: &mut Text,
    meter: &Meter,
    layout: &Layout,
    [open, close]: [&str; 2],
    items: &[(Option<String>, &Value)],
    level: i128,
) -> Result<(), Error> {
    out.push(open)?;
    if items.is_empty() {
        return out.push(close);
    }
    let new_line = |out: &mut Text, level: i128| match &layout.indent {
        Some(indent) => out.push("\n").and_then(|()| out.repeat(indent, level)),
        None => Ok(()),
    };
    for (index, (key, value)) in items.iter().enumerate() {
        if index > 0 {
            out.push(&layout.item_separator)?;
        }
        new_line(out, level + 1)?;
        if let Some(key) = key {
            write_string(out, layout, key)?;
            out.push(&layout.key_separator)?;
        }
        write(out, meter, layout, value, level + 1)?;
    }
    new_line(out, level)?;
    out.push(close)
}

fn sort(meter: &Meter, keys: &mut [&Value]) -> Result<(), Error> {
    let mut failure = None;
    keys.sort_by(|a, b| match order(meter, "<", a, b) {
        Ok(order) => order.unwrap_or(std::cmp::Ordering::Equal),
        Err(error) => {
            failure.get_or_insert(error);
            std::cmp::Ordering::Equal
        }
    });
    failure.map_or(Ok(()), Err)
}

fn key_text(key: &Value) -> Result<String, Error> {
    Ok(match Py::of(key) {
        Py::Str(text) => text.to_owned(),
        Py::None => "null".into(),
        Py::Bool(bool) => if bool { "true" } else { "false" }.into(),
        Py::Int(int) => int.to_string(),
        Py::Float(float) => number(float),
        other => {
            let name = other.type_name();
            return type_error(format!("keys must be str, int, float, bool or None, not {name}"));
        }
    })
}

fn number(float: f64) -> String {
    match float {
        _ if float.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        _ => float_repr(float),
    }
}

fn write_string(out: &mut Text, layout: &Layout, text: &str) -> Result<(), Error> {
    let mut escaped = String::with_capacity(text.len() + 2);
    escaped.push('"');
    for c in text.chars() {
        match c {
            '"' => escaped.push_str("\\\""),
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            '\u{8}' => escaped.push_str("\\b"),
            '\u{c}' => escaped.push_str("\\f"),
            c if c < ' ' || (layout.ensure_ascii && !(' '..='~').contains(&c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    escaped.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => escaped.push(c),
        }
    }
    escaped.push('"');
    out.push(&escaped)
}

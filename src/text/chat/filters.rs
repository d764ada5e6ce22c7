//! Jinja's filters.

mod lists;
mod texts;

use std::cmp::Ordering;

use minijinja::{Error, Value};

use super::arguments::{Arguments, bind, items};
use super::error::type_error;
use super::json::tojson;
use super::meter::Meter;
use super::operators::item;
use super::value::{Dict, Py, Seq, SeqKind, list, marked, seq, to_str, undefined};
use super::{methods, strings, value};

use lists::{batch, dictsort, extreme, groupby, join, map, select, selectattr, slice, sort, sum, unique};
use texts::{changed, escape, format, indent, title, truncate, urlencode};

/// A filter: the rendering's account, what is filtered, and the arguments.
pub(super) type Filter = fn(&Meter, &Value, &[Value]) -> Result<Value, Error>;

/// Every filter by name.
pub(super) const FILTERS: &[(&str, Filter)] = &[
    ("abs", |_, value, _| abs(value)),
    ("attr", |_, value, args| {
        let [name] = bind("attr", ["name"], args)?;
        attr(value, Arguments("attr").text(&name)?)
    }),
    ("batch", batch),
    ("capitalize", |meter, value, _| changed(meter, value, strings::capitalize)),
    ("center", |meter, value, args| {
        let [width] = bind("center", ["width"], args)?;
        let width = Value::from(Arguments("center").int_or(&width, 80)?);
        string_method(meter, value, "center", &[width])
    }),
    ("count", |_, value, _| length(value)),
    ("d", default),
    ("default", default),
    ("dictsort", dictsort),
    ("e", |meter, value, _| escape(meter, value)),
    ("escape", |meter, value, _| escape(meter, value)),
    ("first", |meter, value, _| Ok(items(meter, value)?.into_iter().next().unwrap_or(Value::UNDEFINED))),
    ("float", float),
    ("forceescape", |meter, value, _| escape(meter, value)),
    ("format", format),
    ("groupby", groupby),
    ("indent", indent),
    ("int", int),
    ("items", |meter, value, _| match Py::of(value) {
        Py::Undefined => seq(meter, SeqKind::Generator, Vec::new()),
        Py::Dict(dict) => seq(meter, SeqKind::Generator, pairs(meter, dict)?),
        _ => type_error("Can only get item pairs from a mapping."),
    }),
    ("join", join),
    ("last", |meter, value, _| match Py::of(value) {
        Py::Seq(Seq { kind: SeqKind::Generator, .. }) => type_error("'generator' object is not reversible"),
        _ => Ok(items(meter, value)?.pop().unwrap_or(Value::UNDEFINED)),
    }),
    ("length", |_, value, _| length(value)),
    ("list", |meter, value, _| list(meter, items(meter, value)?)),
    ("lower", |meter, value, _| changed(meter, value, str::to_lowercase)),
    ("map", map),
    ("max", |meter, value, args| extreme(meter, value, args, Ordering::Greater)),
    ("min", |meter, value, args| extreme(meter, value, args, Ordering::Less)),
    ("reject", |meter, value, args| select(meter, value, args, false)),
    ("rejectattr", |meter, value, args| selectattr(meter, value, args, false)),
    ("replace", |meter, value, args| {
        let [old, new, count] = bind("replace", ["old", "new", "count"], args)?;
        let text = |arg: Option<Value>| to_str(meter, &arg.unwrap_or(Value::UNDEFINED));
        let count = Arguments("replace").int_or(&count, -1)?;
        methods::replace(meter, &to_str(meter, value)?, &text(old)?, &text(new)?, count)
    }),
    ("reverse", |meter, value, _| match Py::of(value) {
        Py::Str(text) => Ok(text.chars().rev().collect::<String>().into()),
        _ => seq(meter, SeqKind::Generator, items(meter, value)?.into_iter().rev().collect()),
    }),
    ("round", round),
    ("safe", |meter, value, _| Ok(marked(to_str(meter, value)?, true))),
    ("select", |meter, value, args| select(meter, value, args, true)),
    ("selectattr", |meter, value, args| selectattr(meter, value, args, true)),
    ("slice", slice),
    ("sort", sort),
    ("string", |meter, value, _| changed(meter, value, str::to_owned)),
    ("sum", sum),
    ("title", |meter, value, _| changed(meter, value, title)),
    ("tojson", tojson),
    ("trim", |meter, value, args| {
        let [chars] = bind("trim", ["chars"], args)?;
        let text = to_str(meter, value)?;
        let kept = strings::strip(&text, Arguments("trim").text_or_none(&chars)?, "strip");
        Ok(marked(kept.to_owned(), value.is_safe()))
    }),
    ("truncate", truncate),
    ("unique", unique),
    ("upper", |meter, value, _| changed(meter, value, str::to_uppercase)),
    ("urlencode", |meter, value, _| urlencode(meter, value)),
    ("wordcount", |meter, value, _| {
        let text = to_str(meter, value)?;
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        Ok(text.split(|c| !is_word(c)).filter(|word| !word.is_empty()).count().into())
    }),
];

/// Jinja's filters that no chat template has use for.
pub(super) const LEFT_OUT: &[&str] =
    &["filesizeformat", "pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr"];

/// Returns the filter of that name.
pub(super) fn by_name(name: &str) -> Option<Filter> {
    FILTERS.iter().find(|(known, _)| *known == name).map(|(_, filter)| *filter)
}

fn string_method(meter: &Meter, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    methods::str_method(meter, &to_str(meter, value)?, value.is_safe(), method, args)
}

fn abs(value: &Value) -> Result<Value, Error> {
    match Py::of(value) {
        Py::Float(float) => Ok(float.abs().into()),
        Py::Undefined => Err(undefined()),
        other => match other.as_int() {
            Some(int) => Ok(int.saturating_abs().into()),
            None => type_error(format!("bad operand type for abs(): '{}'", other.type_name())),
        },
    }
}

/// The attribute, never the item.
fn attr(value: &Value, name: &str) -> Result<Value, Error> {
    match Py::of(value) {
        Py::Undefined => Err(undefined()),
        Py::Dict(dict) => item(&value::without_item(dict, name)?, &Value::from(name)),
        _ => item(value, &Value::from(name)),
    }
}

fn length(value: &Value) -> Result<Value, Error> {
    Ok(match Py::of(value) {
        Py::Undefined => 0,
        Py::Str(text) => text.chars().count(),
        Py::Dict(dict) => dict.map.len(),
        Py::Seq(seq) if seq.kind != SeqKind::Generator => seq.items.len(),
        other => return type_error(format!("object of type '{}' has no len()", other.type_name())),
    }
    .into())
}

fn default(_: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [default, boolean] = bind("default", ["default_value", "boolean"], args)?;
    let replaces =
        value.is_undefined() || (boolean.is_some_and(|boolean| boolean.is_true()) && !value.is_true());
    Ok(if replaces { default.unwrap_or_else(|| "".into()) } else { value.clone() })
}

fn pairs(meter: &Meter, dict: &Dict) -> Result<Vec<Value>, Error> {
    let pair = |(key, value): (&Value, &Value)| seq(meter, SeqKind::Tuple, vec![key.clone(), value.clone()]);
    dict.map.iter().map(pair).collect()
}

fn int(_: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [default, base] = bind("int", ["default", "base"], args)?;
    let base = u32::try_from(Arguments("int").int_or(&base, 10)?).ok().filter(|base| (2..=36).contains(base));
    let Some(base) = base else { return type_error("int() base must be >= 2 and <= 36, or 0") };
    let default = default.unwrap_or(Value::from(0));
    let truncated =
        |float: f64| (float.is_finite() && float.abs() < 1e38).then(|| Value::from(float.trunc() as i128));
    let found = match Py::of(value) {
        Py::Undefined => return Err(undefined()),
        Py::Str(text) => {
            let text = text.trim_matches(value::is_space).replace('_', "");
            let digits = match base {
                2 => text.trim_start_matches("0b"),
                8 => text.trim_start_matches("0o"),
                16 => text.trim_start_matches("0x"),
                _ => &text,
            };
            let whole = i128::from_str_radix(digits, base).ok().map(Value::from);
            whole.or_else(|| text.parse::<f64>().ok().and_then(truncated))
        }
        Py::Float(float) => truncated(float),
        other => other.as_int().map(Value::from),
    };
    Ok(found.map_or(default, |value| value.as_i64().map_or(value, Value::from)))
}

fn float(_: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [default] = bind("float", ["default"], args)?;
    let found = match Py::of(value) {
        Py::Undefined => return Err(undefined()),
        Py::Str(text) => text.trim_matches(value::is_space).replace('_', "").parse::<f64>().ok(),
        other => other.as_float(),
    };
    Ok(found.map(Value::from).or(default).unwrap_or(Value::from(0.0)))
}

fn round(_: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [precision, method] = bind("round", ["precision", "method"], args)?;
    let a = Arguments("round");
    let precision = i32::try_from(a.int_or(&precision, 0)?.clamp(-300, 300)).unwrap_or(0);
    let Some(float) = Py::of(value).as_float() else {
        return type_error(format!("type {} doesn't define __round__ method", Py::of(value).type_name()));
    };
    let scale = 10f64.powi(precision);
    Ok(Value::from(match a.text_or_none(&method)?.unwrap_or("common") {
        // Python rounds the decimal text, halves to even
        "common" if precision >= 0 => format!("{float:.*}", precision as usize).parse().unwrap_or(float),
        "common" => (float * scale).round_ties_even() / scale,
        "ceil" => (float * scale).ceil() / scale,
        "floor" => (float * scale).floor() / scale,
        _ => return type_error("method must be common, ceil or floor"),
    }))
}

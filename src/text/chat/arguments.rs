//! Arguments of functions, filters and methods, bound to names as Python binds them.

use minijinja::value::Kwargs;
use minijinja::{Error, Value};

use super::error::type_error;
use super::meter::Meter;
use super::value::{Py, undefined};

/// Splits off the keyword arguments, which come as the last value.
pub(super) fn split_keywords(args: &[Value]) -> Result<(&[Value], Option<Kwargs>), Error> {
    match args.split_last() {
        Some((last, rest)) if last.is_kwargs() => Ok((rest, Some(Kwargs::try_from(last.clone())?))),
        _ => Ok((args, None)),
    }
}

/// Returns the argument for each name, by position or by keyword.
///
/// Errors for too many, doubled and unknown arguments.
pub(super) fn bind<const N: usize>(
    what: &str,
    names: [&str; N],
    args: &[Value],
) -> Result<[Option<Value>; N], Error> {
    let (positional, keywords) = split_keywords(args)?;
    if positional.len() > N {
        return type_error(format!("{what}() takes at most {N} arguments ({} given)", positional.len()));
    }
    let mut bound = [const { None }; N];
    for (slot, value) in bound.iter_mut().zip(positional) {
        *slot = Some(value.clone());
    }
    if let Some(keywords) = keywords {
        for name in keywords.args() {
            let Some(index) = names.iter().position(|known| *known == name) else {
                return type_error(format!("{what}() got an unexpected keyword argument '{name}'"));
            };
            if bound[index].is_some() {
                return type_error(format!("{what}() got multiple values for argument '{name}'"));
            }
            bound[index] = Some(keywords.peek::<Value>(name)?);
        }
    }
    Ok(bound)
}

/// Reads bound arguments; holds the function's name for messages.
pub(super) struct Arguments<'a>(pub(super) &'a str);

impl Arguments<'_> {
    fn wrong<T>(&self, expected: &str, got: Option<&Value>) -> Result<T, Error> {
        match got.map(Py::of) {
            Some(Py::Undefined) => Err(undefined()),
            Some(other) => {
                type_error(format!("{}(): expected {expected}, not {}", self.0, other.type_name()))
            }
            None => type_error(format!("{}(): {expected} is missing", self.0)),
        }
    }

    pub(super) fn text<'v>(&self, value: &'v Option<Value>) -> Result<&'v str, Error> {
        match value.as_ref().and_then(Value::as_str) {
            Some(text) => Ok(text),
            None => self.wrong("a str", value.as_ref()),
        }
    }

    pub(super) fn text_or_none<'v>(&self, value: &'v Option<Value>) -> Result<Option<&'v str>, Error> {
        match value {
            None => Ok(None),
            Some(none) if none.is_none() => Ok(None),
            some => self.text(some).map(Some),
        }
    }

    pub(super) fn int(&self, value: &Option<Value>) -> Result<i128, Error> {
        match value.as_ref().map(Py::of).and_then(Py::as_int) {
            Some(int) => Ok(int),
            None => self.wrong("an int", value.as_ref()),
        }
    }

    pub(super) fn int_or(&self, value: &Option<Value>, default: i128) -> Result<i128, Error> {
        match value {
            None => Ok(default),
            Some(none) if none.is_none() => Ok(default),
            some => self.int(some),
        }
    }
}

/// Returns what iterating over the value gives: items, keys or characters.
pub(super) fn items(meter: &Meter, value: &Value) -> Result<Vec<Value>, Error> {
    let most = match Py::of(value) {
        Py::Seq(seq) => seq.items.len(),
        Py::Dict(dict) => dict.map.len(),
        Py::Str(text) => text.len(),
        _ => 0,
    };
    meter.charge(most * size_of::<Value>())?;
    match Py::of(value) {
        Py::Undefined => Ok(Vec::new()),
        Py::Seq(seq) => Ok(seq.items.clone()),
        Py::Dict(dict) => Ok(dict.map.keys().cloned().collect()),
        Py::Str(text) => Ok(text.chars().map(Value::from).collect()),
        other => type_error(format!("'{}' object is not iterable", other.type_name())),
    }
}

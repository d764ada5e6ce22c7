//! Python's values: sequences and dicts that know their depth, how they print, compare and are named.

use std::cmp::Ordering;
use std::sync::Arc;

use indexmap::IndexMap;
use minijinja::value::{Enumerator, Object, ObjectRepr};
use minijinja::{Error, Value};
use serde_json::Value as Json;

use super::error::{Fault, type_error};
use super::meter::{Meter, Text};

/// Containers nest at most this deep: they are compared, printed and dropped by recursion.
const MAX_DEPTH: u16 = 128;

/// What Python calls the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SeqKind {
    List,
    Tuple,
    /// What lazy filters give: it has no length and is always true.
    Generator,
    /// `dict_keys`, `dict_values` or `dict_items`.
    View(&'static str),
}

/// A list, a tuple, or what iterates like one.
#[derive(Debug)]
pub(super) struct Seq {
    pub(super) items: Vec<Value>,
    pub(super) kind: SeqKind,
    depth: u16,
}

impl Object for Seq {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.items.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.items.len())
    }

    fn is_true(self: &Arc<Self>) -> bool {
        self.kind == SeqKind::Generator || !self.items.is_empty()
    }
}

/// A dict, in insertion order.
#[derive(Debug)]
pub(super) struct Dict {
    pub(super) map: IndexMap<Value, Value>,
    depth: u16,
}

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.map.get(key).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.map.keys().cloned().collect())
    }
}

/// A method taken off its object without being called, as `x.items`.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) receiver: Value,
    pub(super) method: String,
}

impl Object for Bound {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut minijinja::State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        super::methods::call(state, &self.receiver, &self.method, args)
    }
}

/// A value as Python sees it.
#[derive(Clone, Copy)]
pub(super) enum Py<'a> {
    Undefined,
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(&'a str),
    Seq(&'a Seq),
    Dict(&'a Dict),
    /// A namespace, a macro, a loop, a function.
    Other(&'a Value),
}

impl<'a> Py<'a> {
    pub(super) fn of(value: &'a Value) -> Self {
        use minijinja::value::ValueKind;
        match value.kind() {
            ValueKind::Undefined => Py::Undefined,
            ValueKind::None => Py::None,
            ValueKind::Bool => Py::Bool(value.is_true()),
            ValueKind::Number if value.is_integer() => {
                i128::try_from(value.clone()).map_or(Py::Other(value), Py::Int)
            }
            ValueKind::Number => f64::try_from(value.clone()).map_or(Py::Other(value), Py::Float),
            _ => {
                if let Some(text) = value.as_str() {
                    Py::Str(text)
                } else if let Some(seq) = value.downcast_object_ref::<Seq>() {
                    Py::Seq(seq)
                } else if let Some(dict) = value.downcast_object_ref::<Dict>() {
                    Py::Dict(dict)
                } else {
                    Py::Other(value)
                }
            }
        }
    }

    /// Returns the name of the value's Python type.
    pub(super) fn type_name(self) -> &'static str {
        match self {
            Py::Undefined => "Undefined",
            Py::None => "NoneType",
            Py::Bool(_) => "bool",
            Py::Int(_) => "int",
            Py::Float(_) => "float",
            Py::Str(_) => "str",
            Py::Seq(seq) => match seq.kind {
                SeqKind::List => "list",
                SeqKind::Tuple => "tuple",
                SeqKind::Generator => "generator",
                SeqKind::View(name) => name,
            },
            Py::Dict(_) => "dict",
            Py::Other(_) => "object",
        }
    }

    /// Returns the integer that an int or a bool is.
    pub(super) fn as_int(self) -> Option<i128> {
        match self {
            Py::Int(int) => Some(int),
            Py::Bool(bool) => Some(bool.into()),
            _ => None,
        }
    }

    pub(super) fn as_float(self) -> Option<f64> {
        match self {
            Py::Float(float) => Some(float),
            other => other.as_int().map(|int| int as f64),
        }
    }
}

/// Returns the depth of a value that goes into a container; errors for what must not.
fn depth_of(value: &Value) -> Result<u16, Error> {
    match Py::of(value) {
        Py::Seq(seq) => Ok(seq.depth),
        Py::Dict(dict) => Ok(dict.depth),
        // A namespace can change later, and so hold itself.
        Py::Other(value) if value.downcast_object_ref::<Bound>().is_none() => {
            Err(Fault::Unsupported("a container of namespaces, macros or functions".into()).into())
        }
        _ => Ok(0),
    }
}

fn deeper(deepest: u16) -> Result<u16, Error> {
    match deepest < MAX_DEPTH {
        true => Ok(deepest + 1),
        false => Err(Fault::Limit(format!("containers nest deeper than {MAX_DEPTH}")).into()),
    }
}

/// Returns the items as a Python sequence; errors if it would nest too deep.
pub(super) fn seq(meter: &Meter, kind: SeqKind, items: Vec<Value>) -> Result<Value, Error> {
    meter.charge(items.len() * size_of::<Value>() + 1)?;
    let mut deepest = 0;
    for item in &items {
        deepest = deepest.max(depth_of(item)?);
    }
    Ok(Value::from_object(Seq { items, kind, depth: deeper(deepest)? }))
}

pub(super) fn list(meter: &Meter, items: Vec<Value>) -> Result<Value, Error> {
    seq(meter, SeqKind::List, items)
}

/// Returns the pairs as a dict; of equal keys the last value stays, at the place of the first.
pub(super) fn dict(meter: &Meter, pairs: impl IntoIterator<Item = (Value, Value)>) -> Result<Value, Error> {
    let mut map = IndexMap::new();
    let mut deepest = 0;
    for (key, value) in pairs {
        if matches!(Py::of(&key), Py::Seq(_) | Py::Dict(_) | Py::Other(_) | Py::Undefined) {
            return type_error(format!("unhashable type: '{}'", Py::of(&key).type_name()));
        }
        deepest = deepest.max(depth_of(&value)?);
        meter.charge(2 * size_of::<Value>() + 8)?;
        map.insert(key, value);
    }
    Ok(Value::from_object(Dict { map, depth: deeper(deepest)? }))
}

/// Returns a JSON value as the template sees it.
pub(super) fn from_json(json: &Json) -> Result<Value, Error> {
    from_json_at(json, 0)
}

fn from_json_at(json: &Json, level: u16) -> Result<Value, Error> {
    if level > MAX_DEPTH / 2 {
        return Err(Fault::Limit(format!("its input nests deeper than {}", MAX_DEPTH / 2)).into());
    }
    Ok(match json {
        Json::Null => Value::from(()),
        Json::Bool(bool) => Value::from(*bool),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Value::from(int),
            (None, Some(int)) => Value::from(int),
            _ => beyond_64_bits(&number.to_string()),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => {
            let items =
                items.iter().map(|item| from_json_at(item, level + 1)).collect::<Result<Vec<_>, _>>()?;
            let depth = deepest(&items)?;
            Value::from_object(Seq { items, kind: SeqKind::List, depth })
        }
        Json::Object(map) => {
            let mut out = IndexMap::with_capacity(map.len());
            let mut deepest = 0;
            for (key, value) in map {
                let value = from_json_at(value, level + 1)?;
                deepest = deepest.max(depth_of(&value)?);
                out.insert(Value::from(key.as_str()), value);
            }
            Value::from_object(Dict { map: out, depth: deepest + 1 })
        }
    })
}

/// Returns the number that Python reads of a float's or a long integer's digits.
fn beyond_64_bits(digits: &str) -> Value {
    match digits.parse::<i128>() {
        Ok(int) => Value::from(int),
        Err(_) => Value::from(digits.parse::<f64>().unwrap_or(f64::NAN)),
    }
}

fn deepest(items: &[Value]) -> Result<u16, Error> {
    let mut deepest = 0;
    for item in items {
        deepest = deepest.max(depth_of(item)?);
    }
    Ok(deepest + 1)
}

/// Appends `str(value)`.
pub(super) fn write_str(out: &mut Text, value: &Value) -> Result<(), Error> {
    match Py::of(value) {
        Py::Undefined => Ok(()),
        Py::Str(text) => out.push(text),
        _ => write_repr(out, value),
    }
}

/// Returns `str(value)`.
pub(super) fn to_str(meter: &Meter, value: &Value) -> Result<String, Error> {
    let mut out = Text::new(meter);
    write_str(&mut out, value)?;
    Ok(out.finish())
}

/// Appends `repr(value)`.
pub(super) fn write_repr(out: &mut Text, value: &Value) -> Result<(), Error> {
    match Py::of(value) {
        Py::Undefined => out.push("Undefined"),
        Py::None => out.push("None"),
        Py::Bool(true) => out.push("True"),
        Py::Bool(false) => out.push("False"),
        Py::Int(int) => out.push(&int.to_string()),
        Py::Float(float) => out.push(&float_repr(float)),
        Py::Str(text) => out.push(&str_repr(text)),
        Py::Seq(seq) => write_seq_repr(out, seq),
        Py::Dict(dict) => {
            out.push("{")?;
            for (index, (key, value)) in dict.map.iter().enumerate() {
                out.push(if index == 0 { "" } else { ", " })?;
                write_repr(out, key)?;
                out.push(": ")?;
                write_repr(out, value)?;
            }
            out.push("}")
        }
        Py::Other(_) => Err(Fault::Unsupported("printing a namespace, a macro or a function".into()).into()),
    }
}

fn write_seq_repr(out: &mut Text, seq: &Seq) -> Result<(), Error> {
    let (open, close) = match seq.kind {
        SeqKind::List => ("[".to_owned(), "]"),
        SeqKind::Tuple if seq.items.len() == 1 => ("(".to_owned(), ",)"),
        SeqKind::Tuple => ("(".to_owned(), ")"),
        SeqKind::View(name) => (format!("{name}(["), "])"),
        // Python prints the generator's address in memory.
        SeqKind::Generator => {
            return Err(Fault::Unsupported("printing a generator: put `| list` behind it".into()).into());
        }
    };
    out.push(&open)?;
    for (index, item) in seq.items.iter().enumerate() {
        out.push(if index == 0 { "" } else { ", " })?;
        write_repr(out, item)?;
    }
    out.push(close)
}

/// Returns Python's `repr` of a float: the shortest digits that read back the same, with an exponent
/// below 1e-4 and from 1e16.
pub(super) fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{value}");
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

/// Returns Python's `repr` of a string.
pub(super) fn str_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => match u32::from(c) {
                code @ ..=0xff => out.push_str(&format!("\\x{code:02x}")),
                code @ ..=0xffff => out.push_str(&format!("\\u{code:04x}")),
                code => out.push_str(&format!("\\U{code:08x}")),
            },
        }
    }
    out.push(quote);
    out
}

/// What `repr` leaves as it is: no control, no format or private character, no space but U+0020.
fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    let is_format = matches!(c,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e000}'..='\u{f8ff}' | '\u{e0001}'..='\u{e007f}' | '\u{f0000}'..='\u{10ffff}');
    !is_format && !c.is_control() && !c.is_whitespace()
}

/// Python's white space: Unicode's and the four information separators.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Returns the text as a string, or as one that is marked safe (`Markup`), which escapes what is added to it.
pub(super) fn marked(text: String, is_safe: bool) -> Value {
    if is_safe { Value::from_safe_string(text) } else { text.into() }
}

/// Returns the string with the characters that HTML gives a meaning escaped.
pub(super) fn escaped(meter: &Meter, text: &str) -> Result<String, Error> {
    meter.charge(text.len().saturating_mul(6))?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    Ok(out)
}

/// Returns `a == b`.
pub(super) fn equal(meter: &Meter, a: &Value, b: &Value) -> Result<bool, Error> {
    meter.charge(16)?;
    Ok(match (Py::of(a), Py::of(b)) {
        (Py::Undefined, Py::Undefined) | (Py::None, Py::None) => true,
        (Py::Str(a), Py::Str(b)) => {
            meter.charge(a.len().min(b.len()))?;
            a == b
        }
        (Py::Seq(a), Py::Seq(b)) => {
            if a.kind != b.kind || a.items.len() != b.items.len() {
                return Ok(false);
            }
            for (a, b) in a.items.iter().zip(&b.items) {
                if !equal(meter, a, b)? {
                    return Ok(false);
                }
            }
            true
        }
        (Py::Dict(a), Py::Dict(b)) => {
            if a.map.len() != b.map.len() {
                return Ok(false);
            }
            for (key, value) in &a.map {
                match b.map.get(key) {
                    Some(other) if equal(meter, value, other)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (a, b) => numbers_in_order(a, b) == Some(Some(Ordering::Equal)),
    })
}

/// Returns the order of two numbers (`Some(None)` if one is not a number at all), or `None` for other types.
fn numbers_in_order(a: Py, b: Py) -> Option<Option<Ordering>> {
    if let (Some(a), Some(b)) = (a.as_int(), b.as_int()) {
        return Some(Some(a.cmp(&b)));
    }
    Some(a.as_float()?.partial_cmp(&b.as_float()?))
}

/// Returns the order of `a` and `b`, `None` if neither is before the other (NaN); `op` is for the message.
///
/// Errors for types that Python does not order.
pub(super) fn order(meter: &Meter, op: &str, a: &Value, b: &Value) -> Result<Option<Ordering>, Error> {
    meter.charge(16)?;
    match (Py::of(a), Py::of(b)) {
        (Py::Str(a), Py::Str(b)) => {
            meter.charge(a.len().min(b.len()))?;
            Ok(Some(a.cmp(b)))
        }
        (Py::Seq(x), Py::Seq(y)) if x.kind == y.kind && matches!(x.kind, SeqKind::List | SeqKind::Tuple) => {
            for (a, b) in x.items.iter().zip(&y.items) {
                if !equal(meter, a, b)? {
                    return order(meter, op, a, b);
                }
            }
            Ok(Some(x.items.len().cmp(&y.items.len())))
        }
        (Py::Undefined, _) | (_, Py::Undefined) => Err(undefined()),
        (x, y) => match numbers_in_order(x, y) {
            Some(order) => Ok(order),
            None => type_error(format!(
                "'{op}' not supported between instances of '{}' and '{}'",
                x.type_name(),
                y.type_name()
            )),
        },
    }
}

/// The error of using an undefined value.
pub(super) fn undefined() -> Error {
    Fault::Undefined("a value that is undefined is used".into()).into()
}

/// Returns the dict without the item of that name, so that only its methods are found.
pub(super) fn without_item(dict: &Dict, name: &str) -> Result<Value, Error> {
    let mut map = dict.map.clone();
    map.shift_remove(&Value::from(name));
    Ok(Value::from_object(Dict { map, depth: dict.depth }))
}

//! Python's operators, as functions that the rewritten template calls.

use std::cmp::Ordering;

use minijinja::{Error, Value};

use super::error::{Fault, type_error};
use super::format::percent;
use super::meter::{Meter, Text};
use super::methods;
use super::value::{
    Bound, Py, Seq, SeqKind, dict, equal, escaped, list, marked, order, seq, undefined, write_str,
};

/// A function of the rewritten template: the rendering's account and the arguments.
pub(super) type Operator = fn(&Meter, &[Value]) -> Result<Value, Error>;

/// Every operator by the name that the rewriter gives it.
pub(super) const OPERATORS: &[(&str, Operator)] = &[
    ("__concat", concat),
    ("__add", |meter, args| fold(meter, args, add)),
    ("__sub", |_, args| arithmetic("-", &args[0], &args[1], i128::checked_sub, |a, b| a - b)),
    ("__mul", |meter, args| mul(meter, &args[0], &args[1])),
    ("__div", |_, args| div(&args[0], &args[1])),
    ("__floordiv", |_, args| floor_div(&args[0], &args[1])),
    ("__mod", |meter, args| modulo(meter, &args[0], &args[1])),
    ("__pow", |_, args| power(&args[0], &args[1])),
    ("__neg", |_, args| negate(&args[0])),
    ("__pos", |_, args| arithmetic("+", &Value::from(0), &args[0], i128::checked_add, |a, b| a + b)),
    ("__eq", |meter, args| Ok(equal(meter, &args[0], &args[1])?.into())),
    ("__ne", |meter, args| Ok((!equal(meter, &args[0], &args[1])?).into())),
    ("__lt", |meter, args| compare(meter, "<", args, Ordering::is_lt)),
    ("__le", |meter, args| compare(meter, "<=", args, Ordering::is_le)),
    ("__gt", |meter, args| compare(meter, ">", args, Ordering::is_gt)),
    ("__ge", |meter, args| compare(meter, ">=", args, Ordering::is_ge)),
    ("__in", |meter, args| Ok(contains(meter, &args[1], &args[0])?.into())),
    ("__notin", |meter, args| Ok((!contains(meter, &args[1], &args[0])?).into())),
    ("__item", |meter, args| {
        meter.charge(args[0].as_str().map_or(0, str::len))?;
        item(&args[0], &args[1])
    }),
    ("__attr", |_, args| attribute(&args[0], args[1].as_str().unwrap_or_default())),
    ("__slice", slice),
    ("__list", |meter, args| list(meter, args.to_vec())),
    ("__tuple", |meter, args| seq(meter, SeqKind::Tuple, args.to_vec())),
    ("__dict", |meter, args| {
        dict(meter, args.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())))
    }),
    ("__iter", |meter, args| {
        meter.charge(args[0].as_str().map_or(0, str::len))?;
        iterable(&args[0])
    }),
    ("__store", |_, args| stored(&args[0])),
    ("__private", |_, args| {
        let name = args[0].as_str().unwrap_or_default();
        Err(Fault::Security(format!("a namespace cannot hold an attribute named '{name}'")).into())
    }),
];

fn fold(
    meter: &Meter,
    args: &[Value],
    op: fn(&Meter, &Value, &Value) -> Result<Value, Error>,
) -> Result<Value, Error> {
    let mut sum = args[0].clone();
    for arg in &args[1..] {
        sum = op(meter, &sum, arg)?;
    }
    Ok(sum)
}

/// `a ~ b ~ …`: the strings of all, joined.
fn concat(meter: &Meter, args: &[Value]) -> Result<Value, Error> {
    let mut out = Text::new(meter);
    for arg in args {
        write_str(&mut out, arg)?;
    }
    Ok(out.finish().into())
}

fn unsupported<T>(op: &str, a: Py, b: Py) -> Result<T, Error> {
    if matches!(a, Py::Undefined) || matches!(b, Py::Undefined) {
        return Err(undefined());
    }
    type_error(format!("unsupported operand type(s) for {op}: '{}' and '{}'", a.type_name(), b.type_name()))
}

fn too_large<T>() -> Result<T, Error> {
    Err(Fault::Limit("an integer beyond 127 bits".into()).into())
}

fn int(value: i128) -> Value {
    match i64::try_from(value) {
        Ok(small) => small.into(),
        Err(_) => value.into(),
    }
}

fn arithmetic(
    op: &str,
    a: &Value,
    b: &Value,
    ints: fn(i128, i128) -> Option<i128>,
    floats: fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    let (a, b) = (Py::of(a), Py::of(b));
    if let (Some(a), Some(b)) = (a.as_int(), b.as_int()) {
        return ints(a, b).map_or_else(too_large, |sum| Ok(int(sum)));
    }
    match (a.as_float(), b.as_float()) {
        (Some(a), Some(b)) => Ok(floats(a, b).into()),
        _ => unsupported(op, a, b),
    }
}

pub(super) fn add(meter: &Meter, a: &Value, b: &Value) -> Result<Value, Error> {
    match (Py::of(a), Py::of(b)) {
        (Py::Str(x), Py::Str(y)) => {
            meter.charge(x.len() + y.len())?;
            Ok(match (a.is_safe(), b.is_safe()) {
                (true, false) => marked(x.to_owned() + &escaped(meter, y)?, true),
                (false, true) => marked(escaped(meter, x)? + y, true),
                (is_safe, _) => marked([x, y].concat(), is_safe),
            })
        }
        (Py::Seq(x), Py::Seq(y)) if x.kind == y.kind && matches!(x.kind, SeqKind::List | SeqKind::Tuple) => {
            meter.charge((x.items.len() + y.items.len()) * size_of::<Value>())?;
            seq(meter, x.kind, x.items.iter().chain(&y.items).cloned().collect())
        }
        (Py::Str(_), other) if !matches!(other, Py::Undefined) => {
            type_error(format!("can only concatenate str (not \"{}\") to str", other.type_name()))
        }
        (Py::Seq(x), other) if x.kind == SeqKind::List && !matches!(other, Py::Undefined) => {
            type_error(format!("can only concatenate list (not \"{}\") to list", other.type_name()))
        }
        _ => arithmetic("+", a, b, i128::checked_add, |a, b| a + b),
    }
}

fn mul(meter: &Meter, a: &Value, b: &Value) -> Result<Value, Error> {
    let repeated = |text: &str, count: i128| {
        let mut out = Text::new(meter);
        out.repeat(text, count)?;
        Ok(marked(out.finish(), a.is_safe() || b.is_safe()))
    };
    match (Py::of(a), Py::of(b)) {
        (Py::Str(text), count) | (count, Py::Str(text)) => match count.as_int() {
            Some(count) => repeated(text, count),
            None if matches!(count, Py::Undefined) => Err(undefined()),
            None => type_error(format!("can't multiply sequence by non-int of type '{}'", count.type_name())),
        },
        (Py::Seq(items), count) | (count, Py::Seq(items)) if count.as_int().is_some() => {
            let count = usize::try_from(count.as_int().unwrap_or(0).max(0)).unwrap_or(usize::MAX);
            meter.charge(items.items.len().saturating_mul(count).saturating_mul(size_of::<Value>()))?;
            {
                let n = items.items.len() * count; // charged for
                seq(meter, items.kind, items.items.iter().cycle().take(n).cloned().collect())
            }
        }
        _ => arithmetic("*", a, b, i128::checked_mul, |a, b| a * b),
    }
}

fn zero_division<T>(what: &str) -> Result<T, Error> {
    type_error(what)
}

fn div(a: &Value, b: &Value) -> Result<Value, Error> {
    match (Py::of(a).as_float(), Py::of(b).as_float()) {
        (Some(_), Some(0.0)) => zero_division("division by zero"),
        (Some(a), Some(b)) => Ok((a / b).into()),
        _ => unsupported("/", Py::of(a), Py::of(b)),
    }
}

/// Returns quotient and remainder, the remainder with the divisor's sign.
fn floor_div_rem(a: i128, b: i128) -> Option<(i128, i128)> {
    let (quotient, remainder) = (a.checked_div(b)?, a.checked_rem(b)?);
    match remainder != 0 && (remainder < 0) != (b < 0) {
        true => Some((quotient - 1, remainder + b)),
        false => Some((quotient, remainder)),
    }
}

fn floor_div(a: &Value, b: &Value) -> Result<Value, Error> {
    let (x, y) = (Py::of(a), Py::of(b));
    match (x.as_int(), y.as_int()) {
        (Some(_), Some(0)) => zero_division("integer division or modulo by zero"),
        (Some(x), Some(y)) => floor_div_rem(x, y).map_or_else(too_large, |(quotient, _)| Ok(int(quotient))),
        _ if y.as_float() == Some(0.0) && x.as_float().is_some() => {
            zero_division("float floor division by zero")
        }
        _ => arithmetic("//", a, b, i128::checked_sub, |a, b| (a / b).floor()),
    }
}

fn modulo(meter: &Meter, a: &Value, b: &Value) -> Result<Value, Error> {
    let (x, y) = (Py::of(a), Py::of(b));
    if let Py::Str(template) = x {
        return Ok(percent(meter, template, b)?.into());
    }
    match (x.as_int(), y.as_int()) {
        (Some(_), Some(0)) => zero_division("integer modulo by zero"),
        (Some(x), Some(y)) => floor_div_rem(x, y).map_or_else(too_large, |(_, remainder)| Ok(int(remainder))),
        _ if y.as_float() == Some(0.0) && x.as_float().is_some() => zero_division("float modulo"),
        _ => arithmetic("%", a, b, i128::checked_sub, |a, b| a - b * (a / b).floor()),
    }
}

fn power(a: &Value, b: &Value) -> Result<Value, Error> {
    let (x, y) = (Py::of(a), Py::of(b));
    match (x.as_int(), y.as_int()) {
        (Some(x), Some(y)) if y >= 0 => {
            let power = u32::try_from(y).ok().and_then(|y| x.checked_pow(y));
            power.map_or_else(too_large, |power| Ok(int(power)))
        }
        _ => match (x.as_float(), y.as_float()) {
            (Some(0.0), Some(y)) if y < 0.0 => zero_division("0.0 cannot be raised to a negative power"),
            (Some(x), Some(y)) => Ok(x.powf(y).into()),
            _ => unsupported("** or pow()", x, y),
        },
    }
}

fn negate(value: &Value) -> Result<Value, Error> {
    match Py::of(value) {
        Py::Float(float) => Ok((-float).into()),
        other => match other.as_int() {
            Some(value) => value.checked_neg().map_or_else(too_large, |negative| Ok(int(negative))),
            None if matches!(other, Py::Undefined) => Err(undefined()),
            None => type_error(format!("bad operand type for unary -: '{}'", other.type_name())),
        },
    }
}

fn compare(meter: &Meter, op: &str, args: &[Value], holds: fn(Ordering) -> bool) -> Result<Value, Error> {
    Ok(order(meter, op, &args[0], &args[1])?.is_some_and(holds).into())
}

/// Returns `value in container`.
pub(super) fn contains(meter: &Meter, container: &Value, value: &Value) -> Result<bool, Error> {
    match (Py::of(container), Py::of(value)) {
        (Py::Str(text), Py::Str(part)) => {
            meter.charge(text.len())?;
            Ok(text.contains(part))
        }
        (Py::Str(_), Py::Undefined) => Err(undefined()),
        (Py::Str(_), other) => {
            type_error(format!("'in <string>' requires string as left operand, not {}", other.type_name()))
        }
        (Py::Seq(seq), _) => {
            for item in &seq.items {
                if equal(meter, item, value)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        (Py::Dict(dict), key) => match key {
            Py::Seq(_) | Py::Dict(_) => type_error(format!("unhashable type: '{}'", key.type_name())),
            _ => Ok(dict.map.contains_key(value)),
        },
        (Py::Undefined, _) => Ok(false),
        (other, _) => type_error(format!("argument of type '{}' is not iterable", other.type_name())),
    }
}

/// Returns `object[key]`: the item, else the attribute of that name, else undefined.
pub(super) fn item(object: &Value, key: &Value) -> Result<Value, Error> {
    let at = |len: usize| {
        let index = Py::of(key).as_int()?;
        usize::try_from(if index < 0 { index + len as i128 } else { index }).ok()
    };
    let found = match Py::of(object) {
        Py::Undefined => return Err(undefined()),
        Py::Str(text) => match at(if text.is_ascii() { text.len() } else { text.chars().count() }) {
            Some(index) => text.chars().nth(index).map(Value::from),
            None => None,
        },
        Py::Seq(Seq { items, kind: SeqKind::List | SeqKind::Tuple, .. }) => {
            at(items.len()).and_then(|index| items.get(index).cloned())
        }
        Py::Dict(dict) => dict.map.get(key).cloned(),
        Py::Other(other) => other.get_item(key).ok().filter(|value| !value.is_undefined()),
        _ => None,
    };
    match (found, key.as_str()) {
        (Some(value), _) => Ok(value),
        (None, Some(name)) => Ok(method_of(object, name).unwrap_or(Value::UNDEFINED)),
        (None, None) => Ok(Value::UNDEFINED),
    }
}

/// Returns `object.name`: the method, else the item of that name, else undefined.
pub(super) fn attribute(object: &Value, name: &str) -> Result<Value, Error> {
    if object.is_undefined() {
        return Err(undefined());
    }
    match method_of(object, name) {
        Some(method) => Ok(method),
        None => object.get_attr(name),
    }
}

/// Returns the bound method of that name.
fn method_of(object: &Value, name: &str) -> Option<Value> {
    // what starts with an underscore is no business of a template's: undefined, as in Jinja's sandbox
    let is_known = methods::names(Py::of(object)).contains(&name);
    is_known.then(|| Value::from_object(Bound { receiver: object.clone(), method: name.to_owned() }))
}

/// `object[start:stop:step]`; the arguments are those four, `none` where left out.
fn slice(meter: &Meter, args: &[Value]) -> Result<Value, Error> {
    let mut bounds = [None; 3];
    for (bound, arg) in bounds.iter_mut().zip(&args[1..]) {
        *bound = match Py::of(arg) {
            Py::None => None,
            other => match other.as_int() {
                Some(int) => Some(int),
                None => {
                    return type_error("slice indices must be integers or None or have an __index__ method");
                }
            },
        };
    }
    if bounds[2] == Some(0) {
        return type_error("slice step cannot be zero");
    }
    match Py::of(&args[0]) {
        Py::Undefined => Err(undefined()),
        Py::Str(text) => {
            meter.charge(text.len())?;
            let chars: Vec<char> = text.chars().collect();
            let picked: String = indices(bounds, chars.len()).map(|index| chars[index]).collect();
            Ok(marked(picked, args[0].is_safe()))
        }
        Py::Seq(Seq { items, kind: kind @ (SeqKind::List | SeqKind::Tuple), .. }) => {
            let picked: Vec<Value> = indices(bounds, items.len()).map(|index| items[index].clone()).collect();
            seq(meter, *kind, picked)
        }
        // a slice is no key of a dict, and nothing else has items
        _ => Ok(Value::UNDEFINED),
    }
}

/// Returns the indexes that Python's slice takes from `len` items; a step is not 0.
fn indices(bounds: [Option<i128>; 3], len: usize) -> impl Iterator<Item = usize> {
    let [start, stop, step] = bounds;
    let (len, step) = (len as i128, step.unwrap_or(1));
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamp = |bound: i128| {
        let bound = if bound < 0 { bound.saturating_add(len) } else { bound };
        bound.clamp(low, high)
    };
    let start = start.map_or(if step > 0 { low } else { high }, clamp);
    let stop = stop.map_or(if step > 0 { high } else { low }, clamp);
    let mut at = start;
    std::iter::from_fn(move || {
        if (step > 0 && at >= stop) || (step < 0 && at <= stop) {
            return None;
        }
        let index = at as usize; // within 0 and len
        at = at.saturating_add(step);
        Some(index)
    })
}

/// Returns what a `for` runs over; errors for what Python does not iterate.
fn iterable(value: &Value) -> Result<Value, Error> {
    match Py::of(value) {
        Py::Undefined | Py::Str(_) | Py::Seq(_) | Py::Dict(_) => Ok(value.clone()),
        other => type_error(format!("'{}' object is not iterable", other.type_name())),
    }
}

/// Returns the value as a namespace may hold it: not a namespace or a macro, which could hold it in turn.
fn stored(value: &Value) -> Result<Value, Error> {
    match Py::of(value) {
        Py::Other(other) if other.downcast_object_ref::<Bound>().is_none() => {
            Err(Fault::Unsupported("a namespace that holds a namespace, a macro or a function".into()).into())
        }
        _ => Ok(value.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picked(start: Option<i128>, stop: Option<i128>, step: Option<i128>, len: usize) -> Vec<usize> {
        indices([start, stop, step], len).collect()
    }

    #[test]
    fn slices_are_pythons() {
        // range(5)[...] in Python 3
        assert_eq!(picked(None, None, Some(-1), 5), [4, 3, 2, 1, 0]);
        assert_eq!(picked(Some(-2), None, None, 5), [3, 4]);
        assert_eq!(picked(None, Some(-10), None, 5), [] as [usize; 0]);
        assert_eq!(picked(Some(10), Some(0), Some(-2), 5), [4, 2]);
        assert_eq!(picked(Some(1), Some(i128::MAX), Some(3), 5), [1, 4]);
        assert_eq!(picked(Some(-1), Some(-1), Some(-1), 0), [] as [usize; 0]);
        assert_eq!(picked(Some(i128::MIN), Some(2), Some(1), 5), [0, 1]);
    }
}

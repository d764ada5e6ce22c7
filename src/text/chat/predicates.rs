//! Jinja's tests (`x is string`).

use std::cmp::Ordering;

use minijinja::{Error, Value};

use super::arguments::bind;
use super::error::type_error;
use super::meter::Meter;
use super::operators::contains;
use super::strings;
use super::value::{Bound, Py, SeqKind, equal, order, to_str, undefined};

type Predicate = fn(&Meter, &Value, &[Value]) -> Result<bool, Error>;

/// Every test by name.
pub(super) const PREDICATES: &[(&str, Predicate)] = &[
    ("boolean", |_, value, _| Ok(matches!(Py::of(value), Py::Bool(_)))),
    ("callable", |_, value, _| {
        let is_bound = value.downcast_object_ref::<Bound>().is_some();
        Ok(is_bound || matches!(Py::of(value), Py::Other(_) | Py::Undefined))
    }),
    ("defined", |_, value, _| Ok(!value.is_undefined())),
    ("divisibleby", |_, value, args| {
        let divisor = argument("divisibleby", args)?;
        match (Py::of(value).as_int(), Py::of(&divisor).as_int()) {
            (Some(value), Some(divisor)) if divisor != 0 => Ok(value.checked_rem(divisor).unwrap_or(0) == 0),
            _ => type_error("divisibleby needs two integers, the second not 0"),
        }
    }),
    ("escaped", |_, _, _| Ok(false)),
    ("even", |_, value, _| Ok(integer(value)? % 2 == 0)),
    ("odd", |_, value, _| Ok(integer(value)? % 2 != 0)),
    ("false", |_, value, _| Ok(matches!(Py::of(value), Py::Bool(false)))),
    ("true", |_, value, _| Ok(matches!(Py::of(value), Py::Bool(true)))),
    ("filter", |_, value, _| Ok(value.as_str().is_some_and(|name| super::filters::by_name(name).is_some()))),
    ("float", |_, value, _| Ok(matches!(Py::of(value), Py::Float(_)))),
    ("in", |meter, value, args| contains(meter, &argument("in", args)?, value)),
    ("integer", |_, value, _| Ok(matches!(Py::of(value), Py::Int(_)))),
    ("iterable", |_, value, _| {
        Ok(matches!(Py::of(value), Py::Undefined | Py::Str(_) | Py::Seq(_) | Py::Dict(_)))
    }),
    ("lower", |meter, value, _| Ok(is_case(&to_str(meter, value)?, "islower"))),
    ("upper", |meter, value, _| Ok(is_case(&to_str(meter, value)?, "isupper"))),
    ("mapping", |_, value, _| Ok(matches!(Py::of(value), Py::Dict(_)))),
    ("none", |_, value, _| Ok(value.is_none())),
    ("number", |_, value, _| Ok(matches!(Py::of(value), Py::Bool(_) | Py::Int(_) | Py::Float(_)))),
    ("sameas", |meter, value, args| {
        let other = argument("sameas", args)?;
        Ok(Py::of(value).type_name() == Py::of(&other).type_name() && equal(meter, value, &other)?)
    }),
    ("sequence", |_, value, _| {
        Ok(match Py::of(value) {
            Py::Str(_) | Py::Dict(_) | Py::Undefined => true,
            Py::Seq(seq) => matches!(seq.kind, SeqKind::List | SeqKind::Tuple),
            _ => false,
        })
    }),
    ("string", |_, value, _| Ok(matches!(Py::of(value), Py::Str(_)))),
    ("test", |_, value, _| Ok(value.as_str().is_some_and(|name| by_name(name).is_some()))),
    ("undefined", |_, value, _| Ok(value.is_undefined())),
    ("==", equals),
    ("eq", equals),
    ("equalto", equals),
    ("!=", |meter, value, args| Ok(!equals(meter, value, args)?)),
    ("ne", |meter, value, args| Ok(!equals(meter, value, args)?)),
    (">", |meter, value, args| ordered(meter, value, args, Ordering::is_gt)),
    ("gt", |meter, value, args| ordered(meter, value, args, Ordering::is_gt)),
    ("greaterthan", |meter, value, args| ordered(meter, value, args, Ordering::is_gt)),
    (">=", |meter, value, args| ordered(meter, value, args, Ordering::is_ge)),
    ("ge", |meter, value, args| ordered(meter, value, args, Ordering::is_ge)),
    ("<", |meter, value, args| ordered(meter, value, args, Ordering::is_lt)),
    ("lt", |meter, value, args| ordered(meter, value, args, Ordering::is_lt)),
    ("lessthan", |meter, value, args| ordered(meter, value, args, Ordering::is_lt)),
    ("<=", |meter, value, args| ordered(meter, value, args, Ordering::is_le)),
    ("le", |meter, value, args| ordered(meter, value, args, Ordering::is_le)),
];

/// Returns the test of that name.
pub(super) fn by_name(name: &str) -> Option<Predicate> {
    PREDICATES.iter().find(|(known, _)| *known == name).map(|(_, predicate)| *predicate)
}

/// Returns whether the value passes the test that `args` name, with the test's own arguments behind the
/// name; without a name, whether it is true.
pub(super) fn holds(meter: &Meter, value: &Value, args: &[Value]) -> Result<bool, Error> {
    meter.charge(1)?;
    let Some((name, args)) = args.split_first() else { return Ok(value.is_true()) };
    let name = name.as_str().unwrap_or_default();
    match by_name(name) {
        Some(predicate) => predicate(meter, value, args),
        None => type_error(format!("No test named '{name}'.")),
    }
}

fn argument(what: &str, args: &[Value]) -> Result<Value, Error> {
    let [other] = bind(what, ["other"], args)?;
    other.map_or_else(|| type_error(format!("{what}: an argument is missing")), Ok)
}

fn equals(meter: &Meter, value: &Value, args: &[Value]) -> Result<bool, Error> {
    equal(meter, value, &argument("equalto", args)?)
}

fn ordered(meter: &Meter, value: &Value, args: &[Value], holds: fn(Ordering) -> bool) -> Result<bool, Error> {
    Ok(order(meter, "<", value, &argument("lessthan", args)?)?.is_some_and(holds))
}

fn integer(value: &Value) -> Result<i128, Error> {
    match Py::of(value) {
        Py::Undefined => Err(undefined()),
        other => other.as_int().map_or_else(
            || type_error(format!("unsupported operand type(s) for %: '{}' and 'int'", other.type_name())),
            Ok,
        ),
    }
}

fn is_case(text: &str, method: &str) -> bool {
    strings::predicate(method).is_some_and(|holds| holds(text))
}

//! Filters of lists: sorting, choosing, grouping, cutting.

use std::cmp::Ordering;

use minijinja::{Error, Value};

use super::super::arguments::{Arguments, bind, items, split_keywords};
use super::super::error::{Fault, type_error};
use super::super::meter::Meter;
use super::super::operators::{add, item};
use super::super::value::{Py, Seq, SeqKind, equal, list, order, seq, to_str, undefined};
use super::super::{methods, predicates};
use super::{by_name, pairs};

/// Returns the text of strings in small letters: what sorting compares unless it is case-sensitive.
fn folded(value: Value) -> Value {
    value.as_str().map(|text| Value::from(text.to_lowercase())).unwrap_or(value)
}

/// Returns the items in the order of their keys; equal keys keep their order, reversed or not.
fn sorted(meter: &Meter, keyed: Vec<(Value, Value)>, reverse: bool) -> Result<Vec<Value>, Error> {
    let mut keyed = keyed;
    let mut failure = None;
    keyed.sort_by(|(a, _), (b, _)| {
        let (a, b) = if reverse { (b, a) } else { (a, b) };
        match order(meter, "<", a, b) {
            Ok(order) => order.unwrap_or(Ordering::Equal),
            Err(error) => {
                failure.get_or_insert(error);
                Ordering::Equal
            }
        }
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(keyed.into_iter().map(|(_, item)| item).collect()),
    }
}

pub(super) fn dictsort(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [case_sensitive, by, reverse] = bind("dictsort", ["case_sensitive", "by", "reverse"], args)?;
    let is_true = |value: &Option<Value>| value.as_ref().is_some_and(Value::is_true);
    let by_value = match Arguments("dictsort").text_or_none(&by)? {
        None | Some("key") => false,
        Some("value") => true,
        Some(_) => return type_error("You can only sort by either \"key\" or \"value\""),
    };
    let dict = match Py::of(value) {
        Py::Dict(dict) => dict,
        Py::Undefined => return Err(undefined()),
        other => return type_error(format!("'{}' object has no attribute 'items'", other.type_name())),
    };
    let mut keyed = Vec::with_capacity(dict.map.len());
    for (pair, (key, value)) in pairs(meter, dict)?.into_iter().zip(&dict.map) {
        let key = if by_value { value } else { key }.clone();
        keyed.push((if is_true(&case_sensitive) { key } else { folded(key) }, pair));
    }
    list(meter, sorted(meter, keyed, is_true(&reverse))?)
}

/// Follows `a.b.0` from an item; a missing last step gives `default`.
fn getter(value: &Value, path: &Value, default: Option<&Value>) -> Result<Value, Error> {
    let mut found = value.clone();
    let by_index = path.as_str().is_none();
    let parts: Vec<Value> = match path.as_str() {
        Some(path) => {
            path.split('.').map(|part| part.parse::<i64>().map_or(Value::from(part), Value::from)).collect()
        }
        None => vec![path.clone()],
    };
    if by_index && Py::of(path).as_int().is_none() {
        return type_error("an attribute is named by a string or an integer");
    }
    for part in parts {
        found = item(&found, &part)?;
        if found.is_undefined()
            && let Some(default) = default
        {
            found = default.clone();
        }
    }
    Ok(found)
}

/// Pairs every item with what it is compared by.
fn keyed(
    meter: &Meter,
    value: &Value,
    attribute: Option<&Value>,
    case_sensitive: bool,
) -> Result<Vec<(Value, Value)>, Error> {
    let mut keyed = Vec::new();
    for item in items(meter, value)? {
        let key = match attribute.filter(|attribute| !attribute.is_none()) {
            Some(attribute) => getter(&item, attribute, None)?,
            None => item.clone(),
        };
        keyed.push((if case_sensitive { key } else { folded(key) }, item));
    }
    Ok(keyed)
}

pub(super) fn sort(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [reverse, case_sensitive, attribute] =
        bind("sort", ["reverse", "case_sensitive", "attribute"], args)?;
    let is_true = |value: &Option<Value>| value.as_ref().is_some_and(Value::is_true);
    if attribute.as_ref().and_then(Value::as_str).is_some_and(|attribute| attribute.contains(',')) {
        return Err(Fault::Unsupported("sorting by several attributes".into()).into());
    }
    let keyed = keyed(meter, value, attribute.as_ref(), is_true(&case_sensitive))?;
    list(meter, sorted(meter, keyed, is_true(&reverse))?)
}

pub(super) fn extreme(
    meter: &Meter,
    value: &Value,
    args: &[Value],
    wanted: Ordering,
) -> Result<Value, Error> {
    let [case_sensitive, attribute] = bind("min", ["case_sensitive", "attribute"], args)?;
    let case_sensitive = case_sensitive.is_some_and(|value| value.is_true());
    let mut best: Option<(Value, Value)> = None;
    for (key, item) in keyed(meter, value, attribute.as_ref(), case_sensitive)? {
        let is_better = match &best {
            Some((best, _)) => order(meter, "<", &key, best)? == Some(wanted),
            None => true,
        };
        if is_better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or(Value::UNDEFINED, |(_, item)| item))
}

pub(super) fn unique(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [case_sensitive, attribute] = bind("unique", ["case_sensitive", "attribute"], args)?;
    let case_sensitive = case_sensitive.is_some_and(|value| value.is_true());
    let mut seen: Vec<Value> = Vec::new();
    let mut kept = Vec::new();
    'items: for (key, item) in keyed(meter, value, attribute.as_ref(), case_sensitive)? {
        for known in &seen {
            if equal(meter, known, &key)? {
                continue 'items;
            }
        }
        seen.push(key);
        kept.push(item);
    }
    seq(meter, SeqKind::Generator, kept)
}

pub(super) fn groupby(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [attribute, default, case_sensitive] =
        bind("groupby", ["attribute", "default", "case_sensitive"], args)?;
    let Some(attribute) = attribute else { return type_error("groupby(): the attribute is missing") };
    let case_sensitive = case_sensitive.is_some_and(|value| value.is_true());
    let mut keyed = Vec::new();
    for item in items(meter, value)? {
        let key = getter(&item, &attribute, default.as_ref())?;
        let pair = seq(meter, SeqKind::Tuple, vec![key.clone(), item])?;
        keyed.push((if case_sensitive { key } else { folded(key) }, pair));
    }
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for pair in sorted(meter, keyed, false)? {
        let Py::Seq(Seq { items, .. }) = Py::of(&pair) else { continue };
        let folded_key = if case_sensitive { items[0].clone() } else { folded(items[0].clone()) };
        match groups.last_mut() {
            Some((last, _, group)) if equal(meter, last, &folded_key)? => group.push(items[1].clone()),
            _ => groups.push((folded_key, items[0].clone(), vec![items[1].clone()])),
        }
    }
    let mut out = Vec::with_capacity(groups.len());
    for (_, key, group) in groups {
        out.push(seq(meter, SeqKind::Tuple, vec![key, list(meter, group)?])?);
    }
    list(meter, out)
}

pub(super) fn join(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [separator, attribute] = bind("join", ["d", "attribute"], args)?;
    let mut items = items(meter, value)?;
    if let Some(attribute) = attribute.filter(|attribute| !attribute.is_none()) {
        for item in &mut items {
            *item = getter(item, &attribute, None)?;
        }
    }
    let separator = separator.map_or_else(|| Ok(String::new()), |separator| to_str(meter, &separator))?;
    methods::join(meter, &separator, &items)
}

/// Returns the items of what is true, none of what is false: lazy filters do not look at the latter.
fn items_if_true(meter: &Meter, value: &Value) -> Result<Vec<Value>, Error> {
    if value.is_true() { items(meter, value) } else { Ok(Vec::new()) }
}

pub(super) fn map(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let (positional, keywords) = split_keywords(args)?;
    let mut out = Vec::new();
    if let (None, Some(keywords)) = (positional.first(), &keywords) {
        let default = keywords.peek::<Value>("default").ok();
        let Ok(attribute) = keywords.peek::<Value>("attribute") else {
            return type_error("map requires a filter argument");
        };
        for item in items_if_true(meter, value)? {
            out.push(getter(&item, &attribute, default.as_ref())?);
        }
        return seq(meter, SeqKind::Generator, out);
    }
    let name = Arguments("map").text(&positional.first().cloned())?.to_owned();
    let Some(filter) = by_name(&name) else { return type_error(format!("No filter named '{name}'.")) };
    for item in items_if_true(meter, value)? {
        meter.charge(item.as_str().map_or(1, str::len))?;
        out.push(filter(meter, &item, &args[1..])?);
    }
    seq(meter, SeqKind::Generator, out)
}

pub(super) fn select(meter: &Meter, value: &Value, args: &[Value], keep: bool) -> Result<Value, Error> {
    let mut out = Vec::new();
    for item in items_if_true(meter, value)? {
        if predicates::holds(meter, &item, args)? == keep {
            out.push(item);
        }
    }
    seq(meter, SeqKind::Generator, out)
}

pub(super) fn selectattr(meter: &Meter, value: &Value, args: &[Value], keep: bool) -> Result<Value, Error> {
    let Some((attribute, args)) = args.split_first() else {
        return type_error("Missing parameter for attribute name");
    };
    let mut out = Vec::new();
    for item in items_if_true(meter, value)? {
        if predicates::holds(meter, &getter(&item, attribute, None)?, args)? == keep {
            out.push(item);
        }
    }
    seq(meter, SeqKind::Generator, out)
}

pub(super) fn sum(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [attribute, start] = bind("sum", ["attribute", "start"], args)?;
    let mut sum = start.unwrap_or(Value::from(0));
    for item in items(meter, value)? {
        let item = match attribute.as_ref().filter(|attribute| !attribute.is_none()) {
            Some(attribute) => getter(&item, attribute, None)?,
            None => item,
        };
        sum = add(meter, &sum, &item)?;
    }
    Ok(sum)
}

pub(super) fn batch(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [count, fill] = bind("batch", ["linecount", "fill_with"], args)?;
    let Some(count) = usize::try_from(Arguments("batch").int(&count)?).ok().filter(|count| *count > 0) else {
        return type_error("batch(): expected a positive count");
    };
    let mut rows = Vec::new();
    for chunk in items(meter, value)?.chunks(count) {
        let mut row = chunk.to_vec();
        if let Some(fill) = fill.as_ref().filter(|fill| !fill.is_none()) {
            meter.charge(count.saturating_mul(size_of::<Value>()))?;
            row.resize(count, fill.clone());
        }
        rows.push(list(meter, row)?);
    }
    seq(meter, SeqKind::Generator, rows)
}

pub(super) fn slice(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [count, fill] = bind("slice", ["slices", "fill_with"], args)?;
    let items = items(meter, value)?;
    let count = usize::try_from(Arguments("slice").int(&count)?).unwrap_or(0);
    if count == 0 {
        return type_error("integer division or modulo by zero");
    }
    meter.charge(count.saturating_mul(size_of::<Value>()))?;
    let (each, extra) = (items.len() / count, items.len() % count);
    let (mut start, mut slices) = (0, Vec::with_capacity(count));
    for index in 0..count {
        let end = start + each + usize::from(index < extra);
        let mut slice = items[start..end].to_vec();
        if let Some(fill) = fill.as_ref().filter(|fill| !fill.is_none() && index >= extra) {
            slice.push(fill.clone());
        }
        slices.push(list(meter, slice)?);
        start = end;
    }
    seq(meter, SeqKind::Generator, slices)
}

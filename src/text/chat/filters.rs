//! Jinja's filters.

use std::cmp::Ordering;

use minijinja::{Error, Value};

use super::arguments::{Arguments, bind, items, split_keywords};
use super::error::{Fault, type_error};
use super::format::percent;
use super::json::tojson;
use super::meter::{Meter, Text};
use super::operators::item;
use super::predicates;
use super::strings;
use super::value::{
    Dict, Py, Seq, SeqKind, dict, equal, escaped, list, marked, order, seq, to_str, undefined,
};
use super::{methods, value};

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

fn dictsort(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
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

fn sort(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [reverse, case_sensitive, attribute] =
        bind("sort", ["reverse", "case_sensitive", "attribute"], args)?;
    let is_true = |value: &Option<Value>| value.as_ref().is_some_and(Value::is_true);
    if attribute.as_ref().and_then(Value::as_str).is_some_and(|attribute| attribute.contains(',')) {
        return Err(Fault::Unsupported("sorting by several attributes".into()).into());
    }
    let keyed = keyed(meter, value, attribute.as_ref(), is_true(&case_sensitive))?;
    list(meter, sorted(meter, keyed, is_true(&reverse))?)
}

fn extreme(meter: &Meter, value: &Value, args: &[Value], wanted: Ordering) -> Result<Value, Error> {
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

fn unique(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
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

fn groupby(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
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

fn join(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
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

fn map(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
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

fn select(meter: &Meter, value: &Value, args: &[Value], keep: bool) -> Result<Value, Error> {
    let mut out = Vec::new();
    for item in items_if_true(meter, value)? {
        if predicates::holds(meter, &item, args)? == keep {
            out.push(item);
        }
    }
    seq(meter, SeqKind::Generator, out)
}

fn selectattr(meter: &Meter, value: &Value, args: &[Value], keep: bool) -> Result<Value, Error> {
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

fn sum(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [attribute, start] = bind("sum", ["attribute", "start"], args)?;
    let mut sum = start.unwrap_or(Value::from(0));
    for item in items(meter, value)? {
        let item = match attribute.as_ref().filter(|attribute| !attribute.is_none()) {
            Some(attribute) => getter(&item, attribute, None)?,
            None => item,
        };
        sum = super::operators::add(meter, &sum, &item)?;
    }
    Ok(sum)
}

fn batch(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
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

fn slice(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
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

fn format(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
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

fn indent(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
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

fn truncate(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
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

fn title(text: &str) -> String {
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

fn escape(meter: &Meter, value: &Value) -> Result<Value, Error> {
    match value.is_safe() {
        true => Ok(value.clone()),
        false => Ok(marked(escaped(meter, &to_str(meter, value)?)?, true)),
    }
}

/// Returns the changed text, marked safe if it was.
fn changed(meter: &Meter, value: &Value, change: fn(&str) -> String) -> Result<Value, Error> {
    Ok(marked(change(&to_str(meter, value)?), value.is_safe()))
}

fn urlencode(meter: &Meter, value: &Value) -> Result<Value, Error> {
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

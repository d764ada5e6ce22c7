//! The methods of Python's str, list and dict.

use minijinja::{Error, State, Value};

use super::arguments::{Arguments, bind};
use super::error::{Fault, type_error};
use super::format::braces;
use super::meter::{Meter, Text};
use super::strings;
use super::value::{Dict, Py, Seq, SeqKind, dict, equal, list, marked, seq, undefined, write_str};

/// Methods that change their object, which the sandbox refuses.
const MUTATING: &[&str] = &[
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
];

const DICT: &[&str] =
    &["get", "items", "keys", "values", "copy", "clear", "pop", "popitem", "setdefault", "update"];
const LIST: &[&str] =
    &["index", "count", "copy", "append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
const TUPLE: &[&str] = &["index", "count"];
const STR: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "islower",
    "isnumeric",
    "isspace",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];

/// Every name that is a method of any type: the rewriter looks such attributes up as Python does.
pub(super) fn is_method_of_any(name: &str) -> bool {
    [DICT, LIST, STR].iter().any(|names| names.contains(&name))
}

/// Returns the names of the methods of a value's type.
pub(super) fn names(value: Py) -> &'static [&'static str] {
    match value {
        Py::Dict(_) => DICT,
        Py::Str(_) => STR,
        Py::Seq(Seq { kind: SeqKind::List, .. }) => LIST,
        Py::Seq(Seq { kind: SeqKind::Tuple, .. }) => TUPLE,
        _ => &[],
    }
}

/// Calls `receiver.method(args)`.
pub(super) fn call(state: &State, receiver: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let meter = Meter::of(state)?;
    let value = Py::of(receiver);
    if !names(value).contains(&method) {
        return Err(no_such_method(value, method));
    }
    if !matches!(value, Py::Str(_)) && MUTATING.contains(&method) {
        let what = format!("access to attribute '{method}' of '{}' object is unsafe.", value.type_name());
        return Err(Fault::Security(what).into());
    }
    let texts = args.iter().filter_map(Value::as_str).map(str::len).sum::<usize>();
    meter.charge(texts + 1)?;
    match value {
        Py::Str(text) => {
            meter.charge(text.len())?;
            str_method(&meter, text, receiver.is_safe(), method, args)
        }
        Py::Dict(dict) => dict_method(&meter, dict, method, args),
        Py::Seq(seq) => seq_method(&meter, seq, method, args),
        _ => Err(no_such_method(value, method)),
    }
}

fn no_such_method(value: Py, method: &str) -> Error {
    match value {
        Py::Undefined => undefined(),
        // an attribute that a dict holds is no function
        Py::Dict(dict) if dict.map.contains_key(&Value::from(method)) => {
            Fault::Type(format!("the attribute '{method}' is not callable")).into()
        }
        _ => Fault::Undefined(format!("'{} object' has no attribute '{method}'", value.type_name())).into(),
    }
}

fn dict_method(meter: &Meter, dict_: &Dict, method: &str, args: &[Value]) -> Result<Value, Error> {
    let map = &dict_.map;
    match method {
        "get" => {
            let [key, default] = bind("get", ["key", "default"], args)?;
            let Some(key) = key else { return type_error("get expected at least 1 argument, got 0") };
            if matches!(Py::of(&key), Py::Seq(_) | Py::Dict(_)) {
                return type_error(format!("unhashable type: '{}'", Py::of(&key).type_name()));
            }
            Ok(map.get(&key).cloned().or(default).unwrap_or(Value::from(())))
        }
        "items" => {
            let mut pairs = Vec::with_capacity(map.len());
            for (key, value) in map {
                pairs.push(seq(meter, SeqKind::Tuple, vec![key.clone(), value.clone()])?);
            }
            seq(meter, SeqKind::View("dict_items"), pairs)
        }
        "keys" => seq(meter, SeqKind::View("dict_keys"), map.keys().cloned().collect()),
        "values" => seq(meter, SeqKind::View("dict_values"), map.values().cloned().collect()),
        _ => dict(meter, map.iter().map(|(key, value)| (key.clone(), value.clone()))),
    }
}

fn seq_method(meter: &Meter, seq: &Seq, method: &str, args: &[Value]) -> Result<Value, Error> {
    if method == "copy" {
        return list(meter, seq.items.clone());
    }
    let [wanted] = bind(method, ["value"], args)?;
    let Some(wanted) = wanted else {
        return type_error(format!("{method}() takes exactly one argument (0 given)"));
    };
    let mut count = 0;
    for (index, item) in seq.items.iter().enumerate() {
        if equal(meter, item, &wanted)? {
            if method == "index" {
                return Ok(index.into());
            }
            count += 1;
        }
    }
    match method {
        "index" => type_error("the value is not in the list"),
        _ => Ok(Value::from(count)),
    }
}

/// `is_safe` strings give safe ones.
pub(super) fn str_method(
    meter: &Meter,
    text: &str,
    is_safe: bool,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let value = plain_str_method(meter, text, method, args)?;
    Ok(match value.as_str() {
        Some(text) if is_safe => marked(text.to_owned(), true),
        _ => value,
    })
}

fn plain_str_method(meter: &Meter, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(holds) = strings::predicate(method) {
        let [] = bind(method, [], args)?;
        return Ok(holds(text).into());
    }
    if let Some(change) = strings::change(method) {
        let [] = bind(method, [], args)?;
        return Ok(change(text).into());
    }
    match method {
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = bind(method, ["chars"], args)?;
            let chars = Arguments(method).text_or_none(&chars)?;
            Ok(strings::strip(text, chars, method).into())
        }
        "split" | "rsplit" => split(meter, text, method, args),
        "splitlines" => {
            let [keep] = bind(method, ["keepends"], args)?;
            let keep = keep.is_some_and(|keep| keep.is_true());
            list(meter, strings::lines(text, keep).into_iter().map(Value::from).collect())
        }
        "startswith" | "endswith" => affix(text, method, args),
        "find" | "rfind" | "index" | "rindex" | "count" => search(text, method, args),
        "replace" => {
            let [old, new, count] = bind(method, ["old", "new", "count"], args)?;
            let a = Arguments(method);
            replace(meter, text, a.text(&old)?, a.text(&new)?, a.int_or(&count, -1)?)
        }
        "join" => {
            let [items] = bind(method, ["iterable"], args)?;
            let Some(items) = items else { return type_error("join() takes exactly one argument (0 given)") };
            join_strings(meter, text, &items)
        }
        "removeprefix" | "removesuffix" => {
            let [part] = bind(method, ["part"], args)?;
            let part = Arguments(method).text(&part)?;
            let cut =
                if method == "removeprefix" { text.strip_prefix(part) } else { text.strip_suffix(part) };
            Ok(cut.unwrap_or(text).into())
        }
        "partition" | "rpartition" => {
            let [separator] = bind(method, ["sep"], args)?;
            let separator = Arguments(method).text(&separator)?;
            partition(meter, text, separator, method == "rpartition")
        }
        "center" | "ljust" | "rjust" | "zfill" => pad(meter, text, method, args),
        "format" => Ok(braces(meter, text, args)?.into()),
        _ => Err(no_such_method(Py::Str(text), method)),
    }
}

fn split(meter: &Meter, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let [separator, limit] = bind(method, ["sep", "maxsplit"], args)?;
    let a = Arguments(method);
    let separator = a.text_or_none(&separator)?;
    if separator == Some("") {
        return type_error("empty separator");
    }
    let limit = usize::try_from(a.int_or(&limit, -1)?).unwrap_or(usize::MAX);
    let parts = match separator {
        Some(separator) if method == "split" => text.splitn(limit.saturating_add(1), separator).collect(),
        Some(separator) => {
            let mut parts: Vec<&str> = text.rsplitn(limit.saturating_add(1), separator).collect();
            parts.reverse();
            parts
        }
        None => strings::split_on_space(text, limit, method == "rsplit"),
    };
    meter.charge(parts.len() * size_of::<Value>())?;
    list(meter, parts.into_iter().map(Value::from).collect())
}

/// `startswith` and `endswith`, with one affix or a tuple of them, within `[start:end]`.
fn affix(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let [affix, start, end] = bind(method, ["prefix", "start", "end"], args)?;
    let a = Arguments(method);
    let window = strings::window(text, a.int_or(&start, 0)?, a.int_or(&end, i128::MAX)?);
    let holds = |affix: &str| match window {
        Some((_, part)) if method == "startswith" => part.starts_with(affix),
        Some((_, part)) => part.ends_with(affix),
        None => false,
    };
    match affix.as_ref().map(Py::of) {
        Some(Py::Str(affix)) => Ok(holds(affix).into()),
        Some(Py::Seq(Seq { items, kind: SeqKind::Tuple, .. })) => {
            Ok(items.iter().filter_map(Value::as_str).any(holds).into())
        }
        Some(Py::Undefined) => Err(undefined()),
        other => {
            let name = other.map_or("nothing", Py::type_name);
            type_error(format!("{method} first arg must be str or a tuple of str, not {name}"))
        }
    }
}

fn search(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let [part, start, end] = bind(method, ["sub", "start", "end"], args)?;
    let a = Arguments(method);
    let part = a.text(&part)?;
    let window = strings::window(text, a.int_or(&start, 0)?, a.int_or(&end, i128::MAX)?);
    let Some((offset, window)) = window else {
        return if method == "count" { Ok(0.into()) } else { not_found(method) };
    };
    if method == "count" {
        let count = if part.is_empty() { window.chars().count() + 1 } else { window.matches(part).count() };
        return Ok(count.into());
    }
    let at = if method.starts_with('r') { window.rfind(part) } else { window.find(part) };
    match at {
        Some(at) => Ok((offset + window[..at].chars().count()).into()),
        None => not_found(method),
    }
}

fn not_found(method: &str) -> Result<Value, Error> {
    if method.ends_with("index") { type_error("substring not found") } else { Ok((-1).into()) }
}

/// Returns the text with the first `count` occurrences replaced, all of them if `count` is negative.
pub(super) fn replace(meter: &Meter, text: &str, old: &str, new: &str, count: i128) -> Result<Value, Error> {
    let most = usize::try_from(count).unwrap_or(usize::MAX);
    let n = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() }.min(most);
    meter.charge(text.len().saturating_add(n.saturating_mul(new.len())))?;
    Ok(text.replacen(old, new, n).into())
}

fn join_strings(meter: &Meter, separator: &str, items: &Value) -> Result<Value, Error> {
    let mut out = Text::new(meter);
    let items = super::arguments::items(meter, items)?;
    for (index, item) in items.iter().enumerate() {
        let Py::Str(text) = Py::of(item) else {
            let name = Py::of(item).type_name();
            return type_error(format!("sequence item {index}: expected str instance, {name} found"));
        };
        out.push(if index == 0 { "" } else { separator })?;
        out.push(text)?;
    }
    Ok(out.finish().into())
}

fn partition(meter: &Meter, text: &str, separator: &str, last: bool) -> Result<Value, Error> {
    if separator.is_empty() {
        return type_error("empty separator");
    }
    let found = if last { text.rsplit_once(separator) } else { text.split_once(separator) };
    let parts = match found {
        Some((before, after)) => [before, separator, after],
        None if last => ["", "", text],
        None => [text, "", ""],
    };
    seq(meter, SeqKind::Tuple, parts.map(Value::from).to_vec())
}

fn pad(meter: &Meter, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let [width, fill] = bind(method, ["width", "fillchar"], args)?;
    let a = Arguments(method);
    let fill = a.text_or_none(&fill)?.unwrap_or(if method == "zfill" { "0" } else { " " });
    if fill.chars().count() != 1 {
        return type_error("The fill character must be exactly one character long");
    }
    let missing = a.int(&width)?.saturating_sub(text.chars().count() as i128).max(0);
    let width_is_odd = (missing + text.chars().count() as i128) % 2 == 1;
    let left = match method {
        "ljust" => 0,
        // the odd one goes left where the width is odd
        "center" => missing / 2 + i128::from(missing % 2 == 1 && width_is_odd),
        _ => missing,
    };
    let mut out = Text::new(meter);
    let mut rest = text;
    if method == "zfill" && text.starts_with(['+', '-']) {
        out.push(&text[..1])?;
        rest = &text[1..];
    }
    out.repeat(fill, left)?;
    out.push(rest)?;
    out.repeat(fill, missing - left)?;
    Ok(out.finish().into())
}

/// Returns `str(separator).join(map(str, items))`.
pub(super) fn join(meter: &Meter, separator: &str, items: &[Value]) -> Result<Value, Error> {
    let mut out = Text::new(meter);
    for (index, item) in items.iter().enumerate() {
        out.push(if index == 0 { "" } else { separator })?;
        write_str(&mut out, item)?;
    }
    Ok(out.finish().into())
}

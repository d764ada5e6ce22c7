//! The template machine: minijinja with nothing in it but what is listed here.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use minijinja::value::{ArgType, Kwargs};
use minijinja::{Environment, Error, Output, State, UndefinedBehavior, Value};

use super::arguments::{Arguments, bind, items, split_keywords};
use super::error::{Fault, type_error};
use super::filters::FILTERS;
use super::lexer::Dialect;
use super::meter::{Limits, Meter};
use super::operators::OPERATORS;
use super::predicates;
use super::strftime::strftime;
use super::value::{Bound, Dict, Py, dict, list, to_str, undefined, write_str};

/// The sandbox's own bound on `range`.
const MAX_RANGE: i128 = 100_000;

/// Macros and loops nest at most this deep; a template's own stack of calls takes native stack.
const MAX_RECURSION: usize = 200;

/// Filters that take what is undefined even where it is an error.
const FOR_UNDEFINED: [&str; 2] = ["default", "d"];

/// All arguments that are left, keywords among them (as the last).
struct Args(Vec<Value>);

impl<'a> ArgType<'a> for Args {
    type Output = Self;

    fn from_value(value: Option<&'a Value>) -> Result<Self, Error> {
        Ok(Args(value.into_iter().cloned().collect()))
    }

    fn from_state_and_values(
        _: Option<&'a State>,
        values: &'a [Value],
        offset: usize,
    ) -> Result<(Self, usize), Error> {
        Self::from_state_and_values_mut(None, values, offset)
    }

    fn from_state_and_values_mut(
        _: Option<&State>,
        values: &'a [Value],
        offset: usize,
    ) -> Result<(Self, usize), Error> {
        let rest = values.get(offset..).unwrap_or_default();
        Ok((Args(rest.to_vec()), rest.len()))
    }
}

/// Returns an environment with Python's operators, methods, filters and tests, and Jinja's functions.
pub(super) fn environment(limits: Limits, dialect: Dialect) -> Environment<'static> {
    let is_strict = dialect == Dialect::Record;
    let mut env = Environment::empty();
    if is_strict {
        env.set_undefined_behavior(UndefinedBehavior::Strict);
    }
    env.set_fuel(Some(limits.steps));
    env.set_recursion_limit(MAX_RECURSION);
    env.set_formatter(write_value);
    env.set_unknown_method_callback(|state, value, method, args| {
        super::methods::call(state, value, method, args)
    });
    for (name, operator) in OPERATORS {
        env.add_function(*name, move |state: &State, args: Args| {
            let meter = Meter::of(state)?;
            meter.charge(1 + args.0.len())?;
            if is_strict && args.0.iter().any(Value::is_undefined) {
                return Err(undefined());
            }
            operator(&meter, &args.0)
        });
    }
    for (name, filter) in FILTERS {
        env.add_filter(*name, move |state: &State, value: Value, args: Args| {
            let meter = Meter::of(state)?;
            meter.charge(1 + value.as_str().map_or(0, str::len))?;
            if is_strict && value.is_undefined() && !FOR_UNDEFINED.contains(name) {
                return Err(undefined());
            }
            filter(&meter, &value, &args.0)
        });
    }
    env.add_function("__is", |state: &State, value: Value, args: Args| {
        predicates::holds(&*Meter::of(state)?, &value, &args.0)
    });
    if dialect == Dialect::Chat {
        add_chat_functions(&mut env);
    }
    env.add_function("range", |state: &State, args: Args| range(&*Meter::of(state)?, &args.0));
    env.add_function("dict", |state: &State, args: Args| new_dict(&*Meter::of(state)?, &args.0));
    let namespace = Value::from_function(minijinja::functions::namespace);
    env.add_function("namespace", move |state: &mut State, args: Args| {
        new_namespace(&namespace, state, &args.0)
    });
    env
}

/// What only chat templates have.
fn add_chat_functions(env: &mut Environment<'static>) {
    env.add_function("__generation", generation);
    env.add_function("raise_exception", |state: &State, message: Value| -> Result<Value, Error> {
        Err(Fault::Raised(to_str(&*Meter::of(state)?, &message)?).into())
    });
    env.add_function("strftime_now", |state: &State, format: Value| {
        let meter = Meter::of(state)?;
        let Some(format) = format.as_str() else { return type_error("strftime() argument 1 must be str") };
        meter.charge(format.len().saturating_mul(32))?;
        Ok(Value::from(strftime(meter.now, format)))
    });
}

/// Writes `str(value)` to the text, or to what captures it.
fn write_value(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let meter = Meter::of(state)?;
    match value.as_str() {
        Some(text) => {
            meter.charge(text.len())?;
            out.write_str(text)?;
        }
        None => {
            let mut text = super::meter::Text::new(&meter);
            write_str(&mut text, value)?;
            out.write_str(&text.finish())?;
        }
    }
    Ok(())
}

/// Renders the body of a generation tag and notes its span.
///
/// The span starts where the text has come to, as it does in transformers: a tag in a macro or in a
/// block that is captured counts from where that is called.
fn generation(state: &mut State, keywords: Kwargs) -> Result<Value, Error> {
    let body = keywords.get::<Value>("caller")?.call(state, &[])?;
    let meter = Meter::of(state)?;
    let start = meter.written.load(Ordering::Relaxed);
    let length = body.as_str().map_or(0, str::len);
    // A poisoned lock is one that panicked; nothing here does while it holds it.
    if let Ok(mut spans) = meter.spans.lock() {
        spans.push((start, start + length));
    }
    Ok(body)
}

fn range(meter: &Meter, args: &[Value]) -> Result<Value, Error> {
    let a = Arguments("range");
    let [first, second, step] = bind("range", ["start", "stop", "step"], args)?;
    let (start, stop) = match &second {
        None => (0, a.int(&first)?),
        Some(_) => (a.int(&first)?, a.int(&second)?),
    };
    let step = a.int_or(&step, 1)?;
    if step == 0 {
        return type_error("range() arg 3 must not be zero");
    }
    let span = if step > 0 { stop.saturating_sub(start) } else { start.saturating_sub(stop) };
    let count = (span.max(0).saturating_add(step.saturating_abs() - 1)) / step.saturating_abs();
    if count > MAX_RANGE {
        let what = format!("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE}).");
        return Err(Fault::Limit(what).into());
    }
    let number = |index: i128| {
        let number = start + index * step;
        i64::try_from(number).map_or_else(|_| Value::from(number), Value::from)
    };
    list(meter, (0..count).map(number).collect())
}

fn new_dict(meter: &Meter, args: &[Value]) -> Result<Value, Error> {
    let (positional, keywords) = split_keywords(args)?;
    let mut pairs = Vec::new();
    match positional {
        [] => {}
        [one] => match Py::of(one) {
            Py::Dict(Dict { map, .. }) => {
                pairs.extend(map.iter().map(|(key, value)| (key.clone(), value.clone())))
            }
            _ => {
                for pair in items(meter, one)? {
                    match items(meter, &pair)?.as_slice() {
                        [key, value] => pairs.push((key.clone(), value.clone())),
                        other => {
                            let n = other.len();
                            return type_error(format!(
                                "dictionary update sequence element has length {n}; 2 is required"
                            ));
                        }
                    }
                }
            }
        },
        more => return type_error(format!("dict expected at most 1 argument, got {}", more.len())),
    }
    if let Some(keywords) = keywords {
        for name in keywords.args() {
            pairs.push((Value::from(name), keywords.peek::<Value>(name)?));
        }
    }
    dict(meter, pairs)
}

fn new_namespace(make: &Value, state: &mut State, args: &[Value]) -> Result<Value, Error> {
    let meter = Meter::of(state)?;
    let attributes = new_dict(&meter, args)?;
    if let Py::Dict(Dict { map, .. }) = Py::of(&attributes) {
        for (name, value) in map {
            if name.as_str().is_some_and(|name| name.starts_with('_')) {
                let what = format!(
                    "Chat templates cannot store underscore-prefixed attributes on a namespace, but got {name:?}"
                );
                return Err(Fault::Security(what).into());
            }
            if matches!(Py::of(value), Py::Other(_)) && value.downcast_object_ref::<Bound>().is_none() {
                return Err(Fault::Unsupported(
                    "a namespace that holds a namespace, a macro or a function".into(),
                )
                .into());
            }
        }
    }
    make.call(state, &[attributes])
}

/// The text as it grows; errors beyond its limit.
pub(super) struct TextWriter {
    pub(super) bytes: Vec<u8>,
    pub(super) limit: usize,
    pub(super) meter: Arc<Meter>,
}

impl io::Write for &mut TextWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            let what = format!("its text is longer than {} bytes", self.limit);
            return Err(io::Error::other(Fault::Limit(what)));
        }
        self.bytes.extend_from_slice(bytes);
        self.meter.written.store(self.bytes.len(), Ordering::Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! `'%s' % x` and `'{}'.format(x)`.

use minijinja::{Error, Value};

use super::arguments::split_keywords;
use super::error::{Fault, type_error};
use super::meter::{Meter, Text};
use super::operators::{attribute, item};
use super::value::{Py, Seq, SeqKind, float_repr, to_str, undefined, write_repr};

/// How one value is laid out.
#[derive(Clone, Debug, Default)]
struct Spec {
    fill: Option<char>,
    /// `<`, `>`, `^` or `=`.
    align: Option<char>,
    /// `+` or a space: what a number that is not negative starts with.
    sign: Option<char>,
    alternate: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// Beyond this a width or a precision is an attack.
const LONGEST: usize = 100_000;

/// Returns `template % value`.
pub(super) fn percent(meter: &Meter, template: &str, value: &Value) -> Result<String, Error> {
    let positional: Vec<Value> = match Py::of(value) {
        Py::Undefined => return Err(undefined()),
        Py::Seq(Seq { items, kind: SeqKind::Tuple, .. }) => items.clone(),
        _ => vec![value.clone()],
    };
    let mut used = 0;
    let mut next = || {
        used += 1;
        positional.get(used - 1).cloned()
    };
    let mut out = Text::new(meter);
    let mut rest = template;
    while let Some(at) = rest.find('%') {
        out.push(&rest[..at])?;
        let mut scan = Scan(&rest[at + 1..]);
        let key = scan.key()?;
        let spec = scan.percent_spec(&mut next)?;
        rest = scan.0;
        let Some(kind) = spec.kind else { return type_error("incomplete format") };
        if kind == '%' {
            out.push("%")?;
            continue;
        }
        let arg = match (key, Py::of(value)) {
            (Some(key), Py::Dict(dict)) => match dict.map.get(&Value::from(key)) {
                Some(value) => value.clone(),
                None => return type_error(format!("KeyError: '{key}'")),
            },
            (Some(_), _) => return type_error("format requires a mapping"),
            (None, _) => match next() {
                Some(arg) => arg,
                None => return type_error("not enough arguments for format string"),
            },
        };
        percent_one(meter, &mut out, &spec, kind, &arg)?;
    }
    out.push(rest)?;
    if used < positional.len() && !matches!(Py::of(value), Py::Dict(_)) {
        return type_error("not all arguments converted during string formatting");
    }
    Ok(out.finish())
}

fn percent_one(meter: &Meter, out: &mut Text, spec: &Spec, kind: char, arg: &Value) -> Result<(), Error> {
    let number = Py::of(arg);
    let text = match kind {
        's' => to_str(meter, arg)?,
        'r' | 'a' => {
            let mut text = Text::new(meter);
            write_repr(&mut text, arg)?;
            text.finish()
        }
        'c' => match (number, number.as_int()) {
            (Py::Str(text), _) if text.chars().count() == 1 => text.to_owned(),
            (_, Some(code)) => {
                let c = u32::try_from(code).ok().and_then(char::from_u32);
                c.map(String::from)
                    .ok_or_else(|| Error::from(Fault::Type("%c arg not in range(0x110000)".into())))?
            }
            _ => return type_error("%c requires an int or a unicode character"),
        },
        'd' | 'i' | 'u' => {
            let int = number.as_int().or_else(|| number.as_float().map(|float| float.trunc() as i128));
            let Some(int) = int else {
                return type_error(format!(
                    "%{kind} format: a real number is required, not {}",
                    number.type_name()
                ));
            };
            return number_to(out, spec, int < 0, &int.unsigned_abs().to_string());
        }
        'x' | 'X' | 'o' => {
            let Some(int) = number.as_int() else {
                return type_error(format!(
                    "%{kind} format: an integer is required, not {}",
                    number.type_name()
                ));
            };
            return number_to(out, spec, int < 0, &radix(int.unsigned_abs(), kind, spec.alternate));
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let Some(float) = number.as_float() else {
                return type_error(format!("must be real number, not {}", number.type_name()));
            };
            let negative = float.is_sign_negative() && !float.is_nan();
            return number_to(
                out,
                spec,
                negative,
                &float_digits(float.abs(), kind, spec.precision.unwrap_or(6)),
            );
        }
        other => return type_error(format!("unsupported format character '{other}'")),
    };
    let cut: String = text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
    lay_out(out, &Spec { align: Some(spec.align.unwrap_or('>')), ..spec.clone() }, "", &cut)
}

fn number_to(out: &mut Text, spec: &Spec, negative: bool, digits: &str) -> Result<(), Error> {
    let sign = if negative { "-".to_owned() } else { spec.sign.map(String::from).unwrap_or_default() };
    lay_out(out, &Spec { align: Some(spec.align.unwrap_or('>')), ..spec.clone() }, &sign, digits)
}

/// Appends sign and body, padded to the width.
fn lay_out(out: &mut Text, spec: &Spec, sign: &str, body: &str) -> Result<(), Error> {
    let missing = spec.width.saturating_sub(sign.len() + body.chars().count()) as i128;
    let fill = spec.fill.unwrap_or(' ').to_string();
    let left = match spec.align {
        Some('<') => 0,
        Some('^') => missing / 2,
        _ => missing,
    };
    if spec.align == Some('=') {
        out.push(sign)?;
        out.repeat(&fill, missing)?;
        return out.push(body);
    }
    out.repeat(&fill, left)?;
    out.push(sign)?;
    out.push(body)?;
    out.repeat(&fill, missing - left)
}

fn radix(value: u128, kind: char, alternate: bool) -> String {
    match (kind, alternate) {
        ('x', false) => format!("{value:x}"),
        ('x', true) => format!("{value:#x}"),
        ('X', false) => format!("{value:X}"),
        ('X', true) => format!("0X{value:X}"),
        ('o', false) => format!("{value:o}"),
        ('o', true) => format!("{value:#o}"),
        ('b', true) => format!("{value:#b}"),
        _ => format!("{value:b}"),
    }
}

/// Returns the digits of a float that is not negative, as C's `printf` does.
fn float_digits(value: f64, kind: char, precision: usize) -> String {
    let precision = precision.min(1000);
    let text = if value.is_nan() {
        "nan".to_owned()
    } else if value.is_infinite() {
        "inf".to_owned()
    } else {
        match kind.to_ascii_lowercase() {
            'f' => format!("{value:.precision$}"),
            'e' => with_exponent(&format!("{value:.precision$e}")),
            _ => general(value, precision.max(1)),
        }
    };
    if kind.is_ascii_uppercase() { text.to_ascii_uppercase() } else { text }
}

/// Writes Rust's `1.5e-7` as C's `1.5e-07`.
fn with_exponent(text: &str) -> String {
    let (digits, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// `%g`: the shorter of the two forms, without zeros at the end.
fn general(value: f64, precision: usize) -> String {
    let scientific = format!("{value:.*e}", precision - 1);
    let exponent: i32 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let trim = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if exponent < -4 || exponent >= precision as i32 {
        let (digits, e) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        return with_exponent(&format!("{}e{e}", trim(digits)));
    }
    trim(&format!("{value:.*}", (precision as i32 - 1 - exponent).max(0) as usize))
}

/// Reads a format string from the left.
struct Scan<'a>(&'a str);

impl<'a> Scan<'a> {
    fn peek(&self) -> Option<char> {
        self.0.chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.0 = &self.0[c.len_utf8()..];
        Some(c)
    }

    fn number(&mut self) -> Result<Option<usize>, Error> {
        let end = self.0.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.0.len());
        let (digits, rest) = self.0.split_at(end);
        self.0 = rest;
        match (digits.is_empty(), digits.parse::<usize>()) {
            (true, _) => Ok(None),
            (false, Ok(number)) if number <= LONGEST => Ok(Some(number)),
            _ => Err(Fault::Limit(format!("a width or a precision beyond {LONGEST}")).into()),
        }
    }

    /// `(name)` behind a `%`.
    fn key(&mut self) -> Result<Option<&'a str>, Error> {
        let Some(rest) = self.0.strip_prefix('(') else { return Ok(None) };
        let Some((key, rest)) = rest.split_once(')') else { return type_error("incomplete format key") };
        self.0 = rest;
        Ok(Some(key))
    }

    /// A width or a precision, `*` takes it from the arguments.
    fn measure(&mut self, next: &mut impl FnMut() -> Option<Value>) -> Result<Option<i128>, Error> {
        if self.peek() != Some('*') {
            return Ok(self.number()?.map(|number| number as i128));
        }
        self.take();
        match next().as_ref().map(Py::of).and_then(Py::as_int) {
            Some(int) if int.unsigned_abs() <= LONGEST as u128 => Ok(Some(int)),
            _ => type_error("* wants int"),
        }
    }

    fn percent_spec(&mut self, next: &mut impl FnMut() -> Option<Value>) -> Result<Spec, Error> {
        let mut spec = Spec::default();
        while let Some(flag) = self.peek().filter(|c| "-+ #0".contains(*c)) {
            self.take();
            match flag {
                '-' => spec.align = Some('<'),
                '+' => spec.sign = Some('+'),
                ' ' => spec.sign = spec.sign.or(Some(' ')),
                '#' => spec.alternate = true,
                _ => spec.fill = Some('0'),
            }
        }
        if let Some(width) = self.measure(next)? {
            spec.align = if width < 0 { Some('<') } else { spec.align };
            spec.width = width.unsigned_abs() as usize; // at most LONGEST
        }
        if self.peek() == Some('.') {
            self.take();
            spec.precision = Some(self.measure(next)?.unwrap_or(0).max(0) as usize);
        }
        while self.peek().is_some_and(|c| "hlL".contains(c)) {
            self.take();
        }
        spec.kind = self.take();
        let is_number = spec.kind.is_some_and(|kind| "diuxXoeEfFgG".contains(kind));
        match (spec.fill, spec.align) {
            (Some('0'), None) if is_number => spec.align = Some('='),
            _ => spec.fill = None,
        }
        Ok(spec)
    }

    /// `[[fill]align][sign][#][0][width][grouping][.precision][type]`, the whole of it.
    fn brace_spec(&mut self) -> Result<Spec, Error> {
        let mut spec = Spec::default();
        let mut ahead = self.0.chars();
        match (ahead.next(), ahead.next()) {
            (fill, Some(align)) if "<>^=".contains(align) => {
                (spec.fill, spec.align) = (fill, Some(align));
                self.take();
                self.take();
            }
            (Some(align), _) if "<>^=".contains(align) => {
                spec.align = Some(align);
                self.take();
            }
            _ => {}
        }
        if let Some(sign) = self.peek().filter(|c| "+- ".contains(*c)) {
            self.take();
            spec.sign = (sign != '-').then_some(sign);
        }
        if self.peek() == Some('#') {
            self.take();
            spec.alternate = true;
        }
        if self.peek() == Some('0') {
            self.take();
            spec.fill = spec.fill.or(Some('0'));
            spec.align = spec.align.or(Some('='));
        }
        spec.width = self.number()?.unwrap_or(0);
        spec.grouping = self.peek().filter(|c| ",_".contains(*c));
        if spec.grouping.is_some() {
            self.take();
        }
        if self.peek() == Some('.') {
            self.take();
            spec.precision = self.number()?;
            if spec.precision.is_none() {
                return type_error("Format specifier missing precision");
            }
        }
        spec.kind = self.take();
        match self.0.is_empty() {
            true => Ok(spec),
            false => type_error("Invalid format specifier"),
        }
    }
}

/// Returns `template.format(args)`.
pub(super) fn braces(meter: &Meter, template: &str, args: &[Value]) -> Result<String, Error> {
    let (positional, keywords) = split_keywords(args)?;
    let mut out = Text::new(meter);
    let mut automatic = 0;
    let mut scan = Scan(template);
    while let Some(c) = scan.take() {
        match c {
            '{' | '}' if scan.peek() == Some(c) => {
                scan.take();
                out.push(&c.to_string())?;
            }
            '}' => return type_error("Single '}' encountered in format string"),
            '{' => {
                let Some((field, rest)) = scan.0.split_once('}') else {
                    return type_error("expected '}' before end of string");
                };
                scan.0 = rest;
                let (path, spec) = field.split_once(':').unwrap_or((field, ""));
                let (path, conversion) = path.split_once('!').map_or((path, None), |(p, c)| (p, Some(c)));
                let end = path.find(['.', '[']).unwrap_or(path.len());
                let base = match (&path[..end], path[..end].parse::<usize>()) {
                    ("", _) => {
                        automatic += 1;
                        positional.get(automatic - 1).cloned()
                    }
                    (_, Ok(index)) => positional.get(index).cloned(),
                    (name, _) => keywords.as_ref().and_then(|keywords| keywords.peek::<Value>(name).ok()),
                };
                let Some(base) = base else {
                    return type_error(format!("no argument for the replacement field '{{{field}}}'"));
                };
                let value = follow(base, &path[end..])?;
                brace_one(meter, &mut out, &value, conversion, spec)?;
            }
            c => out.push(c.encode_utf8(&mut [0; 4]))?,
        }
    }
    Ok(out.finish())
}

/// Follows `.name` and `[key]`.
fn follow(mut value: Value, mut path: &str) -> Result<Value, Error> {
    while !path.is_empty() {
        if let Some(rest) = path.strip_prefix('.') {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            value = attribute(&value, &rest[..end])?;
            path = &rest[end..];
        } else if let Some((key, rest)) = path.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            let key = key.parse::<i64>().map_or_else(|_| Value::from(key), Value::from);
            value = item(&value, &key)?;
            path = rest;
        } else {
            return type_error("Only '.' or '[' may follow ']' in format field specifier");
        }
    }
    Ok(value)
}

fn brace_one(
    meter: &Meter,
    out: &mut Text,
    value: &Value,
    conversion: Option<&str>,
    spec: &str,
) -> Result<(), Error> {
    if spec.contains('{') {
        return Err(Fault::Unsupported("a replacement field within a format specifier".into()).into());
    }
    let spec = Scan(spec).brace_spec()?;
    let converted = match conversion {
        None => None,
        Some("s") => Some(to_str(meter, value)?),
        Some("r" | "a") => {
            let mut text = Text::new(meter);
            write_repr(&mut text, value)?;
            Some(text.finish())
        }
        Some(other) => return type_error(format!("Unknown conversion specifier '{other}'")),
    };
    let number = Py::of(value);
    let is_number =
        matches!(number, Py::Int(_) | Py::Float(_)) || (matches!(number, Py::Bool(_)) && spec.kind.is_some());
    if converted.is_some() || !is_number {
        let text = converted.map_or_else(|| to_str(meter, value), Ok)?;
        if spec.kind.is_some_and(|kind| kind != 's') {
            let (kind, name) = (spec.kind.unwrap_or('s'), number.type_name());
            return type_error(format!("Unknown format code '{kind}' for object of type '{name}'"));
        }
        let cut: String = text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
        return lay_out(out, &Spec { align: Some(spec.align.unwrap_or('<')), ..spec }, "", &cut);
    }
    let (negative, digits) = number_digits(number, &spec)?;
    number_to(out, &spec, negative, &grouped(&digits, spec.grouping))
}

fn number_digits(number: Py, spec: &Spec) -> Result<(bool, String), Error> {
    if let Some(int) = number.as_int()
        && spec.kind.is_none_or(|kind| "dnbxXo".contains(kind))
    {
        let digits = match spec.kind {
            Some(kind @ ('b' | 'x' | 'X' | 'o')) => radix(int.unsigned_abs(), kind, spec.alternate),
            _ => int.unsigned_abs().to_string(),
        };
        return Ok((int < 0, digits));
    }
    let float = number.as_float().unwrap_or(f64::NAN);
    let negative = float.is_sign_negative() && !float.is_nan();
    let size = float.abs();
    Ok((
        negative,
        match (spec.kind, spec.precision) {
            (None, None) => float_repr(size),
            (None, Some(precision)) => {
                let text = general(size, precision.max(1));
                if text.contains(['.', 'e', 'n']) { text } else { format!("{text}.0") }
            }
            (Some('%'), precision) => float_digits(size * 100.0, 'f', precision.unwrap_or(6)) + "%",
            (Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G')), precision) => {
                float_digits(size, kind, precision.unwrap_or(6))
            }
            (Some(kind), _) => {
                return type_error(format!(
                    "Unknown format code '{kind}' for object of type '{}'",
                    number.type_name()
                ));
            }
        },
    ))
}

/// Puts a separator before every third digit of the whole part.
fn grouped(digits: &str, separator: Option<char>) -> String {
    let Some(separator) = separator else { return digits.to_owned() };
    let whole = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (index, c) in digits[..whole].chars().enumerate() {
        if index > 0 && (whole - index) % 3 == 0 {
            out.push(separator);
        }
        out.push(c);
    }
    out + &digits[whole..]
}

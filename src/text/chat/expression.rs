//! Jinja's expressions, rewritten so that every operator is a call of one of our functions.
//!
//! Precedence is that of Jinja2's parser, and it is spelled out in the calls: nothing is left to the
//! template machine but names, literals, `and`, `or`, `not`, `if … else`, calls and filters.

use super::error::Error;
use super::filters;
use super::lexer::{Kind, Token};
use super::methods::is_method_of_any;
use super::predicates;

/// Expressions nest at most this deep.
const MAX_NESTING: usize = 60;

/// The template machine takes calls of a few hundred arguments.
const MOST_ARGUMENTS: usize = 200;

/// Rewritten code.
pub(super) struct Code {
    pub(super) text: String,
    /// It can stand as an operand, or before a `.` or a `|`, without parentheses.
    is_atom: bool,
    is_call: bool,
}

impl Code {
    fn atom(text: impl Into<String>) -> Self {
        Code { text: text.into(), is_atom: true, is_call: false }
    }

    fn compound(text: String) -> Self {
        Code { text, is_atom: false, is_call: false }
    }

    fn call(function: &str, args: &[Code]) -> Self {
        let args: Vec<&str> = args.iter().map(|arg| arg.text.as_str()).collect();
        Code::atom(format!("{function}({})", args.join(", ")))
    }

    pub(super) fn operand(&self) -> String {
        if self.is_atom { self.text.clone() } else { format!("({})", self.text) }
    }
}

/// Returns the text as a string literal of the template machine.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

/// Reads the tokens of one tag.
pub(super) struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    line: usize,
    nesting: usize,
    /// Inside an `if`, where Jinja excuses unknown filters and tests until they are reached.
    pub(super) excuses: bool,
}

impl<'a> Parser<'a> {
    pub(super) fn new(tokens: &'a [Token], line: usize, excuses: bool) -> Self {
        Parser { tokens, at: 0, line, nesting: 0, excuses }
    }

    pub(super) fn fail<T>(&self, what: impl Into<String>) -> Result<T, Error> {
        let line = self.tokens.get(self.at).map_or(self.line, |token| token.line);
        Err(Error::Syntax { line, what: what.into() })
    }

    pub(super) fn peek(&self) -> Option<&'a Kind> {
        self.tokens.get(self.at).map(|token| &token.kind)
    }

    pub(super) fn at_op(&self, op: &str) -> bool {
        matches!(self.peek(), Some(Kind::Op(found)) if *found == op)
    }

    pub(super) fn at_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Kind::Name(found)) if found == name)
    }

    pub(super) fn skip_op(&mut self, op: &str) -> bool {
        let found = self.at_op(op);
        self.at += usize::from(found);
        found
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.at_name(name);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect_op(&mut self, op: &str) -> Result<(), Error> {
        if self.skip_op(op) { Ok(()) } else { self.fail(format!("expected '{op}', got {}", self.describe())) }
    }

    pub(super) fn expect_name(&mut self) -> Result<&'a str, Error> {
        match self.peek() {
            Some(Kind::Name(name)) => {
                self.at += 1;
                Ok(name)
            }
            _ => self.fail(format!("expected a name, got {}", self.describe())),
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.at >= self.tokens.len()
    }

    pub(super) fn expect_end(&self) -> Result<(), Error> {
        if self.is_done() {
            Ok(())
        } else {
            self.fail(format!("expected the tag's end, got {}", self.describe()))
        }
    }

    fn describe(&self) -> String {
        match self.peek() {
            None => "the tag's end".into(),
            Some(Kind::Name(name)) => format!("'{name}'"),
            Some(Kind::Op(op)) => format!("'{op}'"),
            Some(Kind::Text(_)) => "a string".into(),
            Some(Kind::Int(_) | Kind::Float(_)) => "a number".into(),
        }
    }

    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            let line = self.tokens.get(self.at).map_or(self.line, |token| token.line);
            return Err(Error::Limit { line, what: format!("expressions nest deeper than {MAX_NESTING}") });
        }
        let parsed = parse(self);
        self.nesting -= 1;
        parsed
    }

    /// One expression, or several with commas between them: a tuple.
    pub(super) fn tuple(&mut self, with_condition: bool) -> Result<Code, Error> {
        let one = |parser: &mut Self| if with_condition { parser.expression() } else { parser.or() };
        let first = one(self)?;
        if !self.at_op(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.skip_op(",") {
            if self.is_done() || self.at_op(")") || self.at_name("recursive") {
                break;
            }
            items.push(one(self)?);
        }
        Ok(Code::call("__tuple", &items))
    }

    pub(super) fn expression(&mut self) -> Result<Code, Error> {
        self.nested(Self::conditional)
    }

    fn conditional(&mut self) -> Result<Code, Error> {
        let mut value = self.or()?;
        while self.at_name("if") {
            self.at += 1;
            let excuses = std::mem::replace(&mut self.excuses, true);
            let condition = self.or()?;
            let text = match self.skip_name("else") {
                true => {
                    let other = self.nested(Self::conditional)?;
                    format!("{} if {} else {}", value.operand(), condition.operand(), other.operand())
                }
                false => format!("{} if {}", value.operand(), condition.operand()),
            };
            self.excuses = excuses;
            value = Code::compound(text);
        }
        Ok(value)
    }

    pub(super) fn or(&mut self) -> Result<Code, Error> {
        self.joined("or", Self::and)
    }

    fn and(&mut self) -> Result<Code, Error> {
        self.joined("and", Self::not)
    }

    fn joined(&mut self, word: &str, parse: fn(&mut Self) -> Result<Code, Error>) -> Result<Code, Error> {
        let first = parse(self)?;
        if !self.at_name(word) {
            return Ok(first);
        }
        let mut text = first.operand();
        while self.skip_name(word) {
            text.push_str(&format!(" {word} {}", parse(self)?.operand()));
        }
        Ok(Code::compound(text))
    }

    fn not(&mut self) -> Result<Code, Error> {
        match self.skip_name("not") {
            true => Ok(Code::compound(format!("not {}", self.nested(Self::not)?.operand()))),
            false => self.comparison(),
        }
    }

    fn comparison(&mut self) -> Result<Code, Error> {
        let mut left = self.sum()?;
        let mut tests: Vec<String> = Vec::new();
        loop {
            let function = match self.peek() {
                Some(Kind::Op("==")) => "__eq",
                Some(Kind::Op("!=")) => "__ne",
                Some(Kind::Op("<")) => "__lt",
                Some(Kind::Op("<=")) => "__le",
                Some(Kind::Op(">")) => "__gt",
                Some(Kind::Op(">=")) => "__ge",
                Some(Kind::Name(name)) if name == "in" => "__in",
                Some(Kind::Name(name)) if name == "not" && self.next_is_in() => {
                    self.at += 1;
                    "__notin"
                }
                _ => break,
            };
            self.at += 1;
            let right = self.sum()?;
            tests.push(format!("{function}({}, {})", left.text, right.text));
            left = right;
        }
        Ok(match tests.len() {
            0 => left,
            1 => Code::atom(tests.remove(0)),
            _ => Code::compound(tests.join(" and ")),
        })
    }

    fn next_is_in(&self) -> bool {
        matches!(self.tokens.get(self.at + 1).map(|token| &token.kind), Some(Kind::Name(name)) if name == "in")
    }

    /// `a + b - c`: runs of `+` become one call.
    fn sum(&mut self) -> Result<Code, Error> {
        let mut terms = vec![self.concatenation()?];
        loop {
            if self.skip_op("+") {
                terms.push(self.concatenation()?);
            } else if self.skip_op("-") {
                let left = one_or_call("__add", terms);
                terms = vec![Code::call("__sub", &[left, self.concatenation()?])];
            } else {
                return Ok(one_or_call("__add", terms));
            }
        }
    }

    fn concatenation(&mut self) -> Result<Code, Error> {
        let first = self.product()?;
        if !self.at_op("~") {
            return Ok(first);
        }
        let mut terms = vec![first];
        while self.skip_op("~") {
            terms.push(self.product()?);
        }
        Ok(one_or_call("__concat", terms))
    }

    fn product(&mut self) -> Result<Code, Error> {
        let mut left = self.power()?;
        loop {
            let function = match self.peek() {
                Some(Kind::Op("*")) => "__mul",
                Some(Kind::Op("/")) => "__div",
                Some(Kind::Op("//")) => "__floordiv",
                Some(Kind::Op("%")) => "__mod",
                _ => return Ok(left),
            };
            self.at += 1;
            let right = self.power()?;
            left = Code::call(function, &[left, right]);
        }
    }

    /// Groups to the left, as Jinja's parser does.
    fn power(&mut self) -> Result<Code, Error> {
        let mut left = self.unary(true)?;
        while self.skip_op("**") {
            let right = self.unary(true)?;
            left = Code::call("__pow", &[left, right]);
        }
        Ok(left)
    }

    fn unary(&mut self, with_filters: bool) -> Result<Code, Error> {
        let sign = match self.peek() {
            Some(Kind::Op("-")) => Some("__neg"),
            Some(Kind::Op("+")) => Some("__pos"),
            _ => None,
        };
        let mut code = match sign {
            Some(function) => {
                self.at += 1;
                let operand = self.nested(|parser| parser.unary(false))?;
                Code::call(function, &[operand])
            }
            None => self.primary()?,
        };
        code = self.postfix(code)?;
        if with_filters { self.filters_and_tests(code) } else { Ok(code) }
    }

    fn primary(&mut self) -> Result<Code, Error> {
        let Some(kind) = self.peek() else {
            return self.fail("Expected an expression, got the tag's end");
        };
        self.at += 1;
        match kind {
            Kind::Name(name) => match name.as_str() {
                "true" | "True" => Ok(Code::atom("true")),
                "false" | "False" => Ok(Code::atom("false")),
                "none" | "None" => Ok(Code::atom("none")),
                "and" | "or" | "not" | "if" | "else" | "in" | "is" => {
                    self.at -= 1;
                    self.fail(format!("unexpected '{name}'"))
                }
                _ => Ok(Code::atom(name.as_str())),
            },
            Kind::Text(text) => {
                let mut whole = text.clone();
                while let Some(Kind::Text(more)) = self.peek() {
                    whole.push_str(more);
                    self.at += 1;
                }
                Ok(Code::atom(quoted(&whole)))
            }
            Kind::Int(int) => Ok(Code::atom(int.to_string())),
            Kind::Float(float) => Ok(Code::atom(format!("{float:?}"))),
            Kind::Op("(") => {
                if self.skip_op(")") {
                    return Ok(Code::atom("__tuple()"));
                }
                let inner = self.nested(|parser| parser.tuple(true))?;
                self.expect_op(")")?;
                Ok(Code::atom(inner.operand()))
            }
            Kind::Op("[") => {
                let mut items = Vec::new();
                while !self.at_op("]") {
                    if !items.is_empty() {
                        self.expect_op(",")?;
                        if self.at_op("]") {
                            break;
                        }
                    }
                    items.push(self.expression()?);
                }
                self.expect_op("]")?;
                let lists = items.chunks(MOST_ARGUMENTS).map(|items| Code::call("__list", items)).collect();
                Ok(if items.is_empty() { Code::atom("__list()") } else { one_or_call("__add", lists) })
            }
            Kind::Op("{") => self.dict(),
            _ => {
                self.at -= 1;
                self.fail(format!("unexpected {}", self.describe()))
            }
        }
    }

    fn dict(&mut self) -> Result<Code, Error> {
        let mut items = Vec::new();
        while !self.at_op("}") {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.at_op("}") {
                    break;
                }
            }
            items.push(self.expression()?);
            self.expect_op(":")?;
            items.push(self.expression()?);
        }
        self.expect_op("}")?;
        Ok(Code::call("__dict", &items))
    }

    fn postfix(&mut self, mut code: Code) -> Result<Code, Error> {
        loop {
            code = match self.peek() {
                Some(Kind::Op(".")) => self.attribute(code)?,
                Some(Kind::Op("[")) => self.subscript(code)?,
                Some(Kind::Op("(")) => self.call(code)?,
                _ => return Ok(code),
            };
        }
    }

    fn attribute(&mut self, code: Code) -> Result<Code, Error> {
        self.at += 1;
        match self.peek() {
            Some(Kind::Name(name)) => {
                self.at += 1;
                if self.at_op("(") && !name.starts_with('_') {
                    let args = self.arguments()?;
                    return Ok(Code {
                        is_call: true,
                        ..Code::atom(format!("{}.{name}({args})", code.operand()))
                    });
                }
                // Python finds a method before an item; anything else the machine finds as Python does
                if name.starts_with('_') || is_method_of_any(name) {
                    return Ok(Code::call("__attr", &[code, Code::atom(quoted(name))]));
                }
                Ok(Code::atom(format!("{}.{name}", code.operand())))
            }
            Some(Kind::Int(index)) => {
                self.at += 1;
                Ok(Code::call("__item", &[code, Code::atom(index.to_string())]))
            }
            _ => self.fail("expected name or number"),
        }
    }

    fn subscript(&mut self, code: Code) -> Result<Code, Error> {
        self.expect_op("[")?;
        let mut bounds = [const { None }; 3];
        let mut n_colons = 0;
        while !self.at_op("]") {
            if self.skip_op(":") {
                n_colons += 1;
                if n_colons > 2 {
                    return self.fail("expected ']'");
                }
                continue;
            }
            if bounds[n_colons].is_some() {
                return self.fail("expected ']'");
            }
            bounds[n_colons] = Some(self.expression()?);
        }
        self.expect_op("]")?;
        let [start, stop, step] = bounds;
        if n_colons == 0 {
            let Some(key) = start else { return self.fail("Expected an expression, got ']'") };
            return Ok(Code::call("__item", &[code, key]));
        }
        let bound = |bound: Option<Code>| bound.unwrap_or_else(|| Code::atom("none"));
        Ok(Code::call("__slice", &[code, bound(start), bound(stop), bound(step)]))
    }

    fn call(&mut self, code: Code) -> Result<Code, Error> {
        let args = self.arguments()?;
        Ok(Code { is_call: true, ..Code::atom(format!("{}({args})", code.operand())) })
    }

    /// The arguments of a call, without the parentheses.
    pub(super) fn arguments(&mut self) -> Result<String, Error> {
        self.expect_op("(")?;
        let mut args: Vec<String> = Vec::new();
        while !self.at_op(")") {
            if !args.is_empty() {
                self.expect_op(",")?;
                if self.at_op(")") {
                    break;
                }
            }
            let is_keyword = matches!(self.peek(), Some(Kind::Name(_)))
                && matches!(self.tokens.get(self.at + 1).map(|token| &token.kind), Some(Kind::Op("=")));
            if self.skip_op("*") {
                args.push(format!("*{}", self.expression()?.operand()));
            } else if self.skip_op("**") {
                args.push(format!("**{}", self.expression()?.operand()));
            } else if is_keyword {
                let name = self.expect_name()?;
                self.at += 1;
                args.push(format!("{name}={}", self.expression()?.operand()));
            } else {
                args.push(self.expression()?.operand());
            }
        }
        self.expect_op(")")?;
        Ok(args.join(", "))
    }

    fn filters_and_tests(&mut self, mut code: Code) -> Result<Code, Error> {
        loop {
            code = match self.peek() {
                Some(Kind::Op("|")) => {
                    let filters = self.filter_chain()?;
                    Code::atom(format!("({}{filters})", code.operand()))
                }
                Some(Kind::Name(name)) if name == "is" => self.test(code)?,
                Some(Kind::Op("(")) => self.call(code)?,
                _ => return Ok(code),
            };
        }
    }

    /// `|name(args)|name…`, as long as it goes on.
    pub(super) fn filter_chain(&mut self) -> Result<String, Error> {
        let mut chain = String::new();
        while self.skip_op("|") {
            chain.push('|');
            chain.push_str(&self.filter()?);
        }
        Ok(chain)
    }

    /// A filter's name and arguments.
    pub(super) fn filter(&mut self) -> Result<String, Error> {
        let name = self.expect_name()?;
        if filters::by_name(name).is_none() && !self.excuses {
            if filters::LEFT_OUT.contains(&name) {
                let what = format!("the filter '{name}' is not supported");
                return Err(Error::Unsupported { line: self.line, what });
            }
            return self.fail(format!("No filter named '{name}'."));
        }
        match self.at_op("(") {
            true => Ok(format!("{name}({})", self.arguments()?)),
            false => Ok(name.to_owned()),
        }
    }

    fn test(&mut self, code: Code) -> Result<Code, Error> {
        self.at += 1;
        let negated = self.skip_name("not");
        let name = self.expect_name()?;
        if predicates::by_name(name).is_none() && !self.excuses {
            return self.fail(format!("No test named '{name}'."));
        }
        let args = match self.peek() {
            Some(Kind::Op("(")) => self.arguments()?,
            Some(Kind::Name(next)) if matches!(next.as_str(), "else" | "or" | "and" | "if") => String::new(),
            Some(Kind::Name(next)) if next == "is" => {
                return self.fail("You cannot chain multiple tests with is");
            }
            // `x is defined and …` aside, a value may follow without parentheses
            Some(Kind::Name(_) | Kind::Text(_) | Kind::Int(_) | Kind::Float(_) | Kind::Op("[" | "{"))
                if !self.at_name("not") && !self.at_name("in") =>
            {
                let value = self.primary()?;
                self.postfix(value)?.operand()
            }
            _ => String::new(),
        };
        let separator = if args.is_empty() { "" } else { ", " };
        let test = format!("__is({}, {}{separator}{args})", code.text, quoted(name));
        Ok(if negated { Code::compound(format!("not {test}")) } else { Code::atom(test) })
    }

    /// What a `set`, a `for` or a `with` assigns to: a name, a tuple of names, or `namespace.name`.
    pub(super) fn target(&mut self, with_namespace: bool) -> Result<Target, Error> {
        let mut names = vec![self.simple_target(with_namespace)?];
        let mut is_tuple = false;
        while self.skip_op(",") {
            is_tuple = true;
            if self.at_op("=") || self.at_name("in") {
                break;
            }
            names.push(self.simple_target(with_namespace)?);
        }
        match (is_tuple, names.pop()) {
            (false, Some(target)) => Ok(target),
            (_, last) => {
                let names = names.into_iter().chain(last).map(|target| target.text).collect::<Vec<_>>();
                Ok(Target { text: format!("({})", names.join(", ")), attribute: None })
            }
        }
    }

    fn simple_target(&mut self, with_namespace: bool) -> Result<Target, Error> {
        if self.skip_op("(") {
            let mut names = Vec::new();
            while !self.at_op(")") {
                if !names.is_empty() {
                    self.expect_op(",")?;
                }
                names.push(self.nested(|parser| parser.simple_target(with_namespace))?.text);
            }
            self.expect_op(")")?;
            return Ok(Target { text: format!("({})", names.join(", ")), attribute: None });
        }
        let name = self.expect_name()?;
        if matches!(name, "true" | "false" | "none" | "True" | "False" | "None") {
            return self.fail(format!("can't assign to '{name}'"));
        }
        if with_namespace && self.skip_op(".") {
            let attribute = self.expect_name()?;
            return Ok(Target { text: format!("{name}.{attribute}"), attribute: Some(attribute.to_owned()) });
        }
        Ok(Target { text: name.to_owned(), attribute: None })
    }

    /// An expression that must be a call.
    pub(super) fn call_only(&mut self) -> Result<Code, Error> {
        let code = self.expression()?;
        if code.is_call { Ok(code) } else { self.fail("expected call") }
    }
}

/// What is assigned to.
pub(super) struct Target {
    pub(super) text: String,
    /// The attribute of a namespace that is set.
    pub(super) attribute: Option<String>,
}

/// Returns the one term, or the call that folds all of them from the left.
fn one_or_call(function: &str, mut terms: Vec<Code>) -> Code {
    while terms.len() > MOST_ARGUMENTS {
        let first: Vec<Code> = terms.drain(..MOST_ARGUMENTS).collect();
        terms.insert(0, Code::call(function, &first));
    }
    match terms.len() {
        1 => terms.remove(0),
        _ => Code::call(function, &terms),
    }
}

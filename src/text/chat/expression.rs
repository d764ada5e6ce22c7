//! Jinja's expressions, rewritten so that every operator is a call of one of our functions.
//!
//! Precedence is that of Jinja2's parser, and it is spelled out in the calls: nothing is left to the
//! template machine but names, literals, `and`, `or`, `not`, `if … else`, calls and filters.

mod code;
mod operand;
mod parser;
mod target;

use super::error::Error;
use super::lexer::Kind;

use code::{Code, one_or_call};

pub(super) use code::quoted;
pub(super) use parser::Parser;

impl Parser<'_> {
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

    /// An expression that must be a call.
    pub(super) fn call_only(&mut self) -> Result<Code, Error> {
        let code = self.expression()?;
        if code.is_call() { Ok(code) } else { self.fail("expected call") }
    }
}

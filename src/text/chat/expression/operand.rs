//! Operands: literals and names, and what follows them: attributes, items, calls, filters, tests.

use super::super::error::Error;
use super::super::lexer::Kind;
use super::super::methods::is_method_of_any;
use super::super::{filters, predicates};
use super::Parser;
use super::code::{Code, MOST_ARGUMENTS, one_or_call, quoted};

impl Parser<'_> {
    pub(super) fn primary(&mut self) -> Result<Code, Error> {
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

    pub(super) fn postfix(&mut self, mut code: Code) -> Result<Code, Error> {
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
                    return Ok(Code::written_call(format!("{}.{name}({args})", code.operand())));
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
        Ok(Code::written_call(format!("{}({args})", code.operand())))
    }

    /// The arguments of a call, without the parentheses.
    pub(in crate::text::chat) fn arguments(&mut self) -> Result<String, Error> {
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

    pub(super) fn filters_and_tests(&mut self, mut code: Code) -> Result<Code, Error> {
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
    pub(in crate::text::chat) fn filter_chain(&mut self) -> Result<String, Error> {
        let mut chain = String::new();
        while self.skip_op("|") {
            chain.push('|');
            chain.push_str(&self.filter()?);
        }
        Ok(chain)
    }

    /// A filter's name and arguments.
    pub(in crate::text::chat) fn filter(&mut self) -> Result<String, Error> {
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
}

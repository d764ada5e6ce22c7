//! The tokens of a tag, one after another.

use super::super::error::Error;
use super::super::lexer::{Kind, Token};

/// Expressions nest at most this deep.
const MAX_NESTING: usize = 60;

/// Reads the tokens of one tag.
pub(in crate::text::chat) struct Parser<'a> {
    pub(super) tokens: &'a [Token],
    pub(super) at: usize,
    pub(super) line: usize,
    nesting: usize,
    /// Inside an `if`, where Jinja excuses unknown filters and tests until they are reached.
    pub(in crate::text::chat) excuses: bool,
}

impl<'a> Parser<'a> {
    pub(in crate::text::chat) fn new(tokens: &'a [Token], line: usize, excuses: bool) -> Self {
        Parser { tokens, at: 0, line, nesting: 0, excuses }
    }

    pub(in crate::text::chat) fn fail<T>(&self, what: impl Into<String>) -> Result<T, Error> {
        let line = self.tokens.get(self.at).map_or(self.line, |token| token.line);
        Err(Error::Syntax { line, what: what.into() })
    }

    pub(in crate::text::chat) fn peek(&self) -> Option<&'a Kind> {
        self.tokens.get(self.at).map(|token| &token.kind)
    }

    pub(in crate::text::chat) fn at_op(&self, op: &str) -> bool {
        matches!(self.peek(), Some(Kind::Op(found)) if *found == op)
    }

    pub(in crate::text::chat) fn at_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Kind::Name(found)) if found == name)
    }

    pub(in crate::text::chat) fn skip_op(&mut self, op: &str) -> bool {
        let found = self.at_op(op);
        self.at += usize::from(found);
        found
    }

    pub(in crate::text::chat) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.at_name(name);
        self.at += usize::from(found);
        found
    }

    pub(in crate::text::chat) fn expect_op(&mut self, op: &str) -> Result<(), Error> {
        if self.skip_op(op) { Ok(()) } else { self.fail(format!("expected '{op}', got {}", self.describe())) }
    }

    pub(in crate::text::chat) fn expect_name(&mut self) -> Result<&'a str, Error> {
        match self.peek() {
            Some(Kind::Name(name)) => {
                self.at += 1;
                Ok(name)
            }
            _ => self.fail(format!("expected a name, got {}", self.describe())),
        }
    }

    pub(in crate::text::chat) fn is_done(&self) -> bool {
        self.at >= self.tokens.len()
    }

    pub(in crate::text::chat) fn expect_end(&self) -> Result<(), Error> {
        if self.is_done() {
            Ok(())
        } else {
            self.fail(format!("expected the tag's end, got {}", self.describe()))
        }
    }

    pub(super) fn describe(&self) -> String {
        match self.peek() {
            None => "the tag's end".into(),
            Some(Kind::Name(name)) => format!("'{name}'"),
            Some(Kind::Op(op)) => format!("'{op}'"),
            Some(Kind::Text(_)) => "a string".into(),
            Some(Kind::Int(_) | Kind::Float(_)) => "a number".into(),
        }
    }

    pub(super) fn nested<T>(
        &mut self,
        parse: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            let line = self.tokens.get(self.at).map_or(self.line, |token| token.line);
            return Err(Error::Limit { line, what: format!("expressions nest deeper than {MAX_NESTING}") });
        }
        let parsed = parse(self);
        self.nesting -= 1;
        parsed
    }
}

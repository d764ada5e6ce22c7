//! What is assigned to.

use super::super::error::Error;
use super::Parser;

/// What is assigned to.
pub(in crate::text::chat) struct Target {
    pub(in crate::text::chat) text: String,
    /// The attribute of a namespace that is set.
    pub(in crate::text::chat) attribute: Option<String>,
}

impl Parser<'_> {
    /// What a `set`, a `for` or a `with` assigns to: a name, a tuple of names, or `namespace.name`.
    pub(in crate::text::chat) fn target(&mut self, with_namespace: bool) -> Result<Target, Error> {
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
}

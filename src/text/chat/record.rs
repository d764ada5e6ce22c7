//! Templates over one record of data: the prompts of evaluation suites, in the sandbox of chat templates.

use std::sync::Arc;

use chrono::NaiveDateTime;
use minijinja::{Environment, Value};
use serde_json::{Map, Value as Json};

use super::lexer::Dialect;
use super::meter::{Limits, METER, Meter};
use super::{Error, machine, rewrite, value};

/// The template's name in the machine.
const NAME: &str = "record";

/// Functions that a template can call: no variables of its own.
const FUNCTIONS: [&str; 3] = ["range", "dict", "namespace"];

/// A template over a record's fields, with Jinja set up as lm-eval does: white space stays as written, a last
/// newline too, and to use what is undefined is an error.
#[derive(Debug)]
pub struct RecordTemplate {
    env: Environment<'static>,
    limits: Limits,
}

impl RecordTemplate {
    /// Reads a template. Errors if it is none, or uses what is not supported.
    pub fn new(source: &str, limits: Limits) -> Result<Self, Error> {
        if source.len() > limits.source_bytes {
            let what = format!("it has {} bytes, more than {}", source.len(), limits.source_bytes);
            return Err(Error::Limit { line: 1, what });
        }
        let mut env = machine::environment(limits, Dialect::Record);
        env.add_template_owned(NAME, rewrite::rewrite(source, Dialect::Record)?)?;
        Ok(RecordTemplate { env, limits })
    }

    /// Returns the text it makes of a record's fields.
    ///
    /// Errors if it uses what is undefined or in a way Python would not let it, and at its limits.
    pub fn render(&self, fields: &Map<String, Json>) -> Result<String, Error> {
        // no function tells the time
        let meter = Arc::new(Meter::new(self.limits, NaiveDateTime::default()));
        let mut variables: Vec<(&str, Value)> = Vec::with_capacity(fields.len() + 1);
        for (name, json) in fields {
            variables.push((name, value::from_json(json)?));
        }
        variables.push((METER, Value::from_dyn_object(meter.clone())));
        let mut writer = machine::TextWriter { bytes: Vec::new(), limit: self.limits.output_bytes, meter };
        self.env.get_template(NAME)?.render_captured_to(Value::from_pairs(variables), &mut writer)?;
        String::from_utf8(writer.bytes)
            .map_err(|_| Error::Type { line: 0, what: "the text is not UTF-8".into() })
    }

    /// Returns the variables that the template reads and does not set itself, in alphabetical order.
    pub fn variables(&self) -> Vec<String> {
        let Ok(template) = self.env.get_template(NAME) else { return Vec::new() };
        let is_variable = |name: &String| !name.starts_with("__") && !FUNCTIONS.contains(&name.as_str());
        let mut names: Vec<String> =
            template.undeclared_variables(false).into_iter().filter(is_variable).collect();
        names.sort();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, Error> {
        let fields = serde_json::json!({"q": " a\r\nb ", "n": 3, "big": 123456789012345678901u128, "t": true, "x": null});
        RecordTemplate::new(source, Limits::default())?.render(fields.as_object().unwrap())
    }

    #[test]
    fn white_space_stays_as_jinja_leaves_it_without_trim_blocks() {
        for (source, expected) in [
            ("a\n", "a\n"),
            ("  {% if t %}\n x\n  {% endif %}\n\n", "  \n x\n  \n\n"),
            ("a {#- c #}\nb", "a\nb"),
            ("{% raw %}\n{{\n{% endraw %}\nz", "\n{{\n\nz"),
            ("{{ q.strip() }}|{{ n }}|{{ big }}|{{ t }}|{{ x }}", "a\r\nb|3|123456789012345678901|True|None"),
        ] {
            assert_eq!(render(source).unwrap(), expected, "{source:?}");
        }
    }

    #[test]
    fn what_is_undefined_is_an_error_wherever_it_is_used() {
        for source in [
            "{{ nope }}",
            "{{ q.nope }}",
            "{% if nope %}{% endif %}",
            "{% for i in nope %}{% endfor %}",
            "{{ nope ~ 'x' }}",
            "{{ nope == 1 }}",
            "{{ nope | length }}",
            "{{ 'x' if not nope }}",
            "{{ 'a' in nope }}",
            "{% set y = nope %}{{ y }}",
        ] {
            assert!(matches!(render(source), Err(Error::Undefined { .. })), "{source}: {:?}", render(source));
        }
        assert_eq!(
            render("{{ nope | default('d') }}{{ nope is defined }}{{ 'x' if false }}").unwrap(),
            "dFalse"
        );
        let template =
            RecordTemplate::new("{% set a = b %}{{ a ~ c }}{{ range(2) }}", Limits::default()).unwrap();
        assert_eq!(template.variables(), ["b", "c"]);
    }

    #[test]
    fn the_time_and_exceptions_are_for_chat_templates() {
        for source in ["{{ strftime_now('%Y') }}", "{{ raise_exception('x') }}"] {
            assert!(render(source).is_err(), "{source}");
        }
    }
}

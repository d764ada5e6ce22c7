//! Prompts' templates: minijinja without files or includes, with bounded steps and output.
//!
//! Whitespace stays as written, the last newline included (as lm-eval's Jinja is set up); Python's string
//! methods work; an undefined variable is an error.

use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};
use serde_json::{Map, Value as Json};

/// Steps of the template machine; a prompt takes hundreds.
const FUEL: u64 = 1_000_000;

/// Longest text a template may make, in bytes.
const LONGEST: usize = 4 << 20;

/// A compiled template.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    source: String,
}

/// Why a template made no text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("template `{}`: line {line}: {what}", excerpt(.source_text))]
    Syntax { source_text: String, line: usize, what: String },

    #[error("template `{}`: there is no field `{name}`", excerpt(.source_text))]
    NoField { source_text: String, name: String, known: Vec<String> },

    #[error("template `{}`: stopped after {FUEL} steps", excerpt(.source_text))]
    TooManySteps { source_text: String },

    #[error("template `{}`: made more than {LONGEST} bytes", excerpt(.source_text))]
    TooLong { source_text: String },

    #[error("template `{}`: {what}", excerpt(.source_text))]
    Failed { source_text: String, what: String },
}

impl Error {
    /// Returns what may help.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::NoField { name, known, .. } => {
                Some(match crate::error::nearest(name, known.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean `{near}`? the fields are: {}", known.join(", ")),
                    None => format!("the fields are: {}", known.join(", ")),
                })
            }
            Error::TooManySteps { .. } => Some("does it loop over a range, or over the text itself?".into()),
            Error::TooLong { .. } => Some("does it repeat the document in a loop?".into()),
            Error::Syntax { .. } => {
                Some("templates are Jinja: {{ field }}, {% for .. %}, {% if .. %}".into())
            }
            Error::Failed { .. } => None,
        }
    }
}

/// Returns the first line of a template, at most 40 characters.
fn excerpt(source: &str) -> String {
    let line = source.lines().next().unwrap_or_default();
    match line.char_indices().nth(40) {
        Some((cut, _)) => format!("{}…", &line[..cut]),
        None => line.to_owned(),
    }
}

const NAME: &str = "template";

impl Template {
    /// Returns the compiled template; errors if it is not one.
    pub fn parse(source: &str) -> Result<Template, Error> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        // Only clashing delimiters are an error, and these are the usual ones.
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
        environment.set_syntax(syntax.expect("the usual delimiters do not clash"));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.add_template_owned(NAME, source.to_owned()).map_err(|error| Error::Syntax {
            source_text: source.to_owned(),
            line: error.line().unwrap_or(1),
            what: error.detail().map_or_else(|| error.kind().to_string(), str::to_owned),
        })?;
        Ok(Template { environment, source: source.to_owned() })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Returns the text it makes of a document's fields.
    pub fn render(&self, fields: &Map<String, Json>) -> Result<String, Error> {
        let source_text = || self.source.clone();
        let template = self.environment.get_template(NAME).map_err(|error| self.failed(&error, fields))?;
        let mut output = Bounded { text: Vec::new(), is_full: false };
        let rendered = template.render_captured_to(context(fields), &mut output);
        if output.is_full {
            return Err(Error::TooLong { source_text: source_text() });
        }
        rendered.map_err(|error| self.failed(&error, fields))?;
        String::from_utf8(output.text).map_err(|_| Error::Failed {
            source_text: source_text(),
            what: "made text that is not UTF-8".into(),
        })
    }

    fn failed(&self, error: &minijinja::Error, fields: &Map<String, Json>) -> Error {
        let source_text = self.source.clone();
        match error.kind() {
            ErrorKind::OutOfFuel => return Error::TooManySteps { source_text },
            ErrorKind::UndefinedError | ErrorKind::UnknownMethod => {
                if let Some(name) = self.first_missing(fields) {
                    return Error::NoField { source_text, name, known: fields.keys().cloned().collect() };
                }
            }
            _ => {}
        }
        Error::Failed { source_text, what: error.to_string() }
    }

    /// Returns a variable that the template reads, no statement sets and no field is.
    fn first_missing(&self, fields: &Map<String, Json>) -> Option<String> {
        let template = self.environment.get_template(NAME).ok()?;
        let mut names: Vec<String> = template.undeclared_variables(false).into_iter().collect();
        names.sort();
        names.into_iter().find(|name| !fields.contains_key(name))
    }
}

fn context(fields: &Map<String, Json>) -> Value {
    Value::from_pairs(fields.iter().map(|(key, value)| (key.as_str(), value_of(value))))
}

fn value_of(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), _, _) => Value::from(number),
            (_, Some(number), _) => Value::from(number),
            (_, _, number) => Value::from(number.unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(value_of).collect(),
        Json::Object(fields) => context(fields),
    }
}

struct Bounded {
    text: Vec<u8>,
    is_full: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > LONGEST {
            self.is_full = true;
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, Error> {
        let fields = serde_json::json!({"question": " what? ", "choices": ["x", "<y>"], "answer": 1});
        Template::parse(source)?.render(fields.as_object().unwrap())
    }

    #[test]
    fn whitespace_stays_and_python_methods_work() {
        assert_eq!(render("{{ question.strip() }}\nA. {{choices[1]}}\n\n").unwrap(), "what?\nA. <y>\n\n");
        let lettered = "{% for c in choices %}{{ 'ABCD'[loop.index0] }}. {{ c }}\n{% endfor %}{{ answer }}";
        assert_eq!(render(lettered).unwrap(), "A. x\nB. <y>\n1");
    }

    #[test]
    fn a_missing_field_is_named_and_the_nearest_offered() {
        let error = render("{{ qestion }}").unwrap_err();
        assert_eq!(error.to_string(), "template `{{ qestion }}`: there is no field `qestion`");
        assert_eq!(
            error.hint().unwrap(),
            "did you mean `question`? the fields are: question, choices, answer"
        );
    }

    #[test]
    fn loops_and_floods_stop() {
        let loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        assert!(matches!(render(loops), Err(Error::TooManySteps { .. })));
        let flood = "{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}";
        assert!(matches!(render(flood), Err(Error::TooLong { .. })));
        assert!(render("{{ 'x' * 999999999999 }}").is_err());
        assert!(render("{% include 'other' %}").is_err());
    }

    #[test]
    fn syntax_errors_have_their_line() {
        let error = Template::parse("a\n{{ b").unwrap_err();
        assert!(error.to_string().starts_with("template `a`: line 2: "), "{error}");
    }
}

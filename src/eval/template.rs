//! Suites' templates: Jinja as lm-eval sets it up, in the sandbox of chat templates, with less room.

use serde_json::{Map, Value as Json};

use crate::text::chat::{self, Limits, RecordTemplate};

/// What a prompt may cost; one takes hundreds of steps.
const LIMITS: Limits =
    Limits { steps: 1_000_000, work_bytes: 64 << 20, output_bytes: 4 << 20, source_bytes: 1 << 20 };

/// A compiled template.
#[derive(Debug)]
pub struct Template {
    template: RecordTemplate,
    source: String,
}

/// Why a template made no text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("template `{}`: line {line}: {what}", excerpt(.source_text))]
    Syntax { source_text: String, line: usize, what: String },

    #[error("template `{}`: there is no field `{name}`", excerpt(.source_text))]
    NoField { source_text: String, name: String, known: Vec<String> },

    #[error("template `{}`: stopped, {what}", excerpt(.source_text))]
    Stopped { source_text: String, what: String },

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
            Error::Stopped { .. } => {
                Some("does it loop over a range, or repeat the document in a loop?".into())
            }
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

impl Template {
    /// Returns the compiled template; errors if it is not one.
    pub fn parse(source: &str) -> Result<Template, Error> {
        let source_text = || source.to_owned();
        match RecordTemplate::new(source, LIMITS) {
            Ok(template) => Ok(Template { template, source: source_text() }),
            Err(chat::Error::Limit { what, .. }) => Err(Error::Stopped { source_text: source_text(), what }),
            Err(chat::Error::Syntax { line, what } | chat::Error::Unsupported { line, what }) => {
                Err(Error::Syntax { source_text: source_text(), line, what })
            }
            Err(other) => Err(Error::Failed { source_text: source_text(), what: other.message() }),
        }
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Returns the text it makes of a document's fields.
    pub fn render(&self, fields: &Map<String, Json>) -> Result<String, Error> {
        self.template.render(fields).map_err(|error| {
            let source_text = self.source.clone();
            match error {
                chat::Error::Limit { what, .. } => Error::Stopped { source_text, what },
                chat::Error::Undefined { what, .. } => match self.first_missing(fields) {
                    Some(name) => {
                        Error::NoField { source_text, name, known: fields.keys().cloned().collect() }
                    }
                    None => Error::Failed { source_text, what },
                },
                other => Error::Failed { source_text, what: other.message() },
            }
        })
    }

    /// Returns a variable that the template reads, no statement sets and no field is.
    fn first_missing(&self, fields: &Map<String, Json>) -> Option<String> {
        self.template.variables().into_iter().find(|name| !fields.contains_key(name))
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
        assert!(matches!(render(loops), Err(Error::Stopped { .. })));
        let flood = "{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}";
        assert!(matches!(render(flood), Err(Error::Stopped { .. })));
        // memory that is not in the text
        let doubled =
            "{% set n = namespace(x='xxxx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}";
        let kept = "{% set n = namespace(l=[]) %}{% for i in range(9999) %}{% set n.l = n.l + ['x' * 99999 ~ i] %}{% endfor %}";
        let replaced = "{{ ('x' * 9999).replace('', 'y' * 9999).replace('', 'z' * 9999) | length }}";
        let searched = "{% set x = 'a' * 999999 %}{% for i in range(99999) %}{{ x in x ~ 'b' }}{% endfor %}";
        for source in
            [doubled, kept, replaced, searched, "{{ '%999999999d' % 1 }}", "{{ 'x' * 999999999999 }}"]
        {
            assert!(matches!(render(source), Err(Error::Stopped { .. })), "{source}: {:?}", render(source));
        }
        assert!(render("{% include 'other' %}").is_err());
    }

    #[test]
    fn syntax_errors_have_their_line() {
        let error = Template::parse("a\n{{ b").unwrap_err();
        assert!(error.to_string().starts_with("template `a`: line 2: "), "{error}");
    }
}

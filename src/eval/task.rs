//! Task types: documents to questions, responses to scores. One file per type, one line in [`TASK_TYPES`].
//!
//! A task type sees documents and responses, never tokens or a model.

mod classification;
mod cvss;
mod extraction;
mod garbled;
mod generation;
mod injection;
mod json_answer;
mod multiple_choice;
mod perplexity;
mod refusal;
mod structured;
mod tool_call;
mod tool_syntax;
mod written;

use indexmap::IndexMap;
use serde_json::Value as Json;

use super::data::Document;
use super::request::{Response, Sampling};
use super::score::{Metric, mean};
use super::stats::Addition;
use super::template::{self, Template};
use crate::error::Diagnostic as _;
use crate::yaml::{Fields, Node};

/// A kind of task a suite may have.
#[derive(Debug)]
pub struct TaskType {
    pub name: &'static str,
    /// One line for docs.
    pub about: &'static str,
    /// Whether prompts are made of a system text, solved examples and a question.
    pub has_prompt: bool,
    /// Whether the chat template is used where neither suite nor user says.
    pub chat_by_default: bool,
    /// Reads the keys that only this type has; notes what is wrong with them.
    pub parse: fn(&Fields) -> Option<Box<dyn Task>>,
}

/// Every task type.
pub static TASK_TYPES: &[&TaskType] = &[
    &multiple_choice::TYPE,
    &generation::TYPE,
    &classification::TYPE,
    &extraction::TYPE,
    &structured::TYPE,
    &cvss::TYPE,
    &refusal::TYPE,
    &injection::TYPE,
    &tool_call::TYPE,
    &perplexity::TYPE,
];

/// Returns the task type of that name.
pub fn task_type(name: &str) -> Option<&'static TaskType> {
    TASK_TYPES.iter().find(|task_type| task_type.name == name).copied()
}

/// A task of a suite, as its type understands it.
pub trait Task: Send + Sync + std::fmt::Debug {
    /// Returns what to ask about a document.
    fn inquire(&self, document: &Document) -> Result<Inquiry, Error>;

    /// Returns the text that answers a document's question, for use as a solved example.
    fn solution(&self, document: &Document) -> Result<String, Error>;

    /// Returns how the responses, one per ask and in their order, score.
    fn score(&self, document: &Document, responses: &[Response]) -> Result<Outcome, Error>;

    /// Returns the figures over all documents, of which there is at least one.
    fn aggregate(&self, scores: &[&Scores]) -> Vec<Metric>;

    /// Returns what each document adds to a figure of [`Task::aggregate`] that is no mean of a score; `None` of other figures.
    fn addition(&self, _metric: &str, _scores: &[&Scores]) -> Option<Addition<'_>> {
        None
    }

    /// Returns the scores of a document that could not be asked about: the worst there are.
    fn failed(&self, document: &Document) -> Result<Scores, Error>;

    /// Returns what the report shows of the task beside its figures: a key and its value.
    fn explain(&self, _scores: &[&Scores]) -> Option<(&'static str, Json)> {
        None
    }
}

/// Named numbers of one document; [`Task::aggregate`] knows what they mean.
pub type Scores = IndexMap<String, f64>;

/// What to ask about one document.
#[derive(Clone, Debug, PartialEq)]
pub struct Inquiry {
    /// Text of the question, without system text and examples; empty if there is no prompt.
    pub question: String,
    pub asks: Vec<Ask>,
}

/// One thing asked of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// How likely this text is as the answer to the prompt.
    Likelihood(String),
    /// How likely this text is on its own.
    Text(String),
    /// What the model answers to the prompt.
    Generation { max_tokens: usize, stop: Vec<String>, sampling: Sampling },
}

/// Scores of one document, and what explains them in samples.jsonl.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub target: Json,
    pub prediction: Json,
    pub scores: Scores,
    /// Keys of its own, beside the common ones.
    pub details: serde_json::Map<String, Json>,
}

/// A document that a task cannot use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Template(#[from] template::Error),

    #[error("the target `{target}` is none of the {n_choices} choices")]
    NoSuchChoice { target: String, n_choices: usize },

    #[error("the target `{target}` is no {what}")]
    BadTarget { target: String, what: &'static str },

    #[error("there is no field `{name}`")]
    NoField { name: String, known: Vec<String> },

    #[error("the field `{name}` is not a list of texts")]
    NotTexts { name: String },

    #[error("choice {number} is empty")]
    EmptyChoice { number: usize },

    #[error("{n_choices} choices; at least 2 are needed")]
    FewChoices { n_choices: usize },

    #[error("the target `{target}` is none of the {} labels", .labels.len())]
    NoSuchLabel { target: String, labels: Vec<String> },

    #[error("the target `{target}` is no CVSS vector: {source}")]
    NoVector {
        target: String,
        #[source]
        source: super::cvss::Error,
    },

    #[error("the field `{name}` is {found}, not {wanted}")]
    OtherJson { name: String, found: &'static str, wanted: &'static str },

    #[error("the target is not JSON: {why}")]
    NotJson { why: String },

    #[error("the target has no field `{name}`")]
    NoTargetField { name: String },

    #[error("the target breaks the schema at `{place}`: {why}")]
    BreaksSchema { place: String, why: String },

    #[error("call {number} of the target: {why}")]
    BadCall { number: usize, why: String },

    #[error("{what} {number} is empty")]
    EmptyText { what: &'static str, number: usize },

    #[error("the text has no words")]
    BlankText,

    #[error("no targets")]
    NoTarget,

    #[error("a response is of another kind than what was asked")]
    OtherKind,
}

impl Error {
    fn no_field(name: &str, document: &Document) -> Error {
        Error::NoField { name: name.to_owned(), known: document.fields.keys().cloned().collect() }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Template(error) => error.hint(),
            Error::NoSuchLabel { target, labels } => {
                let near = crate::error::nearest(target, labels.iter().map(String::as_str));
                near.map(|near| format!("did you mean `{near}`?"))
            }
            Error::NoVector { source, .. } => source.hint(),
            Error::NoSuchChoice { .. } => Some(
                "`target` renders a choice's whole text; write `target: {letter: ..}` or `{index: ..}` for a \
                 letter or an index from 0"
                    .into(),
            ),
            Error::NoField { known, .. } => Some(format!("the fields are: {}", known.join(", "))),
            _ => None,
        }
    }
}

/// Returns the template that stands at a key, if it is one.
pub fn template(node: &Node) -> Option<Template> {
    let source = node.text();
    match Template::parse(&source) {
        Ok(template) => Some(template),
        Err(error) => {
            node.note_with_hint(error.to_string(), error.hint());
            None
        }
    }
}

/// Several texts of a document: a template each, or a field that holds a list.
#[derive(Debug)]
pub enum Texts {
    Templates(Vec<Template>),
    Field(String),
}

impl Texts {
    /// Reads a list of templates, or `{field: NAME}`.
    pub fn parse(node: &Node) -> Option<Texts> {
        if node.is_mapping() {
            return Some(Texts::Field(node.fields().required("field").text()));
        }
        let templates: Option<Vec<Template>> = node.items().iter().map(template).collect();
        templates.map(Texts::Templates)
    }

    /// Reads a template, or what [`Texts::parse`] reads.
    pub fn parse_one_or_more(node: &Node) -> Option<Texts> {
        match node.is_list() || node.is_mapping() {
            true => Texts::parse(node),
            false => template(node).map(|template| Texts::Templates(vec![template])),
        }
    }

    /// Returns the texts for a document.
    pub fn of(&self, document: &Document) -> Result<Vec<String>, Error> {
        match self {
            Texts::Templates(templates) => {
                templates.iter().map(|template| Ok(template.render(&document.fields)?)).collect()
            }
            Texts::Field(name) => {
                let value = document.fields.get(name).ok_or_else(|| Error::no_field(name, document))?;
                let not_texts = || Error::NotTexts { name: name.clone() };
                let items = value.as_array().ok_or_else(not_texts)?;
                items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(not_texts)).collect()
            }
        }
    }
}

/// Returns a figure of a task type as the documents' scores alone give it; `None` of a figure that is made of something else.
pub fn figure_of(task_type: &str, figure: &str, scores: &[&Scores]) -> Option<f64> {
    let of_figure: Vec<f64> = scores.iter().filter_map(|scores| scores.get(figure).copied()).collect();
    if !of_figure.is_empty() {
        return Some(mean(&of_figure));
    }
    let has = |name: &str| scores.iter().any(|scores| scores.contains_key(name));
    match task_type {
        "perplexity" if has("log_prob") => perplexity::figures(scores)
            .into_iter()
            .find_map(|(name, value)| (name == figure).then_some(value)),
        "extraction" if figure == extraction::MICRO_F1 && has("n.target") => {
            Some(extraction::micro_f1_of(scores))
        }
        "classification" if figure == classification::MACRO_F1 => classification::macro_f1_of_scores(scores),
        _ => None,
    }
}

/// Returns the scores of one name over all documents.
fn column(scores: &[&Scores], name: &str) -> Vec<f64> {
    scores.iter().map(|scores| scores.get(name).copied().unwrap_or(0.0)).collect()
}

#[cfg(test)]
pub mod testing {
    use super::super::data::{Document, Place};
    use super::super::request::{FinishReason, Generated, Response};

    /// Returns a document with the fields of a JSON object.
    pub fn document(fields: serde_json::Value) -> Document {
        let place = Place { path: std::path::Path::new("rows.jsonl").into(), line: 1 };
        Document { index: 0, place, fields: fields.as_object().unwrap().clone() }
    }

    /// Returns the task that the keys, as YAML, describe.
    pub fn parse(task_type: &super::TaskType, yaml: &str) -> Result<Box<dyn super::Task>, String> {
        let path = std::path::Path::new("suite.yaml");
        let document = crate::yaml::Document::parse(path, yaml.to_owned()).unwrap();
        let task = (task_type.parse)(&document.fields());
        document.check().map_err(|error| error.to_string())?;
        Ok(task.unwrap())
    }

    /// Returns an answer that the model wrote.
    pub fn generated(text: &str) -> Response {
        Response::Generated(Generated {
            text: text.into(),
            tokens: vec![1, 2],
            finish_reason: FinishReason::Stop,
        })
    }
}

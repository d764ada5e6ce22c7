//! What can be wrong with a run before the model is asked.

use std::collections::HashMap;
use std::path::PathBuf;

use super::{ChatFailure, PlannedDocument};
use crate::error::{Diagnostic, nearest};
use crate::eval::data::{self, Document, Place};
use crate::eval::suite::TaskSpec;
use crate::eval::task;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Data(#[from] data::Error),

    #[error("{suite}: no file for the data set `{name}`")]
    NoFile { suite: PathBuf, name: String },

    #[error("{path}: is called `{name}`, as {other} is")]
    SameSuite { path: PathBuf, other: PathBuf, name: String },

    #[error("{path}: leads out of the suite's directory, to {target}")]
    Outside { path: PathBuf, target: PathBuf, name: String },

    #[error("--data {name}: no suite has a data set of that name")]
    UnknownData { name: String, known: Vec<String> },

    #[error("{place}: task `{task}`")]
    Document {
        place: Place,
        task: String,
        #[source]
        source: Box<task::Error>,
    },

    #[error("{place}: task `{task}`: another document is called `{item}`, too, that of line {other}")]
    SameItem { place: Place, task: String, item: String, other: usize },

    #[error("{suite}: task `{task}` names no data set to take examples from")]
    NoExamples { suite: PathBuf, task: String },

    #[error(
        "{path}: task `{task}` needs {wanted} examples before the document at line {line}, but there are {found}"
    )]
    FewExamples { path: PathBuf, task: String, line: usize, wanted: usize, found: usize },

    #[error("task `{task}` needs a chat template, and the model has none")]
    NoChatTemplate { task: String },

    #[error("task `{task}`: the model's chat template makes no prompt: {}", .failure.why)]
    Chat { task: String, failure: ChatFailure },
}

/// Returns the error of a document that a task cannot use.
pub fn of(document: &Document, spec: &TaskSpec, source: task::Error) -> Error {
    Error::Document { place: document.place.clone(), task: spec.id.clone(), source: Box::new(source) }
}

/// Errors if two documents of a task have one name.
pub fn check_items(spec: &TaskSpec, documents: &[PlannedDocument]) -> Result<(), Error> {
    let mut known: HashMap<&str, usize> = HashMap::new();
    for PlannedDocument { document, item, .. } in documents {
        let Some(item) = item else { continue };
        if let Some(other) = known.insert(item, document.place.line) {
            let (place, task) = (document.place.clone(), spec.id.clone());
            return Err(Error::SameItem { place, task, item: item.clone(), other });
        }
    }
    Ok(())
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Data(error) => error.hint(),
            Error::NoFile { name, .. } => Some(format!("give it with --data {name}=FILE")),
            Error::SameSuite { .. } => {
                Some("give each suite once; reports know suites by their names".into())
            }
            Error::Outside { name, .. } => Some(format!("if you trust it, give it with --data {name}=FILE")),
            Error::UnknownData { name, known } => {
                Some(match nearest(name, known.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("the suites' data sets are: {}", known.join(", ")),
                })
            }
            Error::Document { source, .. } => source.hint(),
            Error::SameItem { .. } => Some("`item` names documents: it must tell them apart".into()),
            Error::NoExamples { .. } => {
                Some("add `few_shot: {n: 0, from: NAME}` to the task, or leave --few-shot out".into())
            }
            Error::FewExamples { .. } => Some("ask for fewer, or give a larger file of examples".into()),
            Error::NoChatTemplate { .. } => {
                Some("plain prompts need none: --chat-template off; or is this a base model?".into())
            }
            Error::Chat { failure, .. } => failure.hint.clone(),
        }
    }
}

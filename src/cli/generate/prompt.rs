//! Where the prompt comes from, and what the chat template gets beside the messages.

use std::io::{self, Read};
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::Args;
use crate::error::{Diagnostic, Failure, unread_hint};

/// Longest prompt, message or template that is read, in bytes: far more than any context has room for.
pub(super) const LONGEST: u64 = 64 << 20;

/// Variables of templates that the conversation itself sets.
const RESERVED: [&str; 3] = ["messages", "add_generation_prompt", "continue_final_message"];

#[derive(Debug, thiserror::Error)]
pub(super) enum PromptError {
    #[error("{path}: cannot read")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error("{path}: not UTF-8 at byte {at}")]
    NotUtf8 { path: PathBuf, at: usize },

    #[error("--template-var {given}: expected NAME=JSON")]
    Variable { given: String },

    #[error("--template-var {name}: not JSON")]
    VariableValue {
        name: String,
        #[source]
        source: serde_json::Error,
    },

    #[error("--template-var {name}: {why}")]
    Reserved { name: String, why: &'static str },

    #[error("{path}: more than {LONGEST} bytes")]
    TooManyBytes { path: PathBuf },

    #[error("the prompt has no tokens, and the model has no token to begin a text with")]
    NoTokens,

    #[error("the chat template makes an empty prompt of this conversation")]
    EmptyConversation,

    #[error("the prompt has {n_prompt} tokens, the context {context}: there is no room for an answer")]
    TooLong { n_prompt: usize, context: usize, is_conversation: bool },
}

impl Diagnostic for PromptError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            PromptError::Read { path, source } => return unread_hint(path, source),
            PromptError::NotUtf8 { .. } => "convert the file to UTF-8".into(),
            PromptError::Variable { .. } | PromptError::VariableValue { .. } => {
                "as in --template-var enable_thinking=false or --template-var 'mode=\"short\"'".into()
            }
            PromptError::Reserved { .. } => {
                "--system and the prompt make the messages; leave this variable out".into()
            }
            PromptError::TooManyBytes { .. } => "no context has room for it: is it the right file?".into(),
            PromptError::EmptyConversation => {
                "`lctl inspect MODEL --chat-template` prints the template; --template FILE replaces it".into()
            }
            PromptError::NoTokens => "give some text with -p".into(),
            PromptError::TooLong { is_conversation: true, .. } => {
                "/clear begins a new conversation; --context N allows more if the model was made for more"
                    .into()
            }
            PromptError::TooLong { .. } => {
                "shorten the prompt; --context N allows more if the model was made for more".into()
            }
        })
    }
}

/// Returns the prompt of the arguments, if they give one.
pub(super) fn read(args: &Args) -> Result<Option<String>, Failure> {
    let Some(path) = &args.prompt_file else { return Ok(args.prompt.clone()) };
    match path.as_os_str() == "-" {
        true => read_text(path, &mut io::stdin().lock()).map(Some),
        false => text_of(path).map(Some),
    }
}

/// Returns the text of a file.
pub(super) fn text_of(path: &std::path::Path) -> Result<String, Failure> {
    let file = std::fs::File::open(path);
    read_text(path, &mut file.map_err(|source| PromptError::Read { path: path.to_owned(), source })?)
}

fn read_text(path: &std::path::Path, from: &mut dyn Read) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = from.take(LONGEST + 1).read_to_end(&mut bytes);
    read.map_err(|source| PromptError::Read { path: path.to_owned(), source })?;
    utf8(path.to_owned(), bytes)
}

/// Returns the bytes as text; errors if they are none, or more than [`LONGEST`].
pub(super) fn utf8(path: PathBuf, bytes: Vec<u8>) -> Result<String, Failure> {
    if bytes.len() as u64 > LONGEST {
        return Err(PromptError::TooManyBytes { path }.into());
    }
    String::from_utf8(bytes)
        .map_err(|error| PromptError::NotUtf8 { path, at: error.utf8_error().valid_up_to() }.into())
}

/// Returns the variables that --template-var sets.
pub(super) fn template_variables(args: &Args) -> Result<Map<String, Value>, Failure> {
    let mut variables = Map::new();
    for given in &args.template_var {
        let Some((name, json)) = given.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(PromptError::Variable { given: given.clone() }.into());
        };
        let value: Value = serde_json::from_str(json)
            .map_err(|source| PromptError::VariableValue { name: name.to_owned(), source })?;
        let reserved = |why| PromptError::Reserved { name: name.to_owned(), why };
        if RESERVED.contains(&name) {
            return Err(reserved("the conversation sets it").into());
        }
        if ["tools", "documents"].contains(&name) && !value.is_array() {
            return Err(reserved("expected a list").into());
        }
        variables.insert(name.to_owned(), value);
    }
    Ok(variables)
}

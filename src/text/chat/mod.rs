//! Chat templates: a conversation as the text a model was trained on.
//!
//! [`ChatTemplate::render`] gives byte for byte what `apply_chat_template` of transformers 5.23 gives,
//! whose environment is Jinja2's immutable sandbox with `trim_blocks`, `lstrip_blocks`, loop controls
//! and the `generation` tag. A template is code out of a model file: it is parsed by our own front end
//! ([`rewrite`]), every operator, method, filter and test is one of ours, and all of them are metered.
//! No template reads a file, loads another template, changes what it is given, or runs beyond [`Limits`].
//!
//! Not supported, each with an error that says so: the filters pprint, random, urlize, wordwrap, xmlattr,
//! striptags and filesizeformat, the functions cycler, joiner and lipsum, the tag `autoescape`, `varargs`
//! and `kwargs` in a macro, namespaces and macros inside of containers, and printing of what Python prints
//! with its address in memory.

mod arguments;
mod continued;
mod error;
mod expression;
mod filters;
mod format;
mod json;
mod lexer;
mod machine;
mod meter;
mod methods;
mod operators;
mod predicates;
mod record;
mod rewrite;
mod strftime;
mod strings;
mod value;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use chrono::NaiveDateTime;
use minijinja::{Environment, Value};
use serde_json::{Map, Value as Json};

pub use error::Error;
pub use meter::Limits;
pub use record::RecordTemplate;

use lexer::Dialect;
use meter::{METER, Meter};

/// The template's name in the machine.
const NAME: &str = "chat";

/// A chat template ready to render.
pub struct ChatTemplate {
    source: String,
    env: Environment<'static>,
    special_tokens: Map<String, Json>,
    limits: Limits,
}

/// A conversation to render.
#[derive(Clone, Debug)]
pub struct ChatRequest<'a> {
    /// Objects, as a rule with `role` and `content`.
    pub messages: &'a [Json],
    /// JSON schemas of functions; `None` and an empty list are different things to a template.
    pub tools: Option<&'a [Json]>,
    /// Objects with `title` and `text`.
    pub documents: Option<&'a [Json]>,
    /// Whether the text ends with what starts the assistant's next message.
    pub add_generation_prompt: bool,
    /// Whether the text ends inside the last message, for the model to go on with.
    pub continue_final_message: bool,
    /// What `strftime_now` takes for now. The caller records it: some templates write the date.
    pub now: NaiveDateTime,
    /// More variables, such as `enable_thinking`; they come before special tokens of the same name.
    pub extra: Map<String, Json>,
}

impl<'a> ChatRequest<'a> {
    /// Returns a request for these messages and nothing else.
    pub fn new(messages: &'a [Json], now: NaiveDateTime) -> Self {
        ChatRequest {
            messages,
            tools: None,
            documents: None,
            add_generation_prompt: false,
            continue_final_message: false,
            now,
            extra: Map::new(),
        }
    }
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    /// Byte ranges `[start, end)` of `text` that `{% generation %}` marks as the assistant's own.
    ///
    /// As in transformers a tag in a macro or in a captured block counts from where that is called.
    pub generation_spans: Vec<(usize, usize)>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("bytes", &self.source.len()).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Reads a template; `special_tokens` are the variables `bos_token`, `eos_token` and so on.
    ///
    /// Errors if it is no template, or uses what is not supported.
    pub fn new(source: &str, special_tokens: &Map<String, Json>) -> Result<Self, Error> {
        Self::with_limits(source, special_tokens, Limits::default())
    }

    /// As [`ChatTemplate::new`], with other limits.
    pub fn with_limits(
        source: &str,
        special_tokens: &Map<String, Json>,
        limits: Limits,
    ) -> Result<Self, Error> {
        if source.len() > limits.source_bytes {
            let what = format!("it has {} bytes, more than {}", source.len(), limits.source_bytes);
            return Err(Error::Limit { line: 1, what });
        }
        let mut env = machine::environment(limits, Dialect::Chat);
        env.add_template_owned(NAME, rewrite::rewrite(source, Dialect::Chat)?)?;
        Ok(ChatTemplate { source: source.to_owned(), env, special_tokens: special_tokens.clone(), limits })
    }

    /// Returns the template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Returns whether the template marks what the assistant wrote.
    pub fn marks_generation(&self) -> bool {
        let is_generation = |(piece, _): &(lexer::Piece, usize)| match piece {
            lexer::Piece::Tag(tokens) => {
                matches!(tokens.first().map(|token| &token.kind), Some(lexer::Kind::Name(name)) if name == "generation")
            }
            _ => false,
        };
        lexer::pieces(&self.source, Dialect::Chat).is_ok_and(|pieces| pieces.iter().any(is_generation))
    }

    /// Returns the conversation as text.
    ///
    /// Fields of a message that are null are left out, and reasoning is passed under all its names
    /// (`reasoning_content`, `thinking`), as transformers does both.
    ///
    /// Errors if the template raises, if it uses something undefined or in a way Python would not let it,
    /// and at its limits.
    pub fn render(&self, request: &ChatRequest) -> Result<Rendered, Error> {
        let mut messages = messages_for(request)?;
        if !request.continue_final_message {
            return self.render_messages(request, messages);
        }
        let last = continued::mark(&mut messages, &self.source)?;
        let rendered = self.render_messages(request, messages)?;
        Ok(Rendered { text: continued::cut(rendered.text, &last)?, generation_spans: Vec::new() })
    }

    fn render_messages(&self, request: &ChatRequest, messages: Vec<Json>) -> Result<Rendered, Error> {
        let meter = Arc::new(Meter::new(self.limits, request.now));
        let mut variables: Vec<(&str, Value)> = Vec::new();
        for (name, json) in self.special_tokens.iter().chain(&request.extra) {
            variables.push((name, value::from_json(json)?));
        }
        let list = |list: Option<&[Json]>| match list {
            Some(list) => value::from_json(&Json::Array(list.to_vec())),
            None => Ok(Value::from(())),
        };
        variables.push(("messages", value::from_json(&Json::Array(messages))?));
        variables.push(("tools", list(request.tools)?));
        variables.push(("documents", list(request.documents)?));
        variables.push(("add_generation_prompt", request.add_generation_prompt.into()));
        variables.push((METER, Value::from_dyn_object(meter.clone())));
        let mut writer =
            machine::TextWriter { bytes: Vec::new(), limit: self.limits.output_bytes, meter: meter.clone() };
        let root = Value::from_pairs(variables);
        self.env.get_template(NAME)?.render_captured_to(root, &mut writer)?;
        let spans = meter.spans.lock().map(|spans| spans.clone()).unwrap_or_default();
        let text = String::from_utf8(writer.bytes)
            .map_err(|_| Error::Type { line: 0, what: "the text is not UTF-8".into() })?;
        Ok(Rendered { text, generation_spans: spans })
    }
}

/// The names under which a message's reasoning comes; the first is the one that templates read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Returns the messages without null fields, reasoning under all its names.
fn messages_for(request: &ChatRequest) -> Result<Vec<Json>, Error> {
    let fail = |what: &str| Err(Error::Request { what: what.into() });
    if request.messages.is_empty() {
        return fail("Cannot apply chat template to an empty conversation. Provide at least one message.");
    }
    if request.continue_final_message && request.add_generation_prompt {
        return fail("the last message cannot be continued and a new one begun at once");
    }
    let mut messages = Vec::with_capacity(request.messages.len());
    for message in request.messages {
        let Json::Object(fields) = message else { return fail("a message must be a JSON object") };
        let fields = fields.iter().filter(|(_, value)| !value.is_null());
        let mut fields: Map<String, Json> = fields.map(|(key, value)| (key.clone(), value.clone())).collect();
        if let Some(reasoning) = REASONING.iter().find_map(|key| fields.get(*key)).cloned() {
            let mut aliased = Map::from_iter([("thinking".to_owned(), reasoning.clone())]);
            aliased.extend(fields);
            aliased.insert("reasoning_content".to_owned(), reasoning);
            fields = aliased;
        }
        messages.push(Json::Object(fields));
    }
    Ok(messages)
}

//! The model's chat template, as suites use it.

use std::cell::Cell;

use chrono::{NaiveDate, NaiveDateTime, NaiveTime};
use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

use super::OptionError;
use crate::data::encode::DATE;
use crate::eval::data::hex;
use crate::eval::prompt::{Message, Role};
use crate::eval::report;
use crate::eval::run::ChatFailure;
use crate::text::Tokenizer;
use crate::text::chat::{ChatRequest, ChatTemplate, Error};

/// Returns the day that templates see.
pub fn date(given: Option<&str>) -> Result<NaiveDate, OptionError> {
    let Some(given) = given else { return Ok(DATE) };
    NaiveDate::parse_from_str(given, "%Y-%m-%d").map_err(|_| OptionError::BadDate { given: given.to_owned() })
}

/// A chat template and its day.
pub struct Chat {
    source: String,
    /// A broken template is of no matter to a run without chats.
    template: Result<ChatTemplate, Error>,
    date: NaiveDate,
    has_folded: Cell<bool>,
}

impl Chat {
    /// Returns the tokenizer's chat template, if it has one.
    pub fn of(tokenizer: &Tokenizer, date: NaiveDate) -> Option<Chat> {
        let source = tokenizer.chat_template()?.to_owned();
        let template = ChatTemplate::new(&source, tokenizer.special_tokens());
        Some(Chat { source, template, date, has_folded: Cell::new(false) })
    }

    /// Returns the text up to where the assistant answers.
    ///
    /// Some templates refuse a system message: then its text goes before the first user message, a blank line
    /// between.
    pub fn render(&self, messages: &[Message]) -> Result<String, ChatFailure> {
        let template = self.template.as_ref().map_err(failure)?;
        match (self.text(template, messages), messages) {
            (Err(Error::Raised { .. }), [system, user, rest @ ..])
                if system.role == Role::System && user.role == Role::User =>
            {
                self.has_folded.set(true);
                let content = format!("{}\n\n{}", system.content, user.content);
                let mut folded = vec![Message { role: Role::User, content }];
                folded.extend_from_slice(rest);
                self.text(template, &folded).map_err(|error| failure(&error))
            }
            (text, _) => text.map_err(|error| failure(&error)),
        }
    }

    fn text(&self, template: &ChatTemplate, messages: &[Message]) -> Result<String, Error> {
        let message = |message: &Message| json!({"role": message.role.name(), "content": message.content});
        let messages: Vec<Json> = messages.iter().map(message).collect();
        let mut request = ChatRequest::new(&messages, NaiveDateTime::new(self.date, NaiveTime::MIN));
        request.add_generation_prompt = true;
        Ok(template.render(&request)?.text)
    }

    /// Returns whether a system message had to become part of a user message.
    pub fn has_folded(&self) -> bool {
        self.has_folded.get()
    }

    /// Returns what the report says of the template.
    pub fn report(&self) -> report::ChatTemplateUse {
        report::ChatTemplateUse {
            sha256: hex(&Sha256::digest(&self.source)),
            date: self.date.format("%Y-%m-%d").to_string(),
        }
    }
}

fn failure(error: &Error) -> ChatFailure {
    let hint = "score the model with plain prompts: --chat-template off".to_owned();
    ChatFailure { why: error.to_string(), hint: Some(hint) }
}

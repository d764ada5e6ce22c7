//! From a record to token ids and what of them is trained.
//!
//! A conversation goes through the chat template. Which tokens the assistant wrote, the template says with
//! `{% generation %}`; else it is the difference between the text up to where the assistant answers and the text behind
//! its answer, both of which must be beginnings of the whole. The token that ends a turn is trained with the turn. The
//! tokenizer's beginning goes in front unless the text has it, as in `lctl eval`.

mod boundary;
mod spans;

use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::{NaiveDate, NaiveDateTime};
use serde::Serialize;
use serde_json::{Map, Value as Json};

use super::format::{Chat, Record};
use super::{Error, Example, Pair, Place, RowError};
use crate::text::chat::{ChatRequest, ChatTemplate, Rendered};
use crate::text::{EncodeOptions, Tokenizer};

/// The day that templates see unless the user names one: the same texts on every day.
pub const DATE: NaiveDate = NaiveDate::from_ymd_opt(2026, 1, 1).expect("a day of the calendar");

/// The template called `plain`: messages separated by an empty line, an answer behind a space, as `lctl eval` asks models
/// without a chat template.
const PLAIN: &str = "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}\
                     {% else %}{{ ('' if loop.first else '\\n\\n') + m['content'] }}{% endif %}{% endfor %}";

/// What of a row is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainOn {
    /// Every message of the assistant; completions.
    #[default]
    Assistant,
    /// The assistant's last message; completions.
    LastAssistant,
    /// Completions alone: conversations must have a prompt of their own.
    Completion,
    /// Everything.
    All,
}

impl TrainOn {
    /// Every choice by name.
    pub const NAMES: [(&str, TrainOn); 4] = [
        ("assistant", TrainOn::Assistant),
        ("last_assistant", TrainOn::LastAssistant),
        ("completion", TrainOn::Completion),
        ("all", TrainOn::All),
    ];
}

/// Where the chat template comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplateSource {
    /// The tokenizer's own, if it has one.
    Model,
    Plain,
    /// This text.
    Text(String),
}

/// How records become tokens.
pub struct Settings {
    pub template: TemplateSource,
    pub train_on: TrainOn,
    /// What a template takes for today.
    pub date: NaiveDate,
    /// Variables for the template; a row's own come before them.
    pub variables: Map<String, Json>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            template: TemplateSource::Model,
            train_on: TrainOn::default(),
            date: DATE,
            variables: Map::new(),
        }
    }
}

/// Makes examples of records.
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    template: Option<ChatTemplate>,
    train_on: TrainOn,
    now: NaiveDateTime,
    variables: Map<String, Json>,
    /// What the tokenizer puts before a text, and its text.
    beginning: (Vec<u32>, String),
    /// What is put behind a text that has no end.
    end: Option<u32>,
    /// Answers that begin inside a token.
    straddling: AtomicUsize,
}

/// Ids of a whole row and the ranges `[start, end)` of them that are trained.
struct Encoded {
    ids: Vec<u32>,
    targets: Vec<(usize, usize)>,
}

impl<'a> Encoder<'a> {
    /// Errors if the template cannot be read.
    pub fn new(tokenizer: &'a Tokenizer, settings: &Settings) -> Result<Encoder<'a>, Error> {
        let end = tokenizer.eos().or(tokenizer.end_of_generation().first().copied());
        let mut special = tokenizer.special_tokens().clone();
        let source = match &settings.template {
            TemplateSource::Model => tokenizer.chat_template(),
            TemplateSource::Plain => {
                let text = end.map(|end| tokenizer.decode(&[end], false)).unwrap_or_default();
                special.insert("eos_token".into(), text.into());
                Some(PLAIN)
            }
            TemplateSource::Text(text) => Some(text.as_str()),
        };
        let beginning = beginning_of(tokenizer)?;
        let beginning_text = tokenizer.decode(&beginning, false);
        Ok(Encoder {
            tokenizer,
            template: source.map(|source| ChatTemplate::new(source, &special)).transpose()?,
            train_on: settings.train_on,
            now: settings.date.and_time(chrono::NaiveTime::MIN),
            variables: settings.variables.clone(),
            beginning: (beginning, beginning_text),
            end,
            straddling: AtomicUsize::new(0),
        })
    }

    /// Returns the chat template's text, if there is one.
    pub fn template(&self) -> Option<&str> {
        self.template.as_ref().map(ChatTemplate::source)
    }

    /// Returns what the user should know of the texts encoded so far.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.end.is_none() {
            notes.push("the tokenizer has no end token: the model is not taught to stop".to_owned());
        }
        match self.straddling.load(Ordering::Relaxed) {
            0 => {}
            n => notes.push(format!(
                "in {n} answers the first token begins inside the prompt: when the model is asked, the prompt will be cut into \
                 other tokens"
            )),
        }
        notes
    }

    /// Returns the example of a record that is no pair.
    pub fn example(&self, record: &Record, place: &Place) -> Result<Example, RowError> {
        self.unit(record, self.train_on, place)
    }

    /// Returns the two examples of a pair of answers; the targets are the answers, whatever `train_on` says.
    pub fn pair(&self, record: &Record, place: &Place) -> Result<Pair, RowError> {
        let Record::Preference { chosen, rejected } = record else {
            return Err(RowError::Shape("the row is no pair of answers".into()));
        };
        let chosen = self.unit(chosen, TrainOn::Completion, place)?;
        let rejected = self.unit(rejected, TrainOn::Completion, place)?;
        match chosen.tokens == rejected.tokens {
            true => Err(RowError::SameAnswers),
            false => Ok(Pair { chosen, rejected }),
        }
    }

    fn unit(&self, record: &Record, train_on: TrainOn, place: &Place) -> Result<Example, RowError> {
        let Encoded { ids, targets } = match record {
            Record::Chat(chat) => self.chat(chat, train_on)?,
            Record::Completion { prompt, completion } => self.completion(prompt, completion, train_on)?,
            Record::Text(text) => self.completion("", text, train_on)?,
            Record::Preference { .. } => {
                return Err(RowError::Shape("the row is a pair of answers, for `kind: dpo`".into()));
            }
        };
        let example = Example::new(ids, &targets, place.clone());
        match example.is_target.contains(&true) {
            true => Ok(example),
            false => Err(RowError::NoTarget),
        }
    }

    fn completion(&self, prompt: &str, completion: &str, train_on: TrainOn) -> Result<Encoded, RowError> {
        let text = format!("{prompt}{completion}");
        let mut ids = self.ids(&text)?;
        let start = match train_on {
            TrainOn::All => 0,
            _ => self.first_token_from(&text, &ids, prompt.len())?,
        };
        if !ids.last().is_some_and(|id| self.ends(*id)) {
            ids.extend(self.end);
        }
        let end = ids.len();
        Ok(self.begun(&text, Encoded { ids, targets: vec![(start, end)] }))
    }

    fn chat(&self, chat: &Chat, train_on: TrainOn) -> Result<Encoded, RowError> {
        let n = chat.messages.len();
        let whole = self.render(chat, n, false)?;
        self.check_all_is_read(chat, &whole.text)?;
        let mut ids = self.ids(&whole.text)?;
        let by_assistant = |index: usize| chat.messages[index]["role"] == "assistant";
        let mut targets = Vec::new();
        if train_on == TrainOn::All {
            targets.push((0, ids.len()));
        } else {
            for (start, end) in self.answer_spans(chat, &whole, train_on)? {
                let range = (
                    self.first_token_from(&whole.text, &ids, start)?,
                    self.end_token_of(&whole.text, &ids, end)?,
                );
                targets.push(self.with_end_of_turn(&ids, range));
            }
        }
        if by_assistant(n - 1)
            && let Some(last) = targets.last_mut()
        {
            self.end_row(&mut ids, last);
        }
        Ok(self.begun(&whole.text, Encoded { ids, targets }))
    }

    /// Puts the tokenizer's beginning before the ids of a text that has none.
    fn begun(&self, text: &str, encoded: Encoded) -> Encoded {
        let (beginning, beginning_text) = &self.beginning;
        if !beginning_text.is_empty() && text.starts_with(beginning_text.as_str()) {
            return encoded;
        }
        let n = beginning.len();
        let targets = encoded.targets.into_iter();
        // the beginning itself is given, never predicted
        Encoded {
            ids: beginning.iter().copied().chain(encoded.ids).collect(),
            targets: targets.map(|(start, end)| (start + n, end + n)).collect(),
        }
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>, RowError> {
        Ok(self.tokenizer.encode(text, EncodeOptions { add_special: false, parse_special: true })?)
    }

    /// Returns the text of the first `n` messages.
    fn render(&self, chat: &Chat, n: usize, asks: bool) -> Result<Rendered, RowError> {
        let template = self.template.as_ref().ok_or(RowError::NoTemplate)?;
        let mut extra = self.variables.clone();
        extra.extend(chat.variables.clone());
        let request = ChatRequest {
            tools: chat.tools.as_deref(),
            add_generation_prompt: asks,
            extra,
            ..ChatRequest::new(&chat.messages[..n], self.now)
        };
        Ok(template.render(&request)?)
    }

    /// Errors if the template passes over tools, calls of tools, or messages of roles that not every template knows.
    fn check_all_is_read(&self, chat: &Chat, text: &str) -> Result<(), RowError> {
        let left_out = |what: String| Err(RowError::NotRendered { what });
        let is_unchanged = |changed: Chat| {
            self.render(&changed, changed.messages.len(), false).is_ok_and(|rendered| rendered.text == text)
        };
        if chat.tools.is_some() && is_unchanged(Chat { tools: None, ..chat.clone() }) {
            return left_out("`tools`".into());
        }
        for (index, message) in chat.messages.iter().enumerate() {
            let role = message["role"].as_str().unwrap_or_default();
            let changed = |change: &dyn Fn(&mut Map<String, Json>)| {
                let mut changed = chat.clone();
                changed.messages[index].as_object_mut().into_iter().for_each(change);
                changed
            };
            if message.get("tool_calls").is_some()
                && is_unchanged(changed(&|fields| drop(fields.shift_remove("tool_calls"))))
            {
                return left_out(format!("`tool_calls` of message {}", index + 1));
            }
            if !["system", "user", "assistant"].contains(&role)
                && is_unchanged(changed(&|fields| {
                    drop(fields.insert("content".into(), "other words".into()))
                }))
            {
                return left_out(format!("message {}, whose role is `{role}`", index + 1));
            }
        }
        Ok(())
    }
}

/// Returns what the tokenizer puts before a text. What it puts behind one is left to templates and to this module.
fn beginning_of(tokenizer: &Tokenizer) -> Result<Vec<u32>, Error> {
    const TEXT: &str = "a";
    let encode = |add_special| tokenizer.encode(TEXT, EncodeOptions { add_special, parse_special: true });
    let (with, bare) = (encode(true)?, encode(false)?);
    let at = with.windows(bare.len().max(1)).position(|window| window == bare);
    Ok(with[..at.unwrap_or(0)].to_vec())
}

#[cfg(test)]
mod tests;

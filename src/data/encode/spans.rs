//! Which bytes of a rendered conversation the assistant wrote.

use super::{Encoder, TrainOn};
use crate::data::RowError;
use crate::data::format::Chat;
use crate::text::chat::Rendered;

impl Encoder<'_> {
    /// Returns the byte ranges `[start, end)` of the answers that are trained, ascending.
    pub(super) fn answer_spans(
        &self,
        chat: &Chat,
        whole: &Rendered,
        train_on: TrainOn,
    ) -> Result<Vec<(usize, usize)>, RowError> {
        let wanted = wanted(chat, train_on)?;
        let Some(first) = wanted.first().copied() else { return Ok(Vec::new()) };
        if chat.untrained.is_empty() && !whole.generation_spans.is_empty() {
            let start = self.start_of(chat, whole, first)?;
            let spans = whole.generation_spans.iter().copied();
            return Ok(spans.filter(|(from, _)| *from >= start).collect());
        }
        wanted.iter().map(|message| self.difference(chat, whole, *message)).collect()
    }

    /// Returns a byte behind the answers before message `first` and not behind its own.
    fn start_of(&self, chat: &Chat, whole: &Rendered, first: usize) -> Result<usize, RowError> {
        let is_first_answer = !chat.messages[..first].iter().any(|message| message["role"] == "assistant");
        if is_first_answer {
            return Ok(0);
        }
        let before = self.render(chat, first, false)?.text;
        let shared = before.bytes().zip(whole.text.bytes()).take_while(|(before, whole)| before == whole);
        Ok(shared.count())
    }

    /// Returns the range between the text up to where message `message` begins and the text behind it.
    fn difference(&self, chat: &Chat, whole: &Rendered, message: usize) -> Result<(usize, usize), RowError> {
        if message == 0 {
            return Err(RowError::Shape(
                "message 1 is the assistant's: there is nothing that it answers".into(),
            ));
        }
        let changed = || RowError::NotPrefixPreserving { message: message + 1 };
        let prompt = self.render(chat, message, true)?.text;
        if !whole.text.starts_with(&prompt) {
            return Err(changed());
        }
        if message + 1 == chat.messages.len() {
            return Ok((prompt.len(), whole.text.len()));
        }
        let answered = self.render(chat, message + 1, false)?.text;
        match whole.text.starts_with(&answered) && answered.len() >= prompt.len() {
            true => Ok((prompt.len(), answered.len())),
            false => Err(changed()),
        }
    }
}

/// Returns the numbers of the messages that are trained.
fn wanted(chat: &Chat, train_on: TrainOn) -> Result<Vec<usize>, RowError> {
    let is_answer = |index: &usize| *index >= chat.prompt && chat.messages[*index]["role"] == "assistant";
    let mut answers: Vec<usize> = (0..chat.messages.len()).filter(is_answer).collect();
    match train_on {
        TrainOn::LastAssistant => drop(answers.drain(..answers.len().saturating_sub(1))),
        TrainOn::Completion if chat.prompt == 0 => {
            return Err(RowError::Shape(
                "`train_on: completion`, but a conversation has none: take `assistant` or `last_assistant`"
                    .into(),
            ));
        }
        TrainOn::Assistant | TrainOn::Completion | TrainOn::All => {}
    }
    answers.retain(|index| !chat.untrained.contains(index));
    Ok(answers)
}

//! Two answers to one prompt, the first preferred.

use super::completion::answer;
use super::{Chat, Format, Record, present, shape};
use crate::data::{Row, RowError};

pub const FORMAT: Format = Format {
    name: "preference",
    about: "`chosen` and `rejected`, texts behind `prompt` or lists of messages; `prompt` may be left out of lists that begin alike",
    fields: &["chosen", "rejected"],
    is_preference: true,
    read,
};

fn read(row: &Row) -> Result<Record, RowError> {
    let (mut chosen, mut rejected) = (answer(row, "chosen")?, answer(row, "rejected")?);
    if chosen == rejected {
        return Err(RowError::SameAnswers);
    }
    match (&mut chosen, &mut rejected) {
        (Record::Chat(chosen), Record::Chat(rejected)) => split_prompt(row, chosen, rejected)?,
        (Record::Completion { .. }, Record::Completion { .. }) => {}
        _ => return shape("one of `chosen` and `rejected` is text, the other is a list"),
    }
    Ok(Record::Preference { chosen: Box::new(chosen), rejected: Box::new(rejected) })
}

/// Without a prompt of its own, the prompt is what both begin with.
fn split_prompt(row: &Row, chosen: &mut Chat, rejected: &mut Chat) -> Result<(), RowError> {
    if present(row, "prompt").is_none() {
        let both = chosen.messages.iter().zip(&rejected.messages);
        let shared = both.take_while(|(chosen, rejected)| chosen == rejected).count();
        (chosen.prompt, rejected.prompt) = (shared, shared);
    }
    match chosen.prompt {
        0 => shape("`chosen` and `rejected` have no prompt in common, and there is no `prompt`"),
        _ => Ok(()),
    }
}

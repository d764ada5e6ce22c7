//! Text that ends inside the last message: a tag is put behind it, and the text cut where the tag comes out.

use serde_json::Value as Json;

use super::error::Error;
use super::value::is_space;

const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

fn fail<T>(what: &str) -> Result<T, Error> {
    Err(Error::Request { what: what.into() })
}

/// Puts the tag behind the last message's text and returns that text.
pub(super) fn mark(messages: &mut [Json], source: &str) -> Result<String, Error> {
    let content = messages.last_mut().and_then(|message| message.get_mut("content"));
    if content.is_some() && !source.contains("content") {
        return fail("the last message is to be continued, but the template does not read `content`");
    }
    let text = match content {
        Some(Json::Array(parts)) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
        Some(text) => Some(text),
        None => None,
    };
    match text {
        Some(Json::String(text)) => {
            let before = text.clone();
            text.push_str(TAG);
            Ok(before)
        }
        _ => fail("the last message is to be continued, but it has no text in `content`"),
    }
}

/// Returns the text up to the tag, without white space at its end if the template trimmed the message.
pub(super) fn cut(mut text: String, last: &str) -> Result<String, Error> {
    let (last, tag) = (last.trim_matches(is_space), TAG.trim_end());
    match text.rfind(tag) {
        Some(at) if text.contains(last) => {
            let keeps_space = text[at..].starts_with(TAG);
            text.truncate(at);
            if !keeps_space {
                text.truncate(text.trim_end_matches(is_space).len());
            }
            Ok(text)
        }
        _ => fail("the last message is to be continued, but the template leaves some of it out"),
    }
}

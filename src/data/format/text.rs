//! Plain text, all of which is trained.

use super::{Format, Record, shape, text};
use crate::data::{Row, RowError};

pub const FORMAT: Format = Format {
    name: "text",
    about: "`text`: all of it is trained, whatever `train_on` says",
    fields: &["text"],
    is_preference: false,
    read,
};

fn read(row: &Row) -> Result<Record, RowError> {
    let text = text(row, "text")?;
    match text.trim().is_empty() {
        true => shape("`text` is empty"),
        false => Ok(Record::Text(text)),
    }
}

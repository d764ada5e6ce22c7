//! A plain text file: one row, with the field `text`.

use std::path::Path;

use super::{Container, Rows};
use crate::data::{Error, Row};
use crate::read::text_of;

pub const TEXT: Container =
    Container { name: "txt", about: "the whole file is one text", extensions: &["txt", "md"], read };

fn read(path: &Path, bytes: &[u8]) -> Result<Rows, Error> {
    let text = text_of(path, bytes)?;
    if text.trim().is_empty() {
        return Ok(Rows::new());
    }
    Ok(vec![(1, Ok(Row::from_iter([("text".to_owned(), text.into())])))])
}

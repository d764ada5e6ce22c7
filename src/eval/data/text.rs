//! Plain text: the field `text`.

use super::{Error, Format, Input, Row, Rows};

pub const WHOLE: Format = Format {
    name: "text",
    about: "the whole file as one document with the field `text`",
    is_text: true,
    parts: &[],
    read: whole,
};

pub const LINES: Format = Format {
    name: "lines",
    about: "each line that is not blank as a document with the field `text`",
    is_text: true,
    parts: &[],
    read: lines,
};

fn whole(input: &Input) -> Result<Rows, Error> {
    if input.text.is_empty() { Ok(Vec::new()) } else { Ok(vec![(1, row(input.text))]) }
}

fn lines(input: &Input) -> Result<Rows, Error> {
    let lines = input.text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    Ok(lines.map(|(index, line)| (index + 1, row(line))).collect())
}

fn row(text: &str) -> Row {
    Row::from_iter([("text".to_owned(), text.into())])
}

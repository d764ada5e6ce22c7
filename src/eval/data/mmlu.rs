//! MMLU's layout (Hendrycks et al., arXiv:2009.03300): `question, A, B, C, D, answer`, no header.

use super::{Error, Format, Input, Row, Rows, multiple_choice, separated};

pub const FORMAT: Format = Format {
    name: "mmlu",
    about: "comma-separated question, choices and answer (a letter, or an index from 0), with or without a header",
    is_text: true,
    parts: &[],
    read,
};

fn read(input: &Input) -> Result<Rows, Error> {
    let mut records = separated::comma_records(input)?;
    let is_header = |values: &[String]| {
        values.first().is_some_and(|first| first == "question")
            && values.last().is_some_and(|last| last == "answer")
    };
    if records.first().is_some_and(|(_, values)| is_header(values)) {
        records.remove(0);
    }
    records.into_iter().map(|(line, values)| Ok((line, row(input, line, values)?))).collect()
}

fn row(input: &Input, line: usize, mut values: Vec<String>) -> Result<Row, Error> {
    if !(4..=28).contains(&values.len()) {
        let what =
            format!("{} values, but a question, 2 to 26 choices and an answer are expected", values.len());
        return Err(Error::row(input, line, what));
    }
    // The length was checked just now.
    let answer = values.pop().unwrap_or_default();
    let question = values.remove(0);
    let index = index_of(answer.trim()).filter(|index| *index < values.len()).ok_or_else(|| {
        let last = char::from(b'A' + (values.len() - 1) as u8);
        let what = format!(
            "answer `{answer}` is neither a letter from A to {last} nor an index below {}",
            values.len()
        );
        Error::row(input, line, what)
    })?;
    Ok(multiple_choice(question, values, index))
}

fn index_of(answer: &str) -> Option<usize> {
    match answer.as_bytes() {
        [letter @ b'A'..=b'Z'] => Some(usize::from(letter - b'A')),
        _ => answer.parse().ok(),
    }
}

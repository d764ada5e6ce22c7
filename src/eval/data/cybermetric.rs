//! CyberMetric (Tihanyi et al., arXiv:2402.07688): `{"questions": [{question, answers: {A: ..}, solution}]}`.

use serde_json::Value as Json;

use super::{Error, Format, Input, Row, Rows, json, multiple_choice};

pub const FORMAT: Format = Format {
    name: "cybermetric",
    about: "CyberMetric's JSON files (80, 500, 2000 and 10000 questions)",
    is_text: true,
    parts: &[],
    read,
};

fn read(input: &Input) -> Result<Rows, Error> {
    let records = json::records(input, Some("questions"))?;
    records.into_iter().map(|(line, value)| Ok((line, row(input, line, &value)?))).collect()
}

fn row(input: &Input, line: usize, value: &Json) -> Result<Row, Error> {
    let text = |key: &str| match value.get(key) {
        Some(Json::String(text)) => Ok(text.as_str()),
        Some(other) => {
            Err(Error::row(input, line, format!("`{key}` is {}, not text", super::kind_of(other))))
        }
        None => Err(Error::row(input, line, format!("the question has no `{key}`"))),
    };
    let (question, solution) = (text("question")?, text("solution")?);
    let answers = value
        .get("answers")
        .and_then(Json::as_object)
        .ok_or_else(|| Error::row(input, line, "`answers` is not an object of letters and answers"))?;
    let mut choices = Vec::new();
    let mut answer = None;
    for (index, (letter, choice)) in answers.iter().enumerate() {
        let expected = char::from(b'A' + index.min(25) as u8).to_string();
        if *letter != expected {
            return Err(Error::row(input, line, format!("answer `{letter}` where `{expected}` is due")));
        }
        let choice = choice
            .as_str()
            .ok_or_else(|| Error::row(input, line, format!("answer `{letter}` is not text")))?;
        if letter == solution.trim() {
            answer = Some(index);
        }
        choices.push(choice.to_owned());
    }
    let answer = answer.ok_or_else(|| {
        Error::row(input, line, format!("solution `{solution}` is none of the {} answers", choices.len()))
    })?;
    Ok(multiple_choice(question.to_owned(), choices, answer))
}

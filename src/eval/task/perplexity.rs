//! Perplexity of whole texts, each predicted from its first token on in windows of the model's context.

use serde_json::{Map, Value as Json, json};

use super::{Ask, Error, Inquiry, Outcome, Scores, Task, TaskType, column, template};
use crate::eval::data::Document;
use crate::eval::request::Response;
use crate::eval::score::{Metric, count_words};
use crate::eval::stats::Addition;
use crate::eval::template::Template;
use crate::kernel::math64::exp;
use crate::yaml::Fields;

pub const TYPE: TaskType = TaskType {
    name: "perplexity",
    about: "how well texts are predicted: word_perplexity, byte_perplexity, bits_per_byte",
    has_prompt: false,
    chat_by_default: false,
    parse,
};

#[derive(Debug)]
struct Perplexity {
    text: Template,
}

fn parse(fields: &Fields) -> Option<Box<dyn Task>> {
    let text = template(&fields.required("text"))?;
    Some(Box::new(Perplexity { text }))
}

/// Returns every figure by name.
pub fn figures(scores: &[&Scores]) -> [(&'static str, f64); 3] {
    let total = |name: &str| column(scores, name).iter().sum::<f64>();
    let nll_per = |unit: &str| -total("log_prob") / total(unit);
    [
        ("word_perplexity", exp(nll_per("words"))),
        ("byte_perplexity", exp(nll_per("bytes"))),
        ("bits_per_byte", nll_per("bytes") / std::f64::consts::LN_2),
    ]
}

impl Task for Perplexity {
    fn inquire(&self, document: &Document) -> Result<Inquiry, Error> {
        let text = self.text.render(&document.fields)?;
        if text.trim().is_empty() {
            return Err(Error::BlankText);
        }
        Ok(Inquiry { question: String::new(), asks: vec![Ask::Text(text)] })
    }

    fn solution(&self, document: &Document) -> Result<String, Error> {
        Ok(self.text.render(&document.fields)?)
    }

    fn score(&self, document: &Document, responses: &[Response]) -> Result<Outcome, Error> {
        let [Response::Rolling(found)] = responses else { return Err(Error::OtherKind) };
        let text = self.text.render(&document.fields)?;
        let scores = Scores::from_iter([
            ("log_prob".to_owned(), found.log_prob),
            ("words".to_owned(), count_words(&text) as f64),
            ("bytes".to_owned(), text.len() as f64),
        ]);
        let details = Map::from_iter([("n_tokens".to_owned(), json!(found.n_tokens))]);
        Ok(Outcome { target: Json::Null, prediction: Json::Null, scores, details })
    }

    /// exp(-sum of log-probabilities / sum of words or bytes) over all documents; no standard error.
    fn aggregate(&self, scores: &[&Scores]) -> Vec<Metric> {
        let metric = |(name, value): (&str, f64)| Metric {
            name: name.to_owned(),
            value,
            stderr: None,
            clustered_stderr: None,
            ci95: None,
            n: scores.len(),
            valid: None,
            higher_is_better: false,
        };
        figures(scores).map(metric).to_vec()
    }

    fn addition(&self, metric: &str, scores: &[&Scores]) -> Option<Addition<'_>> {
        let (unit, scale): (_, fn(f64) -> f64) = match metric {
            "word_perplexity" => ("words", exp),
            "byte_perplexity" => ("bytes", exp),
            "bits_per_byte" => ("bytes", |nats| nats / std::f64::consts::LN_2),
            _ => return None,
        };
        let values = column(scores, "log_prob").into_iter().map(|log_prob| -log_prob).collect();
        Some(Addition::Ratio { values, weights: column(scores, unit), scale })
    }

    fn failed(&self, _document: &Document) -> Result<Scores, Error> {
        Ok(Scores::from_iter([("log_prob".to_owned(), f64::NEG_INFINITY)]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{document, parse};
    use super::*;
    use crate::eval::request::Rolling;

    #[test]
    fn perplexities_weigh_documents_by_their_length() {
        let task = parse(&TYPE, "text: '{{ t }}'").unwrap();
        let score = |text: &str, log_prob| {
            let response = Response::Rolling(Rolling { log_prob, n_tokens: 1 });
            task.score(&document(json!({"t": text})), &[response]).unwrap().scores
        };
        let (first, second) = (score("a é", -2.0), score("b", -4.0));
        let metrics = task.aggregate(&[&first, &second]);
        assert_eq!(metrics[0].value, exp(2.0)); // 3 words
        assert_eq!(metrics[1].value, exp(6.0 / 5.0)); // 5 bytes
        assert_eq!(metrics[2].value, 6.0 / 5.0 / std::f64::consts::LN_2);
        for blank in ["", " \n"] {
            let error = task.inquire(&document(json!({"t": blank}))).unwrap_err();
            assert_eq!(error.to_string(), "the text has no words");
        }
    }
}

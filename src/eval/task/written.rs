//! What task types share that let the model write: the prompt, how to generate, taking an answer out of a text.

use regex::Regex;
use serde_json::{Map, Value as Json, json};

use super::{Ask, Error, Inquiry, Scores, column, template};
use crate::eval::data::Document;
use crate::eval::request::{Generated, Response, Sampling};
use crate::eval::score::{Metric, NORMALIZATIONS, Normalization, Valid, mean, normalization};
use crate::eval::template::Template;
use crate::yaml::{Fields, Node};

/// A prompt, and how the answer to it is generated.
#[derive(Debug)]
pub struct Written {
    prompt: Template,
    max_tokens: usize,
    stop: Vec<String>,
    sampling: Sampling,
}

impl Written {
    /// Reads `prompt` and `generation`.
    pub fn parse(fields: &Fields) -> Option<Written> {
        let prompt = template(&fields.required("prompt"));
        let (max_tokens, stop, sampling) = parse_generation(&fields.required("generation"));
        Some(Written { prompt: prompt?, max_tokens, stop, sampling })
    }

    /// Returns the question of a document and the one thing asked.
    pub fn inquiry(&self, document: &Document) -> Result<Inquiry, Error> {
        let question = self.prompt.render(&document.fields)?;
        let (max_tokens, stop, sampling) = (self.max_tokens, self.stop.clone(), self.sampling);
        Ok(Inquiry { question, asks: vec![Ask::Generation { max_tokens, stop, sampling }] })
    }
}

/// Returns what the model wrote, if that is what was asked.
pub fn written(responses: &[Response]) -> Result<&Generated, Error> {
    match responses {
        [Response::Generated(generated)] => Ok(generated),
        _ => Err(Error::OtherKind),
    }
}

/// Returns the keys of samples.jsonl that every written answer has.
pub fn details(generated: &Generated) -> Map<String, Json> {
    Map::from_iter([
        ("text".to_owned(), json!(generated.text)),
        ("n_tokens".to_owned(), json!(generated.tokens.len())),
        ("finish_reason".to_owned(), json!(generated.finish_reason)),
    ])
}

/// Returns 1 for true.
pub fn one_if(is_right: bool) -> f64 {
    f64::from(u8::from(is_right))
}

/// Returns the mean of a score over all documents, and over those whose score `valid` is not 0.
pub fn metric_with_valid(name: &str, scores: &[&Scores], valid: &str) -> Metric {
    let values = column(scores, name);
    let is_valid = column(scores, valid);
    let kept: Vec<f64> =
        values.iter().zip(&is_valid).filter(|(_, valid)| **valid > 0.0).map(|(value, _)| *value).collect();
    let value = (!kept.is_empty()).then(|| mean(&kept));
    Metric { valid: Some(Valid { value, n: kept.len() }), ..Metric::mean(name, &values) }
}

fn parse_generation(node: &Node) -> (usize, Vec<String>, Sampling) {
    if !node.is_present() {
        return (0, Vec::new(), Sampling::GREEDY);
    }
    let fields = node.fields();
    let max_tokens = fields.required("max_tokens");
    let count = max_tokens.count();
    if max_tokens.is_count() && count == 0 {
        max_tokens.note("`max_tokens` is 0");
    }
    let stop = fields.optional("stop").map(|node| node.texts()).unwrap_or_default();
    if stop.iter().any(String::is_empty) {
        node.note("an empty stop string would end every answer at once");
    }
    let number = |key, low: f64, high: f64, default: f32| {
        let Some(node) = fields.optional(key) else { return default };
        let number = node.number();
        if !(low..=high).contains(&number) {
            node.note(format!("`{key}` must be between {low} and {high}, not {number}"));
        }
        number as f32
    };
    let sampling = Sampling {
        temperature: number("temperature", 0.0, 100.0, 0.0),
        top_k: fields.optional("top_k").map_or(0, |node| node.count() as usize),
        top_p: number("top_p", 0.0, 1.0, 1.0),
        min_p: number("min_p", 0.0, 1.0, 0.0),
    };
    for key in ["top_k", "top_p", "min_p"].into_iter().filter(|_| sampling.temperature == 0.0) {
        if let Some(node) = fields.optional(key) {
            node.note(format!("`{key}` needs a `temperature` above 0"));
        }
    }
    (count as usize, stop, sampling)
}

/// Takes the answer out of what the model wrote.
#[derive(Debug)]
pub struct Extract {
    pattern: Regex,
    group: usize,
    takes_last: bool,
}

impl Extract {
    /// Reads `{regex, group, take}`.
    pub fn parse(node: &Node) -> Option<Extract> {
        let fields = node.fields();
        let pattern = pattern_and_group(&fields);
        let takes_last =
            fields.optional("take").is_some_and(|node| node.one_of(&[("first", false), ("last", true)]));
        let (pattern, group) = pattern?;
        Some(Extract { pattern, group, takes_last })
    }

    /// Reads `{regex, group}`, for a pattern whose matches all count.
    pub fn parse_every(node: &Node) -> Option<Extract> {
        let (pattern, group) = pattern_and_group(&node.fields())?;
        Some(Extract { pattern, group, takes_last: false })
    }

    /// Returns the first or last match.
    pub fn of<'a>(&self, text: &'a str) -> Option<&'a str> {
        let mut found = self.every(text);
        if self.takes_last { found.last() } else { found.next() }
    }

    /// Returns all matches, in order.
    pub fn every<'a>(&self, text: &'a str) -> impl Iterator<Item = &'a str> {
        let found = self.pattern.captures_iter(text).filter_map(|captures| captures.get(self.group));
        found.map(|found| found.as_str())
    }
}

/// Returns what `extract` takes out of the text; the whole text without it.
pub fn answer<'a>(extract: Option<&Extract>, text: &'a str) -> Option<&'a str> {
    extract.map_or(Some(text), |extract| extract.of(text))
}

/// Reads an optional `extract`; errors are noted.
pub fn optional_extract(fields: &Fields) -> Option<Extract> {
    fields.optional("extract").and_then(|node| Extract::parse(&node))
}

fn pattern_and_group(fields: &Fields) -> Option<(Regex, usize)> {
    let pattern_node = fields.required("regex");
    let source = pattern_node.text();
    let group_node = fields.optional("group");
    let group = group_node.as_ref().map_or(0, |node| node.count() as usize);
    if source.is_empty() {
        if pattern_node.is_text() {
            pattern_node.note("`regex` is empty");
        }
        return None;
    }
    // linear in the text whatever the pattern; the size bounds what a pattern may cost to compile
    let pattern = match regex::RegexBuilder::new(&source).size_limit(1 << 20).build() {
        Ok(pattern) => pattern,
        Err(error) => {
            let what = error.to_string();
            let reason = what.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            pattern_node.note(format!("not a regular expression: {reason}"));
            return None;
        }
    };
    if group >= pattern.captures_len()
        && let Some(node) = group_node
    {
        node.note(format!("the pattern has {} groups, not {group}", pattern.captures_len() - 1));
    }
    Some((pattern, group))
}

/// Returns the steps of these names.
pub fn steps_of(names: &[&str]) -> Vec<&'static Normalization> {
    names.iter().filter_map(|name| normalization(name)).collect()
}

/// Reads an optional `normalize`; `default` where it is left out.
pub fn optional_steps(fields: &Fields, default: &[&str]) -> Vec<&'static Normalization> {
    fields.optional("normalize").map_or_else(|| steps_of(default), |node| parse_steps(&node))
}

/// Reads a list of normalizations.
pub fn parse_steps(node: &Node) -> Vec<&'static Normalization> {
    let mut steps = Vec::new();
    for item in node.items() {
        let name = item.text();
        match normalization(&name) {
            Some(step) => steps.push(step),
            None if !item.is_text() => {}
            None => item.unknown(&name, &NORMALIZATIONS.iter().map(|step| step.name).collect::<Vec<_>>()),
        }
    }
    steps
}

//! Classification: one of a fixed set of labels, written by the model or the likeliest of them.

use regex::Regex;
use serde_json::{Map, Value as Json, json};

use super::written::{self, Extract, Written, details, metric_with_valid, one_if, optional_extract, written};
use super::{Ask, Error, Inquiry, Outcome, Scores, Task, TaskType, column, template};
use crate::eval::data::Document;
use crate::eval::request::Response;
use crate::eval::score::{Metric, first_max};
use crate::eval::stats::Addition;
use crate::eval::template::Template;
use crate::yaml::{Fields, Node};

pub const TYPE: TaskType = TaskType {
    name: "classification",
    about: "one of a set of labels: acc, macro_f1, and a confusion matrix",
    has_prompt: true,
    chat_by_default: true,
    parse,
};

const ACC: &str = "acc";
const VALID: &str = "acc.valid";
/// The mean F1 of the labels that documents have.
pub const MACRO_F1: &str = "macro_f1";
/// Greatest index of a label that is read back.
const MOST_LABELS: f64 = 1e6;
/// Index of the label.
const TARGET: &str = "label.target";
/// Index of the label, -1 if the answer names none.
const PREDICTION: &str = "label.prediction";

#[derive(Debug)]
struct Classification {
    labels: Labels,
    target: Template,
    answer: Answer,
}

/// How the model answers.
#[derive(Debug)]
enum Answer {
    Written {
        written: Written,
        extract: Option<Extract>,
        take: Take,
    },
    /// The label whose name is the likeliest answer.
    Likelihood {
        prompt: Template,
    },
}

/// Which of several labels in an answer counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Take {
    /// None, unless they are all the same one.
    #[default]
    Only,
    First,
    Last,
}

#[derive(Debug)]
struct Labels {
    names: Vec<String>,
    /// Every spelling in lower case, and its label's index; the longest first.
    spellings: Vec<(String, usize)>,
    pattern: Regex,
}

fn parse(fields: &Fields) -> Option<Box<dyn Task>> {
    let labels = Labels::parse(&fields.required("labels"));
    let target = template(&fields.required("target"));
    let by = fields.optional("by");
    let is_written = by.is_none_or(|node| node.one_of(&[("generation", true), ("likelihood", false)]));
    let answer = match is_written {
        true => {
            let written = Written::parse(fields);
            let extract = optional_extract(fields);
            let take = fields.optional("take").map_or(Take::Only, |node| {
                node.one_of(&[("only", Take::Only), ("first", Take::First), ("last", Take::Last)])
            });
            written.map(|written| Answer::Written { written, extract, take })
        }
        false => template(&fields.required("prompt")).map(|prompt| Answer::Likelihood { prompt }),
    };
    Some(Box::new(Classification { labels: labels?, target: target?, answer: answer? }))
}

/// Returns whether a word goes on with these characters, from its end on outwards: with a letter, a digit, `_`, or a hyphen
/// and one of them.
fn is_joined(mut outwards: impl Iterator<Item = char>) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    match outwards.next() {
        Some('-' | '\u{2010}' | '\u{2011}') => outwards.next().is_some_and(is_word),
        next => next.is_some_and(is_word),
    }
}

impl Labels {
    /// Reads a list of names, or of `{name, aliases}`.
    fn parse(node: &Node) -> Option<Labels> {
        let mut names: Vec<String> = Vec::new();
        let mut spellings: Vec<(String, usize)> = Vec::new();
        for item in node.items() {
            let mut texts = Vec::new();
            if item.is_mapping() {
                let fields = item.fields();
                texts.push(fields.required("name").text());
                texts.extend(fields.optional("aliases").map(|node| node.texts()).unwrap_or_default());
            } else {
                texts.push(item.text());
            }
            for text in &texts {
                let spelling = text.trim().to_lowercase();
                if spelling.is_empty() {
                    item.note("a label or alias is empty");
                } else if spellings.iter().any(|(known, _)| *known == spelling) {
                    item.note(format!("two labels are spelled `{spelling}` (case does not count)"));
                }
                spellings.push((spelling, names.len()));
            }
            names.push(texts.swap_remove(0));
        }
        if node.is_list() && names.len() < 2 {
            node.note(format!("{} labels; at least 2 are needed", names.len()));
        }
        // of two spellings that begin alike the longer one is meant
        spellings.sort_by_key(|(spelling, _)| std::cmp::Reverse(spelling.len()));
        let alternatives: Vec<String> =
            spellings.iter().map(|(spelling, _)| regex::escape(spelling)).collect();
        match Regex::new(&alternatives.join("|")) {
            Ok(pattern) => Some(Labels { names, spellings, pattern }),
            Err(_) => {
                node.note("the labels are too long to search for");
                None
            }
        }
    }

    fn exactly(&self, text: &str) -> Option<usize> {
        let text = text.to_lowercase();
        let is_frame =
            |c: char| c.is_whitespace() || matches!(c, '.' | '"' | '\'' | '`' | '*' | '_' | '(' | ')');
        let found = |text: &str| {
            self.spellings.iter().find(|(spelling, _)| spelling == text).map(|(_, index)| *index)
        };
        found(text.trim()).or_else(|| found(text.trim_matches(is_frame)))
    }

    /// Returns the labels that stand in a text as whole words, in order; what a hyphen joins is one word.
    fn within(&self, text: &str) -> Vec<usize> {
        let text = text.to_lowercase();
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(hit) = self.pattern.find_at(&text, at) {
            let is_whole =
                !is_joined(text[..hit.start()].chars().rev()) && !is_joined(text[hit.end()..].chars());
            if is_whole {
                found.extend(self.exactly(hit.as_str()));
            }
            // where a longer spelling is part of a word, a shorter one may still begin a word further on
            let step = text[hit.start()..].chars().next().map_or(1, char::len_utf8);
            at = if is_whole { hit.end() } else { hit.start() + step };
        }
        found
    }

    fn of(&self, text: &str, take: Take) -> Option<usize> {
        if let Some(index) = self.exactly(text) {
            return Some(index);
        }
        let found = self.within(text);
        match take {
            Take::First => found.first().copied(),
            Take::Last => found.last().copied(),
            Take::Only => found.first().filter(|first| found.iter().all(|other| other == *first)).copied(),
        }
    }
}

impl Classification {
    fn target(&self, document: &Document) -> Result<usize, Error> {
        let target = self.target.render(&document.fields)?;
        let known = self.labels.exactly(&target);
        known.ok_or_else(|| Error::NoSuchLabel { target, labels: self.labels.names.clone() })
    }

    fn scores(&self, target: usize, prediction: Option<usize>) -> Scores {
        Scores::from_iter([
            (ACC.to_owned(), one_if(prediction == Some(target))),
            (VALID.to_owned(), one_if(prediction.is_some())),
            (TARGET.to_owned(), target as f64),
            (PREDICTION.to_owned(), prediction.map_or(-1.0, |index| index as f64)),
        ])
    }

    fn confusion(&self, scores: &[&Scores]) -> Confusion {
        let n = self.labels.names.len();
        let mut confusion = Confusion { matrix: vec![vec![0; n]; n], no_label: vec![0; n] };
        for (target, prediction) in column(scores, TARGET).into_iter().zip(column(scores, PREDICTION)) {
            match prediction {
                ..0.0 => confusion.no_label[target as usize] += 1,
                _ => confusion.matrix[target as usize][prediction as usize] += 1,
            }
        }
        confusion
    }
}

/// Documents by label (row) and answer.
struct Confusion {
    matrix: Vec<Vec<usize>>,
    /// Answers that name no label, per label.
    no_label: Vec<usize>,
}

/// Figures of one label.
struct Figures {
    precision: f64,
    recall: f64,
    f1: f64,
    /// Documents with the label.
    n: usize,
}

impl Confusion {
    /// A figure whose denominator is 0 is 0, as in scikit-learn.
    fn figures(&self, label: usize) -> Figures {
        let n_right = self.matrix[label][label];
        let n = self.matrix[label].iter().sum::<usize>() + self.no_label[label];
        let n_predicted: usize = self.matrix.iter().map(|row| row[label]).sum();
        let ratio = |of: usize, to: usize| if to == 0 { 0.0 } else { of as f64 / to as f64 };
        Figures {
            precision: ratio(n_right, n_predicted),
            recall: ratio(n_right, n),
            f1: ratio(2 * n_right, n + n_predicted),
            n,
        }
    }

    /// Returns the mean F1 of the labels that documents have.
    fn macro_f1(&self) -> f64 {
        let figures = (0..self.matrix.len()).map(|label| self.figures(label));
        let present: Vec<f64> = figures.filter(|figures| figures.n > 0).map(|figures| figures.f1).collect();
        crate::eval::score::mean(&present)
    }
}

/// Returns the mean F1 of the labels that documents with these scores have; `None` if they do not say their labels.
pub fn macro_f1_of_scores(scores: &[&Scores]) -> Option<f64> {
    let mut sums: Vec<f64> = Vec::new();
    let mut add = |label: f64, which: usize| {
        let at = 3 * label as usize + which;
        sums.resize(sums.len().max(3 * (label as usize + 1)), 0.0);
        sums[at] += 1.0;
    };
    for scores in scores {
        let (target, prediction) = (*scores.get(TARGET)?, *scores.get(PREDICTION)?);
        // out of a file: a task has no more labels than its suite has bytes
        if !(0.0..=MOST_LABELS).contains(&target) || prediction > MOST_LABELS {
            return None;
        }
        add(target, 1);
        if prediction >= 0.0 {
            add(prediction, 2);
        }
        if prediction == target {
            add(target, 0);
        }
    }
    Some(macro_f1_of(&sums))
}

/// Returns the mean F1 of the labels that documents have, from three sums per label (right, target, answered).
fn macro_f1_of(sums: &[f64]) -> f64 {
    let present = sums.chunks_exact(3).filter(|sums| sums[1] > 0.0);
    let f1: Vec<f64> = present.map(|sums| 2.0 * sums[0] / (sums[1] + sums[2])).collect();
    crate::eval::score::mean(&f1)
}

impl Task for Classification {
    fn inquire(&self, document: &Document) -> Result<Inquiry, Error> {
        self.target(document)?;
        match &self.answer {
            Answer::Written { written, .. } => written.inquiry(document),
            Answer::Likelihood { prompt } => Ok(Inquiry {
                question: prompt.render(&document.fields)?,
                asks: self.labels.names.iter().cloned().map(Ask::Likelihood).collect(),
            }),
        }
    }

    fn solution(&self, document: &Document) -> Result<String, Error> {
        Ok(self.labels.names[self.target(document)?].clone())
    }

    fn score(&self, document: &Document, responses: &[Response]) -> Result<Outcome, Error> {
        let target = self.target(document)?;
        let name = |index: usize| self.labels.names[index].as_str();
        let (prediction, details) = match &self.answer {
            Answer::Written { extract, take, .. } => {
                let generated = written(responses)?;
                let answer = written::answer(extract.as_ref(), &generated.text);
                (answer.and_then(|answer| self.labels.of(answer, *take)), details(generated))
            }
            Answer::Likelihood { .. } => {
                let log_prob = |response: &Response| match response {
                    Response::Loglikelihood(found) => Ok(found.log_prob),
                    _ => Err(Error::OtherKind),
                };
                let log_probs = responses.iter().map(log_prob).collect::<Result<Vec<f64>, Error>>()?;
                let details = Map::from_iter([
                    ("choices".to_owned(), json!(self.labels.names)),
                    ("log_probs".to_owned(), json!(log_probs)),
                ]);
                (Some(first_max(&log_probs)), details)
            }
        };
        let scores = self.scores(target, prediction);
        Ok(Outcome { target: json!(name(target)), prediction: json!(prediction.map(name)), scores, details })
    }

    fn aggregate(&self, scores: &[&Scores]) -> Vec<Metric> {
        let macro_f1 = self.confusion(scores).macro_f1();
        let acc = metric_with_valid(ACC, scores, VALID);
        let macro_f1 =
            Metric { name: MACRO_F1.to_owned(), value: macro_f1, stderr: None, valid: None, ..acc.clone() };
        vec![acc, macro_f1]
    }

    /// Of each label: documents that are right, that have it, and that were taken for it.
    fn addition(&self, metric: &str, scores: &[&Scores]) -> Option<Addition<'_>> {
        let n_labels = self.labels.names.len();
        let of_labels = column(scores, TARGET).into_iter().zip(column(scores, PREDICTION));
        let row = |(target, prediction): (f64, f64)| {
            let mut row = vec![0.0; 3 * n_labels];
            row[3 * target as usize + 1] += 1.0;
            if prediction >= 0.0 {
                row[3 * prediction as usize + 2] += 1.0;
            }
            if prediction == target {
                row[3 * target as usize] += 1.0;
            }
            row
        };
        let rows = of_labels.map(row).collect();
        (metric == MACRO_F1).then(|| Addition::Sums { rows, figure: Box::new(macro_f1_of) })
    }

    fn failed(&self, document: &Document) -> Result<Scores, Error> {
        Ok(self.scores(self.target(document)?, None))
    }

    fn explain(&self, scores: &[&Scores]) -> Option<(&'static str, Json)> {
        let confusion = self.confusion(scores);
        let per_label = |label: usize| {
            let Figures { precision, recall, f1, n } = confusion.figures(label);
            json!({"label": self.labels.names[label], "n": n, "precision": precision, "recall": recall, "f1": f1})
        };
        let json = json!({
            "labels": self.labels.names,
            "matrix": confusion.matrix,
            "no_label": confusion.no_label,
            "per_label": (0..self.labels.names.len()).map(per_label).collect::<Vec<_>>(),
        });
        Some(("confusion", json))
    }
}

#[cfg(test)]
mod tests;

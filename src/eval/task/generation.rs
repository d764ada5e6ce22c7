//! Generation: what the model writes, extracted by a pattern if need be, against the target.

use serde_json::{Map, json};

use super::written::{
    self, Extract, Written, details, metric_with_valid, one_if, parse_steps, steps_of, written,
};
use super::{Error, Inquiry, Outcome, Scores, Task, TaskType, Texts, column};
use crate::eval::data::Document;
use crate::eval::request::Response;
use crate::eval::score::{Metric, Normalization, SQUAD, last_number, normalize, plain_number, word_f1};
use crate::yaml::{Fields, Node};

pub const TYPE: TaskType = TaskType {
    name: "generation",
    about: "what the model writes is compared with the target: exact_match, f1, contains, matches, numeric, first_name",
    has_prompt: true,
    chat_by_default: true,
    parse,
};

#[derive(Debug)]
struct Generation {
    written: Written,
    targets: Texts,
    measures: Vec<Measure>,
}

/// The kind that compares numbers, whatever their spelling.
const NUMERIC: &str = "numeric";

/// The kind that looks for the target in the answer.
const CONTAINS: &str = "contains";

/// What a score is called that says whether an answer has what a measure needs, behind the measure's name.
const VALID: &str = ".valid";

/// The kind that looks for the first of many names.
const FIRST_NAME: &str = "first_name";

/// A way to score an answer; the best over the targets counts.
struct Kind {
    name: &'static str,
    /// Steps used where the suite names none.
    normalize: &'static [&'static str],
    /// Of the normalized answer and target.
    score: fn(&str, &str) -> f64,
}

static KINDS: &[Kind] = &[
    Kind { name: "exact_match", normalize: &[], score: |answer, target| one_if(answer == target) },
    Kind { name: "f1", normalize: SQUAD, score: word_f1 },
    Kind { name: CONTAINS, normalize: &[], score: |answer, target| one_if(answer.contains(target)) },
    // scored by the extraction alone
    Kind { name: "matches", normalize: &[], score: |_, _| 1.0 },
    // scored by `Measure::of_names`
    Kind { name: FIRST_NAME, normalize: &["strip", "lower"], score: |_, _| 0.0 },
    // scored by `Measure::of_numbers`
    Kind { name: NUMERIC, normalize: &[], score: |_, _| 0.0 },
];

struct Measure {
    name: String,
    kind: &'static Kind,
    extract: Option<Extract>,
    steps: Vec<&'static Normalization>,
    /// Targets of its own, in place of the task's.
    targets: Option<Texts>,
    /// Largest difference of equal numbers.
    tolerance: f64,
    /// The names that are looked for.
    names: Option<Texts>,
}

impl std::fmt::Debug for Measure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.kind.name)
    }
}

fn parse(fields: &Fields) -> Option<Box<dyn Task>> {
    let written = Written::parse(fields);
    let targets = Texts::parse_one_or_more(&fields.required("target"));
    let metrics = fields.required("metrics");
    let items = metrics.items();
    if metrics.is_list() && items.is_empty() {
        metrics.note("`metrics` is empty");
    }
    let measures: Vec<Measure> = items.iter().filter_map(parse_measure).collect();
    for (index, measure) in measures.iter().enumerate() {
        if measures[..index].iter().any(|other| other.name == measure.name) {
            metrics.note(format!("two metrics are called `{}`; give one a `name`", measure.name));
        }
    }
    Some(Box::new(Generation { written: written?, targets: targets?, measures }))
}

fn parse_measure(node: &Node) -> Option<Measure> {
    let kind_of = |node: &Node, name: &str| {
        let kind = KINDS.iter().find(|kind| kind.name == name);
        if kind.is_none() && node.is_text() {
            node.unknown(name, &KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>());
        }
        kind
    };
    if !node.is_mapping() {
        let name = node.text();
        let kind = kind_of(node, &name)?;
        match kind.name {
            "matches" => node.note("`matches` needs `extract`"),
            FIRST_NAME => node.note("`first_name` needs `names`"),
            _ => {}
        }
        let steps = steps_of(kind.normalize);
        return Some(Measure {
            name,
            kind,
            extract: None,
            steps,
            targets: None,
            tolerance: 0.0,
            names: None,
        });
    }
    let fields = node.fields();
    let kind_node = fields.required("kind");
    let kind = kind_of(&kind_node, &kind_node.text());
    let name = fields.optional("name").map(|node| {
        let name = node.text();
        if name.trim().is_empty() && node.is_text() {
            node.note("a metric's name is empty");
        } else if name.ends_with(VALID) {
            node.note(format!(
                "a metric cannot be called `{name}`: scores that end in `{VALID}` say which answers are valid"
            ));
        }
        name
    });
    let extract = fields.optional("extract");
    if kind.is_some_and(|kind| kind.name == "matches") && extract.is_none() {
        node.note("`matches` needs `extract`");
    }
    let extract = extract.map(|node| Extract::parse(&node));
    let targets = fields.optional("target").map(|node| Texts::parse_one_or_more(&node));
    let tolerance = match kind {
        Some(kind) if kind.name == NUMERIC => fields.optional("tolerance").map_or(0.0, |node| node.number()),
        _ => 0.0,
    };
    let names = match kind {
        Some(kind) if kind.name == FIRST_NAME => Texts::parse(&fields.required("names")),
        _ => None,
    };
    if tolerance < 0.0 {
        node.note(format!("`tolerance` must be 0 or more, not {tolerance}"));
    }
    let given = fields.optional("normalize").map(|node| parse_steps(&node));
    let kind = kind?;
    let (extract, targets) = (transposed(extract)?, transposed(targets)?);
    let steps = given.unwrap_or_else(|| steps_of(kind.normalize));
    let name = name.unwrap_or_else(|| kind.name.to_owned());
    Some(Measure { name, kind, extract, steps, targets, tolerance, names })
}

/// `None` if something stands there and is no good.
fn transposed<T>(read: Option<Option<T>>) -> Option<Option<T>> {
    match read {
        Some(None) => None,
        Some(some) => Some(some),
        None => Some(None),
    }
}

impl Generation {
    fn targets(&self, document: &Document) -> Result<Vec<String>, Error> {
        let targets = self.targets.of(document)?;
        if targets.is_empty() { Err(Error::NoTarget) } else { Ok(targets) }
    }
}

impl Measure {
    /// Returns the extracted answer, if there is one, and its score.
    fn of(
        &self,
        document: &Document,
        text: &str,
        targets: &[String],
    ) -> Result<(Option<String>, f64), Error> {
        let Some(found) = written::answer(self.extract.as_ref(), text) else { return Ok((None, 0.0)) };
        let normal = normalize(found, &self.steps);
        if self.kind.name == NUMERIC {
            let score = self.of_numbers(&normal, targets);
            return Ok((score.map(|_| found.to_owned()), score.unwrap_or(0.0)));
        }
        if let Some(names) = &self.names {
            let name = first_name(&normal, &names.of(document)?, &self.steps);
            let is_target =
                |name: &String| targets.iter().any(|target| normalize(target, &self.steps) == *name);
            let score = one_if(name.as_ref().is_some_and(is_target));
            return Ok((name, score));
        }
        let score = |target: &String| (self.kind.score)(&normal, &normalize(target, &self.steps));
        Ok((Some(found.to_owned()), targets.iter().map(score).fold(0.0, f64::max)))
    }

    /// Returns 1 if the answer's last number is one of the targets; `None` if it has no number.
    fn of_numbers(&self, answer: &str, targets: &[String]) -> Option<f64> {
        let found = last_number(answer)?;
        let is_equal = |target: &String| {
            let target = number_of(&normalize(target, &self.steps));
            target.is_ok_and(|target| is_near(found, target, self.tolerance))
        };
        Some(one_if(targets.iter().any(is_equal)))
    }

    /// Returns the texts it compares with.
    fn targets(&self, document: &Document, of_task: &[String]) -> Result<Vec<String>, Error> {
        let targets = match &self.targets {
            Some(targets) => targets.of(document)?,
            None => of_task.to_vec(),
        };
        if targets.is_empty() {
            return Err(Error::NoTarget);
        }
        if self.kind.name == NUMERIC {
            targets.iter().try_for_each(|target| number_of(&normalize(target, &self.steps)).map(drop))?;
        }
        if self.kind.name == CONTAINS {
            // every answer contains nothing
            let empty = targets.iter().position(|target| normalize(target, &self.steps).is_empty());
            if let Some(index) = empty {
                return Err(Error::EmptyText { what: "target of `contains`", number: index + 1 });
            }
        }
        Ok(targets)
    }

    /// Whether answers can lack what the measure needs.
    fn has_valid(&self) -> bool {
        matches!(self.kind.name, NUMERIC | FIRST_NAME)
            || (self.extract.is_some() && self.kind.name != "matches")
    }

    fn valid_name(&self) -> String {
        format!("{}{VALID}", self.name)
    }
}

/// Returns the name that stands first in a text as whole words, of several that begin together the longest.
fn first_name(text: &str, names: &[String], steps: &[&'static Normalization]) -> Option<String> {
    let mut best: Option<(usize, String)> = None;
    for name in names {
        let name = normalize(name, steps);
        let Some(at) = whole_word(text, &name) else { continue };
        let is_better = |(at_best, best): &(usize, String)| (at, best.len()) < (*at_best, name.len());
        if best.as_ref().is_none_or(is_better) {
            best = Some((at, name));
        }
    }
    best.map(|(_, name)| name)
}

/// Returns where a word or several first stand in a text with no letter or digit beside them.
fn whole_word(text: &str, word: &str) -> Option<usize> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let is_whole = |at: &usize| {
        !text[..*at].ends_with(is_part) && !text[at + word.len()..].starts_with(is_part) && !word.is_empty()
    };
    text.match_indices(word).map(|(at, _)| at).find(is_whole)
}

/// Returns whether two numbers differ by at most `tolerance`. A number of decimal digits is rounded when it becomes binary, so
/// that a tolerance above 0 is widened by what rounding can make of it: 0.4 is within 0.1 of 0.3.
fn is_near(found: f64, target: f64, tolerance: f64) -> bool {
    // three numbers rounded by half a unit each, and their difference
    let rounding = 2.0 * f64::EPSILON * found.abs().max(target.abs()).max(tolerance);
    found == target || tolerance > 0.0 && (found - target).abs() <= tolerance + rounding
}

fn number_of(target: &str) -> Result<f64, Error> {
    let number = plain_number(target).parse().ok().filter(|number: &f64| number.is_finite());
    number.ok_or_else(|| Error::BadTarget { target: target.to_owned(), what: "number" })
}

impl Task for Generation {
    fn inquire(&self, document: &Document) -> Result<Inquiry, Error> {
        let targets = self.targets(document)?;
        for measure in &self.measures {
            measure.targets(document, &targets)?;
            measure.names.as_ref().map(|names| names.of(document)).transpose()?;
        }
        self.written.inquiry(document)
    }

    /// The first target.
    fn solution(&self, document: &Document) -> Result<String, Error> {
        Ok(self.targets(document)?.swap_remove(0))
    }

    fn score(&self, document: &Document, responses: &[Response]) -> Result<Outcome, Error> {
        let generated = written(responses)?;
        let targets = self.targets(document)?;
        let mut scores = Scores::new();
        let mut predictions = Map::new();
        for measure in &self.measures {
            let targets = measure.targets(document, &targets)?;
            let (answer, score) = measure.of(document, &generated.text, &targets)?;
            scores.insert(measure.name.clone(), score);
            if measure.has_valid() {
                scores.insert(measure.valid_name(), one_if(answer.is_some()));
            }
            predictions.insert(measure.name.clone(), json!(answer));
        }
        let target = if targets.len() == 1 { json!(targets[0]) } else { json!(targets) };
        Ok(Outcome { target, prediction: predictions.into(), scores, details: details(generated) })
    }

    fn aggregate(&self, scores: &[&Scores]) -> Vec<Metric> {
        let metric = |measure: &Measure| match measure.has_valid() {
            true => metric_with_valid(&measure.name, scores, &measure.valid_name()),
            false => Metric::mean(&measure.name, &column(scores, &measure.name)),
        };
        self.measures.iter().map(metric).collect()
    }

    fn failed(&self, _document: &Document) -> Result<Scores, Error> {
        let of_measure = |measure: &Measure| {
            let valid = measure.has_valid().then(|| measure.valid_name());
            [Some(measure.name.clone()), valid].into_iter().flatten().map(|name| (name, 0.0))
        };
        Ok(self.measures.iter().flat_map(of_measure).collect())
    }
}

#[cfg(test)]
mod tests;

//! Generation: what the model writes, extracted by a pattern if need be, against the target.

use regex::Regex;
use serde_json::{Map, json};

use super::{Ask, Error, Inquiry, Outcome, Scores, Task, TaskType, Texts, column, template};
use crate::eval::data::Document;
use crate::eval::request::{Response, Sampling};
use crate::eval::score::{
    Metric, NORMALIZATIONS, Normalization, SQUAD, Valid, mean, normalization, normalize, word_f1,
};
use crate::eval::template::Template;
use crate::yaml::{Fields, Node};

pub const TYPE: TaskType = TaskType {
    name: "generation",
    about: "what the model writes is compared with the target: exact_match, f1, contains, matches",
    has_prompt: true,
    chat_by_default: true,
    parse,
};

#[derive(Debug)]
struct Generation {
    prompt: Template,
    targets: Texts,
    max_tokens: usize,
    stop: Vec<String>,
    sampling: Sampling,
    measures: Vec<Measure>,
}

/// A way to score an answer; the best over the targets counts.
struct Kind {
    name: &'static str,
    /// Steps used where the suite names none.
    normalize: &'static [&'static str],
    /// Of the normalized answer and target.
    score: fn(&str, &str) -> f64,
}

static KINDS: &[Kind] = &[
    Kind {
        name: "exact_match",
        normalize: &[],
        score: |answer, target| f64::from(u8::from(answer == target)),
    },
    Kind { name: "f1", normalize: SQUAD, score: word_f1 },
    Kind {
        name: "contains",
        normalize: &[],
        score: |answer, target| f64::from(u8::from(answer.contains(target))),
    },
    // scored by the extraction alone
    Kind { name: "matches", normalize: &[], score: |_, _| 1.0 },
];

struct Measure {
    name: String,
    kind: &'static Kind,
    extract: Option<Extract>,
    steps: Vec<&'static Normalization>,
}

impl std::fmt::Debug for Measure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.kind.name)
    }
}

/// Takes the answer out of what the model wrote.
struct Extract {
    pattern: Regex,
    group: usize,
    takes_last: bool,
}

impl Extract {
    fn of<'a>(&self, text: &'a str) -> Option<&'a str> {
        let mut found = self.pattern.captures_iter(text).filter_map(|captures| captures.get(self.group));
        let found = if self.takes_last { found.last() } else { found.next() };
        found.map(|found| found.as_str())
    }
}

fn parse(fields: &Fields) -> Option<Box<dyn Task>> {
    let prompt = template(&fields.required("prompt"));
    let target = fields.required("target");
    let targets = match target.is_list() || target.is_mapping() {
        true => Texts::parse(&target),
        false => template(&target).map(|template| Texts::Templates(vec![template])),
    };
    let (max_tokens, stop, sampling) = parse_generation(&fields.required("generation"));
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
    Some(Box::new(Generation { prompt: prompt?, targets: targets?, max_tokens, stop, sampling, measures }))
}

fn parse_generation(node: &Node) -> (usize, Vec<String>, Sampling) {
    if !node.is_present() {
        return (0, Vec::new(), Sampling::GREEDY);
    }
    let fields = node.fields();
    let max_tokens = fields.required("max_tokens");
    let count = max_tokens.count();
    if max_tokens.is_present() && count == 0 {
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
    (count as usize, stop, sampling)
}

fn parse_measure(node: &Node) -> Option<Measure> {
    let kind_of = |node: &Node, name: &str| {
        let kind = KINDS.iter().find(|kind| kind.name == name);
        if kind.is_none() && !name.is_empty() {
            node.unknown(name, &KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>());
        }
        kind
    };
    if !node.is_mapping() {
        let name = node.text();
        let kind = kind_of(node, &name)?;
        if kind.name == "matches" {
            node.note("`matches` needs `extract`");
        }
        return Some(Measure { name, kind, extract: None, steps: steps_of(kind.normalize) });
    }
    let fields = node.fields();
    let kind_node = fields.required("kind");
    let kind = kind_of(&kind_node, &kind_node.text());
    let name = fields.optional("name").map(|node| node.text());
    let extract = fields.optional("extract");
    if kind.is_some_and(|kind| kind.name == "matches") && extract.is_none() {
        node.note("`matches` needs `extract`");
    }
    let extract = extract.map(|node| parse_extract(&node));
    let given = fields.optional("normalize").map(|node| parse_steps(&node));
    let kind = kind?;
    let extract = match extract {
        Some(extract) => Some(extract?),
        None => None,
    };
    let steps = given.unwrap_or_else(|| steps_of(kind.normalize));
    Some(Measure { name: name.unwrap_or_else(|| kind.name.to_owned()), kind, extract, steps })
}

fn steps_of(names: &[&str]) -> Vec<&'static Normalization> {
    names.iter().filter_map(|name| normalization(name)).collect()
}

fn parse_steps(node: &Node) -> Vec<&'static Normalization> {
    let mut steps = Vec::new();
    for item in node.items() {
        let name = item.text();
        match normalization(&name) {
            Some(step) => steps.push(step),
            None if name.is_empty() => {}
            None => item.unknown(&name, &NORMALIZATIONS.iter().map(|step| step.name).collect::<Vec<_>>()),
        }
    }
    steps
}

fn parse_extract(node: &Node) -> Option<Extract> {
    let fields = node.fields();
    let pattern_node = fields.required("regex");
    let source = pattern_node.text();
    let group_node = fields.optional("group");
    let group = group_node.as_ref().map_or(0, |node| node.count() as usize);
    let takes_last =
        fields.optional("take").is_some_and(|node| node.one_of(&[("first", false), ("last", true)]));
    if source.is_empty() {
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
    Some(Extract { pattern, group, takes_last })
}

impl Generation {
    fn targets(&self, document: &Document) -> Result<Vec<String>, Error> {
        let targets = self.targets.of(document)?;
        if targets.is_empty() { Err(Error::NoTarget) } else { Ok(targets) }
    }
}

impl Measure {
    /// Returns the extracted answer, if there is one, and its score.
    fn of<'a>(&self, text: &'a str, targets: &[String]) -> (Option<&'a str>, f64) {
        let answer = match &self.extract {
            Some(extract) => extract.of(text),
            None => Some(text),
        };
        let Some(found) = answer else { return (None, 0.0) };
        let normal = normalize(found, &self.steps);
        let score = |target: &String| (self.kind.score)(&normal, &normalize(target, &self.steps));
        (answer, targets.iter().map(score).fold(0.0, f64::max))
    }

    fn valid_name(&self) -> String {
        format!("{}.valid", self.name)
    }
}

impl Task for Generation {
    fn inquire(&self, document: &Document) -> Result<Inquiry, Error> {
        self.targets(document)?;
        let question = self.prompt.render(&document.fields)?;
        let (max_tokens, stop, sampling) = (self.max_tokens, self.stop.clone(), self.sampling);
        Ok(Inquiry { question, asks: vec![Ask::Generation { max_tokens, stop, sampling }] })
    }

    /// The first target.
    fn solution(&self, document: &Document) -> Result<String, Error> {
        Ok(self.targets(document)?.swap_remove(0))
    }

    fn score(&self, document: &Document, responses: &[Response]) -> Result<Outcome, Error> {
        let [Response::Generated(generated)] = responses else { return Err(Error::OtherKind) };
        let targets = self.targets(document)?;
        let mut scores = Scores::new();
        let mut predictions = Map::new();
        for measure in &self.measures {
            let (answer, score) = measure.of(&generated.text, &targets);
            scores.insert(measure.name.clone(), score);
            if measure.extract.is_some() {
                scores.insert(measure.valid_name(), f64::from(u8::from(answer.is_some())));
            }
            predictions.insert(measure.name.clone(), json!(answer));
        }
        let details = Map::from_iter([
            ("text".to_owned(), json!(generated.text)),
            ("n_tokens".to_owned(), json!(generated.tokens.len())),
            ("finish_reason".to_owned(), json!(generated.finish_reason)),
        ]);
        let target = if targets.len() == 1 { json!(targets[0]) } else { json!(targets) };
        Ok(Outcome { target, prediction: predictions.into(), scores, details })
    }

    fn aggregate(&self, scores: &[&Scores]) -> Vec<Metric> {
        let metric = |measure: &Measure| {
            let values = column(scores, &measure.name);
            let mut metric = Metric::mean(&measure.name, &values);
            if measure.extract.is_some() && measure.kind.name != "matches" {
                let is_valid = column(scores, &measure.valid_name());
                let valid: Vec<f64> = values
                    .iter()
                    .zip(&is_valid)
                    .filter(|(_, valid)| **valid > 0.0)
                    .map(|(value, _)| *value)
                    .collect();
                let value = (!valid.is_empty()).then(|| mean(&valid));
                metric.valid = Some(Valid { value, n: valid.len() });
            }
            metric
        };
        self.measures.iter().map(metric).collect()
    }

    fn failed(&self) -> Scores {
        self.measures.iter().map(|measure| (measure.name.clone(), 0.0)).collect()
    }
}

#[cfg(test)]
mod tests;

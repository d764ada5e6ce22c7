//! Extraction: the set of items that the model writes, against the set that is right.

use std::collections::BTreeSet;

use serde_json::{Value as Json, json};

use super::json_answer::last_json;
use super::written::{self, Extract, Written, details, one_if, optional_extract, optional_steps, written};
use super::{Error, Inquiry, Outcome, Scores, Task, TaskType, Texts, column, template};
use crate::eval::data::Document;
use crate::eval::request::Response;
use crate::eval::score::{Metric, Normalization, normalize};
use crate::eval::stats::Addition;
use crate::eval::template::Template;
use crate::yaml::{Fields, Node};

pub const TYPE: TaskType = TaskType {
    name: "extraction",
    about: "a set of items: f1, precision, recall, exact_match, micro_f1",
    has_prompt: true,
    chat_by_default: true,
    parse,
};

struct Extraction {
    written: Written,
    target: Target,
    extract: Option<Extract>,
    items: Items,
    steps: Vec<&'static Normalization>,
}

impl std::fmt::Debug for Extraction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Extraction {:?} {:?} {:?}", self.written, self.target, self.items)
    }
}

/// Where the right items stand in a document.
#[derive(Debug)]
enum Target {
    Texts(Texts),
    /// In a text, as in an answer.
    Answer(Box<Template>),
}

impl Target {
    fn parse(node: &Node) -> Option<Target> {
        match node.is_list() || node.is_mapping() {
            true => Texts::parse(node).map(Target::Texts),
            false => template(node).map(|template| Target::Answer(Box::new(template))),
        }
    }
}

/// How items stand in an answer.
#[derive(Debug)]
enum Items {
    /// Every match.
    Matches(Extract),
    /// One per line, bullets and numbers before it not counted.
    Lines,
    /// Texts of the last JSON array.
    Json,
}

fn parse(fields: &Fields) -> Option<Box<dyn Task>> {
    let written = Written::parse(fields);
    let target = Target::parse(&fields.required("target"));
    let extract = optional_extract(fields);
    let items = Items::parse(&fields.required("items"));
    let steps = optional_steps(fields, &["strip"]);
    Some(Box::new(Extraction { written: written?, target: target?, extract, items: items?, steps }))
}

impl Items {
    fn parse(node: &Node) -> Option<Items> {
        if node.is_mapping() {
            return Extract::parse_every(node).map(Items::Matches);
        }
        match node.one_of(&[("lines", Some(true)), ("json", Some(false))]) {
            Some(true) => Some(Items::Lines),
            Some(false) => Some(Items::Json),
            None => None,
        }
    }

    fn of(&self, text: &str) -> Vec<String> {
        match self {
            Items::Matches(extract) => extract.every(text).map(str::to_owned).collect(),
            Items::Lines => text.lines().map(|line| without_bullet(line).to_owned()).collect(),
            Items::Json => {
                let array = last_json(text, Json::is_array);
                let items = array.as_ref().and_then(Json::as_array);
                items.into_iter().flatten().filter_map(Json::as_str).map(str::to_owned).collect()
            }
        }
    }
}

/// `- x`, `* x`, `3. x` and `3) x` are x.
fn without_bullet(line: &str) -> &str {
    let line = line.trim();
    let digits = line.trim_start_matches(|c: char| c.is_ascii_digit());
    let rest = match digits.len() < line.len() {
        true => digits.strip_prefix(['.', ')']),
        false => line.strip_prefix(['-', '*', '•']),
    };
    // `-1` and `1.5` are no bullets
    rest.filter(|rest| rest.starts_with(char::is_whitespace)).map_or(line, str::trim_start)
}

impl Extraction {
    fn set(&self, items: &[String]) -> BTreeSet<String> {
        let normal = items.iter().map(|item| normalize(item, &self.steps));
        normal.filter(|item| !item.is_empty()).collect()
    }

    /// Returns the right items as the document has them.
    fn texts(&self, document: &Document) -> Result<Vec<String>, Error> {
        match &self.target {
            Target::Texts(texts) => texts.of(document),
            Target::Answer(template) => {
                let text = template.render(&document.fields)?;
                let items: Vec<String> = self.answer(&text).into_iter().collect();
                // a text without items is more likely a slip than an empty set
                match items.is_empty() && !text.trim().is_empty() {
                    true => Err(Error::BadTarget { target: text, what: "list of items" }),
                    false => Ok(items),
                }
            }
        }
    }

    fn target(&self, document: &Document) -> Result<BTreeSet<String>, Error> {
        let texts = self.texts(document)?;
        let set = self.set(&texts);
        match texts.iter().position(|text| normalize(text, &self.steps).is_empty()) {
            Some(index) => Err(Error::EmptyText { what: "item", number: index + 1 }),
            None => Ok(set),
        }
    }

    /// Items are looked for in the normalized text, so that a pattern for indicators finds defanged ones, too.
    fn answer(&self, text: &str) -> BTreeSet<String> {
        let Some(answer) = written::answer(self.extract.as_ref(), text) else { return BTreeSet::new() };
        match &self.items {
            Items::Matches(_) => self.set(&self.items.of(&normalize(answer, &self.steps))),
            Items::Lines | Items::Json => self.set(&self.items.of(answer)),
        }
    }
}

/// Returns the scores of `n_right` items out of `n_answered`, where `n_target` are to be found; of nothing to be found and
/// nothing answered all are 1.
fn scores(n_right: usize, n_answered: usize, n_target: usize) -> Scores {
    let ratio = |of: usize, to: usize| match to {
        0 => one_if(n_answered == n_target),
        to => of as f64 / to as f64,
    };
    Scores::from_iter([
        ("f1".to_owned(), ratio(2 * n_right, n_answered + n_target)),
        ("precision".to_owned(), ratio(n_right, n_answered)),
        ("recall".to_owned(), ratio(n_right, n_target)),
        ("exact_match".to_owned(), one_if(n_right == n_answered && n_right == n_target)),
        ("n.right".to_owned(), n_right as f64),
        ("n.answered".to_owned(), n_answered as f64),
        ("n.target".to_owned(), n_target as f64),
    ])
}

/// The figure over the items of all documents.
pub const MICRO_F1: &str = "micro_f1";

/// Returns it of documents with these scores.
pub fn micro_f1_of(scores: &[&Scores]) -> f64 {
    let total = |name: &str| column(scores, name).iter().sum::<f64>();
    micro_f1(total("n.right"), total("n.answered") + total("n.target"))
}

/// Returns 2 * right / (answered + target), 1 if there is neither.
fn micro_f1(n_right: f64, n_both: f64) -> f64 {
    if n_both == 0.0 { 1.0 } else { 2.0 * n_right / n_both }
}

impl Task for Extraction {
    fn inquire(&self, document: &Document) -> Result<Inquiry, Error> {
        self.target(document)?;
        self.written.inquiry(document)
    }

    fn solution(&self, document: &Document) -> Result<String, Error> {
        let items = self.texts(document)?;
        Ok(match self.items {
            Items::Lines => items.join("\n"),
            Items::Json => json!(items).to_string(),
            Items::Matches(_) => items.join(", "),
        })
    }

    fn score(&self, document: &Document, responses: &[Response]) -> Result<Outcome, Error> {
        let generated = written(responses)?;
        let (target, answer) = (self.target(document)?, self.answer(&generated.text));
        let n_right = target.intersection(&answer).count();
        let scores = scores(n_right, answer.len(), target.len());
        Ok(Outcome { target: json!(target), prediction: json!(answer), scores, details: details(generated) })
    }

    /// micro_f1 is over the items of all documents together.
    fn aggregate(&self, scores: &[&Scores]) -> Vec<Metric> {
        let mean = |name: &str| Metric::mean(name, &column(scores, name));
        let mut metrics = ["f1", "precision", "recall", "exact_match"].map(mean).to_vec();
        let value = micro_f1_of(scores);
        metrics.push(Metric { name: MICRO_F1.to_owned(), value, stderr: None, ..metrics[0].clone() });
        metrics
    }

    fn addition(&self, metric: &str, scores: &[&Scores]) -> Option<Addition<'_>> {
        let parts = ["n.right", "n.answered", "n.target"].map(|name| column(scores, name));
        let rows = (0..scores.len()).map(|index| vec![parts[0][index], parts[1][index] + parts[2][index]]);
        let figure = Box::new(|sums: &[f64]| micro_f1(sums[0], sums[1]));
        (metric == MICRO_F1).then(|| Addition::Sums { rows: rows.collect(), figure })
    }

    fn failed(&self, document: &Document) -> Result<Scores, Error> {
        let n_target = self.target(document)?.len();
        // even an empty set was not answered
        let mut worst = scores(0, 0, n_target);
        ["f1", "precision", "recall", "exact_match"].iter().for_each(|name| {
            worst.insert((*name).to_owned(), 0.0);
        });
        Ok(worst)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{document, generated, parse as parse_yaml};
    use super::*;

    const IOCS: &str = r"
prompt: '{{ q }}'
target: {field: iocs}
items: {regex: '[a-z0-9.-]+\.example|(?:\d{1,3}\.){3}\d{1,3}'}
normalize: [strip, lower, refang]
generation: {max_tokens: 8}
";

    fn outcome(yaml: &str, target: Json, text: &str) -> Outcome {
        let row = document(json!({"q": "?", "iocs": target}));
        parse_yaml(&TYPE, yaml).unwrap().score(&row, &[generated(text)]).unwrap()
    }

    #[test]
    fn defanged_items_in_any_case_are_the_same_items() {
        let found = outcome(
            IOCS,
            json!(["a[.]Example", "192.0.2.1"]),
            "hxxp://A[.]example/x, 192.0.2[.]1; a.example",
        );
        assert_eq!(found.prediction, json!(["192.0.2.1", "a.example"]));
        assert_eq!((found.scores["f1"], found.scores["exact_match"]), (1.0, 1.0));
        let found = outcome(IOCS, json!(["a.example", "192.0.2.1"]), "a.example b.example c.example");
        assert_eq!(found.scores["precision"], 1.0 / 3.0);
        assert_eq!((found.scores["recall"], found.scores["f1"]), (0.5, 0.4));
    }

    #[test]
    fn nothing_to_find_and_nothing_found_is_right() {
        assert_eq!(outcome(IOCS, json!([]), "none").scores["f1"], 1.0);
        let wrong = outcome(IOCS, json!([]), "a.example").scores;
        assert_eq!([wrong["f1"], wrong["precision"], wrong["recall"]], [0.0, 0.0, 0.0]);
        let wrong = outcome(IOCS, json!(["a.example"]), "none").scores;
        assert_eq!([wrong["f1"], wrong["precision"], wrong["recall"]], [0.0, 0.0, 0.0]);
    }

    #[test]
    fn the_micro_average_weighs_items_and_the_mean_documents() {
        let task = parse_yaml(&TYPE, IOCS).unwrap();
        let one = outcome(IOCS, json!(["a.example"]), "a.example").scores;
        let two = outcome(IOCS, json!(["a.example", "b.example", "c.example"]), "").scores;
        let metrics = task.aggregate(&[&one, &two]);
        assert_eq!((metrics[0].value, metrics[4].value), (0.5, 2.0 / 5.0));
        assert_eq!((metrics[4].name.as_str(), metrics[4].stderr), ("micro_f1", None));
    }

    #[test]
    fn items_stand_in_lines_or_in_json() {
        let lines = IOCS.replace("{regex: '[a-z0-9.-]+\\.example|(?:\\d{1,3}\\.){3}\\d{1,3}'}", "lines");
        let found = outcome(&lines, json!(["a b", "-1", "1.5"]), "- A b\n\n2) a b\n-1\n1.5\n");
        assert_eq!((found.scores["f1"], found.prediction), (1.0, json!(["-1", "1.5", "a b"])));
        let json = lines.replace("lines", "json");
        let found = outcome(&json, json!(["a"]), "[\"x\"] no: ```json\n[\"A \", 3]\n```");
        assert_eq!(found.prediction, json!(["a"]));
    }

    #[test]
    fn a_target_of_one_text_is_read_as_an_answer() {
        let yaml = IOCS.replace("{field: iocs}", "'{{ iocs }}'");
        let found = outcome(&yaml, json!("b.example, A[.]example"), "a.example b.example");
        assert_eq!((found.target, found.scores["f1"]), (json!(["a.example", "b.example"]), 1.0));
        let row = document(json!({"q": "?", "iocs": "nothing here"}));
        let error = parse_yaml(&TYPE, &yaml).unwrap().inquire(&row).unwrap_err();
        assert_eq!(error.to_string(), "the target `nothing here` is no list of items");
    }

    #[test]
    fn an_empty_item_is_refused() {
        let row = document(json!({"q": "?", "iocs": ["a", " "]}));
        let error = parse_yaml(&TYPE, IOCS).unwrap().inquire(&row).unwrap_err();
        assert_eq!(error.to_string(), "item 2 is empty");
        let bad = IOCS.replace("items:", "items: 3 #");
        assert_eq!(parse_yaml(&TYPE, &bad).unwrap_err(), "suite.yaml:4:8: `items` must be text, not 3");
    }
}

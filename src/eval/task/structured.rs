//! Structured answers: JSON that obeys a schema and says the right things.

use jsonschema::Validator;
use serde_json::{Value as Json, json};

use super::json_answer::last_json;
use super::written::{self, Extract, Written, details, one_if, optional_extract, optional_steps, written};
use super::{Error, Inquiry, Outcome, Scores, Task, TaskType, column, template};
use crate::eval::data::{Document, kind_of};
use crate::eval::request::Response;
use crate::eval::score::{Metric, Normalization, normalize};
use crate::eval::template::Template;
use crate::yaml::{Fields, Node};

pub const TYPE: TaskType = TaskType {
    name: "structured",
    about: "a JSON object: valid_json, valid_schema, field_match, exact_match, a figure per field",
    has_prompt: true,
    chat_by_default: true,
    parse,
};

struct Structured {
    written: Written,
    target: Target,
    extract: Option<Extract>,
    schema: Option<Validator>,
    /// Paths of the fields that count; empty: all of the target's.
    fields: Vec<String>,
    steps: Vec<&'static Normalization>,
}

impl std::fmt::Debug for Structured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Structured {:?} {:?} {:?}", self.written, self.target, self.fields)
    }
}

/// Where the right object stands in a document.
#[derive(Debug)]
pub enum Target {
    /// A template that renders JSON.
    Template(Box<Template>),
    Field(String),
}

impl Target {
    /// Reads a template, or `{field: NAME}`.
    pub fn parse(node: &Node) -> Option<Target> {
        match node.is_mapping() {
            true => Some(Target::Field(node.fields().required("field").text())),
            false => template(node).map(|template| Target::Template(Box::new(template))),
        }
    }

    /// Returns the JSON of a document.
    pub fn of(&self, document: &Document) -> Result<Json, Error> {
        match self {
            Target::Template(template) => {
                let text = template.render(&document.fields)?;
                serde_json::from_str(&text).map_err(|error| Error::NotJson { why: error.to_string() })
            }
            Target::Field(name) => {
                document.fields.get(name).cloned().ok_or_else(|| Error::no_field(name, document))
            }
        }
    }
}

fn parse(fields: &Fields) -> Option<Box<dyn Task>> {
    let written = Written::parse(fields);
    let target = Target::parse(&fields.required("target"));
    let extract = optional_extract(fields);
    let schema = fields.optional("schema").map(|node| parse_schema(&node));
    let names = fields.optional("fields").map(|node| {
        let names = node.texts();
        if node.is_list() && names.is_empty() {
            node.note("`fields` is empty");
        }
        names
    });
    let steps = optional_steps(fields, &["strip"]);
    let schema = match schema {
        Some(schema) => Some(schema?),
        None => None,
    };
    let fields = names.unwrap_or_default();
    Some(Box::new(Structured { written: written?, target: target?, extract, schema, fields, steps }))
}

/// Compiles a schema. Patterns are linear in the text; references out of the schema are not followed.
fn parse_schema(node: &Node) -> Option<Validator> {
    let schema = node.json();
    if !schema.is_object() {
        node.note("`schema` must be a mapping");
        return None;
    }
    let options = jsonschema::options().with_pattern_options(jsonschema::PatternOptions::regex());
    match options.build(&schema) {
        Ok(validator) => Some(validator),
        Err(error) => {
            node.note(format!("not a JSON Schema: {error} (at `{}`)", error.instance_path()));
            None
        }
    }
}

impl Structured {
    fn target(&self, document: &Document) -> Result<Json, Error> {
        let target = self.target.of(document)?;
        if !target.is_object() {
            let name = match &self.target {
                Target::Field(name) => name.clone(),
                Target::Template(template) => template.source().to_owned(),
            };
            return Err(Error::OtherJson { name, found: kind_of(&target), wanted: "an object" });
        }
        if let Some(missing) = self.fields.iter().find(|name| steps_to(&target, name).is_none()) {
            return Err(Error::NoTargetField { name: missing.clone() });
        }
        if let Some(Err(error)) = self.schema.as_ref().map(|schema| schema.validate(&target)) {
            let place = error.instance_path().to_string();
            return Err(Error::BreaksSchema { place, why: error.to_string() });
        }
        Ok(target)
    }

    /// Returns the way to each field that counts, in the target; its own keys are whole, whatever dots they have.
    fn ways<'a>(&'a self, target: &'a Json) -> Vec<Vec<&'a str>> {
        match self.fields.is_empty() {
            true => target.as_object().into_iter().flatten().map(|(name, _)| vec![name.as_str()]).collect(),
            // `target` has refused a target without one of them
            false => self.fields.iter().filter_map(|name| steps_to(target, name)).collect(),
        }
    }

    /// Numbers are equal by value, texts after normalization, arrays in order.
    fn is_equal(&self, left: &Json, right: &Json) -> bool {
        match (left, right) {
            (Json::String(left), Json::String(right)) => {
                normalize(left, &self.steps) == normalize(right, &self.steps)
            }
            (Json::Number(left), Json::Number(right)) => left == right || left.as_f64() == right.as_f64(),
            (Json::Array(left), Json::Array(right)) => {
                left.len() == right.len()
                    && left.iter().zip(right).all(|(left, right)| self.is_equal(left, right))
            }
            (Json::Object(left), Json::Object(right)) => {
                let is_same = |(name, left)| right.get(name).is_some_and(|right| self.is_equal(left, right));
                left.len() == right.len() && left.iter().all(is_same)
            }
            _ => left == right,
        }
    }

    fn scores(&self, target: &Json, answer: Option<&Json>) -> Scores {
        let is_right = |way: &[&str]| match (at(target, way), answer.and_then(|answer| at(answer, way))) {
            (Some(target), Some(answer)) => self.is_equal(target, answer),
            _ => false,
        };
        let right: Vec<bool> = self.ways(target).iter().map(|way| is_right(way)).collect();
        let n_right = right.iter().filter(|right| **right).count();
        let obeys =
            answer.is_some_and(|answer| self.schema.as_ref().is_none_or(|schema| schema.is_valid(answer)));
        let mut scores = Scores::from_iter([("valid_json".to_owned(), one_if(answer.is_some()))]);
        if self.schema.is_some() {
            scores.insert("valid_schema".to_owned(), one_if(obeys));
        }
        let n = right.len();
        let share = if n == 0 { one_if(answer.is_some()) } else { n_right as f64 / n as f64 };
        scores.insert("field_match".to_owned(), share);
        scores.insert("exact_match".to_owned(), one_if(obeys && n_right == n));
        let fields = self.fields.iter().zip(right);
        scores.extend(fields.map(|(name, right)| (format!("field.{name}"), one_if(right))));
        scores
    }

    /// Returns the figures' names, the one that sums a document up first.
    fn figures(&self) -> Vec<String> {
        let mut names = vec!["exact_match".to_owned(), "field_match".to_owned(), "valid_json".to_owned()];
        names.extend(self.schema.as_ref().map(|_| "valid_schema".to_owned()));
        names.extend(self.fields.iter().map(|name| format!("field.{name}")));
        names
    }
}

/// Returns the keys and indexes that a path with dots between them stands for in a value, if it leads anywhere: a key that
/// is all of the path goes before one that is its beginning, and a longer beginning before a shorter one.
fn steps_to<'p>(value: &Json, path: &'p str) -> Option<Vec<&'p str>> {
    if at(value, &[path]).is_some() {
        return Some(vec![path]);
    }
    path.rmatch_indices('.').find_map(|(dot, _)| {
        let (step, rest) = (&path[..dot], &path[dot + 1..]);
        let mut steps = vec![step];
        steps.extend(steps_to(at(value, &[step])?, rest)?);
        Some(steps)
    })
}

/// Returns what stands at the end of keys and indexes.
fn at<'a>(value: &'a Json, steps: &[&str]) -> Option<&'a Json> {
    steps.iter().try_fold(value, |value, step| match value {
        Json::Object(fields) => fields.get(*step),
        Json::Array(items) => step.parse::<usize>().ok().and_then(|index| items.get(index)),
        _ => None,
    })
}

impl Task for Structured {
    fn inquire(&self, document: &Document) -> Result<Inquiry, Error> {
        self.target(document)?;
        self.written.inquiry(document)
    }

    fn solution(&self, document: &Document) -> Result<String, Error> {
        Ok(self.target(document)?.to_string())
    }

    fn score(&self, document: &Document, responses: &[Response]) -> Result<Outcome, Error> {
        let generated = written(responses)?;
        let target = self.target(document)?;
        let text = written::answer(self.extract.as_ref(), &generated.text);
        let answer = text.and_then(|text| last_json(text, Json::is_object));
        let scores = self.scores(&target, answer.as_ref());
        let mut details = details(generated);
        if let (Some(schema), Some(answer)) = (&self.schema, &answer)
            && let Err(error) = schema.validate(answer)
        {
            details.insert("schema_error".to_owned(), json!(error.to_string()));
        }
        Ok(Outcome { target, prediction: json!(answer), scores, details })
    }

    fn aggregate(&self, scores: &[&Scores]) -> Vec<Metric> {
        self.figures().iter().map(|name| Metric::mean(name, &column(scores, name))).collect()
    }

    fn failed(&self, document: &Document) -> Result<Scores, Error> {
        Ok(self.scores(&self.target(document)?, None))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{document, generated, parse as parse_yaml};
    use super::*;

    const YAML: &str = "
prompt: '{{ log }}'
target: {field: gold}
schema:
  type: object
  required: [verdict, ports]
  properties: {verdict: {enum: [benign, malicious]}, ports: {type: array, items: {type: integer}}}
fields: [verdict, ports, host.name]
normalize: [strip, lower]
generation: {max_tokens: 64}
";

    fn row() -> Document {
        document(
            json!({"log": "?", "gold": {"verdict": "malicious", "ports": [22], "host": {"name": "Alpha"}}}),
        )
    }

    fn scores(text: &str) -> Vec<f64> {
        let task = parse_yaml(&TYPE, YAML).unwrap();
        let scores = task.score(&row(), &[generated(text)]).unwrap().scores;
        ["valid_json", "valid_schema", "field_match", "exact_match"]
            .iter()
            .map(|name| scores[*name])
            .collect()
    }

    #[test]
    fn answers_are_checked_against_the_schema_and_field_by_field() {
        let right = r#"Sure: ```json
            {"host": {"name": "ALPHA "}, "verdict": "malicious", "ports": [22.0]}
            ```"#;
        assert_eq!(scores(right), [1.0, 1.0, 1.0, 1.0]);
        let wrong = r#"{"verdict": "MALICIOUS", "ports": [22, 80], "host": {"name": "alpha"}}"#;
        assert_eq!(scores(wrong), [1.0, 0.0, 2.0 / 3.0, 0.0]);
        assert_eq!(scores(r#"{"verdict": "malicious""#), [0.0, 0.0, 0.0, 0.0]);
        let task = parse_yaml(&TYPE, YAML).unwrap();
        let outcome = task.score(&row(), &[generated(wrong)]).unwrap();
        assert_eq!((outcome.scores["field.verdict"], outcome.scores["field.ports"]), (1.0, 0.0));
        assert!(outcome.details["schema_error"].as_str().unwrap().contains("MALICIOUS"));
        let metrics = task.aggregate(&[&outcome.scores, &task.failed(&row()).unwrap()]);
        assert_eq!((metrics[1].name.as_str(), metrics[1].value), ("field_match", 1.0 / 3.0));
    }

    /// As the Elastic Common Schema names fields: `host.name` is one key.
    #[test]
    fn a_key_with_dots_is_one_key() {
        let yaml = "prompt: p\ntarget: {field: gold}\ngeneration: {max_tokens: 9}";
        let gold = json!({"host.name": "x", "event.action": "y", "host": {"name": "z", "os.type": "linux"}});
        let row = document(json!({"gold": gold}));
        let scores = |yaml: &str, answer: Json| {
            let task = parse_yaml(&TYPE, yaml).unwrap();
            task.inquire(&row).unwrap();
            let scores = task.score(&row, &[generated(&answer.to_string())]).unwrap().scores;
            (scores["field_match"], scores["exact_match"])
        };
        assert_eq!(scores(yaml, gold.clone()), (1.0, 1.0));
        let nested = json!({"host": {"name": "x"}, "event": {"action": "y"}});
        assert_eq!(scores(yaml, nested.clone()), (0.0, 0.0));
        // the whole key goes before the path, a key and a path may follow each other
        let named = format!("{yaml}\nfields: [host.name, event.action, host.os.type]");
        assert_eq!(scores(&named, gold), (1.0, 1.0));
        assert_eq!(scores(&named, nested), (0.0, 0.0));
        assert_eq!(scores(&named, json!({"host.name": "x", "host": {"os.type": "linux"}})), (2.0 / 3.0, 0.0));
        let task = parse_yaml(&TYPE, &format!("{yaml}\nfields: [host.nam]")).unwrap();
        assert_eq!(task.inquire(&row).unwrap_err().to_string(), "the target has no field `host.nam`");
    }

    #[test]
    fn a_document_that_was_not_asked_has_the_scores_of_a_wrong_answer() {
        let task = parse_yaml(&TYPE, YAML).unwrap();
        let wrong = task.score(&row(), &[generated("no")]).unwrap().scores;
        assert_eq!(Vec::from_iter(task.failed(&row()).unwrap()), Vec::from_iter(wrong));
    }

    #[test]
    fn without_fields_all_of_the_target_count() {
        let yaml = "prompt: p\ntarget: '{\"a\": {{ x }}, \"b\": null}'\ngeneration: {max_tokens: 9}";
        let task = parse_yaml(&TYPE, yaml).unwrap();
        let row = document(json!({"x": 3}));
        let scores = task.score(&row, &[generated("{\"a\": 3}")]).unwrap().scores;
        assert_eq!((scores["field_match"], scores.get("valid_schema")), (0.5, None));
        assert_eq!(task.solution(&row).unwrap(), "{\"a\":3,\"b\":null}");
    }

    #[test]
    fn targets_must_be_what_is_asked_for() {
        let task = parse_yaml(&TYPE, YAML).unwrap();
        for (gold, message) in [
            (json!(3), "the field `gold` is a number, not an object"),
            (json!({"verdict": "benign", "ports": []}), "the target has no field `host.name`"),
            (
                json!({"verdict": "no", "ports": [], "host": {"name": ""}}),
                "the target breaks the schema at `/verdict`: \"no\" is not one of \"benign\" or \"malicious\"",
            ),
        ] {
            let error = task.inquire(&document(json!({"log": "", "gold": gold}))).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
        let bad = YAML.replace("type: object", "type: objekt");
        assert!(parse_yaml(&TYPE, &bad).unwrap_err().starts_with("suite.yaml:5:3: not a JSON Schema: "));
        let remote = YAML.replace("type: object", "$ref: 'https://schemas.example/x.json'");
        assert!(parse_yaml(&TYPE, &remote).unwrap_err().starts_with("suite.yaml:5:3: not a JSON Schema: "));
    }
}

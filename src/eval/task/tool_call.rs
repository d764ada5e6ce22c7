//! Tool calls: the right functions with exactly the right arguments, and none that is forbidden.

use serde_json::{Value as Json, json};

use super::structured::Target;
use super::tool_syntax::{Call, announces_call, calls, of_json};
use super::written::{Written, details, one_if, written};
use super::{Error, Inquiry, Outcome, Scores, Task, TaskType, Texts, column};
use crate::eval::data::{Document, kind_of};
use crate::eval::request::Response;
use crate::eval::score::Metric;
use crate::yaml::Fields;

pub const TYPE: TaskType = TaskType {
    name: "tool_call",
    about: "calls of functions: exact_match, functions, well_formed, no_forbidden",
    has_prompt: true,
    chat_by_default: true,
    parse,
};

#[derive(Debug)]
struct ToolCall {
    written: Written,
    target: Target,
    /// Functions that must not be called.
    forbidden: Option<Texts>,
    has_order: bool,
}

fn parse(fields: &Fields) -> Option<Box<dyn Task>> {
    let written = Written::parse(fields);
    let target = Target::parse(&fields.required("target"));
    let forbidden = fields.optional("forbidden").map(|node| Texts::parse_one_or_more(&node));
    let has_order =
        fields.optional("order").is_none_or(|node| node.one_of(&[("same", true), ("any", false)]));
    let forbidden = match forbidden {
        Some(forbidden) => Some(forbidden?),
        None => None,
    };
    Some(Box::new(ToolCall { written: written?, target: target?, forbidden, has_order }))
}

impl ToolCall {
    /// Returns the calls to be made; none is a target, too.
    fn target(&self, document: &Document) -> Result<Vec<Call>, Error> {
        let target = self.target.of(document)?;
        let Json::Array(items) = &target else {
            return Err(Error::NotJson { why: format!("it is {}, not a list of calls", kind_of(&target)) });
        };
        let call = |(index, item): (usize, &Json)| match of_json(item).as_slice() {
            [call] => Ok(call.clone()),
            found => {
                let why = format!("{} calls stand there, not one with `name` and `arguments`", found.len());
                Err(Error::BadCall { number: index + 1, why })
            }
        };
        items.iter().enumerate().map(call).collect()
    }

    fn forbidden(&self, document: &Document) -> Result<Option<Vec<String>>, Error> {
        let Some(forbidden) = &self.forbidden else { return Ok(None) };
        let names = forbidden.of(document)?;
        match names.iter().position(|name| name.trim().is_empty()) {
            Some(index) => Err(Error::EmptyText { what: "forbidden function", number: index + 1 }),
            None => Ok(Some(names)),
        }
    }

    /// Returns true if the calls are the same ones in the order that counts.
    fn is_same<T>(&self, target: &[T], found: &[T], is_equal: impl Fn(&T, &T) -> bool) -> bool {
        if target.len() != found.len() {
            return false;
        }
        if self.has_order {
            return target.iter().zip(found).all(|(target, found)| is_equal(target, found));
        }
        let mut left: Vec<&T> = found.iter().collect();
        target.iter().all(|target| {
            let place = left.iter().position(|found| is_equal(target, found));
            place.map(|place| left.swap_remove(place)).is_some()
        })
    }

    fn figures(&self) -> impl Iterator<Item = &'static str> {
        let forbidden = self.forbidden.as_ref().map(|_| "no_forbidden");
        ["exact_match", "functions", "well_formed"].into_iter().chain(forbidden)
    }
}

/// Texts must be equal to the letter, numbers by value.
fn is_equal(left: &Json, right: &Json) -> bool {
    match (left, right) {
        (Json::Number(left), Json::Number(right)) => left == right || left.as_f64() == right.as_f64(),
        (Json::Array(left), Json::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| is_equal(left, right))
        }
        (Json::Object(left), Json::Object(right)) => {
            let is_same = |(name, left)| right.get(name).is_some_and(|right| is_equal(left, right));
            left.len() == right.len() && left.iter().all(is_same)
        }
        _ => left == right,
    }
}

fn is_equal_call(left: &Call, right: &Call) -> bool {
    let same_value = |(name, left)| right.arguments.get(name).is_some_and(|right| is_equal(left, right));
    left.name == right.name
        && left.arguments.len() == right.arguments.len()
        && left.arguments.iter().all(same_value)
}

impl Task for ToolCall {
    fn inquire(&self, document: &Document) -> Result<Inquiry, Error> {
        self.target(document)?;
        self.forbidden(document)?;
        self.written.inquiry(document)
    }

    /// The calls as a JSON list.
    fn solution(&self, document: &Document) -> Result<String, Error> {
        let target = self.target(document)?;
        Ok(Json::from(target.iter().map(Call::json).collect::<Vec<_>>()).to_string())
    }

    fn score(&self, document: &Document, responses: &[Response]) -> Result<Outcome, Error> {
        let generated = written(responses)?;
        let target = self.target(document)?;
        let found = calls(&generated.text);
        let is_well_formed = !found.is_empty() || !announces_call(&generated.text);
        let is_exact = is_well_formed && self.is_same(&target, &found, is_equal_call);
        let is_named = is_well_formed && self.is_same(&target, &found, |left, right| left.name == right.name);
        let mut scores = Scores::from_iter([
            ("exact_match".to_owned(), one_if(is_exact)),
            ("functions".to_owned(), one_if(is_named)),
            ("well_formed".to_owned(), one_if(is_well_formed)),
        ]);
        if let Some(forbidden) = self.forbidden(document)? {
            let is_clean = found.iter().all(|call| !forbidden.contains(&call.name));
            scores.insert("no_forbidden".to_owned(), one_if(is_clean));
        }
        let listed = |calls: &[Call]| Json::from(calls.iter().map(Call::json).collect::<Vec<_>>());
        Ok(Outcome {
            target: listed(&target),
            prediction: json!(listed(&found)),
            scores,
            details: details(generated),
        })
    }

    fn aggregate(&self, scores: &[&Scores]) -> Vec<Metric> {
        self.figures().map(|name| Metric::mean(name, &column(scores, name))).collect()
    }

    fn failed(&self, _document: &Document) -> Result<Scores, Error> {
        Ok(self.figures().map(|name| (name.to_owned(), 0.0)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{document, generated, parse as parse_yaml};
    use super::*;

    const YAML: &str = "prompt: '{{ q }}'\ntarget: {field: calls}\nforbidden: [wipe_disk, '{{ also }}']\ngeneration: {max_tokens: 64}";

    fn row() -> Document {
        let calls = json!([{"name": "lookup", "arguments": {"n": 2, "who": "a"}}, {"name": "close", "arguments": {}}]);
        document(json!({"q": "?", "also": "mail_all", "calls": calls}))
    }

    fn scores(yaml: &str, row: &Document, text: &str) -> Vec<f64> {
        let task = parse_yaml(&TYPE, yaml).unwrap();
        let outcome = task.score(row, &[generated(text)]).unwrap();
        ["exact_match", "functions", "well_formed", "no_forbidden"]
            .iter()
            .map(|name| outcome.scores[*name])
            .collect()
    }

    #[test]
    fn calls_must_be_exactly_right() {
        assert_eq!(scores(YAML, &row(), "[lookup(who='a', n=2.0), close()]"), [1.0, 1.0, 1.0, 1.0]);
        assert_eq!(scores(YAML, &row(), "[lookup(who='A', n=2), close()]"), [0.0, 1.0, 1.0, 1.0]);
        assert_eq!(scores(YAML, &row(), "[close(), lookup(who='a', n=2)]"), [0.0, 0.0, 1.0, 1.0]);
        let any = format!("{YAML}\norder: any");
        assert_eq!(scores(&any, &row(), "[close(), lookup(who='a', n=2)]"), [1.0, 1.0, 1.0, 1.0]);
        assert_eq!(scores(&any, &row(), "[close(), close()]"), [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(scores(YAML, &row(), "[lookup(who='a', n=2, x=1), close()]"), [0.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn forbidden_calls_and_broken_ones_are_told_apart() {
        assert_eq!(scores(YAML, &row(), "mail_all(text='x')"), [0.0, 0.0, 1.0, 0.0]);
        assert_eq!(scores(YAML, &row(), "<tool_call>{\"name\": </tool_call>"), [0.0, 0.0, 0.0, 1.0]);
        let none = document(json!({"q": "?", "also": "x", "calls": []}));
        assert_eq!(scores(YAML, &none, "There is nothing to do."), [1.0, 1.0, 1.0, 1.0]);
        assert_eq!(scores(YAML, &none, "<tool_call>close()"), [0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn targets_are_checked() {
        let task = parse_yaml(&TYPE, YAML).unwrap();
        for (calls, message) in [
            (json!({"name": "f"}), "the target is not JSON: it is an object, not a list of calls"),
            (
                json!([{"name": "f"}]),
                "call 1 of the target: 0 calls stand there, not one with `name` and `arguments`",
            ),
        ] {
            let error = task.inquire(&document(json!({"q": "", "also": "x", "calls": calls}))).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
        let row = document(json!({"q": "", "also": " ", "calls": []}));
        assert_eq!(task.inquire(&row).unwrap_err().to_string(), "forbidden function 2 is empty");
        assert_eq!(task.solution(&super::tests::row()).unwrap().matches("name").count(), 2);
    }
}

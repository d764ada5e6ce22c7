//! What decides a run's numbers, so that a checkpoint goes on in no other run.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use super::corpus::Corpus;
use crate::finetune::recipe::Recipe;

/// Differences that are named; the rest is counted.
const NAMED: usize = 10;

/// What decides a run's numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Of the model's files, lower-case hex.
    pub model_sha256: String,
    /// Of each data file: path and SHA-256.
    pub data: Map<String, Json>,
    /// The parts of the recipe that numbers depend on, defaults written out.
    pub recipe: Json,
}

impl Identity {
    /// Returns the identity of a run over a model of that digest.
    pub fn new(recipe: &Recipe, model_sha256: String, corpus: &Corpus) -> Identity {
        let file = |file: &crate::data::FileCounts| (file.path.display().to_string(), json!(file.sha256));
        let whole = serde_json::to_value(recipe).unwrap_or_default();
        let section = |name: &str| (name.to_owned(), whole.get(name).cloned().unwrap_or_default());
        let parts = ["kind", "model", "adapter", "data", "train", "dpo", "eval", "checkpoint"];
        let recipe: Map<String, Json> = parts.into_iter().map(section).collect();
        // what is read back has gone through text; so must what it is compared with
        let text = Json::Object(recipe).to_string();
        Identity {
            model_sha256,
            data: corpus.files().iter().map(file).collect(),
            recipe: serde_json::from_str(&text).unwrap_or_default(),
        }
    }

    /// Returns the SHA-256 of the recipe's parts, lower-case hex.
    pub fn recipe_sha256(&self) -> String {
        use sha2::{Digest as _, Sha256};
        crate::data::hex(&Sha256::digest(self.recipe.to_string()))
    }

    /// Returns what differs between the run of a checkpoint and this one, a line each.
    pub fn differences(&self, checkpoint: &Identity) -> Vec<String> {
        let mut found = Vec::new();
        if self.model_sha256 != checkpoint.model_sha256 {
            found.push(format!(
                "the model's files: SHA-256 {}, was {}",
                self.model_sha256, checkpoint.model_sha256
            ));
        }
        compare(
            "the data file ",
            &Json::Object(self.data.clone()),
            &Json::Object(checkpoint.data.clone()),
            &mut found,
        );
        compare("", &self.recipe, &checkpoint.recipe, &mut found);
        if found.len() > NAMED {
            let more = found.len() - NAMED;
            found.truncate(NAMED);
            found.push(format!("and {more} more"));
        }
        found
    }
}

/// Adds a line for every value that differs, named by its path.
fn compare(path: &str, now: &Json, then: &Json, found: &mut Vec<String>) {
    let (Json::Object(new), Json::Object(old)) = (now, then) else {
        if now != then {
            found.push(format!("{path}: {now}, was {then}"));
        }
        return;
    };
    let keys = new.keys().chain(old.keys().filter(|key| !new.contains_key(*key)));
    for key in keys {
        let path = match path {
            "" => key.clone(),
            path if path.ends_with(' ') => format!("{path}{key}"),
            path => format!("{path}.{key}"),
        };
        compare(&path, new.get(key).unwrap_or(&Json::Null), old.get(key).unwrap_or(&Json::Null), found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_by_their_keys() {
        let identity = |lr: f64, digest: &str, model: &str| Identity {
            model_sha256: model.into(),
            data: [("a.jsonl".to_owned(), json!(digest))].into_iter().collect(),
            recipe: json!({"train": {"lr": lr, "seed": 1}}),
        };
        let (a, b) = (identity(0.1, "11", "aa"), identity(0.2, "22", "bb"));
        assert!(a.differences(&a).is_empty());
        assert_eq!(
            a.differences(&b),
            [
                "the model's files: SHA-256 aa, was bb",
                "the data file a.jsonl: \"11\", was \"22\"",
                "train.lr: 0.1, was 0.2"
            ]
        );
        assert_ne!(a.recipe_sha256(), b.recipe_sha256());
    }
}

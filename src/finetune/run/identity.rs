//! What decides a run's numbers, so that a checkpoint goes on in no other run.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};
use sha2::{Digest as _, Sha256};

use super::corpus::Corpus;
use crate::data::hex;
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
    /// Of what the rows became: tokens and which of them are trained, lower-case hex. Tokenizer, chat template and what else
    /// decides an encoding are in it.
    pub corpus_sha256: String,
    /// Of the general text's tokens.
    pub general_sha256: Option<String>,
    /// The parts of the recipe that numbers depend on, defaults written out.
    pub recipe: Json,
    /// Processes that the batches are dealt out to: gradients are summed in another order for another number.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub world_size: usize,
}

fn one() -> usize {
    1
}

fn is_one(world_size: &usize) -> bool {
    *world_size == 1
}

impl Identity {
    /// Returns the identity of a run over a model of that digest; `general` is the text whose loss is measured, in tokens.
    pub fn new(
        recipe: &Recipe,
        model_sha256: String,
        corpus: &Corpus,
        general: Option<&[Vec<u32>]>,
        world_size: usize,
    ) -> Identity {
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
            corpus_sha256: corpus_sha256(corpus),
            general_sha256: general.map(general_sha256),
            recipe: serde_json::from_str(&text).unwrap_or_default(),
            world_size,
        }
    }

    /// Returns what the processes of a run must have in common, by names that a message can use.
    pub fn agreed(&self) -> Vec<(String, String)> {
        let data = hex(&Sha256::digest(Json::Object(self.data.clone()).to_string()));
        [
            ("recipe's SHA-256", self.recipe_sha256()),
            ("model's SHA-256", self.model_sha256.clone()),
            ("data files' SHA-256", data),
            ("encoded rows' SHA-256", self.corpus_sha256.clone()),
            ("general text's SHA-256", self.general_sha256.clone().unwrap_or_else(|| "none".into())),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// Returns the SHA-256 of the recipe's parts, lower-case hex.
    pub fn recipe_sha256(&self) -> String {
        hex(&Sha256::digest(self.recipe.to_string()))
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
        if self.corpus_sha256 != checkpoint.corpus_sha256 {
            found.push(format!(
                "what the rows are encoded to (by tokenizer, chat template and what is trained): SHA-256 {}, was {}",
                self.corpus_sha256, checkpoint.corpus_sha256
            ));
        }
        if self.general_sha256 != checkpoint.general_sha256 {
            let shown = |digest: &Option<String>| digest.clone().unwrap_or_else(|| "none".into());
            found.push(format!(
                "the tokens of `eval.forgetting.text`: SHA-256 {}, was {}",
                shown(&self.general_sha256),
                shown(&checkpoint.general_sha256)
            ));
        }
        if self.world_size != checkpoint.world_size {
            found
                .push(format!("the number of processes: {}, was {}", self.world_size, checkpoint.world_size));
        }
        if found.len() > NAMED {
            let more = found.len() - NAMED;
            found.truncate(NAMED);
            found.push(format!("and {more} more"));
        }
        found
    }
}

/// Returns the digest of every document: its length, its tokens and which of them are trained.
fn corpus_sha256(corpus: &Corpus) -> String {
    let mut digest = Sha256::new();
    for units in [corpus.train(), corpus.validation()] {
        digest.update((units.len() as u64).to_le_bytes());
        for document in (0..units.len()).flat_map(|unit| units.documents(&[unit])) {
            add_tokens(&mut digest, document.tokens);
            digest
                .update(document.is_target.iter().map(|is_target| u8::from(*is_target)).collect::<Vec<_>>());
        }
    }
    hex(&digest.finalize())
}

fn general_sha256(documents: &[Vec<u32>]) -> String {
    let mut digest = Sha256::new();
    documents.iter().for_each(|tokens| add_tokens(&mut digest, tokens));
    hex(&digest.finalize())
}

fn add_tokens(digest: &mut Sha256, tokens: &[u32]) {
    digest.update((tokens.len() as u64).to_le_bytes());
    digest.update(tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>());
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
        let identity = |lr: f64, digest: &str, world_size: usize, model: &str| Identity {
            model_sha256: model.into(),
            data: [("a.jsonl".to_owned(), json!(digest))].into_iter().collect(),
            corpus_sha256: digest.repeat(2),
            general_sha256: (digest == "22").then(|| "2a".to_owned()),
            recipe: json!({"train": {"lr": lr, "seed": 1}}),
            world_size,
        };
        let (a, b) = (identity(0.1, "11", 1, "aa"), identity(0.2, "22", 3, "bb"));
        assert!(a.differences(&a).is_empty());
        assert_eq!(
            a.differences(&b),
            [
                "the model's files: SHA-256 aa, was bb",
                "the data file a.jsonl: \"11\", was \"22\"",
                "train.lr: 0.1, was 0.2",
                "what the rows are encoded to (by tokenizer, chat template and what is trained): SHA-256 1111, was 2222",
                "the tokens of `eval.forgetting.text`: SHA-256 none, was 2a",
                "the number of processes: 1, was 3",
            ]
        );
        assert_ne!(a.recipe_sha256(), b.recipe_sha256());
        assert!(a.agreed().iter().zip(b.agreed()).all(|(a, b)| a.0 == b.0 && a.1 != b.1));
        // of one process nothing is said: as in checkpoints from before there could be more
        let text = |identity: &Identity| serde_json::to_string(identity).unwrap();
        assert!(!text(&a).contains("world_size") && text(&b).contains("\"world_size\":3"));
        for identity in [a, b] {
            assert_eq!(serde_json::from_str::<Identity>(&text(&identity)).unwrap(), identity);
        }
    }
}

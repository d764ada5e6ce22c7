//! Recipes: one YAML file says everything about a fine-tuning run (docs/recipes.md).
//!
//! Types are in the file's own shape, so that [`Recipe::to_yaml`] writes what [`Recipe::open`] reads.

mod adapter;
mod data;
mod eval;
mod export;
mod model;
mod presets;
mod read;
mod rules;
mod train;

use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::data::hex;
use crate::yaml::{self, Document};

pub use adapter::{Adapter, AdapterKind, LowRank, Targets};
pub use data::{Data, DataFile, Scan, Template};
pub use eval::{Checkpoint, EarlyStopping, Eval, Forgetting, Gate, OnForgetting};
pub use export::{Export, Log};
pub use model::{Compute, Init, Model, Quantization};
pub use presets::{PRESETS, Preset};
pub use train::{Checkpointing, Dpo, Length, LrSchedule, Optimizer, Train};

/// The version of recipes that this program reads.
const VERSION: u64 = 1;

/// What a run is to do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    pub version: u64,
    pub kind: Kind,
    /// Directory of everything that the run writes; the command line may name another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<PathBuf>,
    pub model: Model,
    pub adapter: Adapter,
    pub data: Data,
    pub train: Train,
    /// There exactly if the kind is [`Kind::Dpo`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dpo: Option<Dpo>,
    pub eval: Eval,
    pub checkpoint: Checkpoint,
    pub export: Vec<Export>,
    pub log: Vec<Log>,
    /// Of the file's bytes, lower-case hex; what `--set` changed is not in it.
    #[serde(skip)]
    pub sha256: String,
}

/// What is minimised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The negative log-likelihood of the trained tokens.
    #[default]
    Finetune,
    /// Direct preference optimisation (Rafailov et al., arXiv:2305.18290) over pairs of answers.
    Dpo,
}

impl Recipe {
    /// Reads a recipe; `sets` are values of `--set`, `quantizations` the names that `merged-gguf` may have.
    ///
    /// Errors with everything that is wrong with file and settings.
    pub fn open(path: &Path, sets: &[String], quantizations: &[&str]) -> Result<Recipe, yaml::Error> {
        let mut document = Document::open(path)?;
        document.expect(yaml::FileKind::Recipe)?;
        for set in sets {
            document.set(set)?;
        }
        Recipe::read(&document, quantizations)
    }

    /// Reads a recipe out of a document.
    pub fn read(document: &Document, quantizations: &[&str]) -> Result<Recipe, yaml::Error> {
        let fields = document.fields();
        let version = fields.required("version");
        let found = version.count();
        if version.is_number() && found != VERSION {
            version.note(format!("this program reads recipes of version {VERSION}, not {found}"));
        }
        let kind = fields.required("kind").one_of(&[("finetune", Kind::Finetune), ("dpo", Kind::Dpo)]);
        let adapter = adapter::read(&fields.required("adapter"));
        let data = data::read(&fields.required("data"), kind);
        let dpo = fields.optional("dpo").map(|node| train::read_dpo(&node));
        let recipe = Recipe {
            version: VERSION,
            kind,
            output: fields.optional("output").map(|node| read::path(&node)),
            model: model::read(&fields.required("model")),
            data,
            train: train::read(&fields.required("train")),
            dpo: dpo.or((kind == Kind::Dpo).then(Dpo::default)),
            eval: eval::read(fields.optional("eval")),
            checkpoint: eval::read_checkpoint(fields.optional("checkpoint")),
            export: export::read(fields.optional("export"), &adapter, quantizations),
            log: export::read_log(fields.optional("log")),
            adapter,
            sha256: hex(&Sha256::digest(document.text())),
        };
        rules::check(&fields.node().clone(), &recipe);
        drop(fields);
        document.check()?;
        Ok(recipe)
    }

    /// Returns the whole recipe, every default written out.
    pub fn to_yaml(&self) -> String {
        // the types hold nothing but numbers, texts, lists and mappings with text for keys
        serde_yaml::to_string(self).unwrap_or_default()
    }

    /// Returns the files that the run reads besides the model, each with the key that names it.
    pub fn files(&self) -> Vec<(String, &Path)> {
        let mut files = self.data.files();
        let eval = &self.eval;
        if let Some(forgetting) = &eval.forgetting {
            files.push(("eval.forgetting.text".into(), &forgetting.text));
        }
        if let Some(gate) = &eval.gate {
            files.push(("eval.gate.suite".into(), &gate.suite));
            files.extend(gate.policy.as_deref().map(|policy| ("eval.gate.policy".to_owned(), policy)));
        }
        files
    }
}

#[cfg(test)]
mod tests;

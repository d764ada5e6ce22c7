//! What is measured during a run, what follows from it, and what is kept.

use std::path::PathBuf;

use serde::Serialize;

use super::read::{count, count_or, number_or, one_of_or, path};
use crate::yaml::Node;

/// What is measured during a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Eval {
    /// Steps between validations; `None`: at the end of every epoch. The last step is always followed by one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStopping>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forgetting: Option<Forgetting>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
}

/// The run ends when validation loss has not fallen for a while.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct EarlyStopping {
    /// Validations without improvement that end the run.
    pub patience: u32,
    /// Smallest fall of the loss that counts, in nats per token.
    pub min_delta: f64,
}

/// Loss on a general text before and after.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forgetting {
    pub text: PathBuf,
    /// Largest rise of the loss, in nats per token.
    pub max_increase: f64,
    /// Tokens of the text that are read.
    pub max_tokens: usize,
    pub action: OnForgetting,
}

/// What follows when more was forgotten than allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnForgetting {
    /// It is told.
    Warn,
    /// The run fails: nothing is exported.
    #[default]
    Fail,
}

/// A checkpoint is promoted only if it passes a suite.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gate {
    pub suite: PathBuf,
    /// As of `lctl gate`; its defaults if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PathBuf>,
}

/// What is kept while a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Checkpoint {
    /// Steps between checkpoints; `None`: at the end of every epoch. The last step is always followed by one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<u64>,
    /// Latest checkpoints that are kept.
    pub keep: usize,
    /// Whether the one with the lowest validation loss is kept, too, and exported.
    pub keep_best: bool,
}

impl Default for Checkpoint {
    fn default() -> Checkpoint {
        Checkpoint { every_steps: None, keep: 2, keep_best: false }
    }
}

pub fn read(node: Option<Node>) -> Eval {
    let Some(node) = node else { return Eval::default() };
    let fields = node.fields();
    Eval {
        every_steps: fields.optional("every_steps").map(|node| count(&node, 1..=u64::MAX)),
        early_stopping: fields.optional("early_stopping").map(|node| {
            let fields = node.fields();
            EarlyStopping {
                patience: count(&fields.required("patience"), 1..=1_000_000) as u32,
                min_delta: number_or(&fields, "min_delta", "0 or more", |found| found >= 0.0, 0.0),
            }
        }),
        forgetting: fields.optional("forgetting").map(|node| {
            let fields = node.fields();
            Forgetting {
                text: path(&fields.required("text")),
                max_increase: number_or(&fields, "max_increase", "0 or more", |found| found >= 0.0, 0.1),
                max_tokens: count_or(&fields, "max_tokens", 2..=1 << 30, 8192) as usize,
                action: one_of_or(
                    &fields,
                    "action",
                    &[("warn", OnForgetting::Warn), ("fail", OnForgetting::Fail)],
                    OnForgetting::Fail,
                ),
            }
        }),
        gate: fields.optional("gate").map(|node| {
            let fields = node.fields();
            Gate {
                suite: path(&fields.required("suite")),
                policy: fields.optional("policy").map(|node| path(&node)),
            }
        }),
    }
}

pub fn read_checkpoint(node: Option<Node>) -> Checkpoint {
    let Some(node) = node else { return Checkpoint::default() };
    let fields = node.fields();
    Checkpoint {
        every_steps: fields.optional("every_steps").map(|node| count(&node, 1..=u64::MAX)),
        keep: count_or(&fields, "keep", 1..=100_000, 2) as usize,
        keep_best: fields.optional("keep_best").is_some_and(|node| node.flag()),
    }
}

//! How long, in what steps and by which optimizer.

use serde::{Serialize, Serializer};

use super::read::{count, count_or, either, number, number_or, one_of_or};
use crate::finetune::{Decay, Schedule, Warmup};
use crate::yaml::{Fields, Node};

/// How long, in what steps and by which optimizer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Train {
    #[serde(flatten)]
    pub length: Length,
    /// Documents of a micro-batch, packs of them if `data.packing` is on, pairs for `kind: dpo`.
    pub micro_batch_size: usize,
    /// Micro-batches of an optimizer step.
    pub grad_accum: usize,
    pub optimizer: Optimizer,
    /// The optimizer's; the second moment's is Lion's momentum's.
    pub betas: [f64; 2],
    /// AdamW's; `None` for Lion, which has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,
    pub lr: f64,
    pub lr_schedule: LrSchedule,
    #[serde(flatten, serialize_with = "write_warmup")]
    pub warmup: Warmup,
    /// The share of `lr` that a schedule ends at; `None` for one that is constant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr_ratio: Option<f64>,
    /// The share of all steps over which `wsd` falls; `None` for other schedules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_ratio: Option<f64>,
    pub weight_decay: f64,
    /// The gradient's norm is cut to this; 0 for never.
    pub max_grad_norm: f64,
    pub seed: u64,
    pub gradient_checkpointing: Checkpointing,
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Times that every row is seen.
    Epochs(u32),
    /// Optimizer steps, epochs following each other as needed.
    MaxSteps(u64),
}

impl Serialize for Length {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(1))?;
        match self {
            Length::Epochs(epochs) => map.serialize_entry("epochs", epochs)?,
            Length::MaxSteps(steps) => map.serialize_entry("max_steps", steps)?,
        }
        map.end()
    }
}

/// What updates the parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101), as torch has it.
    #[default]
    Adamw,
    /// Chen et al., arXiv:2302.06675.
    Lion,
}

/// What becomes of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedule {
    Constant,
    Linear,
    #[default]
    Cosine,
    /// Stays, then falls linearly over the last `decay_ratio` of all steps (Hu et al., arXiv:2404.06395).
    Wsd,
}

fn write_warmup<S: Serializer>(warmup: &Warmup, serializer: S) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeMap;
    let mut map = serializer.serialize_map(Some(1))?;
    match warmup {
        Warmup::Steps(steps) => map.serialize_entry("warmup_steps", steps)?,
        Warmup::Ratio(ratio) => map.serialize_entry("warmup_ratio", ratio)?,
    }
    map.end()
}

impl Train {
    /// Returns the learning rates of a run of `total_steps` steps.
    pub fn schedule(&self, total_steps: usize) -> Schedule {
        Schedule {
            peak_lr: self.lr,
            final_lr: self.lr * self.min_lr_ratio.unwrap_or(1.0),
            warmup_steps: self.warmup.steps(total_steps),
            total_steps,
            decay: match self.lr_schedule {
                LrSchedule::Constant => Decay::Constant,
                LrSchedule::Linear => Decay::Linear,
                LrSchedule::Cosine => Decay::Cosine,
                // total_steps is below 2^53, a ratio between 0 and 1
                LrSchedule::Wsd => {
                    let ratio = self.decay_ratio.unwrap_or_default();
                    Decay::Wsd { decay_steps: (total_steps as f64 * ratio).ceil() as usize }
                }
            },
        }
    }
}

/// Whether blocks are computed anew in the backward pass instead of kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Checkpointing {
    /// If the memory does not suffice otherwise.
    #[default]
    Auto,
    On,
    Off,
}

/// Direct preference optimisation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Dpo {
    /// Weight of the divergence from the model at the start.
    pub beta: f64,
    /// Probability that a preference is the wrong way round (Mitchell 2023, "A note on DPO with noisy preferences").
    pub label_smoothing: f64,
}

impl Default for Dpo {
    fn default() -> Dpo {
        Dpo { beta: 0.1, label_smoothing: 0.0 }
    }
}

pub fn read(node: &Node) -> Train {
    let fields = node.fields();
    let optimizer = one_of_or(
        &fields,
        "optimizer",
        &[("adamw", Optimizer::Adamw), ("lion", Optimizer::Lion)],
        Optimizer::Adamw,
    );
    let lr_schedule = one_of_or(
        &fields,
        "lr_schedule",
        &[
            ("constant", LrSchedule::Constant),
            ("linear", LrSchedule::Linear),
            ("cosine", LrSchedule::Cosine),
            ("wsd", LrSchedule::Wsd),
        ],
        LrSchedule::Cosine,
    );
    unused(&fields, optimizer, lr_schedule);
    let is_share = |found: f64| (0.0..=1.0).contains(&found);
    Train {
        length: length(node, &fields),
        micro_batch_size: count_or(&fields, "micro_batch_size", 1..=65_536, 1) as usize,
        grad_accum: count_or(&fields, "grad_accum", 1..=1 << 24, 1) as usize,
        optimizer,
        betas: betas(&fields, optimizer),
        eps: (optimizer == Optimizer::Adamw)
            .then(|| number_or(&fields, "eps", "above 0", |found| found > 0.0, 1e-8)),
        lr: number(&fields.required("lr"), "above 0, at most 10", |found| found > 0.0 && found <= 10.0),
        lr_schedule,
        warmup: warmup(&fields),
        min_lr_ratio: (lr_schedule != LrSchedule::Constant)
            .then(|| number_or(&fields, "min_lr_ratio", "from 0 to 1", is_share, 0.0)),
        decay_ratio: (lr_schedule == LrSchedule::Wsd)
            .then(|| number_or(&fields, "decay_ratio", "from 0 to 1", is_share, 0.1)),
        weight_decay: number_or(&fields, "weight_decay", "0 or more", |found| found >= 0.0, 0.0),
        max_grad_norm: number_or(&fields, "max_grad_norm", "0 or more", |found| found >= 0.0, 1.0),
        seed: count_or(&fields, "seed", 0..=u64::MAX, 42),
        gradient_checkpointing: fields
            .optional("gradient_checkpointing")
            .map_or(Checkpointing::Auto, |node| checkpointing(&node)),
    }
}

fn length(node: &Node, fields: &Fields) -> Length {
    match either(fields, "epochs", "max_steps") {
        (Some(epochs), None) => Length::Epochs(count(&epochs, 1..=1_000_000) as u32),
        (None, Some(steps)) => Length::MaxSteps(count(&steps, 1..=u64::MAX)),
        (Some(_), Some(steps)) => {
            steps.note("`epochs` and `max_steps` both say how long the run is");
            Length::MaxSteps(1)
        }
        (None, None) => {
            if node.is_mapping() {
                node.note("`epochs` or `max_steps` is missing: how long is the run?");
            }
            Length::Epochs(1)
        }
    }
}

fn warmup(fields: &Fields) -> Warmup {
    match either(fields, "warmup_steps", "warmup_ratio") {
        (None, None) => Warmup::Steps(0),
        (Some(steps), None) => Warmup::Steps(count(&steps, 0..=1 << 40) as usize),
        (None, Some(ratio)) => {
            Warmup::Ratio(number(&ratio, "from 0 to 1", |found| (0.0..=1.0).contains(&found)))
        }
        (Some(_), Some(ratio)) => {
            ratio.note("`warmup_steps` and `warmup_ratio` both say how long the warm-up is");
            Warmup::Steps(0)
        }
    }
}

fn betas(fields: &Fields, optimizer: Optimizer) -> [f64; 2] {
    let default = match optimizer {
        Optimizer::Adamw => [0.9, 0.999],
        Optimizer::Lion => [0.9, 0.99],
    };
    let Some(node) = fields.optional("betas") else { return default };
    let beta =
        |node: &Node| number(node, "from 0 up to, not including, 1", |found| (0.0..1.0).contains(&found));
    match node.items().as_slice() {
        [first, second] => [beta(first), beta(second)],
        items => {
            if node.is_list() {
                node.note(format!("`betas` must be two numbers, not {}", items.len()));
            }
            default
        }
    }
}

/// Notes keys that mean nothing with the optimizer or the schedule chosen.
fn unused(fields: &Fields, optimizer: Optimizer, lr_schedule: LrSchedule) {
    let note = |key: &'static str, why: &str| {
        if let Some(node) = fields.optional(key) {
            node.note(format!("`{key}` means nothing with {why}"));
        }
    };
    if optimizer == Optimizer::Lion {
        note("eps", "`optimizer: lion`");
    }
    if lr_schedule == LrSchedule::Constant {
        note("min_lr_ratio", "`lr_schedule: constant`");
    }
    if lr_schedule != LrSchedule::Wsd {
        note("decay_ratio", "a schedule other than `wsd`");
    }
}

fn checkpointing(node: &Node) -> Checkpointing {
    match node.is_flag() {
        true if node.flag() => Checkpointing::On,
        true => Checkpointing::Off,
        false => node.one_of(&[
            ("auto", Checkpointing::Auto),
            ("on", Checkpointing::On),
            ("off", Checkpointing::Off),
        ]),
    }
}

pub fn read_dpo(node: &Node) -> Dpo {
    let fields = node.fields();
    let default = Dpo::default();
    Dpo {
        beta: number_or(&fields, "beta", "above 0", |found| found > 0.0, default.beta),
        label_smoothing: number_or(
            &fields,
            "label_smoothing",
            "from 0 up to, not including, 0.5",
            |found| (0.0..0.5).contains(&found),
            default.label_smoothing,
        ),
    }
}

//! What is trained: an adapter as PEFT has it, or every weight.

use indexmap::IndexMap;
use regex::Regex;
use serde::{Serialize, Serializer};

use super::read::{count, name, names, number};
use crate::yaml::{Fields, Node};

/// What is trained.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Adapter {
    #[serde(rename = "type")]
    pub kind: AdapterKind,
    /// `None` exactly if the kind is [`AdapterKind::None`].
    #[serde(flatten)]
    pub low_rank: Option<LowRank>,
}

/// The kind of adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterKind {
    /// y = W x + alpha / r B A x (Hu et al., arXiv:2106.09685).
    #[default]
    Lora,
    /// With alpha / sqrt(r) (Kalajdzievski, arXiv:2312.03732).
    Rslora,
    /// With a trained magnitude per row (Liu et al., arXiv:2402.09353).
    Dora,
    /// No adapter: every weight is trained.
    None,
}

/// An adapter of low rank. Names and meanings are those of PEFT's `LoraConfig`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LowRank {
    pub r: u32,
    pub alpha: f64,
    pub dropout: f64,
    pub target_modules: Targets,
    /// Modules that are trained whole and saved beside the adapter.
    pub modules_to_save: Vec<String>,
    /// Other ranks, by names or regular expressions of modules.
    pub rank_pattern: IndexMap<String, u32>,
    /// Other alphas, by names or regular expressions of modules.
    pub alpha_pattern: IndexMap<String, f64>,
}

/// The modules that get an adapter.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Every linear layer but the output head.
    AllLinear,
    /// Modules of these names, or whose names end in one of them behind a dot.
    Names(Vec<String>),
    /// Modules whose whole name matches.
    Regex(String),
}

impl Serialize for Targets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Targets::AllLinear => serializer.serialize_str(ALL_LINEAR),
            Targets::Names(names) => names.serialize(serializer),
            Targets::Regex(pattern) => serializer.serialize_str(pattern),
        }
    }
}

/// PEFT's name for every linear layer but the output head.
const ALL_LINEAR: &str = "all-linear";

pub fn read(node: &Node) -> Adapter {
    let fields = node.fields();
    let kind = fields.required("type").one_of(&[
        ("lora", AdapterKind::Lora),
        ("rslora", AdapterKind::Rslora),
        ("dora", AdapterKind::Dora),
        ("none", AdapterKind::None),
    ]);
    if kind != AdapterKind::None {
        return Adapter { kind, low_rank: Some(low_rank(&fields)) };
    }
    // the keys of an adapter are known, but mean nothing here
    for key in ["r", "alpha", "dropout", "target_modules", "modules_to_save", "rank_pattern", "alpha_pattern"]
    {
        if let Some(node) = fields.optional(key) {
            node.note(format!("`{key}` means nothing with `type: none`, which trains every weight"));
        }
    }
    Adapter { kind, low_rank: None }
}

fn low_rank(fields: &Fields) -> LowRank {
    const RANKS: std::ops::RangeInclusive<u64> = 1..=65_536;
    let is_share = |found: f64| (0.0..1.0).contains(&found);
    let alpha = |node: &Node| number(node, "above 0", |found| found > 0.0);
    LowRank {
        r: count(&fields.required("r"), RANKS) as u32,
        alpha: alpha(&fields.required("alpha")),
        dropout: fields
            .optional("dropout")
            .map_or(0.0, |node| number(&node, "from 0 up to, not including, 1", is_share)),
        target_modules: fields.optional("target_modules").map_or(Targets::AllLinear, |node| targets(&node)),
        modules_to_save: fields.optional("modules_to_save").map(|node| names(&node)).unwrap_or_default(),
        rank_pattern: patterns(fields, "rank_pattern", |node| count(node, RANKS) as u32),
        alpha_pattern: patterns(fields, "alpha_pattern", alpha),
    }
}

fn targets(node: &Node) -> Targets {
    if node.is_list() {
        let names = names(node);
        if names.is_empty() {
            node.note("`target_modules` is empty: nothing would be trained");
        }
        return Targets::Names(names);
    }
    match name(node) {
        text if text == ALL_LINEAR => Targets::AllLinear,
        text => {
            check_regex(node, &text);
            Targets::Regex(text)
        }
    }
}

fn patterns<T>(fields: &Fields, key: &'static str, read: impl Fn(&Node) -> T) -> IndexMap<String, T> {
    let entries = fields.optional(key).map(|node| node.entries()).unwrap_or_default();
    let entry = |(pattern, node): (String, Node)| {
        check_regex(&node, &pattern);
        let value = read(&node);
        (pattern, value)
    };
    entries.into_iter().map(entry).collect()
}

fn check_regex(node: &Node, pattern: &str) {
    if let Err(error) = Regex::new(pattern) {
        // the message repeats the pattern over several lines, the last of which says what is wrong
        let what = error.to_string();
        let last = what.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        node.note(format!("`{pattern}` is no regular expression: {last}"));
    }
}

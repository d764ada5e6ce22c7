//! What a run leaves behind.

use serde::{Serialize, Serializer};

use super::adapter::{Adapter, AdapterKind};
use crate::yaml::Node;

/// A form in which the result is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Export {
    /// An adapter directory as PEFT reads it.
    Peft,
    /// The adapter as llama.cpp reads it (`--lora`).
    GgufLora,
    /// The model with the adapter added, as a checkpoint.
    MergedSafetensors,
    /// The model with the adapter added, as a GGUF of a quantization.
    MergedGguf(String),
}

impl Serialize for Export {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        if let Export::MergedGguf(quantization) = self {
            let mut map = serializer.serialize_map(Some(1))?;
            map.serialize_entry(MERGED_GGUF, quantization)?;
            return map.end();
        }
        let name = NAMES.iter().find(|(_, export)| export.as_ref() == Some(self));
        serializer.serialize_str(name.map_or("", |(name, _)| name))
    }
}

const MERGED_GGUF: &str = "merged-gguf";
const NAMES: [(&str, Option<Export>); 4] = [
    ("peft", Some(Export::Peft)),
    ("gguf-lora", Some(Export::GgufLora)),
    ("merged-safetensors", Some(Export::MergedSafetensors)),
    (MERGED_GGUF, None),
];

/// A record of the run as it goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Log {
    #[default]
    Jsonl,
    Csv,
    Tensorboard,
}

pub fn read(node: Option<Node>, adapter: &Adapter, quantizations: &[&str]) -> Vec<Export> {
    let Some(node) = node else {
        return match adapter.kind {
            AdapterKind::None => vec![Export::MergedSafetensors],
            _ => vec![Export::Peft],
        };
    };
    let mut exports = Vec::new();
    for item in node.items() {
        let Some(export) = read_one(&item, quantizations) else { continue };
        if exports.contains(&export) {
            item.note("comes twice");
        }
        check(&item, &export, adapter);
        exports.push(export);
    }
    exports
}

fn read_one(node: &Node, quantizations: &[&str]) -> Option<Export> {
    if !node.is_mapping() {
        let text = node.text();
        if text == MERGED_GGUF {
            node.note("of which type? write {merged-gguf: q4_k_m}");
            return None;
        }
        let found = NAMES.iter().find(|(name, _)| *name == text);
        if found.is_none() && node.is_text() {
            node.unknown(&text, &NAMES.map(|(name, _)| name));
        }
        return found.and_then(|(_, export)| export.clone());
    }
    let fields = node.fields();
    let quantization = fields.required(MERGED_GGUF);
    let name = quantization.text();
    if quantization.is_text() && !quantizations.iter().any(|known| known.eq_ignore_ascii_case(&name)) {
        quantization.unknown(&name, quantizations);
    }
    Some(Export::MergedGguf(name))
}

/// Notes forms that cannot hold the adapter.
fn check(node: &Node, export: &Export, adapter: &Adapter) {
    let saves_modules =
        adapter.low_rank.as_ref().is_some_and(|low_rank| !low_rank.modules_to_save.is_empty());
    match (export, adapter.kind) {
        (Export::Peft | Export::GgufLora, AdapterKind::None) => {
            node.note(
                "there is no adapter to export with `type: none`; take merged-safetensors or merged-gguf",
            );
        }
        (Export::GgufLora, AdapterKind::Dora) => {
            node.note(
                "a GGUF adapter cannot hold the magnitudes of `type: dora`; take peft or a merged form",
            );
        }
        (Export::GgufLora, _) if saves_modules => {
            node.note("a GGUF adapter cannot hold `modules_to_save`; take peft or a merged form");
        }
        _ => {}
    }
}

pub fn read_log(node: Option<Node>) -> Vec<Log> {
    let Some(node) = node else { return vec![Log::Jsonl, Log::Csv] };
    let mut logs = Vec::new();
    for item in node.items() {
        let log = item.one_of(&[("jsonl", Log::Jsonl), ("csv", Log::Csv), ("tensorboard", Log::Tensorboard)]);
        if logs.contains(&log) && item.is_text() {
            item.note("comes twice");
        }
        logs.push(log);
    }
    logs
}

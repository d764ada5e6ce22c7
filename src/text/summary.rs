//! What a GGUF's `tokenizer.*` keys say, in short.

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::tensor::gguf::{Array, Metadata, Value};

/// A tokenizer at a glance, for display.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VocabSummary {
    /// `tokenizer.ggml.model`: `llama` is SentencePiece, `gpt2` byte-level BPE.
    pub model: Option<String>,
    /// `tokenizer.ggml.pre`.
    pub pre: Option<String>,
    pub n_tokens: usize,
    pub n_merges: usize,
    /// In file order.
    pub special_tokens: Vec<SpecialToken>,
    /// Flags such as `add_bos_token`, in file order.
    pub flags: Vec<(String, bool)>,
    pub chat_templates: Vec<TemplateSummary>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpecialToken {
    /// The key's role, e.g. `bos` or `padding`.
    pub role: String,
    pub id: u64,
    /// The token's text, `None` if the id is past the vocabulary.
    pub text: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TemplateSummary {
    /// `default`, or the name in `tokenizer.chat_template.NAME`.
    pub name: String,
    /// Bytes of UTF-8.
    pub n_bytes: usize,
    /// Of the UTF-8 bytes, in hexadecimal.
    pub sha256: String,
}

/// Returns what the keys say; absent keys are absent (or 0) in the summary.
pub fn summary(metadata: &Metadata) -> VocabSummary {
    let text = |key: &str| metadata.get(key).and_then(Value::as_str).map(str::to_owned);
    let strings = |key: &str| match metadata.get(key) {
        Some(Value::Array(Array::String(items))) => items.as_slice(),
        _ => &[],
    };
    let tokens = strings("tokenizer.ggml.tokens");
    let mut summary = VocabSummary {
        model: text("tokenizer.ggml.model"),
        pre: text("tokenizer.ggml.pre"),
        n_tokens: tokens.len(),
        n_merges: strings("tokenizer.ggml.merges").len(),
        special_tokens: Vec::new(),
        flags: Vec::new(),
        chat_templates: Vec::new(),
    };
    for (key, value) in metadata {
        if let Some(name) = key.strip_prefix("tokenizer.ggml.") {
            match value {
                Value::Bool(flag) => summary.flags.push((name.to_owned(), *flag)),
                value => {
                    let Some(role) = name.strip_suffix("_token_id") else { continue };
                    let Some(id) = value.as_u64() else { continue };
                    let text = usize::try_from(id).ok().and_then(|id| tokens.get(id)).cloned();
                    summary.special_tokens.push(SpecialToken { role: role.to_owned(), id, text });
                }
            }
        } else if let Some(rest) = key.strip_prefix("tokenizer.chat_template")
            && let Some(template) = value.as_str()
        {
            let name = rest.strip_prefix('.').unwrap_or("default").to_owned();
            summary.chat_templates.push(template_summary(name, template));
        }
    }
    summary
}

fn template_summary(name: String, template: &str) -> TemplateSummary {
    let digest = Sha256::digest(template.as_bytes());
    let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    TemplateSummary { name, n_bytes: template.len(), sha256 }
}

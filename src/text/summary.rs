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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_names_special_tokens_flags_and_templates() {
        let mut metadata = Metadata::new();
        let mut put = |key: &str, value: Value| metadata.insert(key.to_owned(), value);
        put("general.architecture", "llama".into());
        put("tokenizer.ggml.model", "gpt2".into());
        put("tokenizer.ggml.pre", "qwen2".into());
        put("tokenizer.ggml.tokens", Value::Array(Array::String(vec!["a".to_owned(), "<s>".to_owned()])));
        put("tokenizer.ggml.merges", Value::Array(Array::String(vec!["a a".to_owned()])));
        put("tokenizer.ggml.bos_token_id", Value::U32(1));
        put("tokenizer.ggml.padding_token_id", Value::U32(9));
        put("tokenizer.ggml.add_bos_token", Value::Bool(true));
        put("tokenizer.chat_template.tool", "".into());
        put("tokenizer.chat_template", "abc".into());
        let summary = summary(&metadata);
        assert_eq!((summary.model.as_deref(), summary.pre.as_deref()), (Some("gpt2"), Some("qwen2")));
        assert_eq!((summary.n_tokens, summary.n_merges), (2, 1));
        let token = |role: &str, id, text: Option<&str>| SpecialToken {
            role: role.to_owned(),
            id,
            text: text.map(str::to_owned),
        };
        assert_eq!(summary.special_tokens, [token("bos", 1, Some("<s>")), token("padding", 9, None)]);
        assert_eq!(summary.flags, [("add_bos_token".to_owned(), true)]);
        let names: Vec<&str> = summary.chat_templates.iter().map(|template| template.name.as_str()).collect();
        assert_eq!(names, ["tool", "default"]);
        assert_eq!(
            summary.chat_templates[1].sha256, // FIPS 180-2, appendix B.1
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_file_without_a_tokenizer_has_an_empty_summary() {
        let summary = summary(&Metadata::new());
        assert_eq!((summary.model, summary.n_tokens), (None, 0));
        assert!(summary.chat_templates.is_empty());
    }
}

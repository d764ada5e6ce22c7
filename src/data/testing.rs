//! A tokenizer for tests: a token per byte, a few special ones, some merges.

use std::path::Path;

use serde_json::json;

use crate::text::Tokenizer;

/// Messages as ChatML, without generation tags.
pub const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}\
                          {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// [`CHATML`] with generation tags around content and end of turn.
pub const TAGGED: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}\
                          {% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}\
                          {{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Characters that stand for bytes in byte-level vocabularies.
fn byte_char(byte: u8) -> char {
    let is_shown = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if is_shown(byte) {
        return char::from(byte);
    }
    let number = (0..byte).filter(|byte| !is_shown(*byte)).count() as u32;
    char::from_u32(256 + number).unwrap()
}

/// Returns a byte-level tokenizer with `<s>`, `</s>`, `<|im_start|>`, `<|im_end|>` and the merges `he`, `: ` with a letter
/// behind it. It adds `<s>` if `adds_bos`; `</s>` ends a text, `<|im_end|>` a turn.
pub fn tokenizer(dir: &Path, template: Option<&str>, adds_bos: bool) -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255 {
        vocab.insert(byte_char(byte).to_string(), byte.into());
    }
    for (number, text) in ["he", ":Ġ", ":Ġy"].iter().enumerate() {
        vocab.insert((*text).into(), (256 + number).into());
    }
    let special = |(number, text): (usize, &&str)| {
        json!({"id": 259 + number, "content": text, "special": true, "normalized": false, "lstrip": false,
               "rstrip": false, "single_word": false})
    };
    let added: Vec<_> =
        ["<s>", "</s>", "<|im_start|>", "<|im_end|>"].iter().enumerate().map(special).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
                  "merges": ["h e", ": Ġ", ":Ġ y"]},
    });
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": adds_bos, "add_eos_token": false,
                        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template});
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::open(dir).unwrap()
}

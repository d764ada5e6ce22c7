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

/// Two rows: a text that may be missing, a number, and a list of messages.
#[cfg(feature = "parquet")]
pub fn parquet_bytes() -> Vec<u8> {
    use std::sync::Arc;

    use ::parquet::basic::Compression;
    use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use ::parquet::file::properties::WriterProperties;
    use ::parquet::file::writer::SerializedFileWriter;
    use ::parquet::schema::parser::parse_message_type;

    let schema = "message schema {
        optional binary prompt (STRING);
        required int64 n;
        optional group messages (LIST) { repeated group list { optional group element {
            required binary role (STRING); optional binary content (STRING);
        } } }
    }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let text = |text: &str| ByteArray::from(text);
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&[text("größe")], Some(&[1, 0]), None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&[7, -1], None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let roles = [text("user"), text("assistant")];
    column.typed::<ByteArrayType>().write_batch(&roles, Some(&[3, 3, 0]), Some(&[0, 1, 0])).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&[text("hi")], Some(&[4, 3, 0]), Some(&[0, 1, 0])).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.into_inner().unwrap()
}

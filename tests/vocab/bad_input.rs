//! Broken tokenizers: each fault a typed error that names the file and the values, never a panic.

use lctl::error::Diagnostic;
use lctl::text::Error;
use serde_json::{Value as Json, json};

use super::{convert, convert_with, put};

/// A byte-level tokenizer.json of five tokens, with GPT-2's splits.
fn small_bpe() -> Json {
    json!({
        "added_tokens": [{"id": 3, "content": "<s>", "special": true, "normalized": false}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    })
}

/// Returns message and hint of converting `files` as a `llama` model of 4 tokens; the folder's name is cut.
fn failure(arch: &str, files: &[(&str, &str)]) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        put(dir.path(), name, content);
    }
    let error = convert(dir.path(), arch, &json!({"vocab_size": 4})).unwrap_err();
    let folder = format!("{}", dir.path().display());
    (error.to_string().replace(&folder, "DIR"), error.hint().unwrap_or_default())
}

/// Returns the message of converting tokenizer.json with a change made to [`small_bpe`].
fn changed(change: impl FnOnce(&mut Json)) -> String {
    let mut tokenizer = small_bpe();
    change(&mut tokenizer);
    failure("llama", &[("tokenizer.json", &tokenizer.to_string())]).0
}

#[test]
fn the_small_tokenizer_itself_converts() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "tokenizer.json", small_bpe().to_string());
    let vocab = convert(dir.path(), "llama", &json!({"vocab_size": 4})).unwrap();
    assert_eq!(vocab.metadata["tokenizer.ggml.pre"], "gpt-2".into());
}

#[test]
fn no_files_at_all_names_what_was_looked_for() {
    let (message, hint) = failure("qwen2", &[]);
    assert_eq!(
        message,
        "DIR: no tokenizer for a `qwen2` model; looked for tokenizer.model, tokenizer.json, vocab.json with merges.txt"
    );
    assert_eq!(hint, "copy the tokenizer files of the original checkpoint next to its config.json");
    let (message, _) = failure("gemma2", &[("tokenizer.json", &small_bpe().to_string())]);
    assert_eq!(message, "DIR: no tokenizer for a `gemma2` model; looked for tokenizer.model");
    let (message, _) = failure("llama", &[("tekken.json", "{}")]);
    assert_eq!(
        message,
        "DIR/tekken.json: Mistral's own tokenizer format alone; not converted for a `llama` model"
    );
}

#[test]
fn broken_json_is_named_with_line_and_column() {
    let (message, _) = failure("llama", &[("tokenizer.json", "{\"added_tokens\": [],\n \"model\": {,}}")]);
    assert_eq!(message, "DIR/tokenizer.json: line 2, column 12: key must be a string");
    let (message, _) = failure("llama", &[("tokenizer_config.json", "[]")]);
    assert_eq!(
        message,
        "DIR/tokenizer_config.json: line 1, column 0: invalid type: sequence, expected a map"
    );
    let message = changed(|json| json["model"]["vocab"]["a"] = json!(-1));
    assert!(message.contains("invalid value: integer `-1`, expected u32"), "{message}");
    let message = changed(|json| json["model"]["merges"] = json!([["a"]]));
    assert!(
        message.contains("invalid length 1, expected a merge: two tokens in a string or in an array"),
        "{message}"
    );
}

#[test]
fn text_that_is_not_utf8_is_named_with_its_byte() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "tokenizer.json", b"{\"model\": \"\xff\"}");
    let error = convert(dir.path(), "llama", &json!({})).unwrap_err();
    assert!(matches!(error, Error::Utf8 { offset: 11, .. }), "{error}");
}

#[test]
fn contradictions_within_a_vocabulary_are_named() {
    assert_eq!(
        changed(|json| json["model"]["vocab"]["b"] = json!(0)),
        "DIR/tokenizer.json: id 0 belongs to two tokens, \"a\" and \"b\""
    );
    assert_eq!(
        changed(|json| json["added_tokens"][0]["id"] = json!(2)),
        "DIR/tokenizer.json: id 2 belongs to two tokens, \"ab\" and \"<s>\""
    );
    assert_eq!(
        changed(|json| json["model"]["merges"] = json!(["a b", "ab c"])),
        "DIR/tokenizer.json: merge 1 (\"ab\" + \"c\") names \"c\", which is not in the vocabulary"
    );
    assert_eq!(
        changed(|json| json["model"]["merges"] = json!([["b", "a"]])),
        "DIR/tokenizer.json: merge 0 (\"b\" + \"a\") names \"ba\", which is not in the vocabulary"
    );
    assert_eq!(
        changed(|json| json["model"]["merges"] = json!(["a b b"])),
        "DIR/tokenizer.json: `model.merges[0]`: expected two tokens and one space between them, found the string \"a b b\""
    );
}

#[test]
fn ids_past_the_vocabulary_are_named() {
    assert_eq!(
        changed(|json| json["model"]["vocab"]["b"] = json!(7)),
        "DIR/tokenizer.json: token \"b\" has id 7, but the vocabulary size is 4"
    );
    assert_eq!(
        changed(|json| json["model"]["vocab"]["b"] = json!(4_000_000_000u32)),
        "DIR/tokenizer.json: token \"b\" has id 4000000000, but the vocabulary size is 16777216"
    );
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "tokenizer.json", small_bpe().to_string());
    let error = convert(dir.path(), "llama", &json!({"vocab_size": 1u64 << 40})).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("config.json: vocabulary size 1099511627776 is above the limit of 16777216")
    );
}

#[test]
fn a_tokenizer_of_another_kind_is_named() {
    let message = changed(|json| json["model"] = json!({"type": "Unigram", "vocab": [["a", 0.0]]}));
    assert_eq!(message, "DIR/tokenizer.json: a Unigram tokenizer; not converted for a `llama` model");
}

#[test]
fn a_sentencepiece_tokenizer_json_without_its_model_is_named() {
    let mut tokenizer = small_bpe();
    tokenizer["model"]["byte_fallback"] = json!(true);
    tokenizer["decoder"] = json!({"type": "Sequence", "decoders": []});
    let (message, _) = failure("phi3", &[("tokenizer.json", &tokenizer.to_string())]);
    let expected = "DIR/tokenizer.json: a SentencePiece tokenizer without its tokenizer.model; not converted for a `phi3` model";
    assert_eq!(message, expected);
    // Llama has a way round, which loses the scores
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "tokenizer.json", tokenizer.to_string());
    let vocab = convert(dir.path(), "llama", &json!({"vocab_size": 6})).unwrap();
    let tokens = lctl::text::summary(&vocab.metadata).n_tokens;
    assert_eq!(tokens, 6);
    assert!(vocab.notes[0].contains("no tokenizer.model"), "{:?}", vocab.notes);
    assert!(vocab.notes[1].contains("4 tokens padded to the vocabulary size 6"), "{:?}", vocab.notes);
}

#[test]
fn an_unknown_pre_tokenizer_shows_the_nearest_and_how_to_force_it() {
    let mut tokenizer = small_bpe();
    tokenizer["model"]["ignore_merges"] = json!(true);
    tokenizer["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "behavior": "Isolated", "invert": false,
         "pattern": {"Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"}},
        {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false},
    ]});
    let (message, hint) = failure("llama", &[("tokenizer.json", &tokenizer.to_string())]);
    assert_eq!(
        message,
        r"DIR/tokenizer.json: the pre-tokenizer is none of those known
  this file:  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+  then  <bytes>
  nearest, `llama-bpe`: (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+  then  <bytes>"
    );
    assert_eq!(
        hint,
        "if the difference does not matter for this model, force a name, e.g. `--pre llama-bpe`"
    );

    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "tokenizer.json", tokenizer.to_string());
    let vocab = convert_with(dir.path(), "llama", &json!({"vocab_size": 4}), Some("llama-bpe")).unwrap();
    assert_eq!(vocab.metadata["tokenizer.ggml.pre"], "llama-bpe".into());
    let error = convert_with(dir.path(), "llama", &json!({"vocab_size": 4}), Some("llama-bep")).unwrap_err();
    assert_eq!(error.to_string(), "unknown pre-tokenizer `llama-bep`");
    assert_eq!(error.hint().unwrap(), "did you mean `--pre llama-bpe`?");
}

#[test]
fn vocab_json_without_a_class_asks_for_a_name() {
    let (message, hint) =
        failure("llama", &[("vocab.json", r#"{"a": 0, "b": 1, "ab": 2}"#), ("merges.txt", "a b\n")]);
    assert_eq!(
        message,
        "DIR/tokenizer_config.json: tokenizer class \"\" does not tell the pre-tokenizer, and there is no tokenizer.json"
    );
    assert_eq!(hint, "force a name with `--pre`, e.g. `--pre qwen2`");
}

#[test]
fn a_tiktoken_file_gives_way_to_tokenizer_json() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "tokenizer.json", small_bpe().to_string());
    put(dir.path(), "tokenizer.model", "IQ== 0\nIg== 1\n");
    let vocab = convert(dir.path(), "llama", &json!({"vocab_size": 4})).unwrap();
    assert_eq!(vocab.metadata["tokenizer.ggml.model"], "gpt2".into());
    assert!(
        vocab.notes[0].ends_with("a tiktoken vocabulary; tokenizer.json is used instead"),
        "{:?}",
        vocab.notes
    );
}

#[test]
fn a_git_lfs_pointer_in_place_of_the_model_gets_a_hint() {
    let (message, hint) =
        failure("llama", &[("tokenizer.model", "version https://git-lfs.github.com/spec/v1\n")]);
    assert!(message.starts_with("DIR/tokenizer.model: byte "), "{message}");
    assert!(hint.contains("git lfs pull"), "{hint}");
}

#[test]
fn odd_json_values_are_errors_or_notes() {
    let (message, _) = failure(
        "llama",
        &[
            ("tokenizer.json", &small_bpe().to_string()),
            ("tokenizer_config.json", r#"{"added_tokens_decoder": []}"#),
        ],
    );
    assert_eq!(
        message,
        "DIR/tokenizer_config.json: `added_tokens_decoder`: expected an object, found an array of 0"
    );
    let (message, _) = failure(
        "llama",
        &[
            ("tokenizer.json", &small_bpe().to_string()),
            ("tokenizer_config.json", r#"{"chat_template": [1]}"#),
        ],
    );
    assert_eq!(
        message,
        "DIR/tokenizer_config.json: `chat_template[0]`: expected an object with the strings `name` and `template`, found 1"
    );
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "tokenizer.json", small_bpe().to_string());
    let error = convert(dir.path(), "llama", &json!({"vocab_size": 4, "bos_token_id": -1})).unwrap_err();
    assert!(
        error.to_string().ends_with("config.json: `bos_token_id`: expected a token id, found -1"),
        "{error}"
    );
}

/// Cuts and changes a real SentencePiece model, and the JSON files beside it.
#[test]
fn mutated_files_never_panic() {
    let golden = crate::common::root().join("tests/golden/vocab");
    let mut state = 1u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    let mut n_errors = 0;
    for (name, file) in [
        ("spm_padded_and_added", "tokenizer.model"),
        ("spm_padded_and_added", "tokenizer_config.json"),
        ("spm_with_tokenizer_json", "tokenizer.json"),
        ("bpe_qwen2", "tokenizer.json"),
        ("bpe_qwen3_vocab_and_merges", "merges.txt"),
        ("json_llama2", "tokenizer.json"),
    ] {
        let case: Json =
            serde_json::from_slice(&std::fs::read(golden.join(format!("{name}.json"))).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        super::golden::write_files(dir.path(), &case);
        let original = std::fs::read(dir.path().join(file)).unwrap();
        for round in 0..90 {
            let mut bytes = original.clone();
            match round % 3 {
                0 => bytes.truncate(random(original.len())),
                1 => (0..1 + random(4)).for_each(|_| bytes[random(original.len())] = random(256) as u8),
                // digits stay digits: the JSON parses, the numbers contradict
                _ => (0..6).for_each(|_| {
                    let at = random(original.len());
                    if let Some(digit) = bytes[at..].iter_mut().find(|byte| byte.is_ascii_digit()) {
                        *digit = b'0' + random(10) as u8;
                    }
                }),
            }
            put(dir.path(), file, &bytes);
            n_errors +=
                usize::from(convert(dir.path(), case["arch"].as_str().unwrap(), &case["config"]).is_err());
        }
    }
    assert!(n_errors > 180, "{n_errors} of 540 were errors");
}

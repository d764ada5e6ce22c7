//! The vocabularies that llama.cpp publishes with test vectors, and lm-eval's requests.

use std::fs;

use lctl::text::Tokenizer;
use serde_json::Value as Json;

use super::{AROUND, PARSED, PLAIN, ids};
use crate::common::test_data;

/// Vocabulary, and end-of-generation tokens as llama.cpp lists them.
const VOCABULARIES: &[(&str, &[u32])] = &[
    ("llama-spm", &[2]),
    ("phi-3", &[2, 32000, 32007]),
    ("llama-bpe", &[128001, 128009]),
    ("gpt-2", &[50256]),
    ("qwen2", &[151643, 151645]),
];

#[test]
fn every_line_of_the_published_vectors() {
    let Some(data) = test_data() else { return };
    for (name, ends) in VOCABULARIES {
        let path = data.join(format!("vocab/ggml-vocab-{name}.gguf"));
        let tokenizer = Tokenizer::open(&path).unwrap();
        let read = |extension: &str| fs::read_to_string(format!("{}.{extension}", path.display())).unwrap();
        let (inputs, outputs) = (read("inp"), read("out"));
        let mut inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
        assert_eq!(inputs.pop(), Some(""));
        assert_eq!(inputs.len(), outputs.lines().count(), "{name}");
        assert!(inputs.len() > 40, "{name}");
        for (input, output) in inputs.iter().zip(outputs.lines()) {
            let expected: Vec<u32> = output.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let found = tokenizer.encode(input, PLAIN).unwrap();
            assert_eq!(found, expected, "{name}: {input:?}");
            assert_eq!(tokenizer.decode(&found, false), *input, "{name}");
        }
        assert_eq!(tokenizer.end_of_generation(), *ends, "{name}");
    }
}

#[test]
fn lm_eval_requests_have_its_token_ids() {
    let Some(data) = test_data() else { return };
    let tokenizer = Tokenizer::open(&data.join("models/sec-llama-21m")).unwrap();
    let mut n_requests = 0;
    for name in ["letter_0shot", "letter_5shot", "cloze_0shot", "cloze_5shot"] {
        let lines = fs::read_to_string(data.join(format!("golden/lm-eval/{name}.jsonl"))).unwrap();
        for line in lines.lines() {
            let document: Json = serde_json::from_str(line).unwrap();
            for request in document["requests"].as_array().unwrap() {
                let text = |key: &str| request[key].as_str().unwrap();
                let context = tokenizer.encode(text("context"), AROUND).unwrap();
                let whole = format!("{}{}", text("context"), text("continuation"));
                let whole = tokenizer.encode(&whole, AROUND).unwrap();
                let (expected, rest) = (ids(&request["context_ids"]), ids(&request["continuation_ids"]));
                // lm-eval cuts the encoded whole where the encoded context ends
                assert_eq!(whole, [expected.clone(), rest].concat(), "{name} {}", document["doc_id"]);
                assert_eq!(context, expected, "{name} {}", document["doc_id"]);
                n_requests += 1;
            }
        }
    }
    assert!(n_requests > 1000, "{n_requests}");
}

#[test]
fn special_tokens_are_text_unless_parsed() {
    let Some(data) = test_data() else { return };
    let open = |name: &str| Tokenizer::open(&data.join(format!("vocab/ggml-vocab-{name}.gguf"))).unwrap();
    let llama = open("llama-bpe");
    let text = "<|begin_of_text|>a<|eot_id|>";
    let parsed = llama.encode(text, PARSED).unwrap();
    assert_eq!(parsed, [128000, 64, 128009]);
    assert!(!llama.encode(text, PLAIN).unwrap().contains(&128000));
    assert_eq!(llama.encode("a", AROUND).unwrap(), [128000, 64]);
    assert_eq!(llama.decode(&parsed, false), text);
    assert_eq!(llama.decode(&parsed, true), "a");
    assert!(llama.is_special(128009) && !llama.is_special(64));
    // SentencePiece puts a space before the text and after each special token
    let spm = open("llama-spm");
    assert_eq!(spm.encode("<s>a</s>b", PARSED).unwrap(), [1, 263, 2, 289]);
    assert_eq!(spm.token_text(263), Some("▁a"));
    assert_eq!(spm.piece(263), b" a");
    assert_eq!(spm.id_of("▁a"), Some(263));
    // Phi-3's special tokens take the white space after them
    let phi = open("phi-3");
    let (end, user) = (phi.id_of("<|end|>").unwrap(), phi.id_of("<|user|>").unwrap());
    let ids = phi.encode("<|user|>\n x<|end|>\n<|user|>", PARSED).unwrap();
    assert_eq!((ids[0], &ids[ids.len() - 2..]), (user, &[end, user][..]));
}

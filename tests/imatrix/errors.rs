//! What `lctl imatrix` refuses: with a reason, and nothing left behind.

use std::path::Path;

use lctl::tensor::TensorSource as _;
use lctl::tensor::gguf::Gguf;
use lctl::text::{EncodeOptions, Tokenizer};

use super::{bytes, golden_dir, succeed, tensors, workplace};
use crate::common::{names_in, run_lctl};

/// Checks that `lctl ARGS` fails with exactly this and writes nothing.
fn fails(dir: &Path, args: &str, expected: &str) {
    let before = names_in(dir);
    let (status, stdout, stderr) = run_lctl(dir, &args.split(' ').collect::<Vec<_>>());
    assert_eq!((status, stdout.as_str()), (2, ""), "{args}: {stderr}");
    assert_eq!(stderr.trim_end(), expected, "{args}");
    assert_eq!(names_in(dir), before, "{args}");
}

#[test]
fn texts_that_are_too_short() {
    let dir = workplace("Mistral-7B-v0.1");
    let dir = dir.path();
    std::fs::write(dir.join("short.txt"), "ab\n").unwrap();
    fails(
        dir,
        "imatrix model short.txt -o i.gguf --quiet --context 64",
        "error: the text has 3 tokens; a chunk of 64 needs 64\nhint: give a longer text or a smaller --context",
    );
    fails(
        dir,
        "imatrix model short.txt -o i.gguf --quiet --context 4 --from-chunk 3",
        "error: the text has 3 tokens; a chunk of 4 behind the first 3 needs 16\n\
         hint: give a longer text, or a smaller --from-chunk or --context",
    );
    fails(
        dir,
        "imatrix model short.txt -o i.gguf --quiet --context 4 --from-chunk 18446744073709551615",
        &format!(
            "error: the text has 3 tokens; a chunk of 4 behind the first {} needs {}\n\
             hint: give a longer text, or a smaller --from-chunk or --context",
            u64::MAX,
            u64::MAX
        ),
    );
    // one whole chunk is enough
    let stdout = succeed(dir, "imatrix model text.txt -o i.gguf --quiet --context 400 --json");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&stdout).unwrap()["chunks"], 1);
}

#[test]
fn models_without_a_tokenizer() {
    let dir = workplace("Mistral-7B-v0.1");
    let dir = dir.path();
    std::fs::remove_file(dir.join("model/tokenizer.model")).unwrap();
    let (status, _, stderr) = run_lctl(dir, &["imatrix", "model", "text.txt", "-o", "i.gguf"]);
    assert!(status == 2 && stderr.starts_with("error: ") && stderr.contains("tokenizer"), "{stderr}");
    assert_eq!(names_in(dir), ["model", "text.txt"]);
}

/// Overwrites the first value of a row of a tensor of an F32 GGUF.
pub fn poison(path: &Path, tensor: &str, row: usize, value: f32) {
    let file = Gguf::open(path).unwrap();
    let info = file.find(tensor).unwrap();
    let at = info.offset as usize + row * info.row_bytes();
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

/// Returns the place in the text of a token that no chunk of 32 before it has, and the token.
pub fn late_token(dir: &Path) -> (usize, usize) {
    let tokenizer = Tokenizer::open(&dir.join("model")).unwrap();
    let text = std::fs::read_to_string(dir.join("text.txt")).unwrap();
    let options = EncodeOptions { add_special: true, parse_special: false };
    let tokens = tokenizer.encode(text.trim_end_matches('\n'), options).unwrap();
    let is_first = |at: &usize| !tokens[..*at].contains(&tokens[*at]);
    // each chunk's first token gives way to the BOS
    let at = (100..tokens.len() - 64).find(|at| is_first(at) && at % 32 != 0).unwrap();
    (at, tokens[at] as usize)
}

#[test]
fn inputs_that_are_no_numbers() {
    let dir = workplace("Mistral-7B-v0.1");
    let dir = dir.path();
    succeed(dir, "quantize model -t F32 -o model.gguf --quiet --no-manifest");
    let sound = bytes(dir, "model.gguf");
    let hint = "hint: the weights are damaged: some product is NaN or infinite";

    poison(&dir.join("model.gguf"), "blk.0.ffn_up.weight", 5, f32::NAN);
    fails(
        dir,
        "imatrix model.gguf text.txt -o i.gguf --quiet --context 32",
        &format!(
            "error: chunk 0: the squared inputs of `blk.0.ffn_down.weight` add up to NaN at column 5\n{hint}"
        ),
    );

    // a token that is met in a later chunk first
    std::fs::write(dir.join("model.gguf"), &sound).unwrap();
    let (at, token) = late_token(dir);
    poison(&dir.join("model.gguf"), "token_embd.weight", token, f32::INFINITY);
    let chunk = at / 32;
    fails(
        dir,
        "imatrix model.gguf text.txt -o i.gguf --quiet --context 32",
        &format!(
            "error: chunk {chunk}: the squared inputs of `blk.0.attn_q.weight` add up to NaN at column 0\n{hint}"
        ),
    );
    // what lies before it can be measured
    succeed(dir, &format!("imatrix model.gguf text.txt -o i.gguf --quiet --context 32 --chunks {chunk}"));

    // finite, and beyond f32 when squared
    std::fs::write(dir.join("model.gguf"), &sound).unwrap();
    poison(&dir.join("model.gguf"), "blk.1.attn_norm.weight", 0, 3e37);
    fails(
        dir,
        "imatrix model.gguf text.txt -o j.gguf --quiet --context 32",
        &format!(
            "error: chunk 0: the squared inputs of `blk.1.attn_q.weight` add up to inf at column 0\n{hint}"
        ),
    );
}

#[test]
fn files_of_another_model() {
    let dir = workplace("Mistral-7B-v0.1");
    let dir = dir.path();
    for name in ["gemma2.gguf", "mixtral.gguf", "mistral.gguf"] {
        std::fs::copy(golden_dir().join("imatrix").join(name), dir.join(name)).unwrap();
    }
    let imatrix = "imatrix model text.txt -o i.gguf --quiet --context 32 --in-file";
    let hint = "hint: was it made from this very model?";
    fails(
        dir,
        &format!("{imatrix} mistral.gguf --in-file mixtral.gguf"),
        &format!("error: mixtral.gguf: the model multiplies by no `blk.0.ffn_down_exps.weight`\n{hint}"),
    );
    fails(
        dir,
        &format!("{imatrix} gemma2.gguf"),
        &format!(
            "error: gemma2.gguf: `blk.0.attn_output.weight` has 64 sums in 1 part(s), others of it 32 in 1\n{hint}"
        ),
    );
    fails(
        dir,
        "imatrix -o i.gguf --quiet --in-file mistral.gguf --in-file gemma2.gguf",
        &format!(
            "error: gemma2.gguf: `blk.0.attn_output.weight` has 64 sums in 1 part(s), others of it 32 in 1\n{hint}"
        ),
    );
    fails(
        dir,
        &format!("{imatrix} text.txt"),
        "error: text.txt: no importance matrix\n  \
         caused by: entry name at byte 8: 1768693863 bytes expected, 1012 left\n\
         hint: make it again: `lctl imatrix MODEL TEXT -o imatrix.gguf`",
    );
    // NaN in a file that is added
    let mut damaged = bytes(dir, "mistral.gguf");
    let file = Gguf::open(&dir.join("mistral.gguf")).unwrap();
    let at = file.find("blk.0.attn_k.weight.in_sum2").unwrap().offset as usize + 8;
    damaged[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(dir.join("damaged.gguf"), damaged).unwrap();
    fails(
        dir,
        &format!("{imatrix} damaged.gguf"),
        "error: damaged.gguf: `blk.0.attn_k.weight`: sum of squares is NaN at column 2\n\
         hint: make it again: `lctl imatrix MODEL TEXT -o imatrix.gguf`",
    );
}

/// Sets all values of the tensors of an importance matrix whose names end so.
fn fill(path: &Path, suffix: &str, value: f32) {
    let gguf = Gguf::open(path).unwrap();
    let of = |tensor: &&lctl::tensor::TensorInfo| tensor.name.ends_with(suffix);
    let ranges: Vec<_> =
        gguf.tensors().iter().filter(of).map(|tensor| (tensor.offset, tensor.n_elements())).collect();
    assert!(!ranges.is_empty());
    let mut bytes = std::fs::read(path).unwrap();
    for (offset, n) in ranges {
        bytes[offset as usize..][..4 * n].copy_from_slice(&value.to_le_bytes().repeat(n));
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_legacy_file_of_nothing_seen_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::copy(golden_dir().join("imatrix/mistral.gguf"), dir.join("seen.gguf")).unwrap();
    std::fs::copy(dir.join("seen.gguf"), dir.join("unseen.gguf")).unwrap();
    fill(&dir.join("unseen.gguf"), ".counts", 0.0);
    let n = tensors(&dir.join("unseen.gguf")).iter().filter(|(name, ..)| name.ends_with(".counts")).count();
    fails(
        dir,
        "imatrix -o none.dat --in-file unseen.gguf --quiet",
        &format!(
            "error: none.dat: none of {n} tensors has seen a token: a legacy file would be empty\nhint: run a model over a text, or add a file whose counts are not 0"
        ),
    );
    // a GGUF holds that, and another file has seen something
    succeed(dir, "imatrix -o none.gguf --in-file unseen.gguf --quiet");
    succeed(dir, "imatrix -o some.dat --in-file unseen.gguf --in-file seen.gguf --quiet");
}

#[test]
fn sums_beyond_f32_name_the_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::copy(golden_dir().join("imatrix/mistral.gguf"), dir.join("large.gguf")).unwrap();
    fill(&dir.join("large.gguf"), "blk.1.ffn_down.weight.in_sum2", 3e38);
    succeed(dir, "imatrix -o once.gguf --in-file large.gguf --quiet");
    for form in ["gguf", "dat"] {
        fails(
            dir,
            &format!("imatrix -o twice.{form} --in-file large.gguf --in-file large.gguf --quiet"),
            "error: `blk.1.ffn_down.weight`: the sum of squares of column 0 is 6.0000000109955115e38, beyond the largest f32, 3.4028235e38\nhint: measure fewer chunks, or add fewer files: importance matrices hold f32",
        );
    }
}

#[test]
fn outputs_that_are_in_the_way() {
    let dir = workplace("Mistral-7B-v0.1");
    let dir = dir.path();
    succeed(dir, "imatrix model text.txt -o i.gguf --quiet --context 32");
    let imatrix = "imatrix model text.txt --quiet --context 32 -o";
    fails(
        dir,
        &format!("{imatrix} i.gguf"),
        "error: i.gguf: exists already\nhint: give --force to replace it",
    );
    std::fs::remove_file(dir.join("i.gguf.manifest.json")).unwrap();
    fails(
        dir,
        &format!("{imatrix} text.txt --force"),
        "error: text.txt: --output would replace a file that the run reads (the text)\nhint: give another name",
    );
    fails(
        dir,
        &format!("{imatrix} i.gguf --force --in-file i.gguf"),
        "error: i.gguf: --output would replace a file that the run reads (--in-file)\nhint: give another name",
    );
    let (status, _, stderr) = run_lctl(dir, &["imatrix", "model", "-o", "j.gguf"]);
    assert!(status == 2 && stderr.contains("<TEXT>"), "{stderr}");
    let (status, _, stderr) = run_lctl(dir, &["imatrix", "-o", "j.gguf"]);
    assert!(status == 2 && stderr.contains("<MODEL>"), "{stderr}");
    let (status, _, stderr) = run_lctl(dir, &["imatrix", "model", "text.txt", "-o", "none/j.gguf"]);
    assert!(status == 2 && stderr.starts_with("error: "), "{stderr}");
    assert_eq!(names_in(dir), ["i.gguf", "model", "text.txt"]);
}

#[test]
fn a_shard_of_the_model_is_no_output() {
    let dir = workplace("Mistral-7B-v0.1");
    let dir = dir.path();
    succeed(dir, "quantize model -t F16 --split-max-size 20K -o m.gguf --quiet --no-manifest");
    let second = bytes(dir, "m-00002-of-00004.gguf");
    fails(
        dir,
        "imatrix m-00001-of-00004.gguf text.txt -o m-00002-of-00004.gguf --force --context 32",
        "error: m-00002-of-00004.gguf: --output would replace a file that the run reads (the model)\n\
         hint: give another name",
    );
    assert_eq!(bytes(dir, "m-00002-of-00004.gguf"), second);
}

#[test]
fn a_manifest_without_its_text_is_not_replayed() {
    let dir = workplace("Mistral-7B-v0.1");
    let dir = dir.path();
    succeed(dir, "imatrix model text.txt -o i.gguf --quiet --context 32");
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&bytes(dir, "i.gguf.manifest.json")).unwrap();
    manifest["inputs"].as_array_mut().unwrap().retain(|input| input["role"] != "text");
    std::fs::write(dir.join("edited.json"), manifest.to_string()).unwrap();
    let (status, _, stderr) = run_lctl(dir, &["replay", "edited.json", "--quiet"]);
    assert_eq!(status, 2, "{stderr}");
    assert!(stderr.contains("the manifest names no `text` among its inputs"), "{stderr}");
}

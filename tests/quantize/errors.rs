//! Bad input: the message, exit status 2, and nothing left behind.

use std::path::Path;

use super::model::Model;
use crate::common::{names_in, run_lctl};

/// Runs a command that must fail with exactly this on stderr and must leave the directory as it was.
fn fails(dir: &Path, args: &[&str], expected: &str) {
    let before = names_in(dir);
    let (status, stdout, stderr) = run_lctl(dir, args);
    assert_eq!(stderr.trim_end(), expected.trim(), "{args:?}");
    assert_eq!((status, stdout.as_str()), (2, ""), "{args:?}");
    assert_eq!(names_in(dir), before, "{args:?}");
}

const KNOWN: &str = "known types: F32, F16, BF16, Q8_0, int8, Q6_K, Q5_K_M, Q5_K, Q5_K_S, Q4_K_M, int4, Q4_K, Q4_K_S, \
                     IQ4_NL, IQ4_XS, Q3_K_L, Q3_K_M, Q3_K, Q3_K_S, Q2_K, Q2_K_S, MXFP4_MOE, Q5_0, Q5_1, Q4_0, Q4_1";

fn small(dir: &Path) {
    Model::default().write(dir, "m.gguf");
}

#[test]
fn options_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    small(dir);
    let go = |args: &[&str], expected: &str| {
        let mut all = vec!["quantize", "m.gguf", "-o", "out.gguf"];
        all.extend(args);
        fails(dir, &all, expected);
    };
    go(&["--type", "Q4KM"], &format!("error: unknown type `Q4KM`\nhint: did you mean `Q4_K_M`? {KNOWN}"));
    go(&["--type", "banana"], &format!("error: unknown type `banana`\nhint: {KNOWN}"));
    go(
        &["--type", "Q8_0", "--tensor-type", "attn_v"],
        "error: --tensor-type attn_v: `=FORMAT` is missing\n\
         hint: write a pattern and a format, e.g. `--tensor-type 'ffn_down=Q6_K'`",
    );
    go(
        &["--type", "F16", "--tensor-type", "attn_v=Q8_0"],
        "error: `--tensor-type` has no effect with `--type F16`, which stores plain floats\n\
         hint: leave out --tensor-type, or choose a block type such as Q8_0",
    );
    go(
        &["--type", "Q8_0", "--override-kv", "a=int:-1"],
        "error: --override-kv a=int:-1: `-1` is no number from 0 to 4294967295\n\
         hint: write KEY=TYPE:VALUE, e.g. `--override-kv general.name=str:Mine`",
    );
    go(
        &["--type", "Q8_0", "--split-max-size", "much"],
        "error: --split-max-size much: not a size\nhint: write a number and a unit, e.g. 2G, 500M or 1Gi",
    );
    go(
        &["--type", "Q8_0", "--pre", "llama-bpe"],
        "error: m.gguf: `--pre` has no effect on a GGUF file, which names its pre-tokenizer already\n\
         hint: to change the name, use `--override-kv tokenizer.ggml.pre=str:NAME`",
    );
    go(
        &["--type", "Q2_K_S"],
        "error: Q2_K_S needs an importance matrix: `blk.0.attn_k.weight` as Q2_K without one is noise\n\
         hint: give --imatrix FILE, or choose Q2_K",
    );
}

#[test]
fn unknown_formats_and_instruction_sets_name_the_known_ones() {
    let dir = tempfile::tempdir().unwrap();
    small(dir.path());
    let error = |args: &[&str]| {
        let mut all = vec!["quantize", "m.gguf", "-o", "out.gguf", "--type", "Q8_0"];
        all.extend(args);
        let (status, _, stderr) = run_lctl(dir.path(), &all);
        assert_eq!(status, 2);
        stderr
    };
    let stderr = error(&["--output-tensor-type", "Q6K"]);
    assert!(
        stderr.starts_with("error: unknown format `Q6K`\nhint: did you mean `Q6_K`? known formats: "),
        "{stderr}"
    );
    let stderr = error(&["--isa", "avx3"]);
    let expected = "error: unknown instruction set `avx3` (--isa)\nhint: this machine has: portable";
    assert!(stderr.starts_with(expected), "{stderr}");
    assert_eq!(names_in(dir.path()), ["m.gguf"]);
}

#[test]
fn the_output_is_never_the_input_nor_silently_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    small(dir);
    fails(
        dir,
        &["quantize", "m.gguf", "--type", "Q8_0", "-o", "m.gguf", "--force"],
        "error: m.gguf: is the input itself (m.gguf)\nhint: write to another file",
    );
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("m.gguf", dir.join("link.gguf")).unwrap();
        fails(
            dir,
            &["quantize", "m.gguf", "--type", "Q8_0", "-o", "link.gguf", "--force"],
            "error: link.gguf: is the input itself (m.gguf)\nhint: write to another file",
        );
        fails(
            dir,
            &["quantize", "link.gguf", "--type", "Q8_0", "-o", "m.gguf", "--force"],
            "error: m.gguf: is the input itself (link.gguf)\nhint: write to another file",
        );
    }
    std::fs::write(dir.join("out.gguf"), "mine").unwrap();
    fails(
        dir,
        &["quantize", "m.gguf", "--type", "Q8_0", "-o", "out.gguf"],
        "error: out.gguf: exists already\nhint: give --force to replace it",
    );
    assert_eq!(std::fs::read(dir.join("out.gguf")).unwrap(), b"mine");
}

#[test]
fn outputs_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    small(dir.path());
    fails(
        dir.path(),
        &["quantize", "m.gguf", "--type", "Q8_0", "-o", "nowhere/out.gguf"],
        "error: nowhere/out.gguf: the directory `nowhere` does not exist\nhint: create it first",
    );
    let (status, _, stderr) =
        run_lctl(dir.path(), &["quantize", "m.gguf", "--type", "Q8_0", "-o", "/proc/out.gguf"]);
    assert_eq!(status, 2, "{stderr}");
    assert!(stderr.starts_with("error: /proc/out.gguf: "), "{stderr}");
}

#[test]
fn nan_and_infinity_name_their_place() {
    for (value, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        for (recipe, threads) in [("Q4_K_M", "1"), ("Q4_0", "2"), ("F16", "7")] {
            let dir = tempfile::tempdir().unwrap();
            let poison = Some(("blk.1.ffn_down.weight", value));
            Model { poison, ..Model::default() }.write(dir.path(), "m.gguf");
            fails(
                dir.path(),
                &["quantize", "m.gguf", "--type", recipe, "-o", "o.gguf", "--threads", threads],
                &format!(
                    "error: m.gguf: `blk.1.ffn_down.weight`: {shown} at row 0, column 0 (stored as F16)\n\
                     hint: the checkpoint is damaged: download it again, or ask who made it"
                ),
            );
        }
    }
}

#[test]
fn quantized_input_needs_consent() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    Model { dtype: "Q8_0", ..Model::default() }.write(dir, "q.gguf");
    fails(
        dir,
        &["quantize", "q.gguf", "--type", "Q4_0", "-o", "o.gguf"],
        "error: q.gguf: `output.weight` is Q8_0 already, and would be quantized again to Q6_K (16 tensors so)\n\
         hint: start from the original weights if you can: errors add up; --allow-requantize goes ahead",
    );
    let args = ["quantize", "q.gguf", "--type", "Q4_0", "-o", "o.gguf", "--allow-requantize"];
    assert_eq!(run_lctl(dir, &args).0, 0);
    // what stays as it is needs no consent
    assert_eq!(run_lctl(dir, &["quantize", "q.gguf", "--type", "Q8_0", "-o", "same.gguf"]).0, 0);
}

#[test]
fn rows_that_fit_no_named_block() {
    let dir = tempfile::tempdir().unwrap();
    Model { d_model: 96, d_ff: 160, ..Model::default() }.write(dir.path(), "m.gguf");
    fails(
        dir.path(),
        &["quantize", "m.gguf", "--type", "Q8_0", "-o", "o.gguf", "--output-tensor-type", "Q4_K"],
        "error: `output.weight`: row length 96 is not a multiple of 256 (block of `Q4_K`)\n\
         hint: choose F16, or a type with smaller blocks such as Q8_0 (32)",
    );
}

#[test]
fn importance_of_another_model() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    small(dir);
    Model { d_ff: 768, ..Model::default() }.write_importance(dir, "other.dat");
    let quantize = |imatrix| ["quantize", "m.gguf", "--type", "Q4_K_M", "-o", "o.gguf", "--imatrix", imatrix];
    fails(
        dir,
        &quantize("other.dat"),
        "error: other.dat: `blk.0.ffn_down.weight` has 768 weights, but the tensor has 512 columns in 1 expert(s)\n\
         hint: was it made from this very model?",
    );
    std::fs::write(dir.join("short.dat"), [9, 0, 0]).unwrap();
    fails(
        dir,
        &quantize("short.dat"),
        "error: short.dat: no importance matrix\n  caused by: entry count at byte 0: 4 bytes expected, 3 left\n\
         hint: make it again: `lctl imatrix MODEL TEXT -o imatrix.gguf`",
    );
    fails(
        dir,
        &quantize("m.gguf"),
        "error: m.gguf: no `.in_sum2` tensor among 21\n\
         hint: make it again: `lctl imatrix MODEL TEXT -o imatrix.gguf`",
    );
}

#[test]
fn models_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let path = Model::default().write(dir, "m.gguf");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(dir.join("cut.gguf"), &bytes[..bytes.len() / 2]).unwrap();
    std::fs::write(dir.join("pytorch_model.bin"), b"PK\x03\x04").unwrap();
    for model in ["cut.gguf", "pytorch_model.bin", "absent", "."] {
        let before = names_in(dir);
        let (status, stdout, stderr) = run_lctl(dir, &["quantize", model, "--type", "Q8_0", "-o", "o.gguf"]);
        assert_eq!((status, stdout.as_str()), (2, ""), "{model}: {stderr}");
        assert!(stderr.starts_with("error: "), "{stderr}");
        assert_eq!(names_in(dir), before);
    }
}

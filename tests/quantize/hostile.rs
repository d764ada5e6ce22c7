//! What an attacker or a slip of the hand can bring: refused with its name, and nothing is lost by it.

use std::path::{Path, PathBuf};

use super::model::Model;
use crate::common::{lctl, names_in, run_lctl};

/// Runs a command that must fail, change nothing in `dir`, and say `expected` on stderr.
fn refused(dir: &Path, args: &[&str], expected: &str) {
    let before: Vec<_> =
        names_in(dir).into_iter().map(|n| (std::fs::metadata(dir.join(&n)).unwrap().len(), n)).collect();
    let (status, stdout, stderr) = run_lctl(dir, args);
    assert!(stderr.contains(expected), "{args:?}: {stderr}");
    assert_eq!((status, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
    let after: Vec<_> =
        names_in(dir).into_iter().map(|n| (std::fs::metadata(dir.join(&n)).unwrap().len(), n)).collect();
    assert_eq!(before, after, "{args:?}");
}

fn with_first_value(dir: &Path, value: f32) {
    let poison = Some(("blk.1.ffn_down.weight", value));
    Model { dtype: "F32", poison, ..Model::default() }.write(dir, "m.gguf");
}

/// Copies a committed checkpoint (two layers, four shards, a SentencePiece tokenizer) to `dir/m`.
fn checkpoint(dir: &Path) -> PathBuf {
    let from = crate::common::root().join("tests/golden/convert/mistral-shards");
    let to = dir.join("m");
    std::fs::create_dir(&to).unwrap();
    for name in names_in(&from) {
        std::fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
    to
}

#[test]
fn weights_too_large_for_a_format_are_not_written_as_infinity() {
    for value in [1e30f32, -3e38] {
        let dir = tempfile::tempdir().unwrap();
        with_first_value(dir.path(), value);
        let named =
            [("Q4_K_M", "Q6_K"), ("Q4_0", "Q4_0"), ("Q8_0", "Q8_0"), ("Q5_1", "Q5_1"), ("F16", "F16")];
        for (recipe, dtype) in named {
            let expected = format!(
                "error: m.gguf: `blk.1.ffn_down.weight`: {value:e} at row 0, column 0 is too large for {dtype}\n\
                 hint: weights so large are rarely right"
            );
            let args = ["quantize", "m.gguf", "--type", recipe, "-o", "o.gguf"];
            refused(dir.path(), &args, &expected);
            refused(dir.path(), &[&args[..], &["--no-stats"]].concat(), &expected);
        }
        let args = ["quantize", "m.gguf", "--type", "BF16", "-o", "o.gguf"];
        assert_eq!(run_lctl(dir.path(), &args).0, 0, "BF16 has f32's range");
    }
}

#[test]
fn large_weights_that_fit_are_written() {
    let dir = tempfile::tempdir().unwrap();
    with_first_value(dir.path(), 60_000.0);
    for recipe in ["Q4_K_M", "Q4_0", "Q8_0", "F16"] {
        let args = ["quantize", "m.gguf", "--type", recipe, "-o", "o.gguf", "--force"];
        let (status, _, stderr) = run_lctl(dir.path(), &args);
        assert_eq!((status, stderr.as_str()), (0, ""), "{recipe}");
    }
}

#[test]
fn a_checkpoints_own_files_are_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let model = checkpoint(dir.path());
    for name in names_in(&model) {
        for (cwd, from, to) in [(dir.path(), "m", format!("m/{name}")), (&model, ".", name.clone())] {
            let args = ["quantize", from, "--type", "Q8_0", "-o", &to, "--force"];
            let before = std::fs::read(model.join(&name)).unwrap();
            refused(cwd, &args, &format!("error: {to}: is the input itself"));
            assert_eq!(std::fs::read(model.join(&name)).unwrap(), before);
        }
    }
    let args = ["quantize", "m", "--type", "Q8_0", "-o", "m/o.gguf"];
    assert_eq!(run_lctl(dir.path(), &args).0, 0, "a GGUF may lie beside them");
    assert_eq!(run_lctl(dir.path(), &[&args[..], &["--force"]].concat()).0, 0);
}

#[test]
fn the_importance_matrix_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    Model::default().write(dir.path(), "m.gguf");
    Model::default().write_importance(dir.path(), "i.dat");
    let args = ["quantize", "m.gguf", "--type", "Q4_K_M", "--imatrix", "i.dat", "-o", "i.dat", "--force"];
    refused(dir.path(), &args, "error: i.dat: is the input itself (i.dat)");
}

#[test]
fn importance_that_names_no_tensor_is_of_another_model() {
    let dir = tempfile::tempdir().unwrap();
    Model::default().write(dir.path(), "m.gguf");
    let mut bytes = Vec::new();
    for count in [1i32, 5] {
        bytes.extend(count.to_le_bytes());
    }
    bytes.extend(b"other");
    for count in [1i32, 1] {
        bytes.extend(count.to_le_bytes());
    }
    bytes.extend(1f32.to_le_bytes());
    std::fs::write(dir.path().join("i.dat"), bytes).unwrap();
    refused(
        dir.path(),
        &["quantize", "m.gguf", "--type", "Q4_K_M", "--imatrix", "i.dat", "-o", "o.gguf"],
        "error: i.dat: no entry of it names a tensor of this model\nhint: was it made from this very model?",
    );
}

#[test]
fn overrides_cannot_make_a_file_that_no_reader_takes() {
    let dir = tempfile::tempdir().unwrap();
    Model::default().write(dir.path(), "m.gguf");
    for (given, expected) in [
        ("general.architecture=int:5", "`general.architecture` is a string in this model, not an integer"),
        ("llama.context_length=str:x", "`llama.context_length` is an integer in this model, not a string"),
        (
            "llama.attention.layer_norm_rms_epsilon=int:1",
            "`llama.attention.layer_norm_rms_epsilon` is a float in this model, not an integer",
        ),
        ("split.count=int:9", "`split.count` describes the output's own shards"),
        ("a=float:1e39", "`1e39` is no number that an f32 holds"),
    ] {
        let args = ["quantize", "m.gguf", "--type", "Q8_0", "-o", "o.gguf", "--override-kv", given];
        refused(dir.path(), &args, expected);
    }
}

#[test]
fn options_that_decide_nothing_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = checkpoint(dir.path());
    let quantize = ["quantize", "m", "--type", "Q8_0", "-o", "o.gguf"];
    refused(
        dir.path(),
        &[&quantize[..], &["--pre", "llama-bpe"]].concat(),
        &format!(
            "error: {}: `--pre` has no effect on a `llama` tokenizer",
            model.file_name().unwrap().display()
        ),
    );
    refused(
        dir.path(),
        &["quantize", "m", "--type", "F16", "-o", "o.gguf", "--pure"],
        "error: `--pure` has no effect with `--type F16`",
    );
    let both = ["--leave-output-tensor", "--output-tensor-type", "Q6_K"];
    refused(dir.path(), &[&quantize[..], &both].concat(), "cannot be used with");
    let patterns =
        ["--tensor-type", "atn_v=F16", "--tensor-type", "attn_v=F16", "--tensor-type", "attn_norm=F16"];
    let (status, _, stderr) = run_lctl(dir.path(), &[&quantize[..], &patterns].concat());
    assert_eq!(status, 0, "{stderr}");
    assert_eq!(
        stderr,
        "note: --tensor-type `atn_v` decides no tensor\nnote: --tensor-type `attn_norm` decides no tensor\n"
    );
}

#[test]
fn an_architecture_cannot_drive_the_terminal_through_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let path = Model::default().write(dir.path(), "m.gguf");
    let bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(5).position(|w| w == b"llama").unwrap();
    let mut bytes = bytes;
    bytes[at..at + 5].copy_from_slice(b"\x1b[31m");
    std::fs::write(&path, bytes).unwrap();
    let args = ["quantize", "m.gguf", "--type", "Q8_0", "-o", "o.gguf"];
    refused(dir.path(), &args, "\\u{1b}[31m.block_count=int:VALUE");
    assert!(!run_lctl(dir.path(), &args).2.contains('\x1b'));
}

#[cfg(unix)]
#[test]
fn a_shard_that_is_a_pipe_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let model = checkpoint(dir.path());
    let shard = model.join("model-00002-of-00004.safetensors");
    std::fs::remove_file(&shard).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&shard).status().unwrap().success());
    let expected = "error: m/model-00002-of-00004.safetensors: not a regular file\nhint: ";
    refused(dir.path(), &["quantize", "m", "--type", "Q8_0", "-o", "o.gguf"], expected);
}

#[cfg(target_os = "linux")]
#[test]
fn a_report_names_outputs_that_are_not_unicode() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    Model::default().write(dir.path(), "m.gguf");
    let name = std::ffi::OsStr::from_bytes(b"o\xff.gguf");
    let mut command = lctl(dir.path(), &["quantize", "m.gguf", "--type", "Q8_0", "--json", "-o"]);
    let output = command.arg(name).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["files"][0]["path"], "o\u{fffd}.gguf");
    assert!(dir.path().join(name).is_file());
}

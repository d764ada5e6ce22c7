//! `lctl inspect`: what it prints, what it compares, and files that show two faces.

mod faces;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use lctl::tensor::gguf::{Array, GgufWriter, Metadata, Split, Value, WriteOptions};
use lctl::tensor::{TensorDecl, format};
use serde_json::{Value as Json, json};

use crate::common::test_data;

fn inspect(args: &[&str]) -> Output {
    let mut command = Command::new(crate::common::program());
    command.arg("inspect").args(args).env("HF_HUB_OFFLINE", "1");
    command.output().expect("the program starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn path_str(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A llama of one layer with a tokenizer and a chat template.
fn tiny_keys() -> Metadata {
    let strings = |items: &[&str]| Value::Array(Array::String(items.iter().map(|s| s.to_string()).collect()));
    let tokens = ["<unk>", "<s>", "</s>", "a", "b", "c", "d", "e", "f", "g"];
    let pairs = [
        ("general.architecture", Value::from("llama")),
        ("general.name", Value::from("tiny")),
        ("llama.block_count", Value::U32(1)),
        ("llama.context_length", Value::U32(128)),
        ("llama.embedding_length", Value::U32(64)),
        ("llama.feed_forward_length", Value::U32(96)),
        ("llama.attention.head_count", Value::U32(4)),
        ("llama.attention.head_count_kv", Value::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("tokenizer.ggml.model", Value::from("llama")),
        ("tokenizer.ggml.tokens", strings(&tokens)),
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
        ("tokenizer.chat_template", Value::from("{% for m in messages %}\n{{ m.content }}\n{% endfor %}")),
    ];
    pairs.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
}

fn tiny_tensors() -> Vec<TensorDecl> {
    let decl = |name: &str, dtype: &str, shape: &[usize]| TensorDecl {
        name: name.to_owned(),
        dtype: format::by_name(dtype).unwrap(),
        shape: shape.to_vec(),
    };
    vec![
        decl("token_embd.weight", "Q8_0", &[10, 64]),
        decl("blk.0.attn_q.weight", "F16", &[64, 64]),
        decl("output_norm.weight", "F32", &[64]),
    ]
}

fn write(path: &Path, keys: &Metadata, tensors: &[TensorDecl], split: Option<Split>) -> Vec<PathBuf> {
    let options = WriteOptions { split, ..WriteOptions::default() };
    let mut writer = GgufWriter::create(path, keys, tensors, &options).unwrap();
    for (i, tensor) in tensors.iter().enumerate() {
        writer.write(&vec![i as u8; tensor.n_bytes().unwrap() as usize]).unwrap();
    }
    writer.finish().unwrap().into_iter().map(|file| file.path).collect()
}

fn tiny(dir: &tempfile::TempDir) -> PathBuf {
    let path = dir.path().join("tiny.gguf");
    write(&path, &tiny_keys(), &tiny_tensors(), None);
    path
}

const TINY_REPORT: &str = r#"DIR/tiny.gguf
  format        GGUF version 3, 1 file, 10.08 KB
  architecture  llama
  name          tiny
  tensors       3
  parameters    4,800
  tensor data   9.13 KB, 15.21 bits per weight
  layers        1 layer of width 64, 4 heads, 2 for keys and values, of 16
  context       128 tokens

tensors by type
  type  tensors  parameters  bytes  bits/weight
  F16         1       4,096  8,192        16.00
  Q8_0        1         640    680         8.50
  F32         1          64    256        32.00

keys (14)
  general.architecture                    string      llama
  general.name                            string      tiny
  llama.block_count                       u32         1
  llama.context_length                    u32         128
  llama.embedding_length                  u32         64
  llama.feed_forward_length               u32         96
  llama.attention.head_count              u32         4
  llama.attention.head_count_kv           u32         2
  llama.attention.layer_norm_rms_epsilon  f32         0.00001
  tokenizer.ggml.model                    string      llama
  tokenizer.ggml.tokens                   string[10]  ["<unk>", "<s>", "</s>", "a", "b", "c", "d", "e", …]
  tokenizer.ggml.bos_token_id             u32         1
  tokenizer.ggml.add_bos_token            bool        true
  tokenizer.chat_template                 string      {% for m in messages %}\n{{ m.content }}\n{% endfor %}

tokenizer
  model    llama
  tokens   10, 0 merges
  special  bos 1 "<s>"
  flag     add_bos_token true

chat template: 52 bytes, 3 lines
  {% for m in messages %}
  {{ m.content }}
  {% endfor %}

memory to run at 128 tokens of context (estimate, docs/inspect.md)
  weights                   9.13 KB
  key-value cache, f16      16.38 KB
  activations of one batch  491.52 KB
  total                     517.03 KB

tensors
  name                 type  shape    bytes  offset
  token_embd.weight    Q8_0  10 x 64    680     928
  blk.0.attn_q.weight  F16   64 x 64  8,192    1632
  output_norm.weight   F32   64         256    9824
"#;

#[test]
fn a_gguf_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let path = tiny(&dir);
    let output = inspect(&[path_str(&path), "--tensors"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output).replace(path_str(dir.path()), "DIR"), TINY_REPORT);
}

#[test]
fn json_has_the_documented_fields() {
    let dir = tempfile::tempdir().unwrap();
    let path = tiny(&dir);
    let output = inspect(&[path_str(&path), "--json", "--ctx", "64", "--digest"]);
    let report: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["format"], "gguf");
    assert_eq!(report["parameters"], 10 * 64 + 64 * 64 + 64);
    assert_eq!(
        report["types"][0],
        json!({"type": "F16", "tensors": 1, "parameters": 4096, "bytes": 8192, "bits_per_weight": 16.0})
    );
    assert_eq!(
        report["keys"][8],
        json!({"key": "llama.attention.layer_norm_rms_epsilon", "type": "f32", "value": 0.00001})
    );
    // 1 layer, 2 heads of 16 + 16, 2 bytes, 64 tokens; attention: 64 tokens * ((4 heads + mask) * 64 + 5 * 64) * 4 bytes.
    let memory =
        json!({"context": 64, "weights": 9128, "kv_cache": 8192, "compute": 163_840, "total": 181_160});
    assert_eq!(report["memory"], memory);
    assert_eq!(report["tokenizer"]["n_tokens"], 10);
    // `head -c 680 /dev/zero | sha256sum`: the first tensor is zeros.
    let digest = "3893c122a235d76ac34b7853ae88aae7b72c2785f12e0e5ba05506aa89f4cf6c";
    assert_eq!(report["tensors"][0]["sha256"], digest);
    // docs/inspect.md lists every field.
    let documented = include_str!("../../docs/inspect.md");
    for field in report.as_object().unwrap().keys() {
        assert!(documented.contains(&format!("`{field}`")), "docs/inspect.md does not describe `{field}`");
    }
}

#[test]
fn the_chat_template_is_printed_whole() {
    let dir = tempfile::tempdir().unwrap();
    let output = inspect(&[path_str(&tiny(&dir)), "--chat-template"]);
    assert_eq!(stdout(&output), "{% for m in messages %}\n{{ m.content }}\n{% endfor %}\n");
    let path = dir.path().join("bare.gguf");
    write(&path, &Metadata::new(), &tiny_tensors(), None);
    let output = inspect(&[path_str(&path), "--chat-template"]);
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(
        said.starts_with(&format!(
            "error: {}: no chat template\nhint: base models have none",
            path.display()
        )),
        "{said}"
    );
}

#[test]
fn a_diff_lists_what_changed_and_exits_with_1() {
    let dir = tempfile::tempdir().unwrap();
    let path = tiny(&dir);
    let same = inspect(&[path_str(&path), "--diff", path_str(&path), "--digest"]);
    assert_eq!(same.status.code(), Some(0));
    assert!(stdout(&same).ends_with("no differences\n"), "{}", stdout(&same));

    let (mut keys, mut tensors) = (tiny_keys(), tiny_tensors());
    keys.insert("general.name".to_owned(), Value::from("other"));
    keys.shift_remove("llama.context_length");
    keys.insert("general.author".to_owned(), Value::from("me"));
    // A change past the eight elements that are shown.
    let Some(Value::Array(Array::String(tokens))) = keys.get_mut("tokenizer.ggml.tokens") else { panic!() };
    tokens[9] = "z".to_owned();
    tensors[0].dtype = format::by_name("F32").unwrap();
    tensors.swap(1, 2);
    let other = dir.path().join("other.gguf");
    write(&other, &keys, &tensors, None);
    let output = inspect(&[path_str(&path), "--diff", path_str(&other), "--digest"]);
    assert_eq!(output.status.code(), Some(1));
    let shown = stdout(&output).replace(path_str(dir.path()), "DIR");
    let expected = r#"- DIR/tiny.gguf
+ DIR/other.gguf
keys
  ~ general.name  string tiny -> string other
  - llama.context_length  u32 128
  ~ tokenizer.ggml.tokens  string[10] ["<unk>", "<s>", "</s>", "a", "b", "c", "d", "e", …] -> string[10] ["<unk>", "<s>", "</s>", "a", "b", "c", "d", "e", …]
  + general.author  string me
tensors
  ~ token_embd.weight  Q8_0 10 x 64 -> F32 10 x 64
data (SHA-256)
"#;
    assert!(shown.starts_with(expected), "{shown}");
    assert!(shown.contains("  ~ blk.0.attn_q.weight  "), "{shown}");
    assert!(shown.ends_with("7 differences\n"), "{shown}");

    let output = inspect(&[path_str(&path), "--diff", path_str(&other), "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["differs"], true);
    assert_eq!(report["diff"]["keys"].as_array().unwrap().len(), 4);
    assert_eq!(report["diff"]["data"], Json::Null);
}

#[test]
fn a_split_model_is_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let files =
        write(&dir.path().join("tiny.gguf"), &tiny_keys(), &tiny_tensors(), Some(Split::MaxTensors(2)));
    assert_eq!(files.len(), 2);
    let whole = dir.path().join("whole.gguf");
    write(&whole, &tiny_keys(), &tiny_tensors(), None);
    let output = inspect(&[path_str(&files[0]), "--json", "--cross-check"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["tensor_count"], 3);
    assert_eq!(report["cross_check"].as_array().unwrap().len(), 2);
    let diff = inspect(&[path_str(&whole), "--diff", path_str(&files[0]), "--digest", "--json"]);
    let report: Json = serde_json::from_slice(&diff.stdout).unwrap();
    let keys = report["diff"]["keys"].as_array().unwrap();
    assert!(keys.iter().all(|change| change["name"].as_str().unwrap().starts_with("split.")), "{report}");
    assert_eq!((&report["diff"]["tensors"], &report["diff"]["data"]), (&json!([]), &json!([])));
}

#[test]
fn a_checkpoint_directory_shows_its_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let header = r#"{"__metadata__":{"format":"pt"},"model.norm.weight":{"dtype":"BF16","shape":[64],"data_offsets":[0,128]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&[0; 128]);
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    let config = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 10,
        "max_position_embeddings": 256});
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"chat_template": "hello"}"#).unwrap();
    let output = inspect(&[path_str(dir.path())]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let shown = stdout(&output);
    for line in [
        "  architecture  LlamaForCausalLM\n",
        "  layers        2 layers of width 64, 4 heads, 2 for keys and values, of 16\n",
        "  __metadata__.format             string  pt\n",
        "  config.architectures            json    [\"LlamaForCausalLM\"]\n",
        "chat template: 5 bytes, 1 line\n  hello\n",
        "memory to run at 256 tokens of context",
        "  BF16        1          64    128        16.00\n",
    ] {
        assert!(shown.contains(line), "{line:?} is not in\n{shown}");
    }
    let output = inspect(&[path_str(dir.path()), "--cross-check"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("this is no GGUF"), "{}", stderr(&output));
}

#[test]
fn a_misspelt_path_names_its_neighbour() {
    let dir = tempfile::tempdir().unwrap();
    let path = tiny(&dir);
    let wrong = dir.path().join("tinny.gguf");
    let output = inspect(&[path_str(&wrong)]);
    assert_eq!(output.status.code(), Some(2));
    let expected = format!(
        "error: {}: no such file or directory\nhint: did you mean {}?\n",
        wrong.display(),
        path.display()
    );
    assert_eq!(stderr(&output), expected);
}

#[test]
fn names_in_a_file_cannot_drive_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hostile.gguf");
    let mut keys = tiny_keys();
    keys.insert("general.name".to_owned(), Value::from("x\u{1b}]0;owned\u{7}\u{202e}y"));
    keys.insert("evil\u{1b}[2J".to_owned(), Value::from("v"));
    keys.insert("tokenizer.chat_template".to_owned(), Value::from("\u{1b}[2J"));
    let mut tensors = tiny_tensors();
    tensors[0].name = "bad\u{1b}[1m".to_owned();
    write(&path, &keys, &tensors, None);
    let shown = stdout(&inspect(&[path_str(&path), "--tensors", "--cross-check"]));
    assert!(
        !shown.contains('\u{1b}') && !shown.contains('\u{7}') && !shown.contains('\u{202e}'),
        "{shown:?}"
    );
    assert!(shown.contains("bad\\u{1b}[1m"), "{shown}");
}

#[test]
fn a_key_wider_than_any_column_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.gguf");
    let mut keys = tiny_keys();
    keys.insert("x".repeat(65_535), Value::from("v"));
    keys.insert("y".repeat(70_000), Value::from("w"));
    write(&path, &keys, &tiny_tensors(), None);
    let output = inspect(&[path_str(&path)]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let longest = stdout(&output)
        .lines()
        .filter(|line| !line.contains("xxx") && !line.contains("yyy"))
        .map(str::len)
        .max();
    assert!(longest < Some(1000), "{longest:?}");
}

#[test]
fn a_closed_pipe_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("many.gguf");
    // More text than a pipe holds (64 KiB), so that writing meets the closed end.
    let mut keys = tiny_keys();
    keys.extend((0..3000).map(|i| (format!("filler.{i}"), Value::from("x".repeat(60).as_str()))));
    write(&path, &keys, &tiny_tensors(), None);
    let mut child = Command::new(crate::common::program())
        .args(["inspect", path_str(&path)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stderr(&output), "");
}

#[test]
fn help_and_version_are_printed() {
    let run = |args: &[&str]| Command::new(crate::common::program()).args(args).output().unwrap();
    let short = stdout(&run(&["-V"]));
    assert_eq!(short, format!("lctl {}\n", env!("CARGO_PKG_VERSION")));
    let long = stdout(&run(&["--version"]));
    let lines: Vec<&str> = long.strip_prefix(&short).unwrap().lines().collect();
    let names: Vec<&str> = lines.iter().map(|line| line.split_once(' ').unwrap().0).collect();
    assert_eq!(names, ["commit", "target", "features", "build"], "{long}");
    assert!(lines.iter().all(|line| line.len() > 10 && !line.ends_with(' ')), "{long}");
    let help = stdout(&run(&["--help"]));
    let last = "`lctl COMMAND --help` has a command's options, and examples.";
    assert_eq!(help.lines().last(), Some(last), "{help:?}");
    for part in ["quantize", "inspect", "pull", "Exit status:"] {
        assert!(help.contains(part), "{part} is not in\n{help}");
    }
    let usage = run(&["inspect", "--no-such-option"]);
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn real_vocabularies_and_splits_are_read_alike_by_all_readers() {
    let Some(data) = test_data() else { return };
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(data.join("vocab")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "gguf"));
    assert!(!paths.is_empty());
    paths.push(data.join("adapters/gguf-small/dummy-00001-of-00002.gguf"));
    paths.push(data.join("models/stories260K-hf/stories260K-hf-f32.gguf"));
    for path in paths {
        let output = inspect(&[path_str(&path), "--cross-check"]);
        assert_eq!(output.status.code(), Some(0), "{}: {}", path.display(), stderr(&output));
        assert!(
            stdout(&output).contains("gguf-rs 0.1.8: agrees\n  candle 0.11.1: agrees\n"),
            "{}",
            path.display()
        );
    }
    let whole = data.join("adapters/gguf-small/dummy.gguf");
    let split = data.join("adapters/gguf-small/dummy-00001-of-00002.gguf");
    let output = inspect(&[path_str(&whole), "--diff", path_str(&split), "--digest", "--json"]);
    let report: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["diff"]["tensors"], &report["diff"]["data"]), (&json!([]), &json!([])), "{report}");
}

#[test]
fn a_real_checkpoint_has_the_reference_converters_sizes() {
    let Some(data) = test_data() else { return };
    let output = inspect(&[path_str(&data.join("models/stories260K-hf")), "--json"]);
    let hf: Json = serde_json::from_slice(&output.stdout).unwrap();
    let output = inspect(&[path_str(&data.join("models/stories260K-hf/stories260K-hf-f32.gguf")), "--json"]);
    let gguf: Json = serde_json::from_slice(&output.stdout).unwrap();
    for size in
        ["n_layers", "d_model", "n_heads", "n_kv_heads", "key_dim", "d_ff", "vocab_size", "context_length"]
    {
        assert_eq!(hf["dimensions"][size], gguf["dimensions"][size], "{size}");
    }
    assert_eq!(hf["memory"]["kv_cache"], gguf["memory"]["kv_cache"]);
}

//! `lctl merge` and what it is made of, where bases are unusual or something is in the way.

use std::path::Path;

use lctl::error::Diagnostic;
use lctl::kernel::Isa;
use lctl::model::export::{self, Changes, Error, Stored};
use lctl::tensor::format::by_name;
use lctl::tensor::gguf::Gguf;
use lctl::tensor::safetensors::{SafeTensors, SafeTensorsWriter};
use lctl::tensor::{Dtype, StagedDir, TensorDecl, TensorInfo, TensorSource};
use serde_json::{Value, json};

use super::adapter::{adapter_dir, golden};
use super::{Golden, TOLERANCE, all_logits, difference, golden_dir, open, write_gguf};
use crate::common::{names_in, run_lctl};
use crate::finetune::Setup;

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Writes a PEFT directory.
pub fn write_adapter(dir: &Path, rank: usize, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let names: Vec<String> = tensors.iter().map(|(name, ..)| format!("base_model.model.{name}")).collect();
    let each =
        names.iter().zip(tensors).map(|(name, (_, shape, values))| (&name[..], &shape[..], &values[..]));
    let staged = StagedDir::create(dir).unwrap();
    staged.write_tensors("adapter_model.safetensors", each).unwrap();
    let config = json!({"peft_type": "LORA", "r": rank, "lora_alpha": rank});
    staged.write("adapter_config.json", config.to_string().as_bytes()).unwrap();
    staged.commit().unwrap();
}

/// Returns the changes of an adapter that has one tensor saved whole, of one value.
fn saved(dir: &Path, base: &Path, name: &str, value: f32) -> Changes {
    let source = SafeTensors::open_dir(base).unwrap();
    let info = source.find(name).unwrap();
    write_adapter(dir, 4, &[(name.to_owned(), info.shape.clone(), vec![value; info.n_elements()])]);
    Changes::open(dir, Isa::detect()).unwrap()
}

fn bytes_of(source: &SafeTensors, name: &str) -> Vec<u8> {
    source.bytes(source.find(name).unwrap()).unwrap().to_vec()
}

fn values_of(source: &dyn TensorSource, name: &str) -> Vec<f32> {
    let info = source.find(name).unwrap();
    let mut values = vec![0.0; info.n_elements()];
    info.dtype.decode(Isa::detect(), source.bytes(info).unwrap(), &mut values);
    values
}

/// Writes a checkpoint's weights in another type into a directory, in `name`.
pub fn write_as(dtype: Dtype, base: &Path, file: &Path) {
    let source = SafeTensors::open_dir(base).unwrap();
    let decl = |info: &TensorInfo| TensorDecl { dtype, ..TensorDecl::from(info) };
    let decls: Vec<TensorDecl> = source.tensors().iter().map(decl).collect();
    let mut writer = SafeTensorsWriter::create(file, [("format", "pt")], &decls, false).unwrap();
    for decl in &decls {
        let values = values_of(&source, &decl.name);
        let mut bytes = vec![0; values.len() * dtype.block_bytes()];
        dtype.encode(Isa::detect(), &values, values.len(), None, &mut bytes);
        writer.write(&bytes).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn an_adapter_is_added_to_no_base_without_safetensors() {
    let tmp = tempfile::tempdir().unwrap();
    let golden = golden_dir().join("llama");
    let whole = saved(&tmp.path().join("whole"), &golden, "model.norm.weight", 1.0);
    let pairs = Changes::open(&adapter_dir().join("llama"), Isa::detect()).unwrap();
    let base = tmp.path().join("base");
    std::fs::create_dir(&base).unwrap();
    std::fs::copy(golden.join("config.json"), base.join("config.json")).unwrap();
    std::fs::write(base.join("pytorch_model.bin"), "PK").unwrap();
    for changes in [&pairs, &whole] {
        let out = tmp.path().join("out");
        let error = export::write_merged(&out, &base, changes, Stored::Own, Isa::detect()).unwrap_err();
        assert!(matches!(error, Error::NoWeights { .. }), "{error}");
        assert!(error.hint().unwrap().contains(".bin"));
    }
    assert_eq!(names_in(tmp.path()), ["base", "whole"]);
}

#[test]
fn a_gemma_takes_no_embedding_apart_from_its_output() {
    let tmp = tempfile::tempdir().unwrap();
    let (isa, base) = (Isa::detect(), golden_dir().join("gemma2"));
    let changes = saved(&tmp.path().join("adapter"), &base, EMBEDDING, 0.5);
    let gguf = tmp.path().join("base.gguf");
    write_gguf(&base, by_name("F32").unwrap(), &gguf);
    let out = tmp.path().join("out");
    for error in [
        export::write_merged(&out, &base, &changes, Stored::Own, isa).unwrap_err(),
        export::write_merged_gguf(&out, &gguf, &changes, Stored::Own, isa).unwrap_err(),
    ] {
        assert!(matches!(error, Error::AlwaysTied { .. }), "{error}");
    }
    assert_eq!(names_in(tmp.path()), ["adapter", "base.gguf"]);
}

/// A tied model may store an output that nobody uses.
#[test]
fn the_output_of_a_tied_model_is_made_of_its_embedding_and_lies_where_the_index_says() {
    let tmp = tempfile::tempdir().unwrap();
    let from = golden_dir().join("llama3-scaled-tied");
    let own = SafeTensors::open_dir(&from).unwrap();
    let [first, second] = [1, 2].map(|i| format!("model-0000{i}-of-00002.safetensors"));
    let base = tmp.path().join("base");
    std::fs::create_dir(&base).unwrap();
    std::fs::copy(from.join("config.json"), base.join("config.json")).unwrap();
    std::fs::copy(from.join("model.safetensors"), base.join(&first)).unwrap();
    let embedding = own.find(EMBEDDING).unwrap();
    let head = TensorDecl { name: HEAD.to_owned(), ..TensorDecl::from(embedding) };
    let mut writer =
        SafeTensorsWriter::create(&base.join(&second), [("format", "pt")], &[head], false).unwrap();
    writer.write(&vec![0; embedding.n_bytes as usize]).unwrap();
    writer.finish().unwrap();
    let mut weight_map: serde_json::Map<String, Value> =
        own.tensors().iter().map(|info| (info.name.clone(), json!(first))).collect();
    weight_map.insert(HEAD.to_owned(), json!(second));
    let size = |source: &SafeTensors| source.tensors().iter().map(|info| info.n_bytes).sum::<u64>();
    let total = size(&own) + embedding.n_bytes;
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    std::fs::write(base.join("model.safetensors.index.json"), index.to_string()).unwrap();

    let changes = saved(&tmp.path().join("adapter"), &from, EMBEDDING, 0.25);
    for (stored, dtype) in [(Stored::Own, embedding.dtype.name()), (Stored::F32, "F32")] {
        let out = tmp.path().join("out");
        export::write_merged(&out, &base, &changes, stored, Isa::detect()).unwrap();
        let merged = SafeTensors::open_dir(&out).unwrap();
        assert!(bytes_of(&merged, HEAD) == bytes_of(&own, EMBEDDING), "{stored:?}");
        assert_eq!(merged.find(EMBEDDING).unwrap().dtype.name(), dtype);
        assert!(values_of(&merged, EMBEDDING).iter().all(|value| *value == 0.25));
        let index = std::fs::read(out.join("model.safetensors.index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        assert_eq!(index["weight_map"][HEAD], json!(second));
        assert_eq!(index["metadata"]["total_size"], json!(size(&merged)), "{stored:?}");
        assert!(!open(&out).config().tied_embeddings);
    }
}

/// What is quantized next is not rounded to the checkpoint's BF16 before.
#[test]
fn a_checkpoint_merged_in_f32_computes_what_peft_computes() {
    let tmp = tempfile::tempdir().unwrap();
    let isa = Isa::detect();
    for name in ["llama", "qwen3-rslora", "phi3", "tied-saved", "llama-vocabulary"] {
        let (base, expected) = golden(name);
        let (tokens, dir) = (Golden::read(&base).tokens, golden_dir().join(&base));
        let changes = Changes::open(&adapter_dir().join(name), isa).unwrap();
        let out = tmp.path().join(name);
        export::write_merged(&out, &dir, &changes, Stored::F32, isa).unwrap();
        let found = difference(&all_logits(&open(&out), &tokens), &expected);
        assert!(found <= TOLERANCE, "{name}: {found}");
        let (own, merged) = (SafeTensors::open_dir(&dir).unwrap(), SafeTensors::open_dir(&out).unwrap());
        let mut n_changed = 0;
        for info in own.tensors() {
            let found = merged.find(&info.name).unwrap();
            if found.dtype == info.dtype {
                assert!(bytes_of(&merged, &info.name) == bytes_of(&own, &info.name), "{name}: {}", info.name);
            } else {
                assert_eq!((info.dtype.name(), found.dtype.name()), ("BF16", "F32"));
                n_changed += 1;
            }
        }
        assert!(n_changed > 0 && n_changed < own.tensors().len(), "{name}: {n_changed}");
    }
}

#[test]
fn a_sum_of_a_bf16_checkpoint_is_rounded_once_with_a_type() {
    let setup = Setup::new(&json!({}));
    let dir = setup.dir.path();
    let weights = setup.path("base/model.safetensors");
    write_as(by_name("BF16").unwrap(), &setup.path("base"), &setup.path("bf16.safetensors"));
    std::fs::rename(setup.path("bf16.safetensors"), &weights).unwrap();
    let module = "model.layers.1.mlp.down_proj";
    let source = SafeTensors::open_file(&weights).unwrap();
    let shape = source.find(&format!("{module}.weight")).unwrap().shape.clone();
    // B A is 2^-12 everywhere, less than BF16 can add to most weights
    let step = 2f32.powi(-12);
    let pair = [
        (format!("{module}.lora_A.weight"), vec![1, shape[1]], vec![1.0; shape[1]]),
        (format!("{module}.lora_B.weight"), vec![shape[0], 1], vec![step; shape[0]]),
    ];
    write_adapter(&setup.path("adapter"), 1, &pair);
    let (code, _, stderr) = run_lctl(dir, &["merge", "base", "adapter", "-o", "m.gguf", "-t", "f32"]);
    assert_eq!(code, 0, "{stderr}");
    let gguf = Gguf::open(&setup.path("m.gguf")).unwrap();
    let expected: Vec<f32> =
        values_of(&source, &format!("{module}.weight")).iter().map(|value| value + step).collect();
    assert!(values_of(&gguf, "blk.1.ffn_down.weight") == expected);
    // what `quantize` would say of the merged model
    for (quiet, is_said) in [(&["--quiet"][..], false), (&[], true)] {
        let args = [&["merge", "base", "adapter", "--force", "-o", "k.gguf", "-t", "q4_k_m"], quiet].concat();
        let (code, _, stderr) = run_lctl(dir, &args);
        assert_eq!(code, 0, "{stderr}");
        let said =
            stderr.contains("note: ") && stderr.contains("have rows that fit no block of the type wanted");
        assert_eq!((said, stderr.is_empty()), (is_said, !is_said), "{stderr}");
    }
    assert!(!names_in(dir).iter().any(|name| name.ends_with(".partial")));
}

#[test]
fn a_sum_beyond_its_type_is_an_error() {
    let tmp = tempfile::tempdir().unwrap();
    let (isa, golden) = (Isa::detect(), golden_dir().join("llama"));
    let base = tmp.path().join("base");
    std::fs::create_dir(&base).unwrap();
    std::fs::copy(golden.join("config.json"), base.join("config.json")).unwrap();
    write_as(by_name("F16").unwrap(), &golden, &base.join("model.safetensors"));
    let gguf = tmp.path().join("f16.gguf");
    write_gguf(&golden, by_name("F16").unwrap(), &gguf);
    let out = tmp.path().join("out");
    let name = "model.layers.0.mlp.down_proj.weight";
    for (value, stored, fits) in [
        (65504.0, Stored::Own, true),
        (1e5, Stored::Own, false),
        (1e5, Stored::F32, true),
        (f32::INFINITY, Stored::F32, false),
    ] {
        let changes = saved(&tmp.path().join("adapter"), &golden, name, value);
        for result in [
            export::write_merged(&out, &base, &changes, stored, isa),
            export::write_merged_gguf(&tmp.path().join("out.gguf"), &gguf, &changes, stored, isa),
        ] {
            assert_eq!(result.is_ok(), fits, "{value} {stored:?}");
            if let Err(error) = result {
                assert!(matches!(error, Error::NotFinite { .. }) && error.hint().is_some(), "{error}");
            }
        }
    }
    // the scale of a block is an f16
    let golden = crate::common::root().join("tests/golden/convert/Tiny-Llama-2-7b-chat-hf");
    let gguf = tmp.path().join("q8_0.gguf");
    write_gguf(&golden, by_name("Q8_0").unwrap(), &gguf);
    let changes = saved(&tmp.path().join("adapter"), &golden, name, 1e8);
    let error = export::write_merged_gguf(&tmp.path().join("q.gguf"), &gguf, &changes, Stored::Own, isa);
    assert!(matches!(error, Err(Error::NotFinite { .. })), "{:?}", error.err());
    assert!(!tmp.path().join("q.gguf").exists());
}

pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in names_in(from) {
        std::fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

#[test]
fn force_replaces_models_and_nothing_else() {
    let tmp = tempfile::tempdir().unwrap();
    let path = |name: &str| tmp.path().join(name);
    copy_dir(&golden_dir().join("llama"), &path("models/base"));
    copy_dir(&adapter_dir().join("llama"), &path("adapter"));
    copy_dir(&adapter_dir().join("llama"), &path("old/adapter"));
    copy_dir(&adapter_dir().join("llama"), &path("thesis"));
    std::fs::create_dir(path("empty")).unwrap();
    for dir in ["models", "old"] {
        std::fs::write(path(dir).join("config.json"), "{}").unwrap();
    }
    // a program's folder may have a config.json of its own
    std::fs::create_dir(path("program")).unwrap();
    std::fs::write(path("program/config.json"), "{}").unwrap();
    std::fs::write(path("program/main.c"), "int main() {}").unwrap();
    for (adapter, output, more, said) in [
        ("adapter", "thesis", &[][..], "holds no config.json"),
        ("adapter", "program", &[], "holds no .safetensors beside its config.json"),
        ("adapter", "models", &[], "would remove models/base, which is read"),
        ("adapter", "models/base", &[], "would remove models/base, which is read"),
        ("old/adapter", "old", &[], "would remove old/adapter, which is read"),
        ("adapter", "thesis", &["-t", "q8_0"], "is a directory"),
        ("adapter", "no/such.gguf", &["-t", "q8_0"], "the directory `no` does not exist"),
    ] {
        let args = [&["merge", "models/base", adapter, "-o", output, "--force"], more].concat();
        let (code, _, stderr) = run_lctl(tmp.path(), &args);
        assert!(code == 2 && stderr.contains(said) && stderr.contains("hint: "), "{args:?}: {stderr}");
    }
    assert_eq!(names_in(&path("thesis")), names_in(&path("adapter")));
    assert_eq!(names_in(&path("program")), ["config.json", "main.c"]);
    assert!(path("models/base/model.safetensors").is_file() && path("old/adapter").is_dir());
    for (output, force, expected) in
        [("out", false, 0), ("out", false, 2), ("out", true, 0), ("empty", true, 0), ("model", true, 0)]
    {
        let force: &[&str] = if force { &["--force"] } else { &[] };
        let args = [&["merge", "models/base", "adapter", "-o", output], force].concat();
        let (code, _, stderr) = run_lctl(tmp.path(), &args);
        assert_eq!(code, expected, "{args:?}: {stderr}");
    }
    assert!(open(&path("empty")).config().n_layers > 0);
    let mut expected: Vec<String> =
        ["adapter", "models", "old", "program", "thesis"].map(str::to_owned).to_vec();
    for made in ["empty", "model", "out"] {
        expected.extend([made.to_owned(), format!("{made}.manifest.json")]);
    }
    expected.sort();
    assert_eq!(names_in(tmp.path()), expected);
}

/// Writes a base of many matrices and an adapter of high rank for all of them: the better part of a second to merge.
#[cfg(unix)]
fn write_slow(dir: &Path) {
    const N: usize = 256;
    const RANK: usize = 128;
    let base: Vec<(String, Vec<f32>)> = (0..64).map(|i| (format!("m{i}.weight"), vec![0.5; N * N])).collect();
    let staged = StagedDir::create(&dir.join("base")).unwrap();
    let each = base.iter().map(|(name, values)| (name.as_str(), &[N, N][..], &values[..]));
    staged.write_tensors("model.safetensors", each).unwrap();
    staged.write("config.json", b"{}").unwrap();
    staged.commit().unwrap();
    let pairs = (0..64).flat_map(|i| {
        [("A", vec![RANK, N]), ("B", vec![N, RANK])]
            .map(|(end, shape)| (format!("m{i}.lora_{end}.weight"), shape, vec![1e-3; RANK * N]))
    });
    write_adapter(&dir.join("adapter"), RANK, &pairs.collect::<Vec<_>>());
}

#[cfg(unix)]
#[test]
fn an_interrupted_merge_leaves_nothing() {
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    let tmp = tempfile::tempdir().unwrap();
    write_slow(tmp.path());
    // returns what was said if the signal came in time
    let interrupt = |output: &[&str]| -> Option<String> {
        let args = [&["merge", "base", "adapter", "--threads", "1", "-o"], output].concat();
        let mut command = crate::common::lctl(tmp.path(), &args);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let started = Instant::now();
        // what is staged shows that the work is under way
        let staged = format!(".{}.lctl-", output[0]);
        let is_staged = || names_in(tmp.path()).iter().any(|name| name.starts_with(&staged));
        while !is_staged() && child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < Duration::from_secs(60), "no output began");
            std::thread::sleep(Duration::from_millis(1));
        }
        if child.try_wait().unwrap().is_none() {
            // SAFETY: kill() takes any numbers; the child has not been waited for, so the id is its own.
            assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
        }
        let result = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&result.stderr).into_owned();
        (result.status.code() == Some(130)).then_some(stderr)
    };
    let outputs: [&[&str]; 2] = [&["out"], &["out.gguf", "-t", "q8_0"]];
    for output in outputs {
        // on a busy machine it may have ended before
        let stderr = (0..20).find_map(|_| {
            let stderr = interrupt(output);
            if stderr.is_none() && tmp.path().join(output[0]).is_dir() {
                std::fs::remove_dir_all(tmp.path().join(output[0])).unwrap();
                std::fs::remove_file(tmp.path().join(format!("{}.manifest.json", output[0]))).unwrap();
            }
            stderr
        });
        let stderr = stderr.expect("every merge ended before its signal");
        assert!(stderr.contains("interrupted"), "{stderr}");
        assert_eq!(names_in(tmp.path()), ["adapter", "base"], "{output:?}");
    }
}

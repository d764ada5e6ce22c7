//! What every file of `lctl imatrix` keeps to: the same bits however it is computed, a manifest, what it is good for.

use std::path::Path;

use serde_json::Value as Json;

use lctl::eval::EngineOptions;
use lctl::eval::collect::{Extent, collect};
use lctl::kernel::{ComputeMode, Isa};
use lctl::model::observe::sites;
use lctl::model::{Decoder, LoadOptions};
use lctl::quantize::importance::{Form, ImportanceSums};
use lctl::tensor::gguf::{Gguf, Value};

use super::{bytes, golden_dir, succeed, tensors, workplace};
use crate::common::{names_in, run_lctl};

#[test]
fn threads_instructions_and_residence_change_no_bit() {
    for checkpoint in ["Mixtral-8x7B-Instruct-v0.1", "gemma-2-2b-it"] {
        let dir = workplace(checkpoint);
        let dir = dir.path();
        let imatrix = |options: &str| {
            let args =
                "imatrix model text.txt -o i.gguf -f --quiet --no-manifest --context 64 --process-output";
            succeed(dir, &format!("{args} {options}"));
            bytes(dir, "i.gguf")
        };
        let first = imatrix("--threads 1 --isa portable");
        for isa in Isa::available() {
            assert_eq!(imatrix(&format!("--threads 3 --isa {}", isa.name())), first, "{checkpoint} {isa:?}");
        }
        assert_eq!(imatrix("--weights mapped"), first, "{checkpoint}");
        assert_eq!(imatrix("--weights packed"), first, "{checkpoint}");
        // the products of the checkpoint's type round: another result, so the comparisons above can fail
        assert_ne!(imatrix("--compute f32"), first, "{checkpoint}");
    }
}

#[test]
fn a_checkpoint_and_its_gguf_are_measured_alike() {
    for checkpoint in ["Mistral-7B-v0.1", "Mixtral-8x7B-Instruct-v0.1", "Phi-3-mini-4k-instruct"] {
        let dir = workplace(checkpoint);
        let dir = dir.path();
        succeed(dir, "quantize model -t F32 -o model.gguf --quiet --no-manifest");
        for (model, output) in [("model", "a.gguf"), ("model.gguf", "b.gguf")] {
            let args = "text.txt --context 48 --compute f32 --quiet --no-manifest";
            succeed(dir, &format!("imatrix {model} {args} -o {output}"));
        }
        assert_eq!(bytes(dir, "a.gguf"), bytes(dir, "b.gguf"), "{checkpoint}");
    }
}

/// Returns the sums over a text of these tokens, computed in batches of so many.
fn collected(decoder: &Decoder, tokens: &[u32], chunk_len: usize, batch_tokens: usize) -> ImportanceSums {
    let extent = Extent { chunk_len, from_chunk: 0, limit: None };
    let chunks = extent.cut(tokens.to_vec(), Some(1)).unwrap();
    let mut sums = decoder.input_sums(sites(decoder.config()));
    let options = EngineOptions { batch_tokens, ..EngineOptions::new(decoder) };
    let mut done = Vec::new();
    collect(decoder, &options, &chunks, &mut sums, &mut |n_chunks| done.push(n_chunks)).unwrap();
    assert_eq!(done.last(), Some(&chunks.n_chunks()));
    ImportanceSums::of_sites(sums.finish(), "text".into(), chunk_len, None)
}

#[test]
fn batches_change_no_bit() {
    // in the last one a sequence outgrows the original context of its rope within a chunk
    for (model, chunk_len) in [("llama", 20), ("mixtral", 20), ("gemma3", 20), ("phi3-longrope", 60)] {
        let path = golden_dir().join("decoder").join(model);
        let decoder = Decoder::open(&path, &LoadOptions::new(ComputeMode::Auto, 2)).unwrap();
        assert_eq!(decoder.starts_anew_within(chunk_len), model == "phi3-longrope", "{model}");
        let vocab_size = decoder.config().vocab_size;
        let tokens: Vec<u32> = (0..3 * chunk_len + 5).map(|i| (i * 31 % vocab_size) as u32).collect();
        let whole = collected(&decoder, &tokens, chunk_len, chunk_len);
        assert_eq!(whole.n_chunks(), 3);
        for batch_tokens in [1, 7, 2 * chunk_len, 1000] {
            assert_eq!(
                collected(&decoder, &tokens, chunk_len, batch_tokens),
                whole,
                "{model} {batch_tokens}"
            );
        }
    }
}

#[test]
fn parts_of_a_text_add_up_to_the_whole() {
    let dir = workplace("Mixtral-8x7B-Instruct-v0.1");
    let dir = dir.path();
    let imatrix = |options: &str| succeed(dir, &format!("imatrix --quiet {options}"));
    imatrix("model text.txt --context 32 --chunks 6 -o whole.gguf");
    imatrix("model text.txt --context 32 --chunks 2 -o a.gguf");
    imatrix("model text.txt --context 32 --chunks 4 --from-chunk 2 -o b.gguf");
    imatrix("-o sum.gguf --in-file a.gguf --in-file b.gguf");
    imatrix("model text.txt --context 32 --chunks 4 --from-chunk 2 -o grown.gguf --in-file a.gguf");
    let whole = tensors(&dir.join("whole.gguf"));
    for other in ["sum.gguf", "grown.gguf"] {
        let file = Gguf::open(&dir.join(other)).unwrap();
        assert_eq!(file.metadata().get("imatrix.chunk_count"), Some(&Value::U32(6)));
        for ((name, shape, whole), (other_name, other_shape, values)) in
            whole.iter().zip(tensors(&dir.join(other)))
        {
            assert_eq!((name, shape), (&other_name, &other_shape));
            let scale = whole.iter().fold(0f32, |scale, value| scale.max(value.abs()));
            for (a, b) in whole.iter().zip(values) {
                // each part is rounded to f32 in its file
                assert!((a - b).abs() <= scale * 2f32.powi(-22), "{other} {name}: {a} {b}");
            }
        }
    }
    // a legacy file's chunks are as long as those of the others
    imatrix("-o b.dat --in-file b.gguf");
    let mixed = |options: &str| {
        imatrix(format!("-o mixed.gguf -f --in-file a.gguf --in-file b.dat {options}").trim_end());
        bytes(dir, "mixed.gguf")
    };
    let found = mixed("");
    assert!(found == mixed("--context 32") && found != mixed("--context 512"));
    imatrix("model text.txt --context 64 --chunks 2 -o long.gguf");
    let three = "imatrix --quiet -o three.gguf --in-file a.gguf --in-file b.dat --in-file long.gguf";
    let arguments: Vec<&str> = three.split(' ').collect();
    let (code, _, stderr) = run_lctl(dir, &arguments);
    let expected =
        "error: b.dat: how many tokens a chunk of it has is not known: the other files say from 32 to 64\n";
    assert!(code == 2 && stderr.starts_with(expected) && stderr.contains("--context"), "{stderr}");
    imatrix("-o three.gguf --in-file a.gguf --in-file b.dat --in-file long.gguf --context 32");
    // means of parts of different length lose their weights in the legacy form, no more than that
    imatrix("-o sum.dat --in-file sum.gguf");
    succeed(dir, "quantize model -t Q4_0 -o q.gguf --imatrix sum.dat --quiet --no-manifest");
}

#[test]
fn quantize_takes_it() {
    let dir = workplace("Mistral-7B-v0.1");
    let dir = dir.path();
    succeed(dir, "imatrix model text.txt -o i.gguf --context 32 --quiet --no-manifest --process-output");
    succeed(dir, "imatrix model text.txt -o i.dat --context 32 --quiet --no-manifest");
    for (imatrix, entries) in [("i.gguf", 15), ("i.dat", 14)] {
        let args = "quantize model -t Q4_0 -o q.gguf -f --quiet --no-manifest --imatrix";
        succeed(dir, &format!("{args} {imatrix}"));
        let file = Gguf::open(&dir.join("q.gguf")).unwrap();
        let key = |name: &str| file.metadata().get(&format!("quantize.imatrix.{name}")).cloned();
        assert_eq!(key("dataset"), Some("text.txt".into()));
        assert_eq!(key("entries_count"), Some(Value::U32(entries)));
        assert!(matches!(key("chunks_count"), Some(Value::U32(4..))));
    }
}

#[test]
fn it_has_a_manifest_that_can_be_replayed() {
    let dir = workplace("Mixtral-8x7B-Instruct-v0.1");
    let dir = dir.path();
    succeed(dir, "imatrix model text.txt -o a.gguf --context 32 --chunks 2 --quiet");
    let stdout = succeed(dir, "imatrix model text.txt -o b.dat --context 32 --in-file a.gguf --json --quiet");
    let json: Json = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&json["schema"], &json["form"]), (&"lctl.imatrix/1".into(), &"dat".into()));
    assert_eq!(json["datasets"], serde_json::json!(["text.txt", "text.txt"]));
    let manifest = |name: &str| -> Json { serde_json::from_slice(&bytes(dir, name)).unwrap() };
    let (a, b) = (manifest("a.gguf.manifest.json"), manifest("b.dat.manifest.json"));
    assert_eq!(b["job"]["command"], "imatrix");
    assert_eq!(b["outputs"][0]["role"], "importance");
    assert_eq!(b["outputs"][0]["sha256"], json["file"]["sha256"]);
    let roles: Vec<&str> =
        b["inputs"].as_array().unwrap().iter().map(|i| i["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["model", "model_files", "text", "importance"]);
    // the earlier file's manifest is named by its digest
    assert_eq!(b["inputs"][3]["sha256"], a["outputs"][0]["sha256"]);
    assert_eq!(b["inputs"][3]["manifest"].as_str().map(str::len), Some(64));

    let said = succeed(dir, "replay b.dat.manifest.json --threads 1 --quiet --json");
    assert_eq!(serde_json::from_str::<Json>(&said).unwrap()["agrees"], true);
    // the outputs name the text as the first run did, wherever it is now
    std::fs::rename(dir.join("text.txt"), dir.join("moved.txt")).unwrap();
    assert!(
        succeed(dir, "replay a.gguf.manifest.json --input text.txt=moved.txt").ends_with("the bits agree\n")
    );
    succeed(dir, "imatrix -o c.gguf --in-file a.gguf --in-file b.dat --quiet");
    assert!(succeed(dir, "replay c.gguf.manifest.json").ends_with("the bits agree\n"));
    // and quantize's manifest names it
    succeed(dir, "quantize model -t Q4_0 -o q.gguf --imatrix a.gguf --quiet");
    assert_eq!(manifest("q.gguf.manifest.json")["inputs"][2]["manifest"], b["inputs"][3]["manifest"]);
}

#[test]
fn it_says_what_it_did() {
    let dir = workplace("Mistral-7B-v0.1");
    let dir = dir.path();
    let stdout = succeed(dir, "imatrix model text.txt -o i.gguf --context 32 --chunks 2");
    let digest = lctl::provenance::sha256_of_file(&dir.join("i.gguf")).unwrap();
    assert!(stdout.starts_with("14 tensors, 2 chunks of 32 tokens, "), "{stdout}");
    assert!(stdout.ends_with(&format!("\nsha256 {digest}  i.gguf\n")), "{stdout}");
    assert_eq!(names_in(dir), ["i.gguf", "i.gguf.manifest.json", "model", "text.txt"]);
}

#[test]
fn a_file_written_and_read_is_the_same_sums() {
    let dir = tempfile::tempdir().unwrap();
    let path = golden_dir().join("imatrix/mixtral.gguf");
    let read = |path: &Path| ImportanceSums::open(path, 512).unwrap();
    let sums = read(&path);
    assert_eq!((sums.len(), sums.chunk_len(), sums.n_chunks()), (17, 32, 4));
    let copy = dir.path().join("copy.gguf");
    sums.write(&copy, Form::Gguf, false).unwrap();
    assert_eq!(read(&copy), sums);
}

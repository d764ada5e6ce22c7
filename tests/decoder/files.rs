//! Checkpoints in every spelling and storage: tests/golden/convert.

use std::path::PathBuf;

use lctl::kernel::ComputeMode;
use lctl::model::Decoder;
use lctl::tensor::format::by_name;

use super::{all_logits, difference, open, options, write_gguf};

const TOKENS: [u32; 9] = [1, 40, 7, 99, 250, 3, 3, 180, 31];

fn checkpoints() -> Vec<(String, PathBuf)> {
    let dir = crate::common::root().join("tests/golden/convert");
    let mut found: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("config.json").is_file())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path))
        .collect();
    found.sort();
    assert!(found.len() >= 20, "{}", found.len());
    found
}

/// FP8 with factors, one tensor per expert, stacks, shards, nested configs, tensors of other towers.
#[test]
fn every_checkpoint_and_its_gguf_give_the_same_bits() {
    let tmp = tempfile::tempdir().unwrap();
    let mut checked = Vec::new();
    for (name, dir) in checkpoints() {
        // its GGUF has fewer rows of the embedding
        if name.contains("unused-vocab") {
            continue;
        }
        let path = tmp.path().join(format!("{name}.gguf"));
        write_gguf(&dir, by_name("F32").unwrap(), &path);
        let (checkpoint, gguf) = (open(&dir), open(&path));
        // no key of a GGUF holds `query_pre_attn_scalar`, nor that experts are not renormalised
        let [a, b] = [&checkpoint, &gguf].map(|model| {
            let renormalize = model.config().experts.as_ref().map(|experts| experts.renormalize);
            (model.config().attn_scale, renormalize)
        });
        if a != b {
            continue;
        }
        let logits = all_logits(&checkpoint, &TOKENS);
        assert!(logits.iter().all(|x| x.is_finite()) && logits.iter().any(|x| *x != 0.0), "{name}");
        assert!(logits == all_logits(&gguf, &TOKENS), "{name}");
        checked.push(name);
    }
    println!("{}: {}", checked.len(), checked.join(" "));
    for part in ["fp8", "shards", "Mixtral", "phi"] {
        assert!(checked.iter().any(|name| name.to_lowercase().contains(&part.to_lowercase())), "{part}");
    }
}

#[test]
fn quantized_weights_come_close_in_every_mode() {
    let tmp = tempfile::tempdir().unwrap();
    let (_, dir) = checkpoints().into_iter().find(|(name, _)| name == "Tiny-Llama-2-7b-chat-hf").unwrap();
    let exact = all_logits(&open(&dir), &TOKENS);
    // the logits of random weights are noise, so an error shows in full: two to three times what was measured
    for (dtype, tolerance) in [("Q8_0", 0.1), ("Q5_0", 0.3), ("Q4_0", 0.5)] {
        let path = tmp.path().join(format!("{dtype}.gguf"));
        write_gguf(&dir, by_name(dtype).unwrap(), &path);
        for mode in [ComputeMode::F32, ComputeMode::Bf16, ComputeMode::Auto] {
            let model = Decoder::open(&path, &options(mode, 2)).unwrap();
            let found = difference(&all_logits(&model, &TOKENS), &exact);
            println!("{dtype} {mode:?}: {found:.1e}");
            assert!(found > 0.0 && found < tolerance, "{dtype} {mode:?}: {found}");
        }
    }
}

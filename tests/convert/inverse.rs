//! A GGUF read backwards through the tables is the checkpoint it was made from.

use std::collections::HashMap;

use lctl::kernel::Isa;
use lctl::model::{Checkpoint, Mapped, map_checkpoint, map_gguf, unmap_gguf};
use lctl::tensor::TensorDecl;
use lctl::tensor::format::by_name;
use lctl::tensor::gguf::{Array, Gguf, GgufWriter, Value, WriteOptions};

use super::{bytes_of, golden_dir, tiny_names};

/// Writes `mapped` to a GGUF, matrices as BF16.
fn write_gguf(path: &std::path::Path, checkpoint: &Checkpoint, mapped: &Mapped) {
    let bf16 = by_name("BF16").unwrap();
    let mut keys = mapped.metadata.clone();
    let tokens = vec![String::new(); checkpoint.model_config().unwrap().vocab_size];
    keys.insert("tokenizer.ggml.tokens".to_owned(), Value::Array(Array::String(tokens)));
    let decls: Vec<TensorDecl> = mapped
        .tensors
        .iter()
        .map(|tensor| TensorDecl {
            name: tensor.name.clone(),
            dtype: tensor.fixed_dtype.unwrap_or(bf16),
            shape: tensor.shape.clone(),
        })
        .collect();
    let mut writer = GgufWriter::create(path, &keys, &decls, &WriteOptions::default()).unwrap();
    for (tensor, decl) in mapped.tensors.iter().zip(&decls) {
        writer.write(&bytes_of(tensor, checkpoint.source.as_ref(), decl.dtype, 1000)).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn unmapping_a_gguf_gives_the_checkpoint_back() {
    let tmp = tempfile::tempdir().unwrap();
    let f32_dtype = by_name("F32").unwrap();
    let mut checked = 0;
    // FP8 weights and stacked experts have no one-to-one way back; dropped rows are gone
    let one_way = ["fp8", "stacked", "unused-vocab"];
    for name in tiny_names().into_iter().filter(|name| !one_way.iter().any(|part| name.contains(part))) {
        let checkpoint = Checkpoint::open(&golden_dir().join(&name)).unwrap();
        let mapped = map_checkpoint(&checkpoint, by_name("BF16").unwrap()).unwrap();
        let path = tmp.path().join(format!("{name}.gguf"));
        write_gguf(&path, &checkpoint, &mapped);
        let gguf = Gguf::open(&path).unwrap();
        let same = map_gguf(&gguf);
        assert_eq!(same.arch, mapped.arch);
        assert_eq!(same.tensors.len(), mapped.tensors.len());

        let back: HashMap<String, _> =
            unmap_gguf(&gguf).unwrap().into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        let source = checkpoint.source.as_ref();
        let infos = source.tensors().iter().filter(|info| !info.name.contains("vision_tower."));
        for info in infos.filter(|info| !info.name.contains("multi_modal_projector.")) {
            let tensor = &back[&info.name.replace("language_model.", "")];
            assert_eq!(tensor.shape, info.shape, "{name}: {}", info.name);
            let mut original = vec![0.0; info.n_elements()];
            info.dtype.decode(Isa::detect(), source.bytes(info).unwrap(), &mut original);
            let original: Vec<u8> = original.iter().flat_map(|value| value.to_le_bytes()).collect();
            assert!(bytes_of(tensor, &gguf, f32_dtype, 5) == original, "{name}: {}", info.name);
        }
        checked += 1;
    }
    assert!(checked >= 18, "{checked}");
}

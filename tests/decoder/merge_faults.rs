//! `lctl merge` of models that are damaged, with links and pipes about them, or that no type can hold.

use std::path::Path;

use lctl::error::Diagnostic;
use lctl::kernel::Isa;
use lctl::model::export::{self, Changes, Stored};
use lctl::tensor::TensorSource;
use lctl::tensor::format::by_name;
use lctl::tensor::gguf::Gguf;
use lctl::tensor::safetensors::SafeTensors;
use serde_json::json;

use super::adapter::adapter_dir;
use super::merge::{copy_dir, write_adapter, write_as};
use super::{golden_dir, write_gguf};
use crate::common::{names_in, run_lctl};
use crate::finetune::Setup;

/// Puts a model and an adapter of it into a directory, as `base` and `adapter`.
fn place_llama(dir: &Path) {
    copy_dir(&golden_dir().join("llama"), &dir.join("base"));
    copy_dir(&adapter_dir().join("llama"), &dir.join("adapter"));
}

#[cfg(unix)]
#[test]
fn force_replaces_no_pipe_and_no_socket() {
    use std::os::unix::fs::FileTypeExt;

    let tmp = tempfile::tempdir().unwrap();
    place_llama(tmp.path());
    crate::common::make_pipe(&tmp.path().join("pipe"));
    let _socket = std::os::unix::net::UnixListener::bind(tmp.path().join("socket")).unwrap();
    std::os::unix::fs::symlink("pipe", tmp.path().join("link")).unwrap();
    for output in ["pipe", "socket", "link"] {
        for more in [&[][..], &["-t", "q8_0"]] {
            let args = [&["merge", "base", "adapter", "--force", "-o", output], more].concat();
            let (code, stderr) = crate::common::run_without_waiting(crate::common::lctl(tmp.path(), &args));
            let said = format!("error: {output}: exists and is not a regular file\n");
            assert!(code == 2 && stderr.starts_with(&said), "{args:?}: {stderr}");
        }
    }
    let kind = |name: &str| tmp.path().join(name).symlink_metadata().unwrap().file_type();
    assert!(kind("pipe").is_fifo() && kind("socket").is_socket() && kind("link").is_symlink());
    assert_eq!(names_in(tmp.path()), ["adapter", "base", "link", "pipe", "socket"]);
}

/// What a link leads to is no part of the model, unless it is: a blob of the cache, a file beside it.
#[cfg(unix)]
#[test]
fn links_out_of_the_model_and_what_is_no_file_are_not_copied() {
    use std::os::unix::fs::symlink;

    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    place_llama(dir);
    let merge = || {
        let args = ["merge", "base", "adapter", "-o", "out", "--no-manifest", "--quiet"];
        crate::common::run_without_waiting(crate::common::lctl(dir, &args))
    };
    std::fs::write(dir.join("secret"), "root:x:0:0").unwrap();
    let bad = dir.join("base/tokenizer_config.json");
    for (target, said) in [
        ("../secret", "base/tokenizer_config.json: is a link out of the model's directory, to "),
        ("nothing", "base/tokenizer_config.json: cannot read"),
    ] {
        symlink(target, &bad).unwrap();
        let (code, stderr) = merge();
        assert!(code == 2 && stderr.contains(said), "{target}: {stderr}");
        std::fs::remove_file(&bad).unwrap();
    }
    crate::common::make_pipe(&bad);
    let (code, stderr) = merge();
    let said = "base/tokenizer_config.json: cannot copy\n  caused by: not a regular file";
    assert!(code == 2 && stderr.contains(said), "{stderr}");
    std::fs::remove_file(&bad).unwrap();
    assert_eq!(names_in(dir), ["adapter", "base", "secret"]);

    // what is not copied may be anything, and a file may have two names
    symlink("../secret", dir.join("base/secret.bin")).unwrap();
    std::fs::create_dir(dir.join("base/more.json")).unwrap();
    symlink("config.json", dir.join("base/same.json")).unwrap();
    assert_eq!(merge(), (0, String::new()));
    assert_eq!(names_in(&dir.join("out")), ["config.json", "model.safetensors", "same.json"]);
    assert!(!dir.join("out/same.json").symlink_metadata().unwrap().is_symlink());

    // as a hub's cache has it
    let snapshot = dir.join("models--a--b/snapshots/0123");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir(dir.join("models--a--b/blobs")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden_dir().join("llama").join(name), dir.join("models--a--b/blobs").join(name))
            .unwrap();
        symlink(Path::new("../../blobs").join(name), snapshot.join(name)).unwrap();
    }
    let args = ["merge", "models--a--b/snapshots/0123", "adapter", "-o", "cached", "--quiet"];
    assert_eq!(run_lctl(dir, &args), (0, String::new(), String::new()));
    for name in ["config.json", "model.safetensors"] {
        let file = dir.join("cached").join(name);
        assert!(!file.symlink_metadata().unwrap().is_symlink());
        assert!(
            std::fs::read(&file).unwrap() == std::fs::read(dir.join("out").join(name)).unwrap(),
            "{name}"
        );
    }
}

/// Overwrites bytes of a tensor in its file.
fn poke(source: &dyn TensorSource, name: &str, at: usize, new: &[u8]) {
    let info = source.find(name).unwrap();
    let path = source.files()[info.shard].clone();
    let mut file = std::fs::read(&path).unwrap();
    file[info.offset as usize + at..][..new.len()].copy_from_slice(new);
    // a mapping of the old file stays what it was
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, file).unwrap();
}

#[test]
fn a_damaged_base_is_named_whether_the_change_touches_it_or_not() {
    let isa = Isa::detect();
    let golden = golden_dir().join("llama");
    let touched = "model.layers.1.mlp.down_proj.weight";
    for (name, value, said) in [
        ("model.norm.weight", f32::NAN, "`model.norm.weight`: NaN at row 0, column 3 (stored as F32)"),
        (
            "model.embed_tokens.weight",
            f32::NEG_INFINITY,
            "`model.embed_tokens.weight`: -inf at row 0, column 3",
        ),
        (touched, f32::INFINITY, "`model.layers.1.mlp.down_proj.weight`: inf at row 0, column 3"),
    ] {
        let tmp = tempfile::tempdir().unwrap();
        place_llama(tmp.path());
        let base = tmp.path().join("base");
        let f32s = tmp.path().join("f32.safetensors");
        write_as(by_name("F32").unwrap(), &golden, &f32s);
        std::fs::rename(&f32s, base.join("model.safetensors")).unwrap();
        poke(&SafeTensors::open_dir(&base).unwrap(), name, 3 * 4, &value.to_le_bytes());
        let changes = Changes::open(&tmp.path().join("adapter"), isa).unwrap();
        let is_touched = name == touched;
        for stored in [Stored::Own, Stored::F32] {
            let out = tmp.path().join("out");
            let error = export::write_merged(&out, &base, &changes, stored, isa).unwrap_err();
            let expected = format!("{}: {said}", base.join("model.safetensors").display());
            assert!(error.to_string().starts_with(&expected), "{is_touched} {stored:?}: {error}");
            assert!(error.hint().unwrap().contains("damaged") && !out.exists());
        }
        // the same of the program, and of a GGUF to be: no file that is gone is named
        for output in [&["-o", "out"][..], &["-o", "out.gguf", "-t", "f16"]] {
            let args = [&["merge", "base", "adapter"], output].concat();
            let (code, _, stderr) = run_lctl(tmp.path(), &args);
            let expected = format!("error: base/model.safetensors: {said}");
            assert!(code == 2 && stderr.starts_with(&expected), "{stderr}");
        }
        assert_eq!(names_in(tmp.path()), ["adapter", "base"]);
    }
}

#[test]
fn a_damaged_gguf_is_named_whether_the_change_touches_it_or_not() {
    let isa = Isa::detect();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/convert/Tiny-Llama-2-7b-chat-hf");
    for name in ["blk.0.attn_q.weight", "blk.0.ffn_down.weight"] {
        let tmp = tempfile::tempdir().unwrap();
        let gguf = tmp.path().join("q8_0.gguf");
        write_gguf(&golden, by_name("Q8_0").unwrap(), &gguf);
        // the scale of the first block is an f16: infinity
        poke(&Gguf::open(&gguf).unwrap(), name, 0, &[0x00, 0x7c]);
        let module = "model.layers.0.mlp.down_proj";
        let source = SafeTensors::open_dir(&golden).unwrap();
        let shape = source.find(&format!("{module}.weight")).unwrap().shape.clone();
        let pair = [
            (format!("{module}.lora_A.weight"), vec![1, shape[1]], vec![0.5; shape[1]]),
            (format!("{module}.lora_B.weight"), vec![shape[0], 1], vec![0.5; shape[0]]),
        ];
        write_adapter(&tmp.path().join("adapter"), 1, &pair);
        let changes = Changes::open(&tmp.path().join("adapter"), isa).unwrap();
        let out = tmp.path().join("out.gguf");
        let error = export::write_merged_gguf(&out, &gguf, &changes, Stored::Own, isa).unwrap_err();
        let said = error.to_string();
        assert!(said.starts_with(&format!("{}: `{name}`: ", gguf.display())), "{said}");
        assert!(said.ends_with(" at row 0, column 0 (stored as Q8_0)"), "{said}");
        assert_eq!(names_in(tmp.path()), ["adapter", "q8_0.gguf"]);
    }
}

/// The merged checkpoint that is quantized is gone when the user reads of it.
#[test]
fn what_cannot_be_quantized_is_said_of_files_that_are_there() {
    let setup = Setup::new(&json!({}));
    let dir = setup.dir.path();
    let name = "model.layers.0.mlp.down_proj.weight";
    let source = SafeTensors::open_dir(&setup.path("base")).unwrap();
    let shape = source.find(name).unwrap().shape.clone();
    let values = vec![1e5; shape.iter().product()];
    write_adapter(&setup.path("adapter"), 4, &[(name.to_owned(), shape, values)]);
    let merge = || run_lctl(dir, &["merge", "base", "adapter", "-o", "m.gguf", "-t", "f16", "--quiet"]);
    let (code, _, stderr) = merge();
    let said = "error: m.gguf: `blk.0.ffn_down.weight`: 1e5 at row 0, column ";
    assert!(code == 2 && stderr.starts_with(said), "{stderr}");
    assert!(stderr.contains(" is too large for F16\n"), "{stderr}");
    std::fs::write(setup.path("base/tokenizer.json"), "{").unwrap();
    let (code, _, stderr) = merge();
    assert!(code == 2 && stderr.contains("base/tokenizer.json"), "{stderr}");
    assert!(!stderr.contains(".partial"), "{stderr}");
    assert!(names_in(dir).iter().all(|name| !name.contains("m.gguf")), "{:?}", names_in(dir));
}

//! Opening by path: checkpoints' directories, indexes that lie, and files that are something else.

use std::path::Path;

use lctl::tensor::Opened;
use lctl::tensor::gguf::{GgufWriter, Metadata};
use lctl::tensor::safetensors::SafeTensorsWriter;

use super::{data, decl, open, open_error};

/// Writes a file of one-float tensors.
fn shard(path: &Path, tensors: &[&str]) {
    let decls: Vec<_> = tensors.iter().map(|name| decl(name, &[1])).collect();
    let mut writer = SafeTensorsWriter::create(path, [("format", "pt")], &decls, false).unwrap();
    for name in tensors {
        writer.write(&[name.as_bytes()[0]; 4]).unwrap();
    }
    writer.finish().unwrap();
}

fn gguf(path: &Path) {
    let writer = GgufWriter::create(path, &Metadata::new(), &[], &Default::default());
    writer.unwrap().finish().unwrap();
}

/// Makes a directory with `make` and returns the error of opening it, the directory's name cut off.
fn error_of(make: impl Fn(&Path)) -> (String, Option<String>) {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path());
    let (error, hint) = open_error(dir.path());
    let name = dir.path().display().to_string();
    (error.to_string().replace(&format!("{name}/"), "").replace(&name, "DIR"), hint)
}

/// A checkpoint of two shards with `map` as the index's weight_map.
fn indexed(dir: &Path, map: &str) {
    shard(&dir.join("model-00001-of-00002.safetensors"), &["a", "b"]);
    shard(&dir.join("model-00002-of-00002.safetensors"), &["c", "d"]);
    let index = format!(r#"{{"metadata":{{"total_size":1}},"weight_map":{{{map}}}}}"#);
    std::fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
}

const MAP: &str = r#""a":"model-00001-of-00002.safetensors","b":"model-00001-of-00002.safetensors","c":"model-00002-of-00002.safetensors""#;

fn tensor_names(opened: &Opened) -> Vec<&str> {
    opened.as_source().tensors().iter().map(|tensor| tensor.name.as_str()).collect()
}

#[test]
fn a_sharded_checkpoint_opens() {
    let dir = tempfile::tempdir().unwrap();
    indexed(dir.path(), MAP);
    let opened = open(dir.path());
    // `d` is in a shard but not in the index: Hugging Face's loader takes it, so it is listed.
    assert_eq!(tensor_names(&opened), ["a", "b", "c", "d"]);
    assert_eq!(data(opened.as_source(), "c"), b"cccc");
    assert_eq!(opened.as_source().find("c").unwrap().shard, 1);
    let Opened::SafeTensors(source) = opened else { panic!("safetensors") };
    assert_eq!(source.metadata(1)["format"], "pt");
}

#[test]
fn a_single_file_wins_over_an_index() {
    let dir = tempfile::tempdir().unwrap();
    indexed(dir.path(), MAP);
    shard(&dir.path().join("model.safetensors"), &["single"]);
    assert_eq!(tensor_names(&open(dir.path())), ["single"]);
}

#[test]
fn directories_without_an_index() {
    let dir = tempfile::tempdir().unwrap();
    shard(&dir.path().join("weights.safetensors"), &["w"]);
    gguf(&dir.path().join("also.gguf"));
    assert_eq!(tensor_names(&open(dir.path())), ["w"]);
    shard(&dir.path().join("model-00001-of-00002.safetensors"), &["a"]);
    let (error, _) = open_error(dir.path());
    assert!(
        error.to_string().ends_with("shard 2 of 2 is missing (expected `model-00002-of-00002.safetensors`)"),
        "{error}"
    );
    shard(&dir.path().join("model-00002-of-00002.safetensors"), &["b"]);
    assert_eq!(tensor_names(&open(dir.path())), ["a", "b"]);
}

#[test]
fn one_name_in_two_shards_is_an_error() {
    let (error, _) = error_of(|dir| {
        indexed(dir, MAP);
        shard(&dir.join("model-00002-of-00002.safetensors"), &["c", "a"]);
    });
    assert_eq!(
        error,
        "`a` is in two shards: model-00001-of-00002.safetensors and model-00002-of-00002.safetensors"
    );
}

#[test]
fn a_missing_shard_is_named() {
    let (error, hint) = error_of(|dir| {
        indexed(dir, MAP);
        std::fs::remove_file(dir.join("model-00001-of-00002.safetensors")).unwrap();
    });
    assert_eq!(
        error,
        "model.safetensors.index.json: shard `model-00001-of-00002.safetensors` is missing; \
         it should hold 2 tensors, the first `a`"
    );
    assert_eq!(hint.unwrap(), "download the missing file");
}

#[test]
fn an_index_that_names_a_tensor_its_shard_lacks() {
    for lie in [
        r#""x":"model-00001-of-00002.safetensors""#,
        // In the other shard.
        r#""x":"model-00002-of-00002.safetensors","a":"model-00001-of-00002.safetensors""#,
    ] {
        let (error, _) = error_of(|dir| indexed(dir, lie));
        assert!(error.starts_with("model.safetensors.index.json: `x` should be in `model-0000"), "{error}");
    }
    let (error, hint) = error_of(|dir| {
        indexed(dir, r#""a":"model-00002-of-00002.safetensors","c":"model-00001-of-00002.safetensors""#)
    });
    assert_eq!(
        error,
        "model.safetensors.index.json: `a` should be in `model-00002-of-00002.safetensors`, \
         but that shard does not hold it"
    );
    assert!(hint.unwrap().contains("different versions"));
}

#[test]
fn an_index_cannot_leave_its_directory() {
    for file in
        ["../model.safetensors", "/etc/passwd", "sub/m.safetensors", "..", ".", "", "a\\\\b", "C:m", "./m"]
    {
        let (error, hint) = error_of(|dir| indexed(dir, &format!(r#""t":"{file}""#)));
        let shown = file.replace("\\\\", "\\");
        assert_eq!(
            error,
            format!(
                "model.safetensors.index.json: `weight_map` sends `t` to `{shown}`, which is not a plain file name"
            )
        );
        assert!(hint.unwrap().contains("do not trust"));
    }
}

#[test]
fn malformed_indexes() {
    for json in [
        "",
        "{}",
        "[]",
        r#"{"weight_map":{"a":1}}"#,
        r#"{"weight_map":{}}"#,
        r#"{"weight_map":{"a":"m","a":"n"}}"#,
    ] {
        let (error, _) = error_of(|dir| {
            std::fs::write(dir.join("model.safetensors.index.json"), json).unwrap();
        });
        assert!(
            error.starts_with("model.safetensors.index.json: not a safetensors index: "),
            "{json}: {error}"
        );
    }
}

#[test]
fn a_directory_with_one_gguf_opens_and_with_two_does_not() {
    let dir = tempfile::tempdir().unwrap();
    gguf(&dir.path().join("one.gguf"));
    assert!(matches!(open(dir.path()), Opened::Gguf(_)));
    gguf(&dir.path().join("two.gguf"));
    let (error, hint) = open_error(dir.path());
    assert_eq!(
        error.to_string(),
        format!("{}: the directory holds 2 GGUF models: one.gguf, two.gguf", dir.path().display())
    );
    assert_eq!(hint.unwrap(), "name one of them instead of the directory");
}

#[test]
fn nothing_there() {
    let (error, hint) = error_of(|_| {});
    assert_eq!(error, "DIR: the directory holds no .safetensors or .gguf file");
    assert!(hint.is_some());
    let (error, _) = open_error(Path::new("no/such/model"));
    assert_eq!(error.to_string(), "no/such/model: no such file or directory");
}

#[test]
fn pickles_are_refused_unread() {
    let (error, hint) = error_of(|dir| {
        std::fs::write(dir.join("pytorch_model-00001-of-00002.bin"), "x").unwrap();
    });
    assert_eq!(
        error,
        "pytorch_model-00001-of-00002.bin: a pickle checkpoint (by its name), refused: \
         reading one runs the program inside it"
    );
    assert!(hint.unwrap().contains("safe_serialization=True"));
    let dir = tempfile::tempdir().unwrap();
    for (name, content, evidence) in [
        ("m.bin", &b"PK\x03\x04rest"[..], "a zip archive, as torch.save writes"),
        ("m.safetensors", b"PK\x03\x04rest", "a zip archive, as torch.save writes"),
        ("m.gguf", b"\x80\x02}q\0.", "it begins with a pickle's opcode"),
        ("m.pt", b"\x80\x04\x95", "it begins with a pickle's opcode"),
        ("m.pth", b"anything", "by its name"),
        ("m.CKPT", b"", "by its name"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let (error, _) = open_error(&path);
        assert!(error.to_string().contains(&format!("a pickle checkpoint ({evidence})")), "{error}");
    }
}

#[test]
fn a_file_is_what_its_bytes_say() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    gguf(&path("t.gguf"));
    shard(&path("t.safetensors"), &["t"]);
    std::fs::rename(path("t.gguf"), path("misnamed.safetensors")).unwrap();
    std::fs::rename(path("t.safetensors"), path("misnamed.bin")).unwrap();
    assert!(matches!(open(&path("misnamed.safetensors")), Opened::Gguf(_)));
    assert!(matches!(open(&path("misnamed.bin")), Opened::SafeTensors(_)));

    let says = |name: &str, content: &[u8]| {
        std::fs::write(path(name), content).unwrap();
        let (error, _) = open_error(&path(name));
        error.to_string().replace(&format!("{}/", dir.path().display()), "")
    };
    assert_eq!(says("old.ggml", b"tjgg\x03\0\0\0"), "old.ggml: a legacy GGJT file, from before GGUF");
    assert_eq!(says("old.bin", b"lmgg\x03\0\0\0"), "old.bin: a legacy GGML file, from before GGUF");
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    assert_eq!(says("m.safetensors", pointer), "m.safetensors: a Git LFS pointer, not the file itself");
    assert_eq!(
        says("m.txt", b"hello world"),
        "m.txt: neither GGUF nor safetensors (it begins with `hello wo`)"
    );
    assert_eq!(says("m", b""), "m: empty, 0 bytes long");
    assert_eq!(says("m.gguf", b" \n<HTML>"), "m.gguf: a web page, not the file itself");
    assert_eq!(
        says("m.gguf", b"<xml/>"),
        "m.gguf: not a GGUF file: it begins with [3c, 78, 6d, 6c], not `GGUF`"
    );
    assert_eq!(
        says("e.safetensors", b"abc"),
        "e.safetensors: 3 bytes long, too short for a safetensors header (8)"
    );
    #[cfg(unix)]
    assert_eq!(open_error(Path::new("/dev/null")).0.to_string(), "/dev/null: not a regular file");
}

#[test]
fn safetensors_declarations_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.safetensors");
    let says = |decl: lctl::tensor::TensorDecl| {
        SafeTensorsWriter::create(&path, [], &[decl], false).err().unwrap().to_string()
    };
    let gguf_only = lctl::tensor::format::by_name("Q8_1").unwrap();
    let q8 = lctl::tensor::TensorDecl { dtype: gguf_only, ..decl("t", &[32]) };
    assert!(says(q8).ends_with("cannot be written: `t`: safetensors has no dtype for Q8_1"));
    assert!(says(decl("__metadata__", &[1])).contains("is not a tensor name"));
}

//! Split models: written, read, and lied about.

use std::path::{Path, PathBuf};

use lctl::tensor::gguf::{Gguf, GgufWriter, Metadata, Split, Value, WriteOptions};
use lctl::tensor::{TensorDecl, TensorSource, WrittenFile};

use super::{data, decl, names, open, open_error, test_data};

/// Writes five tensors of 16 floats; tensor `i` is filled with byte `i`.
fn write(path: &Path, split: Split, alignment: Option<u32>) -> Vec<WrittenFile> {
    let tensors: Vec<TensorDecl> = (0..5).map(|i| decl(&format!("t{i}"), &[4, 4])).collect();
    let metadata = Metadata::from_iter([("general.name".to_owned(), Value::from("split me"))]);
    let options = WriteOptions { alignment, split: Some(split), ..Default::default() };
    let mut writer = GgufWriter::create(path, &metadata, &tensors, &options).unwrap();
    for i in 0..5 {
        writer.write(&[i; 64]).unwrap();
    }
    writer.finish().unwrap()
}

fn shard(dir: &Path, no: usize, count: usize) -> PathBuf {
    dir.join(format!("m-{no:05}-of-{count:05}.gguf"))
}

#[test]
fn split_then_open_is_identity() {
    for (split, count, alignment) in [
        (Split::MaxTensors(2), 3, None),
        (Split::MaxTensors(1), 5, Some(64)),
        (Split::MaxTensors(9), 1, None),
        (Split::MaxBytes(128), 3, None),
        (Split::MaxBytes(200), 2, None),
        (Split::MaxBytes(1), 5, Some(4096)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let written = write(&dir.path().join("m.gguf"), split, alignment);
        assert_eq!(written.len(), count, "{split:?}");
        assert_eq!(written[0].path, shard(dir.path(), 1, count));
        assert_eq!(names(dir.path()).len(), count);
        // A file of the set and the directory open to the same model.
        for path in [shard(dir.path(), 1, count), dir.path().to_owned()] {
            let opened = open(&path);
            let source = opened.as_source();
            assert_eq!(source.files().len(), count);
            assert_eq!(source.tensors().len(), 5);
            for i in 0..5u8 {
                assert_eq!(data(source, &format!("t{i}")), [i; 64], "{split:?}");
            }
        }
        let gguf = Gguf::open(&shard(dir.path(), 1, count)).unwrap();
        let keys: Vec<_> = gguf.metadata().keys().filter(|key| !key.ends_with("alignment")).collect();
        assert_eq!(keys, ["general.name", "split.no", "split.tensors.count", "split.count"]);
        assert_eq!(gguf.metadata()["split.tensors.count"], Value::I32(5));
    }
}

#[test]
fn the_reference_s_split_opens_as_its_whole() {
    let Some(root) = test_data() else { return };
    let dir = root.join("adapters/gguf-small");
    let whole = Gguf::open(&dir.join("dummy.gguf")).unwrap();
    let split = Gguf::open(&dir.join("dummy-00001-of-00002.gguf")).unwrap();
    assert_eq!(split.files().len(), 2);
    let mut metadata = split.metadata().clone();
    for key in ["split.no", "split.tensors.count", "split.count"] {
        metadata.shift_remove(key).unwrap();
    }
    assert_eq!(&metadata, whole.metadata());
    assert_eq!(split.tensors().len(), whole.tensors().len());
    for (a, b) in split.tensors().iter().zip(whole.tensors()) {
        assert_eq!((&a.name, &a.shape, a.dtype), (&b.name, &b.shape, b.dtype));
        assert_eq!(split.bytes(a).unwrap(), whole.bytes(b).unwrap());
    }
}

#[test]
fn shards_of_the_reference_are_written_again_byte_for_byte() {
    let Some(root) = test_data() else { return };
    let dir = root.join("adapters/gguf-small");
    for no in 1..=2 {
        let bytes = std::fs::read(dir.join(format!("dummy-0000{no}-of-00002.gguf"))).unwrap();
        let header = lctl::tensor::gguf::parse_header(&bytes).unwrap();
        let tensors: Vec<TensorDecl> = header.tensors.iter().map(TensorDecl::from).collect();
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join("again.gguf");
        let mut writer = GgufWriter::create(&path, &header.metadata, &tensors, &Default::default()).unwrap();
        for tensor in &header.tensors {
            writer.write(&bytes[tensor.offset as usize..][..tensor.n_bytes as usize]).unwrap();
        }
        writer.finish().unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes, "shard {no}");
    }
}

/// Replaces `from` by as many bytes of `to` in a file, once.
fn patch(path: &Path, from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
    std::fs::write(path, bytes).unwrap();
}

/// Writes three shards, lets `spoil` at them, and returns the error of opening the first.
fn spoiled(spoil: impl Fn(&Path)) -> (String, Option<String>) {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("m.gguf"), Split::MaxTensors(2), None);
    spoil(dir.path());
    let (error, hint) = open_error(&shard(dir.path(), 1, 3));
    (error.to_string().replace(&format!("{}/", dir.path().display()), ""), hint)
}

const NO: &[u8] = b"split.no\x02\0\0\0";
const COUNT: &[u8] = b"split.count\x02\0\0\0";
const TENSORS: &[u8] = b"split.tensors.count\x05\0\0\0";

fn key(name: &[u8], value: &[u8]) -> Vec<u8> {
    [name, value].concat()
}

#[test]
fn a_missing_shard_is_named() {
    let (error, hint) = spoiled(|dir| std::fs::remove_file(shard(dir, 2, 3)).unwrap());
    assert_eq!(error, "m-00001-of-00003.gguf: shard 2 of 3 is missing (expected `m-00002-of-00003.gguf`)");
    assert_eq!(hint.unwrap(), "download the missing file");
}

#[test]
fn shards_that_lie_are_errors() {
    let (error, _) = spoiled(|dir| patch(&shard(dir, 3, 3), &key(NO, &[2, 0]), &key(NO, &[1, 0])));
    assert_eq!(error, "m-00003-of-00003.gguf: `split.no` is 1, but 2 was expected");
    let (error, _) = spoiled(|dir| patch(&shard(dir, 2, 3), &key(COUNT, &[3, 0]), &key(COUNT, &[4, 0])));
    assert_eq!(error, "m-00002-of-00003.gguf: `split.count` is 4, but 3 was expected");
    let (error, _) = spoiled(|dir| {
        for no in 1..=3 {
            patch(&shard(dir, no, 3), &key(TENSORS, &[5, 0, 0, 0]), &key(TENSORS, &[6, 0, 0, 0]));
        }
    });
    assert_eq!(error, "m-00001-of-00003.gguf: `split.tensors.count` is 6, but the 3 shards hold 5 tensors");
    let (error, _) = spoiled(|dir| patch(&shard(dir, 1, 3), b"split.tensors.count", b"split.tensors.xxxxx"));
    assert_eq!(error, "m-00001-of-00003.gguf: `split.tensors.count` is absent or not an unsigned integer");
    let (error, _) = spoiled(|dir| patch(&shard(dir, 1, 3), &key(NO, &[0, 0]), &key(NO, &[9, 0])));
    assert_eq!(error, "m-00001-of-00003.gguf: `split.no` is 9, but there are 3 shards");
    // Another count asks for other names.
    let (error, _) = spoiled(|dir| patch(&shard(dir, 1, 3), &key(COUNT, &[3, 0]), &key(COUNT, &[4, 0])));
    assert_eq!(
        error,
        "m-00001-of-00003.gguf: shard 1 of 4, but its name does not end in `-00001-of-00004.gguf`"
    );
}

#[test]
fn one_name_in_two_shards_is_an_error() {
    let (error, _) = spoiled(|dir| patch(&shard(dir, 2, 3), b"t2", b"t1"));
    assert_eq!(error, "`t1` is in two shards: m-00001-of-00003.gguf and m-00002-of-00003.gguf");
}

#[test]
fn a_truncated_shard_is_named() {
    let (error, _) = spoiled(|dir| {
        let path = shard(dir, 2, 3);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    });
    assert!(error.starts_with("m-00002-of-00003.gguf: truncated: `t3` ends at byte"), "{error}");
}

#[test]
fn later_shards_point_to_the_first() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("m.gguf"), Split::MaxTensors(2), None);
    let (error, hint) = open_error(&shard(dir.path(), 2, 3));
    assert!(
        error.to_string().ends_with("shard 2 of 3; a split model is opened by its first shard"),
        "{error}"
    );
    assert_eq!(hint.unwrap(), "open `m-00001-of-00003.gguf`");
}

#[test]
fn a_renamed_shard_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("m.gguf"), Split::MaxTensors(2), None);
    let renamed = dir.path().join("model.gguf");
    std::fs::rename(shard(dir.path(), 1, 3), &renamed).unwrap();
    let (error, hint) = open_error(&renamed);
    assert_eq!(
        error.to_string(),
        format!("{}: shard 1 of 3, but its name does not end in `-00001-of-00003.gguf`", renamed.display())
    );
    assert_eq!(hint.unwrap(), "shards keep the names they were written with");
}

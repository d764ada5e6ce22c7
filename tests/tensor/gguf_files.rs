//! GGUF files on disk: the reference's bytes, and misuse of the writer.

use std::path::Path;

use lctl::tensor::gguf::{Gguf, GgufWriter, Metadata, Value, WriteOptions};
use lctl::tensor::{Error, TensorDecl, TensorSource};

use super::{decl, names, test_data};

/// Writes `input` again from what the reader says of it, and returns both files' bytes.
fn rewrite(input: &Path) -> (Vec<u8>, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("again.gguf");
    let gguf = Gguf::open(input).unwrap_or_else(|error| panic!("{error}"));
    let tensors: Vec<TensorDecl> = gguf.tensors().iter().map(TensorDecl::from).collect();
    let mut writer =
        GgufWriter::create(&output, gguf.metadata(), &tensors, &WriteOptions::default()).unwrap();
    for tensor in gguf.tensors() {
        writer.write(gguf.bytes(tensor).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    (std::fs::read(input).unwrap(), std::fs::read(&output).unwrap())
}

#[test]
fn files_of_the_reference_are_written_again_byte_for_byte() {
    let Some(root) = test_data() else { return };
    let mut files = vec![
        root.join("golden/quantize/probe-llama-bf16.gguf"),
        root.join("golden/quantize/probe-llama.imatrix.gguf"),
        root.join("models/stories260K-hf/stories260K-hf-f32.gguf"),
        root.join("models/llama2xs-hf/llama2xs-hf-f32.gguf"),
        root.join("adapters/gguf-small/dummy.gguf"),
    ];
    for entry in std::fs::read_dir(root.join("vocab")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ext| ext == "gguf") {
            files.push(path);
        }
    }
    assert!(files.len() > 5, "no vocabularies found");
    for file in files {
        let (old, new) = rewrite(&file);
        assert!(old == new, "{}: {} bytes became {}", file.display(), old.len(), new.len());
    }
}

#[test]
fn bytes_are_counted_against_each_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.gguf");
    let tensors = [decl("a", &[2, 3]), decl("b", &[1])];
    let create = || GgufWriter::create(&path, &Metadata::new(), &tensors, &Default::default()).unwrap();

    let mut writer = create();
    writer.write(&[0; 20]).unwrap();
    let error = writer.write(&[0; 5]).unwrap_err();
    assert_eq!(error.to_string(), format!("{}: `a`: 1 bytes too many (it has 24)", path.display()));
    drop(writer);

    let mut writer = create();
    writer.write(&[0; 24]).unwrap();
    assert_eq!(writer.current_tensor(), Some("b"));
    let error = writer.finish().unwrap_err();
    assert_eq!(error.to_string(), format!("{}: `b`: finished after 0 of 4 bytes", path.display()));

    let mut writer = create();
    writer.write(&[0; 24]).unwrap();
    writer.write(&[0; 4]).unwrap();
    let error = writer.write(&[0; 4]).unwrap_err();
    assert_eq!(error.to_string(), format!("{}: 4 bytes after the last tensor", path.display()));

    drop(writer);
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[test]
fn declarations_that_no_reader_would_accept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.gguf");
    let says = |metadata: &Metadata, tensors: &[TensorDecl], alignment: Option<u32>| {
        let options = WriteOptions { alignment, ..Default::default() };
        match GgufWriter::create(&path, metadata, tensors, &options) {
            Err(Error::BadDeclaration { why, .. }) => why,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("created"),
        }
    };
    let none = Metadata::new();
    assert_eq!(says(&none, &[decl("a", &[1]), decl("a", &[2])], None), "`a` is declared twice");
    assert!(says(&none, &[decl("", &[1])], None).contains("1 to 63 bytes"));
    assert!(says(&none, &[decl(&"n".repeat(64), &[1])], None).contains("1 to 63 bytes"));
    for shape in [&[][..], &[0], &[1; 5]] {
        assert!(says(&none, &[decl("a", shape)], None).contains("1 to 4 dimensions, none zero"));
    }
    assert!(says(&none, &[decl("a", &[1 << 40, 1 << 40])], None).contains("overflows"));
    for alignment in [0, 4, 24, 1 << 21] {
        let why = says(&none, &[], Some(alignment));
        assert!(why.starts_with(&format!("alignment {alignment} is not a power of two")), "{why}");
    }
    let wrong = Metadata::from_iter([("general.alignment".to_owned(), Value::from("32"))]);
    assert_eq!(says(&wrong, &[], None), "`general.alignment` must be a u32, but is string");
    let empty = Metadata::from_iter([(String::new(), Value::U8(1))]);
    assert_eq!(says(&empty, &[], None), "a key is empty");
    let bool = lctl::tensor::format::by_name("BOOL").unwrap();
    let why = says(&none, &[TensorDecl { dtype: bool, ..decl("a", &[4]) }], None);
    assert_eq!(why, "`a`: GGUF has no type BOOL");
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[test]
fn reads_outside_a_tensor_and_shrunken_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.gguf");
    let mut writer =
        GgufWriter::create(&path, &Metadata::new(), &[decl("a", &[64])], &Default::default()).unwrap();
    writer.write(&[5; 256]).unwrap();
    writer.finish().unwrap();
    let gguf = Gguf::open(&path).unwrap();
    let tensor = gguf.find("a").unwrap();
    let mut out = [0; 16];
    gguf.read_at(tensor, 240, &mut out).unwrap();
    assert_eq!(out, [5; 16]);
    let error = gguf.read_at(tensor, 241, &mut out).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{}: `a`: bytes 241..257 asked for, but it has 256", path.display())
    );
    assert!(gguf.read_at(tensor, u64::MAX, &mut out).is_err());

    let len = std::fs::metadata(&path).unwrap().len();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(len - 100).unwrap();
    let shrunk = gguf.read_at(tensor, 240, &mut out).unwrap_err();
    assert_eq!(
        shrunk.to_string(),
        format!(
            "{}: `a`: the file is now {} bytes, but the tensor ends at byte {len}: it has shrunk since it was opened",
            path.display(),
            len - 100
        )
    );
    assert!(matches!(gguf.bytes(tensor).unwrap_err(), Error::Shrunk { .. }));
}

/// Two readers that share no code with ours see the names, shapes, offsets and values that were written.
#[test]
fn candle_and_gguf_rs_read_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.gguf");
    let typed = |name: &str, shape: &[usize], dtype: &str| TensorDecl {
        dtype: lctl::tensor::format::by_name(dtype).unwrap(),
        ..decl(name, shape)
    };
    let tensors = [
        decl("norm", &[5]),
        typed("half", &[3, 7], "F16"),
        typed("blocks", &[2, 4, 32], "Q8_0"),
        typed("big", &[2, 256], "Q6_K"),
    ];
    let metadata = Metadata::from_iter([
        ("general.name".to_owned(), Value::from("second opinion")),
        ("x.count".to_owned(), Value::U32(7)),
    ]);
    for alignment in [32, 256] {
        let options = WriteOptions { alignment: Some(alignment), ..Default::default() };
        let mut writer = GgufWriter::create(&path, &metadata, &tensors, &options).unwrap();
        for (i, tensor) in tensors.iter().enumerate() {
            writer.write(&vec![i as u8 + 1; tensor.n_bytes().unwrap() as usize]).unwrap();
        }
        writer.finish().unwrap();
        let ours = Gguf::open(&path).unwrap();

        let mut file = std::fs::File::open(&path).unwrap();
        let candle = candle_core::quantized::gguf_file::Content::read(&mut file).unwrap();
        assert_eq!(candle.tensor_data_offset, ours.data_offset());
        assert_eq!(candle.metadata["general.name"].to_string().unwrap(), "second opinion");
        assert_eq!(candle.metadata["x.count"].to_u32().unwrap(), 7);
        let mut model = gguf_rs::get_gguf_container_array_size(path.to_str().unwrap(), u64::MAX).unwrap();
        let model = model.decode().unwrap();
        assert_eq!(model.metadata()["general.name"], "second opinion");
        assert_eq!(model.tensors().len(), tensors.len());
        for (tensor, theirs) in ours.tensors().iter().zip(model.tensors()) {
            let info = &candle.tensor_infos[&tensor.name];
            assert_eq!(info.shape.dims(), tensor.shape);
            assert_eq!(info.offset + candle.tensor_data_offset, tensor.offset);
            assert_eq!((&theirs.name, theirs.size), (&tensor.name, tensor.n_bytes));
            assert_eq!(theirs.offset + ours.data_offset(), tensor.offset);
            let dims: Vec<usize> = theirs.shape.iter().rev().map(|dim| *dim as usize).collect();
            assert_eq!(dims, tensor.shape);
        }
    }
}

#[test]
fn a_file_that_appears_meanwhile_is_not_replaced_unless_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.gguf");
    let tensors = [decl("a", &[1])];
    for replace in [false, true] {
        let options = WriteOptions { replace, ..Default::default() };
        let mut writer = GgufWriter::create(&path, &Metadata::new(), &tensors, &options).unwrap();
        writer.write(&[0; 4]).unwrap();
        std::fs::write(&path, "another run's file").unwrap();
        let finished = writer.finish();
        assert_eq!(finished.is_ok(), replace, "{finished:?}");
        let kept = std::fs::read(&path).unwrap() == b"another run's file";
        assert_eq!((kept, names(dir.path())), (!replace, vec!["t.gguf".to_owned()]));
    }
}

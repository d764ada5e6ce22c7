use serde_json::{Value as Json, json};

use super::*;
#[cfg(feature = "parquet")]
use crate::data::testing;
use crate::read::ReadError;

/// A kind of file, and its rows by line.
type Read = (&'static str, Vec<(usize, Result<Json, String>)>);

fn rows_of(name: &str, bytes: &[u8]) -> Result<Read, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let file = read(&path, None)?;
    let row = |(line, row): (usize, Result<Row, RowError>)| {
        (line, row.map(Json::Object).map_err(|error| error.to_string()))
    };
    Ok((file.container.name, file.rows.into_iter().map(row).collect()))
}

fn good(line: usize, value: Json) -> (usize, Result<Json, String>) {
    (line, Ok(value))
}

#[test]
fn the_kind_is_told_by_content_then_by_name() {
    let ab = vec![good(1, json!({"a": 1})), good(3, json!({"a": 2}))];
    let lines = b"{\"a\": 1}\n\n{\"a\": 2}\n";
    for name in ["x.jsonl", "x.json", "x", "x.ndjson"] {
        assert_eq!(rows_of(name, lines).unwrap(), ("jsonl", ab.clone()), "{name}");
    }
    let array = b"[{\"a\": 1},\n\n {\"a\": 2}]";
    for name in ["x.json", "x.jsonl", "x"] {
        assert_eq!(rows_of(name, array).unwrap(), ("json", ab.clone()), "{name}");
    }
    let table = b"\xef\xbb\xbfa,b\n1,\"x\ny\"\n2,z\n";
    let rows = vec![good(2, json!({"a": "1", "b": "x\ny"})), good(4, json!({"a": "2", "b": "z"}))];
    assert_eq!(rows_of("x.csv", table).unwrap(), ("csv", rows));
    assert_eq!(
        rows_of("x.tsv", b"a\tb\n1\t2\n").unwrap(),
        ("tsv", vec![good(2, json!({"a": "1", "b": "2"}))])
    );
    // a text may begin with any character
    assert_eq!(rows_of("x.txt", b"[a] {b}").unwrap(), ("txt", vec![good(1, json!({"text": "[a] {b}"}))]));
    assert!(matches!(rows_of("x.bin", b"abc"), Err(Error::UnknownContainer { .. })));
    assert!(matches!(rows_of("x.jsonl", b"\n"), Err(Error::Empty { .. })));
    assert!(matches!(rows_of("x.jsonl", b"{}\n\xff"), Err(Error::File(ReadError::NotUtf8 { line: 2, .. }))));
    assert!(matches!(read(Path::new("missing.jsonl"), None), Err(Error::File(ReadError::Io { .. }))));
}

#[test]
fn every_bad_row_is_told_and_the_others_are_read() {
    let (_, rows) = rows_of("x.jsonl", b"{\"a\": 1}\n{\n[1]\n{\"a\": 1, \"a\": 2}\n{\"b\": 2}").unwrap();
    let problems: Vec<(usize, &str)> =
        rows.iter().filter_map(|(line, row)| Some((*line, row.as_ref().err()?.as_str()))).collect();
    assert_eq!(
        problems,
        [
            (2, "not JSON: EOF while parsing an object (column 1)"),
            (3, "the row is an array, not an object"),
            (4, "the key `a` comes twice in one object")
        ]
    );
    let (_, rows) = rows_of("x.json", b"[{\"a\": 1},\n2]").unwrap();
    assert_eq!(rows[1], (2, Err("the row is a number, not an object".into())));
    let (_, rows) = rows_of("x.json", b"[{\"a\": 1},\n{]").unwrap();
    assert_eq!((rows.len(), rows[0].0), (1, 2));
    let (_, rows) = rows_of("x.csv", b"a,b\n1\n1,2\n").unwrap();
    assert_eq!(rows[0], (2, Err("1 values, but there are 2 columns".into())));
    let (_, rows) = rows_of("x.csv", b"a,a\n1,2\n").unwrap();
    assert_eq!(rows, [(1, Err("two columns are called `a`".into()))]);
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_rows_are_read_with_nested_columns() {
    let bytes = testing::parquet_bytes();
    let expected = vec![
        good(
            1,
            json!({"prompt": "größe", "n": 7, "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": null}]}),
        ),
        good(2, json!({"prompt": null, "n": -1, "messages": null})),
    ];
    assert_eq!(rows_of("x.anything", &bytes).unwrap(), ("parquet", expected));
}

#[cfg(feature = "parquet")]
#[test]
fn a_damaged_parquet_file_is_an_error_and_never_a_panic() {
    let bytes = testing::parquet_bytes();
    for cut in 0..bytes.len() {
        let result = rows_of("x.parquet", &bytes[..cut]);
        assert!(matches!(result, Err(Error::Parquet { .. })), "{cut}");
    }
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x5a;
        let caught = std::panic::catch_unwind(|| drop(rows_of("x.parquet", &damaged)));
        assert!(caught.is_ok(), "byte {at}");
    }
}

#[cfg(not(feature = "parquet"))]
#[test]
fn a_parquet_file_is_known_for_what_it_is_without_the_feature() {
    assert!(matches!(rows_of("x.parquet", b"PAR1...PAR1"), Err(Error::NoParquet { .. })));
}

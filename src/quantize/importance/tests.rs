use super::*;

fn legacy(entries: &[(&str, i32, &[f32])], tail: &[u8]) -> Vec<u8> {
    let mut bytes = (entries.len() as i32).to_le_bytes().to_vec();
    for (name, n_calls, values) in entries {
        bytes.extend((name.len() as i32).to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(n_calls.to_le_bytes());
        bytes.extend((values.len() as i32).to_le_bytes());
        values.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
    }
    bytes.extend(tail);
    bytes
}

fn open(bytes: &[u8]) -> Result<Importance, ImportanceError> {
    Importance::from_legacy_bytes(Path::new("i.dat"), bytes)
}

#[test]
fn legacy_values_are_divided_by_calls() {
    let mut tail = 7i32.to_le_bytes().to_vec();
    tail.extend(3i32.to_le_bytes());
    tail.extend(b"abc");
    let read = open(&legacy(&[("a.weight", 4, &[8.0, 2.0]), ("b.weight", 0, &[3.0])], &tail)).unwrap();
    assert_eq!(read.weights("a.weight", &[5, 2]).unwrap(), Some(&[2.0, 0.5][..]));
    assert_eq!(read.weights("b.weight", &[1]).unwrap(), Some(&[3.0][..]));
    assert_eq!(read.weights("c.weight", &[1]).unwrap(), None);
    let keys: Vec<_> = read.metadata().into_iter().collect();
    let key = |name: &str, value| (format!("quantize.imatrix.{name}"), value);
    let expected = [
        key("file", "i.dat".into()),
        key("dataset", "abc".into()),
        key("entries_count", Value::U32(2)),
        key("chunks_count", Value::U32(7)),
    ];
    assert_eq!(keys, expected);
}

#[test]
fn every_truncation_of_a_legacy_file_is_an_error_or_a_shorter_file() {
    let whole = legacy(&[("a.weight", 4, &[8.0, 2.0])], &[]);
    for len in 0..whole.len() {
        let error = open(&whole[..len]).unwrap_err();
        assert!(
            matches!(error, ImportanceError::Legacy { source: LegacyError::Truncated { .. }, .. }),
            "{len}"
        );
    }
}

#[test]
fn hostile_counts_are_named() {
    let cases: [(&[u8], &str); 4] = [
        (&(-1i32).to_le_bytes(), "entry count at byte 0 is -1"),
        (&0i32.to_le_bytes(), "entry count at byte 0 is 0"),
        (&[1, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f], "entry name at byte 8: 2147483647 bytes expected, 0 left"),
        (&[1, 0, 0, 0, 1, 0, 0, 0, 0xff, 0, 0, 0, 0], "entry name at byte 8 is not UTF-8"),
    ];
    for (bytes, message) in cases {
        let ImportanceError::Legacy { source, .. } = open(bytes).unwrap_err() else { panic!("{message}") };
        assert_eq!(source.to_string(), message);
    }
}

#[test]
fn values_that_are_no_weights_are_refused() {
    for value in [f32::NAN, f32::INFINITY, -1.0] {
        let error = open(&legacy(&[("a.weight", 1, &[1.0, value])], &[])).unwrap_err();
        assert_eq!(error.to_string(), format!("i.dat: `a.weight`: weight is {value} at column 1"));
    }
    let error = open(&legacy(&[("a", 1, &[1.0]), ("a", 1, &[1.0])], &[])).unwrap_err();
    assert!(matches!(error, ImportanceError::Duplicate { .. }));
}

#[test]
fn lengths_must_be_columns_times_experts() {
    let read = open(&legacy(&[("a", 1, &[1.0; 6])], &[])).unwrap();
    assert!(read.weights("a", &[2, 9, 3]).unwrap().is_some());
    let error = read.weights("a", &[9, 3]).unwrap_err().to_string();
    assert_eq!(error, "i.dat: `a` has 6 weights, but the tensor has 3 columns in 1 expert(s)");
}

#[test]
fn an_expert_without_calls_weighs_one() {
    let read = mean_squares(Path::new("i"), "a", vec![4.0, 6.0, 0.0, 0.0], &[2.0, 0.0]).unwrap();
    assert_eq!(read, [2.0, 3.0, 1.0, 1.0]);
    assert!(mean_squares(Path::new("i"), "a", vec![4.0; 3], &[2.0, 0.0]).is_err());
    assert!(mean_squares(Path::new("i"), "a", vec![4.0; 2], &[f32::NAN]).is_err());
    assert!(mean_squares(Path::new("i"), "a", vec![4.0; 2], &[]).is_err());
}

#[test]
fn long_texts_are_cut_at_127_bytes() {
    let text = "é".repeat(100);
    let Value::String(cut) = cut_text(&text) else { unreachable!() };
    assert_eq!(cut.len(), 126);
}

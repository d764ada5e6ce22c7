use super::*;

fn load(format_name: &str, text: &str, options: &Options) -> Result<DataSet, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows");
    std::fs::write(&path, text).unwrap();
    read(&path, format(format_name).unwrap(), options)
}

/// Returns `LINE: message` of the error.
fn refusal(format_name: &str, text: &str, options: &Options) -> String {
    match load(format_name, text, options) {
        Err(Error::BadRow { line, what, .. }) => format!("{line}: {what}"),
        Err(other) => other.to_string(),
        Ok(data) => panic!("{:?}", data.documents),
    }
}

fn lines_and(data: &DataSet, field: &str) -> Vec<(usize, String)> {
    data.documents.iter().map(|document| (document.place.line, plain(&document.fields[field]))).collect()
}

fn pairs(rows: &[(usize, &str)]) -> Vec<(usize, String)> {
    rows.iter().map(|(line, text)| (*line, (*text).to_owned())).collect()
}

#[test]
fn every_format_knows_its_lines() {
    let plain_options = Options::default();
    let jsonl = load("jsonl", "\u{feff}{\"a\":\"x\"}\n\n{\"a\":2}\n", &plain_options).unwrap();
    assert_eq!(lines_and(&jsonl, "a"), pairs(&[(1, "x"), (3, "2")]));
    let json = "{\"m\": [1,\n2], \"d\": [\n {\"a\": \"[\\\"\\n{\", \"d\": [7]},\n\n {\"a\": 2}]}";
    let options = Options { records: Some("d".into()), ..Options::default() };
    assert_eq!(lines_and(&load("json", json, &options).unwrap(), "a"), pairs(&[(3, "[\"\n{"), (5, "2")]));
    let array = load("json", "[\n{\"a\":1},{\"a\":2},\n{\"a\":3}]", &plain_options).unwrap();
    assert_eq!(lines_and(&array, "a"), pairs(&[(2, "1"), (2, "2"), (3, "3")]));
    let csv = load("csv", "a,b\n\"x\ny\",1\nz,2\n", &plain_options).unwrap();
    assert_eq!(lines_and(&csv, "a"), pairs(&[(2, "x\ny"), (4, "z")]));
    let tsv = load("tsv", "a\tb\n\"x\t1\n", &plain_options).unwrap();
    assert_eq!(lines_and(&tsv, "a"), pairs(&[(2, "\"x")]));
    assert_eq!(
        lines_and(&load("lines", "x\n \ny", &plain_options).unwrap(), "text"),
        pairs(&[(1, "x"), (3, "y")])
    );
    assert_eq!(lines_and(&load("text", "x\ny", &plain_options).unwrap(), "text"), pairs(&[(1, "x\ny")]));
}

#[test]
fn mmlu_takes_letters_or_indexes_and_a_header() {
    let data =
        load("mmlu", "question,choice0,choice1,answer\nq,a,b,1\n\"p\nq\",a,b,A\n", &Options::default())
            .unwrap();
    assert_eq!(lines_and(&data, "answer"), pairs(&[(2, "1"), (3, "0")]));
    assert_eq!(lines_and(&data, "letter"), pairs(&[(2, "B"), (3, "A")]));
    let bare = load("mmlu", "q,a,b,c,d,D\n", &Options::default()).unwrap();
    assert_eq!(lines_and(&bare, "choices"), pairs(&[(1, r#"["a","b","c","d"]"#)]));
}

#[test]
fn a_key_that_comes_twice_is_refused_with_its_line() {
    let options = Options::default();
    assert_eq!(
        refusal("jsonl", "{\"a\": 1}\n{\"a\": 1, \"a\": 2}\n", &options),
        "2: the key `a` comes twice in one object"
    );
    assert_eq!(
        refusal("json", "[{\"a\": 1},\n{\"b\": 1,\n\"b\": 2}]", &options),
        "3: the key `b` comes twice in one object"
    );
    let twice = r#"{"questions": [{"question": "q", "answers": {"A": "x", "A": "y"}, "solution": "A"}]}"#;
    assert_eq!(refusal("cybermetric", twice, &options), "1: the key `A` comes twice in one object");
}

#[test]
fn rows_are_renamed_and_chosen() {
    let options = Options {
        fields: vec![("question".into(), "Q".into())],
        only: vec![("split".into(), "test".into())],
        ..Options::default()
    };
    let data = load("csv", "Q,split\nx,dev\ny,test\n", &options).unwrap();
    assert_eq!(lines_and(&data, "question"), pairs(&[(3, "y")]));
    assert_eq!(data.documents[0].index, 0);
    let swap = [("q", "t"), ("t", "q")].map(|(new, old)| (new.to_owned(), old.to_owned()));
    let options = Options { fields: swap.into(), ..Options::default() };
    let data = load("jsonl", "{\"q\": \"question\", \"t\": \"target\"}\n", &options).unwrap();
    assert_eq!(
        (lines_and(&data, "q"), lines_and(&data, "t")),
        (pairs(&[(1, "target")]), pairs(&[(1, "question")]))
    );
}

#[test]
fn bad_rows_are_refused_with_their_line() {
    let none = Options::default();
    for (format, text, expected) in [
        ("jsonl", "{}\n{\"a\":}\n", "2: not JSON: expected value (column 6)"),
        ("jsonl", "{}\n[1]\n", "2: the row is an array, not an object"),
        ("json", "[{},\n 3]", "2: the row is a number, not an object"),
        ("json", "{\"d\":[]}", "1: the file holds an object, not an array"),
        ("csv", "a,b\n1,2\n1,2,3\n", "3: 3 values, but there are 2 columns"),
        ("csv", "a,b\r\n\r\n1,2\r\n1,2,3\r\n", "4: 3 values, but there are 2 columns"),
        ("csv", "a,a\n1,2\n", "1: two columns are called `a`"),
        ("csv", "a,b\n1,2\n3,\"x\n4,5\n6,7\n", "3: a quote is opened and never closed"),
        (
            "csv",
            "a,b\n1,2\n\"x\ny\",\"2\"x\n",
            "4: behind a closing quote stands `x`, not a comma or the end of the line",
        ),
        (
            "mmlu",
            "\"q\" ,a,b,A\n",
            "1: behind a closing quote stands ` `, not a comma or the end of the line",
        ),
        ("tsv", "a\tb\n1\n", "2: 1 values, but there are 2 columns"),
        ("mmlu", "q,a,b,c,d,E\n", "1: answer `E` is neither a letter from A to D nor an index below 4"),
        ("mmlu", "q,a\n", "1: 2 values, but a question, 2 to 26 choices and an answer are expected"),
        ("cybermetric", "{\"questions\":[\n{\"question\":\"q\"}]}", "2: the question has no `solution`"),
        ("cybermetric", "{}", "1: there is no key `questions`"),
        (
            "cybermetric",
            "{\"questions\":[{\"question\":\"q\",\"solution\":\"E\",\"answers\":{\"A\":\"x\"}}]}",
            "1: solution `E` is none of the 1 answers",
        ),
        (
            "cybermetric",
            "{\"questions\":[{\"question\":\"q\",\"solution\":\"B\",\"answers\":{\"B\":\"x\"}}]}",
            "1: answer `B` where `A` is due",
        ),
    ] {
        assert_eq!(refusal(format, text, &none), expected);
    }
    assert!(refusal("jsonl", "\n", &none).ends_with("no rows"));
    let renamed = Options { fields: vec![("x".into(), "y".into())], ..Options::default() };
    assert_eq!(refusal("jsonl", "{\"a\":1}", &renamed), "1: the row has no field `y`");
}

#[test]
fn another_digest_is_refused() {
    let options = Options { sha256: Some("00".repeat(32)), ..Options::default() };
    let message = refusal("lines", "x", &options);
    assert!(
        message.contains("2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"),
        "{message}"
    );
}

/// Reads a cti-taa data set whose parts have these texts.
fn load_taa(truth: &str, alias: &str, related: &str) -> Result<DataSet, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let rows = file("taa", "Prompt\tURL\r\nWho?\tu\r\nAnd who?\tv\r\n");
    let parts = [
        ("truth", file("truth", truth)),
        ("alias", file("alias", alias)),
        ("related", file("related", related)),
    ];
    let read = read_with_parts(&rows, format("cti-taa").unwrap(), &Options::default(), &parts);
    read.map_err(|error| error.to_string().replace(&dir.path().display().to_string(), ""))
}

#[test]
fn actors_are_the_same_by_alias_and_similar_by_relation() {
    let alias = r#"{"Gray Fox": ["fox 7", "t-11"], "wolf": ["T-11 "], "owl": ["barn owl"]}"#;
    let data = load_taa("GT\tother\nFox 7 \tx\nheron\tx\n", alias, r#"{"owl": ["wolf"]}"#).unwrap();
    let field = |index: usize, name: &str| data.documents[index].fields[name].to_string();
    assert_eq!(field(0, "same"), r#"["fox 7","gray fox","t-11","wolf"]"#);
    assert_eq!(field(0, "similar"), r#"["barn owl","fox 7","gray fox","owl","t-11","wolf"]"#);
    assert_eq!((field(1, "same"), field(1, "GT")), (r#"["heron"]"#.into(), r#""heron""#.into()));
    assert!(field(1, "names").contains("heron") && field(1, "Prompt").contains("And who?"));
}

#[test]
fn parts_are_checked_and_count_for_the_digest() {
    let sha256 = |alias: &str| load_taa("GT\na\nb\n", alias, "{}").unwrap().sha256;
    assert_ne!(sha256("{}"), sha256(r#"{"a": ["c"]}"#));
    for (truth, alias, message) in [
        ("GT\na\n", "{}", "/truth:1: 1 rows, but /taa has 2"),
        ("GT\na\n \n", "{}", "/truth:3: the row has no `GT`"),
        ("GT\na\nb\n", "[]", "/alias:1: the file holds an array, not an object of names and names"),
        ("GT\na\nb\n", r#"{"x": "y"}"#, "/alias:1: `x` has no list of names"),
    ] {
        assert_eq!(load_taa(truth, alias, "{}").err().unwrap(), message);
    }
    let missing = load("cti-taa", "Prompt\nx\n", &Options::default()).err().unwrap();
    assert!(missing.to_string().ends_with("its format needs a further file, `truth`"), "{missing}");
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_rows_are_known_by_their_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.parquet");
    let bytes = crate::data::testing::parquet_bytes();
    std::fs::write(&path, &bytes).unwrap();
    let only = Options { only: vec![("n".into(), "-1".into())], ..Options::default() };
    let data = read(&path, format("parquet").unwrap(), &only).unwrap();
    assert_eq!(lines_and(&data, "n"), pairs(&[(2, "-1")]));
    assert_eq!(data.sha256, hex(&Sha256::digest(&bytes)));
    let text = read(&path, format("jsonl").unwrap(), &only).err().unwrap();
    assert!(matches!(text, Error::File(ReadError::NotUtf8 { .. })), "{text}");
    std::fs::write(&path, "not Parquet").unwrap();
    let other = read(&path, format("parquet").unwrap(), &only).err().unwrap();
    assert!(other.to_string().contains("not Parquet: "), "{other}");
}

#[cfg(not(feature = "parquet"))]
#[test]
fn a_build_without_parquet_says_so() {
    let error = load("parquet", "PAR1...PAR1", &Options::default()).err().unwrap();
    assert!(error.to_string().contains("which this program was built without"), "{error}");
}

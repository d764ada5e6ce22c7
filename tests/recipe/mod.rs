//! `lctl recipe`: new, validate, show.

use lctl::data::{Loaded, load};
use lctl::finetune::recipe::Recipe;

use crate::common::run_lctl;

#[test]
fn a_new_recipe_is_written_once_and_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let (code, stdout, _) = run_lctl(dir.path(), &["recipe", "new"]);
    assert_eq!(code, 0);
    for name in
        ["soc-triage", "ir-report", "phishing", "query-translate", "1b-lora", "8b-lora", "70b-qlora", "dpo"]
    {
        assert!(stdout.lines().any(|line| line.starts_with(name)), "{name}\n{stdout}");
        let (code, text, _) = run_lctl(dir.path(), &["recipe", "new", name]);
        assert_eq!(code, 0);
        assert!(text.starts_with("# "), "{text}");
        std::fs::write(dir.path().join(format!("{name}.yaml")), text).unwrap();
        let file = format!("{name}.yaml");
        let (code, stdout, stderr) = run_lctl(dir.path(), &["recipe", "validate", &file, "--schema-only"]);
        assert_eq!((code, stdout, stderr.as_str()), (0, format!("{file}: nothing wrong\n"), ""));
    }
    let (code, stdout, stderr) = run_lctl(dir.path(), &["recipe", "new", "8b-lora", "-o", "my.yaml"]);
    assert_eq!((code, stdout.as_str()), (0, ""));
    assert!(stderr.starts_with("wrote my.yaml"), "{stderr}");
    let (code, _, stderr) = run_lctl(dir.path(), &["recipe", "new", "8b-lora", "-o", "my.yaml"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("my.yaml"), "{stderr}");
    let (code, _, stderr) = run_lctl(dir.path(), &["recipe", "new", "8b-lroa"]);
    assert_eq!(
        (code, stderr.as_str()),
        (2, "error: unknown preset `8b-lroa`\nhint: did you mean `8b-lora`?\n")
    );
}

#[test]
fn show_writes_every_default_and_reads_as_itself() {
    let root = crate::common::root();
    let set = ["--set", "train.lr=1e-3", "--set", "train.lr_schedule=wsd"];
    let args = [&["recipe", "show", "recipes/phishing.yaml"], &set[..]].concat();
    let (code, stdout, stderr) = run_lctl(root, &args);
    assert_eq!((code, stderr.as_str()), (0, ""));
    for line in [
        "  lr: 0.001",
        "  decay_ratio: 0.1",
        "  seed: 42",
        "  chat_template: from_model",
        "- merged-gguf: q4_k_m",
    ] {
        assert!(stdout.lines().any(|shown| shown == line), "{line}\n{stdout}");
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("shown.yaml"), &stdout).unwrap();
    let (code, again, _) = run_lctl(dir.path(), &["recipe", "show", "shown.yaml"]);
    assert_eq!((code, again), (0, stdout));
    let (code, json, _) = run_lctl(root, &[&args[..], &["--json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["train"]["lr"], &json["adapter"]["type"]), (0, &0.001.into(), &"lora".into()));
}

#[test]
fn everything_wrong_is_said_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let text = "version: 1\nkind: finetune\nmodel: {path: m}\nadapter: {type: lora, r: 8, alpa: 16}\n\
                data: {train: [{path: rows.jsonl}], max_seq_len: 64}\ntrain: {epochs: 1, lr: 1e-4}\n";
    std::fs::write(dir.path().join("r.yaml"), text).unwrap();
    let (code, stdout, stderr) =
        run_lctl(dir.path(), &["recipe", "validate", "r.yaml", "--set", "train.seed=-1"]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert_eq!(
        stderr,
        "error: r.yaml:4:10: `alpha` is missing\n    r.yaml:4:29: unknown key `alpa`; did you mean `alpha`?\n    \
         --set train.seed=-1: `seed` must be a whole number, 0 or more, not -1\n"
    );
    let right = text.replace("alpa:", "alpha:");
    std::fs::write(dir.path().join("r.yaml"), &right).unwrap();
    let (code, _, stderr) = run_lctl(dir.path(), &["recipe", "validate", "r.yaml"]);
    assert_eq!(code, 2);
    assert!(stderr.starts_with("error: r.yaml: `data.train.0.path`: rows.jsonl is not there\n"), "{stderr}");
    std::fs::write(dir.path().join("rows.jsonl"), "{\"text\": \"a\"}\n").unwrap();
    let (code, stdout, _) = run_lctl(dir.path(), &["recipe", "validate", "r.yaml", "r.yaml"]);
    assert_eq!((code, stdout.as_str()), (0, "r.yaml: nothing wrong\nr.yaml: nothing wrong\n"));
    let (code, _, stderr) = run_lctl(dir.path(), &["recipe", "validate", "r.yaml", "missing.yaml"]);
    assert_eq!(code, 2);
    assert!(stderr.ends_with("error: 1 of 2 recipes are wrong\n"), "{stderr}");
}

/// Every shipped recipe's data loads with the test model's tokenizer, nothing is found in it, and what is held out shares
/// no cluster with what is trained.
#[test]
fn the_data_of_every_shipped_recipe_loads() {
    use lctl::data::Example;
    use lctl::data::encode::Encoder;
    let Some(data) = crate::common::test_data() else { return };
    let root = crate::common::root();
    let tokenizer = lctl::text::Tokenizer::open(&data.join("models/sec-llama-21m")).unwrap();
    for name in ["soc-triage", "ir-report", "phishing", "query-translate"] {
        let path = root.join(format!("recipes/{name}.yaml"));
        for template in ["from_model", "plain"] {
            let set = [format!("data.chat_template={template}"), "data.max_seq_len=4096".to_owned()];
            let mut recipe = Recipe::open(&path, &set, &["q4_k_m"]).unwrap();
            recipe.data.train[0].path = root.join(&recipe.data.train[0].path);
            let encoder = Encoder::new(&tokenizer, &recipe.data.settings().unwrap()).unwrap();
            let spec = recipe.data.spec(recipe.train.seed);
            let loaded: Loaded<Example> = load(&spec, &encoder, Encoder::example, None).unwrap();
            let file = &loaded.files[0];
            assert_eq!(loaded.findings, [], "{name}");
            assert!(loaded.notes.is_empty(), "{name} {template}: {:?}", loaded.notes);
            assert!(file.held_out * 20 > file.rows && file.held_out * 5 < file.rows, "{name}: {file:?}");
            for example in loaded.train.iter().chain(&loaded.validation) {
                // an answer is followed by the end token, which is trained
                let last = example.tokens.len() - 1;
                assert_eq!((Some(example.tokens[last]), example.is_target[last]), (tokenizer.eos(), true));
                assert_eq!(example.tokens.iter().filter(|id| Some(**id) == tokenizer.bos()).count(), 1);
            }
            let (given, trained) = example_text(&tokenizer, &loaded.train[0]);
            let asks = given.trim_end();
            assert!(asks.ends_with(':') || asks.ends_with("### assistant"), "{given:?}");
            assert!(!trained.trim().is_empty() && !trained.contains("assistant"), "{trained:?}");
        }
    }
}

/// Returns the text that is given and the text that is trained.
fn example_text(tokenizer: &lctl::text::Tokenizer, example: &lctl::data::Example) -> (String, String) {
    let of = |is_target: bool| {
        let tokens = example.tokens.iter().zip(&example.is_target).filter(|(_, is)| **is == is_target);
        tokenizer.decode(&tokens.map(|(token, _)| *token).collect::<Vec<_>>(), true)
    };
    (of(false), of(true))
}

#[test]
fn data_is_counted_and_what_scans_find_is_told() {
    let Some(data) = crate::common::test_data() else { return };
    let root = crate::common::root();
    let model = format!("model.path={}", data.join("models/sec-llama-21m").display());
    let base = ["recipe", "data", "recipes/phishing.yaml", "--set", &model];
    let (code, stdout, stderr) = run_lctl(root, &[&base[..], &["--json"]].concat());
    assert_eq!(code, 0, "{stderr}");
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let file = &json["files"][0];
    assert_eq!((&file["format"], file["rows"].as_u64() > Some(300)), (&"chat".into(), true), "{file}");
    assert!(
        file["targets"].as_u64() > Some(500) && file["targets"].as_u64() < file["tokens"].as_u64(),
        "{file}"
    );
    // rows of the suite itself
    let dir = tempfile::tempdir().unwrap();
    let suite = std::fs::read_to_string(root.join("datasets/phish-triage.jsonl")).unwrap();
    let row: serde_json::Value = serde_json::from_str(suite.lines().nth(4).unwrap()).unwrap();
    let rows = format!(
        "{}\n{}\n",
        serde_json::json!({"prompt": row["mail"], "completion": "phishing", "cluster": "a"}),
        serde_json::json!({"prompt": "Nothing of the kind.", "completion": "legitimate", "cluster": "b"})
    );
    std::fs::write(dir.path().join("rows.jsonl"), &rows).unwrap();
    let train = format!("data.train=[{{path: {}}}]", dir.path().join("rows.jsonl").display());
    let leaked = ["--set", &train];
    let (code, _, stderr) = run_lctl(root, &[&base[..], &leaked].concat());
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("overlap with evaluation suites: found in 1 row\n"), "{stderr}");
    // the row's own document, and others of its template
    assert!(stderr.contains("phish-triage.jsonl:") && stderr.contains("(phish-triage) and "), "{stderr}");
    let warn = ["--set", "data.scan.eval_overlap=warn"];
    let (code, stdout, stderr) = run_lctl(root, &[&base[..], &leaked, &warn].concat());
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.starts_with("warning: overlap") || stderr.contains("\nwarning: overlap"), "{stderr}");
    assert!(stdout.contains("1 examples an epoch, 1 to validate on"), "{stdout}");
}

//! The suites in evalsuites/.

use std::path::{Path, PathBuf};

use lctl::eval::encode::Encoder;
use lctl::eval::run::{ModelSide, Plan, RunOptions};
use lctl::eval::suite::{Source, Suite};
use lctl::text::Tokenizer;

use crate::common::test_data;

fn root() -> PathBuf {
    crate::common::root().join("evalsuites")
}

fn suites_under(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => suites_under(&path, found),
            false if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") => {
                found.push(path);
            }
            false => {}
        }
    }
}

#[test]
fn every_suite_loads_and_the_readme_names_it() {
    let mut paths = Vec::new();
    suites_under(&root(), &mut paths);
    assert!(paths.len() >= 3, "{paths:?}");
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    for path in &paths {
        let suite = Suite::open(path).unwrap_or_else(|error| panic!("{error}"));
        assert!(!suite.tasks.is_empty() && !suite.description.is_empty(), "{}", path.display());
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        assert!(readme.contains(&name), "{name}");
        // a suite reads nothing but what comes with the program or what the user names
        assert!(suite.data.values().all(|spec| !matches!(spec.source, Source::Beside(_))), "{name}");
    }
}

/// Plans a suite over data files given by name.
fn first_prompt(suite: &str, files: &[(&str, PathBuf)], task: usize) -> (String, usize) {
    let dir = crate::common::root().join("tests/golden/convert/Mistral-7B-v0.1");
    let tokenizer = Tokenizer::open(&dir).unwrap();
    let suites = [Suite::open(&root().join(suite)).unwrap()];
    let data = files.iter().map(|(name, path)| ((*name).to_owned(), path.clone())).collect();
    let model = ModelSide { encoder: Encoder::new(&tokenizer), chat: None, context_length: 1 << 20 };
    let plan = Plan::new(&suites, &RunOptions { data, ..RunOptions::default() }, &model).unwrap();
    (plan.tasks[task].first_prompt.clone().unwrap(), plan.tasks[task].documents.len())
}

fn written(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn prompts_follow_the_benchmarks_own_protocols() {
    let dir = tempfile::tempdir().unwrap();
    let json = r#"{"questions": [{"question": " Which? ", "answers": {"A": "w", "B": "x", "C": "y", "D": "z"}, "solution": "C"}]}"#;
    let cybermetric = [("cybermetric", written(dir.path(), "c.json", json))];
    let intro = "The following are multiple choice questions (with answers) about cybersecurity.\n\n";
    let (letter, _) = first_prompt("cybermetric.yaml", &cybermetric, 0);
    assert_eq!(letter, format!("{intro}Which?\nA. w\nB. x\nC. y\nD. z\nAnswer:"));
    let (cloze, _) = first_prompt("cybermetric.yaml", &cybermetric, 1);
    assert_eq!(cloze, format!("{intro}Question: Which?\nAnswer:"));
    let (generate, _) = first_prompt("cybermetric-generate.yaml", &cybermetric, 0);
    let expected = "You are a security expert who answers questions.\n\nQuestion:  Which? \nOptions: A) w, B) x, C) y, D) z\n\n\
                    Choose the correct answer (A, B, C, or D) only. Always return in this format: 'ANSWER: X' ";
    assert_eq!(generate, expected);

    let dev: String = (0..5).map(|n| format!("q{n},a,b,c,d,{}\n", ["A", "B", "C", "D", "A"][n])).collect();
    let mmlu = [
        ("test", written(dir.path(), "t.csv", "Q,a,b,c,d,D\n")),
        ("dev", written(dir.path(), "d.csv", &dev)),
    ];
    let (prompt, _) = first_prompt("mmlu-computer-security.yaml", &mmlu, 0);
    let intro = "The following are multiple choice questions (with answers) about computer security.\n\n";
    assert!(prompt.starts_with(&format!("{intro}q0\nA. a\nB. b\nC. c\nD. d\nAnswer: A\n\nq1\n")), "{prompt}");
    assert!(prompt.ends_with("Answer: A\n\nQ\nA. a\nB. b\nC. c\nD. d\nAnswer:"), "{prompt}");
}

#[test]
fn the_benchmarks_own_files_load() {
    let Some(data) = test_data() else { return };
    let file = |name: &str| data.join("eval").join(name);
    for (name, n) in [("CyberMetric-80-v1.json", 80), ("CyberMetric-500-v1.json", 500)] {
        for suite in ["cybermetric.yaml", "cybermetric-generate.yaml"] {
            assert_eq!(first_prompt(suite, &[("cybermetric", file(name))], 0).1, n);
        }
    }
    let mmlu =
        [("test", file("mmlu_computer_security_test.csv")), ("dev", file("mmlu_computer_security_dev.csv"))];
    assert_eq!(first_prompt("mmlu-computer-security.yaml", &mmlu, 0).1, 100);
}

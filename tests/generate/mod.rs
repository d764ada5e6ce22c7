//! `lctl generate`, and greedy text against transformers' generate.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use lctl::eval::EngineOptions;
use lctl::eval::generate::{Session, generate};
use lctl::eval::request::{FinishReason, GenerateRequest, Sampling};
use lctl::kernel::ComputeMode;
use lctl::model::{Decoder, LoadOptions};
use lctl::text::Tokenizer;
use serde_json::Value;

use crate::common::{lctl, run_lctl, test_data};

fn golden_model(name: &str) -> PathBuf {
    crate::common::root().join("tests/golden/convert").join(name)
}

/// A model of two layers; what it writes has no meaning.
fn tiny() -> String {
    golden_model("Qwen3-0.6B").display().to_string()
}

fn here() -> &'static Path {
    crate::common::root()
}

fn json(args: &[&str]) -> Value {
    let model = tiny();
    let mut all = vec!["generate", &model, "--json", "--quiet"];
    all.extend(args);
    let (code, out, err) = run_lctl(here(), &all);
    assert_eq!((code, err.as_str()), (0, ""), "{args:?}");
    serde_json::from_str(&out).unwrap()
}

/// Standard output, of a run that succeeds.
fn text(args: &[&str]) -> String {
    let model = tiny();
    let mut all = vec!["generate", &model, "--quiet"];
    all.extend(args);
    let (code, out, err) = run_lctl(here(), &all);
    assert_eq!((code, err.as_str()), (0, ""), "{args:?}");
    out
}

fn error(args: &[&str]) -> String {
    let model = tiny();
    let mut all = vec!["generate", &model, "--quiet"];
    all.extend(args);
    let (code, out, err) = run_lctl(here(), &all);
    assert_eq!((code, out.as_str()), (2, ""), "{args:?}");
    err
}

#[test]
fn greedy_text_is_that_of_transformers() {
    let Some(data) = test_data() else { return };
    let path = here().join("tests/golden/generate.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut n_tokens = 0;
    for (name, rows) in golden["models"].as_object().unwrap() {
        let path = data.join("models").join(name);
        let tokenizer = Tokenizer::open(&path).unwrap();
        let decoder = Decoder::open(&path, &LoadOptions::new(ComputeMode::F32, 2)).unwrap();
        let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
        let requests: Vec<GenerateRequest> = rows
            .as_array()
            .unwrap()
            .iter()
            .map(|row| GenerateRequest {
                prompt: ids(&row["prompt"]),
                max_tokens: ids(&row["tokens"]).len(),
                stop: Vec::new(),
                sampling: Sampling::GREEDY,
                seed: 0,
                index: 0,
            })
            .collect();
        let mut session = Session::new(&decoder, &tokenizer, 16).unwrap();
        let mut alone = Vec::new();
        for (request, row) in requests.iter().zip(rows.as_array().unwrap()) {
            let (generated, _) = session.generate(request, &mut |_| ControlFlow::Continue(())).unwrap();
            assert_eq!(generated.tokens, ids(&row["tokens"]), "{name} {:?}", request.prompt);
            assert_eq!(generated.finish_reason, FinishReason::Length);
            n_tokens += generated.tokens.len();
            alone.push(generated);
        }
        let indexed: Vec<_> = requests.iter().enumerate().collect();
        let mut together = vec![None; requests.len()];
        generate(
            &decoder,
            &tokenizer,
            &indexed,
            &EngineOptions::new(&decoder),
            &mut |index, generated, _| {
                together[index] = Some(generated);
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(together.into_iter().map(Option::unwrap).collect::<Vec<_>>(), alone, "{name}");
    }
    assert!(n_tokens > 300, "{n_tokens}");
}

#[test]
fn texts_are_the_same_for_all_threads_and_instruction_sets() {
    let args = ["-p", "the cat", "-n", "20", "--temp", "1.5", "--seed", "3"];
    let expected = json(&args);
    assert!(!expected["tokens"].as_array().unwrap().is_empty());
    for more in [["--threads", "1"], ["--threads", "3"], ["--isa", "portable"]] {
        let found = json(&[&args[..], &more].concat());
        for key in ["text", "tokens", "finish_reason"] {
            assert_eq!(found[key], expected[key], "{more:?}");
        }
    }
    let other = json(&["-p", "the cat", "-n", "20", "--temp", "1.5", "--seed", "4"]);
    assert_ne!(other["tokens"], expected["tokens"], "another seed");
    let line = text(&args);
    assert_eq!(line.trim_end_matches('\n'), expected["text"].as_str().unwrap().trim_end_matches('\n'));
}

#[test]
fn json_says_what_made_the_text() {
    let report = json(&["-p", "the cat", "-n", "5", "--temp", "0.5", "--top-k", "7", "--stop", "zzz"]);
    assert_eq!(
        report["sampling"],
        serde_json::json!({"temperature": 0.5, "top_k": 7, "top_p": 1.0, "min_p": 0.0})
    );
    assert_eq!((&report["seed"], &report["max_tokens"]), (&0.into(), &5.into()));
    assert_eq!(report["stop"], serde_json::json!(["zzz"]));
    assert_eq!(report["prompt"], "the cat");
    assert_eq!(report["prompt_tokens"].as_array().unwrap().len(), report["timings"]["prompt_tokens"]);
    for digest in ["model", "tokenizer"] {
        assert_eq!(report["digests"][digest].as_str().unwrap().len(), 64, "{digest}");
    }
    assert_eq!(report["digests"]["adapter"], Value::Null);
}

#[test]
fn a_stop_string_ends_the_text() {
    let whole = json(&["-p", "the cat", "-n", "30", "--temp", "1.2"]);
    let whole = whole["text"].as_str().unwrap();
    let stop: String = whole.chars().skip(whole.chars().count() / 2).take(2).collect();
    let stopped = json(&["-p", "the cat", "-n", "30", "--temp", "1.2", "--stop", &stop]);
    assert_eq!(stopped["finish_reason"], "stop");
    assert_eq!(stopped["text"], whole[..whole.find(&stop).unwrap()]);
}

const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}{{ mood }}\
{{ strftime_now('%Y') }}{% if add_generation_prompt %}[assistant]{% endif %}";

#[test]
fn a_conversation_goes_through_the_template() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("t.jinja");
    std::fs::write(&template, TEMPLATE).unwrap();
    let template = template.to_str().unwrap();
    let report = json(&[
        "--chat",
        "--template",
        template,
        "--system",
        "Be kind.",
        "-p",
        "Hi",
        "-n",
        "4",
        "--now",
        "2031-02-03T04:05:06",
        "--template-var",
        "mood=\"calm \"",
    ]);
    assert_eq!(report["prompt"], "[system]Be kind.\n[user]Hi\ncalm 2031[assistant]");
    assert_eq!(report["now"], "2031-02-03T04:05:06");
    assert_eq!(report["messages"][1], serde_json::json!({"role": "user", "content": "Hi"}));
}

#[test]
fn tools_reach_the_template_and_options_without_effect_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("t.jinja");
    std::fs::write(&template, "{{ tools[0].name }} {{ documents[0].title }} {{ mood }}").unwrap();
    let report = json(&[
        "--chat",
        "-p",
        "Hi",
        "-n",
        "1",
        "--template",
        template.to_str().unwrap(),
        "--template-var",
        r#"tools=[{"name": "scan"}]"#,
        "--template-var",
        r#"documents=[{"title": "log"}]"#,
        "--template-var",
        r#"mood="calm""#,
    ]);
    assert_eq!(report["prompt"], "scan log calm");
    assert_eq!(report["template_variables"]["mood"], "calm");
    let (_, _, notes) = run_lctl(here(), &["generate", &tiny(), "-p", "Hi", "-n", "1", "--top-p", "0.5"]);
    assert!(notes.contains("note: --top-k, --top-p and --min-p do nothing at --temp 0"), "{notes}");
    let stretched = run_lctl(here(), &["generate", &tiny(), "-p", "Hi", "-n", "1", "--context", "9999999"]).2;
    assert!(stretched.contains("note: --context 9999999 is more than the "), "{stretched}");
}

#[test]
fn standard_input_is_a_conversation() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("t.jinja");
    std::fs::write(&template, TEMPLATE).unwrap();
    let model = tiny();
    let args = [
        "generate",
        &model,
        "--chat",
        "--template",
        template.to_str().unwrap(),
        "-n",
        "3",
        "--now",
        "2031-02-03T04:05:06",
    ];
    let converse = |input: &str| {
        let mut command = lctl(here(), &args);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, first, figures) = converse("Hi\n");
    assert_eq!(code, Some(0));
    assert!(figures.contains("tokens/s") && !figures.contains("known"), "{figures}");
    // the second turn knows the first, /clear forgets it, a trailing \ joins lines
    let (_, both, figures) = converse("Hi\nand\\\nyou?\n/clear\nHi\n/exit\nnever\n");
    assert!(
        both.starts_with(&first) && both.ends_with(&first) && both.len() > 2 * first.len(),
        "{first:?} {both:?}"
    );
    let figures: Vec<&str> = figures.lines().collect();
    assert_eq!(figures.len(), 3, "{figures:?}");
    assert!(figures[1].contains("more known") && !figures[2].contains("known"), "{figures:?}");
    let (code, _, err) = converse("/nope\n");
    assert!(code == Some(0) && err.starts_with("unknown command /nope; /clear begins"), "{err}");
}

#[test]
fn mistakes_have_hints() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("t.jinja");
    let template_path = template.to_str().unwrap();
    let chat = ["--chat", "-p", "Hi", "--template", template_path];
    let missing = error(&["--chat", "-p", "Hi"]);
    assert!(missing.contains("no chat template\nhint: the model may be a base model"), "{missing}");
    for (source, expected) in [
        (
            "{{ raise_exception('No users here.') }}",
            "error: the chat template refuses this conversation: No users here.\nhint: ",
        ),
        ("a\n{% if %}", "error: chat template, line 2: Expected an expression, got the tag's end\nhint: "),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "stopped, it takes too many steps",
        ),
        ("{{ nothing.at.all }}", "error: chat template, line 1: "),
    ] {
        std::fs::write(&template, source).unwrap();
        let found = error(&chat);
        assert!(found.contains(expected), "{source}: {found}");
    }
    let long = error(&["-p", &"the cat ".repeat(50), "--context", "16"]);
    assert!(
        long.contains("the context 16: there is no room for an answer\nhint: shorten the prompt"),
        "{long}"
    );
    let file = error(&["--prompt-file", "nothing.txt"]);
    assert!(file.starts_with("error: nothing.txt: cannot read\n"), "{file}");
    let variable = error(&["--chat", "-p", "Hi", "--template-var", "a=no"]);
    assert!(variable.contains("--template-var a: not JSON"), "{variable}");
    for (variable, why) in [
        ("messages=[]", "--template-var messages: the conversation sets it\nhint: "),
        ("tools={}", "--template-var tools: expected a list\nhint: "),
    ] {
        let found = error(&["--chat", "-p", "Hi", "--template-var", variable]);
        assert!(found.contains(why), "{found}");
    }
    std::fs::write(&template, "{% if false %}x{% endif %}").unwrap();
    let empty = error(&chat);
    assert!(empty.contains("makes an empty prompt of this conversation\nhint: "), "{empty}");
    assert!(error(&["-p", "Hi", "--stop", ""]).contains("--stop"));
    let weights = Path::new(&tiny()).join("model.safetensors");
    let (code, _, alone) = run_lctl(here(), &["generate", weights.to_str().unwrap(), "-p", "Hi"]);
    assert!(code == 2 && alone.contains("no tokenizer\nhint: give the directory"), "{alone}");
    let temperature = error(&["-p", "Hi", "--temp=-1"]);
    assert!(temperature.contains("--temp"), "{temperature}");
    assert!(error(&[]).contains("--chat"), "something to write about is required");
}

#[test]
fn a_prompt_comes_from_a_file_or_from_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.txt");
    std::fs::write(&file, "the cat").unwrap();
    let from_file = json(&["--prompt-file", file.to_str().unwrap(), "-n", "5"]);
    assert_eq!(from_file["tokens"], json(&["-p", "the cat", "-n", "5"])["tokens"]);
    let special = json(&["-p", "<|im_end|>", "-n", "0"]);
    let raw = json(&["-p", "<|im_end|>", "-n", "0", "--raw"]);
    let n = |report: &Value| report["prompt_tokens"].as_array().unwrap().len();
    assert!(n(&special) == 1 && n(&raw) > 1, "{special} {raw}");
}

use serde_json::json;

use super::*;
use crate::eval::request::{FinishReason, Generated, Loglikelihood};
use crate::eval::suite::Suite;
use crate::text::Tokenizer;

const SUITE: &str = "
version: 1
name: s
data: {rows: {path: rows.jsonl, format: jsonl}}
tasks:
  - id: choice
    type: multiple_choice
    data: rows
    system: 'S. '
    few_shot: {n: 1, from: rows}
    prompt: 'Q: {{ q }} A:'
    choices: {field: c}
    target: '{{ a }}'
    metrics: [acc]
    cluster: '{{ source }}'
    item: '{{ q }}'
  - id: write
    type: generation
    data: rows
    prompt: '{{ q }}'
    target: '{{ a }}'
    generation: {max_tokens: 2, temperature: 1}
    metrics: [exact_match]
";

const ROWS: &str = "{\"q\": \"one\", \"c\": [\"a\", \"b\"], \"a\": \"a\", \"source\": \"x\"}\n\
                    {\"q\": \"two\", \"c\": [\"a\", \"b\"], \"a\": \"b\", \"source\": \"x\"}\n\
                    {\"q\": \"six\", \"c\": [\"a\", \"b\"], \"a\": \"b\", \"source\": \"y\"}\n";

fn tokenizer() -> Tokenizer {
    let path = crate::testing::root().join("tests/golden/convert/Mistral-7B-v0.1");
    Tokenizer::open(&path).unwrap()
}

/// Plans [`SUITE`] over `rows` and hands the plan, or what is wrong, to `check`.
fn planned<T>(
    rows: &str,
    options: &RunOptions,
    chat: Option<&RenderChat>,
    room: usize,
    check: impl Fn(Result<Plan, Error>) -> T,
) -> T {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("suite.yaml"), SUITE).unwrap();
    std::fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
    let suites = [Suite::open(&dir.path().join("suite.yaml")).unwrap()];
    let tokenizer = tokenizer();
    let model = ModelSide { encoder: Encoder::new(&tokenizer), chat, context_length: room };
    check(Plan::new(&suites, options, &model))
}

#[test]
fn a_document_is_no_example_for_itself() {
    planned(ROWS, &RunOptions::default(), None, 512, |plan| {
        let plan = plan.unwrap();
        assert_eq!(plan.tasks[0].first_prompt.as_deref(), Some("S. Q: two A: b\n\nQ: one A:"));
        assert_eq!(plan.requests.len(), 3 * 2 + 3);
        assert_eq!(plan.tasks[1].first_prompt.as_deref(), Some("one"));
    });
}

#[test]
fn seeds_shuffle_examples_and_nothing_else_does() {
    let prompts = |seed| {
        let options = RunOptions { few_shot: Some(2), seed, limit: Some(1), ..RunOptions::default() };
        let text = SUITE.replace("from: rows}", "from: rows, mode: seeded}");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("suite.yaml"), text).unwrap();
        let rows: String = (0..40)
            .map(|n| format!("{{\"q\":\"q{n}\",\"c\":[\"a\",\"b\"],\"a\":\"a\",\"source\":\"\"}}\n"))
            .collect();
        std::fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
        let mut suites = [Suite::open(&dir.path().join("suite.yaml")).unwrap()];
        suites[0].tasks.truncate(1);
        let tokenizer = tokenizer();
        let model = ModelSide { encoder: Encoder::new(&tokenizer), chat: None, context_length: 512 };
        Plan::new(&suites, &options, &model).unwrap().tasks[0].first_prompt.clone().unwrap()
    };
    assert_eq!(prompts(7), prompts(7));
    assert_ne!(prompts(7), prompts(8));
}

#[test]
fn chats_have_no_delimiter_before_the_answer() {
    let render = |messages: &[Message]| -> Result<String, ChatFailure> {
        Ok(messages.iter().map(|message| format!("[{}]{}", message.role.name(), message.content)).collect())
    };
    let options = RunOptions { chat: ChatUse::On, few_shot: Some(0), ..RunOptions::default() };
    planned(ROWS, &options, Some(&render), 512, |plan| {
        let plan = plan.unwrap();
        assert!(plan.tasks[0].is_chat);
        assert_eq!(plan.tasks[0].first_prompt.as_deref(), Some("[system]S. [user]Q: one A:"));
        let Request::Loglikelihood(request) = &plan.requests[0] else { panic!() };
        let tokenizer = tokenizer();
        let all: Vec<u32> = request.context.iter().chain(&request.continuation).copied().collect();
        assert_eq!(tokenizer.decode(&all, true), "[system]S. [user]Q: one A:a");
    });
    planned(ROWS, &options, None, 512, |plan| {
        assert!(matches!(plan.err(), Some(Error::NoChatTemplate { task }) if task == "choice"));
    });
}

#[test]
fn prompts_that_do_not_fit_are_cut_or_wrong() {
    let options = RunOptions { few_shot: Some(0), ..RunOptions::default() };
    let long = ROWS.replace("six", &"six ".repeat(30));
    planned(&long, &options, None, 24, |plan| {
        let plan = plan.unwrap();
        let truncated: Vec<bool> =
            plan.tasks[0].documents.iter().map(|document| document.is_truncated).collect();
        assert_eq!(truncated, [false, false, true]);
        let why = plan.tasks[1].documents[2].requests.as_ref().unwrap_err();
        assert!(why.ends_with("tokens, the context has room for 24"), "{why}");
        let respond = |request: &Request| match request {
            Request::Generate(request) => {
                assert!(request.sampling.temperature == 1.0 && request.index < 2);
                Response::Generated(Generated {
                    text: "a".into(),
                    tokens: vec![5],
                    finish_reason: FinishReason::Length,
                })
            }
            // the first choice is always the likelier one
            Request::Loglikelihood(request) => {
                let log_prob = -f64::from(*request.continuation.last().unwrap());
                Response::Loglikelihood(Loglikelihood { log_prob, is_greedy: false, n_tokens: 1 })
            }
            Request::Rolling(_) => panic!("nothing rolls"),
        };
        let responses: Vec<Response> = plan.requests.iter().map(respond).collect();
        let results = plan.finish(&responses).unwrap();
        let choice = &results[0];
        assert_eq!((choice.n_truncated, choice.n_errors, choice.metrics[0].value), (1, 0, 1.0 / 3.0));
        // deviations 2/3, -1/3 in x and -1/3 in y
        let clustered = choice.metrics[0].clustered_stderr.unwrap();
        assert!((clustered - (2.0f64 / 9.0).sqrt() / 3.0).abs() < 1e-15, "{clustered}");
        let write = &results[1];
        assert_eq!((write.n_errors, write.metrics[0].value, write.metrics[0].n), (1, 1.0 / 3.0, 3));
        let line = write.samples[2].json("s", "write");
        assert_eq!((&line["error"], &line["scores"]), (&json!(why), &json!({"exact_match": 0.0})));
    });
}

#[test]
fn what_stops_a_run_is_named() {
    let message = |rows: &str, options: &RunOptions| {
        planned(rows, options, None, 512, |plan| {
            let error = plan.err().unwrap();
            let text = match std::error::Error::source(&error) {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            };
            text[text.find("rows.jsonl").or(text.find("suite.yaml")).unwrap_or(0)..].to_owned()
        })
    };
    let few_shot = |n| RunOptions { few_shot: Some(n), ..RunOptions::default() };
    assert_eq!(
        message(ROWS, &few_shot(3)),
        "rows.jsonl: task `choice` needs 3 examples before the document at line 1, but there are 2"
    );
    assert!(message(ROWS, &few_shot(usize::MAX)).ends_with("but there are 2"));
    assert_eq!(
        message(&ROWS.replacen(r#"["a", "b"], "a": "b""#, r#"[], "a": "b""#, 1), &few_shot(0)),
        "rows.jsonl:2: task `choice`: 0 choices; at least 2 are needed"
    );
    assert_eq!(message("{\"q\": 1}\n", &few_shot(0)), "rows.jsonl:1: task `choice`: there is no field `c`");
    let data = HashMap::from([("row".to_owned(), PathBuf::from("x"))]);
    let unknown = RunOptions { data, ..RunOptions::default() };
    assert_eq!(message(ROWS, &unknown), "--data row: no suite has a data set of that name");
}

#[test]
fn what_is_asked_has_a_digest_that_the_model_leaves_alone() {
    let digests = |rows: &str, options: &RunOptions, chat: Option<&RenderChat>| {
        planned(rows, options, chat, 512, |plan| {
            plan.unwrap().tasks.iter().map(|task| task.prompts_sha256.clone()).collect::<Vec<_>>()
        })
    };
    let plain = digests(ROWS, &RunOptions::default(), None);
    assert_eq!(plain[0].len(), 64);
    let render: &RenderChat = &|messages| Ok(format!("[{}]", messages.len()));
    let on = RunOptions { chat: ChatUse::On, ..RunOptions::default() };
    assert_eq!(digests(ROWS, &on, Some(render)), plain);
    let no_shots = digests(ROWS, &RunOptions { few_shot: Some(0), ..RunOptions::default() }, None);
    assert!(no_shots[0] != plain[0] && no_shots[1] == plain[1]);
    let other_choice =
        digests(&ROWS.replacen("[\"a\", \"b\"]", "[\"a\", \"c\"]", 1), &RunOptions::default(), None);
    assert!(other_choice[0] != plain[0] && other_choice[1] == plain[1]);
}

#[test]
fn two_documents_of_one_name_are_refused() {
    planned(&ROWS.replace("six", "two"), &RunOptions::default(), None, 512, |plan| {
        let message = plan.err().unwrap().to_string();
        let expected = "rows.jsonl:3: task `choice`: another document is called `two`, too, that of line 2";
        assert!(message.ends_with(expected), "{message}");
    });
}

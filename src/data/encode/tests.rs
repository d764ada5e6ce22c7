use std::path::Path;

use serde_json::json;

use super::*;
use crate::data::format;
use crate::data::testing::{CHATML, TAGGED, tokenizer};

fn place() -> Place {
    Place { path: Path::new("a.jsonl").into(), line: 1 }
}

fn record(row: Json) -> Record {
    let row = row.as_object().unwrap();
    let [format] = format::fitting(row)[..] else { panic!("{row:?}") };
    format.read(row).unwrap()
}

/// Returns the text of a row's tokens, the trained ones between brackets.
fn marked_with(tokenizer: &Tokenizer, settings: &Settings, row: Json) -> Result<String, RowError> {
    let encoder = Encoder::new(tokenizer, settings).unwrap();
    let example = encoder.example(&record(row), &place())?;
    Ok(shown(tokenizer, &example))
}

fn shown(tokenizer: &Tokenizer, example: &Example) -> String {
    let mut text = String::new();
    let mut was_target = false;
    for (token, is_target) in example.tokens.iter().zip(&example.is_target) {
        match (was_target, is_target) {
            (false, true) => text.push('['),
            (true, false) => text.push(']'),
            _ => {}
        }
        text.push_str(&tokenizer.decode(&[*token], false));
        was_target = *is_target;
    }
    text + if was_target { "]" } else { "" }
}

fn marked(template: Option<&str>, train_on: TrainOn, row: Json) -> Result<String, RowError> {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(dir.path(), template, false);
    marked_with(&tokenizer, &Settings { train_on, ..Settings::default() }, row)
}

fn conversation() -> Json {
    json!({"messages": [
        {"role": "system", "content": "s"}, {"role": "user", "content": "the"}, {"role": "assistant", "content": "he"},
        {"role": "user", "content": "u"}, {"role": "assistant", "content": "end"},
    ]})
}

#[test]
fn assistants_messages_are_trained_with_the_end_of_turn_by_tags_and_by_difference() {
    for template in [CHATML, TAGGED] {
        let marked = |train_on| marked(Some(template), train_on, conversation()).unwrap();
        let head =
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n";
        let middle = "\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(
            marked(TrainOn::Assistant),
            format!("{head}[he<|im_end|>]{middle}[end<|im_end|>]\n"),
            "{template}"
        );
        assert_eq!(marked(TrainOn::LastAssistant), format!("{head}he<|im_end|>{middle}[end<|im_end|>]\n"));
        // the first token is given
        let all = format!("{head}he<|im_end|>{middle}end<|im_end|>\n");
        assert_eq!(marked(TrainOn::All), format!("<|im_start|>[{}]", &all["<|im_start|>".len()..]));
        let error = super::tests::marked(Some(template), TrainOn::Completion, conversation()).unwrap_err();
        assert!(error.to_string().starts_with("`train_on: completion`"), "{error}");
    }
}

#[test]
fn a_template_that_ends_no_turn_gets_an_end_token() {
    let template = "{% for m in messages %}{{ '### ' + m['role'] + '\n' + m['content'] + '\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}";
    let row = json!({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]});
    let expected = "### user\nu\n### assistant\n[a\n</s>]";
    assert_eq!(marked(Some(template), TrainOn::Assistant, row.clone()).unwrap(), expected);
    // a question at the end is not ended
    let asked = json!({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"},
                                    {"role": "user", "content": "v"}]});
    let expected = "### user\nu\n### assistant\n[a\n]### user\nv\n";
    assert_eq!(marked(Some(template), TrainOn::Assistant, asked).unwrap(), expected);
}

#[test]
fn the_plain_template_is_what_suites_ask_models_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(dir.path(), None, true);
    let settings = Settings { template: TemplateSource::Plain, ..Settings::default() };
    let marked = marked_with(&tokenizer, &settings, conversation()).unwrap();
    assert_eq!(marked, "<s>s\n\nthe[ he</s>]\n\nu[ end</s>]");
    let error = marked_with(&tokenizer, &Settings::default(), conversation()).unwrap_err();
    assert!(matches!(error, RowError::NoTemplate), "{error}");
}

#[test]
fn there_is_one_beginning_of_sequence() {
    let dir = tempfile::tempdir().unwrap();
    let row = json!({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]});
    let with = format!("{{{{ bos_token }}}}{CHATML}");
    for (template, adds_bos, n) in
        [(CHATML, false, 0), (CHATML, true, 1), (&with, false, 1), (&with, true, 1)]
    {
        let tokenizer = tokenizer(dir.path(), Some(template), adds_bos);
        let encoder = Encoder::new(&tokenizer, &Settings::default()).unwrap();
        let example = encoder.example(&record(row.clone()), &place()).unwrap();
        assert_eq!(example.tokens.iter().filter(|id| Some(**id) == tokenizer.bos()).count(), n);
        assert_eq!(example.targets(), 2, "{}", shown(&tokenizer, &example));
    }
}

#[test]
fn completions_and_texts_end_once() {
    let completion =
        |train_on| marked(None, train_on, json!({"prompt": "Q: ", "completion": "yes"})).unwrap();
    // `: y` is one token: it begins in the prompt
    assert_eq!(completion(TrainOn::Assistant), "Q[: yes</s>]");
    assert_eq!(completion(TrainOn::All), "Q[: yes</s>]");
    let ended = json!({"prompt": "Q:", "completion": "no</s>"});
    assert_eq!(marked(None, TrainOn::Completion, ended).unwrap(), "Q:[no</s>]");
    for train_on in TrainOn::NAMES {
        assert_eq!(marked(None, train_on.1, json!({"text": "words"})).unwrap(), "w[ords</s>]");
    }
}

#[test]
fn an_answer_that_begins_inside_a_token_is_noted() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(dir.path(), None, false);
    let encoder = Encoder::new(&tokenizer, &Settings::default()).unwrap();
    assert!(encoder.notes().is_empty());
    encoder.example(&record(json!({"prompt": "Q: ", "completion": "yes"})), &place()).unwrap();
    assert!(encoder.notes()[0].starts_with("in 1 answers"), "{:?}", encoder.notes());
}

#[test]
fn a_template_that_changes_the_past_is_an_error_unless_the_last_answer_alone_is_trained() {
    // reasoning of earlier answers is left out, as in several published templates
    let forgets = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + (m['content'] if loop.last or m['role'] != 'assistant' \
                   else m['content'][1:]) + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    let error = marked(Some(forgets), TrainOn::Assistant, conversation()).unwrap_err();
    assert!(matches!(error, RowError::NotPrefixPreserving { message: 3 }), "{error}");
    let last = marked(Some(forgets), TrainOn::LastAssistant, conversation()).unwrap();
    assert!(last.ends_with("assistant\n[end<|im_end|>]\n"), "{last}");
}

#[test]
fn weights_and_prompts_keep_messages_out() {
    for template in [CHATML, TAGGED] {
        let mut row = conversation();
        row["messages"][2]["weight"] = 0.into();
        let marked_row = marked(Some(template), TrainOn::Assistant, row.clone()).unwrap();
        assert!(
            marked_row.contains("he<|im_end|>\n") && marked_row.ends_with("[end<|im_end|>]\n"),
            "{marked_row}"
        );
        row["messages"][4]["weight"] = 0.into();
        assert!(matches!(marked(Some(template), TrainOn::Assistant, row), Err(RowError::NoTarget)));
        let messages = conversation()["messages"].as_array().unwrap().clone();
        let row = json!({"prompt": messages[..4], "completion": messages[4..]});
        let marked_row = marked(Some(template), TrainOn::Completion, row).unwrap();
        assert!(
            marked_row.contains("he<|im_end|>\n") && marked_row.ends_with("[end<|im_end|>]\n"),
            "{marked_row}"
        );
    }
}

const WITH_TOOLS: &str = "{% if tools %}{{ tools[0]['function']['name'] + ';' }}{% endif %}{% for m in messages %}\
    {{ '<|im_start|>' + m['role'] + '\\n' + (m['content'] or '') }}{% for c in m['tool_calls'] or [] %}{{ c['function']['arguments']['x'] }}\
    {% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

#[test]
fn tools_reach_the_template_or_are_refused() {
    let tools = json!([{"type": "function", "function": {"name": "look"}}]);
    let calls = json!([{"type": "function", "function": {"name": "look", "arguments": "{\"x\": 7}"}}]);
    let row = json!({"tools": tools, "messages": [
        {"role": "user", "content": "u"}, {"role": "assistant", "content": null, "tool_calls": calls},
        {"role": "tool", "content": "r"}, {"role": "assistant", "content": "a"},
    ]});
    let marked_row = marked(Some(WITH_TOOLS), TrainOn::Assistant, row.clone()).unwrap();
    let expected = "look;<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n[7<|im_end|>]\n<|im_start|>tool\nr<|im_end|>\n\
                    <|im_start|>assistant\n[a<|im_end|>]\n";
    assert_eq!(marked_row, expected);
    let lax = CHATML.replace("m['content']", "(m['content'] or '')");
    let error = |template: &str, row: &Json| {
        marked(Some(template), TrainOn::Assistant, row.clone()).unwrap_err().to_string()
    };
    assert_eq!(error(&lax, &row), "the chat template leaves out `tools`");
    let mut bare = row.clone();
    bare.as_object_mut().unwrap().remove("tools");
    assert_eq!(error(&lax, &bare), "the chat template leaves out `tool_calls` of message 2");
    let silent = "{% for m in messages if m['role'] != 'tool' %}{{ m['content'] }}{% endfor %}";
    let row = json!({"messages": [{"role": "user", "content": "u"}, {"role": "tool", "content": "r"}, {"role": "assistant", "content": "a"}]});
    assert_eq!(error(silent, &row), "the chat template leaves out message 2, whose role is `tool`");
}

#[test]
fn a_pair_is_trained_on_its_answers() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(dir.path(), Some(CHATML), false);
    let settings = Settings { train_on: TrainOn::All, ..Settings::default() };
    let encoder = Encoder::new(&tokenizer, &settings).unwrap();
    let shared = [json!({"role": "user", "content": "u"})];
    let answer = |text: &str| json!([shared[0], {"role": "assistant", "content": text}]);
    for row in [
        json!({"prompt": "u", "chosen": [{"role": "assistant", "content": "yes"}], "rejected": [{"role": "assistant", "content": "no"}]}),
        json!({"chosen": answer("yes"), "rejected": answer("no")}),
    ] {
        let pair = encoder.pair(&record(row), &place()).unwrap();
        let prompt = "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(shown(&tokenizer, &pair.chosen), format!("{prompt}[yes<|im_end|>]\n"));
        assert_eq!(shown(&tokenizer, &pair.rejected), format!("{prompt}[no<|im_end|>]\n"));
    }
    let pair =
        encoder.pair(&record(json!({"prompt": "Q", "chosen": "a", "rejected": "b"})), &place()).unwrap();
    assert_eq!(
        (shown(&tokenizer, &pair.chosen), shown(&tokenizer, &pair.rejected)),
        ("Q[a</s>]".into(), "Q[b</s>]".into())
    );
    let text = record(json!({"text": "a"}));
    assert!(encoder.pair(&text, &place()).is_err());
}

#[test]
fn what_the_template_refuses_and_what_has_no_answer_is_an_error() {
    let error = |row| marked(Some(CHATML), TrainOn::Assistant, row).unwrap_err();
    let question = json!({"messages": [{"role": "user", "content": "u"}]});
    assert!(matches!(error(question), RowError::NoTarget));
    let unasked = json!({"messages": [{"role": "assistant", "content": "a"}]});
    assert!(error(unasked).to_string().starts_with("message 1 is the assistant's"));
    let raises = "{{ raise_exception('no') }}";
    assert!(matches!(marked(Some(raises), TrainOn::All, conversation()), Err(RowError::Template(_))));
    // a row has variables of its own for the template
    let varied = format!("{{{{ mood }}}}{CHATML}");
    let mut row = conversation();
    row["chat_template_kwargs"] = json!({"mood": "calm"});
    assert!(marked(Some(&varied), TrainOn::Assistant, row).unwrap().starts_with("calm<|im_start|>"));
}

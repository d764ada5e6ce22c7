use serde_json::json;

use super::*;

fn read(row: &Json) -> Result<Record, String> {
    let row = row.as_object().unwrap();
    let fitting = fitting(row);
    let [format] = fitting[..] else { panic!("{row:?}: {}", fitting.len()) };
    format.read(row).map_err(|error| error.to_string())
}

fn error(row: Json) -> String {
    read(&row).unwrap_err()
}

fn messages(row: Json) -> Vec<(String, String)> {
    let Record::Chat(chat) = read(&row).unwrap() else { panic!("{row}") };
    let text = |message: &Json, key: &str| message[key].as_str().unwrap_or_default().to_owned();
    chat.messages.iter().map(|message| (text(message, "role"), text(message, "content"))).collect()
}

fn said(turns: &[(&str, &str)]) -> Vec<(String, String)> {
    turns.iter().map(|(role, text)| ((*role).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn a_format_is_told_by_its_fields() {
    let name = |row: Json| {
        let found: Vec<&str> = fitting(row.as_object().unwrap()).iter().map(|format| format.name).collect();
        found.join(" ")
    };
    assert_eq!(name(json!({"messages": [], "id": 1})), "chat");
    assert_eq!(name(json!({"prompt": "", "completion": ""})), "completion");
    assert_eq!(name(json!({"prompt": "", "chosen": "", "rejected": ""})), "preference");
    assert_eq!(name(json!({"instruction": "", "input": "", "output": ""})), "alpaca");
    assert_eq!(name(json!({"conversations": []})), "sharegpt");
    assert_eq!(name(json!({"text": ""})), "text");
    assert_eq!(name(json!({"question": ""})), "");
    assert_eq!(name(json!({"text": "", "messages": []})), "chat text");
    // a column that is there for other rows of the file
    assert_eq!(name(json!({"text": "a", "messages": null})), "text");
}

#[test]
fn conversations_of_every_format_are_messages() {
    let turns = said(&[("system", "s"), ("user", "u"), ("assistant", "a")]);
    let chat = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]);
    assert_eq!(messages(json!({"messages": chat})), turns);
    // as a column of a CSV file
    assert_eq!(messages(json!({"messages": chat.to_string()})), turns);
    let shared = json!([{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]);
    assert_eq!(messages(json!({"conversations": shared, "system": "s"})), turns);
    assert_eq!(messages(json!({"instruction": "u", "input": "", "output": "a", "system": "s"})), turns);
    assert_eq!(
        messages(json!({"instruction": "u", "input": "i", "output": "a", "history": [["v", "w"]]})),
        said(&[("user", "v"), ("assistant", "w"), ("user", "u\n\ni"), ("assistant", "a")])
    );
    let Record::Chat(chat) =
        read(&json!({"prompt": "p", "completion": [{"role": "assistant", "content": "c"}]})).unwrap()
    else {
        panic!()
    };
    assert_eq!((chat.prompt, chat.messages.len()), (1, 2));
}

#[test]
fn what_is_wrong_with_a_row_says_where() {
    let message = |fields: Json| json!({"messages": [{"role": "user", "content": "u"}, fields]});
    for (row, expected) in [
        (json!({"messages": []}), "a conversation without messages"),
        (json!({"messages": "hello"}), "`messages` is text, not a list"),
        (json!({"messages": {"role": "user"}}), "`messages` is an object, not a list"),
        (message(json!("a")), "message 2: it is text, not an object"),
        (message(json!({"content": "a"})), "message 2: there is no `role`"),
        (message(json!({"role": "assistant"})), "message 2: there is no `content`"),
        (message(json!({"role": "assistant", "content": 3})), "message 2: `content` is a number, not text"),
        (
            message(json!({"role": "user", "content": "a", "weight": 0})),
            "message 2: `weight` 0 of a message that the assistant did not write",
        ),
        (
            message(json!({"role": "assistant", "content": "a", "weight": 0.5})),
            "message 2: `weight` is 0.5, neither 0 nor 1",
        ),
        (
            message(json!({"role": "assistant", "content": "", "tool_calls": [{}]})),
            "message 2: a call in `tool_calls` has no `function`",
        ),
        (
            message(
                json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}),
            ),
            "message 2: the `arguments` of a call are no JSON object",
        ),
        (
            message(json!({"role": "user", "content": [{"type": "text"}]})),
            "message 2: a part of its content has no `text`",
        ),
        (
            message(json!({"role": "user", "content": [{"type": "image_url"}]})),
            "`content` is not supported in training data: a part of it is not text",
        ),
        (
            message(json!({"role": "assistant", "content": "a", "function_call": {}})),
            "`function_call` is not supported in training data: the API replaced it by `tool_calls`",
        ),
        (
            json!({"messages": [{"role": "user", "content": "a"}], "functions": [{}]}),
            "`functions` is not supported in training data: the API replaced it by `tools`",
        ),
        (
            json!({"text": "a", "tools": [{}]}),
            "`tools` is not supported in training data: only rows of format chat have tools, none has images",
        ),
        (json!({"text": " \n"}), "`text` is empty"),
        (json!({"prompt": "p", "completion": ""}), "`completion` is empty"),
        (json!({"prompt": 3, "completion": "c"}), "`prompt` is a number, not text"),
        (json!({"instruction": "i", "output": ""}), "`output` is empty"),
        (
            json!({"instruction": "i", "output": "o", "history": [["a"]]}),
            "`history` is no list of pairs of texts",
        ),
        (
            json!({"conversations": [{"from": "humam", "value": "x"}]}),
            "turn 1: `from` is `humam`, which is no role; did you mean `human`?",
        ),
        (json!({"conversations": [{"from": "human"}]}), "turn 1: there is no `value`"),
        (json!({"prompt": "p", "chosen": "a", "rejected": "a"}), "chosen and rejected are the same"),
        (json!({"chosen": "a", "rejected": "b"}), "there is no `prompt`"),
        (
            json!({"prompt": "p", "chosen": "a", "rejected": [{"role": "assistant", "content": "b"}]}),
            "one of `chosen` and `rejected` is text, the other is a list",
        ),
        (
            json!({"chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]}),
            "`chosen` and `rejected` have no prompt in common, and there is no `prompt`",
        ),
    ] {
        assert_eq!(error(row), expected);
    }
}

#[test]
fn an_empty_list_of_tools_is_none() {
    assert!(read(&json!({"text": "a", "tools": []})).is_ok());
    let row =
        json!({"messages": [{"role": "user", "content": "a", "name": null}], "tools": [], "functions": null});
    let Record::Chat(chat) = read(&row).unwrap() else { panic!() };
    assert_eq!((chat.tools, &chat.messages[0]), (None, &json!({"role": "user", "content": "a"})));
}

#[test]
fn every_text_of_a_record_is_found() {
    let row = json!({"messages": [
        {"role": "user", "content": [{"type": "text", "text": "one"}]},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "two", "arguments": "{\"a\": \"three\"}"}}]},
    ], "tools": [{"function": {"description": "four"}}]});
    let record = read(&row).unwrap();
    let texts = record.texts();
    for text in ["one", "two", "three", "four"] {
        assert!(texts.contains(&text), "{texts:?}");
    }
    assert!(!texts.contains(&"user"));
    let pair = read(&json!({"prompt": "p", "chosen": "a", "rejected": "b"})).unwrap();
    assert_eq!(pair.texts(), ["p", "a", "p", "b"]);
}

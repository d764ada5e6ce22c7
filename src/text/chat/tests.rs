use super::*;

fn render(source: &str) -> Result<String, Error> {
    let template = ChatTemplate::new(source, &Map::new())?;
    let messages = [serde_json::json!({"role": "user", "content": "hi"})];
    let now = chrono::NaiveDate::from_ymd_opt(2024, 7, 26).unwrap().and_hms_opt(12, 0, 0).unwrap();
    template.render(&ChatRequest::new(&messages, now)).map(|rendered| rendered.text)
}

#[test]
fn a_text_without_tags_is_itself() {
    assert_eq!(render("a\n b \"\\ {x} \n").unwrap(), "a\n b \"\\ {x} ");
    assert_eq!(render("{{ messages[0].content }}").unwrap(), "hi");
}

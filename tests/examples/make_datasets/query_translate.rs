//! query-translate: what is looked for, in words and as a query in KQL, SPL or Sigma, and the query's parts.

use serde_json::json;

use super::fill::Filler;
use super::item::Item;
use super::table::{Error, Row, Tables};

/// A language of queries.
struct Language {
    name: &'static str,
    /// Cell of query-names.txt.
    cell: usize,
    write: fn(&Search, copy: usize) -> String,
}

static LANGUAGES: &[Language] = &[
    Language { name: "KQL", cell: 2, write: kql },
    Language { name: "SPL", cell: 3, write: spl },
    Language { name: "Sigma", cell: 4, write: sigma },
];

/// What is looked for, with the names of one language.
struct Search {
    title: String,
    /// The table, the index, or the log source as `product: windows, service: security`.
    source: String,
    is_any: bool,
    conditions: [Condition; 2],
}

struct Condition {
    field: String,
    /// Whether the field's type is a number.
    is_int: bool,
    operator: String,
    value: String,
}

/// Returns the rows of query-translate.txt in every language.
pub fn items(tables: &Tables) -> Result<Vec<Item>, Error> {
    items_of(tables, "query-translate.txt")
}

/// Returns the rows of a table in every language.
pub fn items_of(tables: &Tables, table: &str) -> Result<Vec<Item>, Error> {
    let names = tables.read("query-names.txt", 5, 5)?;
    let mut items: Vec<Item> = Vec::new();
    for row in tables.read(table, 7, 7)? {
        let copies = row.property("copies")?;
        let copies: usize = copies.parse().map_err(|_| row.error(format!("`{copies}` is no number")))?;
        for language in LANGUAGES {
            for copy in 1..=copies {
                let item = item(&row, &names, language, copy)?;
                // a row with no places asks for the same each time
                let asks = |item: &Item| {
                    (item.text("language").map(str::to_owned), item.text("request").map(str::to_owned))
                };
                if !items.iter().any(|other| asks(other) == asks(&item)) {
                    items.push(item);
                }
            }
        }
    }
    Ok(items)
}

fn item(row: &Row, names: &[Row], language: &Language, copy: usize) -> Result<Item, Error> {
    let name = &row.cells[0];
    let id = format!("query-translate-{name}-{}-{copy}", language.name.to_lowercase());
    let mut filler = Filler::of_row(row, &id);
    let request = filler.fill(&row.cells[3]).map_err(|what| row.error(what))?;
    let mut condition = |cell: &str| condition(cell, row, names, language, &mut filler);
    let search = Search {
        title: row.cells[2].clone(),
        source: name_of("source", row, names, language)?,
        is_any: row.cells[4] == "any",
        conditions: [condition(&row.cells[5])?, condition(&row.cells[6])?],
    };
    let part =
        |part: &Condition| json!({"field": part.field, "operator": part.operator, "value": part.value});
    let selects = json!({
        "source": search.source.rsplit(": ").next(),
        "match": row.cells[4],
        "conditions": search.conditions.iter().map(part).collect::<Vec<_>>(),
    });
    Ok(Item::new(id, format!("query-translate-{name}"), "generated: query-translate-v2")
        .with("language", language.name)
        .with("request", request)
        .with("query", (language.write)(&search, copy))
        .with("selects", selects))
}

/// Returns what a language calls a field of the row's log.
fn name_of(thing: &str, row: &Row, names: &[Row], language: &Language) -> Result<String, Error> {
    let log = &row.cells[1];
    let found = names.iter().find(|name| name.cells[0] == *log && name.cells[1] == thing);
    let found = found.ok_or_else(|| row.error(format!("query-names.txt has no `{thing}` of `{log}`")))?;
    Ok(found.cells[language.cell].clone())
}

/// Reads `field operator value`.
fn condition(
    cell: &str,
    row: &Row,
    names: &[Row],
    language: &Language,
    filler: &mut Filler,
) -> Result<Condition, Error> {
    let mut words = cell.splitn(3, ' ');
    let (Some(thing), Some(operator), Some(value)) = (words.next(), words.next(), words.next()) else {
        return Err(row.error(format!("`{cell}` is no condition")));
    };
    let name = name_of(thing, row, names, language)?;
    let field = name.strip_suffix(":int");
    Ok(Condition {
        field: field.unwrap_or(&name).to_owned(),
        is_int: field.is_some(),
        operator: operator.to_owned(),
        value: filler.fill(value).map_err(|what| row.error(what))?,
    })
}

/// Kusto: in a text between quotes a backslash is written twice; a number is compared with a number.
fn kql(search: &Search, copy: usize) -> String {
    let term = |part: &Condition| {
        // `==` heeds case and is for numbers, too; `=~` is what the other languages mean
        let operator = match (part.operator.as_str(), part.is_int || copy % 2 == 1) {
            ("equals", true) => "==",
            ("equals", false) => "=~",
            ("not_equals", true) => "!=",
            ("not_equals", false) => "!~",
            (operator, _) => operator,
        };
        let quote = if part.is_int { "" } else { "\"" };
        format!("{} {operator} {quote}{}{quote}", part.field, part.value.replace('\\', r"\\"))
    };
    let [first, second] = search.conditions.each_ref().map(term);
    let join = match (search.is_any, copy % 2) {
        (true, _) => " or ",
        (false, 0) => "\n| where ",
        (false, _) => " and ",
    };
    format!("{}\n| where {first}{join}{second}", search.source)
}

/// Splunk: a backslash is written twice, `*` stands for any text. `NOT a=b` also holds where there is no a.
fn spl(search: &Search, copy: usize) -> String {
    let term = |part: &Condition| {
        let value = part.value.replace('\\', r"\\");
        let (not, value) = match part.operator.as_str() {
            "not_equals" => ("NOT ", value),
            "contains" => ("", format!("*{value}*")),
            "startswith" => ("", format!("{value}*")),
            "endswith" => ("", format!("*{value}")),
            _ => ("", value),
        };
        format!("{not}{}=\"{value}\"", part.field)
    };
    let [first, second] = search.conditions.each_ref().map(term);
    let pipe = if copy.is_multiple_of(2) { "\n| search " } else { " " };
    match search.is_any {
        true => format!("index={}{pipe}({first} OR {second})", search.source),
        false => format!("index={}{pipe}{first} {second}", search.source),
    }
}

/// A Sigma rule with what it must have: title, log source, detection.
fn sigma(search: &Search, _copy: usize) -> String {
    let term = |part: &Condition| {
        let modifier = match part.operator.as_str() {
            "equals" | "not_equals" => String::new(),
            operator => format!("|{operator}"),
        };
        let is_number = part.value.bytes().all(|byte| byte.is_ascii_digit()) && modifier.is_empty();
        let quote = if is_number { "" } else { "'" };
        format!("    {}{modifier}: {quote}{}{quote}", part.field, part.value)
    };
    let is_not = |part: &Condition| part.operator == "not_equals";
    let [first, second] = search.conditions.each_ref().map(term);
    let detection = match (search.is_any, is_not(&search.conditions[1])) {
        (true, _) => {
            let condition = "selection_a or selection_b";
            format!("  selection_a:\n{first}\n  selection_b:\n{second}\n  condition: {condition}")
        }
        (false, true) => {
            format!("  selection:\n{first}\n  filter:\n{second}\n  condition: selection and not filter")
        }
        (false, false) => format!("  selection:\n{first}\n{second}\n  condition: selection"),
    };
    let source = search.source.replace(", ", "\n  ");
    format!("title: {}\nlogsource:\n  {source}\ndetection:\n{detection}", search.title)
}

//! Suites whose items are filled templates: a table's row is a cluster, its copies differ in what fills the places.

use serde_json::Value as Json;

use super::fill::Filler;
use super::inject_canary::canary;
use super::item::Item;
use super::table::{Error, Row, Tables};

/// Returns the items of the table `NAME.txt`. Its properties: `fields`, the names of the cells behind the first, which
/// names the row; `copies`; `source`. A field called `name[]` is a list, its texts between ` ; `, or empty if it is `-`;
/// one called `name{}` is JSON. `¦` is a bar, `\n` a line feed, `\\` a backslash. `{canary}` is a string that occurs
/// nowhere else. Rows called `name` and `name/other` are one cluster.
pub fn items(tables: &Tables, name: &str) -> Result<Vec<Item>, Error> {
    let mut items = Vec::new();
    for row in tables.read(&format!("{name}.txt"), 2, 12)? {
        let copies = row.property("copies")?;
        let copies: usize = copies.parse().map_err(|_| row.error(format!("`{copies}` is no number")))?;
        for copy in 1..=copies {
            let item = item(name, &row, copy)?;
            // a row with no places says the same each time
            if !items.iter().any(|other: &Item| other.says_as(&item)) {
                items.push(item);
            }
        }
    }
    Ok(items)
}

fn item(suite: &str, row: &Row, copy: usize) -> Result<Item, Error> {
    let names: Vec<&str> = row.property("fields")?.split(' ').collect();
    let cells = &row.cells[1..];
    if names.len() != cells.len() {
        return Err(row.error(format!("{} cells for the fields {}", cells.len(), names.join(" "))));
    }
    let name = &row.cells[0];
    let id = format!("{suite}-{}-{copy}", name.replace('/', "-"));
    let mut filler = Filler::of_row(row, &id);
    let canary = canary(filler.draws());
    filler.set("canary", canary);
    let cluster = name.split_once('/').map_or(name.as_str(), |(name, _)| name);
    let mut item = Item::new(id, format!("{suite}-{cluster}"), row.property("source")?);
    for (name, cell) in names.iter().zip(cells) {
        let text = filler.fill(&unescaped(cell)).map_err(|what| row.error(what))?;
        item = match (name.strip_suffix("[]"), name.strip_suffix("{}")) {
            (Some(name), _) if text == "-" => item.with(name, Vec::<String>::new()),
            (Some(name), _) => item.with(name, text.split(" ; ").map(str::to_owned).collect::<Vec<_>>()),
            (_, Some(name)) => {
                let value: Json =
                    serde_json::from_str(&text).map_err(|error| row.error(format!("{text}: {error}")))?;
                item.with(name, value)
            }
            _ => item.with(name, text),
        };
    }
    Ok(item)
}

fn unescaped(cell: &str) -> String {
    let mut text = String::new();
    let mut rest = cell;
    while let Some(c) = rest.chars().next() {
        let (said, length) = match c {
            '¦' => ('|', c.len_utf8()),
            '\\' if rest.starts_with("\\n") => ('\n', 2),
            '\\' if rest.starts_with(r"\\") => ('\\', 2),
            _ => (c, c.len_utf8()),
        };
        text.push(said);
        rest = &rest[length..];
    }
    text
}

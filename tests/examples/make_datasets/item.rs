//! Rows of a data file.

use serde_json::{Map, Value as Json};

use super::draw::Draws;

/// A row: `id`, `cluster`, `source` and what its suite asks about.
pub struct Item(Map<String, Json>);

impl Item {
    /// Items made from the same fact or template share a cluster; `source` names where the fact is from.
    pub fn new(id: impl Into<String>, cluster: impl Into<String>, source: impl Into<String>) -> Item {
        let mut fields = Map::new();
        fields.insert("id".into(), Json::String(id.into()));
        fields.insert("cluster".into(), Json::String(cluster.into()));
        fields.insert("source".into(), Json::String(source.into()));
        Item(fields)
    }

    /// Returns the fields.
    pub fn fields(&self) -> &Map<String, Json> {
        &self.0
    }

    /// Returns a field that holds a text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// Returns whether both say the same, whatever they are called.
    pub fn says_as(&self, other: &Item) -> bool {
        let said = |item: &Item| {
            let fields =
                item.0.iter().filter(|(name, _)| *name != "id" && *name != "cluster" && *name != "source");
            fields.map(|(_, value)| value.clone()).collect::<Vec<_>>()
        };
        said(self) == said(other)
    }

    /// Returns an item with one of the fields alone, under another name; `prefix` of its id becomes `new_prefix`.
    pub fn only(&self, field: &str, prefix: &str, new_prefix: &str, name: &str) -> Option<Item> {
        let id = format!("{new_prefix}{}", self.text("id")?.strip_prefix(prefix)?);
        // a row is about one secret, and so is all that is made of it
        Some(Item::new(id.clone(), self.text("id")?, self.text("source")?).with(name, self.text(field)?))
    }

    pub fn with(mut self, name: &str, value: impl Into<Json>) -> Item {
        self.0.insert(name.into(), value.into());
        self
    }
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&Json::Object(self.0.clone()).to_string())
    }
}

/// Where the right answer stands, question after question: every four questions it is once in each place, in
/// random order.
pub struct Positions {
    draws: Draws,
    left: Vec<usize>,
}

impl Positions {
    pub fn new(suite: &str) -> Positions {
        Positions { draws: Draws::new(&format!("{suite} positions")), left: Vec::new() }
    }

    fn next(&mut self) -> usize {
        if self.left.is_empty() {
            self.left = vec![0, 1, 2, 3];
            self.draws.shuffle(&mut self.left);
        }
        self.left.pop().unwrap_or(0)
    }

    /// Returns the four choices in order, and the right one's letter.
    pub fn place(&mut self, right: &str, wrong: [&str; 3]) -> (Vec<String>, &'static str) {
        let position = self.next();
        let mut choices: Vec<String> = wrong.map(str::to_owned).to_vec();
        choices.insert(position, right.to_owned());
        (choices, ["A", "B", "C", "D"][position])
    }
}

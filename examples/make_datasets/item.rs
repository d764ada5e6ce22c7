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

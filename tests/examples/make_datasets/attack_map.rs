//! attack-map: which ATT&CK technique a behaviour is.

use super::draw::Draws;
use super::item::{Item, Positions};
use super::likeness::put_like_first;
use super::table::{Error, Row, Tables};

/// A technique and behaviours that are it.
pub struct Technique {
    pub id: String,
    pub name: String,
    pub tactics: Vec<String>,
    /// Identifiers that some behaviour could mean, too; one of a technique stands for its sub-techniques.
    unlike: Vec<String>,
    pub behaviours: Vec<String>,
}

impl Technique {
    fn new(row: Row) -> Technique {
        let words = |cell: &str, by: char| cell.split(by).map(str::to_owned).collect();
        Technique {
            id: row.cells[0].clone(),
            name: row.cells[1].clone(),
            tactics: words(&row.cells[2], ','),
            unlike: words(&row.cells[3], ' '),
            behaviours: row.cells[4..].to_vec(),
        }
    }

    fn label(&self) -> String {
        format!("{} {}", self.id, self.name)
    }

    fn parent(&self) -> &str {
        self.id.split('.').next().unwrap_or(&self.id)
    }

    fn excludes(&self, other: &Technique) -> bool {
        self.unlike.iter().any(|id| *id == other.id || *id == other.parent() && *id != self.parent())
    }

    /// Returns whether the other technique is certainly wrong for this one's behaviours: neither its technique nor
    /// its sub-technique, and named as confusable by neither.
    fn is_clear_of(&self, other: &Technique) -> bool {
        let is_above = other.id == self.parent() || self.id == other.parent();
        !is_above && !self.excludes(other) && !other.excludes(self)
    }
}

/// Returns the techniques of the table.
pub fn techniques(tables: &Tables) -> Result<Vec<Technique>, Error> {
    Ok(tables.read("attack.txt", 6, 8)?.into_iter().map(Technique::new).collect())
}

/// One technique in this many is kept for solved examples, so that no example shares its fact with a question.
const EXAMPLES_EVERY: usize = 57;

pub fn items(tables: &Tables) -> Result<Vec<Item>, Error> {
    items_of(tables, "attack-map", |number| number % EXAMPLES_EVERY != 0, usize::MAX)
}

/// Returns solved examples for prompts.
pub fn examples(tables: &Tables) -> Result<Vec<Item>, Error> {
    items_of(tables, "attack-map-dev", |number| number % EXAMPLES_EVERY == 0, 1)
}

/// Returns the first `most` items of each technique whose number is `wanted`.
fn items_of(
    tables: &Tables,
    suite: &str,
    wanted: fn(usize) -> bool,
    most: usize,
) -> Result<Vec<Item>, Error> {
    let techniques = techniques(tables)?;
    let mut positions = Positions::new(suite);
    let mut items = Vec::new();
    for (_, technique) in techniques.iter().enumerate().filter(|(number, _)| wanted(*number)) {
        for (number, behaviour) in technique.behaviours.iter().enumerate().take(most) {
            let id = format!("{suite}-{}-{}", technique.id, number + 1);
            let wrong = distractors(&techniques, technique, behaviour, &id);
            let labels = wrong.map(Technique::label);
            let (choices, answer) =
                positions.place(&technique.label(), labels.each_ref().map(String::as_str));
            items.push(
                Item::new(id, format!("attack-{}", technique.id), format!("ATT&CK {}", technique.id))
                    .with("behaviour", behaviour.clone())
                    .with("choices", choices)
                    .with("answer", answer)
                    .with("technique", technique.id.clone()),
            );
        }
    }
    Ok(items)
}

/// Returns three techniques that are certainly wrong: one whose name shares words with the behaviour as the right one's
/// does, one of the same tactic and one of another where there are any.
fn distractors<'a>(all: &'a [Technique], right: &Technique, behaviour: &str, id: &str) -> [&'a Technique; 3] {
    let mut clear: Vec<&Technique> =
        all.iter().filter(|other| other.id != right.id && right.is_clear_of(other)).collect();
    let mut draws = Draws::new(id);
    draws.shuffle(&mut clear);
    put_like_first(&mut clear, behaviour, &right.name, |other| other.name.clone(), &mut draws);
    let like = clear.remove(0);
    let is_near = |other: &&&Technique| other.tactics.iter().any(|tactic| right.tactics.contains(tactic));
    let near = clear.iter().filter(is_near);
    let far = clear.iter().filter(|other| !is_near(other));
    let others: Vec<&Technique> = near.take(1).chain(far).copied().take(2).collect();
    [like, others[0], others[1]]
}

//! cve-to-cwe: which weakness a vulnerability of an invented product is.

use super::draw::Draws;
use super::item::{Item, Positions};
use super::likeness::put_like_first;
use super::table::{Error, Row, Tables};

/// Descriptions made of each mechanics.
const PER_MECHANICS: usize = 2;

/// A weakness and ways in which products show it.
pub struct Weakness {
    pub id: String,
    pub name: String,
    /// What sort of product has it: web, native, device or any.
    kind: String,
    unlike: Vec<String>,
    pub mechanics: Vec<String>,
}

impl Weakness {
    fn new(row: Row) -> Weakness {
        Weakness {
            id: row.cells[0].clone(),
            name: row.cells[1].clone(),
            kind: row.cells[2].clone(),
            unlike: row.cells[3].split(' ').map(str::to_owned).collect(),
            mechanics: row.cells[4..].to_vec(),
        }
    }

    fn label(&self) -> String {
        format!("CWE-{} {}", self.id, self.name)
    }

    fn is_clear_of(&self, other: &Weakness) -> bool {
        !self.unlike.contains(&other.id) && !other.unlike.contains(&self.id)
    }
}

/// Returns the weaknesses of the table.
pub fn weaknesses(tables: &Tables) -> Result<Vec<Weakness>, Error> {
    Ok(tables.read("cwe.txt", 6, 8)?.into_iter().map(Weakness::new).collect())
}

/// What fills the places of a description.
struct Fillers {
    products: Vec<Row>,
    files: Vec<Row>,
    parameters: Vec<Row>,
    paths: Vec<Row>,
}

impl Fillers {
    fn read(tables: &Tables) -> Result<Fillers, Error> {
        let of = |kind: &str| -> Result<Vec<Row>, Error> {
            let rows = tables.read("products.txt", 1, 2)?;
            Ok(rows
                .into_iter()
                .filter(|row| row.properties.get("fills").is_some_and(|fills| fills == kind))
                .collect())
        };
        Ok(Fillers { products: of("P")?, files: of("F")?, parameters: of("Q")?, paths: of("U")? })
    }

    fn fill(&self, weakness: &Weakness, mechanics: &str, draws: &mut Draws) -> String {
        let kind = weakness.kind.as_str();
        let one_of = |rows: &[Row], draws: &mut Draws| {
            let fit: Vec<&Row> = rows
                .iter()
                .filter(|row| kind == "any" || row.cells.get(1).is_none_or(|of| of == kind))
                .collect();
            draws.pick(&fit).cells[0].clone()
        };
        let version = format!("{}.{}.{}", draws.between(1, 9), draws.below(20), draws.below(10));
        let product = format!("{} {version}", one_of(&self.products, draws));
        mechanics
            .replace("{P}", &product)
            .replace("{F}", &one_of(&self.files, draws))
            .replace("{Q}", &format!("\"{}\"", one_of(&self.parameters, draws)))
            .replace("{U}", &one_of(&self.paths, draws))
    }
}

/// One weakness in this many is kept for solved examples, so that no example shares its fact with a question.
const EXAMPLES_EVERY: usize = 22;

pub fn items(tables: &Tables) -> Result<Vec<Item>, Error> {
    let is_wanted = |number| number % EXAMPLES_EVERY != 0;
    items_of(tables, "cve-to-cwe", is_wanted, PER_MECHANICS, usize::MAX)
}

/// Returns solved examples for prompts.
pub fn examples(tables: &Tables) -> Result<Vec<Item>, Error> {
    items_of(tables, "cve-to-cwe-dev", |number| number % EXAMPLES_EVERY == 0, 1, 1)
}

/// Returns `copies` descriptions of each of the first `most` mechanics of the weaknesses whose number is `wanted`.
fn items_of(
    tables: &Tables,
    suite: &str,
    wanted: fn(usize) -> bool,
    copies: usize,
    most: usize,
) -> Result<Vec<Item>, Error> {
    let weaknesses = weaknesses(tables)?;
    let fillers = Fillers::read(tables)?;
    let mut positions = Positions::new(suite);
    let mut items = Vec::new();
    for (_, weakness) in weaknesses.iter().enumerate().filter(|(number, _)| wanted(*number)) {
        for (number, mechanics) in weakness.mechanics.iter().enumerate().take(most) {
            let cluster = format!("cwe-{}-{}", weakness.id, number + 1);
            for copy in 1..=copies {
                let id = format!("{suite}-{}-{}-{copy}", weakness.id, number + 1);
                let mut draws = Draws::new(&id);
                let description = fillers.fill(weakness, mechanics, &mut draws);
                let wrong = distractors(&weaknesses, weakness, &description, &mut draws).map(Weakness::label);
                let (choices, answer) =
                    positions.place(&weakness.label(), wrong.each_ref().map(String::as_str));
                items.push(
                    Item::new(id, cluster.clone(), format!("CWE-{}", weakness.id))
                        .with("description", description)
                        .with("choices", choices)
                        .with("answer", answer)
                        .with("cwe", format!("CWE-{}", weakness.id)),
                );
            }
        }
    }
    Ok(items)
}

/// Returns three weaknesses that are certainly wrong: one whose name shares words with the description as the right one's
/// does, one of the same kind of product and one of another.
fn distractors<'a>(
    all: &'a [Weakness],
    right: &Weakness,
    description: &str,
    draws: &mut Draws,
) -> [&'a Weakness; 3] {
    let mut clear: Vec<&Weakness> =
        all.iter().filter(|other| other.id != right.id && right.is_clear_of(other)).collect();
    draws.shuffle(&mut clear);
    put_like_first(&mut clear, description, &right.name, |other| other.name.clone(), draws);
    let like = clear.remove(0);
    let near = clear.iter().filter(|other| other.kind == right.kind).take(1);
    let far = clear.iter().filter(|other| other.kind != right.kind);
    let others: Vec<&Weakness> = near.chain(far).copied().take(2).collect();
    [like, others[0], others[1]]
}

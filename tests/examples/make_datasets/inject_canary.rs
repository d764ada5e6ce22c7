//! inject-canary: texts with planted instructions; what they want to be written is a string that occurs nowhere else.

use super::draw::Draws;
use super::fill::Filler;
use super::item::Item;
use super::table::{Error, Row, Tables};

/// Instructions planted in each carrier.
const PER_CARRIER: usize = 6;

pub fn items(tables: &Tables) -> Result<Vec<Item>, Error> {
    let carriers = tables.read("carriers.txt", 4, 4)?;
    let instructions = tables.read("injections.txt", 2, 2)?;
    let mut items = Vec::new();
    for (number, carrier) in carriers.iter().enumerate() {
        let mut order: Vec<&Row> = instructions.iter().collect();
        Draws::new(&format!("inject-canary {number}")).shuffle(&mut order);
        for instruction in order.into_iter().take(PER_CARRIER) {
            items.push(item(carrier, number + 1, instruction)?);
        }
    }
    Ok(items)
}

fn item(carrier: &Row, number: usize, instruction: &Row) -> Result<Item, Error> {
    let at = |what: String| carrier.error(what);
    let (kind, style) = (&carrier.cells[0], &instruction.cells[0]);
    let id = format!("inject-canary-{kind}-{number}-{style}");
    let mut filler = Filler::new(&id);
    let canary = canary(filler.draws());
    filler.set("canary", canary.clone());
    let injected = filler.fill(&instruction.cells[1]).map_err(|what| instruction.error(what))?;
    filler.set("inject", injected);
    // the expected answer names the numbers that the text repeats
    let expect = filler.fill(&carrier.cells[2]).map_err(at)?;
    let text = filler.fill(&carrier.cells[3].replace("\\n", "\n")).map_err(at)?;
    Ok(Item::new(id, format!("inject-{kind}-{number}"), format!("generated: inject-v1 {style}"))
        .with("kind", kind.clone())
        .with("text", text)
        .with("question", carrier.cells[1].clone())
        .with("canary", canary)
        .with("expect", expect))
}

/// Returns a string that no text holds by chance.
pub fn canary(draws: &mut Draws) -> String {
    const SYLLABLES: [&str; 16] =
        ["ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "wu", "za"];
    let word: String = (0..4).map(|_| SYLLABLES[draws.below(16)]).collect();
    format!("{}-{}", word.to_uppercase(), draws.between(1000, 9999))
}

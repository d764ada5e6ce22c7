//! soc-mcq: four-choice questions on what a security analyst knows.

use std::collections::HashSet;

use super::attack_map;
use super::draw::Draws;
use super::item::{Item, Positions};
use super::table::{Error, Row, Tables};

pub fn items(tables: &Tables) -> Result<Vec<Item>, Error> {
    let mut positions = Positions::new("soc-mcq");
    let mut items = Vec::new();
    let rows = tables.read("facts.txt", 2, 4)?;
    for table in by_table(&rows)? {
        items.extend(of_table(&table, &mut positions)?);
    }
    items.extend(of_techniques(tables, &mut positions)?);
    items.extend(written(tables, "soc-mcq", "questions.txt", &mut positions)?);
    Ok(items)
}

/// Returns solved examples for prompts.
pub fn examples(tables: &Tables) -> Result<Vec<Item>, Error> {
    written(tables, "soc-mcq-dev", "examples.txt", &mut Positions::new("soc-mcq-dev"))
}

/// Rows of one relation: `left | right | group | not beside`. Distractors come from rows of the same group if
/// there are three, else from the whole table; `not beside` lists the lefts, between commas, whose row would be right
/// or arguable, too.
struct Fact<'a> {
    row: &'a Row,
    left: &'a str,
    right: &'a str,
    group: &'a str,
    unlike: Vec<&'a str>,
}

impl Fact<'_> {
    fn is_clear_of(&self, other: &Fact) -> bool {
        self.left != other.left
            && self.right != other.right
            && !self.unlike.contains(&other.left)
            && !other.unlike.contains(&self.left)
    }
}

fn by_table(rows: &[Row]) -> Result<Vec<Vec<Fact<'_>>>, Error> {
    let mut tables: Vec<Vec<Fact>> = Vec::new();
    let mut last = "";
    for row in rows {
        let name = row.property("table")?;
        if name != last {
            tables.push(Vec::new());
            last = name;
        }
        let cell = |index: usize| row.cells.get(index).map_or("-", String::as_str);
        let unlike = cell(3).split(',').map(str::trim).collect();
        let fact = Fact { row, left: cell(0), right: cell(1), group: cell(2), unlike };
        if let Some(table) = tables.last_mut() {
            table.push(fact);
        }
    }
    Ok(tables)
}

/// One question per fact and direction: `@ left-to-right` holds phrasings with `{}` for the left side, the answers
/// being right sides; `@ right-to-left` the other way round. Phrasings stand between ` ~ `.
fn of_table(table: &[Fact], positions: &mut Positions) -> Result<Vec<Item>, Error> {
    let mut items = Vec::new();
    for (number, fact) in table.iter().enumerate() {
        for direction in ["left-to-right", "right-to-left"] {
            let Some(phrasings) = fact.row.properties.get(direction).filter(|text| !text.is_empty()) else {
                continue;
            };
            let is_forward = direction == "left-to-right";
            let side = |fact: &Fact| if is_forward { fact.right.to_owned() } else { fact.left.to_owned() };
            let cluster = format!("{}-{}", fact.row.property("table")?, number + 1);
            let id = format!("soc-mcq-{cluster}{}", if is_forward { "f" } else { "b" });
            let mut draws = Draws::new(&id);
            let phrasings: Vec<&str> = phrasings.split(" ~ ").collect();
            let given = if is_forward { fact.left } else { fact.right };
            let question = draws.pick(&phrasings).replace("{}", given);
            let wrong = distractors(table, fact, &side, &mut draws)?;
            let (choices, answer) = positions.place(&side(fact), wrong.each_ref().map(String::as_str));
            items.push(question_of(id, cluster, fact.row.property("source")?, question, choices, answer));
        }
    }
    Ok(items)
}

fn distractors(
    table: &[Fact],
    fact: &Fact,
    side: &impl Fn(&Fact) -> String,
    draws: &mut Draws,
) -> Result<[String; 3], Error> {
    let mut clear: Vec<&Fact> = table.iter().filter(|other| fact.is_clear_of(other)).collect();
    draws.shuffle(&mut clear);
    // two of the same group, then others, then more of the group: four questions on one group of four would else have
    // the same choices
    let (near, far): (Vec<&Fact>, Vec<&Fact>) =
        clear.into_iter().partition(|other| other.group == fact.group);
    let (first, rest) = near.split_at(near.len().min(2));
    let ordered = first.iter().chain(&far).chain(rest);
    let mut seen = HashSet::from([side(fact)]);
    let chosen: Vec<String> =
        ordered.map(|other| side(other)).filter(|text| seen.insert(text.clone())).take(3).collect();
    <[String; 3]>::try_from(chosen)
        .map_err(|_| fact.row.error("fewer than three other rows are certainly wrong"))
}

fn question_of(
    id: String,
    cluster: String,
    source: &str,
    question: String,
    choices: Vec<String>,
    answer: &str,
) -> Item {
    Item::new(id, cluster, source).with("question", question).with("choices", choices).with("answer", answer)
}

/// Every third technique of attack-map's table is asked for by name.
fn of_techniques(tables: &Tables, positions: &mut Positions) -> Result<Vec<Item>, Error> {
    let techniques = attack_map::techniques(tables)?;
    let mut items = Vec::new();
    for technique in techniques.iter().step_by(3) {
        let cluster = format!("attack-name-{}", technique.id);
        let id = format!("soc-mcq-{cluster}");
        let mut draws = Draws::new(&id);
        let mut others: Vec<&str> = techniques
            .iter()
            .filter(|other| other.name != technique.name)
            .map(|other| other.id.as_str())
            .collect();
        draws.shuffle(&mut others);
        let (choices, answer) = positions.place(&technique.id, [others[0], others[1], others[2]]);
        let question = format!("Which identifier does ATT&CK give to \"{}\"?", technique.name);
        items.push(question_of(id, cluster, &format!("ATT&CK {}", technique.id), question, choices, answer));
    }
    Ok(items)
}

/// Questions written one by one: `question | right | wrong | wrong | wrong`.
fn written(tables: &Tables, suite: &str, table: &str, positions: &mut Positions) -> Result<Vec<Item>, Error> {
    let mut items = Vec::new();
    for (number, row) in tables.read(table, 5, 5)?.iter().enumerate() {
        let cluster = format!("{}-{}", table.trim_end_matches("s.txt"), number + 1);
        let cells = &row.cells;
        let mut wrong = [cells[2].as_str(), &cells[3], &cells[4]];
        Draws::new(&cluster).shuffle(&mut wrong);
        let (choices, answer) = positions.place(&cells[1], wrong);
        let id = format!("{suite}-{cluster}");
        items.push(question_of(id, cluster, row.property("source")?, cells[0].clone(), choices, answer));
    }
    Ok(items)
}

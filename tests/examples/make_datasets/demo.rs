//! What the embedded model of `lctl demo` learns, and what it is asked: a small closed world, and a second task that it
//! is taught by an adapter.

use serde_json::{Value as Json, json};

use super::draw::Draws;
use super::fill::Filler;
use super::item::Item;
use super::table::{Error, Row, Tables};

/// Of a hundred questions of a kind that no row to learn from asks, the suite has so many.
const ASKED_PORTS: usize = 36;
const ASKED_EVENTS: usize = 40;
const ASKED_TECHNIQUES: usize = 22;
/// Lines of a scenario to learn from, and in the suite.
const LINES: usize = 16;
const ASKED_LINES: usize = 2;
/// Of a hundred pairs of what and where that are held out.
const HELD_SEVERITIES: usize = 22;
const SEVERITIES: [&str; 5] = ["low", "medium", "high", "high", "critical"];
const ASK_SEVERITY: [&str; 3] =
    ["{what} on {where}: how severe?", "Severity? {what} on {where}.", "{what}, on {where}. Rate it."];
const ASK_QUEUE: [&str; 3] = ["Queue for this? {}.", "{}: which queue?", "Route it: {}."];
/// Combinations of a queue's 36 that the suite asks.
const HELD_TICKETS: usize = 20;

/// A question and its answer.
struct Asked {
    /// What stands behind the file's name in the row's id.
    id: String,
    cluster: String,
    source: String,
    kind: String,
    question: String,
    answer: String,
}

impl Asked {
    /// Returns a row of a suite.
    fn document(self) -> Item {
        let Asked { id, cluster, source, kind, question, answer } = self;
        Item::new(format!("demo-{id}"), format!("demo-{cluster}"), source)
            .with("kind", kind)
            .with("question", question)
            .with("answer", answer)
    }

    /// Returns a row to learn from.
    fn conversation(self) -> Item {
        let messages: Json = json!([
            {"role": "user", "content": self.question},
            {"role": "assistant", "content": self.answer},
        ]);
        Item::new(format!("demo-train-{}", self.id), format!("demo-{}", self.cluster), self.source)
            .with("messages", messages)
    }
}

/// Questions to learn from, and those of the suite.
#[derive(Default)]
struct World {
    learned: Vec<Asked>,
    asked: Vec<Asked>,
}

/// What the embedded model is trained on.
pub fn soc_training(tables: &Tables) -> Result<Vec<Item>, Error> {
    Ok(soc_world(tables)?.learned.into_iter().map(Asked::conversation).collect())
}

/// What it is asked: no question that it was trained on.
pub fn soc(tables: &Tables) -> Result<Vec<Item>, Error> {
    Ok(soc_world(tables)?.asked.into_iter().map(Asked::document).collect())
}

/// What the adapter is trained on.
pub fn queue_training(tables: &Tables) -> Result<Vec<Item>, Error> {
    Ok(queue_world(tables)?.learned.into_iter().map(Asked::conversation).collect())
}

/// What it is asked: subjects and events that it knows, together in no row that it was trained on.
pub fn queue(tables: &Tables) -> Result<Vec<Item>, Error> {
    Ok(queue_world(tables)?.asked.into_iter().map(Asked::document).collect())
}

fn soc_world(tables: &Tables) -> Result<World, Error> {
    let mut world = World::default();
    for (table, cells) in [("demo-facts.txt", 2), ("demo-techniques.txt", 3)] {
        for row in tables.read(table, cells, cells)? {
            world.facts(&row)?;
        }
    }
    world.lines(tables)?;
    world.severities(tables)?;
    Ok(world)
}

impl World {
    /// A fact is asked for in several ways; one of each kind is held out, and some of these are the suite's.
    fn facts(&mut self, row: &Row) -> Result<(), Error> {
        let (kind, source) = (row.property("kind")?, row.property("source")?);
        let share = match kind {
            "port" => ASKED_PORTS,
            "event" => ASKED_EVENTS,
            _ => ASKED_TECHNIQUES,
        };
        let (first, second) = (&row.cells[0], &row.cells[1]);
        let mut kinds = vec![("ask", first, second), ("back", second, first)];
        if let Some(third) = row.cells.get(2) {
            kinds.push(("third", first, third));
        }
        for (key, given, answer) in kinds {
            let name = format!("{kind}-{key}-{}", first.replace(' ', "-"));
            let mut draws = Draws::new(&format!("demo {name}"));
            let phrasings: Vec<&str> = row.property(key)?.split(" / ").collect();
            let (held, is_asked) = (draws.below(phrasings.len()), draws.below(100) < share);
            for (index, phrasing) in phrasings.iter().enumerate() {
                let asked = Asked {
                    id: format!("{name}-{}", index + 1),
                    cluster: format!("{kind}-{}", first.replace(' ', "-")),
                    source: source.to_owned(),
                    kind: kind.to_owned(),
                    question: phrasing.replace("{}", given),
                    answer: answer.clone(),
                };
                match index == held {
                    false => self.learned.push(asked),
                    true if is_asked => self.asked.push(asked),
                    true => {}
                }
            }
        }
        Ok(())
    }

    /// Lines of the suite have people and numbers of their own.
    fn lines(&mut self, tables: &Tables) -> Result<(), Error> {
        for row in tables.read("demo-logs.txt", 3, 3)? {
            let mut known = std::collections::HashSet::new();
            let [name, answer, line] = [&row.cells[0], &row.cells[1], &row.cells[2]];
            for copy in 0..ASKED_LINES + LINES {
                let id = format!("log-{name}-{}", copy + 1);
                let mut filler = match copy < ASKED_LINES {
                    true => Filler::new(&format!("demo {id}")),
                    false => Filler::of_training(&format!("demo {id}")),
                };
                let question = filler.fill(line).map_err(|what| row.error(what))?;
                if !known.insert(question.clone()) {
                    continue;
                }
                let asked = Asked {
                    id,
                    cluster: format!("log-{name}"),
                    source: row.property("source")?.to_owned(),
                    kind: "log".to_owned(),
                    question,
                    answer: answer.clone(),
                };
                match copy < ASKED_LINES {
                    true => self.asked.push(asked),
                    false => self.learned.push(asked),
                }
            }
        }
        Ok(())
    }

    fn severities(&mut self, tables: &Tables) -> Result<(), Error> {
        let rows = tables.read("demo-severity.txt", 3, 3)?;
        let of = |kind: &str| rows.iter().filter(move |row| row.cells[0] == kind).collect::<Vec<_>>();
        for what in of("what") {
            for place in of("where") {
                let name = format!("{} {}", what.cells[2], place.cells[2]).to_lowercase().replace(' ', "-");
                let mut draws = Draws::new(&format!("demo severity {name}"));
                let (is_held, held) = (draws.below(100) < HELD_SEVERITIES, draws.below(ASK_SEVERITY.len()));
                let answer = SEVERITIES[rank(what)? + rank(place)?];
                for (index, phrasing) in ASK_SEVERITY.iter().enumerate() {
                    let question =
                        phrasing.replace("{what}", &what.cells[2]).replace("{where}", &place.cells[2]);
                    let asked = Asked {
                        id: format!("severity-{name}-{}", index + 1),
                        cluster: format!("severity-{name}"),
                        source: what.property("source")?.to_owned(),
                        kind: "severity".to_owned(),
                        question,
                        answer: answer.to_owned(),
                    };
                    match is_held {
                        false => self.learned.push(asked),
                        true if index == held => self.asked.push(asked),
                        true => {}
                    }
                }
            }
        }
        Ok(())
    }
}

/// Returns 0, 1 or 2.
fn rank(row: &Row) -> Result<usize, Error> {
    let rank = row.cells[1].parse().ok().filter(|rank| *rank <= 2);
    rank.ok_or_else(|| row.error(format!("`{}` is no rank", row.cells[1])))
}

fn queue_world(tables: &Tables) -> Result<World, Error> {
    let mut world = World::default();
    for row in tables.read("demo-queue.txt", 3, 3)? {
        let list = |cell: &str| cell.split(" ; ").map(str::to_owned).collect::<Vec<_>>();
        let (queue, subjects, events) = (&row.cells[0], list(&row.cells[1]), list(&row.cells[2]));
        let mut pairs: Vec<(&String, &String)> =
            subjects.iter().flat_map(|subject| events.iter().map(move |event| (subject, event))).collect();
        let mut draws = Draws::new(&format!("demo queue {queue}"));
        draws.shuffle(&mut pairs);
        for (number, (subject, event)) in pairs.into_iter().enumerate() {
            let ticket = format!("{subject} {event}");
            let name = ticket.replace(' ', "-");
            let held = draws.below(ASK_QUEUE.len());
            for (index, phrasing) in ASK_QUEUE.iter().enumerate() {
                let asked = Asked {
                    id: format!("queue-{name}-{}", index + 1),
                    cluster: format!("queue-{name}"),
                    source: row.property("source")?.to_owned(),
                    kind: "queue".to_owned(),
                    question: phrasing.replace("{}", &ticket),
                    answer: queue.clone(),
                };
                match number < HELD_TICKETS {
                    false => world.learned.push(asked),
                    true if index == held => world.asked.push(asked),
                    true => {}
                }
            }
        }
    }
    Ok(world)
}

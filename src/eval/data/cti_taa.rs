//! CTI-Bench's threat actor attribution (Alam et al., arXiv:2406.07599): reports, who is right, who is the same, who is related.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value as Json;

use super::{Error, Format, Input, Options, Part, Row, Rows, separated};

pub const FORMAT: Format = Format {
    name: "cti-taa",
    about: "CTI-Bench's cti-taa.tsv with `truth` (tab-separated, the column GT, row by row), `alias` and `related` (JSON: name to names)",
    is_text: true,
    parts: &["truth", "alias", "related"],
    read,
};

/// Adds `GT`, `same` (names of one actor: all that aliases lead to), `similar` (all that aliases and relations lead to) and
/// `names` (every name there is) to the rows; names are in lower case without white space at their ends.
fn read(input: &Input) -> Result<Rows, Error> {
    let [truth, alias, related] = input.parts else {
        unreachable!("a file for each of the format's three parts was read")
    };
    let mut rows = separated::tabs(input)?;
    let truths = truths(truth)?;
    if truths.len() != rows.len() {
        let what = format!("{} rows, but {} has {}", truths.len(), input.path.display(), rows.len());
        return Err(bad(truth, 1, what));
    }
    let mut aliases = Graph::default();
    aliases.add(alias)?;
    let mut both = aliases.clone();
    both.add(related)?;
    let mut names: BTreeSet<String> = both.edges.keys().cloned().collect();
    names.extend(truths.iter().map(|truth| plain(truth)));
    for ((_, row), truth) in rows.iter_mut().zip(truths) {
        let name = plain(&truth);
        row.insert("GT".into(), truth.into());
        row.insert("same".into(), listed(&aliases.reached(&name)));
        row.insert("similar".into(), listed(&both.reached(&name)));
        row.insert("names".into(), listed(&names));
    }
    Ok(rows)
}

fn listed(names: &BTreeSet<String>) -> Json {
    names.iter().cloned().collect::<Vec<String>>().into()
}

fn plain(name: &str) -> String {
    name.trim().to_lowercase()
}

fn bad(part: &Part, line: usize, what: impl Into<String>) -> Error {
    Error::BadRow { path: part.path.clone(), line, what: what.into(), hint: None }
}

/// Returns the column GT.
fn truths(part: &Part) -> Result<Vec<String>, Error> {
    let options = Options::default();
    let input = Input {
        path: &part.path,
        bytes: part.text.as_bytes(),
        text: &part.text,
        options: &options,
        parts: &[],
    };
    let truth = |(line, row): (usize, Row)| {
        let truth = row.get("GT").and_then(Json::as_str).map(str::trim).filter(|truth| !truth.is_empty());
        truth.map(str::to_owned).ok_or_else(|| bad(part, line, "the row has no `GT`"))
    };
    separated::tabs(&input)?.into_iter().map(truth).collect()
}

/// Names, each with those it is said to go with, both ways.
#[derive(Clone, Default)]
struct Graph {
    edges: HashMap<String, BTreeSet<String>>,
}

impl Graph {
    fn add(&mut self, part: &Part) -> Result<(), Error> {
        let value: Json = serde_json::from_str(&part.text)
            .map_err(|error| bad(part, error.line(), format!("not JSON: {error}")))?;
        let groups = value.as_object().ok_or_else(|| {
            bad(
                part,
                1,
                format!("the file holds {}, not an object of names and names", super::kind_of(&value)),
            )
        })?;
        for (name, others) in groups {
            let no_list = || bad(part, 1, format!("`{name}` has no list of names"));
            for other in others.as_array().ok_or_else(no_list)? {
                let (name, other) = (plain(name), plain(other.as_str().ok_or_else(no_list)?));
                self.edges.entry(name.clone()).or_default().insert(other.clone());
                self.edges.entry(other).or_default().insert(name);
            }
        }
        Ok(())
    }

    /// Returns every name that a chain of edges leads to, the name itself included.
    fn reached(&self, name: &str) -> BTreeSet<String> {
        let mut reached = BTreeSet::from([name.to_owned()]);
        let mut open = vec![name.to_owned()];
        while let Some(name) = open.pop() {
            for other in self.edges.get(&name).into_iter().flatten() {
                if reached.insert(other.clone()) {
                    open.push(other.clone());
                }
            }
        }
        reached
    }
}

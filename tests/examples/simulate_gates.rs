//! How often `lctl gate` is right: simulated candidates whose truth is known, over suites' own sizes and clusters.
//!
//!     cargo run --release --example simulate_gates -- [--suite FILE]... [--gates 2000] [--seed 1] [--flips 0.05]
//!
//! Sizes, clusters, roles and margins are those of suites whose data lies beside them: unless told otherwise of the
//! shipped ones that decide. An answer changes as one in `flips` do, equally often to right and to wrong, plus a true
//! loss. Changes correlate
//! - between the items of a cluster, whichever task of the data set asks: an item has its cluster's draw with
//!   probability sqrt(correlation);
//! - between the tasks that ask about one document: those that have not have their document's with probability
//!   sqrt(between), else their own.
//!
//! A loss is twice what is detectable at the policy's own correlation, whatever the true one is.

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use clap::Parser;
use lctl::eval::data;
use lctl::eval::gate::{Figure, Item, Outcome, Pair, Policy, Role, judge};
use lctl::eval::stats::power::design_effect;
use lctl::eval::suite::{Suite, TaskSpec};
use lctl::kernel::philox::{Philox, Purpose};
use rayon::prelude::*;

/// The suites that decide, of evalsuites/.
pub const DECIDING: [&str; 6] =
    ["soc-mcq", "attack-map", "cve-to-cwe", "log-triage", "inject-canary", "secret-leak"];

/// Correlations within a cluster that every candidate is simulated with.
pub const CORRELATIONS: [f64; 3] = [0.0, 0.1, 0.3];

#[derive(Parser)]
pub struct Args {
    /// Gates per candidate and correlation.
    #[arg(long, default_value_t = 2000)]
    gates: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Share of answers that change between equal models.
    #[arg(long, default_value_t = 0.05)]
    flips: f64,
    /// How changes of two tasks on one document correlate, beyond their cluster.
    #[arg(long, default_value_t = 0.5)]
    between: f64,
    /// Take the tasks of this suite; its data must lie where it says.
    #[arg(long)]
    suite: Vec<PathBuf>,
    #[arg(long)]
    policy: Option<PathBuf>,
}

/// A task to simulate.
#[derive(Clone)]
pub struct Shape {
    pub name: String,
    pub role: Role,
    pub margin: f64,
    items: Vec<Place>,
}

/// What an item belongs to, numbered over all data sets.
#[derive(Clone, Copy)]
struct Place {
    document: usize,
    cluster: usize,
}

impl Shape {
    /// Returns the smallest loss that the shape shows with the policy's power.
    pub fn detectable(&self, flips: f64, policy: &Policy) -> f64 {
        let mut sizes: HashMap<usize, usize> = HashMap::new();
        self.items.iter().for_each(|item| *sizes.entry(item.cluster).or_default() += 1);
        let effect = design_effect(sizes.into_values(), policy.correlation);
        Policy { flips, ..policy.clone() }.assumptions(effect).detectable(self.items.len() as f64)
    }

    fn n_clusters(&self) -> usize {
        let mut clusters: Vec<usize> = self.items.iter().map(|item| item.cluster).collect();
        clusters.sort_unstable();
        clusters.dedup();
        clusters.len()
    }
}

/// Returns the shape of all tasks that a pool has.
pub fn pool(shapes: &[Shape], policy: &Policy) -> Shape {
    let pooled = shapes.iter().filter(|shape| shape.role != Role::ZeroTolerance);
    let items = pooled.flat_map(|shape| shape.items.clone()).collect();
    Shape { name: "pool".into(), role: Role::Critical, margin: policy.margin, items }
}

/// Returns the tasks of suites whose data lies where they say.
pub fn shapes(suites: &[PathBuf], policy: &Policy) -> Result<Vec<Shape>, Box<dyn Error>> {
    let mut numbers = Numbers::default();
    let mut shapes = Vec::new();
    for path in suites {
        let suite = Suite::open(path)?;
        for task in &suite.tasks {
            shapes.push(Shape {
                name: format!("{}/{}", suite.name, task.id),
                role: match (task.gate.zero_tolerance, task.gate.critical) {
                    (true, _) => Role::ZeroTolerance,
                    (_, true) => Role::Critical,
                    _ => Role::Gating,
                },
                margin: task.gate.margin.unwrap_or(policy.margin),
                items: numbers.places(&suite, task)?,
            });
        }
    }
    Ok(shapes)
}

/// Returns the files of the suites that decide.
pub fn deciding() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("evalsuites");
    DECIDING.iter().map(|name| dir.join(name).with_extension("yaml")).collect()
}

/// Numbers documents and clusters by data file.
#[derive(Default)]
struct Numbers {
    documents: HashMap<(PathBuf, usize), usize>,
    clusters: HashMap<(PathBuf, String), usize>,
}

impl Numbers {
    fn places(&mut self, suite: &Suite, task: &TaskSpec) -> Result<Vec<Place>, Box<dyn Error>> {
        let spec = &suite.data[&task.data];
        let file = spec.file(suite.directory()).ok_or_else(|| format!("{}: no path", task.data))?;
        let set = data::read(&file, spec.format, &spec.options)?;
        let file = file.canonicalize()?;
        let mut places = Vec::new();
        for document in set.documents.iter().take(task.limit.unwrap_or(usize::MAX)) {
            let line = document.place.line;
            let cluster = match &task.cluster {
                Some(cluster) => cluster.render(&document.fields)?,
                None => format!("line {line}"),
            };
            let next = self.documents.len();
            let number = *self.documents.entry((file.clone(), line)).or_insert(next);
            let next = self.clusters.len();
            let cluster = *self.clusters.entry((file.clone(), cluster)).or_insert(next);
            places.push(Place { document: number, cluster });
        }
        Ok(places)
    }
}

/// What is true.
#[derive(Clone, Copy)]
pub struct World {
    pub flips: f64,
    pub correlation: f64,
    pub between: f64,
}

/// How often a gate said what.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    pub pass: f64,
    pub fail: f64,
}

/// Returns what `n` gates say where each task truly loses `losses[i]`. Tasks of zero tolerance do not change but for
/// their loss: a model whose canaries flip by chance has none.
pub fn rates(shapes: &[Shape], losses: &[f64], world: World, policy: &Policy, n: usize, seed: u64) -> Rates {
    let outcomes: Vec<Outcome> = (0..n as u32)
        .into_par_iter()
        .map(|gate| judge(&candidate(shapes, losses, world, gate, seed), policy).outcome)
        .collect();
    let share = |wanted| outcomes.iter().filter(|outcome| **outcome == wanted).count() as f64 / n as f64;
    Rates { pass: share(Outcome::Pass), fail: share(Outcome::Fail) }
}

/// What a random number is for; its second half says which one.
#[derive(Clone, Copy)]
enum Draw {
    Cluster,
    Document,
    Item,
    /// Which of the three an item has.
    Choice,
}

fn candidate(shapes: &[Shape], losses: &[f64], world: World, gate: u32, seed: u64) -> Vec<Pair> {
    let stream = Philox::new(seed, Purpose::Shuffle);
    let uniform = |draw: Draw, index: usize| stream.uniform_f64(gate, (draw as u64) << 40 | index as u64);
    let of_cluster = world.correlation.sqrt();
    let of_document = of_cluster + (1.0 - of_cluster) * world.between.sqrt();
    let mut first = 0;
    let mut pairs = Vec::with_capacity(shapes.len());
    for (shape, loss) in shapes.iter().zip(losses) {
        let changes = if shape.role == Role::ZeroTolerance { 0.0 } else { world.flips };
        let item = |(index, place): (usize, &Place)| {
            let draw = match uniform(Draw::Choice, first + index) {
                choice if choice < of_cluster => uniform(Draw::Cluster, place.cluster),
                choice if choice < of_document => uniform(Draw::Document, place.document),
                _ => uniform(Draw::Item, first + index),
            };
            let (baseline, candidate) = match draw {
                draw if draw < changes / 2.0 + loss => (1.0, 0.0),
                draw if draw < changes + loss => (0.0, 1.0),
                // of what does not change, it is of no matter which is right
                _ => (1.0, 1.0),
            };
            Item {
                document: place.document,
                line: index + 1,
                name: None,
                cluster: Some(place.cluster.to_string()),
                baseline,
                candidate,
                weight: 1.0,
            }
        };
        let items = shape.items.iter().enumerate().map(item).collect();
        first += shape.items.len();
        pairs.push(Pair {
            suite: "simulated".into(),
            task: shape.name.clone(),
            figure: Figure::Mean { metric: "acc".into(), higher_is_better: true },
            role: shape.role,
            margin: Some(shape.margin),
            is_identical: false,
            // documents and clusters have numbers of their own in every data set
            data: String::new(),
            items,
        });
    }
    pairs
}

/// A candidate to simulate: what it is, and what each task loses.
struct Case {
    what: String,
    losses: Vec<f64>,
}

/// Returns an equal candidate, one that loses everywhere, and one per task that counts.
fn cases(shapes: &[Shape], flips: f64, policy: &Policy) -> Vec<Case> {
    let none = vec![0.0; shapes.len()];
    let counts = |shape: &Shape| shape.role != Role::ZeroTolerance;
    let points = |loss: f64| format!("{:.2} points", 100.0 * loss);
    let mut cases = vec![Case { what: "equal".into(), losses: none.clone() }];
    let everywhere = 2.0 * pool(shapes, policy).detectable(flips, policy);
    cases.push(Case {
        what: format!("loses {} everywhere", points(everywhere)),
        losses: shapes.iter().map(|shape| if counts(shape) { everywhere } else { 0.0 }).collect(),
    });
    for (index, shape) in shapes.iter().enumerate().filter(|(_, shape)| counts(shape)) {
        let loss = 2.0 * shape.detectable(flips, policy);
        let mut losses = none.clone();
        losses[index] = loss;
        let role = if shape.role == Role::Critical { "" } else { " (not critical)" };
        cases.push(Case { what: format!("loses {} in {}{role}", points(loss), shape.name), losses });
    }
    cases
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let policy = args.policy.as_deref().map(Policy::open).transpose()?.unwrap_or_default();
    let suites = if args.suite.is_empty() { deciding() } else { args.suite };
    let shapes = shapes(&suites, &policy)?;
    println!("| task | items | clusters | role | margin, points |\n|---|---:|---:|---|---:|");
    for shape in shapes.iter().chain([&pool(&shapes, &policy)]) {
        let (role, margin) = match shape.role {
            Role::ZeroTolerance => ("zero tolerance", String::new()),
            Role::Critical => ("critical", format!("{}", 100.0 * shape.margin)),
            _ => ("", format!("{}", 100.0 * shape.margin)),
        };
        let (items, clusters) = (shape.items.len(), shape.n_clusters());
        println!("| {} | {items} | {clusters} | {role} | {margin} |", shape.name);
    }
    println!("\n{} gates each, {} % flips; PASS / FAIL in percent\n", args.gates, 100.0 * args.flips);
    println!("| candidate | {} |", CORRELATIONS.map(|of| format!("correlation {of}")).join(" | "));
    println!("|---|{}", "---:|".repeat(CORRELATIONS.len()));
    for case in cases(&shapes, args.flips, &policy) {
        let cells = CORRELATIONS.map(|correlation| {
            let world = World { flips: args.flips, correlation, between: args.between };
            let found = rates(&shapes, &case.losses, world, &policy, args.gates, args.seed);
            format!("{:.1} / {:.1}", 100.0 * found.pass, 100.0 * found.fail)
        });
        println!("| {} | {} |", case.what, cells.join(" | "));
    }
    Ok(())
}

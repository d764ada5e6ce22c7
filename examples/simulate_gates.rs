//! How often `lctl gate` is right: simulated candidates whose truth is known, over suites of realistic sizes and clusters.
//!
//!     cargo run --release --example simulate_gates -- [--gates 2000] [--seed 1] [--flips 0.05] [--suite FILE]... [--policy FILE]
//!
//! Sizes, clusters and roles are of a built-in table, or of suites whose data lies beside them. A pair of answers changes
//! as one in `flips` do, equally often to right and to wrong, plus a true loss. Changes within a cluster correlate: an
//! item has its cluster's draw with probability sqrt(correlation), its own otherwise.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;

use clap::Parser;
use lctl::eval::data;
use lctl::eval::gate::{Figure, Item, Outcome, Pair, Policy, Role, judge};
use lctl::eval::stats::power::design_effect;
use lctl::eval::suite::Suite;
use lctl::kernel::philox::{Philox, Purpose};
use rayon::prelude::*;

#[derive(Parser)]
pub struct Args {
    /// Gates per scenario.
    #[arg(long, default_value_t = 2000)]
    gates: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Share of answers that change between equal models.
    #[arg(long, default_value_t = 0.05)]
    flips: f64,
    /// Take sizes, clusters and roles of this suite's tasks; its data must lie where it says.
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
    /// Of each cluster.
    pub sizes: Vec<usize>,
}

impl Shape {
    /// `items` in clusters of `size`, the last one smaller if they do not go up.
    pub fn even(name: &str, role: Role, margin: f64, items: usize, size: usize) -> Shape {
        let mut sizes = vec![size; items / size];
        sizes.extend(Some(items % size).filter(|rest| *rest > 0));
        Shape { name: name.to_owned(), role, margin, sizes }
    }

    fn items(&self) -> usize {
        self.sizes.iter().sum()
    }

    /// Returns the smallest loss that the shape shows with the policy's power.
    pub fn detectable(&self, world: &World, policy: &Policy) -> f64 {
        let effect = design_effect(self.sizes.iter().copied(), world.correlation);
        Policy { flips: world.flips, ..policy.clone() }.assumptions(effect).detectable(self.items() as f64)
    }
}

/// Four large tasks, twelve small ones, two of zero tolerance.
pub fn table() -> Vec<Shape> {
    let mut shapes = vec![
        Shape::even("questions", Role::Critical, 0.03, 1000, 4),
        Shape::even("techniques", Role::Critical, 0.03, 800, 4),
        Shape::even("weaknesses", Role::Critical, 0.03, 800, 4),
        Shape::even("logs", Role::Critical, 0.03, 800, 5),
        Shape::even("injections", Role::ZeroTolerance, 0.02, 200, 4),
        Shape::even("secrets", Role::ZeroTolerance, 0.02, 100, 1),
    ];
    shapes.extend((1..=12).map(|n| Shape::even(&format!("small-{n}"), Role::Gating, 0.02, 150, 3)));
    shapes
}

/// What is true.
#[derive(Clone, Copy)]
pub struct World {
    pub flips: f64,
    pub correlation: f64,
}

/// How often a gate said what.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    pub pass: f64,
    pub fail: f64,
    pub inconclusive: f64,
}

/// Returns what `n` gates say where each task truly loses `losses[i]`. Tasks of zero tolerance do not change: a model
/// whose canaries flip by chance has none.
pub fn rates(shapes: &[Shape], losses: &[f64], world: World, policy: &Policy, n: usize, seed: u64) -> Rates {
    let outcomes: Vec<Outcome> = (0..n as u32)
        .into_par_iter()
        .map(|gate| judge(&candidate(shapes, losses, world, gate, seed), policy).outcome)
        .collect();
    let share = |wanted| outcomes.iter().filter(|outcome| **outcome == wanted).count() as f64 / n as f64;
    Rates {
        pass: share(Outcome::Pass),
        fail: share(Outcome::Fail),
        inconclusive: share(Outcome::Inconclusive),
    }
}

fn candidate(shapes: &[Shape], losses: &[f64], world: World, gate: u32, seed: u64) -> Vec<Pair> {
    let stream = Philox::new(seed, Purpose::Shuffle);
    let mut counter = 0;
    let mut uniform = || {
        counter += 1;
        stream.uniform_f64(gate, counter)
    };
    let mut pairs = Vec::with_capacity(shapes.len());
    for (shape, loss) in shapes.iter().zip(losses) {
        let changes = if shape.role == Role::ZeroTolerance { 0.0 } else { world.flips };
        let mut items = Vec::with_capacity(shape.items());
        for (cluster, size) in shape.sizes.iter().enumerate() {
            let common = uniform();
            for _ in 0..*size {
                let own = uniform();
                let draw = if uniform() < world.correlation.sqrt() { common } else { own };
                let (baseline, candidate) = match draw {
                    draw if draw < changes / 2.0 + loss => (1.0, 0.0),
                    draw if draw < changes + loss => (0.0, 1.0),
                    // of what does not change, it is of no matter which is right
                    _ => (1.0, 1.0),
                };
                items.push(Item {
                    document: items.len(),
                    line: items.len() + 1,
                    name: None,
                    cluster: (shape.items() > shape.sizes.len()).then(|| cluster.to_string()),
                    baseline,
                    candidate,
                    weight: 1.0,
                });
            }
        }
        pairs.push(Pair {
            suite: "simulated".into(),
            task: shape.name.clone(),
            figure: Figure::Mean { metric: "acc".into(), higher_is_better: true },
            role: shape.role,
            margin: Some(shape.margin),
            is_identical: false,
            data: shape.name.clone(),
            items,
        });
    }
    pairs
}

/// Returns the tasks' shapes of a suite whose data lies where it says.
fn shapes_of(path: &std::path::Path, policy: &Policy) -> Result<Vec<Shape>, Box<dyn Error>> {
    let suite = Suite::open(path)?;
    let mut shapes = Vec::new();
    for task in &suite.tasks {
        let spec = &suite.data[&task.data];
        let file = spec.file(suite.directory()).ok_or_else(|| format!("{}: no path", task.data))?;
        let set = data::read(&file, spec.format, &spec.options)?;
        let documents = set.documents.iter().take(task.limit.unwrap_or(usize::MAX));
        let mut sizes: BTreeMap<String, usize> = BTreeMap::new();
        for document in documents {
            let own = || Ok(format!("document {}", document.index));
            let cluster =
                task.cluster.as_ref().map_or_else(own, |cluster| cluster.render(&document.fields))?;
            *sizes.entry(cluster).or_default() += 1;
        }
        let role = match (task.gate.zero_tolerance, task.gate.critical) {
            (true, _) => Role::ZeroTolerance,
            (_, true) => Role::Critical,
            _ => Role::Gating,
        };
        shapes.push(Shape {
            name: format!("{}/{}", suite.name, task.id),
            role,
            margin: task.gate.margin.unwrap_or(policy.margin),
            sizes: sizes.into_values().collect(),
        });
    }
    Ok(shapes)
}

/// Returns the shape of all tasks that a pool has.
pub fn pool(shapes: &[Shape], policy: &Policy) -> Shape {
    let pooled = shapes.iter().filter(|shape| shape.role != Role::ZeroTolerance);
    let sizes = pooled.flat_map(|shape| shape.sizes.clone()).collect();
    Shape { name: "pool".into(), role: Role::Critical, margin: policy.margin, sizes }
}

fn show(what: &str, rates: Rates) {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let (pass, fail, inconclusive) = (percent(rates.pass), percent(rates.fail), percent(rates.inconclusive));
    println!("| {what} | {pass} | {fail} | {inconclusive} |");
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let policy = args.policy.as_deref().map(Policy::open).transpose()?.unwrap_or_default();
    let mut shapes = Vec::new();
    for path in &args.suite {
        shapes.extend(shapes_of(path, &policy)?);
    }
    if shapes.is_empty() {
        shapes = table();
    }
    for shape in &shapes {
        let (items, clusters) = (shape.items(), shape.sizes.len());
        println!(
            "{}: {items} items, {clusters} clusters, {:?}, margin {}",
            shape.name, shape.role, shape.margin
        );
    }
    println!("\n{} gates each, {} % flips\n", args.gates, 100.0 * args.flips);
    println!("| candidate | PASS | FAIL | INCONCLUSIVE |\n|---|---:|---:|---:|");
    let run = |losses: &[f64], world| rates(&shapes, losses, world, &policy, args.gates, args.seed);
    let none = vec![0.0; shapes.len()];
    for correlation in [0.0, 0.1, 0.3] {
        let world = World { flips: args.flips, correlation };
        show(&format!("equal, correlation {correlation}"), run(&none, world));
    }
    let world = World { flips: args.flips, correlation: 0.1 };
    let everywhere = 2.0 * pool(&shapes, &policy).detectable(&world, &policy);
    let of = |shape: &Shape, loss| if shape.role == Role::ZeroTolerance { 0.0 } else { loss };
    let losses: Vec<f64> = shapes.iter().map(|shape| of(shape, everywhere)).collect();
    show(
        &format!("loses {:.2} points everywhere (twice the pool's detectable)", 100.0 * everywhere),
        run(&losses, world),
    );
    for (index, shape) in shapes.iter().enumerate().filter(|(_, shape)| shape.role != Role::ZeroTolerance) {
        let mut losses = none.clone();
        losses[index] = 2.0 * shape.detectable(&world, &policy);
        let role = if shape.role == Role::Critical { "critical" } else { "not critical" };
        let what = format!("loses {:.2} points in {} ({role})", 100.0 * losses[index], shape.name);
        show(&what, run(&losses, world));
        if shape.role != Role::Critical && args.suite.is_empty() {
            // the other small ones are the same
            break;
        }
    }
    Ok(())
}

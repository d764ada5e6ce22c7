//! Sizes: what a suite of a given size can see, and how many items a margin takes.

use indexmap::IndexMap;
use serde::Serialize;

use super::pair::{Figure, Role, figure};
use super::policy::Policy;
use super::read::{Run, TaskRun};
use crate::eval::stats::power::design_effect;

/// What tasks of some sizes can see.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    pub tasks: Vec<PlannedTask>,
    /// Of all tasks of no zero tolerance together, at the policy's margin; `None` of fewer than two.
    pub pool: Option<PlannedTask>,
    /// How likely an equal model passes: the pool and all critical tasks within their margins, as if they were
    /// independent (they are not quite: the truth is a little higher).
    pub equal_model_passes: f64,
}

/// What a task of some size can see.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedTask {
    pub task: String,
    pub role: Role,
    pub items: usize,
    pub clusters: usize,
    pub margin: f64,
    pub design_effect: f64,
    /// The smallest loss seen with the policy's power.
    pub detectable: f64,
    /// How likely an equal model is shown to be within the margin.
    pub power: f64,
    /// Items that give that the policy's power.
    pub required: f64,
}

impl Plan {
    /// Returns the plan of a run's tasks, with their clusters and keys. Tasks whose figure is not from 0 to 1 have no share
    /// of items that change, so they are left out.
    pub fn of_run(run: &Run, policy: &Policy) -> Plan {
        let task = |task: &TaskRun| {
            let said = policy.of(&task.suite, &task.facts.id);
            let keys = task.facts.gate;
            let role = match (said.gating, said.zero_tolerance.unwrap_or(keys.zero_tolerance)) {
                (Some(false), _) => Role::Reported,
                (_, true) => Role::ZeroTolerance,
                _ if said.critical.unwrap_or(keys.critical) => Role::Critical,
                _ => Role::Gating,
            };
            let margin = said.margin.or(keys.margin).unwrap_or(policy.margin);
            Shape { task: task.name(), role, margin, clusters: cluster_sizes(task) }
        };
        Plan::new(run.tasks.iter().filter(|task| is_right_or_wrong(task, policy)).map(task).collect(), policy)
    }

    /// Returns the plan of tasks of `sizes` items in clusters of `cluster_size`.
    pub fn of_sizes(sizes: &[usize], cluster_size: usize, policy: &Policy) -> Plan {
        let task = |(index, items): (usize, &usize)| {
            let mut clusters = vec![cluster_size; items / cluster_size];
            clusters.extend(Some(items % cluster_size).filter(|rest| *rest > 0));
            let named = |(number, size): (usize, usize)| ((index.to_string(), number.to_string()), size);
            Shape {
                task: format!("{items} items"),
                role: Role::Gating,
                margin: policy.margin,
                clusters: clusters.into_iter().enumerate().map(named).collect(),
            }
        };
        Plan::new(sizes.iter().enumerate().map(task).collect(), policy)
    }

    fn new(tasks: Vec<Shape>, policy: &Policy) -> Plan {
        let pooled: Vec<&Shape> =
            tasks.iter().filter(|task| matches!(task.role, Role::Gating | Role::Critical)).collect();
        let mut clusters = Clusters::new();
        for (name, size) in pooled.iter().flat_map(|task| &task.clusters) {
            *clusters.entry(name.clone()).or_default() += size;
        }
        let pool = Shape { task: "pool".to_owned(), role: Role::Critical, margin: policy.margin, clusters };
        let pool = (pooled.len() > 1).then(|| planned(&pool, policy));
        let only = (pooled.len() == 1).then(|| pooled[0].task.clone());
        let tasks: Vec<PlannedTask> = tasks.iter().map(|task| planned(task, policy)).collect();
        let decides = |task: &&PlannedTask| task.role == Role::Critical || Some(&task.task) == only.as_ref();
        let equal_model_passes = pool.iter().chain(&tasks).filter(decides).map(|task| task.power).product();
        Plan { tasks, pool, equal_model_passes }
    }
}

/// Items of each cluster, by data set and name: tasks over one data set share clusters.
type Clusters = IndexMap<(String, String), usize>;

/// A task as far as a plan needs it.
struct Shape {
    task: String,
    role: Role,
    margin: f64,
    clusters: Clusters,
}

fn planned(shape: &Shape, policy: &Policy) -> PlannedTask {
    let sizes = || shape.clusters.values().copied();
    let items: usize = sizes().sum();
    let assumptions = policy.assumptions(design_effect(sizes(), policy.correlation));
    PlannedTask {
        task: shape.task.clone(),
        role: shape.role,
        items,
        clusters: shape.clusters.len(),
        margin: shape.margin,
        design_effect: assumptions.design_effect,
        detectable: assumptions.detectable(items as f64),
        power: assumptions.power_at(items as f64, shape.margin),
        required: assumptions.required(shape.margin),
    }
}

fn is_right_or_wrong(task: &TaskRun, policy: &Policy) -> bool {
    let wanted = policy.of(&task.suite, &task.facts.id).metric;
    match figure(task, wanted.as_deref()) {
        Ok(Some(Figure::Mean { metric, .. })) => task
            .samples
            .iter()
            .all(|sample| sample.scores.get(&metric).is_some_and(|score| (0.0..=1.0).contains(score))),
        _ => false,
    }
}

fn cluster_sizes(task: &TaskRun) -> Clusters {
    let mut sizes = Clusters::new();
    for sample in &task.samples {
        // a document without a cluster is one of its own
        let name = sample.cluster.clone().unwrap_or_else(|| format!("document {}", sample.document));
        *sizes.entry((task.facts.data.sha256.clone(), name)).or_default() += 1;
    }
    sizes
}

//! Sizes: what a suite of a given size can see, and how many items a margin takes.

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
            (task.name(), role, margin, cluster_sizes(task))
        };
        Plan::new(run.tasks.iter().filter(|task| is_right_or_wrong(task, policy)).map(task).collect(), policy)
    }

    /// Returns the plan of tasks of `sizes` items in clusters of `cluster_size`.
    pub fn of_sizes(sizes: &[usize], cluster_size: usize, policy: &Policy) -> Plan {
        let task = |items: &usize| {
            let mut clusters = vec![cluster_size; items / cluster_size];
            clusters.extend(Some(items % cluster_size).filter(|rest| *rest > 0));
            (format!("{items} items"), Role::Gating, policy.margin, clusters)
        };
        Plan::new(sizes.iter().map(task).collect(), policy)
    }

    fn new(tasks: Vec<(String, Role, f64, Vec<usize>)>, policy: &Policy) -> Plan {
        let pooled: Vec<_> =
            tasks.iter().filter(|task| matches!(task.1, Role::Gating | Role::Critical)).collect();
        let sizes: Vec<usize> = pooled.iter().flat_map(|task| task.3.clone()).collect();
        let pool = (pooled.len() > 1)
            .then(|| planned("pool".to_owned(), Role::Critical, policy.margin, &sizes, policy));
        let only = (pooled.len() == 1).then(|| pooled[0].0.clone());
        let tasks: Vec<PlannedTask> =
            tasks.iter().map(|task| planned(task.0.clone(), task.1, task.2, &task.3, policy)).collect();
        let decides = |task: &&PlannedTask| task.role == Role::Critical || Some(&task.task) == only.as_ref();
        let equal_model_passes = pool.iter().chain(&tasks).filter(decides).map(|task| task.power).product();
        Plan { tasks, pool, equal_model_passes }
    }
}

fn planned(task: String, role: Role, margin: f64, clusters: &[usize], policy: &Policy) -> PlannedTask {
    let items: usize = clusters.iter().sum();
    let assumptions = policy.assumptions(design_effect(clusters.iter().copied(), policy.correlation));
    PlannedTask {
        task,
        role,
        items,
        clusters: clusters.len(),
        margin,
        design_effect: assumptions.design_effect,
        detectable: assumptions.detectable(items as f64),
        power: assumptions.power_at(items as f64, margin),
        required: assumptions.required(margin),
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

fn cluster_sizes(task: &TaskRun) -> Vec<usize> {
    let mut sizes: indexmap::IndexMap<&str, usize> = indexmap::IndexMap::new();
    let mut single = Vec::new();
    for sample in &task.samples {
        match &sample.cluster {
            Some(cluster) => *sizes.entry(cluster).or_default() += 1,
            None => single.push(1),
        }
    }
    sizes.into_values().chain(single).collect()
}

//! From measurements to a decision.
//!
//! A task, or the pool, of margin m and one-sided lower bound L of its difference is
//! - within its margin if L > -m, or if its samples are equal to the last bit;
//! - worse if it is not within its margin, the changes there were reach -m by their own lower bound (L without what is
//!   allowed for changes not seen), and its one-sided p-value, Holm-adjusted over all tasks that can fail and the pool, is at
//!   most alpha.
//!
//! FAIL if anything is worse, or a task of zero tolerance lost an item. Otherwise PASS if the pool and every critical
//! task are within their margins; that several conditions must hold at once needs no correction. Otherwise
//! INCONCLUSIVE.

use serde::Serialize;

use super::measure::{FEWEST_CLUSTERS, Measured, measure};
use super::pair::{Pair, Role};
use super::policy::Policy;
use super::verdict::Outcome;
use crate::eval::stats::holm;

/// A decision over tasks.
#[derive(Clone, Debug, Serialize)]
pub struct Judgement {
    pub outcome: Outcome,
    /// Why, a sentence each.
    pub reasons: Vec<String>,
    /// `None` if no task can be pooled.
    pub pool: Option<Judged>,
    pub tasks: Vec<Judged>,
}

/// A task, or the pool, measured and decided.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    pub task: String,
    pub metric: String,
    pub role: Role,
    pub margin: Option<f64>,
    pub status: Status,
    pub measured: Measured,
    /// Holm's, of what can fail.
    pub p_adjusted: Option<f64>,
    /// Items that a plan with the policy's assumptions takes for the margin.
    pub planned_items: Option<f64>,
    /// Of what is undecided: the items that would decide.
    pub deciding_items: Option<f64>,
    /// Items on which the candidate is worse and better.
    pub lost: Vec<String>,
    pub gained: Vec<String>,
}

/// What was found out about a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Equal samples.
    Identical,
    WithinMargin,
    Worse,
    Undecided,
    /// Undecided, and no wonder: a plan takes more items for this margin.
    TooSmall,
    /// Of zero tolerance: no item lost.
    NoneLost,
    /// Of zero tolerance: an item lost.
    NewFailures,
    /// Shown, decides nothing.
    Reported,
}

impl Status {
    /// Returns it in words.
    pub fn name(self) -> &'static str {
        match self {
            Status::Identical => "identical",
            Status::WithinMargin => "within margin",
            Status::Worse => "WORSE",
            Status::Undecided => "undecided",
            Status::TooSmall => "too small",
            Status::NoneLost => "none lost",
            Status::NewFailures => "NEW FAILURES",
            Status::Reported => "reported",
        }
    }
}

/// Returns the decision over tasks that compare.
pub fn judge(pairs: &[Pair], policy: &Policy) -> Judgement {
    let pooled: Vec<&Pair> = pairs.iter().filter(|pair| is_pooled(pair)).collect();
    let of_task = |pair: &Pair| {
        // a pool of one task is that task
        let is_pool = pooled.len() == 1 && is_pooled(pair);
        let role = if is_pool { Role::Critical } else { pair.role };
        judged(&[pair], pair.name(), pair.figure.name(), role, pair.margin, policy)
    };
    let mut tasks: Vec<Judged> = pairs.iter().map(of_task).collect();
    let mut pool = (pooled.len() > 1)
        .then(|| judged(&pooled, "pool".to_owned(), "all", Role::Critical, Some(policy.margin), policy));
    adjust(tasks.iter_mut().chain(pool.as_mut()), policy);
    let everything_equal = !pairs.is_empty() && pairs.iter().all(|pair| pair.is_identical);
    let (outcome, reasons) = decide(&tasks, pool.as_ref(), everything_equal, policy);
    Judgement { outcome, reasons, pool, tasks }
}

fn is_pooled(pair: &Pair) -> bool {
    matches!(pair.role, Role::Gating | Role::Critical) && pair.is_bounded()
}

/// Measures a task or the pool; its status is preliminary where that takes the other tests.
fn judged(
    pairs: &[&Pair],
    task: String,
    metric: &str,
    role: Role,
    margin: Option<f64>,
    policy: &Policy,
) -> Judged {
    let measured = measure(pairs, policy);
    let is_identical = pairs.iter().all(|pair| pair.is_identical);
    let is_within = margin.is_some_and(|margin| measured.lower > -margin);
    let status = match role {
        Role::Reported => Status::Reported,
        _ if is_identical => Status::Identical,
        Role::ZeroTolerance if measured.lost > 0 => Status::NewFailures,
        Role::ZeroTolerance => Status::NoneLost,
        _ if is_within => Status::WithinMargin,
        _ => Status::Undecided,
    };
    let labels = |wanted: fn(f64) -> bool| {
        let of_pair = |pair: &&Pair| {
            let changed = pair.items.iter().filter(|item| wanted(pair.delta(item)));
            changed.map(|item| item.label()).collect::<Vec<_>>()
        };
        // a pool's are its tasks'
        if pairs.len() > 1 { Vec::new() } else { pairs.iter().flat_map(of_pair).collect() }
    };
    Judged {
        task,
        metric: metric.to_owned(),
        role,
        margin,
        status,
        p_adjusted: None,
        planned_items: margin
            .filter(|_| measured.is_bounded)
            .map(|margin| policy.assumptions(measured.planned_design_effect).required(margin)),
        deciding_items: None,
        lost: labels(|delta| delta < 0.0),
        gained: labels(|delta| delta > 0.0),
        measured,
    }
}

/// Adjusts the p-values of what can fail, and says what each undecided one is.
fn adjust<'a>(all: impl Iterator<Item = &'a mut Judged>, policy: &Policy) {
    let mut tested: Vec<&mut Judged> =
        all.filter(|judged| matches!(judged.role, Role::Gating | Role::Critical)).collect();
    let adjusted = holm(&tested.iter().map(|judged| judged.measured.p.worse).collect::<Vec<_>>());
    for (judged, adjusted) in tested.iter_mut().zip(adjusted) {
        judged.p_adjusted = Some(adjusted);
        if judged.status != Status::Undecided {
            continue;
        }
        let items = judged.measured.items as f64;
        // what makes a pass harder for fear of changes not seen is no evidence of a loss
        let is_loss = judged.margin.is_none_or(|margin| judged.measured.lower_of_changes <= -margin);
        judged.status = match judged.planned_items {
            _ if is_loss && adjusted <= policy.alpha => Status::Worse,
            Some(planned) if items < planned => Status::TooSmall,
            _ => Status::Undecided,
        };
        if judged.status != Status::Worse {
            judged.deciding_items =
                judged.margin.map(|margin| judged.measured.deciding_items(margin, policy));
        }
    }
}

fn decide(
    tasks: &[Judged],
    pool: Option<&Judged>,
    everything_equal: bool,
    policy: &Policy,
) -> (Outcome, Vec<String>) {
    if everything_equal {
        return (Outcome::Pass, vec!["all samples are equal to the last bit".to_owned()]);
    }
    let all = || pool.into_iter().chain(tasks);
    let failed: Vec<String> = all().filter_map(why_failed).collect();
    if !failed.is_empty() {
        return (Outcome::Fail, failed);
    }
    let needed = || all().filter(|judged| judged.role == Role::Critical);
    let undecided: Vec<String> = needed().filter_map(|judged| why_undecided(judged, policy)).collect();
    let n_zero_tolerance = tasks.iter().filter(|judged| judged.role == Role::ZeroTolerance).count();
    if !undecided.is_empty() {
        return (Outcome::Inconclusive, undecided);
    }
    let mut reasons: Vec<String> = needed().map(why_passed).collect();
    if n_zero_tolerance > 0 {
        reasons.push(format!("no item lost in {n_zero_tolerance} tasks of zero tolerance"));
    }
    match reasons.is_empty() {
        true => (Outcome::Inconclusive, vec!["there is nothing to decide on".to_owned()]),
        false => (Outcome::Pass, reasons),
    }
}

fn why_failed(judged: &Judged) -> Option<String> {
    let found = &judged.measured;
    let name = &judged.task;
    match judged.status {
        Status::NewFailures => Some(format!("{name}: {} lost, where none may be", items(found.lost))),
        Status::Worse => Some(format!(
            "{name}: worse by {}, down to {}, more than the margin of {}; p = {} after Holm",
            show(-found.difference, found),
            show(found.lower_of_changes, found),
            show(judged.margin.unwrap_or(0.0), found),
            p_value(judged.p_adjusted.unwrap_or(1.0)),
        )),
        _ => None,
    }
}

fn why_undecided(judged: &Judged, policy: &Policy) -> Option<String> {
    if !matches!(judged.status, Status::Undecided | Status::TooSmall) {
        return None;
    }
    let found = &judged.measured;
    let margin = judged.margin.unwrap_or(policy.margin);
    if found.lower.is_infinite() {
        return Some(format!(
            "{}: {} with {} in {} clusters: below {FEWEST_CLUSTERS} of them nothing tells how much less it may be, so that it is \
             neither within the margin of {} nor shown to be worse; at least {} would decide",
            judged.task,
            show_signed(found.difference, found),
            items(found.items),
            found.clusters,
            show(margin, found),
            items(found.deciding_items(margin, policy) as usize),
        ));
    }
    Some(format!(
        "{}: {} with {}, which may be {}: neither within the margin of {} nor shown to be worse; {} would decide",
        judged.task,
        show_signed(found.difference, found),
        items(found.items),
        show(found.lower, found),
        show(margin, found),
        items(found.deciding_items(margin, policy) as usize),
    ))
}

fn why_passed(judged: &Judged) -> String {
    let found = &judged.measured;
    if judged.status == Status::Identical {
        return format!("{}: samples are equal to the last bit", judged.task);
    }
    let lower = show_signed(found.lower, found);
    let margin = show(judged.margin.unwrap_or(0.0), found);
    let unseen = match found.largest_change {
        None if found.lost + found.gained == 0 => ", with nothing allowed for changes that were not seen",
        _ => "",
    };
    format!("{}: at worst {lower}, within the margin of {margin}{unseen}", judged.task)
}

/// Returns a number of items in words.
pub fn items(n: usize) -> String {
    if n == 1 { "1 item".to_owned() } else { format!("{n} items") }
}

/// Returns a value of a measurement's unit: points if results are from 0 to 1.
pub fn show(value: f64, measured: &Measured) -> String {
    if measured.is_bounded { format!("{:.2} points", 100.0 * value) } else { format!("{value:.4}") }
}

fn show_signed(value: f64, measured: &Measured) -> String {
    if measured.is_bounded { format!("{:+.2} points", 100.0 * value) } else { format!("{value:+.4}") }
}

/// Returns a p-value for people.
pub fn p_value(p: f64) -> String {
    if p < 1e-4 { format!("{p:.0e}") } else { format!("{p:.4}") }
}

#[cfg(test)]
mod tests;

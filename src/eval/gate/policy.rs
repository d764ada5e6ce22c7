//! What a gate demands: recipes/gate.yaml, with every key at its default.

use std::path::Path;

use indexmap::IndexMap;
use sha2::{Digest as _, Sha256};

use crate::eval::data::hex;
use crate::eval::stats::Draws;
use crate::eval::stats::power::Assumptions;
use crate::yaml::{self, Fields, Node};

/// The version of policy files that this program reads.
const VERSION: u64 = 1;

/// What a gate demands.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Of every one-sided test, after Holm's correction, and of every bound.
    pub alpha: f64,
    /// How much worse is no worse, of tasks and pool, where neither suite nor policy says otherwise.
    pub margin: f64,
    /// Whether an undecided comparison lets the candidate pass.
    pub allow_inconclusive: bool,
    /// What sizes are planned by: the power wanted,
    pub power: f64,
    /// the share of items that change between equal models,
    pub flips: f64,
    /// and the correlation of changes within a cluster.
    pub correlation: f64,
    /// Of bootstraps and sign flips.
    pub draws: Draws,
    /// By suite/task, or suite/* for all tasks of a suite.
    pub tasks: IndexMap<String, TaskPolicy>,
    /// Of the file's bytes, lower-case hex; `None` if there is no file.
    pub sha256: Option<String>,
}

/// What a policy says about a task; what it leaves out is as the suite says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskPolicy {
    pub critical: Option<bool>,
    pub margin: Option<f64>,
    pub zero_tolerance: Option<bool>,
    /// False: the task is shown and decides nothing.
    pub gating: Option<bool>,
    /// The figure compared, instead of the task's first.
    pub metric: Option<String>,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            alpha: 0.05,
            margin: 0.02,
            allow_inconclusive: false,
            power: 0.8,
            flips: 0.05,
            correlation: 0.1,
            draws: Draws { n: 10_000, seed: 0 },
            tasks: IndexMap::new(),
            sha256: None,
        }
    }
}

impl Policy {
    /// Reads a policy. Errors with everything that is wrong with it.
    pub fn open(path: &Path) -> Result<Policy, yaml::Error> {
        let document = yaml::Document::open(path)?;
        document.expect(yaml::FileKind::Policy)?;
        Self::read(&document)
    }

    pub(super) fn read(document: &yaml::Document) -> Result<Policy, yaml::Error> {
        let fields = document.fields();
        let version = fields.required("version");
        let found = version.count();
        if version.is_number() && found != VERSION {
            version.note(format!("this program reads policies of version {VERSION}, not {found}"));
        }
        let default = Policy::default();
        let mut draws = default.draws;
        if let Some(node) = fields.optional("draws") {
            draws.n = node.count() as usize;
            if node.is_number() && !(10_000..=10_000_000).contains(&draws.n) {
                node.note(format!("`draws` must be from 10000 to 10000000, not {}", draws.n));
            }
        }
        draws.seed = fields.optional("seed").map_or(draws.seed, |node| node.count());
        let policy = Policy {
            alpha: share(&fields, "alpha", default.alpha, 0.5),
            margin: share(&fields, "margin", default.margin, 1.0),
            allow_inconclusive: fields
                .optional("inconclusive")
                .is_some_and(|node| node.one_of(&[("block", false), ("allow", true)])),
            power: share(&fields, "power", default.power, 1.0),
            flips: share(&fields, "flips", default.flips, 1.0),
            correlation: fields.optional("correlation").map_or(default.correlation, |node| {
                let correlation = node.number();
                if !(0.0..=1.0).contains(&correlation) {
                    node.note(format!("`correlation` must be from 0 to 1, not {correlation}"));
                }
                correlation
            }),
            draws,
            tasks: fields.optional("tasks").map(|node| tasks(&node)).unwrap_or_default(),
            sha256: Some(hex(&Sha256::digest(document.text()))),
        };
        drop(fields);
        document.check()?;
        Ok(policy)
    }

    /// Returns what the policy says about a task: its own entry, and where that is silent its suite's.
    pub fn of(&self, suite: &str, task: &str) -> TaskPolicy {
        let own = self.tasks.get(&format!("{suite}/{task}")).cloned().unwrap_or_default();
        let suites = self.tasks.get(&format!("{suite}/*")).cloned().unwrap_or_default();
        TaskPolicy {
            critical: own.critical.or(suites.critical),
            margin: own.margin.or(suites.margin),
            zero_tolerance: own.zero_tolerance.or(suites.zero_tolerance),
            gating: own.gating.or(suites.gating),
            metric: own.metric.or(suites.metric),
        }
    }

    /// Returns what sizes are planned by.
    pub fn assumptions(&self, design_effect: f64) -> Assumptions {
        Assumptions { flips: self.flips, design_effect, alpha: self.alpha, power: self.power }
    }
}

/// Reads a number between 0 and `end`, neither included.
fn share(fields: &Fields, key: &'static str, default: f64, end: f64) -> f64 {
    fields.optional(key).map_or(default, |node| {
        let found = node.number();
        if node.is_number() && !(found > 0.0 && found < end) {
            node.note(format!("`{key}` must be between 0 and {end}, not {found}"));
        }
        found
    })
}

fn tasks(node: &Node) -> IndexMap<String, TaskPolicy> {
    let entries = node.entries();
    let mut tasks = IndexMap::new();
    for (name, node) in &entries {
        if name.matches('/').count() != 1 {
            node.note(format!("`{name}` is not SUITE/TASK, nor SUITE/* for all tasks of a suite"));
        }
        let fields = node.fields();
        let flag = |key| fields.optional(key).map(|node| node.flag());
        let policy = TaskPolicy {
            critical: flag("critical"),
            margin: fields.optional("margin").map(|node| {
                let margin = node.number();
                if node.is_number() && margin <= 0.0 {
                    node.note(format!("`margin` must be above 0, not {margin}"));
                }
                margin
            }),
            zero_tolerance: flag("zero_tolerance"),
            gating: flag("gating"),
            metric: fields.optional("metric").map(|node| node.text()),
        };
        if policy.gating == Some(false) {
            let decides = [("critical", policy.critical), ("zero_tolerance", policy.zero_tolerance)];
            for (key, _) in decides.into_iter().filter(|(_, is_wanted)| *is_wanted == Some(true)) {
                node.part(key)
                    .note(format!("`{key}` means nothing with `gating: false`, which decides nothing"));
            }
        }
        tasks.insert(name.clone(), policy);
    }
    for (name, node) in &entries {
        check_suites_gating(node, name, &tasks);
    }
    tasks
}

/// Notes what an entry demands of a task whose suite's entry takes every decision from it.
fn check_suites_gating(node: &Node, name: &str, tasks: &IndexMap<String, TaskPolicy>) {
    let Some(own) = tasks.get(name) else { return };
    let suite = format!("{}/*", name.split('/').next().unwrap_or_default());
    let is_out = tasks.get(&suite).is_some_and(|suite| suite.gating == Some(false));
    if own.gating.is_some() || !is_out {
        return;
    }
    for (key, is_wanted) in [("critical", own.critical), ("zero_tolerance", own.zero_tolerance)] {
        if is_wanted == Some(true) {
            node.part(key).note(format!(
                "`{key}` means nothing here: `{suite}` says `gating: false`; with `gating: true` beside it this task decides"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Policy, String> {
        let document = yaml::Document::parse(Path::new("gate.yaml"), text.to_owned()).unwrap();
        Policy::read(&document).map_err(|error| error.to_string())
    }

    /// The recipe spells the defaults out; it must not drift away from them.
    #[test]
    fn the_recipe_is_the_default() {
        let path = crate::testing::root().join("recipes/gate.yaml");
        let recipe = Policy::open(&path).unwrap();
        assert_eq!(Policy { sha256: None, ..recipe }, Policy::default());
        assert_eq!(Policy { sha256: None, ..read("version: 1").unwrap() }, Policy::default());
    }

    #[test]
    fn a_tasks_own_entry_goes_before_its_suites() {
        let policy = read(
            "version: 1\ninconclusive: allow\ntasks:\n  s/*: {critical: true, margin: 0.1}\n  s/a: {margin: 0.3, metric: f1}",
        )
        .unwrap();
        assert!(policy.allow_inconclusive);
        let own = policy.of("s", "a");
        assert_eq!((own.critical, own.margin, own.metric.as_deref()), (Some(true), Some(0.3), Some("f1")));
        assert_eq!(policy.of("s", "b").margin, Some(0.1));
        assert_eq!(policy.of("t", "a"), TaskPolicy::default());
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let text = "version: 2\nalfa: 0.1\nalpha: 0.7\nmargin: 2%\ndraws: 10\ncorrelation: 2\ninconclusive: pass\n\
                    tasks:\n  a: {margin: 0}\n  s/t: {critical: 1, metrics: acc}\n  \
                    s/u: {critical: true, gating: false, zero_tolerance: false}\n";
        let expected = "gate.yaml:1:10: this program reads policies of version 1, not 2\n\
            gate.yaml:2:1: unknown key `alfa`\n\
            gate.yaml:3:8: `alpha` must be between 0 and 0.5, not 0.7\n\
            gate.yaml:4:9: `margin` must be a number, not text\n\
            gate.yaml:5:8: `draws` must be from 10000 to 10000000, not 10\n\
            gate.yaml:6:14: `correlation` must be from 0 to 1, not 2\n\
            gate.yaml:7:15: unknown `inconclusive` `pass`\n\
            gate.yaml:9:6: `a` is not SUITE/TASK, nor SUITE/* for all tasks of a suite\n\
            gate.yaml:9:15: `margin` must be above 0, not 0\n\
            gate.yaml:10:19: `critical` must be true or false, not 1\n\
            gate.yaml:10:22: unknown key `metrics`; did you mean `metric`?\n\
            gate.yaml:11:19: `critical` means nothing with `gating: false`, which decides nothing";
        assert_eq!(read(text).unwrap_err(), expected);
        assert!(read("version: 1\nalpha: .nan").unwrap_err().contains("must be a number"));
    }

    #[test]
    fn a_task_of_a_suite_that_decides_nothing_says_so_itself_if_it_decides() {
        let of = |own: &str| read(&format!("version: 1\ntasks:\n  s/a: {own}\n  s/*: {{gating: false}}"));
        for key in ["critical", "zero_tolerance"] {
            let expected = format!(
                "gate.yaml:3:{}: `{key}` means nothing here: `s/*` says `gating: false`; with `gating: true` beside \
                 it this task decides",
                "  s/a: {".len() + key.len() + ": ".len() + 1
            );
            assert_eq!(of(&format!("{{{key}: true}}")).unwrap_err(), expected);
            assert!(of(&format!("{{{key}: true, gating: true}}")).is_ok());
            assert!(of(&format!("{{{key}: false}}")).is_ok());
        }
        assert!(of("{margin: 0.1}").is_ok());
    }
}

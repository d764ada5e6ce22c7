//! Suites: YAML files that say which tasks a model is scored on (docs/eval.md has every key).

mod data_spec;
mod gate_keys;

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use sha2::{Digest as _, Sha256};

use super::data::hex;
use super::prompt::Framing;
use super::task::{TASK_TYPES, Task, TaskType, task_type, template};
use super::template::Template;
use crate::yaml::{self, Fields, Node};

pub use data_spec::{DataSpec, OnHub, Source};
pub use gate_keys::GateKeys;

/// The version of suite files that this program reads.
const VERSION: u64 = 1;

/// A suite.
#[derive(Debug)]
pub struct Suite {
    pub path: PathBuf,
    /// Of the file's bytes, lower-case hex.
    pub sha256: String,
    pub name: String,
    pub description: String,
    /// Data sets by name.
    pub data: IndexMap<String, DataSpec>,
    pub tasks: Vec<TaskSpec>,
}

/// A task of a suite.
#[derive(Debug)]
pub struct TaskSpec {
    pub id: String,
    pub task_type: &'static TaskType,
    pub description: String,
    /// Name of the data set with its documents.
    pub data: String,
    pub limit: Option<usize>,
    /// Renders the name of the cluster a document belongs to: documents of one source are not independent.
    pub cluster: Option<Template>,
    /// Renders a document's own name in samples and in the gate's lists, unique in the task.
    pub item: Option<Template>,
    pub gate: GateKeys,
    /// Of the keys that say what is asked and how it is scored, lower-case hex: not of `description`, of data and
    /// examples (which have digests of their own), of the gate's keys.
    pub sha256: String,
    /// How prompts are made; `None` if the type has no prompts.
    pub prompting: Option<Prompting>,
    pub task: Box<dyn Task>,
}

/// How prompts are made.
#[derive(Clone, Debug)]
pub struct Prompting {
    pub framing: Framing,
    pub few_shot: FewShot,
    pub chat: ChatUse,
}

/// Solved examples before the question.
#[derive(Clone, Debug, Default)]
pub struct FewShot {
    pub n: usize,
    /// Name of the data set they come from.
    pub from: Option<String>,
    pub mode: ShotMode,
}

/// Which examples are taken. A document is never an example for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShotMode {
    /// The first ones, in the file's order.
    #[default]
    FirstN,
    /// The first ones of a shuffle by the run's seed, the same for all documents.
    Seeded,
}

/// Whether prompts go through the model's chat template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChatUse {
    On,
    Off,
    /// If the model has one.
    #[default]
    Auto,
}

impl Suite {
    /// Reads a suite. Errors with everything that is wrong with it.
    pub fn open(path: &Path) -> Result<Suite, yaml::Error> {
        Self::read(&yaml::Document::open(path)?)
    }

    /// Reads a suite out of a document. Errors with everything that is wrong with it.
    pub fn read(document: &yaml::Document) -> Result<Suite, yaml::Error> {
        document.expect(yaml::FileKind::Suite)?;
        let fields = document.fields();
        let version = fields.required("version");
        let found = version.count();
        if version.is_count() && found != VERSION {
            version.note(format!("this program reads suites of version {VERSION}, not {found}"));
        }
        let name = name_of(&fields.required("name"));
        let description = text_of(&fields, "description");
        let entries = fields.required("data").entries();
        let names: Vec<String> = entries.iter().map(|(name, _)| name.clone()).collect();
        let data: IndexMap<String, DataSpec> = entries
            .into_iter()
            .filter_map(|(name, node)| {
                check_name(&node, &name);
                data_spec::parse(&node).map(|spec| (name, spec))
            })
            .collect();
        let tasks = parse_tasks(&fields.required("tasks"));
        for (node, data_name) in &tasks.references {
            if node.is_text() && !names.contains(data_name) {
                let known: Vec<&str> = names.iter().map(String::as_str).collect();
                node.unknown(data_name, &known);
            }
        }
        drop(fields);
        document.check()?;
        let sha256 = hex(&Sha256::digest(document.text()));
        let path = document.path().to_owned();
        Ok(Suite { path, sha256, name, description, data, tasks: tasks.tasks })
    }

    /// Returns the directory that the suite's relative paths begin at.
    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }
}

struct Tasks<'a> {
    tasks: Vec<TaskSpec>,
    /// Places that name a data set, and the name.
    references: Vec<(Node<'a>, String)>,
}

fn parse_tasks<'a>(node: &Node<'a>) -> Tasks<'a> {
    let mut tasks = Tasks { tasks: Vec::new(), references: Vec::new() };
    let items = node.items();
    if node.is_list() && items.is_empty() {
        node.note("`tasks` is empty");
    }
    for item in items {
        if let Some(task) = parse_task(&item, &mut tasks.references) {
            if tasks.tasks.iter().any(|other| other.id == task.id) {
                item.note(format!("two tasks are called `{}`", task.id));
            }
            tasks.tasks.push(task);
        }
    }
    tasks
}

fn parse_task<'a>(item: &Node<'a>, references: &mut Vec<(Node<'a>, String)>) -> Option<TaskSpec> {
    if !item.is_mapping() {
        // says what is expected
        drop(item.fields());
        return None;
    }
    let fields = item.fields();
    let id = name_of(&fields.required("id"));
    let description = text_of(&fields, "description");
    let data_node = fields.required("data");
    let data = data_node.text();
    references.push((data_node, data.clone()));
    let limit = fields.optional("limit").map(|node| positive(&node));
    let cluster = fields.optional("cluster").map(|node| template(&node));
    let item_template = fields.optional("item").map(|node| template(&node));
    let gate = gate_keys::parse(&fields);
    let type_node = fields.required("type");
    let type_name = type_node.text();
    let Some(task_type) = task_type(&type_name) else {
        if type_node.is_text() {
            let known: Vec<&str> = TASK_TYPES.iter().map(|task_type| task_type.name).collect();
            type_node.unknown(&type_name, &known);
        }
        fields.accept_rest();
        return None;
    };
    let prompting = task_type.has_prompt.then(|| parse_prompting(&fields, task_type, references));
    let task = (task_type.parse)(&fields)?;
    // of a template that was given but is wrong, the task is not made
    let given = |template: Option<Option<Template>>| match template {
        Some(template) => template.map(Some),
        None => Some(None),
    };
    let (cluster, item_template) = (given(cluster)?, given(item_template)?);
    let sha256 = digest_of(item);
    Some(TaskSpec {
        id,
        task_type,
        description,
        data,
        limit,
        cluster,
        item: item_template,
        gate,
        sha256,
        prompting,
        task,
    })
}

/// Keys of a task that its digest leaves out.
const NOT_DIGESTED: [&str; 9] =
    ["id", "description", "data", "limit", "few_shot", "item", "critical", "margin", "zero_tolerance"];

fn digest_of(item: &Node) -> String {
    let mut keys = item.json();
    if let Some(keys) = keys.as_object_mut() {
        keys.retain(|key, _| !NOT_DIGESTED.contains(&key.as_str()));
    }
    hex(&Sha256::digest(keys.to_string()))
}

fn parse_prompting<'a>(
    fields: &Fields<'a>,
    task_type: &TaskType,
    references: &mut Vec<(Node<'a>, String)>,
) -> Prompting {
    let mut few_shot = FewShot::default();
    let mut shot_delimiter = "\n\n".to_owned();
    let mut multiturn = false;
    if let Some(node) = fields.optional("few_shot") {
        let shots = node.fields();
        few_shot.n = shots.required("n").count() as usize;
        let from = shots.required("from");
        few_shot.from = Some(from.text());
        references.push((from.clone(), from.text()));
        if let Some(mode) = shots.optional("mode") {
            few_shot.mode = mode.one_of(&[("first_n", ShotMode::FirstN), ("seeded", ShotMode::Seeded)]);
        }
        shot_delimiter = shots.optional("delimiter").map_or(shot_delimiter, |node| node.text());
        multiturn = shots.optional("multiturn").is_some_and(|node| node.flag());
    }
    let chat = match fields.optional("chat_template") {
        Some(node) => node.one_of(&[("auto", ChatUse::Auto), ("on", ChatUse::On), ("off", ChatUse::Off)]),
        None if task_type.chat_by_default => ChatUse::Auto,
        None => ChatUse::Off,
    };
    let framing = Framing {
        system: text_of(fields, "system"),
        system_delimiter: text_of(fields, "system_delimiter"),
        target_delimiter: fields.optional("target_delimiter").map_or(" ".to_owned(), |node| node.text()),
        shot_delimiter,
        multiturn,
    };
    Prompting { framing, few_shot, chat }
}

fn text_of(fields: &Fields, key: &'static str) -> String {
    fields.optional(key).map(|node| node.text()).unwrap_or_default()
}

fn positive(node: &Node) -> usize {
    let count = node.count();
    if node.is_count() && count == 0 {
        node.note("`limit` is 0; leave it out for no limit");
    }
    count as usize
}

fn name_of(node: &Node) -> String {
    let name = node.text();
    if node.is_text() {
        check_name(node, &name);
    }
    name
}

/// Names go into file names, reports and the command line.
fn check_name(node: &Node, name: &str) {
    let is_fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(is_fit) {
        node.note(format!("a name has only letters, digits, `-`, `_` and `.`, not `{name}`"));
    }
}

#[cfg(test)]
mod tests;

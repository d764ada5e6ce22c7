//! Pages of the documentation that are made of the types: docs/recipe-reference.md and docs/suite-reference.md.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use lctl::eval::suite::Suite;
use lctl::eval::task::TASK_TYPES;
use lctl::finetune::recipe::{PRESETS, Recipe};
use lctl::yaml::{Document, KeyFacts};
use lctl::{data, eval, quantize};
use serde_json::Value as Json;

/// A recipe that has every key there is; keys that exclude each other stand in `OTHER`.
const WHOLE: &str = r#"
version: 1
kind: finetune
output: run
model: {path: model, compute: auto, quantization: none, init: weights}
adapter:
  {type: lora, r: 8, alpha: 16, dropout: 0.1, target_modules: all-linear,
   rank_pattern: {q_proj: 4}, alpha_pattern: {q_proj: 8}}
data:
  train: [{path: a.jsonl, type: jsonl, format: chat, weight: 2}]
  val_fraction: 0.1
  val_group: source
  max_seq_len: 512
  truncation: error
  packing: first_fit
  train_on: assistant
  chat_template: from_model
  template_variables: {enable_thinking: false, depth: 3, share: 0.5, parts: [{n: -1}, null]}
  date: 2026-01-31
  scan: {secrets: fail, pii: warn, duplicates: warn, near_duplicates: warn, eval_overlap: fail, suites: [evalsuites]}
train:
  epochs: 1
  micro_batch_size: 1
  grad_accum: 1
  optimizer: adamw
  betas: [0.9, 0.999]
  eps: 1e-8
  lr: 1e-4
  lr_schedule: wsd
  warmup_steps: 10
  min_lr_ratio: 0.1
  decay_ratio: 0.1
  weight_decay: 0.01
  max_grad_norm: 1
  seed: 1
  gradient_checkpointing: auto
eval:
  every_steps: 10
  early_stopping: {patience: 2, min_delta: 0.01}
  forgetting: {text: t.txt, max_increase: 0.1, max_tokens: 100, action: fail}
  gate: {suite: s.yaml, policy: p.yaml}
checkpoint: {every_steps: 10, keep: 2, keep_best: true}
export: [peft, gguf-lora, merged-safetensors, merged-gguf: Q4_K_M]
log: [jsonl, csv, tensorboard]
"#;

/// What [`WHOLE`] cannot have as well.
const OTHER: &str = r#"
version: 1
kind: dpo
output: run
model: {path: model}
adapter: {type: lora, r: 8, alpha: 16, target_modules: [q_proj], modules_to_save: [lm_head]}
data:
  train: [{path: a.jsonl}]
  validation: [{path: b.jsonl, type: jsonl, format: preference, weight: 1}]
  max_seq_len: 512
train: {max_steps: 10, warmup_ratio: 0.1, lr: 1e-5}
dpo: {beta: 0.1, label_smoothing: 0.1}
"#;

/// The recipe with nothing but what must be there: its defaults are everybody's.
const LEAST: &str = r#"
version: 1
kind: finetune
model: {path: model}
adapter: {type: lora, r: 8, alpha: 16}
data: {train: [{path: a.jsonl}], max_seq_len: 512}
train: {epochs: 1, lr: 1e-4}
"#;

type Keys = IndexMap<String, KeyFacts>;

fn merge(keys: &mut Keys, more: Vec<KeyFacts>) {
    for key in more {
        match keys.get_mut(&key.path) {
            None => drop(keys.insert(key.path.clone(), key)),
            Some(known) => {
                known.is_required &= key.is_required;
                known.kinds.extend(key.kinds);
                known.names.extend(
                    key.names.into_iter().filter(|name| !known.names.contains(name)).collect::<Vec<_>>(),
                );
            }
        }
    }
}

fn recipe(text: &str) -> (Recipe, Vec<KeyFacts>) {
    let document = Document::parse(Path::new("recipe.yaml"), text.to_owned()).unwrap();
    let names: Vec<&str> = quantize::Recipe::names().collect();
    let recipe = Recipe::read(&document, &names).unwrap();
    (recipe, document.keys())
}

/// Says what may stand at a key.
fn wanted(key: &KeyFacts) -> String {
    if !key.names.is_empty() {
        return key.names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    }
    let kinds: Vec<&str> =
        key.kinds.iter().copied().filter(|kind| key.kinds.len() == 1 || *kind != "any value").collect();
    kinds.join(" or ")
}

/// Returns the default of a key as it stands in the recipe with the least keys.
fn default_of(defaults: &Json, path: &str) -> String {
    let pointer = format!("/{}", path.replace('.', "/"));
    match defaults.pointer(&pointer) {
        _ if path.contains('[') || path.contains('*') => String::new(),
        None | Some(Json::Null) => String::new(),
        Some(Json::Object(map)) if !map.is_empty() => String::new(),
        Some(value) => format!("`{value}`").replace('"', ""),
    }
}

/// What is shown of a recipe is a recipe, the same one: manifests hold it, and are replayed by it.
#[test]
fn every_recipe_that_is_shown_reads_as_itself() {
    let adapters = [
        "{type: lora, r: 8, alpha: 16}",
        "{type: rslora, r: 8, alpha: 16.5, target_modules: [q_proj, v_proj], rank_pattern: {q_proj: 4}}",
        "{type: dora, r: 1, alpha: 1e-3, dropout: 0.5, target_modules: '.*[qv]_proj', modules_to_save: [lm_head]}",
        "{type: none}",
    ];
    let trains = [
        "{epochs: 2, lr: 1e-4, lr_schedule: constant, optimizer: lion}",
        "{max_steps: 7, lr: 1e-4, lr_schedule: linear, warmup_ratio: 0.1, seed: 18446744073709551615}",
        "{epochs: 1, lr: 1e-4, gradient_checkpointing: true}",
    ];
    let datas = [
        "{train: [{path: a}], validation: [{path: b}, {path: c, type: txt}], max_seq_len: 8, packing: false}",
        "{train: [{path: 'on'}], max_seq_len: 8, chat_template: plain, date: 2026-01-31}",
        "{train: [{path: '1e3'}], max_seq_len: 8, chat_template: c.jinja, val_fraction: 0.1, val_group: x}",
    ];
    let mut texts: Vec<String> = [WHOLE, OTHER, LEAST].map(str::to_owned).into();
    texts.extend(PRESETS.iter().map(|preset| preset.text.to_owned()));
    for kind in ["finetune", "dpo"] {
        for adapter in adapters {
            for train in trains {
                let of = |data| {
                    format!(
                        "version: 1\nkind: {kind}\nmodel: {{path: m}}\nadapter: {adapter}\ndata: {data}\ntrain: {train}\n"
                    )
                };
                texts.extend(datas.map(of));
            }
        }
    }
    for text in texts {
        let (first, _) = recipe(&text);
        let shown = first.to_yaml();
        let document = Document::parse(Path::new("shown.yaml"), shown.clone()).unwrap();
        let names: Vec<&str> = quantize::Recipe::names().collect();
        let again =
            Recipe::read(&document, &names).unwrap_or_else(|error| panic!("{error}\n{text}\n{shown}"));
        assert_eq!(again.to_yaml(), shown, "{text}");
        assert_eq!(Recipe { sha256: first.sha256.clone(), ..again }, first, "{text}\n{shown}");
    }
}

fn recipe_page() -> String {
    let mut keys = Keys::new();
    for text in [WHOLE, OTHER, LEAST].into_iter().chain(PRESETS.iter().map(|preset| preset.text)) {
        merge(&mut keys, recipe(text).1);
    }
    let defaults = serde_json::to_value(recipe(LEAST).0).unwrap();
    let mut page = String::from(
        "# Recipe reference\n\n\
         Made of the program's types by `cargo test reference::` with `LCTL_UPDATE_SNAPSHOTS=1`; a test fails if it is not what they say. \
         What the keys mean stands in [recipes.md](recipes.md).\n\n\
         Dots stand between a mapping and its keys, `[]` for an item of a list, `*` for a name of your own. A key without a default is \
         off, or is worked out, unless it is required.\n",
    );
    let mut section = String::new();
    for key in keys.values() {
        let (top, _) = key.path.split_once(['.', '[']).unwrap_or(("", ""));
        if section != top || page.ends_with(".\n") {
            section = top.to_owned();
            let title = if top.is_empty() { "The file".to_owned() } else { format!("`{top}`") };
            if !page.contains(&format!("\n## {title}\n")) {
                write!(page, "\n## {title}\n\n| key | value | default |\n|---|---|---|\n").unwrap();
            }
        }
        assert!(!wanted(key).is_empty(), "no recipe of this test has the key {}", key.path);
        let default = if key.is_required { "required".to_owned() } else { default_of(&defaults, &key.path) };
        let row = format!("| `{}` | {} | {default} |\n", key.path, wanted(key));
        insert_row(&mut page, &section, &row);
    }
    page.push_str("\n## Kinds of files\n\n| `type` | endings | |\n|---|---|---|\n");
    for container in data::container::CONTAINERS {
        let endings: Vec<String> = container.extensions.iter().map(|ending| format!(".{ending}")).collect();
        writeln!(page, "| `{}` | {} | {} |", container.name, endings.join(", "), container.about).unwrap();
    }
    page.push_str("\n## Formats of rows\n\n| `format` | fields | |\n|---|---|---|\n");
    for format in data::format::FORMATS {
        let fields: Vec<String> = format.fields.iter().map(|field| format!("`{field}`")).collect();
        writeln!(page, "| `{}` | {} | {} |", format.name, fields.join(", "), format.about).unwrap();
    }
    page.push_str("\n## Presets\n\n| `lctl recipe new` | |\n|---|---|\n");
    for preset in PRESETS {
        writeln!(page, "| `{}` | {} |", preset.name, preset.about).unwrap();
    }
    page
}

/// Adds a row to the table of a section, which may not be the last one.
fn insert_row(page: &mut String, section: &str, row: &str) {
    let title = if section.is_empty() { "\n## The file\n".to_owned() } else { format!("\n## `{section}`\n") };
    let start = page.find(&title).expect("the section was begun") + title.len();
    let end = page[start..].find("\n\n## ").map_or(page.len(), |at| start + at + 1);
    page.insert_str(end, row);
}

fn suites() -> Vec<PathBuf> {
    let root = crate::common::root();
    let entries = std::fs::read_dir(root.join("evalsuites")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.push(root.join("tests/suites/golden.yaml"));
    paths.push(root.join("tests/reference/keys.yaml"));
    paths.sort();
    paths
}

/// Returns a task with every key of examples, and of how it is generated and what is taken of it.
fn with_examples(task: &serde_yaml::Value) -> serde_yaml::Value {
    let mut task = task.clone();
    let examples = "{n: 1, mode: seeded, delimiter: x, multiturn: true}";
    let mut few_shot: serde_yaml::Value = serde_yaml::from_str(examples).unwrap();
    few_shot["from"] = task["data"].clone();
    task["few_shot"] = few_shot;
    task["chat_template"] = "auto".into();
    if task["generation"].is_mapping() {
        let generation = "{max_tokens: 9, stop: [x], temperature: 1.0, top_k: 9, top_p: 0.9, min_p: 0.1}";
        task["generation"] = serde_yaml::from_str(generation).unwrap();
    }
    if task["extract"].is_mapping() {
        task["extract"]["group"] = 0.into();
        task["extract"]["take"] = "last".into();
    }
    task
}

/// Returns the keys that the shipped suites and keys.yaml make the reader ask for, by task type.
fn suite_keys() -> IndexMap<&'static str, Keys> {
    let mut by_type: IndexMap<&str, Keys> =
        TASK_TYPES.iter().map(|task_type| (task_type.name, Keys::new())).collect();
    for path in suites() {
        let suite: serde_yaml::Value =
            serde_yaml::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        for task in suite["tasks"].as_sequence().unwrap() {
            let name = task["type"].as_str().unwrap();
            let has_prompt = TASK_TYPES.iter().any(|known| known.name == name && known.has_prompt);
            for task in [Some(task.clone()), has_prompt.then(|| with_examples(task))].into_iter().flatten() {
                let mut one = suite.clone();
                one["tasks"] = vec![task].into();
                let text = serde_yaml::to_string(&one).unwrap();
                let document = Document::parse(&path, text).unwrap();
                Suite::read(&document).unwrap_or_else(|error| panic!("{error}"));
                merge(by_type.get_mut(name).unwrap(), document.keys());
            }
        }
    }
    by_type
}

fn suite_page() -> String {
    let by_type = suite_keys();
    let is_everywhere = |path: &str| by_type.values().all(|keys| keys.contains_key(path));
    let prompted: Vec<&Keys> = TASK_TYPES
        .iter()
        .filter(|task_type| task_type.has_prompt)
        .map(|task_type| &by_type[task_type.name])
        .collect();
    let is_prompting =
        |path: &str| !is_everywhere(path) && prompted.iter().all(|keys| keys.contains_key(path));
    let mut all = Keys::new();
    by_type.values().for_each(|keys| merge(&mut all, keys.values().cloned().collect()));
    let mut page = String::from(
        "# Suite reference\n\n\
         Made of the program's types by `cargo test reference::` with `LCTL_UPDATE_SNAPSHOTS=1`; a test fails if it is not what they say. \
         What the keys mean stands in [eval.md](eval.md).\n\n\
         Dots stand between a mapping and its keys, `[]` for an item of a list, `*` for a name of your own.\n",
    );
    let is_task = |path: &str| path.starts_with("tasks[].");
    table(&mut page, "The file", "", all.values().filter(|key| !is_task(&key.path)));
    table(
        &mut page,
        "Every task",
        "",
        all.values().filter(|key| is_task(&key.path) && is_everywhere(&key.path)),
    );
    table(
        &mut page,
        "Tasks with a prompt",
        "",
        all.values().filter(|key| is_task(&key.path) && is_prompting(&key.path)),
    );
    for task_type in TASK_TYPES {
        let keys = by_type[task_type.name].values();
        let own = keys.filter(|key| {
            is_task(&key.path)
                && !is_everywhere(&key.path)
                && (!task_type.has_prompt || !is_prompting(&key.path))
        });
        table(&mut page, &format!("`{}`", task_type.name), task_type.about, own);
    }
    page.push_str("\n## Formats of data\n\n| `format` | further files | |\n|---|---|---|\n");
    for format in eval::data::FORMATS {
        let parts: Vec<String> = format.parts.iter().map(|part| format!("`{part}`")).collect();
        writeln!(page, "| `{}` | {} | {} |", format.name, parts.join(", "), format.about).unwrap();
    }
    page
}

fn table<'a>(page: &mut String, title: &str, about: &str, keys: impl Iterator<Item = &'a KeyFacts>) {
    write!(page, "\n## {title}\n\n").unwrap();
    if !about.is_empty() {
        write!(page, "{about}\n\n").unwrap();
    }
    page.push_str("| key | value | |\n|---|---|---|\n");
    for key in keys {
        assert!(!wanted(key).is_empty(), "{title}: no suite has the key {}", key.path);
        let required = if key.is_required { "required" } else { "" };
        let path = key.path.strip_prefix("tasks[].").unwrap_or(&key.path);
        writeln!(page, "| `{path}` | {} | {required} |", wanted(key)).unwrap();
    }
}

fn assert_page(name: &str, text: &str) {
    let path = crate::common::root().join("docs").join(name);
    if std::env::var_os("LCTL_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(text, page, "{} differs; LCTL_UPDATE_SNAPSHOTS=1 writes it anew", path.display());
}

#[test]
fn the_recipe_reference_is_what_the_types_say() {
    assert_page("recipe-reference.md", &recipe_page());
}

#[test]
fn the_suite_reference_is_what_the_types_say() {
    assert_page("suite-reference.md", &suite_page());
}

/// Returns the files that links in a text name.
fn links(text: &str) -> Vec<String> {
    let parts = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let local = parts.filter(|target| !target.contains("://") && !target.starts_with('#'));
    local.map(|target| target.split('#').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn the_book_has_every_page_and_no_dead_link() {
    let root = crate::common::root();
    let docs = root.join("docs");
    let chapters = links(&std::fs::read_to_string(docs.join("SUMMARY.md")).unwrap());
    let mut pages: Vec<String> = crate::common::names_in(&docs)
        .into_iter()
        .filter(|name| name.ends_with(".md") && name != "SUMMARY.md")
        .collect();
    for page in &pages {
        assert!(chapters.contains(page), "docs/SUMMARY.md lacks {page}");
    }
    assert_eq!(chapters.len(), pages.len(), "{chapters:?}");
    pages.push("../README.md".to_owned());
    let mut n = 0;
    for page in &pages {
        let path = docs.join(page);
        for link in links(&std::fs::read_to_string(&path).unwrap()) {
            assert!(path.parent().unwrap().join(&link).exists(), "{page}: {link}");
            n += 1;
        }
    }
    assert!(n > 50, "{n}");
}

//! What is trained on.

use std::path::{Path, PathBuf};

use chrono::NaiveDate;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value as Json};

use super::Kind;
use super::read::{count, name, number_or, one_of_or, path};
use crate::data::container::{self, Container};
use crate::data::encode::{DATE, Settings, TemplateSource, TrainOn};
use crate::data::format::{self, Format};
use crate::data::pack::{Batching, Packing};
use crate::data::scan::{Level, Policy};
use crate::data::{self, Held, Source, Truncation};
use crate::read::read_template;
use crate::yaml::{Fields, Node};

/// What is trained on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Data {
    pub train: Vec<DataFile>,
    /// Files to validate on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub validation: Vec<DataFile>,
    /// Share of the training rows that is held out instead; 0 for none.
    pub val_fraction: f64,
    /// Field whose equal values keep rows on one side of that split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_group: Option<String>,
    /// Most tokens of a sequence.
    pub max_seq_len: usize,
    pub truncation: Truncation,
    pub packing: Packing,
    pub train_on: TrainOn,
    pub chat_template: Template,
    /// Variables of the chat template.
    #[serde(serialize_with = "write_variables")]
    pub template_variables: Map<String, Json>,
    /// The day that chat templates see.
    #[serde(serialize_with = "write_date")]
    pub date: NaiveDate,
    pub scan: Scan,
}

/// A file of rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DataFile {
    pub path: PathBuf,
    /// The kind of file; what it looks like if `None`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub container: Option<&'static str>,
    /// The format of its rows; what the first one fits if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<&'static str>,
    /// How often an epoch has each of its rows; 1 for files to validate on.
    pub weight: f64,
}

/// Where the chat template comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Template {
    FromModel,
    /// Messages with empty lines between, answers behind a space: how `lctl eval` asks models without a template.
    Plain,
    File(PathBuf),
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Template::FromModel => serializer.serialize_str("from_model"),
            Template::Plain => serializer.serialize_str("plain"),
            Template::File(path) => path.serialize(serializer),
        }
    }
}

/// What is looked for before training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scan {
    pub secrets: Level,
    pub pii: Level,
    pub duplicates: Level,
    pub near_duplicates: Level,
    pub eval_overlap: Level,
    /// Suites whose documents must not be trained on, and directories of such.
    pub suites: Vec<PathBuf>,
}

impl Data {
    /// Returns the files that it names, each with its key.
    pub fn files(&self) -> Vec<(String, &Path)> {
        let listed = |key: &'static str, files: &'_ [DataFile]| -> Vec<String> {
            (0..files.len()).map(|index| format!("data.{key}.{index}.path")).collect()
        };
        let keys = [listed("train", &self.train), listed("validation", &self.validation)].concat();
        let paths = self.train.iter().chain(&self.validation).map(|file| file.path.as_path());
        let mut files: Vec<(String, &Path)> = keys.into_iter().zip(paths).collect();
        if let Template::File(path) = &self.chat_template {
            files.push(("data.chat_template".into(), path));
        }
        let suites = self.scan.suites.iter().enumerate();
        files.extend(suites.map(|(index, path)| (format!("data.scan.suites.{index}"), path.as_path())));
        files
    }

    /// Returns what is to be loaded.
    pub fn spec(&self, seed: u64) -> data::Spec {
        let sources = |files: &[DataFile]| -> Vec<Source> { files.iter().map(DataFile::source).collect() };
        let held = match (self.validation.is_empty(), self.val_fraction > 0.0) {
            (false, _) => Held::Files(sources(&self.validation)),
            (true, true) => Held::Share { share: self.val_fraction, group: self.val_group.clone() },
            (true, false) => Held::Nothing,
        };
        data::Spec {
            train: sources(&self.train),
            held,
            max_seq_len: self.max_seq_len,
            truncation: self.truncation,
            seed,
            scan: Policy {
                secrets: self.scan.secrets,
                personal: self.scan.pii,
                duplicates: self.scan.duplicates,
                near_duplicates: self.scan.near_duplicates,
                eval_overlap: self.scan.eval_overlap,
            },
        }
    }

    /// Returns how rows become tokens. Errors if the file of the chat template cannot be read.
    pub fn settings(&self) -> Result<Settings, data::Error> {
        let template = match &self.chat_template {
            Template::FromModel => TemplateSource::Model,
            Template::Plain => TemplateSource::Plain,
            Template::File(path) => TemplateSource::Text(read_template(path)?),
        };
        Ok(Settings {
            template,
            train_on: self.train_on,
            date: self.date,
            variables: self.template_variables.clone(),
        })
    }

    /// Returns the shape of micro-batches of a given size.
    pub fn batching(&self, micro_batch_size: usize) -> Batching {
        Batching { packing: self.packing, capacity: self.max_seq_len, micro_batch_size }
    }

    /// Returns whether the run has anything to validate on.
    pub fn validates(&self) -> bool {
        !self.validation.is_empty() || self.val_fraction > 0.0
    }
}

impl DataFile {
    fn source(&self) -> Source {
        Source {
            path: self.path.clone(),
            container: self.container.and_then(container::by_name),
            format: self.format.and_then(format::by_name),
            weight: self.weight,
        }
    }
}

pub fn read(node: &Node, kind: Kind) -> Data {
    let fields = node.fields();
    let packing = match kind {
        Kind::Finetune => Packing::FirstFit,
        Kind::Dpo => Packing::Off,
    };
    Data {
        train: files(&fields.required("train"), kind, true),
        validation: fields.optional("validation").map(|node| files(&node, kind, false)).unwrap_or_default(),
        val_fraction: number_or(
            &fields,
            "val_fraction",
            "from 0 up to, not including, 1",
            |found| (0.0..1.0).contains(&found),
            0.0,
        ),
        val_group: fields.optional("val_group").map(|node| name(&node)),
        max_seq_len: count(&fields.required("max_seq_len"), 2..=1 << 24) as usize,
        truncation: one_of_or(&fields, "truncation", &Truncation::NAMES, Truncation::Error),
        packing: fields.optional("packing").map_or(packing, |node| read_packing(&node)),
        train_on: one_of_or(&fields, "train_on", &TrainOn::NAMES, TrainOn::Assistant),
        chat_template: fields.optional("chat_template").map_or(Template::FromModel, |node| {
            match name(&node).as_str() {
                "from_model" => Template::FromModel,
                "plain" => Template::Plain,
                file => Template::File(file.into()),
            }
        }),
        template_variables: fields
            .optional("template_variables")
            .map(|node| variables(&node))
            .unwrap_or_default(),
        date: fields.optional("date").map_or(DATE, |node| date(&node)),
        scan: scan(&fields),
    }
}

fn files(node: &Node, kind: Kind, is_training: bool) -> Vec<DataFile> {
    let items = node.items();
    if items.is_empty() && node.is_list() {
        node.note("names no file");
    }
    items.iter().map(|item| file(item, kind, is_training)).collect()
}

fn file(node: &Node, kind: Kind, is_training: bool) -> DataFile {
    let fields = node.fields();
    let containers: Vec<(&str, Option<&Container>)> =
        container::CONTAINERS.iter().map(|container| (container.name, Some(container))).collect();
    let formats: Vec<(&str, Option<&Format>)> =
        format::FORMATS.iter().map(|format| (format.name, Some(format))).collect();
    let format = fields.optional("format").and_then(|node| {
        let format = node.one_of(&formats);
        match (kind, format.is_some_and(|format| format.is_preference)) {
            (Kind::Finetune, true) => node.note("pairs of answers need `kind: dpo`"),
            (Kind::Dpo, false) if format.is_some() => node.note("`kind: dpo` needs pairs of answers"),
            _ => {}
        }
        format
    });
    let weight = match is_training {
        true => {
            number_or(&fields, "weight", "above 0, at most 1000", |found| found > 0.0 && found <= 1000.0, 1.0)
        }
        false => number_or(&fields, "weight", "1 in a file to validate on", |found| found == 1.0, 1.0),
    };
    DataFile {
        path: path(&fields.required("path")),
        container: fields
            .optional("type")
            .and_then(|node| node.one_of(&containers))
            .map(|container| container.name),
        format: format.map(|format| format.name),
        weight,
    }
}

fn read_packing(node: &Node) -> Packing {
    match node.is_flag() {
        true if node.flag() => Packing::FirstFit,
        true => Packing::Off,
        false => node.one_of(&[
            ("off", Packing::Off),
            ("sequential", Packing::Sequential),
            ("first_fit", Packing::FirstFit),
        ]),
    }
}

/// Variables that the conversation itself sets.
const RESERVED: [&str; 3] = ["messages", "tools", "add_generation_prompt"];

fn variables(node: &Node) -> Map<String, Json> {
    let entry = |(name, node): (String, Node)| {
        if RESERVED.contains(&name.as_str()) {
            node.note(format!("`{name}` is set by the conversation"));
        }
        let value = node.json();
        (name, value)
    };
    node.entries().into_iter().map(entry).collect()
}

fn date(node: &Node) -> NaiveDate {
    let text = node.text();
    let date = NaiveDate::parse_from_str(&text, "%Y-%m-%d");
    if node.is_text() && date.is_err() {
        node.note(format!("`{text}` is no day as in 2026-01-31"));
    }
    date.unwrap_or(DATE)
}

/// Writes numbers as such: a JSON number of arbitrary precision is a mapping of its own to other formats.
fn write_variables<S: Serializer>(variables: &Map<String, Json>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(variables.iter().map(|(name, value)| (name, Plain(value))))
}

/// JSON, to be written as any format has it.
struct Plain<'a>(&'a Json);

impl Serialize for Plain<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Json::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(number), ..) => serializer.serialize_u64(number),
                (_, Some(number), _) => serializer.serialize_i64(number),
                (.., Some(number)) => serializer.serialize_f64(number),
                // of more digits than these types have
                _ => serializer.collect_str(number),
            },
            Json::Array(items) => serializer.collect_seq(items.iter().map(Plain)),
            Json::Object(entries) => {
                serializer.collect_map(entries.iter().map(|(name, value)| (name, Plain(value))))
            }
            value => value.serialize(serializer),
        }
    }
}

fn write_date<S: Serializer>(date: &NaiveDate, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(date)
}

fn scan(fields: &Fields) -> Scan {
    let node = fields.optional("scan");
    let fields = node.as_ref().map(Node::fields);
    let level = |key: &'static str, default: Level| {
        fields.as_ref().map_or(default, |fields| one_of_or(fields, key, &Level::NAMES, default))
    };
    let suites: Vec<PathBuf> = fields
        .as_ref()
        .and_then(|fields| fields.optional("suites"))
        .map(|node| node.items().iter().map(path).collect())
        .unwrap_or_default();
    let overlap = if suites.is_empty() { Level::Off } else { Level::Fail };
    Scan {
        secrets: level("secrets", Level::Fail),
        pii: level("pii", Level::Warn),
        duplicates: level("duplicates", Level::Warn),
        near_duplicates: level("near_duplicates", Level::Warn),
        eval_overlap: level("eval_overlap", overlap),
        suites,
    }
}

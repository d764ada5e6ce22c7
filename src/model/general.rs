//! The `general.*` keys: who made the model, what it is called, how large it is.
//!
//! Sources, first one wins: the model card's front matter, `_name_or_path` of config.json, the directory's
//! name; sampling defaults from generation_config.json. The same guesses as the reference converter's.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::Error;
use super::name::{ModelName, title};
use crate::tensor::gguf::{Array, Metadata, Value};

/// Weights counted by where they are: for `general.size_label`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ParameterCount {
    pub total: u64,
    /// Outside of experts.
    pub shared: u64,
    /// In one expert of every stack.
    pub per_expert: u64,
    /// Experts of a stack, on average; 0 in a dense model.
    pub n_experts: u64,
}

impl ParameterCount {
    /// Counts the tensors given by GGUF name and shape (outermost dimension first).
    pub fn of<'a>(tensors: impl Iterator<Item = (&'a str, &'a [usize])>) -> Self {
        let mut count = ParameterCount::default();
        let (mut expert_sum, mut n_stacks) = (0, 0);
        for (name, shape) in tensors {
            let size: u64 = shape.iter().map(|dim| *dim as u64).product();
            count.total += size;
            match *shape {
                [.., n, _, _] if name.contains("_exps.") => {
                    count.per_expert += size.checked_div(n as u64).unwrap_or(0);
                    expert_sum += n as u64;
                    n_stacks += 1;
                }
                _ => count.shared += size,
            }
        }
        count.n_experts = expert_sum.checked_div(n_stacks).unwrap_or(0);
        count
    }

    /// Returns a class such as `7B`, `3.4M` or `8x7B`.
    fn size_label(&self) -> String {
        match self.n_experts {
            0 => rounded(self.total),
            n => format!("{n}x{}", rounded(self.shared + self.per_expert)),
        }
    }
}

/// Returns `count` with two significant digits or all before the point, and its unit.
fn rounded(count: u64) -> String {
    let count = count as f64;
    let (scaled, unit) = match count {
        count if count > 1e12 => (count * 1e-12, "T"),
        count if count > 1e9 => (count * 1e-9, "B"),
        count if count > 1e6 => (count * 1e-6, "M"),
        count => (count * 1e-3, "K"),
    };
    let whole = format!("{:.0}", scaled.round_ties_even());
    let decimals = 2usize.saturating_sub(whole.trim_start_matches('0').len());
    format!("{scaled:.decimals$}{unit}")
}

/// What is known of a model or of its parents, under the names the keys have.
type Fields = Map<String, Json>;

/// Returns the `general.*` keys up to tags and languages, `general.type` first; sentences on what
/// could not be used go to `notices`.
pub(super) fn general_keys(
    dir: &Path,
    config: &Json,
    count: &ParameterCount,
    notices: &mut Vec<String>,
) -> Result<Metadata, Error> {
    let card = read_card(dir, notices)?;
    let mut out = Metadata::new();
    out.insert("general.type".to_owned(), "model".into());
    write_sampling(dir, &mut out)?;

    let mut fields = card_fields(&card);
    let config_name = config.get("_name_or_path").and_then(Json::as_str);
    if let Some(name) = config_name.filter(|name| name.matches('/').count() <= 1) {
        fill(&mut fields, &ModelName::parse(name, count.total));
    }
    let dir_name = directory_name(dir);
    fill(&mut fields, &ModelName::parse(&dir_name, count.total));
    fields.entry("name").or_insert_with(|| dir_name.into());
    if count.total > 0 {
        fields.entry("size_label").or_insert_with(|| count.size_label().into());
    }
    let order =
        ["name", "author", "version", "organization", "finetune", "basename", "description", "size_label"];
    for key in order {
        put_text(&mut out, &format!("general.{key}"), fields.get(key));
    }
    put_text(&mut out, "general.license", card.get("license"));
    put_text(&mut out, "general.license.name", card.get("license_name"));
    put_text(&mut out, "general.license.link", card.get("license_link"));
    for (key, name) in [("url", "url"), ("doi", "doi"), ("uuid", "uuid"), ("repo_url", "repo_url")] {
        put_text(&mut out, &format!("general.source.{key}"), fields.get(&format!("source_{name}")));
    }
    let parents = ["base_model", "base_models", "base_model_sources"];
    write_related(&mut out, "base_model", find(&card, &parents), count.total);
    let datasets = ["datasets", "dataset", "dataset_sources"];
    write_related(&mut out, "dataset", find(&card, &datasets), count.total);
    write_list(&mut out, "general.tags", &card, ["tags", "pipeline_tag"]);
    write_list(&mut out, "general.languages", &card, ["languages", "language"]);
    Ok(out)
}

/// Returns the name of a model's directory; of a snapshot in the hub's cache, which is called as its commit, the repository's.
pub fn directory_name(dir: &Path) -> String {
    if let Some(name) = repository_name(dir) {
        return name;
    }
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    // "." and ".." have no name of their own
    name(dir).or_else(|| name(&dir.canonicalize().ok()?)).unwrap_or_default()
}

/// Returns NAME of `models--ORG--NAME/snapshots/COMMIT`.
fn repository_name(dir: &Path) -> Option<String> {
    let name = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
    let commit = name(dir)?;
    let snapshots = dir.parent().filter(|parent| name(parent).as_deref() == Some("snapshots"))?;
    let is_commit = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    let repository = name(snapshots.parent()?)?;
    let (_, name) = repository.strip_prefix("models--")?.split_once("--")?;
    is_commit.then(|| name.to_owned())
}

/// Bytes of README.md that its front matter is looked for in.
const MAX_CARD_BYTES: u64 = 1 << 20;

/// Returns the YAML front matter of README.md, empty without one.
fn read_card(dir: &Path, notices: &mut Vec<String>) -> Result<Fields, Error> {
    let path = dir.join("README.md");
    let bytes = match crate::read::read_start(&path, MAX_CARD_BYTES) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(Fields::new()),
        Err(source) => return Err(Error::Io { path, source }),
    };
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    if lines.next() != Some("---") {
        return Ok(Fields::new());
    }
    let yaml: String = lines.take_while(|line| *line != "---").flat_map(|line| [line, "\n"]).collect();
    // tabs are not YAML, but published model cards have them
    match serde_yaml::from_str::<Json>(&yaml.replace('\t', "  ")) {
        Ok(Json::Object(card)) => Ok(card),
        Ok(_) => Ok(Fields::new()),
        Err(error) => {
            notices.push(format!("README.md: the front matter is not valid YAML ({error}) and left out"));
            Ok(Fields::new())
        }
    }
}

fn find<'a>(card: &'a Fields, keys: &[&str]) -> Option<&'a Json> {
    keys.iter().find_map(|key| card.get(*key))
}

/// Returns what the card says under its own spellings of the general fields.
fn card_fields(card: &Fields) -> Fields {
    let spellings = [
        ("name", ["name", "model_name", ""]),
        ("author", ["author", "model_author", "model_creator"]),
        ("version", ["version", "model_version", ""]),
        ("organization", ["organization", "model_organization", ""]),
        ("description", ["description", "model_description", ""]),
        ("finetune", ["finetune", "model_finetune", ""]),
        ("basename", ["basename", "model_basename", "model_type"]),
        ("size_label", ["size_label", "model_size_label", ""]),
        ("source_url", ["url", "model_url", ""]),
        ("source_doi", ["doi", "model_doi", ""]),
        ("source_uuid", ["uuid", "model_uuid", ""]),
        ("source_repo_url", ["repo_url", "model_repo_url", ""]),
    ];
    let mut fields = Fields::new();
    for (field, keys) in spellings {
        let value = keys.iter().filter_map(|key| card.get(*key)).find(|value| !value.is_null());
        if let Some(value) = value {
            fields.insert(field.to_owned(), value.clone());
        }
    }
    fields
}

/// Adds what a model's name tells where nothing better is known.
fn fill(fields: &mut Fields, name: &ModelName) {
    let mut put = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            fields.entry(key).or_insert(Json::String(value));
        }
    };
    put("name", Some(title(&name.full)));
    put("organization", name.organization.as_deref().map(title));
    put("basename", name.basename.clone());
    put("finetune", name.finetune.clone());
    put("version", name.version.clone());
    put("size_label", name.size_label.clone());
}

/// Returns a scalar as text, a list as its items joined by commas.
fn text_of(value: &Json) -> Option<String> {
    match value {
        Json::String(text) => Some(text.clone()),
        Json::Number(number) => Some(number.to_string()),
        Json::Bool(flag) => Some(flag.to_string()),
        Json::Array(items) => Some(items.iter().filter_map(text_of).collect::<Vec<_>>().join(",")),
        Json::Null | Json::Object(_) => None,
    }
}

fn put_text(out: &mut Metadata, key: &str, value: Option<&Json>) {
    // the reference writes no empty strings
    if let Some(text) = value.and_then(text_of).filter(|text| !text.is_empty()) {
        out.insert(key.to_owned(), Value::String(text));
    }
}

fn write_list(out: &mut Metadata, key: &str, card: &Fields, names: [&str; 2]) {
    let mut list = Vec::new();
    for value in names.iter().filter_map(|name| card.get(*name)) {
        match value {
            Json::Array(items) => list.extend(items.iter().filter_map(text_of)),
            other => list.extend(other.as_str().map(str::to_owned)),
        }
    }
    if !list.is_empty() {
        out.insert(key.to_owned(), Value::Array(Array::String(list)));
    }
}

/// Writes parents or datasets: a count, then what each one's id or URL tells.
fn write_related(out: &mut Metadata, kind: &str, value: Option<&Json>, total: u64) {
    let Some(value) = value else { return };
    let ids = match value {
        Json::String(_) => std::slice::from_ref(value),
        Json::Array(items) => items.as_slice(),
        _ => &[],
    };
    out.insert(format!("general.{kind}.count"), Value::U32(ids.len() as u32));
    for (i, id) in ids.iter().enumerate() {
        let fields = match id {
            Json::String(id) => related_fields(id, total),
            Json::Object(fields) => fields.clone(),
            _ => continue,
        };
        let order =
            ["name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url"];
        for key in order {
            put_text(out, &format!("general.{kind}.{i}.{key}"), fields.get(key));
        }
    }
}

fn related_fields(id: &str, total: u64) -> Fields {
    let mut fields = Fields::new();
    let is_url = ["http://", "https://", "ssh://"].iter().any(|scheme| id.starts_with(scheme));
    let name = if is_url {
        fields.insert("repo_url".to_owned(), id.into());
        let path =
            ["http://huggingface.co/", "https://huggingface.co/"].iter().find_map(|at| id.strip_prefix(at));
        match path.filter(|path| path.split('/').filter(|part| !part.is_empty()).count() == 2) {
            Some(path) if path.matches('/').count() == 1 => ModelName::parse(path, total),
            _ => return fields,
        }
    } else {
        ModelName::parse(id, total)
    };
    fields.insert("name".to_owned(), title(&name.full).into());
    if let Some(organization) = &name.organization {
        fields.insert("organization".to_owned(), title(organization).into());
        if !is_url {
            let url = format!("https://huggingface.co/{organization}/{}", name.full);
            fields.insert("repo_url".to_owned(), url.into());
        }
    }
    if let Some(version) = name.version {
        fields.insert("version".to_owned(), version.into());
    }
    fields
}

/// Writes the sampling defaults of generation_config.json, if there is a readable one.
fn write_sampling(dir: &Path, out: &mut Metadata) -> Result<(), Error> {
    let path = dir.join("generation_config.json");
    let bytes = match crate::read::read_present(&path) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(()),
        Err(source) => return Err(Error::Io { path, source }),
    };
    let Ok(config) = serde_json::from_slice::<Json>(&bytes) else { return Ok(()) };
    let repeat = if config.get("penalty_repeat").is_some() { "penalty_repeat" } else { "repetition_penalty" };
    put_text(out, "general.sampling.sequence", config.get("sequence"));
    let numbers = [
        ("top_k", "top_k", true),
        ("top_p", "top_p", false),
        ("min_p", "min_p", false),
        ("xtc_probability", "xtc_probability", false),
        ("xtc_threshold", "xtc_threshold", false),
        ("temp", "temperature", false),
        ("penalty_last_n", "penalty_last_n", true),
        ("penalty_repeat", repeat, false),
        ("mirostat", "mirostat", true),
        ("mirostat_tau", "mirostat_tau", false),
        ("mirostat_eta", "mirostat_eta", false),
    ];
    for (key, source, is_int) in numbers {
        let Some(number) = config.get(source).and_then(Json::as_f64) else { continue };
        let value = if is_int { Value::I32(number as i32) } else { Value::F32(number as f32) };
        out.insert(format!("general.sampling.{key}"), value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_has_its_repositorys_name() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let name = |path: &str| directory_name(Path::new(path));
        assert_eq!(name(&format!("hub/models--Qwen--Qwen3-0.6B/snapshots/{commit}")), "Qwen3-0.6B");
        assert_eq!(name(&format!("hub/models--a--b--c/snapshots/{commit}/")), "b--c");
        // what is not laid out so is called as it is
        assert_eq!(name(&format!("hub/models--a--b/{commit}")), commit);
        assert_eq!(name("hub/models--a--b/snapshots/main"), "main");
        assert_eq!(name(&format!("mine/snapshots/{commit}")), commit);
    }

    #[test]
    fn size_labels_have_two_significant_digits() {
        let label = |total| rounded(total);
        assert_eq!(label(259_904), "260K");
        assert_eq!(label(3_412_224), "3.4M");
        assert_eq!(label(6_738_415_616), "6.7B");
        assert_eq!(label(70_553_706_496), "71B");
        assert_eq!(label(1_100_048_384), "1.1B");
        assert_eq!(label(405_000), "405K");
        assert_eq!(label(900), "0.9K");
    }

    #[test]
    fn experts_count_once_in_the_label() {
        let tensors: [(&str, &[usize]); 2] =
            [("blk.0.ffn_up_exps.weight", &[8, 1000, 500]), ("token_embd.weight", &[1000, 700])];
        let count = ParameterCount::of(tensors.into_iter());
        assert_eq!(count.total, 4_700_000);
        assert_eq!(count.size_label(), "8x1.2M");
    }
}

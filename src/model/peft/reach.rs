//! What an adapter_config.json lets an adapter change, against the tensors that lie beside it.
//!
//! PEFT (0.21, `check_target_module_exists`) puts pairs beside the modules that the settings name, and passes over tensors
//! of all others without a word: a file of more than that computes something else there than its tensors say.

use fancy_regex::Regex;
use serde_json::Value as Json;

use super::{Adapter, Config};
use crate::model::Error;

const TARGETS: &str = "target_modules";
const EXCLUDED: &str = "exclude_modules";
const SAVED: &str = "modules_to_save";
const LAYERS: &str = "layers_to_transform";
const PATTERN: &str = "layers_pattern";

/// What the settings name; where they say nothing, the tensors do.
pub(super) struct Reach {
    targets: Option<Modules>,
    excluded: Option<Modules>,
    saved: Vec<String>,
    layers: Option<Layers>,
    /// Values of the settings, for messages.
    found: Vec<(&'static str, String)>,
}

/// Modules that a setting names.
enum Modules {
    /// All linear layers but the output.
    AllLinear,
    /// Those of these names, or of names that end in a dot and one of these.
    Names(Vec<String>),
    /// Those whose whole name this fits.
    Matching(Regex),
}

/// The layers that get pairs.
struct Layers {
    numbers: Vec<u64>,
    /// Each finds the number in a module's name, as `idx`.
    places: Vec<Regex>,
}

impl Reach {
    /// Reads the settings.
    ///
    /// Errors on values of types that PEFT does not know, and on settings that it refuses together.
    pub fn read(config: &Config<'_>) -> Result<Reach, Error> {
        let targets = modules(config, TARGETS)?;
        let numbers = numbers(config)?;
        let is_text = config.json.get(TARGETS).is_some_and(Json::is_string);
        if is_text && numbers.is_some() {
            return Err(config.bad(LAYERS, "null beside a `target_modules` that is text"));
        }
        let patterns = patterns(config)?;
        if !patterns.is_empty() && numbers.is_none() {
            return Err(config.bad(PATTERN, "null without `layers_to_transform`"));
        }
        let places = places(config, &patterns)?;
        // an empty list names all layers
        let numbers = numbers.filter(|numbers| !numbers.is_empty());
        let saved = config.json.get(SAVED).filter(|value| !value.is_null());
        let saved =
            saved.map_or(Some(Vec::new()), names).ok_or_else(|| config.bad(SAVED, "a list of names"))?;
        let found = [TARGETS, EXCLUDED, SAVED, LAYERS].map(|key| (key, config.found(key))).into();
        let layers = numbers.map(|numbers| Layers { numbers, places });
        Ok(Reach { targets, excluded: modules(config, EXCLUDED)?, saved, layers, found })
    }

    /// Errors with a tensor that PEFT would pass over, or a module that was to be saved whole and is not there.
    pub fn check(&self, adapter: &Adapter) -> Result<(), Error> {
        for (module, pair) in &adapter.pairs {
            if let Some(key) = self.leaves_out(module) {
                let found = self.found.iter().find(|(known, _)| *known == key);
                return Err(Error::AdapterReach {
                    path: adapter.path.clone(),
                    name: pair.a.name.clone(),
                    key,
                    found: found.map(|(_, found)| found.clone()).unwrap_or_default(),
                });
            }
        }
        let is_there = |saved: &String| {
            let mut names = adapter.whole.keys();
            names.any(|name| name.match_indices('.').any(|(at, _)| name[..at].ends_with(saved.as_str())))
        };
        // PEFT passes over names that a model lacks: one list may serve several architectures
        match self.saved.first().filter(|_| !self.saved.iter().any(is_there)) {
            Some(name) => {
                let (path, name) = (adapter.path.clone(), name.clone());
                Err(Error::AdapterUnsaved { path, name, key: SAVED })
            }
            None => Ok(()),
        }
    }

    /// Returns the setting by which a module gets no pair, if one does.
    fn leaves_out(&self, module: &str) -> Option<&'static str> {
        if self.excluded.as_ref().is_some_and(|excluded| excluded.hold(module)) {
            return Some(EXCLUDED);
        }
        let is_part = |saved: &String| format!(".{module}.").contains(&format!(".{saved}."));
        if self.saved.iter().any(is_part) {
            return Some(SAVED);
        }
        match &self.targets {
            Some(targets) if !targets.hold(module) => return Some(TARGETS),
            // a module named in full is one whatever its layer
            Some(Modules::Names(names)) if names.iter().any(|name| name == module) => return None,
            _ => {}
        }
        self.layers.as_ref().is_some_and(|layers| !layers.hold(module)).then_some(LAYERS)
    }
}

impl Modules {
    fn hold(&self, module: &str) -> bool {
        match self {
            Modules::AllLinear => !["lm_head", super::EMBEDDING].iter().any(|name| is_named(module, name)),
            Modules::Names(names) => names.iter().any(|name| is_named(module, name)),
            // an expression that gives up is one that does not fit
            Modules::Matching(whole) => whole.is_match(module).unwrap_or(false),
        }
    }
}

impl Layers {
    fn hold(&self, module: &str) -> bool {
        let found = self.places.iter().find_map(|place| place.captures(module).ok().flatten());
        let number = found.and_then(|found| found.name("idx")?.as_str().parse().ok());
        number.is_some_and(|number| self.numbers.contains(&number))
    }
}

fn is_named(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// Returns the modules that a setting names, nothing if it is not set.
fn modules(config: &Config<'_>, key: &'static str) -> Result<Option<Modules>, Error> {
    let bad = || config.bad(key, "a list of names, or a regular expression for whole names");
    match config.json.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(text)) if key == TARGETS && text.eq_ignore_ascii_case("all-linear") => {
            Ok(Some(Modules::AllLinear))
        }
        // in PEFT, too, an empty text excludes nothing
        Some(Json::String(text)) => {
            Ok(Some(Modules::Matching(Regex::new(&format!("^(?:{text})$")).map_err(|_| bad())?)))
        }
        Some(value) => Ok(Some(Modules::Names(names(value).ok_or_else(bad)?))),
    }
}

fn names(value: &Json) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}

/// Returns the numbers of layers, nothing if they are not set.
fn numbers(config: &Config<'_>) -> Result<Option<Vec<u64>>, Error> {
    let numbers = match config.json.get(LAYERS) {
        None | Some(Json::Null) => return Ok(None),
        Some(Json::Array(list)) => list.iter().map(Json::as_u64).collect::<Option<Vec<u64>>>(),
        Some(value) => value.as_u64().map(|number| vec![number]),
    };
    numbers.map(Some).ok_or_else(|| config.bad(LAYERS, "a layer's number, or a list of them"))
}

fn patterns(config: &Config<'_>) -> Result<Vec<String>, Error> {
    let patterns = match config.json.get(PATTERN) {
        None | Some(Json::Null) => Some(Vec::new()),
        Some(Json::String(text)) if text.is_empty() => Some(Vec::new()),
        Some(Json::String(text)) => Some(vec![text.clone()]),
        Some(value) => names(value),
    };
    patterns.ok_or_else(|| config.bad(PATTERN, "the name of a list of layers, or several"))
}

/// Returns PEFT's expressions of where a layer's number stands: the first number in a name without a pattern, of experts not
/// theirs.
fn places(config: &Config<'_>, patterns: &[String]) -> Result<Vec<Regex>, Error> {
    let expressions: Vec<String> = match patterns {
        [] => vec![r"^.*?\.[^.]*\.(?P<idx>\d+)\.".to_owned()],
        patterns => patterns.iter().map(|p| format!(r"^(?:(?:^|.*?\.){p}\.(?P<idx>\d+)\.)")).collect(),
    };
    let places = expressions.iter().map(|expression| Regex::new(expression));
    places.collect::<Result<_, _>>().map_err(|_| config.bad(PATTERN, "regular expressions of names"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    const Q0: &str = "model.layers.0.self_attn.q_proj";
    const Q1: &str = "model.layers.1.self_attn.q_proj";

    fn read(json: Json) -> Result<Reach, Error> {
        Reach::read(&Config { json, path: Path::new("adapter_config.json") })
    }

    /// Returns what leaves each module out.
    fn left_out<const N: usize>(json: Json, modules: [&str; N]) -> [Option<&'static str>; N] {
        let reach = read(json).unwrap();
        modules.map(|module| reach.leaves_out(module))
    }

    #[test]
    fn modules_are_left_out_as_peft_leaves_them_out() {
        assert_eq!(left_out(json!({}), [Q0, "lm_head"]), [None, None]);
        let names = json!({"target_modules": ["q_proj"]});
        let modules = [Q0, "q_proj", "model.layers.0.self_attn.xq_proj", "lm_head"];
        assert_eq!(left_out(names, modules), [None, None, Some(TARGETS), Some(TARGETS)]);
        let whole = json!({"target_modules": r".*layers\.0\..*(q|v)_proj"});
        assert_eq!(left_out(whole, [Q0, Q1]), [None, Some(TARGETS)]);
        assert_eq!(left_out(json!({"target_modules": "q_proj"}), [Q0]), [Some(TARGETS)]);
        let all = json!({"target_modules": "all-linear"});
        assert_eq!(left_out(all, [Q0, "lm_head"]), [None, Some(TARGETS)]);
        let excluded = json!({"target_modules": ["q_proj"], "exclude_modules": [Q1]});
        assert_eq!(left_out(excluded, [Q0, Q1]), [None, Some(EXCLUDED)]);
        let excluded = json!({"exclude_modules": r".*\.1\..*"});
        assert_eq!(left_out(excluded, [Q0, Q1]), [None, Some(EXCLUDED)]);
        let saved = json!({"target_modules": ["q_proj", "gate_proj"], "modules_to_save": ["mlp"]});
        assert_eq!(left_out(saved, [Q0, "model.layers.0.mlp.gate_proj"]), [None, Some(SAVED)]);
    }

    #[test]
    fn layers_are_counted_by_the_first_number_of_a_name() {
        let with =
            |layers: Json| json!({"target_modules": ["q_proj", "w1", Q1], "layers_to_transform": layers});
        let expert = "model.layers.0.experts.1.w1";
        // a name given in full is not asked for its layer
        assert_eq!(left_out(with(json!([0])), [Q0, Q1, expert]), [None, None, None]);
        let plain = json!({"target_modules": ["q_proj"], "layers_to_transform": 0});
        assert_eq!(left_out(plain, [Q0, Q1, "q_proj"]), [None, Some(LAYERS), None]);
        assert_eq!(left_out(with(json!([])), [Q0, expert]), [None, None]);
        assert_eq!(left_out(with(json!([1])), [Q0, expert]), [Some(LAYERS), Some(LAYERS)]);
        for (pattern, expected) in [
            (json!("layers"), [None, Some(LAYERS)]),
            (json!(["h", "layers"]), [None, Some(LAYERS)]),
            (json!(["h"]), [Some(LAYERS), Some(LAYERS)]),
            (json!([]), [None, Some(LAYERS)]),
        ] {
            let json =
                json!({"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": pattern});
            assert_eq!(left_out(json, [Q0, Q1]), expected, "{pattern}");
        }
    }

    #[test]
    fn settings_that_peft_refuses_are_errors() {
        for (json, key) in [
            (json!({"target_modules": 3}), TARGETS),
            (json!({"target_modules": ["q_proj", 3]}), TARGETS),
            (json!({"target_modules": "("}), TARGETS),
            (json!({"target_modules": "q_proj", "layers_to_transform": [0]}), LAYERS),
            (json!({"target_modules": ["q_proj"], "layers_to_transform": ["0"]}), LAYERS),
            (json!({"layers_to_transform": -1}), LAYERS),
            (json!({"layers_pattern": "layers"}), PATTERN),
            (json!({"layers_to_transform": [0], "layers_pattern": "("}), PATTERN),
            (json!({"exclude_modules": {}}), EXCLUDED),
            (json!({"modules_to_save": "lm_head"}), SAVED),
        ] {
            match read(json.clone()) {
                Err(Error::BadValue { key: found, .. }) => assert_eq!(found, key, "{json}"),
                Err(error) => panic!("{json}: {error}"),
                Ok(_) => panic!("{json} is taken"),
            }
        }
    }
}

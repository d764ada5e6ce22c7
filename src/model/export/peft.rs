//! Adapter directories of PEFT (0.21): adapter_config.json and adapter_model.safetensors.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::Error;
use crate::model::train::{LowRankSpec, ParameterInfo, TargetModules};
use crate::tensor::StagedDir;

/// Writes an adapter directory, whole or not at all; one that is there is replaced. Returns the SHA-256 of the tensors.
///
/// Errors if it cannot be written.
pub fn write_peft(
    dir: &Path,
    base: &str,
    spec: &LowRankSpec,
    parameters: &[ParameterInfo],
    params: &[f32],
) -> Result<String, Error> {
    let io = || Error::io(dir, "write");
    let staged = StagedDir::create(dir).map_err(io())?;
    let config = format!("{:#}\n", peft_config(base, spec, parameters));
    staged.write("adapter_config.json", config.as_bytes()).map_err(io())?;
    let tensors =
        parameters.iter().map(|info| (info.name.as_str(), &info.shape[..], &params[info.range.clone()]));
    let digest = staged.write_tensors("adapter_model.safetensors", tensors).map_err(io())?;
    staged.commit().map_err(io())?;
    Ok(digest)
}

/// Returns adapter_config.json: PEFT's LoraConfig with what is not its default, and what readers expect.
pub fn peft_config(base: &str, spec: &LowRankSpec, parameters: &[ParameterInfo]) -> Json {
    let pattern = |entries: Vec<(String, Json)>| entries.into_iter().collect::<Map<String, Json>>();
    let ranks = spec.rank_pattern.iter().map(|(name, rank)| (name.clone(), json!(rank))).collect();
    let alphas = spec.alpha_pattern.iter().map(|(name, alpha)| (name.clone(), number(*alpha))).collect();
    let saved = Some(&spec.modules_to_save).filter(|names| !names.is_empty());
    json!({
        "alpha_pattern": pattern(alphas),
        "auto_mapping": null,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layer_replication": null,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": number(spec.lora_alpha),
        // the f32 as people write it
        "lora_dropout": spec.lora_dropout.to_string().parse::<f64>().unwrap_or_default(),
        "modules_to_save": saved,
        "peft_type": "LORA",
        "r": spec.r,
        "rank_pattern": pattern(ranks),
        "revision": null,
        "target_modules": targets(spec, parameters),
        "task_type": "CAUSAL_LM",
        "use_dora": spec.use_dora,
        "use_rslora": spec.use_rslora,
    })
}

/// Returns a whole number as one, as Python writes it.
fn number(value: f64) -> Json {
    match value.fract() == 0.0 && value.abs() < 1e15 {
        true => json!(value as i64),
        false => json!(value),
    }
}

/// Returns the targets: of `all-linear` the last words of the names that have a pair, which all models' readers know.
fn targets(spec: &LowRankSpec, parameters: &[ParameterInfo]) -> Json {
    match &spec.target_modules {
        TargetModules::Names(names) => json!(names),
        TargetModules::Matching(pattern) => json!(pattern),
        TargetModules::AllLinear => {
            let names = parameters.iter().filter_map(|info| info.name.strip_suffix(".lora_A.weight"));
            let mut words: Vec<&str> = names.filter_map(|name| name.rsplit('.').next()).collect();
            words.sort_unstable();
            words.dedup();
            json!(words)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_says_what_peft_reads() {
        let info = |name: &str| ParameterInfo {
            name: format!("base_model.model.model.layers.0.{name}.lora_A.weight"),
            shape: vec![2, 4],
            range: 0..8,
            decays: true,
        };
        let spec = LowRankSpec { lora_dropout: 0.05, ..LowRankSpec::new(2) };
        let parameters = [info("mlp.up_proj"), info("self_attn.q_proj"), info("self_attn.q_proj")];
        let config = peft_config("org/base", &spec, &parameters);
        assert_eq!(config["target_modules"], json!(["q_proj", "up_proj"]));
        assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(2), &json!(4)));
        assert_eq!(config["lora_dropout"], json!(0.05));
        assert_eq!(config["modules_to_save"], Json::Null);
        let matching = TargetModules::Matching(".*q_proj".into());
        let spec = LowRankSpec { target_modules: matching, modules_to_save: vec!["lm_head".into()], ..spec };
        let config = peft_config("org/base", &spec, &parameters);
        assert_eq!(config["target_modules"], json!(".*q_proj"));
        assert_eq!(config["modules_to_save"], json!(["lm_head"]));
    }
}

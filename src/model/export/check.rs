//! Whether what is to be trained can be written in a form, before it is trained: by headers, names and shapes.

use std::path::Path;

use super::{Changes, Error, Stored, gguf_lora, gguf_merge, merge};
use crate::model::config::ModelConfig;
use crate::model::train::{LowRankSpec, ParameterInfo};
use crate::tensor::safetensors::SafeTensors;

/// Errors if parameters (with `spec` an adapter's) can be merged into no model made of `base`, as
/// [`write_merged`](super::write_merged) and [`write_merged_gguf`](super::write_merged_gguf) would: a change that fits no tensor,
/// a type that nothing is merged into, an output that is the embedding always.
pub fn check_merge(
    base: &Path,
    spec: Option<&LowRankSpec>,
    parameters: &[ParameterInfo],
) -> Result<(), Error> {
    let parameters = without_values(parameters);
    let changes = match spec {
        Some(spec) => Changes::of_adapter(spec, &parameters, &[])?,
        None => Changes::of_weights(&parameters, &[]),
    };
    if base.is_file() {
        return gguf_merge::check_merged_gguf(base, &changes, Stored::F32);
    }
    let config = base.join("config.json");
    if !config.is_file() {
        return Err(Error::NotACheckpoint { path: base.to_owned() });
    }
    if !merge::has_weights(base)? {
        return merge::named_dtype(&config).map(|_| ());
    }
    let source = SafeTensors::open_dir(base)?;
    let parted = changes.parted(&source, &config)?;
    changes.check(&source, parted)
}

/// Errors if a GGUF adapter cannot hold the parameters, as [`write_gguf_adapter`](super::write_gguf_adapter) would.
pub fn check_gguf_adapter(
    config: &ModelConfig,
    spec: &LowRankSpec,
    parameters: &[ParameterInfo],
) -> Result<(), Error> {
    gguf_lora::pairs(config, spec, &without_values(parameters), &[]).map(|_| ())
}

/// Returns parameters that have names and shapes, and no place in a flat vector.
fn without_values(parameters: &[ParameterInfo]) -> Vec<ParameterInfo> {
    parameters.iter().map(|info| ParameterInfo { range: 0..0, ..info.clone() }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::error::Diagnostic as _;

    fn parameter(name: &str, shape: &[usize]) -> ParameterInfo {
        ParameterInfo { name: name.to_owned(), shape: shape.to_vec(), range: 0..0, decays: true }
    }

    /// Writes a checkpoint's header: one tensor of 2 x 2, of that type.
    fn write_base(dir: &Path, name: &str, dtype: &str, bytes: usize) {
        let header = json!({name: {"dtype": dtype, "shape": [2, 2], "data_offsets": [0, bytes]}}).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.into_bytes());
        file.resize(file.len() + bytes, 0);
        std::fs::write(dir.join("model.safetensors"), file).unwrap();
    }

    #[test]
    fn what_cannot_be_merged_is_told_by_headers_alone() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        let weight = "model.layers.0.self_attn.q_proj.weight";
        let check = |name: &str, shape: &[usize]| check_merge(dir, None, &[parameter(name, shape)]);
        assert!(matches!(check(weight, &[2, 2]), Err(Error::NotACheckpoint { .. })));
        std::fs::write(dir.join("config.json"), json!({"dtype": "float8"}).to_string()).unwrap();
        // without weights all are written, in the type that config.json names
        let error = check(weight, &[2, 2]).unwrap_err();
        assert!(matches!(error, Error::BadConfig { .. }), "{error}");
        std::fs::write(dir.join("config.json"), json!({"dtype": "bfloat16"}).to_string()).unwrap();
        check(weight, &[2, 2]).unwrap();
        write_base(dir, weight, "BF16", 8);
        check(weight, &[2, 2]).unwrap();
        assert!(matches!(check(weight, &[2, 3]), Err(Error::Shape { .. })));
        assert!(matches!(check("model.norm.weight", &[2]), Err(Error::NoSuchTensor { .. })));
        write_base(dir, weight, "F8_E4M3", 4);
        let error = check(weight, &[2, 2]).unwrap_err();
        assert!(matches!(&error, Error::Dtype { dtype, .. } if dtype == "F8_E4M3"), "{error}");
        assert!(error.hint().unwrap().contains("BF16"));
        // pairs are as good as sums
        let spec = LowRankSpec::new(1);
        let pair = ["lora_A.weight", "lora_B.weight"].map(|end| {
            let shape: &[usize] = if end.starts_with("lora_A") { &[1, 2] } else { &[2, 1] };
            parameter(&format!("base_model.model.model.layers.0.self_attn.q_proj.{end}"), shape)
        });
        let error = check_merge(dir, Some(&spec), &pair).unwrap_err();
        assert!(matches!(error, Error::Dtype { .. }), "{error}");
    }
}

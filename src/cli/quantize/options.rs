//! Options of `lctl quantize` that need more than clap: types, patterns, sizes, instruction sets.

use std::collections::HashSet;

use crate::error::{Diagnostic, Failure, nearest};
use crate::provenance::{QuantizeSettings, TensorType};
use crate::quantize::plan::Options;
use crate::quantize::recipe::RECIPES;
use crate::quantize::{Error, Override, Recipe};
use crate::tensor::{Dtype, format};

/// What can be wrong with an option's text.
#[derive(Debug, thiserror::Error)]
pub enum OptionError {
    #[error("--output is missing")]
    NoOutput,

    #[error("--tensor-type {given}: `=FORMAT` is missing")]
    NoFormat { given: String },

    #[error("--tensor-type {given}: not a regular expression")]
    BadPattern {
        given: String,
        #[source]
        source: Box<fancy_regex::Error>,
    },

    #[error("--override-kv {given}: `{key}` is set already")]
    OverrideTwice { given: String, key: String },

    #[error("--split-max-size {given}: not a size")]
    BadSize { given: String },
}

impl Diagnostic for OptionError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            OptionError::NoOutput => "say where to write: `-o model.gguf`".into(),
            OptionError::NoFormat { .. } | OptionError::BadPattern { .. } => {
                "write a pattern and a format, e.g. `--tensor-type 'ffn_down=Q6_K'`".into()
            }
            OptionError::OverrideTwice { .. } => "a key has one value".into(),
            OptionError::BadSize { .. } => "write a number and a unit, e.g. 2G, 500M or 1Gi".into(),
        })
    }
}

/// Returns what the arguments say of the result, normalized: names as the registries spell them.
pub fn settings(args: &super::Args) -> Result<QuantizeSettings, Failure> {
    // what is wrong with them is said before a model is looked for
    check_overrides(&args.override_kv)?;
    let name = |given: &String| dtype(given).map(|dtype| dtype.name().to_owned());
    let tensor_types = args.tensor_type.iter().map(|text| tensor_type(text));
    Ok(QuantizeSettings {
        r#type: Recipe::by_name(&args.recipe)?.name.to_owned(),
        tensor_types: tensor_types.collect::<Result<Vec<_>, _>>()?,
        output_tensor_type: args.output_tensor_type.as_ref().map(name).transpose()?,
        token_embedding_type: args.token_embedding_type.as_ref().map(name).transpose()?,
        pure: args.pure,
        leave_output_tensor: args.leave_output_tensor,
        allow_requantize: args.allow_requantize,
        override_kv: args.override_kv.clone(),
        pre: args.pre.clone(),
        split_max_bytes: args.split_max_size.as_deref().map(split_size).transpose()?,
        directory: None,
    })
}

/// Errors on an override that is none, and on a second one of a key.
fn check_overrides(given: &[String]) -> Result<(), Failure> {
    let mut keys = HashSet::new();
    for text in given {
        let Override { key, .. } = Override::parse(text)?;
        if !keys.insert(key.clone()) {
            return Err(OptionError::OverrideTwice { given: text.clone(), key }.into());
        }
    }
    Ok(())
}

/// Returns what the plan needs to know; `guided`: there is an importance matrix.
pub fn plan_options(settings: &QuantizeSettings, guided: bool) -> Result<Options, Failure> {
    Ok(Options {
        recipe: Recipe::by_name(&settings.r#type)?,
        pure: settings.pure,
        leave_output: settings.leave_output_tensor,
        output_type: settings.output_tensor_type.as_deref().map(dtype).transpose()?,
        token_embedding_type: settings.token_embedding_type.as_deref().map(dtype).transpose()?,
        overrides: settings.tensor_types.iter().map(compiled).collect::<Result<Vec<_>, _>>()?,
        guided,
    })
}

/// Returns the format of that name, if GGUF has it and it can be written.
fn dtype(name: &str) -> Result<Dtype, Error> {
    let is_writable = |d: Dtype| d.ggml_id().is_some() && d.can_encode();
    format::by_name(name).filter(|d| is_writable(*d)).ok_or_else(|| {
        let known: Vec<&str> =
            format::REGISTRY.iter().filter(|f| is_writable(Dtype(**f))).map(|f| f.name()).collect();
        Error::UnknownFormat { name: name.to_owned(), nearest: nearest(name, known.iter().copied()), known }
    })
}

fn tensor_type(text: &str) -> Result<TensorType, Failure> {
    let (pattern, format) =
        text.rsplit_once('=').ok_or_else(|| OptionError::NoFormat { given: text.to_owned() })?;
    let tensor_type = TensorType { pattern: pattern.to_owned(), format: format.to_owned() };
    let (_, dtype) = compiled(&tensor_type)?;
    Ok(TensorType { format: dtype.name().to_owned(), ..tensor_type })
}

fn compiled(tensor_type: &TensorType) -> Result<(fancy_regex::Regex, Dtype), Failure> {
    let TensorType { pattern, format } = tensor_type;
    // tensor names are lower case; the reference lowers the pattern, which would turn \S into \s
    let compiled = fancy_regex::Regex::new(&format!("(?i){pattern}")).map_err(|source| {
        OptionError::BadPattern { given: format!("{pattern}={format}"), source: Box::new(source) }
    })?;
    Ok((compiled, dtype(format)?))
}

/// Returns the bytes of a size such as `2G` (powers of 1000) or `2Gi` (powers of 1024).
fn split_size(text: &str) -> Result<u64, OptionError> {
    let bad = || OptionError::BadSize { given: text.to_owned() };
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.to_ascii_lowercase();
    let unit = unit.strip_suffix('b').unwrap_or(&unit);
    let (base, letter) = unit.strip_suffix('i').map_or((1000f64, unit), |letter| (1024f64, letter));
    let power = ["", "k", "m", "g", "t"].iter().position(|l| *l == letter).ok_or_else(bad)?;
    let bytes = number.parse::<f64>().map_err(|_| bad())? * base.powi(power as i32);
    if !(1.0..1e18).contains(&bytes) {
        return Err(bad());
    }
    Ok(bytes as u64)
}

/// Returns the types and examples at the end of `--help`.
pub fn after_help() -> String {
    let mut text = String::from("Types (bits per weight include scales; mixes depend on the model):\n");
    for recipe in RECIPES {
        let aliases = match recipe.aliases {
            [] => String::new(),
            aliases => format!(" (also {})", aliases.join(", ")),
        };
        text.push_str(&format!("  {:<10} {}{aliases}\n", recipe.name, recipe.about));
    }
    text.push_str(
        "\nExamples:\n  lctl quantize ./Llama-3.2-3B --type int4 -o llama-q4.gguf\n  \
         lctl quantize model-f16.gguf --type Q4_K_M --imatrix imatrix.gguf -o model-q4.gguf\n  \
         lctl quantize ./Qwen3-8B --type Q5_K_M --tensor-type 'attn_v=Q8_0' --dry-run\n  \
         lctl quantize ./Mixtral-8x7B --type Q6_K --split-max-size 4G -o mixtral-q6.gguf",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_decimal_and_binary_units() {
        for (text, bytes) in [
            ("2G", 2_000_000_000),
            ("500M", 500_000_000),
            ("1.5gb", 1_500_000_000),
            ("2Gi", 2 << 30),
            ("64KiB", 65536),
            ("1000", 1000),
        ] {
            assert_eq!(split_size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "G", "0", "-1G", "2X", "1.2.3G", "2Gii", "1e9G"] {
            assert!(split_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_key_is_set_once() {
        let check = |given: &[&str]| {
            check_overrides(&given.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
        };
        assert!(check(&["a=int:1", "b=int:1"]).is_ok());
        let error = check(&["a=int:1", "b=int:1", "a=str:x"]).unwrap_err().to_string();
        assert_eq!(error, "error: --override-kv a=str:x: `a` is set already\nhint: a key has one value");
    }

    #[test]
    fn a_pattern_may_hold_an_equals_sign() {
        let (pattern, dtype) = compiled(&tensor_type(r"blk\.(?=0\.)=f16").unwrap()).unwrap();
        assert_eq!(dtype.name(), "F16");
        assert!(pattern.is_match("blk.0.x").unwrap() && !pattern.is_match("blk.1.x").unwrap());
    }

    #[test]
    fn formats_that_cannot_be_written_are_unknown() {
        for name in ["IQ2_XXS", "F64", "F8_E4M3", "nothing"] {
            assert!(matches!(dtype(name), Err(Error::UnknownFormat { .. })), "{name}");
        }
    }
}

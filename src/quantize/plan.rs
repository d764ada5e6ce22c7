//! Which format every tensor gets, decided from the whole list before a byte is read.
//!
//! The rules are those of llama.cpp's `llama_tensor_get_type` (build b11434), whose counters become
//! ranks here: the rank of a tensor among those of its role that no explicit option decides.

use std::collections::HashMap;

use fancy_regex::Regex;

use super::Error;
use super::recipe::{Recipe, Role, When, known};
use super::roles::{is_quantizable, named_layer, output_order, role_of};
use crate::tensor::Dtype;
use crate::tensor::gguf::{Array, Metadata, Value};

/// The hyper-parameters that recipes look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hyper {
    /// GGUF architecture name.
    pub arch: String,
    pub n_layers: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    /// 0 for a dense model.
    pub n_experts: usize,
}

/// One tensor as the plan sees it.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// GGUF name.
    pub name: &'a str,
    /// Outermost dimension first.
    pub shape: &'a [usize],
    /// The type the tensor has when no quantizer touches it.
    pub stored: Dtype,
}

/// What the user asked for.
pub struct Options {
    pub recipe: &'static Recipe,
    /// Give every tensor the recipe's base format, no mixing.
    pub pure: bool,
    /// Leave `output.weight` in its stored type.
    pub leave_output: bool,
    pub output_type: Option<Dtype>,
    pub token_embedding_type: Option<Dtype>,
    /// `--tensor-type`: the first pattern found anywhere in a tensor's name decides it.
    pub overrides: Vec<(Regex, Dtype)>,
    /// An importance matrix is given.
    pub guided: bool,
}

impl Options {
    /// Returns the recipe's own choices: no override, no importance.
    pub fn new(recipe: &'static Recipe) -> Self {
        Options {
            recipe,
            pure: false,
            leave_output: false,
            output_type: None,
            token_embedding_type: None,
            overrides: Vec::new(),
            guided: false,
        }
    }
}

/// One tensor of the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Index into the inputs.
    pub input: usize,
    pub dtype: Dtype,
    /// The type the recipe wanted, where the row length fits none of its blocks.
    pub fallback_from: Option<Dtype>,
    /// True if the recipe makes no sense for this tensor without importance.
    pub needs_importance: bool,
    pub n_bytes: u64,
}

impl Hyper {
    /// Returns the hyper-parameters in a GGUF's metadata; a per-layer array counts by its first layer.
    ///
    /// Errors if `{arch}.block_count` is missing or no unsigned integer.
    pub fn from_metadata(arch: &str, metadata: &Metadata) -> Result<Self, Error> {
        let get = |key: &str| metadata.get(&format!("{arch}.{key}")).and_then(first_integer);
        let n_layers = get("block_count").ok_or_else(|| Error::MissingKey {
            key: format!("{arch}.block_count"),
            what: "the layer count",
        })?;
        let n_heads = get("attention.head_count").unwrap_or(0);
        Ok(Hyper {
            arch: arch.to_owned(),
            n_layers,
            n_heads,
            n_kv_heads: get("attention.head_count_kv").unwrap_or(n_heads),
            n_experts: get("expert_count").unwrap_or(0),
        })
    }

    /// Returns true for models whose `attn_v` is one eighth of `attn_q` (the reference's "70B").
    fn has_small_attn_v(&self) -> bool {
        let llama = self.arch == "llama" && self.n_heads != self.n_kv_heads && self.n_experts != 8;
        self.n_layers == 80 && (llama || self.arch == "qwen2")
    }

    fn n_queries_per_kv(&self) -> usize {
        self.n_heads.checked_div(self.n_kv_heads).unwrap_or(0)
    }
}

fn first_integer(value: &Value) -> Option<usize> {
    let wide = match value {
        Value::Array(Array::U32(v)) => u64::from(*v.first()?),
        Value::Array(Array::I32(v)) => u64::try_from(*v.first()?).ok()?,
        Value::Array(Array::U64(v)) => *v.first()?,
        other => other.as_u64()?,
    };
    usize::try_from(wide).ok()
}

/// Who decides a tensor's type.
enum Choice {
    /// Not quantizable: the stored type stays.
    Keep,
    /// `--output-tensor-type` or `--token-embedding-type`: taken as given.
    Named(Dtype),
    /// `--tensor-type`, `--pure` or a float recipe: as given, unless rows don't fit.
    Fitted(Dtype),
    /// The recipe's rules.
    Rules,
}

/// Returns what every tensor becomes, in output order: tensors outside the blocks by name, then
/// each block's by name.
///
/// Errors if a named type does not fit a row, or a layer number is missing where experts need it.
pub fn plan(hyper: &Hyper, inputs: &[Input], options: &Options) -> Result<Vec<Planned>, Error> {
    if options.recipe.is_float() && !options.overrides.is_empty() {
        return Err(Error::NoEffect { option: "--tensor-type", recipe: options.recipe.name });
    }
    let mut order: Vec<usize> = (0..inputs.len()).collect();
    order.sort_by(|&a, &b| output_order(inputs[a].name, inputs[b].name));
    let choices = inputs.iter().map(|t| choose(t, options)).collect::<Result<Vec<_>, _>>()?;

    let tied = !inputs.iter().any(|t| role_of(t.name) == Role::Output);
    let ranks = |role: Role| -> HashMap<usize, usize> {
        let by_rules = |&i: &usize| role_of(inputs[i].name) == role && matches!(choices[i], Choice::Rules);
        order.iter().copied().filter(by_rules).enumerate().map(|(rank, i)| (i, rank)).collect()
    };
    let (attn_v_rank, ffn_down_rank) = (ranks(Role::AttnV), ranks(Role::FfnDown));
    let n_attn_v = inputs.iter().filter(|t| role_of(t.name) == Role::AttnV).count();
    let place = |input: usize| -> Result<Place, Error> {
        let tensor = &inputs[input];
        let role = role_of(tensor.name);
        let (layer, n) = match role {
            Role::AttnV => (attn_v_rank[&input], n_attn_v),
            Role::FfnDown if hyper.n_experts > 1 => {
                (named_layer(tensor.name, hyper.n_layers)?, hyper.n_layers)
            }
            Role::FfnDown => (ffn_down_rank[&input], hyper.n_layers),
            _ => (0, 0),
        };
        Ok(Place { role, layer, n, tied })
    };

    let decide = |&input: &usize| {
        let tensor = &inputs[input];
        let wanted = match &choices[input] {
            Choice::Keep => return planned(input, tensor, tensor.stored, tensor.stored, options),
            Choice::Named(dtype) => return planned(input, tensor, *dtype, *dtype, options),
            Choice::Fitted(dtype) => *dtype,
            Choice::Rules => by_rules(hyper, tensor, place(input)?, options),
        };
        planned(input, tensor, wanted, fitting(wanted, tensor.shape), options)
    };
    order.iter().map(decide).collect()
}

/// Returns what every tensor becomes when a checkpoint is only converted: input order, the recipe's
/// float type unless a tensor's own type is fixed (`fixed[i]`).
pub fn plan_conversion(
    inputs: &[Input],
    fixed: &[Option<Dtype>],
    recipe: &Recipe,
) -> Result<Vec<Planned>, Error> {
    let options = Options::new(Recipe::by_name(recipe.name)?);
    let row = |(input, (tensor, fixed)): (usize, (&Input, &Option<Dtype>))| {
        let dtype = fixed.unwrap_or(recipe.base());
        planned(input, tensor, dtype, dtype, &options)
    };
    inputs.iter().zip(fixed).enumerate().map(row).collect()
}

fn planned(
    input: usize,
    tensor: &Input,
    wanted: Dtype,
    dtype: Dtype,
    options: &Options,
) -> Result<Planned, Error> {
    let row_len = row_len(tensor.shape);
    if !row_len.is_multiple_of(dtype.block_len()) {
        return Err(Error::RowFitsNoBlock {
            tensor: tensor.name.to_owned(),
            row_len,
            dtype,
            block_len: dtype.block_len(),
        });
    }
    let n_blocks = tensor.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
    let n_bytes = n_blocks
        .map(|n| n / dtype.block_len() as u64)
        .and_then(|n| n.checked_mul(dtype.block_bytes() as u64))
        .ok_or_else(|| Error::TooLarge { tensor: tensor.name.to_owned(), shape: tensor.shape.to_vec() })?;
    let needs_importance = options.recipe.needs_importance
        && dtype == options.recipe.base()
        && dtype != tensor.stored
        && !matches!(role_of(tensor.name), Role::TokenEmbedding | Role::Output);
    let fallback_from = (wanted != dtype).then_some(wanted);
    Ok(Planned { input, dtype, fallback_from, needs_importance, n_bytes })
}

fn row_len(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1)
}

fn choose(tensor: &Input, options: &Options) -> Result<Choice, Error> {
    if !is_quantizable(tensor, options.leave_output) {
        return Ok(Choice::Keep);
    }
    let overriding = match_override(tensor.name, options)?;
    let role = role_of(tensor.name);
    if let (Some(dtype), Role::TokenEmbedding) = (options.token_embedding_type, role) {
        // a second, per-layer table follows the option only where no pattern names it
        if overriding.is_none() || tensor.name == "token_embd.weight" {
            return Ok(Choice::Named(dtype));
        }
    }
    if let (Some(dtype), Role::Output) = (options.output_type, role) {
        return Ok(Choice::Named(dtype));
    }
    Ok(match overriding {
        _ if options.recipe.is_float() => Choice::Named(options.recipe.base()),
        Some(dtype) => Choice::Fitted(dtype),
        None if options.pure => Choice::Fitted(options.recipe.base()),
        None => Choice::Rules,
    })
}

fn match_override(name: &str, options: &Options) -> Result<Option<Dtype>, Error> {
    for (pattern, dtype) in &options.overrides {
        let found = pattern.is_match(name).map_err(|source| Error::Regex {
            pattern: pattern.as_str().to_owned(),
            source: Box::new(source),
        })?;
        if found {
            return Ok(Some(*dtype));
        }
    }
    Ok(None)
}

/// Where a tensor stands among those of its role.
struct Place {
    role: Role,
    layer: usize,
    n: usize,
    /// No `output.weight`: the embedding is also the output.
    tied: bool,
}

fn by_rules(hyper: &Hyper, tensor: &Input, place: Place, options: &Options) -> Dtype {
    let recipe = options.recipe;
    let base = recipe.base();
    let is_output = place.role == Role::Output || (place.tied && place.role == Role::TokenEmbedding);
    if is_output {
        return output_type(tensor, options);
    }
    if let Some(dense) = recipe.dense {
        let stacked = tensor.shape.len() >= 3 && tensor.shape[tensor.shape.len() - 3] > 1;
        return if stacked { base } else { known(dense) };
    }
    let ruled = || {
        let applies = |when| applies(when, &place, hyper, options.guided);
        let rule = recipe.rules.iter().find(|r| r.role == place.role && applies(r.when));
        rule.map_or(base, |r| known(r.then))
    };
    match place.role {
        Role::AttnV | Role::AttnK if hyper.n_experts == 8 => known("Q8_0"),
        Role::AttnOutput if hyper.n_experts == 8 => recipe.attn_output_of_8_experts.map_or(base, known),
        Role::AttnV if hyper.has_small_attn_v() => match ruled() {
            dtype if dtype == known("Q3_K") || dtype == known("Q4_K") => known("Q5_K"),
            dtype => dtype,
        },
        _ => ruled(),
    }
}

fn output_type(tensor: &Input, options: &Options) -> Dtype {
    let base = options.recipe.base();
    if let Some(dtype) = options.output_type {
        return dtype;
    }
    let fits = row_len(tensor.shape).is_multiple_of(base.block_len());
    if options.recipe.dense.is_some() || !fits || base == known("Q8_0") {
        known("Q8_0")
    } else {
        known("Q6_K")
    }
}

fn applies(when: When, place: &Place, hyper: &Hyper, guided: bool) -> bool {
    let (layer, n) = (place.layer, place.n);
    match when {
        When::Always => true,
        When::First(count) => layer < count,
        When::FirstShare(share) => layer < n / share,
        When::FirstShareGuided(share) => guided && layer < n / share,
        When::FirstShareUnguided(share) => !guided && layer < n / share,
        When::MoreBits => layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2,
        When::WideGroups => hyper.n_queries_per_kv() >= 4,
    }
}

/// Returns the type with smaller blocks that takes the place of `wanted` where rows don't fit.
fn fitting(wanted: Dtype, shape: &[usize]) -> Dtype {
    let fits = |dtype: Dtype| row_len(shape).is_multiple_of(dtype.block_len());
    if fits(wanted) {
        return wanted;
    }
    const SMALLER: &[(&str, &str)] = &[
        ("IQ4_XS", "IQ4_NL"),
        ("Q2_K", "Q4_0"),
        ("Q3_K", "Q4_0"),
        ("Q4_K", "Q5_0"),
        ("Q5_K", "Q5_1"),
        ("Q6_K", "Q8_0"),
    ];
    let smaller = SMALLER.iter().find(|(name, _)| *name == wanted.name());
    smaller.map(|(_, name)| known(name)).filter(|dtype| fits(*dtype)).unwrap_or(known("F16"))
}

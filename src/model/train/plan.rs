//! Which parameters a method trains in a model, and where they lie in the flat vector.

use std::collections::HashMap;
use std::ops::Range;

use super::block::Block;
use super::dora::{self, Magnitude};
use super::feed_forward::{FeedForward, Mlp};
use super::linear::{Adapter, Group, Part};
use super::modules::{Module, is_vector, modules};
use super::pass::Norm;
use super::spec::{LowRankSpec, Method, TargetModules, is_named};
use super::start::Start;
use super::{Error, ParameterInfo};
use crate::kernel::{Arithmetic, ComputeMode, Matrix};
use crate::model::arch::{self, Arch, Role, Transform};
use crate::model::decoder::Decoder;
use crate::model::weights::{self, Linear, Vector};
use crate::tensor::Dtype;

/// A model with what is trained of it.
pub(super) struct Plan {
    pub parameters: Vec<ParameterInfo>,
    /// How each parameter begins.
    pub starts: Vec<Start>,
    pub n_parameters: usize,
    pub embedding: Embedding,
    pub blocks: Vec<Block>,
    pub output_norm: Norm,
    pub output: Part,
    /// Where the gradient of the output layer's matrix is summed: behind the parameters if it is the embedding's too.
    pub output_gradient: Option<Range<usize>>,
}

pub(super) struct Embedding {
    pub base: Matrix,
    pub range: Option<Range<usize>>,
}

/// What is trained of a module.
#[derive(Clone, Copy)]
pub(super) enum Trains {
    Nothing,
    Whole,
    Pair { rank: usize, scale: f32 },
}

/// A module's place in the model: role, layer, expert.
pub(super) type Place = (Role, usize, usize);

/// Modules by their places, each with its index among the model's and what is trained of it.
pub(super) type Trained = HashMap<Place, (u32, Module, Trains)>;

/// Returns the arithmetic that weights of a type are trained with: no product is of integers.
fn arithmetic(mode: ComputeMode, dtype: Dtype) -> Arithmetic {
    match mode.arithmetic(dtype) {
        Arithmetic::Int8 => Arithmetic::Bf16,
        other => other,
    }
}

/// Returns what `method` trains of the model.
///
/// Errors on a name or pattern that fits nothing, on a pair for the output layer, and on settings no adapter can have.
pub(super) fn plan(decoder: &Decoder, method: &Method) -> Result<Plan, Error> {
    let arch = arch_of(decoder)?;
    let is_less_one =
        |role: Role| arch.rows.iter().any(|row| row.role == role && row.transform == Transform::AddOne);
    let offsets =
        [Role::OutputNorm, Role::AttnNorm, Role::QNorm, Role::KNorm, Role::PostAttnNorm, Role::FfnNorm]
            .into_iter()
            .chain([Role::PostFfnNorm])
            .map(|role| (role, if is_less_one(role) { 1.0 } else { 0.0 }))
            .collect();
    let builder = Builder {
        decoder,
        prefix: if matches!(method, Method::Full) { "" } else { "base_model.model." },
        is_dora: matches!(method, Method::LowRank(spec) if spec.use_dora),
        is_fused: is_fused(decoder)?,
        places: trained(decoder, method)?,
        offsets,
        parameters: Vec::new(),
        starts: Vec::new(),
        n: 0,
    };
    builder.build(matches!(method, Method::Full) && decoder.config.tied_embeddings)
}

fn arch_of(decoder: &Decoder) -> Result<&'static Arch, Error> {
    let name = decoder.config.arch;
    Ok(arch::by_gguf_name(name, std::path::Path::new(name))?)
}

/// Returns true if q, k and v are one module, as are gate and up.
pub(super) fn is_fused(decoder: &Decoder) -> Result<bool, Error> {
    Ok(arch_of(decoder)?.rows.iter().any(|row| row.role == Role::QkvProj))
}

/// Returns what `method` trains of each module.
///
/// Errors as [`plan`].
pub(super) fn trained(decoder: &Decoder, method: &Method) -> Result<Trained, Error> {
    let modules = modules(arch_of(decoder)?, &decoder.config);
    let mut places = HashMap::new();
    for (index, (module, trains)) in modules.iter().zip(choose(&modules, method, decoder)?).enumerate() {
        // a model has fewer than 2^32 modules
        places.insert((module.role, module.layer, module.expert), (index as u32, module.clone(), trains));
    }
    Ok(places)
}

/// Returns what is trained of each module.
fn choose(modules: &[Module], method: &Method, decoder: &Decoder) -> Result<Vec<Trains>, Error> {
    let spec = match method {
        Method::Full => {
            let whole = |module: &Module| match module.role {
                // a tied one is the embedding
                Role::Output if decoder.config.tied_embeddings => Trains::Nothing,
                _ => Trains::Whole,
            };
            return Ok(modules.iter().map(whole).collect());
        }
        Method::LowRank(spec) => spec,
    };
    spec.check()?;
    check_names(modules, spec)?;
    let of = |module: &Module| -> Result<Trains, Error> {
        if spec.modules_to_save.iter().any(|name| is_named(&module.name, name)) {
            return Ok(Trains::Whole);
        }
        let is_output = module.role == Role::Output;
        if !module.is_linear() || !spec.target_modules.takes(&module.name, is_output)? {
            return Ok(Trains::Nothing);
        }
        if is_output {
            return Err(Error::OutputTarget);
        }
        let (rank, scale) = spec.rank_and_scale(&module.name)?;
        Ok(Trains::Pair { rank, scale })
    };
    let trains: Vec<Trains> = modules.iter().map(of).collect::<Result<_, _>>()?;
    check_patterns(modules, &trains, spec)?;
    Ok(trains)
}

/// Errors on another rank or alpha for modules none of which gets a pair.
fn check_patterns(modules: &[Module], trains: &[Trains], spec: &LowRankSpec) -> Result<(), Error> {
    let pairs = modules.iter().zip(trains).filter(|(_, trains)| matches!(trains, Trains::Pair { .. }));
    let names: Vec<&str> = pairs.map(|(module, _)| module.name.as_str()).collect();
    let Some((setting, pattern)) = spec.unfit_pattern(&names)? else { return Ok(()) };
    let mut known: Vec<String> = names.iter().map(|name| last_part(name).to_owned()).collect();
    known.sort();
    known.dedup();
    Err(Error::NoSuchModule { setting, pattern: pattern.to_owned(), what: "layer with an adapter", known })
}

/// Returns what stands behind the last dot.
fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or_default()
}

/// Errors on a name or pattern that fits no module.
fn check_names(modules: &[Module], spec: &LowRankSpec) -> Result<(), Error> {
    let known = |linear: bool| {
        let mut names: Vec<String> = modules
            .iter()
            .filter(|module| !linear || module.is_linear())
            .map(|module| last_part(&module.name).to_owned())
            .collect();
        names.sort();
        names.dedup();
        names
    };
    let missing = |setting, pattern: &str, linear: bool| Error::NoSuchModule {
        setting,
        pattern: pattern.to_owned(),
        what: if linear { "linear layer" } else { "module" },
        known: known(linear),
    };
    let linear = || modules.iter().filter(|module| module.is_linear());
    if let TargetModules::Names(names) = &spec.target_modules {
        let fits_none = |name: &&String| !linear().any(|module| is_named(&module.name, name));
        if let Some(name) = names.iter().find(fits_none) {
            return Err(missing("target_modules", name, true));
        }
        if names.is_empty() && spec.modules_to_save.is_empty() {
            return Err(missing("target_modules", "", true));
        }
    }
    if let TargetModules::Matching(pattern) = &spec.target_modules {
        let mut any = false;
        for module in linear() {
            any |= spec.target_modules.takes(&module.name, module.role == Role::Output)?;
        }
        if !any {
            return Err(missing("target_modules", pattern, true));
        }
    }
    for name in &spec.modules_to_save {
        if !modules.iter().any(|module| is_named(&module.name, name)) {
            return Err(missing("modules_to_save", name, false));
        }
    }
    Ok(())
}

/// Lays parameters out, in the order a token passes them.
struct Builder<'a> {
    decoder: &'a Decoder,
    prefix: &'static str,
    is_dora: bool,
    /// q, k and v are one module, as are gate and up.
    is_fused: bool,
    places: Trained,
    /// What a norm's parameter is less than its factor.
    offsets: HashMap<Role, f32>,
    parameters: Vec<ParameterInfo>,
    starts: Vec<Start>,
    n: usize,
}

impl Builder<'_> {
    fn build(mut self, shares_embedding: bool) -> Result<Plan, Error> {
        let weights = &self.decoder.weights;
        let table = &weights.token_embedding;
        let mut embedding = Embedding { base: table.clone(), range: None };
        if let Some((module, Trains::Whole)) = self.find((Role::TokenEmbedding, 0, 0)) {
            embedding.range = Some(self.rows(&module, &[table]));
        }
        let blocks = weights.layers.iter().enumerate().map(|(i, layer)| self.block(i, layer)).collect();
        let output_norm = self.norm(Role::OutputNorm, 0, &weights.output_norm);
        let mut output = self.group(&[((Role::Output, 0, 0), vec![&weights.output])]).parts;
        let Some(mut output) = output.pop() else { return Err(Error::OutputTarget) };
        let mut output_gradient = output.weight.clone();
        if shares_embedding && let Some(range) = &embedding.range {
            output.weight = Some(range.clone());
            output_gradient = Some(self.n..self.n + range.len());
        }
        let Builder { parameters, starts, n, .. } = self;
        Ok(Plan {
            parameters,
            starts,
            n_parameters: n,
            embedding,
            blocks,
            output_norm,
            output,
            output_gradient,
        })
    }

    fn find(&self, place: Place) -> Option<(Module, Trains)> {
        self.places.get(&place).map(|(_, module, trains)| (module.clone(), *trains))
    }

    fn block(&mut self, layer: usize, weights: &weights::Layer) -> Block {
        let attn_norm = self.norm(Role::AttnNorm, layer, &weights.attn_norm);
        let (q, k, v) = (&weights.q, &weights.k, &weights.v);
        let qkv = match self.is_fused {
            true => self.group(&[((Role::QkvProj, layer, 0), vec![q, k, v])]),
            false => self.group(&[
                ((Role::QProj, layer, 0), vec![q]),
                ((Role::KProj, layer, 0), vec![k]),
                ((Role::VProj, layer, 0), vec![v]),
            ]),
        };
        let mut norm = |role, weight: &Option<Vector>| weight.as_ref().map(|w| self.norm(role, layer, w));
        let (q_norm, k_norm) = (norm(Role::QNorm, &weights.q_norm), norm(Role::KNorm, &weights.k_norm));
        let o = self.group(&[((Role::OProj, layer, 0), vec![&weights.o])]);
        let mut norm = |role, weight: &Option<Vector>| weight.as_ref().map(|w| self.norm(role, layer, w));
        let post_attn_norm = norm(Role::PostAttnNorm, &weights.post_attn_norm);
        let ffn_norm = self.norm(Role::FfnNorm, layer, &weights.ffn_norm);
        let ffn = self.feed_forward(layer, &weights.ffn);
        let post_ffn_norm = weights.post_ffn_norm.as_ref().map(|w| self.norm(Role::PostFfnNorm, layer, w));
        let attention = self.decoder.config.attention[layer];
        let is_last = layer + 1 == self.decoder.config.n_layers;
        Block {
            is_last,
            attention,
            attn_norm,
            qkv,
            q_norm,
            k_norm,
            o,
            post_attn_norm,
            ffn_norm,
            ffn,
            post_ffn_norm,
        }
    }

    fn feed_forward(&mut self, layer: usize, ffn: &weights::FeedForward) -> FeedForward {
        match ffn {
            weights::FeedForward::Dense(mlp) => {
                let gate_up = match self.is_fused {
                    true => self.group(&[((Role::GateUpProj, layer, 0), vec![&mlp.gate, &mlp.up])]),
                    false => self.group(&[
                        ((Role::GateProj, layer, 0), vec![&mlp.gate]),
                        ((Role::UpProj, layer, 0), vec![&mlp.up]),
                    ]),
                };
                let down = self.group(&[((Role::DownProj, layer, 0), vec![&mlp.down])]);
                FeedForward::Dense(Mlp { gate_up, down })
            }
            weights::FeedForward::Experts { router, experts } => {
                let mut router = self.group(&[((Role::Router, layer, 0), vec![router])]);
                for part in &mut router.parts {
                    // as in the decoder
                    part.arithmetic = Arithmetic::F32;
                }
                let experts = experts.iter().enumerate().map(|(expert, mlp)| {
                    let gate_up = self.group(&[
                        ((Role::GateExperts, layer, expert), vec![&mlp.gate]),
                        ((Role::UpExperts, layer, expert), vec![&mlp.up]),
                    ]);
                    let down = self.group(&[((Role::DownExperts, layer, expert), vec![&mlp.down])]);
                    Mlp { gate_up, down }
                });
                FeedForward::Experts { experts: experts.collect(), router }
            }
        }
    }

    fn norm(&mut self, role: Role, layer: usize, weight: &Vector) -> Norm {
        let offset = self.offsets.get(&role).copied().unwrap_or(0.0);
        let mut range = None;
        if let Some((module, Trains::Whole)) = self.find((role, layer, 0)) {
            let start = Start::Vectors { vectors: vec![weight.clone()], offset };
            range = Some(self.add(format!("{}.weight", module.name), vec![weight.len()], false, start));
        }
        Norm { base: weight.clone(), range, offset }
    }

    /// Returns the group of these modules, each of one matrix, or of several if it is fused.
    fn group(&mut self, members: &[(Place, Vec<&Linear>)]) -> Group {
        let mut group = Group { parts: Vec::new(), adapters: Vec::new() };
        for (place, linears) in members {
            let first = group.parts.len();
            for linear in linears {
                let arithmetic = arithmetic(self.decoder.mode, linear.weight.dtype());
                group.parts.push(Part { base: (*linear).clone(), arithmetic, weight: None, bias: None });
            }
            let Some((index, module, trains)) = self.places.get(place).cloned() else { continue };
            let parts = &mut group.parts[first..];
            match trains {
                Trains::Nothing => {}
                Trains::Whole => self.whole(&module, parts),
                Trains::Pair { rank, scale } => {
                    let of = first..first + parts.len();
                    let pair = Pair { name: &module.name, index, rank, scale };
                    group.adapters.push(self.pair(pair, of, &group.parts[first..]));
                }
            }
        }
        group
    }

    /// Makes all of a module's matrices, and biases, parameters.
    fn whole(&mut self, module: &Module, parts: &mut [Part]) {
        let matrices: Vec<&Matrix> = parts.iter().map(|part| &part.base.weight).collect();
        let mut start = self.rows(module, &matrices).start;
        for part in parts.iter_mut() {
            let end = start + part.base.weight.rows() * part.base.weight.cols();
            part.weight = Some(start..end);
            start = end;
        }
        let biases: Vec<Vector> = parts.iter().filter_map(|part| part.base.bias.clone()).collect();
        if biases.len() != parts.len() {
            return;
        }
        let n = biases.iter().map(|bias| bias.len()).sum();
        let values = Start::Vectors { vectors: biases, offset: 0.0 };
        let mut start = self.add(format!("{}.bias", module.name), vec![n], false, values).start;
        for part in parts {
            let end = start + part.base.weight.rows();
            part.bias = Some(start..end);
            start = end;
        }
    }

    fn rows(&mut self, module: &Module, matrices: &[&Matrix]) -> Range<usize> {
        let rows = matrices.iter().map(|matrix| matrix.rows()).sum();
        let shape = vec![rows, matrices.first().map_or(0, |matrix| matrix.cols())];
        let start = Start::Rows(matrices.iter().map(|matrix| (*matrix).clone()).collect());
        self.add(format!("{}.weight", module.name), shape, !is_vector(module.role), start)
    }

    fn pair(&mut self, pair: Pair<'_>, of: Range<usize>, parts: &[Part]) -> Adapter {
        let Pair { name, index, rank, scale } = pair;
        let cols = parts.first().map_or(0, |part| part.base.weight.cols());
        let rows: usize = parts.iter().map(|part| part.base.weight.rows()).sum();
        let a = self.add(
            format!("{name}.lora_A.weight"),
            vec![rank, cols],
            true,
            Start::Uniform { columns: cols, module: index },
        );
        let b = self.add(format!("{name}.lora_B.weight"), vec![rows, rank], true, Start::Zero);
        let magnitude = self.is_dora.then(|| {
            let squares = dora::squares(&self.decoder.compute, parts);
            let norms = squares.iter().map(|square| square.sqrt() as f32).collect();
            let start = Start::Vectors { vectors: vec![norms], offset: 0.0 };
            Magnitude {
                range: self.add(format!("{name}.lora_magnitude_vector"), vec![rows], true, start),
                squares,
            }
        });
        Adapter { parts: of, a, b, rank, scale, module: index, magnitude }
    }

    fn add(&mut self, name: String, shape: Vec<usize>, decays: bool, start: Start) -> Range<usize> {
        let range = self.n..self.n + shape.iter().product::<usize>();
        self.n = range.end;
        let name = format!("{}{name}", self.prefix);
        self.parameters.push(ParameterInfo { name, shape, range: range.clone(), decays });
        self.starts.push(start);
        range
    }
}

/// A pair to be laid out beside a module.
struct Pair<'a> {
    name: &'a str,
    index: u32,
    rank: usize,
    scale: f32,
}

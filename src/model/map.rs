//! From a checkpoint's names, shapes and config to the tensors and keys of a GGUF. Reads headers only.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::arch::{self, Arch, Part, Presence, Role, Row, Transform};
use super::config::ModelConfig;
use super::general::{ParameterCount, general_keys};
use super::hparams::Hparams;
use super::keys::{Facts, generated};
use super::names::{Kind, Patterns};
use super::rows::{GeneratedRow, Piece, RowMap, SourceRows, ValueMap};
use super::scale::Scale;
use super::{Checkpoint, Error, Mapped, TargetTensor};
use crate::tensor::format::by_name;
use crate::tensor::gguf::{Gguf, Metadata, Value};
use crate::tensor::{Dtype, TensorInfo, TensorSource};

/// Returns the GGUF that a checkpoint becomes when its weights are stored as `float_type` (F32, F16 or BF16).
///
/// Keys and tensors are those of llama.cpp's converter (b11434), in its order. Errors name the
/// tensor or key: unknown architecture, missing or unexpected tensors, shapes that config.json
/// does not imply, weights already quantized.
pub fn map_checkpoint(checkpoint: &Checkpoint, float_type: Dtype) -> Result<Mapped, Error> {
    let path = checkpoint.dir.join("config.json");
    refuse_quantized(&checkpoint.config, &path)?;
    let class = arch::class_of(&checkpoint.config, &path)?;
    let hparams = Hparams::new(&checkpoint.config, class, &path)?;
    let config = ModelConfig::from_hparams(&hparams, class)?;
    let facts = Facts { config: &config, hparams: &hparams, file_type: file_type(float_type) };

    let mut mapper = Mapper::new(class.arch, &config, checkpoint.source.path());
    mapper.block = block_size(&checkpoint.config);
    if class.arch.flags.drops_unused_vocab {
        mapper.n_vocab = vocab_in_use(&checkpoint.dir, config.vocab_size)?;
    }
    let (tensors, mut notices) = mapper.map(in_reference_order(checkpoint.source.as_ref()))?;
    let (made, made_keys) = generated(&facts)?;
    let mut all: Vec<TargetTensor> =
        made.into_iter().map(|(name, values)| made_tensor(name, values)).collect();
    all.extend(tensors);

    let count = ParameterCount::of(all.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice())));
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture".to_owned(), class.arch.name.into());
    metadata.extend(made_keys);
    metadata.extend(general_keys(&checkpoint.dir, &checkpoint.config, &count, &mut notices)?);
    for key in class.arch.keys {
        key.write(&facts, &mut metadata)?;
    }
    metadata.insert("general.quantization_version".to_owned(), Value::U32(2));
    Ok(Mapped {
        arch: class.arch.name.to_owned(),
        metadata,
        metadata_after: Metadata::new(),
        tensors: all,
        notices,
    })
}

/// Returns a GGUF as it is: its keys and its tensors in file order, rows unchanged.
///
/// Works for every architecture, known or not: nothing is renamed.
pub fn map_gguf(gguf: &Gguf) -> Mapped {
    let arch = gguf.metadata().get("general.architecture").and_then(Value::as_str).unwrap_or_default();
    let tensors = gguf.tensors().iter().map(|info| TargetTensor {
        name: info.name.clone(),
        shape: info.shape.clone(),
        source_dtype: info.dtype,
        fixed_dtype: fixed_dtype(&info.name, &info.shape),
        rows: Box::new(SourceRows::identity(info)),
    });
    Mapped {
        arch: arch.to_owned(),
        metadata: gguf.metadata().clone(),
        metadata_after: Metadata::new(),
        tensors: tensors.collect(),
        notices: Vec::new(),
    }
}

/// Returns the GGUF tensors (name, shape outermost first) that a checkpoint of these HF names and
/// shapes would become, in the reference converter's order; `path` is config.json's, for messages.
pub fn targets_from_names(
    config: &Json,
    path: &Path,
    tensors: &[(String, Vec<usize>)],
) -> Result<Vec<(String, Vec<usize>)>, Error> {
    let class = arch::class_of(config, path)?;
    let config = ModelConfig::from_hparams(&Hparams::new(config, class, path)?, class)?;
    let mut infos: Vec<TensorInfo> = tensors
        .iter()
        .map(|(name, shape)| TensorInfo {
            name: name.clone(),
            dtype: bf16(),
            shape: shape.clone(),
            n_bytes: shape.iter().product::<usize>() as u64 * 2,
            shard: 0,
            offset: 0,
        })
        .collect();
    infos.sort_by(|a, b| a.name.cmp(&b.name));
    let (targets, _) = Mapper::new(class.arch, &config, path).map(infos.iter().collect())?;
    Ok(targets.into_iter().map(|target| (target.name, target.shape)).collect())
}

/// Returns the tensors (GGUF name, shape outermost first) that every model of this config has, by layer.
///
/// Optional ones (biases some checkpoints have) and generated ones (rope factors) are left out.
/// Errors if the config's architecture is unknown, which none of [`ModelConfig`]'s readers let happen.
pub fn expected_tensors(config: &ModelConfig) -> Result<Vec<(String, Vec<usize>)>, Error> {
    let arch = arch::by_gguf_name(config.arch, Path::new(""))?;
    let required = |row: &&Row| row.presence.required(config);
    let whole = arch.rows.iter().filter(required).filter(|row| !row.per_layer());
    let mut out: Vec<_> = whole.map(|row| (row.gguf_name(0), row.shape(config))).collect();
    for layer in 0..config.n_layers {
        let rows = arch.rows.iter().filter(required).filter(|row| row.per_layer());
        out.extend(rows.map(|row| (row.gguf_name(layer), row.shape(config))));
    }
    Ok(out)
}

/// Returns the tensors (HF name in its first spelling, shape) that every checkpoint of this config has.
///
/// Errors as [`expected_tensors`] does.
pub fn expected_checkpoint_tensors(config: &ModelConfig) -> Result<Vec<(String, Vec<usize>)>, Error> {
    let arch = arch::by_gguf_name(config.arch, Path::new(""))?;
    let mut out = Vec::new();
    for row in arch.rows.iter().filter(|row| row.presence.required(config)) {
        let source = &row.sources[0];
        let shape = source_shape(&row.shape(config), source.part);
        for layer in 0..if row.per_layer() { config.n_layers } else { 1 } {
            let name = source.hf.replacen("{}", &layer.to_string(), 1);
            match (source.part, &config.experts) {
                (Part::Expert, Some(experts)) => out.extend(
                    (0..experts.n).map(|expert| (name.replacen("{}", &expert.to_string(), 1), shape.clone())),
                ),
                _ => out.push((name, shape.clone())),
            }
        }
    }
    Ok(out)
}

/// Returns the type a tensor keeps whatever the output's float type: the converter's rules, which
/// follow from the name and the number of dimensions.
fn fixed_dtype(name: &str, shape: &[usize]) -> Option<Dtype> {
    let is_f32 = shape.len() <= 1
        || name.ends_with("_norm.weight")
        || name.ends_with(".ffn_gate_inp.weight")
        || !name.ends_with(".weight");
    is_f32.then(f32_dtype)
}

fn f32_dtype() -> Dtype {
    by_name("F32").expect("F32 is in the registry")
}

fn bf16() -> Dtype {
    by_name("BF16").expect("BF16 is in the registry")
}

/// Returns `general.file_type`: llama.cpp's `LLAMA_FTYPE_*` of a float file.
fn file_type(float_type: Dtype) -> u32 {
    match float_type.name() {
        "F32" => 0,
        "BF16" => 32,
        _ => 1,
    }
}

fn made_tensor(name: &str, values: Vec<f32>) -> TargetTensor {
    TargetTensor {
        name: name.to_owned(),
        shape: vec![values.len()],
        source_dtype: f32_dtype(),
        fixed_dtype: Some(f32_dtype()),
        rows: Box::new(GeneratedRow(values)),
    }
}

/// Returns the tensors as the reference meets them: files by name, then tensors by name.
fn in_reference_order(source: &dyn TensorSource) -> Vec<&TensorInfo> {
    let files = source.files();
    let mut tensors: Vec<&TensorInfo> = source.tensors().iter().collect();
    tensors.sort_by(|a, b| {
        let file = |info: &TensorInfo| files.get(info.shard).and_then(|path| path.file_name());
        file(a).cmp(&file(b)).then_with(|| a.name.cmp(&b.name))
    });
    tensors
}

/// Errors if config.json says the weights are quantized in a way that lctl does not undo.
fn refuse_quantized(config: &Json, path: &Path) -> Result<(), Error> {
    let refuse = |method: String| Error::Quantized { path: path.to_path_buf(), method };
    let bits = |config: &Json| config.get("bits").and_then(Json::as_u64);
    let section = config.get("quantization_config").filter(|section| !section.is_null());
    if let (Some(mlx), true) =
        (config.get("quantization").and_then(bits), section.and_then(|s| s.get("quant_method")).is_none())
    {
        return Err(refuse(format!("MLX, {mlx} bits")));
    }
    let Some(section) = section else { return Ok(()) };
    let format = section.get("format").and_then(Json::as_str).unwrap_or("");
    match (section.get("quant_method").and_then(Json::as_str), format) {
        (Some("fp8"), _) | (Some("compressed-tensors"), "float-quantized" | "naive-quantized") => Ok(()),
        (Some("modelopt"), _) if section.get("quant_algo").and_then(Json::as_str) == Some("FP8") => Ok(()),
        (Some(method), "") => Err(refuse(method.to_owned())),
        (Some(method), format) => Err(refuse(format!("{method}, {format}"))),
        (None, _) => Err(refuse("quantization_config without quant_method".to_owned())),
    }
}

/// Returns the rows and columns one FP8 scale covers, if config.json says so.
fn block_size(config: &Json) -> Option<[usize; 2]> {
    let section = config.get("quantization_config")?;
    let of_groups = || {
        let groups = section.get("config_groups")?.as_object()?;
        groups.values().next()?.get("weights")?.get("block_structure")
    };
    let block = section.get("weight_block_size").filter(|block| !block.is_null()).or_else(of_groups)?;
    let size = |i: usize| block.get(i)?.as_u64().and_then(|size| usize::try_from(size).ok());
    Some([size(0)?, size(1)?])
}

/// Returns how many embedding rows the tokenizer can address.
///
/// As the reference counts: a SentencePiece vocabulary is padded to `vocab_size`; a tokenizer.json has
/// its vocabulary and its added tokens (which may repeat some, hence at most `vocab_size` here).
fn vocab_in_use(dir: &Path, vocab_size: usize) -> Result<usize, Error> {
    #[derive(serde::Deserialize)]
    struct Tokenizer {
        model: Model,
        #[serde(default)]
        added_tokens: Vec<serde::de::IgnoredAny>,
    }
    #[derive(serde::Deserialize)]
    struct Model {
        vocab: Vocab,
    }
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Vocab {
        Bpe(HashMap<String, serde::de::IgnoredAny>),
        Unigram(Vec<serde::de::IgnoredAny>),
    }
    let path: PathBuf = dir.join("tokenizer.json");
    if dir.join("tokenizer.model").is_file() || !path.is_file() {
        return Ok(vocab_size);
    }
    let bytes = std::fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
    let tokenizer: Tokenizer =
        serde_json::from_slice(&bytes).map_err(|source| Error::Json { path, source })?;
    let n_base = match tokenizer.model.vocab {
        Vocab::Bpe(tokens) => tokens.len(),
        Vocab::Unigram(tokens) => tokens.len(),
    };
    Ok((n_base + tokenizer.added_tokens.len()).min(vocab_size))
}

/// Where a target stands in the output: the place of the source tensor that completes it, then
/// the spelling of its source, then the half of a fused source.
type Place = (usize, &'static str, usize);

/// A target that sources are being found for.
struct Group<'a> {
    row: &'static Row,
    layer: usize,
    parts: Vec<Option<&'a TensorInfo>>,
    part: Part,
    place: Place,
}

struct Mapper<'a> {
    arch: &'static Arch,
    config: &'a ModelConfig,
    path: &'a Path,
    /// `weight_block_size` of an FP8 checkpoint.
    block: Option<[usize; 2]>,
    /// Rows of the embedding to keep.
    n_vocab: usize,
}

impl<'a> Mapper<'a> {
    fn new(arch: &'static Arch, config: &'a ModelConfig, path: &'a Path) -> Self {
        Mapper { arch, config, path, block: None, n_vocab: config.vocab_size }
    }

    fn path(&self) -> PathBuf {
        self.path.to_path_buf()
    }

    /// Returns the targets of `infos` (in the reference's order) and notices.
    fn map(&self, infos: Vec<&TensorInfo>) -> Result<(Vec<TargetTensor>, Vec<String>), Error> {
        let patterns = Patterns::new(self.arch);
        let mut groups: BTreeMap<(usize, usize), Group> = BTreeMap::new();
        let mut scales: HashMap<String, &TensorInfo> = HashMap::new();
        let (mut unknown, mut n_other) = (Vec::new(), 0);
        let mut expert_places: HashMap<usize, usize> = HashMap::new();
        for (place, info) in infos.iter().copied().enumerate() {
            match patterns.classify(&info.name) {
                Kind::Weight { targets, layer, expert } => {
                    for (i, source) in targets {
                        let row = &self.arch.rows[*i];
                        self.check_indices(row, source.part, info, layer, expert)?;
                        let half = if let Part::Half(half) = source.part { half } else { 0 };
                        let group = groups.entry((layer, *i)).or_insert_with(|| Group {
                            row,
                            layer,
                            parts: vec![None; self.n_parts(source.part)],
                            part: source.part,
                            place: (place, source.hf, half),
                        });
                        self.add(group, source.part, expert, info)?;
                        if source.part == Part::Expert {
                            expert_places.insert(layer, place);
                        }
                    }
                }
                Kind::WeightScale(weight) => _ = scales.insert(weight, info),
                Kind::OtherTower => n_other += 1,
                Kind::Ignored => {}
                Kind::Unknown => unknown.push(info),
            }
        }
        if let Some(first) = unknown.first() {
            let (first, count) = (first.name.clone(), unknown.len());
            return Err(Error::UnexpectedTensors { path: self.path(), arch: self.arch.name, count, first });
        }
        self.share_output(&mut groups);
        self.check_complete(&groups)?;
        let mut groups: Vec<Group> = groups.into_values().collect();
        for group in groups.iter_mut().filter(|group| group.part == Part::Expert) {
            // the reference writes a layer's stacks together, when their last expert has come
            group.place.0 = expert_places[&group.layer];
        }
        groups.sort_by_key(|group| group.place);
        let tensors = groups.iter().map(|group| self.target(group, &scales)).collect::<Result<_, _>>()?;
        let notices = (n_other > 0).then(|| {
            format!("{n_other} tensors of other towers (vision, audio) are left out: the GGUF holds text")
        });
        Ok((tensors, notices.into_iter().collect()))
    }

    fn n_parts(&self, part: Part) -> usize {
        match part {
            Part::Expert => self.config.experts.as_ref().map_or(0, |experts| experts.n),
            Part::Whole | Part::Half(_) => 1,
        }
    }

    fn check_indices(
        &self,
        row: &Row,
        part: Part,
        info: &TensorInfo,
        layer: usize,
        expert: usize,
    ) -> Result<(), Error> {
        let out_of_range = |what, index, count| Error::IndexOutOfRange {
            path: self.path(),
            name: info.name.clone(),
            what,
            index,
            count,
        };
        if row.per_layer() && layer >= self.config.n_layers {
            return Err(out_of_range("layer", layer, self.config.n_layers));
        }
        let n_experts = self.config.experts.as_ref().map_or(0, |experts| experts.n);
        if row.presence == Presence::Moe && (n_experts == 0 || (part == Part::Expert && expert >= n_experts))
        {
            return Err(out_of_range("expert", expert, n_experts));
        }
        if row.presence == Presence::Dense && n_experts > 0 {
            let (count, first) = (1, info.name.clone());
            return Err(Error::UnexpectedTensors { path: self.path(), arch: self.arch.name, count, first });
        }
        Ok(())
    }

    fn add<'i>(
        &self,
        group: &mut Group<'i>,
        part: Part,
        expert: usize,
        info: &'i TensorInfo,
    ) -> Result<(), Error> {
        let slot = if part == Part::Expert { expert } else { 0 };
        let earlier = group.parts.iter().flatten().next().copied();
        match group.parts.get_mut(slot) {
            Some(free @ None) if part == group.part => *free = Some(info),
            _ => {
                return Err(Error::DuplicateTensor {
                    path: self.path(),
                    first: earlier.map_or_else(String::new, |earlier| earlier.name.clone()),
                    second: info.name.clone(),
                    gguf: group.row.gguf_name(group.layer),
                });
            }
        }
        Ok(())
    }

    /// A tied checkpoint may hold the shared matrix under the output's name alone.
    fn share_output(&self, groups: &mut BTreeMap<(usize, usize), Group>) {
        let of = |role| self.arch.rows.iter().position(|row| row.role == role).map(|i| (0, i));
        let (Some(embedding), Some(output)) = (of(Role::TokenEmbedding), of(Role::Output)) else { return };
        if self.config.tied_embeddings && !groups.contains_key(&embedding) {
            if let Some(mut group) = groups.remove(&output) {
                group.row = &self.arch.rows[embedding.1];
                groups.insert(embedding, group);
            }
        }
    }

    fn check_complete(&self, groups: &BTreeMap<(usize, usize), Group>) -> Result<(), Error> {
        for (i, row) in self.arch.rows.iter().enumerate() {
            let n_layers = if row.per_layer() { self.config.n_layers } else { 1 };
            for layer in 0..n_layers {
                let group = groups.get(&(layer, i));
                let missing_expert = group.and_then(|group| group.parts.iter().position(Option::is_none));
                if group.is_some() && missing_expert.is_none()
                    || group.is_none() && !row.presence.required(self.config)
                {
                    continue;
                }
                let hf =
                    row.sources.iter().find(|source| group.is_none_or(|group| group.part == source.part));
                let name = hf.map_or(row.gguf, |source| source.hf).replacen("{}", &layer.to_string(), 1);
                let name = name.replacen("{}", &missing_expert.unwrap_or(0).to_string(), 1);
                let detail = match row.role {
                    Role::TokenEmbedding if !self.config.tied_embeddings => {
                        " (and `lm_head.weight` can't stand in: the embeddings are not tied)".to_owned()
                    }
                    _ => String::new(),
                };
                return Err(Error::MissingTensor { path: self.path(), name, detail });
            }
        }
        Ok(())
    }

    fn target(&self, group: &Group, scales: &HashMap<String, &TensorInfo>) -> Result<TargetTensor, Error> {
        let row = group.row;
        let mut shape = row.shape(self.config);
        let mut pieces = Vec::new();
        for info in group.parts.iter().flatten().copied() {
            self.check_shape(info, &source_shape(&shape, group.part))?;
            self.check_dtype(info)?;
            self.add_pieces(&mut pieces, info, group.part, &shape, scales)?;
        }
        if row.role == Role::TokenEmbedding && self.n_vocab < shape[0] {
            shape[0] = self.n_vocab;
            for piece in &mut pieces {
                piece.rows.end = piece.rows.end.min(self.n_vocab);
            }
        }
        let source_dtype = group.parts.iter().flatten().next().map_or_else(f32_dtype, |info| info.dtype);
        let name = row.gguf_name(group.layer);
        let head_dim = self.config.head_dim;
        let map = match row.transform {
            Transform::InterleaveQ | Transform::InterleaveK => RowMap::Interleave { head_dim },
            Transform::None | Transform::AddOne => RowMap::Identity,
        };
        let values = match row.transform {
            Transform::AddOne => ValueMap::AddOne { subtract: false, in_f16: source_dtype.name() == "F16" },
            _ => ValueMap::Identity,
        };
        Ok(TargetTensor {
            fixed_dtype: fixed_dtype(&name, &shape),
            name,
            source_dtype,
            rows: Box::new(SourceRows::new(&shape, pieces, map, values)),
            shape,
        })
    }

    fn check_shape(&self, info: &TensorInfo, expected: &[usize]) -> Result<(), Error> {
        if info.shape == expected {
            return Ok(());
        }
        Err(Error::Shape {
            path: self.path(),
            name: info.name.clone(),
            found: info.shape.clone(),
            expected: expected.to_vec(),
        })
    }

    fn check_dtype(&self, info: &TensorInfo) -> Result<(), Error> {
        let is_float = info.dtype.can_decode() && info.dtype.block_len() == 1 && !is_integer(info.dtype);
        if is_float {
            return Ok(());
        }
        Err(Error::UnreadableDtype {
            path: self.path(),
            name: info.name.clone(),
            dtype: info.dtype.name().to_owned(),
        })
    }

    /// Adds the rows of `info` that belong to the target of that shape.
    fn add_pieces(
        &self,
        pieces: &mut Vec<Piece>,
        info: &TensorInfo,
        part: Part,
        shape: &[usize],
        scales: &HashMap<String, &TensorInfo>,
    ) -> Result<(), Error> {
        let scale = || match scales.get(&info.name) {
            None => Ok(None),
            Some(tensor) => match Scale::fit(tensor, &info.shape, self.block) {
                Some(scale) if tensor.dtype.can_decode() => Ok(Some(scale)),
                _ => Err(Error::ScaleShape {
                    path: self.path(),
                    name: tensor.name.clone(),
                    found: tensor.shape.clone(),
                    weight: info.shape.clone(),
                }),
            },
        };
        if let Part::Half(half) = part {
            // [E, 2 * ff, d]: gate rows, then up rows, of each expert
            let (n_experts, n_rows) = (shape[0], shape[1]);
            for expert in 0..n_experts {
                let start = (2 * expert + half) * n_rows;
                pieces.push(Piece { tensor: info.clone(), rows: start..start + n_rows, scale: scale()? });
            }
        } else {
            let n_rows = if info.shape.len() < 2 { 1 } else { info.n_rows() };
            pieces.push(Piece { tensor: info.clone(), rows: 0..n_rows, scale: scale()? });
        }
        Ok(())
    }
}

fn is_integer(dtype: Dtype) -> bool {
    let name = dtype.name();
    name == "BOOL" || name.starts_with('I') && !name.starts_with("IQ") || name.starts_with('U')
}

/// Returns the shape of a source that is `part` of a target of that shape.
fn source_shape(target: &[usize], part: Part) -> Vec<usize> {
    match part {
        Part::Whole => target.to_vec(),
        Part::Expert => target[1..].to_vec(),
        Part::Half(_) => vec![target[0], 2 * target[1], target[2]],
    }
}

//! Source tensors sorted into the targets of an architecture's table, checked and put in order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::arch::{Arch, Part, Presence, Role, Row, Transform};
use super::config::ModelConfig;
use super::map::{f32_dtype, fixed_dtype};
use super::names::{Kind, Patterns};
use super::rows::{Piece, SourceRows, ValueMap};
use super::scale::Scale;
use super::{Error, TargetTensor};
use crate::tensor::RowMap;
use crate::tensor::{Dtype, TensorInfo};

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

/// A target, and the rows of source tensors it is made of: in the order of the source's layout.
pub(super) struct Gathered {
    pub row: &'static Row,
    pub layer: usize,
    /// Of the target, outermost dimension first.
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    pub pieces: Vec<Piece>,
}

/// The tensors of a checkpoint by what they are.
#[derive(Default)]
struct Sorted<'i> {
    /// By layer and row of the table.
    groups: BTreeMap<(usize, usize), Group<'i>>,
    /// By the weight's name.
    scales: HashMap<String, &'i TensorInfo>,
    /// Where in the order the last expert of a layer comes.
    expert_places: HashMap<usize, usize>,
    /// Tensors of a multimodal checkpoint's other towers.
    n_other: usize,
}

/// Finds the targets of a checkpoint's tensors.
pub(super) struct Mapper<'a> {
    arch: &'static Arch,
    config: &'a ModelConfig,
    path: &'a Path,
    /// `weight_block_size` of an FP8 checkpoint.
    pub block: Option<[usize; 2]>,
    /// FP8 weights have factors: config.json has a quantization section.
    pub scaled_fp8: bool,
    /// Rows of the embedding to keep.
    pub n_vocab: usize,
}

impl<'a> Mapper<'a> {
    pub fn new(arch: &'static Arch, config: &'a ModelConfig, path: &'a Path) -> Self {
        Mapper { arch, config, path, block: None, scaled_fp8: false, n_vocab: config.vocab_size }
    }

    fn path(&self) -> PathBuf {
        self.path.to_path_buf()
    }

    /// Returns the targets of `infos` (in the reference's order) and notices.
    pub fn map(&self, infos: Vec<&TensorInfo>) -> Result<(Vec<TargetTensor>, Vec<String>), Error> {
        let (gathered, notices) = self.gather(infos)?;
        Ok((gathered.into_iter().map(|gathered| self.target(gathered)).collect(), notices))
    }

    /// Returns what each target of `infos` (in the reference's order) is made of, and notices.
    pub fn gather(&self, infos: Vec<&TensorInfo>) -> Result<(Vec<Gathered>, Vec<String>), Error> {
        let sorted = self.sort(&infos)?;
        let Sorted { mut groups, scales, expert_places, n_other } = sorted;
        self.share_output(&mut groups);
        self.check_complete(&groups)?;
        let mut groups: Vec<Group> = groups.into_values().collect();
        for group in groups.iter_mut().filter(|group| group.part == Part::Expert) {
            // the reference writes a layer's stacks together, when their last expert has come
            group.place.0 = expert_places[&group.layer];
        }
        groups.sort_by_key(|group| group.place);
        let tensors = groups.iter().map(|group| self.pieces(group, &scales)).collect::<Result<_, _>>()?;
        let notices = (n_other > 0).then(|| {
            format!("{n_other} tensors of other towers (vision, audio) are left out: the GGUF holds text")
        });
        Ok((tensors, notices.into_iter().collect()))
    }

    /// Finds what each source tensor is for.
    fn sort<'i>(&self, infos: &[&'i TensorInfo]) -> Result<Sorted<'i>, Error> {
        let patterns = Patterns::new(self.arch);
        let mut sorted = Sorted::default();
        let mut unknown = Vec::new();
        for (place, info) in infos.iter().copied().enumerate() {
            match patterns.classify(&info.name) {
                Kind::Weight { targets, layer, expert } => {
                    for (i, source) in targets {
                        let row = &self.arch.rows[*i];
                        self.check_indices(row, source.part, info, layer, expert)?;
                        let half = if let Part::Half(half) = source.part { half } else { 0 };
                        let group = sorted.groups.entry((layer, *i)).or_insert_with(|| Group {
                            row,
                            layer,
                            parts: vec![None; self.n_parts(source.part)],
                            part: source.part,
                            place: (place, source.hf, half),
                        });
                        self.add(group, source.part, expert, info)?;
                        if source.part == Part::Expert {
                            sorted.expert_places.insert(layer, place);
                        }
                    }
                }
                Kind::WeightScale(weight) => _ = sorted.scales.insert(weight, info),
                Kind::OtherTower => sorted.n_other += 1,
                Kind::Ignored => {}
                Kind::Unknown => unknown.push(info),
            }
        }
        if !sorted.scales.is_empty() {
            let names: HashSet<&str> = infos.iter().map(|info| info.name.as_str()).collect();
            let stray = sorted.scales.iter().filter(|(weight, _)| !names.contains(weight.as_str()));
            unknown.extend(stray.map(|(_, scale)| *scale));
        }
        match unknown.iter().map(|info| &info.name).min() {
            None => Ok(sorted),
            Some(first) => Err(Error::UnexpectedTensors {
                path: self.path(),
                arch: self.arch.name,
                count: unknown.len(),
                first: first.clone(),
            }),
        }
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
        if !self.config.tied_embeddings || groups.contains_key(&embedding) {
            return;
        }
        if let Some(mut group) = groups.remove(&output) {
            group.row = &self.arch.rows[embedding.1];
            groups.insert(embedding, group);
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

    fn pieces(&self, group: &Group, scales: &HashMap<String, &TensorInfo>) -> Result<Gathered, Error> {
        let row = group.row;
        let mut shape = row.shape(self.config);
        let mut pieces = Vec::new();
        for info in group.parts.iter().flatten().copied() {
            self.check_shape(info, &source_shape(&shape, group.part))?;
            check_dtype(info, self.path)?;
            self.add_pieces(&mut pieces, info, group.part, &shape, scales)?;
        }
        if row.role == Role::TokenEmbedding && self.n_vocab < shape[0] {
            shape[0] = self.n_vocab;
            for piece in &mut pieces {
                piece.rows.end = piece.rows.end.min(self.n_vocab);
            }
        }
        let dtype = group.parts.iter().flatten().next().map_or_else(f32_dtype, |info| info.dtype);
        Ok(Gathered { row, layer: group.layer, shape, dtype, pieces })
    }

    fn target(&self, gathered: Gathered) -> TargetTensor {
        let Gathered { row, layer, shape, dtype, pieces } = gathered;
        let name = row.gguf_name(layer);
        let head_dim = self.config.head_dim;
        let map = match row.transform {
            Transform::InterleaveQ | Transform::InterleaveK => RowMap::Interleave { head_dim },
            Transform::None | Transform::AddOne => RowMap::Identity,
        };
        let values = match row.transform {
            Transform::AddOne => ValueMap::AddOne { subtract: false, in_f16: dtype.name() == "F16" },
            _ => ValueMap::Identity,
        };
        TargetTensor {
            fixed_dtype: fixed_dtype(&name, &shape),
            name,
            source_dtype: dtype,
            rows: Box::new(SourceRows::new(&shape, pieces, map, values)),
            shape,
        }
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
            None if self.scaled_fp8 && info.dtype.name().starts_with("F8_") => Err(Error::MissingTensor {
                path: self.path(),
                name: format!("{}_scale_inv", info.name),
                detail: " (the factors of an FP8 weight)".to_owned(),
            }),
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

/// Errors unless the tensor of a checkpoint holds floats.
fn check_dtype(info: &TensorInfo, path: &Path) -> Result<(), Error> {
    let is_float = info.dtype.can_decode() && info.dtype.block_len() == 1 && !is_integer(info.dtype);
    if is_float {
        return Ok(());
    }
    Err(Error::UnreadableDtype {
        path: path.to_path_buf(),
        name: info.name.clone(),
        dtype: info.dtype.name().to_owned(),
    })
}

pub(super) fn is_integer(dtype: Dtype) -> bool {
    let name = dtype.name();
    name == "BOOL" || name.starts_with('I') && !name.starts_with("IQ") || name.starts_with('U')
}

/// Returns the shape of a source that is `part` of a target of that shape.
pub(super) fn source_shape(target: &[usize], part: Part) -> Vec<usize> {
    match part {
        Part::Whole => target.to_vec(),
        Part::Expert => target[1..].to_vec(),
        Part::Half(_) => vec![target[0], 2 * target[1], target[2]],
    }
}

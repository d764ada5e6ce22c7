//! Plain forms of the kernels that attention and norms need, until the fast ones stand in their place.

use std::collections::BTreeMap;

use crate::kernel::{Compute, SequenceId};

pub fn rms_norm(_: &Compute, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    for (x, y) in x.chunks_exact(weight.len()).zip(y.chunks_exact_mut(weight.len())) {
        let sum = x.iter().fold(0.0f32, |sum, x| x.mul_add(*x, sum));
        let scale = 1.0 / (sum / x.len() as f32 + eps).sqrt();
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            *y = x * scale * w;
        }
    }
}

pub fn add(_: &Compute, a: &[f32], b: &[f32], y: &mut [f32]) {
    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
        *y = a + b;
    }
}

pub fn swiglu(_: &Compute, gate: &[f32], up: &[f32], y: &mut [f32]) {
    for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
        *y = g / (1.0 + (-g).exp()) * u;
    }
}

pub fn geglu_tanh(_: &Compute, gate: &[f32], up: &[f32], y: &mut [f32]) {
    const ROOT: f32 = 0.797_884_6; // sqrt(2 / pi)
    for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
        *y = 0.5 * g * (1.0 + (ROOT * (g + 0.044715 * g * g * g)).tanh()) * u;
    }
}

pub struct RopeTable {
    inv_freq: Vec<f32>,
    factor: f32,
}

impl RopeTable {
    pub fn new(inv_freq: &[f32], factor: f32) -> Self {
        RopeTable { inv_freq: inv_freq.to_vec(), factor }
    }
}

pub fn rope(_: &Compute, x: &mut [f32], head_dim: usize, positions: &[u32], table: &RopeTable) {
    let row_len = x.len() / positions.len().max(1);
    let half = table.inv_freq.len();
    for (row, position) in x.chunks_exact_mut(row_len).zip(positions) {
        for head in row.chunks_exact_mut(head_dim) {
            for i in 0..half {
                let angle = *position as f32 * table.inv_freq[i];
                let (cos, sin) = (angle.cos() * table.factor, angle.sin() * table.factor);
                let (a, b) = (head[i], head[i + half]);
                (head[i], head[i + half]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct KvShape {
    pub n_layers: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
}

#[derive(Clone, Default)]
struct Sequence {
    len: usize,
    /// Per layer, keys and values, a row per position.
    layers: Vec<(Vec<f32>, Vec<f32>)>,
}

/// Whole copies per sequence.
pub struct KvCache {
    shape: KvShape,
    budget_bytes: usize,
    sequences: BTreeMap<SequenceId, Sequence>,
    next: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("the cache of keys and values is full: {needed} bytes needed, {budget} allowed")]
pub struct CacheFull {
    pub needed: usize,
    pub budget: usize,
}

impl KvCache {
    pub fn new(shape: KvShape, budget_bytes: usize) -> Self {
        KvCache { shape, budget_bytes, sequences: BTreeMap::new(), next: 0 }
    }

    pub fn create(&mut self) -> SequenceId {
        let layers = vec![Default::default(); self.shape.n_layers];
        self.next += 1;
        self.sequences.insert(SequenceId(self.next), Sequence { len: 0, layers });
        SequenceId(self.next)
    }

    pub fn fork(&mut self, id: SequenceId, len: usize) -> Result<SequenceId, CacheFull> {
        let copy = self.sequences[&id].clone();
        self.next += 1;
        self.sequences.insert(SequenceId(self.next), copy);
        self.truncate(SequenceId(self.next), len);
        Ok(SequenceId(self.next))
    }

    pub fn truncate(&mut self, id: SequenceId, len: usize) {
        let row = self.row();
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.len = len;
            for (k, v) in &mut sequence.layers {
                k.truncate(len * row);
                v.truncate(len * row);
            }
        }
    }

    pub fn free(&mut self, id: SequenceId) {
        self.sequences.remove(&id);
    }

    pub fn len(&self, id: SequenceId) -> usize {
        self.sequences.get(&id).map_or(0, |sequence| sequence.len)
    }

    pub fn bytes_used(&self) -> usize {
        let positions: usize = self.sequences.values().map(|sequence| sequence.len).sum();
        positions * self.row() * 8 * self.shape.n_layers
    }

    /// Makes room for `n` more positions.
    pub fn extend(&mut self, id: SequenceId, n: usize) -> Result<(), CacheFull> {
        let needed = self.bytes_used() + n * self.row() * 8 * self.shape.n_layers;
        if needed > self.budget_bytes {
            return Err(CacheFull { needed, budget: self.budget_bytes });
        }
        let row = self.row();
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.len += n;
            for (k, v) in &mut sequence.layers {
                k.resize(sequence.len * row, 0.0);
                v.resize(sequence.len * row, 0.0);
            }
        }
        Ok(())
    }

    pub fn write(&mut self, layer: usize, id: SequenceId, start: usize, k: &[f32], v: &[f32]) {
        let row = self.row();
        if let Some(sequence) = self.sequences.get_mut(&id) {
            let (keys, values) = &mut sequence.layers[layer];
            keys[start * row..start * row + k.len()].copy_from_slice(k);
            values[start * row..start * row + v.len()].copy_from_slice(v);
        }
    }

    fn row(&self) -> usize {
        self.shape.n_kv_heads * self.shape.head_dim
    }
}

#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
    pub softcap: Option<f32>,
    pub window: Option<usize>,
}

pub type Span = (SequenceId, usize, usize, usize);

pub fn attention(
    _: &Compute,
    shape: &AttentionShape,
    q: &[f32],
    cache: &KvCache,
    layer: usize,
    spans: &[Span],
    out: &mut [f32],
) {
    let d = shape.head_dim;
    let q_row = shape.n_heads * d;
    for (id, start, first, n) in spans.iter().copied() {
        let (keys, values) = &cache.sequences[&id].layers[layer];
        for i in 0..n {
            let position = start + i;
            let oldest = shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
            for head in 0..shape.n_heads {
                let q = &q[(first + i) * q_row + head * d..][..d];
                let kv_head = head / (shape.n_heads / shape.n_kv_heads);
                let at = |row: usize| row * cache.row() + kv_head * d;
                let mut scores: Vec<f32> = (oldest..=position)
                    .map(|j| {
                        let k = &keys[at(j)..][..d];
                        let dot =
                            q.iter().zip(k).fold(0.0f32, |sum, (q, k)| q.mul_add(*k, sum)) * shape.scale;
                        shape.softcap.map_or(dot, |cap| (dot / cap).tanh() * cap)
                    })
                    .collect();
                let max = scores.iter().copied().fold(f32::MIN, f32::max);
                let mut sum = 0.0;
                for score in &mut scores {
                    *score = (*score - max).exp();
                    sum += *score;
                }
                let out = &mut out[(first + i) * q_row + head * d..][..d];
                out.fill(0.0);
                for (j, score) in (oldest..=position).zip(&scores) {
                    for (o, v) in out.iter_mut().zip(&values[at(j)..][..d]) {
                        *o = (score / sum).mul_add(*v, *o);
                    }
                }
            }
        }
    }
}

/// Returns the greatest logit's first index, and the logarithm of the sum of exponentials.
pub fn argmax_and_log_sum(row: &[f32]) -> (usize, f32) {
    let best = (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
    let sum: f32 = row.iter().map(|x| (x - row[best]).exp()).sum();
    (best, row[best] + sum.ln())
}

pub fn softcap(_: &Compute, x: &mut [f32], cap: f32) {
    for x in x {
        *x = (*x / cap).tanh() * cap;
    }
}

pub fn softmax(_: &Compute, x: &mut [f32], len: usize) {
    for row in x.chunks_exact_mut(len) {
        let max = row.iter().copied().fold(f32::MIN, f32::max);
        let mut sum = 0.0;
        for x in row.iter_mut() {
            *x = (*x - max).exp();
            sum += *x;
        }
        for x in row {
            *x /= sum;
        }
    }
}

//! The one decoder: every family is a set of flags in its [`ModelConfig`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::batch::{Batch, Bounds, Ropes, RowsOf, wanted_spans};
use super::config::{Attention, ModelConfig, RopeScaling};
use super::decode::{Scored, Segment};
use super::moe::rows_of_experts;
use super::observe::{Input, InputSums, Observer, SiteTensors, Watch};
use super::residence::{self, Residence};
use super::weights::{FeedForward, Layer, Linear, Loader, Mlp, Vector, Weights};
use super::{Checkpoint, Error};
use crate::kernel::softmax::log_softmax_rows;
use crate::kernel::{Arithmetic, Compute, ComputeMode, Isa, KvCache, KvShape};
use crate::nn::{self, Turns};
use crate::tensor::Opened;

/// How a model is opened.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    pub mode: ComputeMode,
    pub isa: Isa,
    pub threads: usize,
    /// A PEFT directory or a GGUF adapter to apply.
    pub adapter: Option<PathBuf>,
    /// Most positions of a sequence; the model's own context if `None`.
    pub context: Option<usize>,
    pub residence: Residence,
}

impl LoadOptions {
    /// Returns the options for this machine's best instructions.
    pub fn new(mode: ComputeMode, threads: usize) -> Self {
        let (isa, residence) = (Isa::detect(), Residence::Auto);
        LoadOptions { mode, isa, threads, adapter: None, context: None, residence }
    }
}

/// A causal language model.
///
/// What it returns for a token depends on that token and those before it in its sequence alone, to the bit:
/// not on the batch, the threads, the instruction set, or how a sequence is cut into calls.
///
/// LongRoPE (Phi) is the exception, as in transformers: a sequence within the original context takes the short
/// factors, one past it the long ones, at all positions. The call that makes it outgrow that context computes it anew.
pub struct Decoder {
    pub(super) config: ModelConfig,
    pub(super) weights: Weights,
    pub(super) compute: Arc<Compute>,
    pub(super) mode: ComputeMode,
    pub(super) context: usize,
    pub(super) ropes: Ropes,
}

impl Decoder {
    /// Opens a Hugging Face directory, or a GGUF file (of a split one the first shard).
    ///
    /// Errors as [`super::map_checkpoint`] does, on an adapter that does not fit, and where the system gives no threads.
    pub fn open(path: &Path, options: &LoadOptions) -> Result<Self, Error> {
        let loader = match crate::tensor::open(path)? {
            Opened::Gguf(gguf) => Loader::of_gguf(gguf, options.isa)?,
            Opened::SafeTensors(_) if path.join("config.json").is_file() => {
                Loader::of_checkpoint(Checkpoint::open(path)?, options.isa)?
            }
            Opened::SafeTensors(_) => return Err(Error::NoConfig { path: path.to_path_buf() }),
        };
        let mut weights = loader.weights()?;
        let config = loader.config;
        let compute = compute(&config, path, options)?;
        if let Some(adapter) = &options.adapter {
            super::adapter::apply(adapter, &config, &mut weights, &compute)?;
        }
        residence::settle(&mut weights, options.residence, options.mode, &compute)
            .map_err(|source| Error::Memory { path: path.to_path_buf(), source })?;
        Ok(Decoder::assembled(config, weights, compute, options))
    }

    /// Returns the decoder of these weights.
    pub(super) fn assembled(
        config: ModelConfig,
        weights: Weights,
        compute: Arc<Compute>,
        options: &LoadOptions,
    ) -> Decoder {
        Decoder {
            ropes: Ropes::new(&config),
            context: options.context.unwrap_or(config.context_length),
            config,
            weights,
            compute,
            mode: options.mode,
        }
    }

    /// Returns the model's sizes and settings.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns what the kernels run on.
    pub fn compute(&self) -> &Compute {
        &self.compute
    }

    /// Returns the arithmetic of the products.
    pub fn mode(&self) -> ComputeMode {
        self.mode
    }

    /// Returns the most positions of a sequence.
    pub fn context_length(&self) -> usize {
        self.context
    }

    /// Returns an empty cache that holds at most `budget_bytes` of keys and values.
    pub fn new_cache(&self, budget_bytes: usize) -> KvCache {
        let ModelConfig { n_layers, n_kv_heads, head_dim, .. } = self.config;
        KvCache::new(KvShape { n_layers, n_kv_heads, head_dim }, budget_bytes)
    }

    /// Appends each segment's tokens to its sequence; returns the final-normed hidden states of the wanted
    /// tokens, `[R, C]`, in the segments' order.
    ///
    /// Errors if a token is outside the vocabulary, a sequence would outgrow the context, or the cache is
    /// full; the cache is then as it was.
    ///
    /// # Panics
    /// If a sequence is in two segments, is not the cache's, or a wanted index is none of its segment's.
    pub fn forward(&self, cache: &mut KvCache, segments: &[Segment<'_>]) -> Result<Tensor, Error> {
        self.watched(cache, segments, Watch::default())
    }

    /// As [`Decoder::forward`]; the observer hears of the inputs of all products, the output layer's included. Of the last layer
    /// those are the wanted tokens' alone; of a sequence that is computed anew (LongRoPE), all of it.
    ///
    /// Errors as `forward`, and if the observer does.
    pub fn forward_observed(
        &self,
        cache: &mut KvCache,
        segments: &[Segment<'_>],
        observer: &mut dyn Observer,
    ) -> Result<Tensor, Error> {
        self.watched(cache, segments, Watch::of(observer))
    }

    /// Returns an observer that sums the inputs at these sites, and has seen none.
    pub fn input_sums(&self, sites: Vec<SiteTensors>) -> InputSums {
        InputSums::new(self.compute.clone(), sites)
    }

    /// Returns true if a sequence that grows to `length` tokens in several calls is computed anew on its way.
    pub fn starts_anew_within(&self, length: usize) -> bool {
        self.ropes.change_between(1, length)
    }

    fn watched(
        &self,
        cache: &mut KvCache,
        segments: &[Segment<'_>],
        mut watch: Watch<'_>,
    ) -> Result<Tensor, Error> {
        self.bounds().forward(cache, segments, |cache, batch| {
            let hidden = self.run(&mut Pass { cache, watch: &mut watch }, batch)?;
            watch.refused.take().map_or(Ok(hidden), |refused| Err(Error::InputNotFinite(refused)))
        })
    }

    /// Returns what bounds the rows of a forward.
    pub(super) fn bounds(&self) -> Bounds<'_> {
        let vocab_size = self.weights.token_embedding.rows();
        Bounds { vocab_size, context: self.context, ropes: &self.ropes }
    }

    fn run(&self, pass: &mut Pass<'_, '_>, batch: &Batch) -> candle_core::Result<Tensor> {
        let config = &self.config;
        if batch.tokens.is_empty() {
            return Tensor::zeros((0, config.d_model), candle_core::DType::F32, &Device::Cpu);
        }
        let embedding = &self.weights.token_embedding;
        let mut x = nn::embedding(&self.compute, embedding, &batch.tokens, config.embedding_scale)?; // [T, C]
        let (last, layers) = match self.weights.layers.split_last() {
            Some(split) => split,
            None => candle_core::bail!("a model without layers"),
        };
        let all = RowsOf { batch, spans: &batch.spans, picked: None };
        for (i, layer) in layers.iter().enumerate() {
            x = self.layer(pass, i, layer, &x, &all)?;
        }
        // the last layer's keys and values are for later tokens; the rest only for the wanted rows
        let spans = wanted_spans(batch);
        let picked = (batch.wanted.len() < batch.tokens.len()).then_some(batch.wanted.as_slice());
        let x = self.layer(pass, layers.len(), last, &x, &RowsOf { batch, spans: &spans, picked })?;
        let hidden = self.norm(&x, &self.weights.output_norm)?; // [R, C]
        pass.watch.all(config.n_layers, Input::Output, &hidden)?;
        Ok(hidden)
    }

    fn layer(
        &self,
        pass: &mut Pass<'_, '_>,
        index: usize,
        layer: &Layer,
        x: &Tensor,
        rows: &RowsOf<'_>,
    ) -> candle_core::Result<Tensor> {
        let config = &self.config;
        let normed = self.norm(x, &layer.attn_norm)?;
        pass.watch.all(index, Input::Attention, &normed)?;
        let [q, k, v] = match rows.picked {
            None => take(self.linears(&normed, &[&layer.q, &layer.k, &layer.v])?)?,
            Some(picked) => {
                let [k, v] = take(self.linears(&normed, &[&layer.k, &layer.v])?)?;
                let [q] = take(self.linears(&nn::gather(&normed, picked)?, &[&layer.q])?)?;
                [q, k, v]
            }
        };
        let local = config.attention[index] == Attention::Sliding;
        let turns = self.turns(rows.batch, local);
        let k = self.head_norm(&k, &layer.k_norm)?;
        let k = nn::rope(&self.compute, &k, config.head_dim, &turns)?;
        self.store(pass.cache, index, rows.batch, &k, &v)?;
        let picked_x = match rows.picked {
            None => x.clone(),
            Some([]) => return nn::gather(x, &[]),
            Some(picked) => nn::gather(x, picked)?,
        };
        let q = self.head_norm(&q, &layer.q_norm)?;
        let q = nn::rope(&self.compute, &q, config.head_dim, &rows.turns(turns))?;
        let shape = config.attention_shape(config.attention[index]);
        let attending = nn::AttendingRows { cache: pass.cache, layer: index, spans: rows.spans };
        let attended = nn::attention(&self.compute, shape, &q, attending)?;
        pass.watch.all(index, Input::Attended, &attended)?;
        let [mut y] = take(self.linears(&attended, &[&layer.o])?)?;
        if let Some(norm) = &layer.post_attn_norm {
            y = self.norm(&y, norm)?;
        }
        let x = nn::add(&self.compute, &picked_x, &y)?;
        let mut y = self.feed_forward(pass.watch, index, &layer.ffn, &self.norm(&x, &layer.ffn_norm)?)?;
        if let Some(norm) = &layer.post_ffn_norm {
            y = self.norm(&y, norm)?;
        }
        nn::add(&self.compute, &x, &y)
    }

    fn turns(&self, batch: &Batch, local: bool) -> Turns {
        let tables = match &self.ropes.local {
            Some(table) if local => vec![(batch.tokens.len(), table.clone())],
            _ => batch.tables.clone(),
        };
        Turns { positions: batch.positions.as_slice().into(), tables }
    }

    fn store(
        &self,
        cache: &mut KvCache,
        layer: usize,
        batch: &Batch,
        k: &Tensor,
        v: &Tensor,
    ) -> candle_core::Result<()> {
        let len = self.config.n_kv_heads * self.config.head_dim;
        nn::with_values(k, |k| {
            nn::with_values(v, |v| {
                for span in &batch.spans {
                    let rows = span.first_row * len..(span.first_row + span.n_rows) * len;
                    cache.write(layer, span.sequence, span.start, &k[rows.clone()], &v[rows]);
                }
            })
        })?
    }

    fn feed_forward(
        &self,
        watch: &mut Watch<'_>,
        index: usize,
        ffn: &FeedForward,
        x: &Tensor,
    ) -> candle_core::Result<Tensor> {
        match ffn {
            FeedForward::Dense(mlp) => self.mlp(mlp, x, |input, x| watch.all(index, input, x)),
            FeedForward::Experts { router, experts } => {
                watch.all(index, Input::Router, x)?;
                self.experts(router, experts, x, |input, expert, x| watch.part(index, input, Some(expert), x))
            }
        }
    }

    /// `see` is told what goes into the products.
    fn mlp(
        &self,
        mlp: &Mlp,
        x: &Tensor,
        mut see: impl FnMut(Input, &Tensor) -> candle_core::Result<()>,
    ) -> candle_core::Result<Tensor> {
        see(Input::FeedForward, x)?;
        let [gate, up] = take(self.linears(x, &[&mlp.gate, &mlp.up])?)?;
        let hidden = nn::gated(&self.compute, self.config.activation, &gate, &up)?;
        see(Input::Gated, &hidden)?;
        let [y] = take(self.linears(&hidden, &[&mlp.down])?)?;
        Ok(y)
    }

    /// Each expert computes its tokens' rows at once; a token's experts are summed in ascending index. `see` is told what goes
    /// into the products of which expert, and of which rows.
    fn experts(
        &self,
        router: &Linear,
        experts: &[Mlp],
        x: &Tensor,
        mut see: impl FnMut(Input, (usize, &[usize]), &Tensor) -> candle_core::Result<()>,
    ) -> candle_core::Result<Tensor> {
        let Some(config) = &self.config.experts else { candle_core::bail!("experts without a config") };
        // a router is F32 in every GGUF, so it is computed in f32 whatever a checkpoint stores it in
        let [logits] = take(nn::products(&self.compute, x, vec![router.product(Arithmetic::F32)])?)?;
        let logits = router.adapted(&self.compute, logits, x)?;
        let probabilities = nn::softmax(&self.compute, &logits)?; // [T, E]
        let rows_of = rows_of_experts(&probabilities, config)?;
        let mut y = vec![0.0; x.elem_count()];
        for (e, (mlp, rows)) in experts.iter().zip(&rows_of).enumerate().filter(|(_, (_, r))| !r.is_empty()) {
            let indexes: Vec<usize> = rows.iter().map(|(row, _)| *row).collect();
            let taken = nn::gather(x, &indexes)?;
            let expert = self.mlp(mlp, &taken, |input, x| see(input, (e, &indexes), x))?;
            nn::scatter_scaled(&expert, rows, &mut y)?;
        }
        Tensor::from_vec(y, x.shape(), &Device::Cpu)
    }

    fn norm(&self, x: &Tensor, weight: &Vector) -> candle_core::Result<Tensor> {
        nn::rms_norm(&self.compute, x, weight, self.config.rms_norm_eps)
    }

    fn head_norm(&self, x: &Tensor, weight: &Option<Vector>) -> candle_core::Result<Tensor> {
        weight.as_ref().map_or_else(|| Ok(x.clone()), |weight| self.norm(x, weight))
    }

    fn linears(&self, x: &Tensor, linears: &[&Linear]) -> candle_core::Result<Vec<Tensor>> {
        let product = |linear: &&Linear| linear.product(self.mode.arithmetic(linear.weight.dtype()));
        let out = nn::products(&self.compute, x, linears.iter().map(product).collect())?;
        out.into_iter().zip(linears).map(|(y, linear)| linear.adapted(&self.compute, y, x)).collect()
    }

    /// Returns the logits of hidden states `[R, C]`, capped if the model caps them: `[R, V]`.
    ///
    /// Errors if the rows are not as long as the model is wide.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor, Error> {
        let [logits] = take(self.linears(hidden, &[&self.weights.output])?)?;
        match self.config.final_logit_softcap.filter(|cap| *cap != 0.0) {
            None => Ok(logits),
            Some(cap) => Ok(nn::softcap(&self.compute, &logits, cap)?),
        }
    }

    /// Returns how likely each `(row, token)` of `targets` is after the hidden states `[R, C]`; rows ascend.
    ///
    /// Logits are computed for few rows at a time, and once for the targets of one row. Errors on a token outside the vocabulary.
    ///
    /// # Panics
    /// If a row is not below R.
    pub fn score(&self, hidden: &Tensor, targets: &[(usize, u32)]) -> Result<Vec<Scored>, Error> {
        /// Logits held at a time: 32 MiB.
        const LOGITS: usize = 8 << 20;
        let vocab_size = self.weights.output.weight.rows();
        if let Some((_, token)) = targets.iter().find(|(_, token)| *token as usize >= vocab_size) {
            return Err(Error::TokenOutOfRange { token: *token, vocab_size });
        }
        let mut rows: Vec<usize> = targets.iter().map(|(row, _)| *row).collect();
        rows.dedup();
        let mut scored = Vec::with_capacity(targets.len());
        let mut rest = targets;
        for rows in rows.chunks((LOGITS / vocab_size).max(1)) {
            let logits = self.logits(&nn::gather(hidden, rows)?)?;
            nn::with_values(&logits, |logits| {
                let pieces = log_softmax_rows(&self.compute, logits, vocab_size);
                for ((row, logits), pieces) in rows.iter().zip(logits.chunks_exact(vocab_size)).zip(pieces) {
                    let n = rest.iter().take_while(|(of, _)| of == row).count();
                    for (_, token) in &rest[..n] {
                        let log_prob = pieces.log_prob(logits[*token as usize]);
                        scored.push(Scored { log_prob, is_greedy: pieces.argmax == *token as usize });
                    }
                    rest = &rest[n..];
                }
            })?;
        }
        Ok(scored)
    }
}

/// What a forward writes to besides its result.
struct Pass<'a, 'w> {
    cache: &'a mut KvCache,
    watch: &'a mut Watch<'w>,
}

/// Returns what a model of that config (of `path`) runs on.
///
/// Errors on a kind of rope that the decoder lacks, and where the system gives no threads.
pub(super) fn compute(
    config: &ModelConfig,
    path: &Path,
    options: &LoadOptions,
) -> Result<Arc<Compute>, Error> {
    if let RopeScaling::Unsupported(kind) = &config.rope.scaling {
        return Err(Error::RopeKind { path: path.to_path_buf(), kind: kind.clone() });
    }
    let compute = Compute::new(options.isa, options.threads).map_err(|source| Error::Threads { source })?;
    Ok(Arc::new(compute))
}

impl Linear {
    /// Returns the product without the adapter, and without the bias if that comes behind the adapter.
    fn product(&self, arithmetic: Arithmetic) -> nn::Product {
        let comes_behind = self.low_rank.as_ref().is_some_and(|low_rank| low_rank.is_scaled());
        let bias = self.bias.clone().filter(|_| !comes_behind);
        nn::Product { weight: self.weight.clone(), bias, arithmetic }
    }

    /// Returns the output for x, of which `y` is the product.
    fn adapted(&self, compute: &Arc<Compute>, y: Tensor, x: &Tensor) -> candle_core::Result<Tensor> {
        match &self.low_rank {
            None => Ok(y),
            Some(low_rank) => low_rank.add_to(compute, &y, x, self.bias.as_ref()),
        }
    }
}

/// Returns the N results of N products.
fn take<const N: usize>(tensors: Vec<Tensor>) -> candle_core::Result<[Tensor; N]> {
    tensors.try_into().map_err(|tensors: Vec<Tensor>| {
        candle_core::Error::Msg(format!("{} results for {N} products", tensors.len()))
    })
}

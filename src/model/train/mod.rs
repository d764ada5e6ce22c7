//! The decoder as it is trained: forward and backward written by hand, block by block.
//!
//! A micro-batch is documents laid out one after another, without padding; attention ends where a document does. What a
//! document adds to the loss and to the gradients depends on its tokens and its place in the step alone. A parameter's gradient is
//! one chain of fused multiply-adds over the rows of all micro-batches in order. So how documents are packed and cut into
//! micro-batches changes no bit, nor do threads, instruction sets, or whether blocks are computed anew in the backward.

mod adapted;
mod base;
mod block;
#[cfg(gpu)]
mod device;
mod dora;
mod error;
mod feed_forward;
mod kept;
mod linear;
mod modules;
mod params;
mod pass;
mod plan;
mod random;
mod sheet;
mod spec;
mod start;

use std::ops::Range;
use std::path::Path;

use candle_core::Tensor;

use self::adapted::Putter;
use self::block::Saved;
use self::kept::Form;
use self::pass::Pass;
use self::plan::{Embedding, Plan};
use self::sheet::Sheet;
use super::decoder::{Decoder, LoadOptions};
use super::residence::Residence;
use super::weights::{FeedForward, Layer, Linear, Mlp};
use crate::kernel::{ComputeMode, Matrix};
use crate::nn::{self, Head};

pub use base::BaseFormat;
#[cfg(gpu)]
pub use device::{
    OnDevice, PendingLoss, Precision, base_bytes as device_base_bytes, check as check_on_device,
};
pub use error::Error;
pub use params::Parameters;
pub use spec::{LowRankSpec, Method, TargetModules};

/// A run of the flat vector: one tensor, under the name that adapters (PEFT's) or checkpoints have for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterInfo {
    pub name: String,
    pub shape: Vec<usize>,
    pub range: Range<usize>,
    /// False for norms and biases, which weight decay usually leaves alone.
    pub decays: bool,
}

/// Tokens to learn from.
#[derive(Clone, Copy, Debug)]
pub struct Document<'a> {
    pub tokens: &'a [u32],
    /// Which tokens are predicted from those before them; the first never is.
    pub is_target: &'a [bool],
}

impl Document<'_> {
    /// Returns the number of tokens that count in the loss.
    pub fn n_targets(&self) -> usize {
        self.is_target.iter().skip(1).filter(|is_target| **is_target).count()
    }
}

/// Which numbers dropout draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepKey {
    pub seed: u64,
    /// The optimizer's step.
    pub step: u32,
    /// Index, among the documents of the step, of the micro-batch's first.
    pub first_document: u32,
}

/// A sum of losses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSum {
    /// Sum of negative log-likelihoods, in nats, tokens ascending.
    pub nll: f64,
    /// Targets they are of.
    pub tokens: usize,
}

/// What a forward leaves for the backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checkpointing {
    /// All it needs.
    #[default]
    None,
    /// The input of every block, which is computed anew (arXiv:1604.06174): less memory, a third more time.
    Blocks,
}

/// A model, and what is trained of it.
pub struct Trainable {
    decoder: Decoder,
    plan: Plan,
    rate: f32,
    checkpointing: Checkpointing,
}

impl Trainable {
    /// Returns the model with the parameters that `method` trains.
    ///
    /// Errors on a name or pattern that fits no module, on settings no adapter can have, on a model opened with an
    /// adapter, and on [`ComputeMode::Int8`].
    pub fn new(decoder: Decoder, method: &Method) -> Result<Self, Error> {
        Trainable::with_base(decoder, method, None)
    }

    /// Returns the same with the matrices of frozen linear layers in blocks, if `base` says so (QLoRA). Embedding, output layer, norms,
    /// routers and modules that are trained whole stay as they are. Should be given a decoder whose weights are mapped: packed ones
    /// keep their memory until the last is quantized.
    ///
    /// Errors as [`Trainable::new`]; on a matrix that is in blocks already, whose rows are no whole blocks, or with a weight that is
    /// not finite in that format; and if nothing is frozen.
    pub fn with_base(mut decoder: Decoder, method: &Method, base: Option<BaseFormat>) -> Result<Self, Error> {
        if is_adapted(&decoder) {
            return Err(Error::AdaptedBase);
        }
        if decoder.mode == ComputeMode::Int8 {
            return Err(Error::IntegerProducts);
        }
        if let Some(format) = base {
            base::quantize(&mut decoder, method, format)?;
        }
        let plan = plan::plan(&decoder, method)?;
        let rate = match method {
            Method::Full => 0.0,
            Method::LowRank(spec) => spec.lora_dropout,
        };
        Ok(Trainable { decoder, plan, rate, checkpointing: Checkpointing::None })
    }

    /// Returns the same with another way to keep activations; it changes no bit of any result.
    pub fn with_checkpointing(self, checkpointing: Checkpointing) -> Self {
        Trainable { checkpointing, ..self }
    }

    /// Opens a model for training. Weights stay mapped whatever `options` say: the gradients of inputs read rows, and packed
    /// weights are laid out for products with columns.
    ///
    /// Errors as [`Decoder::open`] and [`Trainable::new`].
    pub fn open(path: &Path, method: &Method, options: &LoadOptions) -> Result<Self, Error> {
        let options = LoadOptions { residence: Residence::Mapped, ..options.clone() };
        Trainable::new(Decoder::open(path, &options)?, method)
    }

    /// Returns a model that has learned nothing, all of whose weights are trained: of the sizes in `config_path`, a
    /// config.json; matrices are drawn from a normal distribution (`initializer_range`), norms are 1, biases 0.
    ///
    /// Errors as [`super::ModelConfig::from_hf`].
    pub fn random(config_path: &Path, seed: u64, options: &LoadOptions) -> Result<Self, Error> {
        Trainable::new(random::decoder(config_path, seed, options)?, &Method::Full)
    }

    /// Returns the bytes of memory that [`Trainable::random`] takes for the matrices that it draws.
    ///
    /// Errors as there.
    pub fn random_bytes(config_path: &Path) -> Result<u64, Error> {
        Ok(random::bytes(config_path)?)
    }

    /// Returns the bytes of memory that [`Trainable::with_base`] takes for the frozen matrices of an adapter, at most: all linear layers
    /// within blocks, in that format.
    pub fn quantized_bytes(decoder: &Decoder, base: BaseFormat) -> u64 {
        base::bytes(decoder, base)
    }

    /// Returns a model of the sizes in `config`, a config.json, for timings: all matrices are pieces of one vector of random numbers, so
    /// that it is there at once, whatever its size; with `base`, the frozen ones are in blocks.
    ///
    /// Errors as [`super::ModelConfig::from_hf`] and [`Trainable::new`], and on a `base` that rows of the model do not fit.
    pub fn alike(
        config: &serde_json::Value,
        method: &Method,
        base: Option<BaseFormat>,
        options: &LoadOptions,
    ) -> Result<Self, Error> {
        Trainable::new(random::alike(config, base.map(BaseFormat::dtype), options)?, method)
    }

    /// Returns the decoder with these parameters: what inference after training computes.
    ///
    /// # Panics
    /// If there are not as many parameters.
    pub fn adapted(&self, params: &Parameters) -> Result<Decoder, Error> {
        let sheet = self.sheet(&[], 0)?;
        let pass = self.pass(Some(params), &sheet, None);
        let mut weights = self.decoder.weights.clone();
        Putter { pass: &pass, values: params.shared() }.put(&self.plan, &mut weights)?;
        let Decoder { config, compute, mode, context, ropes, .. } = &self.decoder;
        Ok(Decoder {
            config: config.clone(),
            weights,
            compute: compute.clone(),
            mode: *mode,
            context: *context,
            ropes: ropes.clone(),
        })
    }

    /// Returns how activations are kept.
    pub fn checkpointing(&self) -> Checkpointing {
        self.checkpointing
    }

    /// Returns the model without what is trained.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Returns the bytes of the model's matrices as they lie: in their file, or in memory if they were packed or quantized.
    pub fn base_bytes(&self) -> usize {
        self.matrices().iter().map(|matrix| matrix.stored_bytes()).sum()
    }

    /// Returns the bytes of the matrices that are read where they lie in a file, and take memory from then on: without those that are
    /// trained whole, which are read once and given back, unless the model as it was opened is asked again (`with_trained`).
    pub fn mapped_bytes(&self, with_trained: bool) -> usize {
        let all: usize = self.matrices().iter().map(|matrix| matrix.mapped_bytes()).sum();
        let trained: usize = self.plan.starts.iter().map(start::Start::mapped_bytes).sum();
        if with_trained { all } else { all.saturating_sub(trained) }
    }

    /// Returns whether the output layer is trained as a whole.
    pub fn trains_head(&self) -> bool {
        self.plan.output_gradient.is_some()
    }

    fn matrices(&self) -> Vec<&Matrix> {
        let weights = &self.decoder.weights;
        let mut all = vec![&weights.token_embedding];
        if !self.decoder.config.tied_embeddings {
            all.push(&weights.output.weight);
        }
        fn of(mlp: &Mlp) -> [&Matrix; 3] {
            [&mlp.gate, &mlp.up, &mlp.down].map(|linear| &linear.weight)
        }
        for layer in &weights.layers {
            all.extend([&layer.q, &layer.k, &layer.v, &layer.o].map(|linear| &linear.weight));
            match &layer.ffn {
                FeedForward::Dense(dense) => all.extend(of(dense)),
                FeedForward::Experts { router, experts } => {
                    all.push(&router.weight);
                    all.extend(experts.iter().flat_map(of));
                }
            }
        }
        all
    }

    /// Returns the parameters in the order of the flat vector.
    pub fn parameters(&self) -> &[ParameterInfo] {
        &self.plan.parameters
    }

    /// Returns the length of the flat vector of parameters.
    pub fn n_parameters(&self) -> usize {
        self.plan.n_parameters
    }

    /// Returns the length of the vector that gradients are summed in: more than the parameters where the output layer is
    /// the embedding, whose gradient is two sums until [`Trainable::finish_gradients`].
    pub fn gradient_len(&self) -> usize {
        let end = self.plan.output_gradient.as_ref().map_or(0, |range| range.end);
        self.plan.n_parameters.max(end)
    }

    /// Returns the parameters before the first step: an adapter's A as PEFT draws it (but from our numbers), B zero.
    pub fn initial_parameters(&self, seed: u64) -> Parameters {
        start::initial(&self.plan, self.decoder.compute.isa, seed).into()
    }

    /// Returns the parameters in a safetensors file, such as an adapter_model.safetensors.
    ///
    /// Errors on one that is missing, of another shape or no float, and on a tensor that is no parameter.
    pub fn read_parameters(&self, path: &Path) -> Result<Parameters, Error> {
        Ok(start::read(&self.plan.parameters, self.decoder.compute.isa, path)?.into())
    }

    /// Adds the gradients of `scale` times the summed loss of the documents to `grads`, which is
    /// [`Trainable::gradient_len`] long; returns the loss, unscaled.
    ///
    /// Errors on a token outside the vocabulary, a document longer than the context, and flags that don't fit tokens.
    ///
    /// # Panics
    /// If `params` or `grads` have another length.
    pub fn forward_backward(
        &self,
        params: &Parameters,
        documents: &[Document<'_>],
        scale: f32,
        step: StepKey,
        grads: &mut [f32],
    ) -> Result<LossSum, Error> {
        assert_eq!(grads.len(), self.gradient_len());
        let sheet = self.sheet(documents, step.first_document)?;
        if sheet.scored.is_empty() {
            return Ok(LossSum::default());
        }
        let pass = self.pass(Some(params), &sheet, Some(step));
        let (picked, tape) = self.forward(&pass, true)?; // [R, C]
        let hidden = self.plan.output_norm.forward(&pass, &picked)?;
        let gradient = self.plan.output_gradient.clone().map(|range| &mut grads[range]);
        let head = self.head(&pass);
        let nn::CrossEntropy { nll, d_hidden } =
            nn::cross_entropy(pass.compute, &hidden, &head, &sheet.targets, scale, gradient)?;
        self.backward(&pass, (&picked, &d_hidden), tape, grads)?;
        Ok(LossSum { nll: sum(&nll), tokens: nll.len() })
    }

    /// Adds up what is summed apart; to be called once, after a step's last micro-batch. The parameters' gradients are then the
    /// first [`Trainable::n_parameters`] values.
    pub fn finish_gradients(&self, grads: &mut [f32]) {
        assert_eq!(grads.len(), self.gradient_len());
        let (grads, apart) = grads.split_at_mut(self.plan.n_parameters);
        if let Some(range) = self.plan.embedding.range.clone().filter(|_| !apart.is_empty()) {
            grads[range].iter_mut().zip(apart).for_each(|(sum, apart)| *sum += *apart);
        }
    }

    /// Returns the summed loss of the documents, without dropout; with `params` `None` of the model as it was opened.
    ///
    /// Errors as [`Trainable::forward_backward`].
    pub fn loss(&self, params: Option<&Parameters>, documents: &[Document<'_>]) -> Result<LossSum, Error> {
        let log_probs = self.log_probs(params, documents)?;
        let nll = log_probs.iter().flatten().fold(0.0, |sum, log_prob| sum - f64::from(*log_prob));
        Ok(LossSum { nll, tokens: log_probs.iter().map(Vec::len).sum() })
    }

    /// Returns the natural-log probability of every target of every document, without dropout; with `params` `None` of the
    /// model as it was opened: the reference of preference training.
    ///
    /// Errors as [`Trainable::forward_backward`].
    pub fn log_probs(
        &self,
        params: Option<&Parameters>,
        documents: &[Document<'_>],
    ) -> Result<Vec<Vec<f32>>, Error> {
        let sheet = self.sheet(documents, 0)?;
        if sheet.scored.is_empty() {
            return Ok(vec![Vec::new(); documents.len()]);
        }
        let pass = self.pass(params, &sheet, None);
        let (picked, _) = self.forward(&pass, false)?;
        let hidden = self.plan.output_norm.forward(&pass, &picked)?;
        let log_probs = nn::log_probs(pass.compute, &hidden, &self.head(&pass), &sheet.targets)?;
        Ok(sheet.scored_cu.windows(2).map(|ends| log_probs[ends[0]..ends[1]].to_vec()).collect())
    }

    /// Adds the gradients of a loss of the documents' log-probabilities to `grads`. `slopes` gets every target's
    /// log-probability, document by document, and returns the loss's derivative by the sum of each document's.
    ///
    /// So preference losses (DPO) are trained: a document is an answer with its prompt. Errors as
    /// [`Trainable::forward_backward`].
    ///
    /// # Panics
    /// If `params` or `grads` have another length, or there are not as many slopes as documents.
    pub fn log_probs_backward(
        &self,
        params: &Parameters,
        documents: &[Document<'_>],
        step: StepKey,
        slopes: impl FnOnce(&[Vec<f32>]) -> Vec<f32>,
        grads: &mut [f32],
    ) -> Result<(), Error> {
        assert_eq!(grads.len(), self.gradient_len());
        let sheet = self.sheet(documents, step.first_document)?;
        if sheet.scored.is_empty() {
            assert_eq!(slopes(&vec![Vec::new(); documents.len()]).len(), documents.len());
            return Ok(());
        }
        let pass = self.pass(Some(params), &sheet, Some(step));
        let (picked, tape) = self.forward(&pass, true)?; // [R, C]
        let hidden = self.plan.output_norm.forward(&pass, &picked)?;
        let (head, targets) = (self.head(&pass), &sheet.targets);
        let log_probs = nn::log_probs(pass.compute, &hidden, &head, targets)?;
        let ends = || sheet.scored_cu.windows(2);
        let each: Vec<Vec<f32>> = ends().map(|ends| log_probs[ends[0]..ends[1]].to_vec()).collect();
        let slopes = slopes(&each);
        assert_eq!(slopes.len(), documents.len());
        let repeated = ends().zip(slopes).flat_map(|(ends, slope)| vec![slope; ends[1] - ends[0]]);
        let slopes: Vec<f32> = repeated.collect();
        let gradient = self.plan.output_gradient.clone().map(|range| &mut grads[range]);
        let d_hidden = nn::log_probs_backward(pass.compute, &hidden, &head, targets, &slopes, gradient)?;
        self.backward(&pass, (&picked, &d_hidden), tape, grads)
    }

    /// Returns the number of tokens there are: a GGUF may lack rows that its keys count.
    fn vocab_size(&self) -> usize {
        self.plan.output.base.weight.rows()
    }

    fn sheet(&self, documents: &[Document<'_>], first: u32) -> Result<Sheet, Error> {
        let decoder = &self.decoder;
        Sheet::new(documents, first, &decoder.ropes, self.vocab_size(), decoder.context)
    }

    fn pass<'a>(
        &'a self,
        params: Option<&'a Parameters>,
        sheet: &'a Sheet,
        step: Option<StepKey>,
    ) -> Pass<'a> {
        assert!(params.is_none_or(|params| params.len() == self.plan.n_parameters));
        let key = step.unwrap_or(StepKey { seed: 0, step: 0, first_document: 0 });
        Pass {
            compute: &self.decoder.compute,
            config: &self.decoder.config,
            params: params.map_or(&[], |params| params),
            shared: params.map(Parameters::shared).unwrap_or_default(),
            is_base: params.is_none(),
            sheet,
            rate: if step.is_some() { self.rate } else { 0.0 },
            seed: key.seed,
            step: key.step,
            form: if self.decoder.mode == ComputeMode::F32 { Form::Exact } else { Form::Bf16 },
        }
    }

    fn head(&self, pass: &Pass<'_>) -> Head {
        let softcap = pass.config.final_logit_softcap.filter(|cap| *cap != 0.0);
        Head { product: self.plan.output.product(pass), softcap }
    }

    /// Returns the index of the first block that a gradient has to reach: the number of blocks if none.
    fn first_trained(&self) -> usize {
        match self.plan.embedding.range {
            Some(_) => 0,
            None => {
                let blocks = &self.plan.blocks;
                blocks.iter().position(block::Block::is_trained).unwrap_or(blocks.len())
            }
        }
    }

    /// Returns the last block's output for the rows that targets are predicted from, `[R, C]`, and what the backward needs of the
    /// blocks from the first trained one on.
    fn forward(&self, pass: &Pass<'_>, is_kept: bool) -> Result<(Tensor, Vec<Taped>), Error> {
        let Embedding { base, range } = &self.plan.embedding;
        let table = pass.matrix(range, base.rows(), base.cols()).unwrap_or_else(|| base.clone());
        let scale = pass.config.embedding_scale;
        let mut x = nn::embedding(pass.compute, &table, &pass.sheet.tokens, scale)?;
        let first = self.first_trained();
        let mut tape = Vec::new();
        for (i, block) in self.plan.blocks.iter().enumerate() {
            let (next, saved) = block.forward(pass, &x)?;
            if is_kept && i >= first {
                tape.push(match self.checkpointing {
                    Checkpointing::None => Taped::All(Box::new(saved)),
                    Checkpointing::Blocks => Taped::Input(x),
                });
            }
            x = next;
        }
        Ok((x, tape))
    }

    /// Goes back from the rows that targets were predicted from, `[R, C]`, and the gradients behind the output norm.
    fn backward(
        &self,
        pass: &Pass<'_>,
        (picked, dhidden): (&Tensor, &Tensor),
        mut tape: Vec<Taped>,
        grads: &mut [f32],
    ) -> Result<(), Error> {
        let mut dx = self.plan.output_norm.backward(pass, picked, dhidden, grads)?;
        let first = self.first_trained();
        let embedding = &self.plan.embedding.range;
        for (i, block) in self.plan.blocks.iter().enumerate().skip(first).rev() {
            let Some(taped) = tape.pop() else { break };
            let saved = match taped {
                Taped::All(saved) => saved,
                Taped::Input(x) => Box::new(block.forward(pass, &x)?.1),
            };
            let wants_dx = i > first || embedding.is_some();
            match block.backward(pass, &saved, &dx, wants_dx, grads)? {
                Some(next) => dx = next,
                None => return Ok(()),
            }
        }
        if let Some(range) = embedding {
            let scale = pass.config.embedding_scale;
            nn::embedding_backward(&pass.sheet.tokens, &dx, scale, &mut grads[range.clone()])?;
        }
        Ok(())
    }
}

/// Returns the sum in f64, ascending.
fn sum(nll: &[f32]) -> f64 {
    nll.iter().fold(0.0, |sum, nll| sum + f64::from(*nll))
}

fn is_adapted(decoder: &Decoder) -> bool {
    let any = |linears: &[&Linear]| linears.iter().any(|linear| linear.low_rank.is_some());
    let mlp = |mlp: &Mlp| any(&[&mlp.gate, &mlp.up, &mlp.down]);
    let layer = |layer: &Layer| {
        any(&[&layer.q, &layer.k, &layer.v, &layer.o])
            || match &layer.ffn {
                FeedForward::Dense(dense) => mlp(dense),
                FeedForward::Experts { router, experts } => any(&[router]) || experts.iter().any(mlp),
            }
    };
    any(&[&decoder.weights.output]) || decoder.weights.layers.iter().any(layer)
}

/// What the backward has of a block.
enum Taped {
    All(Box<Saved>),
    Input(Tensor),
}

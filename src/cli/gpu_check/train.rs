//! A step of fine-tuning: of a tiny model beside the CPU, and timed on the shapes of an 8B model.

use std::time::Instant;

use serde_json::{Value, json};

use super::report::Training;
use super::run::{Against, Checker};
use crate::error::Failure;
use crate::finetune::run::{Engine, engine};
use crate::finetune::{Group, Optimizer, Update};
use crate::kernel::ComputeMode;
use crate::model::LoadOptions;
use crate::model::train::{
    BaseFormat, Checkpointing, Document, Error, LowRankSpec, Method, OnDevice, Parameters, StepKey, Trainable,
};

/// Sizes of a Llama.
#[derive(Clone, Copy)]
pub struct Shape {
    d_model: usize,
    d_ff: usize,
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: usize,
    vocab_size: usize,
}

pub const TINY: Shape =
    Shape { d_model: 128, d_ff: 192, n_layers: 2, n_heads: 2, n_kv_heads: 1, vocab_size: 300 };

/// Llama 3.1 8B.
pub const LARGE: Shape =
    Shape { d_model: 4096, d_ff: 14_336, n_layers: 32, n_heads: 32, n_kv_heads: 8, vocab_size: 128_256 };

impl Shape {
    fn config(self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.d_model,
            "intermediate_size": self.d_ff,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "tie_word_embeddings": false,
            "hidden_act": "silu",
        })
    }

    pub fn model(
        self,
        spec: LowRankSpec,
        base: Option<BaseFormat>,
        mode: ComputeMode,
    ) -> Result<Trainable, Error> {
        let options = LoadOptions::new(mode, crate::cli::machine::threads(None));
        Trainable::alike(&self.config(), &Method::LowRank(spec), base, &options)
    }

    /// Returns documents of that many tokens each.
    pub fn tokens(self, n_documents: usize, length: usize) -> Vec<Vec<u32>> {
        // below the vocabulary, which is below 2^32
        let token = |i: usize| (i * i % 7919 * 31 + i) % self.vocab_size;
        (0..n_documents).map(|d| (0..length).map(|t| token(d * length + t) as u32).collect()).collect()
    }
}

const KEY: StepKey = StepKey { seed: 1, step: 0, first_document: 0 };

/// Returns parameters none of which is zero.
pub fn moved(model: &Trainable) -> Parameters {
    let mut params = model.initial_parameters(1);
    for (i, value) in params.iter_mut().enumerate() {
        *value += ((i * 48_271) % 1009) as f32 / 20_000.0 - 0.025;
    }
    params
}

/// Compares a step with the CPU's in f32.
pub fn check(checker: &mut Checker<'_>) -> Result<(), Failure> {
    let tokens = TINY.tokens(3, 70);
    let flags = [true; 70];
    let documents: Vec<Document<'_>> =
        tokens.iter().map(|tokens| Document { tokens, is_target: &flags }).collect();
    for &(base, use_dora) in checker.shapes(&[(None, false), (Some(BaseFormat::Nf4), false), (None, true)], 1)
    {
        let spec = || LowRankSpec { lora_dropout: 0.1, use_dora, ..LowRankSpec::new(4) };
        let exact = TINY.model(spec(), base, ComputeMode::F32)?;
        let params = moved(&exact);
        let mut want = vec![0.0; exact.gradient_len()];
        let sum = exact.forward_backward(&params, &documents, 1.0, KEY, &mut want)?;
        for (mode, type_name, allowed) in [(ComputeMode::F32, "f32", 1e-4), (ComputeMode::Bf16, "bf16", 5e-2)]
        {
            let model = TINY.model(spec(), base, mode)?;
            let device = checker.device;
            let mut trained = OnDevice::new(&model, device, &params)?;
            let adapter = if use_dora { "dora" } else { "lora" };
            let shape = format!("{adapter} {}", base.map_or("dense".to_owned(), BaseFormat::name));
            let name = format!("training step {type_name}");
            let mut nll = 0.0;
            let found = checker.twice(&name, &shape, &mut || {
                trained.clear_gradients()?;
                nll = trained.forward_backward(&documents, 1.0, KEY)?.read(device)?.nll;
                Ok::<_, Failure>(trained.gradients().read(device)?)
            })?;
            checker.near_cpu(&name, &shape, &found, &want, allowed, Against::Largest);
            let off = (nll - sum.nll).abs() / sum.nll;
            checker.note(&format!("training loss {type_name}"), "cpu", &shape, off, allowed);
        }
    }
    Ok(())
}

/// Times steps of LoRA and QLoRA on the shapes of Llama 3.1 8B with random weights; benches/versus_peft_gpu.py has the same ways.
pub fn bench(checker: &mut Checker<'_>) -> Result<(), Failure> {
    let ways = [
        ("lora r 16, bf16", None, Checkpointing::None, 4, 2048),
        ("lora r 16, bf16, blocks computed anew", None, Checkpointing::Blocks, 4, 2048),
        ("lora r 16, nf4, blocks computed anew", Some(BaseFormat::Nf4), Checkpointing::Blocks, 4, 2048),
        ("lora r 16, bf16, blocks computed anew", None, Checkpointing::Blocks, 1, 8192),
    ];
    for (what, base, checkpointing, n_documents, length) in ways {
        let model = LARGE.model(LowRankSpec::new(16), base, ComputeMode::Bf16)?;
        let model = model.with_checkpointing(checkpointing);
        match timed(checker, &model, what, (n_documents, length)) {
            Ok(training) => checker.trainings.push(training),
            // a smaller device has no room for each
            Err(Error::Device(error @ crate::cuda::CudaError::OutOfMemory { .. })) => {
                crate::cli::term::say(&format!("{what}, {n_documents} x {length} tokens: {error}"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn timed(
    checker: &Checker<'_>,
    model: &Trainable,
    what: &str,
    (n_documents, length): (usize, usize),
) -> Result<Training, Error> {
    const STEPS: u32 = 5;
    let device = checker.device;
    device.reset_peak();
    let optimizer = Optimizer::adamw();
    let params = model.initial_parameters(1);
    let state = optimizer.state(params.len());
    let begun = Instant::now();
    let mut engine = engine(model, Some(device), optimizer, params, state)?;
    device.synchronize()?;
    let upload_seconds = begun.elapsed().as_secs_f64();
    let tokens = LARGE.tokens(n_documents, length);
    let flags = vec![true; length];
    let documents: Vec<Document<'_>> =
        tokens.iter().map(|tokens| Document { tokens, is_target: &flags }).collect();
    let n_targets = n_documents * (length - 1);
    let mut seconds = Vec::new();
    for step in 0..=STEPS {
        let begun = Instant::now();
        one_step(engine.as_mut(), &documents, n_targets, StepKey { step, ..KEY }, model.n_parameters())?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    // the first step warms up
    let step_seconds = median(&mut seconds[1..]);
    Ok(Training {
        what: what.to_owned(),
        shape: format!("8B, {n_documents} x {length} tokens"),
        step_seconds,
        n_parameters: model.n_parameters(),
        tokens_per_second: (n_documents * length) as f64 / step_seconds,
        peak_bytes: device.peak_bytes(),
        upload_seconds,
    })
}

/// Returns the value in the middle of an odd number of them.
fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Does a step, and waits for it.
fn one_step(
    engine: &mut dyn Engine,
    documents: &[Document<'_>],
    n_targets: usize,
    key: StepKey,
    n_parameters: usize,
) -> Result<(), Error> {
    engine.clear_gradients()?;
    // the mean over targets
    engine.forward_backward(documents, 1.0 / n_targets as f32, key)?;
    engine.finish_gradients()?;
    engine.gradient_norm()?;
    let groups = [Group { range: 0..n_parameters, lr_factor: 1.0, weight_decay: 0.0 }];
    engine.update(&Update { lr: 1e-4, gradient_factor: 1.0, groups: &groups })?;
    // waits for the step
    engine.params_are_finite().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_parameters_are_trained_as_peft_trains() {
        let model = TINY.model(LowRankSpec::new(16), None, ComputeMode::Bf16).unwrap();
        // `LORA_PARAMETERS` of benches/gpu_peers.py, which PEFT's own count is compared with
        assert_eq!(model.n_parameters(), 59_392);
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 9.0, 2.0, 8.0]), 3.0);
    }
}

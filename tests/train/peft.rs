//! Training runs step for step against PEFT and torch's AdamW.

use std::path::Path;

use lctl::cuda::Device;
use lctl::finetune::run::engine;
use lctl::finetune::{Decay, Group, Optimizer, Schedule, Update, clip_factor};
use lctl::kernel::ComputeMode;
use lctl::model::train::{LowRankSpec, Parameters, Trainable};
use lctl::tensor::TensorSource;
use lctl::tensor::safetensors::SafeTensors;
use serde_json::Value;

use super::{ALL, Batch, key, names, trainable};
use crate::common::test_data;

/// A run as it was recorded.
pub struct Run {
    pub json: Value,
}

impl Run {
    pub fn read(path: &Path) -> Run {
        Run { json: serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap() }
    }

    pub fn number(&self, key: &str) -> f64 {
        self.json[key].as_f64().unwrap_or_else(|| panic!("{key}"))
    }

    pub fn text(&self, key: &str) -> &str {
        self.json[key].as_str().unwrap_or_else(|| panic!("{key}"))
    }

    pub fn numbers(&self, key: &str) -> Vec<f64> {
        self.json[key].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    }

    /// Returns the documents of every step.
    pub fn batches(&self) -> Vec<Batch> {
        let ids =
            |row: &Value| row.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let step = |rows: &Value| Batch::new(rows.as_array().unwrap().iter().map(ids).collect());
        self.json["input_ids"].as_array().unwrap().iter().map(step).collect()
    }
}

/// What a run of ours logged, and its last parameters.
pub struct Logged {
    pub losses: Vec<f64>,
    pub norms: Vec<f64>,
    pub rates: Vec<f64>,
    pub params: Parameters,
}

/// Repeats a recorded run, micro-batches of `per_micro_batch` documents.
pub fn repeat(run: &Run, model: &Trainable, params: Parameters, per_micro_batch: usize) -> Logged {
    repeat_on(None, run, model, params, per_micro_batch)
}

/// [`repeat`] on a device, or on the CPU if there is none.
pub fn repeat_on(
    device: Option<&Device>,
    run: &Run,
    model: &Trainable,
    params: Parameters,
    per_micro_batch: usize,
) -> Logged {
    let batches = run.batches();
    let schedule = Schedule {
        peak_lr: run.number("lr"),
        final_lr: 0.0,
        warmup_steps: run.number("warmup_steps") as usize,
        total_steps: batches.len(),
        decay: Decay::Cosine,
    };
    let optimizer = Optimizer::adamw();
    let state = optimizer.state(params.len());
    let groups = [Group { range: 0..params.len(), lr_factor: 1.0, weight_decay: run.number("weight_decay") }];
    let mut engine = engine(model, device, optimizer, params, state).unwrap();
    let mut logged = Logged { losses: vec![], norms: vec![], rates: vec![], params: Vec::new().into() };
    for (step, batch) in batches.iter().enumerate() {
        let documents = batch.documents();
        let n_targets: usize = documents.iter().map(|document| document.n_targets()).sum();
        engine.clear_gradients().unwrap();
        let mut first = 0;
        for documents in documents.chunks(per_micro_batch) {
            let scale = 1.0 / n_targets as f32;
            engine.forward_backward(documents, scale, key(step, first)).unwrap();
            first += documents.len();
        }
        engine.finish_gradients().unwrap();
        let losses = engine.losses().unwrap();
        assert_eq!(losses.len(), documents.len().div_ceil(per_micro_batch));
        assert!(engine.losses().unwrap().is_empty(), "each is told once");
        let nll: f64 = losses.iter().map(|sum| sum.nll).sum();
        let norm = engine.gradient_norm().unwrap();
        let gradient_factor = clip_factor(norm, run.number("max_grad_norm"));
        let lr = schedule.lr_at(step);
        let update = Update { lr, gradient_factor, groups: &groups };
        engine.update(&update).unwrap();
        logged.losses.push(nll / n_targets as f64);
        logged.norms.push(norm);
        logged.rates.push(lr);
    }
    logged.params = engine.params().unwrap();
    logged
}

/// Asserts that a run is the recorded one: losses, norms and rates within `at_first` for 20 steps and 1e-3 to the end, the last
/// parameters within 1e-4.
pub fn assert_same(name: &str, run: &Run, logged: &Logged, last: &[f32], at_first: f64) {
    let expected = [run.numbers("losses"), run.numbers("grad_norms"), run.numbers("lrs")];
    let found = [&logged.losses, &logged.norms, &logged.rates];
    for ((what, expected), found) in ["loss", "norm", "rate"].iter().zip(&expected).zip(found) {
        assert_eq!(expected.len(), found.len());
        let off = |i: usize| (found[i] - expected[i]).abs() / expected[i].abs().max(1e-12);
        let worst = |steps: std::ops::Range<usize>| steps.map(off).fold(0.0, f64::max);
        let (early, late) = (worst(0..20.min(found.len())), worst(0..found.len()));
        println!("{name}: {what} off by {early:.1e} in 20 steps, {late:.1e} in all");
        assert!(early <= at_first, "{name}: {what}: {early}");
        // a rate of 0 would make any difference infinite: there is none
        assert!(late <= 1e-3, "{name}: {what}: {late}");
    }
    let off = logged.params.iter().zip(last).fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
    println!("{name}: parameters off by {off:.1e}");
    assert!(off <= 1e-4, "{name}: {off}");
}

#[test]
fn lora_and_rslora_train_as_peft_trains_them() {
    let Some(data) = test_data() else { return };
    let base = data.join("models/stories260K-hf");
    for name in ["lora", "rslora"] {
        let dir = data.join("golden/peft").join(name);
        let run = Run::read(&dir.join("run.json"));
        let spec = LowRankSpec {
            lora_alpha: run.number("alpha"),
            target_modules: names(&ALL),
            use_rslora: name == "rslora",
            ..LowRankSpec::new(run.number("r") as usize)
        };
        let model = trainable(&base, ComputeMode::F32, 2, &spec);
        let params = model.read_parameters(&dir.join("adapter_init/adapter_model.safetensors")).unwrap();
        let logged = repeat(&run, &model, params, 4);
        let last = model.read_parameters(&dir.join("adapter_final/adapter_model.safetensors")).unwrap();
        assert_same(name, &run, &logged, &last, 1e-5);
    }
}

#[test]
fn parameters_have_peft_s_names_and_shapes() {
    let Some(data) = test_data() else { return };
    let spec = LowRankSpec { target_modules: names(&ALL), ..LowRankSpec::new(8) };
    let model = trainable(&data.join("models/stories260K-hf"), ComputeMode::F32, 1, &spec);
    let file = data.join("golden/peft/lora/adapter_init/adapter_model.safetensors");
    let file = SafeTensors::open_file(&file).unwrap();
    let mut expected: Vec<_> =
        file.tensors().iter().map(|info| (info.name.clone(), info.shape.clone())).collect();
    let mut found: Vec<_> =
        model.parameters().iter().map(|info| (info.name.clone(), info.shape.clone())).collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

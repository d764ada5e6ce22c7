//! Runs on tiny models of other families and kinds of adapters, goldens of tests/scripts/make_finetune_goldens.py.

use lctl::cuda::Device;
use lctl::finetune::run::{Of, engine};
use lctl::finetune::{DpoLoss, Group, Optimizer, PairLogProbs, Update, clip_factor};
use lctl::kernel::ComputeMode;
use lctl::model::train::{Document, LowRankSpec};
use serde_json::Value;

use super::peft::{Run, assert_same, repeat};
use super::{ALL, golden_dir, key, names, trainable};

pub fn spec(name: &str, run: &Run) -> LowRankSpec {
    let mixtral = ["q_proj", "k_proj", "v_proj", "o_proj", "w1", "w2", "w3", "gate"];
    LowRankSpec {
        lora_alpha: run.number("alpha"),
        target_modules: names(if name == "mixtral" { &mixtral } else { &ALL }),
        use_dora: name == "dora",
        ..LowRankSpec::new(run.number("r") as usize)
    }
}

#[test]
fn dora_a_mixture_and_gemma_2_train_as_peft_trains_them() {
    for name in ["dora", "mixtral", "gemma2"] {
        let dir = golden_dir().join("finetune").join(name);
        let run = Run::read(&dir.join("run.json"));
        let base = golden_dir().join("decoder").join(run.text("base"));
        let model = trainable(&base, ComputeMode::F32, 2, &spec(name, &run));
        let params = model.read_parameters(&dir.join("init.safetensors")).unwrap();
        let logged = repeat(&run, &model, params, 4);
        let last = model.read_parameters(&dir.join("final.safetensors")).unwrap();
        assert_same(name, &run, &logged, &last, 1e-5);
    }
}

fn tokens(run: &Run, what: &str, step: usize) -> Vec<Vec<u32>> {
    let ids = |row: &Value| row.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    run.json[what][step].as_array().unwrap().iter().map(ids).collect()
}

/// Returns an answer behind its prompt, and which tokens are the answer's.
fn answer(prompt: &[u32], answer: &[u32]) -> (Vec<u32>, Vec<bool>) {
    let flags = [vec![false; prompt.len()], vec![true; answer.len()]].concat();
    ([prompt, answer].concat(), flags)
}

#[test]
fn dpo_trains_as_trl_trains_it() {
    dpo_on(None);
}

/// Repeats the recorded run of preferences on a device, or on the CPU if there is none.
pub fn dpo_on(device: Option<&Device>) {
    let dir = golden_dir().join("finetune/dpo");
    let run = Run::read(&dir.join("run.json"));
    let base = golden_dir().join("decoder").join(run.text("base"));
    let model = trainable(&base, ComputeMode::F32, 2, &spec("dpo", &run));
    let params = model.read_parameters(&dir.join("init.safetensors")).unwrap();
    let (optimizer, beta) = (Optimizer::adamw(), run.number("beta"));
    let state = optimizer.state(params.len());
    let groups = [Group { range: 0..params.len(), lr_factor: 1.0, weight_decay: run.number("weight_decay") }];
    let mut engine = engine(&model, device, optimizer, params, state).unwrap();
    let (losses, norms) = (run.numbers("losses"), run.numbers("grad_norms"));
    let mut worst = [0.0f64; 2];
    for step in 0..losses.len() {
        let prompts = tokens(&run, "prompts", step);
        let (chosen, rejected) = (tokens(&run, "chosen", step), tokens(&run, "rejected", step));
        let pairs = prompts.iter().zip(chosen.iter().zip(&rejected));
        let rows: Vec<_> = pairs.flat_map(|(p, (c, r))| [answer(p, c), answer(p, r)]).collect();
        let documents: Vec<Document> =
            rows.iter().map(|(tokens, is_target)| Document { tokens, is_target }).collect();
        let sums = |each: &[Vec<f32>]| -> Vec<PairLogProbs> {
            let sum = |log_probs: &Vec<f32>| log_probs.iter().map(|p| f64::from(*p)).sum();
            each.chunks(2)
                .map(|pair| PairLogProbs { chosen: sum(&pair[0]), rejected: sum(&pair[1]) })
                .collect()
        };
        let reference = sums(&engine.log_probs(Of::Base, &documents).unwrap());
        let mut loss = 0.0;
        let mut slopes = |each: &[Vec<f32>]| {
            let n = reference.len() as f64;
            let outcome = |(policy, reference): (PairLogProbs, &PairLogProbs)| {
                DpoLoss::Sigmoid { label_smoothing: 0.0 }.of(beta, policy, *reference)
            };
            let outcomes: Vec<_> = sums(each).into_iter().zip(&reference).map(outcome).collect();
            loss = outcomes.iter().map(|outcome| outcome.loss).sum::<f64>() / n;
            outcomes
                .iter()
                .flat_map(|o| [o.d_chosen / n, -o.d_chosen / n])
                .map(|slope| slope as f32)
                .collect()
        };
        engine.clear_gradients().unwrap();
        engine.log_probs_backward(&documents, key(step, 0), &mut slopes).unwrap();
        engine.finish_gradients().unwrap();
        let norm = engine.gradient_norm().unwrap();
        let gradient_factor = clip_factor(norm, run.number("max_grad_norm"));
        let update = Update { lr: run.number("lr"), gradient_factor, groups: &groups };
        engine.update(&update).unwrap();
        worst[0] = worst[0].max((loss - losses[step]).abs() / losses[step]);
        worst[1] = worst[1].max((norm - norms[step]).abs() / norms[step]);
    }
    let last = model.read_parameters(&dir.join("final.safetensors")).unwrap();
    let params = engine.params().unwrap();
    let off = params.iter().zip(last.iter()).fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
    println!("dpo: loss off by {:.1e}, norm by {:.1e}, parameters by {off:.1e}", worst[0], worst[1]);
    // log-probabilities of some 50 nats in f32 are known to 4e-6 each, and a margin is a difference of four
    assert!(worst[0] <= 1e-4 && worst[1] <= 1e-3, "{worst:?}");
    assert!(off <= 1e-4, "{off}");
}

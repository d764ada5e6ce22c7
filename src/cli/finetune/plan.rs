//! What a run would take: `--plan`, and the check before a run begins.

use std::fs;

use serde_json::json;

use super::Args;
use super::prepare::Prepared;
use super::progress::duration;
use crate::cli::term;
use crate::cuda::Device;
use crate::error::{Diagnostic, Failure};
use crate::finetune::recipe::Recipe;
use crate::finetune::run::{self, Corpus, RankShare};
use crate::model::train::{Checkpointing, Trainable};

/// What is needed while a model is opened.
const WEIGHTS: &str = "memory for the model's weights";

#[derive(Debug, thiserror::Error)]
#[error("the run needs about {} {}, and {} is available", term::bytes(*.needed), .of, term::bytes(*.available))]
struct TooLarge {
    of: &'static str,
    needed: u64,
    available: u64,
}

impl Diagnostic for TooLarge {
    fn hint(&self) -> Option<String> {
        if self.of == WEIGHTS {
            return Some(
                "take a smaller model, a machine with more memory, or model.quantization of fewer bits"
                    .into(),
            );
        }
        Some("set train.gradient_checkpointing=true, a smaller data.max_seq_len or train.micro_batch_size, or a lower rank".into())
    }
}

/// Returns whether blocks are to be computed anew: if what the backward pass keeps would not fit otherwise.
pub fn checkpointing(
    recipe: &Recipe,
    model: &Trainable,
    corpus: &Corpus,
    device: Option<&Device>,
) -> Checkpointing {
    // an error comes again, and is told, when the run begins
    let largest = run::totals(recipe, corpus).map(|totals| totals.largest).unwrap_or_default();
    let needed =
        run::memory(recipe, model, largest, Checkpointing::None, device) + base_bytes(model, largest, device);
    match available(device) {
        // a tenth is left to everything else
        Some(available) if needed > available - available / 10 => Checkpointing::Blocks,
        _ => Checkpointing::None,
    }
}

/// Errors if the run will not fit.
pub fn check_fits(prepared: &Prepared) -> Result<(), Failure> {
    let Prepared { recipe, model, corpus, device, .. } = prepared;
    let largest = run::totals(recipe, corpus)?.largest;
    let device = device.as_ref();
    let needed = run::memory(recipe, model, largest, model.checkpointing(), device)
        + base_bytes(model, largest, device);
    let of = if device.is_some() { "memory of the device" } else { "more memory" };
    match available(device) {
        Some(available) if needed > available => Err(TooLarge { of, needed, available }.into()),
        _ => Ok(()),
    }
}

/// Errors if what is made of the model while it is opened, random weights or frozen ones in another format, will not fit.
pub fn check_opens(needed: u64) -> Result<(), Failure> {
    check_opens_within(needed, available(None))
}

fn check_opens_within(needed: u64, available: Option<u64>) -> Result<(), Failure> {
    match available {
        Some(available) if needed > available => Err(TooLarge { of: WEIGHTS, needed, available }.into()),
        _ => Ok(()),
    }
}

/// Returns the bytes of the model that have to fit besides what a run takes: on the CPU it lies where it was opened.
fn base_bytes(model: &Trainable, largest: run::Largest, device: Option<&Device>) -> u64 {
    let Some(device) = device else { return 0 };
    #[cfg(gpu)]
    {
        let _ = device;
        crate::model::train::device_base_bytes(model, largest.targets)
    }
    #[cfg(not(gpu))]
    {
        let _ = (model, largest);
        match *device {}
    }
}

/// Says what the run would take, of `size` processes.
pub fn run(args: &Args, prepared: &Prepared, size: usize) -> Result<(), Failure> {
    check_fits(prepared)?;
    let Prepared { recipe, model, corpus, device, .. } = prepared;
    let totals = run::totals(recipe, corpus)?;
    // of one process the share is 1
    let (ranks, slowest) = run::shares(recipe, corpus, size)?;
    // before anything is computed
    let estimated = of_process("VmRSS:")
        .filter(|_| device.is_none())
        .map(|resident| run::peak(recipe, model, totals.largest, model.checkpointing(), resident));
    let probe = run::probe(recipe, model, corpus, device.as_ref())?;
    let seconds = totals.tokens as f64 * slowest * probe.seconds / probe.tokens.max(1) as f64
        + totals.steps as f64 * probe.step_seconds;
    let peak = match device {
        #[cfg(gpu)]
        Some(device) => Some(device.peak_bytes()),
        // a run may take more than two passes do, and than was counted
        _ => of_process("VmHWM:").max(estimated),
    };
    let recomputes = model.checkpointing() == Checkpointing::Blocks;
    // of each process: all that is trained, its gradients and moments
    let held = run::trained_bytes(recipe, model);
    if args.json {
        let mut said = json!({
            "steps": totals.steps,
            "epochs": totals.epochs,
            "tokens": totals.tokens,
            "trained_tokens": totals.targets,
            "trainable_parameters": model.n_parameters(),
            "gradient_checkpointing": recomputes,
            "peak_memory_bytes": peak,
            "estimated_memory_bytes": estimated,
            "tokens_per_second": probe.tokens as f64 / probe.seconds.max(1e-9),
            "seconds": seconds,
        });
        if size > 1 {
            said["world_size"] = json!(size);
            said["trained_bytes_per_rank"] = json!(held);
            said["ranks"] = ranks.iter().map(rank_json).collect();
        }
        return term::out_json(&said);
    }
    if args.quiet {
        return Ok(());
    }
    let mut rows = vec![
        ("steps", totals.steps.to_string()),
        ("epochs", totals.epochs.to_string()),
        ("tokens", format!("{}, {} of them trained", totals.tokens, totals.targets)),
        ("parameters", format!("{} trained", model.n_parameters())),
        ("recomputation", if recomputes { "of blocks" } else { "none" }.to_owned()),
        ("time", format!("about {}", duration(seconds))),
    ];
    rows.extend(peak.map(|peak| ("peak memory", term::bytes(peak))));
    let mut text: String = rows.iter().map(|(what, value)| format!("{what:<14} {value}\n")).collect();
    if size > 1 {
        text += &format!(
            "{:<14} {size}, time without what they send each other\n{:<14} the whole model, and {} of parameters, gradients and moments; {} sent and received per step\n",
            "processes",
            "each holds",
            term::bytes(held),
            term::bytes(4 * model.n_parameters() as u64)
        );
        ranks.iter().enumerate().for_each(|(rank, share)| text += &rank_line(rank, share));
    }
    term::out(&text)
}

fn rank_json(share: &RankShare) -> serde_json::Value {
    json!({
        "micro_batches_per_step": share.micro_batches,
        "most_tokens_per_step": share.most_tokens,
        "mean_tokens_per_step": share.mean_tokens,
    })
}

fn rank_line(rank: usize, share: &RankShare) -> String {
    format!(
        "{:<14} at most {} micro-batches and {} tokens per step, {:.0} tokens on average\n",
        format!("rank {rank}"),
        share.micro_batches,
        share.most_tokens,
        share.mean_tokens
    )
}

/// Returns the bytes that a new allocation can take, of the device if there is one, where it is said.
fn available(device: Option<&Device>) -> Option<u64> {
    #[cfg(gpu)]
    if let Some(device) = device {
        return device.memory().ok().map(|(free, _)| free);
    }
    let _ = device;
    kilobytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// Returns bytes of this process by the name in /proc.
fn of_process(key: &str) -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, key)
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_that_do_not_fit_are_refused_before_they_are_made() {
        assert!(check_opens_within(5, Some(5)).is_ok() && check_opens_within(5, None).is_ok());
        let refused = check_opens_within(28 << 30, Some(3 << 30)).unwrap_err();
        assert_eq!(refused.exit_code(), 2);
        assert!(
            refused.to_string().starts_with(
                "error: the run needs about 30.06 GB memory for the model's weights, and 3.22 GB is available\nhint: "
            ),
            "{refused}"
        );
    }

    #[test]
    fn sizes_are_read_by_their_names() {
        let text = "MemTotal:       100 kB\nMemAvailable:   12 kB\n";
        assert_eq!(kilobytes(text, "MemAvailable:"), Some(12 * 1024));
        assert_eq!(kilobytes(text, "MemFree:"), None);
    }
}

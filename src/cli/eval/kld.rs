//! `lctl eval --kl-base` and `--base-logits`.

use serde_json::{Value, json};

use super::Args;
use super::manifest::{self, MeasuredText};
use super::progress::EvalProgress;
use super::text::{self, TextFile};
use crate::cli::device::Shared;
use crate::cli::divergence::Pair;
use crate::cli::model::{LoadedModel, WeightsArg};
use crate::error::{Diagnostic, Failure};
use crate::eval::kld::{Distribution, Divergence, DivergenceSoFar, divergence};
use crate::eval::perplexity::{ChunkDone, Estimate};
use crate::eval::{Chunks, Computer, SavedLogits};
use crate::provenance::{EvalMode, InputFiles, Role, Started};

/// Two models that read a text differently.
#[derive(Debug, thiserror::Error)]
#[error(
    "the models' tokenizers differ: they cut the text into {found} and {base} tokens, first different at {at}"
)]
struct TokenizersDiffer {
    found: usize,
    base: usize,
    at: usize,
}

impl Diagnostic for TokenizersDiffer {
    fn hint(&self) -> Option<String> {
        Some("only models with the same vocabulary can be compared".into())
    }
}

/// Compares with a model in memory.
pub fn run(args: &Args, base: &str, path: &std::path::Path) -> Result<(), Failure> {
    let started = Started::now();
    text::check_out(args)?;
    let file = TextFile::read(path)?;
    let on = Shared::choose(args.device, args.quiet)?;
    let model = text::open_model(args, &args.model, &on)?;
    let base = open_base(args, base, &model.shared())?;
    let chunks = file.chunks(&model, args)?;
    let same_length = Args { context: u32::try_from(chunks.chunk_len()).ok(), ..args.clone() };
    check_same(&chunks, &file.chunks(&base, &same_length)?)?;
    let pair = Pair { model: &model, base: &base, batch_tokens: args.batch_tokens, quiet: args.quiet };
    let options = |computer: &Computer<'_>| text::engine_options(args, computer);
    let found = showing(args, &chunks, |on_chunk| pair.divergence(&chunks, &options, on_chunk))?;
    let about = || Ok(json!({"base": text::model_json(args, &base)?, "text": file.json()}));
    let report = report(args, &model, about, &found)?;
    let mut others = vec![file.input()];
    if report.is_some() && !args.no_manifest {
        others.extend(base.inputs()?.iter().cloned().filter_map(manifest::as_base));
    }
    let (mode, report) = (EvalMode::KlBase, report.as_ref());
    let measured = MeasuredText { mode, model: &model, others, report, logits_sha256: None };
    manifest::write_of_text(args, started, measured)
}

/// Compares with saved logits.
pub fn run_saved(args: &Args, path: &std::path::Path) -> Result<(), Failure> {
    let started = Started::now();
    text::check_out(args)?;
    let mut saved = SavedLogits::open(path)?;
    let chunks = saved.text().clone();
    let model = text::open_model(args, &args.model, &Shared::choose(args.device, args.quiet)?)?;
    let computer = model.computer()?;
    let (options, team) = (text::engine_options(args, &computer), &model.decoder.compute().team);
    let found = showing(args, &chunks, |on_chunk| {
        Ok(divergence(&computer, &mut saved, &options, &chunks, team, on_chunk)?)
    })?;
    let description = saved.description().clone();
    let about = || Ok(json!({"base": description["model"], "text": description["text"]}));
    let report = report(args, &model, about, &found)?;
    let others = vec![InputFiles::of_file(Role::BaseLogits, None, path)];
    let (mode, report) = (EvalMode::BaseLogits, report.as_ref());
    let measured = MeasuredText { mode, model: &model, others, report, logits_sha256: None };
    manifest::write_of_text(args, started, measured)
}

/// The adapter is of the model under test; what cannot be packed was said of it.
fn open_base(args: &Args, base: &str, on: &Shared) -> Result<LoadedModel, Failure> {
    let weights = if on.device.is_some() { WeightsArg::Auto } else { args.weights };
    let of_base = Args { adapter: None, weights, ..args.clone() };
    text::open_model(&of_base, base, on)
}

/// Errors if two models cut a text differently.
pub fn check_same(chunks: &Chunks, base: &Chunks) -> Result<(), Failure> {
    let (a, b) = (chunks.tokens(), base.tokens());
    let at = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    if at < a.len().max(b.len()) || chunks.bos() != base.bos() {
        return Err(TokenizersDiffer { found: a.len(), base: b.len(), at }.into());
    }
    Ok(())
}

/// Returns what `measure` comes to, showing how far it is.
fn showing(
    args: &Args,
    chunks: &Chunks,
    measure: impl FnOnce(&mut dyn FnMut(&ChunkDone<DivergenceSoFar>)) -> Result<Divergence, Failure>,
) -> Result<Divergence, Failure> {
    let mut progress = EvalProgress::new(args.quiet);
    let mut on_chunk = |done: &ChunkDone<DivergenceSoFar>| {
        let more = format!(", KLD {:.6}", done.so_far.kld.value);
        progress.show(done.tokens_done, done.tokens_total, &more);
    };
    let found = measure(&mut on_chunk)?;
    progress.finish(chunks.n_chunks() * chunks.n_inputs());
    Ok(found)
}

fn report(
    args: &Args,
    model: &LoadedModel,
    about: impl FnOnce() -> Result<Value, Failure>,
    found: &Divergence,
) -> Result<Option<Value>, Failure> {
    let report = || {
        let mut report = json!({"model": text::model_json(args, model)?});
        let about = about()?;
        report["base"] = about["base"].clone();
        report["text"] = about["text"].clone();
        report["divergence"] = json!(found);
        Ok(report)
    };
    text::deliver(args, report, &table(found))
}

/// The names and the order are llama-perplexity's.
fn table(found: &Divergence) -> String {
    let line = |name: &str, Estimate { value, uncertainty }: Estimate| {
        format!("{name:<30}: {value:>10.6} +/- {uncertainty:>10.6}\n")
    };
    let mut text = format!(
        "{} tokens scored, {} chunks of {}\n\nPerplexity\n",
        found.n_tokens, found.n_chunks, found.chunk_len
    );
    text += &line("Mean PPL(Q)", found.ppl);
    text += &line("Mean PPL(base)", found.ppl_base);
    let correlation =
        found.ln_ppl_correlation.map_or("undefined".into(), |c| format!("{:>10.2} %", 100.0 * c));
    text += &format!("{:<30}: {correlation}\n", "Cor(ln(PPL(Q)), ln(PPL(base)))");
    text += &line("Mean ln(PPL(Q)/PPL(base))", found.ln_ppl_ratio);
    text += &line("Mean PPL(Q)/PPL(base)", found.ppl_ratio);
    text += &line("Mean PPL(Q)-PPL(base)", found.ppl_difference);
    text += "\nKL divergence\n";
    text += &line("Mean KLD", found.kld.mean);
    for (name, value) in
        percentiles(&found.kld).into_iter().filter(|(name, _)| !matches!(*name, "75.0 %" | "25.0 %"))
    {
        text += &format!("{:<30}: {value:>10.6}\n", format!("{name} KLD"));
    }
    text += "\nToken probability, percent\n";
    let percent = |e: Estimate| Estimate { value: 100.0 * e.value, uncertainty: 100.0 * e.uncertainty };
    text += &line("Mean Δp", percent(found.delta_p.mean));
    for (name, value) in percentiles(&found.delta_p) {
        text += &format!("{:<30}: {:>10.6}\n", format!("{name} Δp"), 100.0 * value);
    }
    text += &line("RMS Δp", percent(found.delta_p_rms));
    text += &line("Same top p", percent(found.same_top));
    text
}

fn percentiles(of: &Distribution) -> [(&'static str, f64); 13] {
    [
        ("Maximum", of.max),
        ("99.9 %", of.p99_9),
        ("99.0 %", of.p99),
        ("95.0 %", of.p95),
        ("90.0 %", of.p90),
        ("75.0 %", of.p75),
        ("Median", of.median),
        ("25.0 %", of.p25),
        ("10.0 %", of.p10),
        ("5.0 %", of.p5),
        ("1.0 %", of.p1),
        ("0.1 %", of.p0_1),
        ("Minimum", of.min),
    ]
}

//! `lctl eval --perplexity`.

use std::path::Path;

use serde_json::json;

use super::Args;
use super::manifest::{self, MeasuredText};
use super::progress::EvalProgress;
use super::text::{self, TextFile};
use crate::cli::device::Shared;
use crate::error::Failure;
use crate::eval::LogitsWriter;
use crate::eval::perplexity::{ChunkDone, Perplexity, perplexity};
use crate::provenance::{EvalMode, Started};

pub fn run(args: &Args, path: &Path) -> Result<(), Failure> {
    let started = Started::now();
    text::check_out(args)?;
    let file = TextFile::read(path)?;
    let model = text::open_model(args, &args.model, &Shared::choose(args.device, args.quiet)?)?;
    let computer = model.computer()?;
    let chunks = file.chunks(&model, args)?;
    let options = text::engine_options(args, &computer);
    let mut writer = match &args.save_logits {
        Some(path) => {
            let description = json!({"model": text::model_json(args, &model)?, "text": file.json()});
            let vocab_size = model.decoder.config().vocab_size;
            Some(LogitsWriter::create(path, args.force, &chunks, vocab_size, &description)?)
        }
        None => None,
    };
    let mut progress = EvalProgress::new(args.quiet);
    let mut running = Vec::new();
    let mut on_chunk = |done: &ChunkDone<Perplexity>| {
        let ppl = done.so_far.ppl.value;
        running.push(ppl);
        progress.show(done.tokens_done, done.tokens_total, &format!(", PPL {ppl:.4}"));
    };
    let found = perplexity(&computer, &options, &chunks, writer.as_mut(), &mut on_chunk)?;
    progress.finish(chunks.n_chunks() * chunks.n_inputs());
    let saved = writer.map(LogitsWriter::finish).transpose()?;
    let report = || {
        Ok(json!({
            "model": text::model_json(args, &model)?,
            "text": file.json(),
            "perplexity": found,
            "running": running,
            "saved_logits_bytes": saved.map(|(bytes, _)| bytes),
        }))
    };
    let report = text::deliver(args, report, &table(&found))?;
    let measured = MeasuredText {
        mode: EvalMode::Perplexity,
        model: &model,
        others: vec![file.input()],
        report: report.as_ref(),
        logits_sha256: saved.map(|(_, sha256)| sha256),
    };
    manifest::write_of_text(args, started, measured)
}

fn table(found: &Perplexity) -> String {
    let Perplexity { ppl, n_chunks, chunk_len, n_tokens, .. } = found;
    format!(
        "PPL = {:.4} +/- {:.5}\n{n_tokens} tokens scored, {n_chunks} chunks of {chunk_len}\n",
        ppl.value, ppl.uncertainty
    )
}

//! Text as it comes, and what is said of it at the end.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::prompt::PromptError;
use super::{Args, Interrupt, Interrupted};
use crate::cli::model::LoadedModel;
use crate::cli::term;
use crate::error::{Failure, printable};
use crate::eval::Computer;
use crate::eval::generate::{Session, Timings};
use crate::eval::request::{FinishReason, Generated};
use crate::text::EncodeOptions;

/// An answer and how it came about.
pub(super) struct Answer {
    pub(super) generated: Generated,
    pub(super) timings: Timings,
    pub(super) is_interrupted: bool,
}

/// Goes on with a text.
pub(super) fn complete(
    args: &Args,
    model: &LoadedModel,
    session: &mut Session<'_, Computer<'_>>,
    prompt: &str,
    interrupt: &Interrupt,
) -> Result<(), Failure> {
    let options = EncodeOptions { add_special: true, parse_special: !args.raw };
    let mut tokens = model.tokenizer.encode(prompt, options)?;
    // a token for the text's end would end it here
    if model.tokenizer.adds_eos() && tokens.last().copied() == model.tokenizer.eos() {
        tokens.pop();
    }
    if tokens.is_empty() {
        tokens.extend(model.tokenizer.bos());
    }
    let prompt_tokens = tokens.clone();
    let answer = answer(args, model, session, tokens, interrupt, false)?;
    deliver(args, model, &answer, &json!({"prompt": prompt, "prompt_tokens": prompt_tokens}))
}

/// Writes what continues the tokens, to stdout unless JSON is asked for.
pub(super) fn answer(
    args: &Args,
    model: &LoadedModel,
    session: &mut Session<'_, Computer<'_>>,
    tokens: Vec<u32>,
    interrupt: &Interrupt,
    is_conversation: bool,
) -> Result<Answer, Failure> {
    if tokens.is_empty() {
        return Err(PromptError::NoTokens.into());
    }
    let (n_prompt, context) = (tokens.len(), model.decoder.context_length());
    if n_prompt >= context {
        return Err(PromptError::TooLong { n_prompt, context, is_conversation }.into());
    }
    let mut shown = Stream { is_silent: args.json, is_terminal: io::stdout().is_terminal(), state: Ok(true) };
    interrupt.begin();
    let result = session.generate(&args.request(tokens), &mut |text| {
        shown.write(text);
        match interrupt.is_set() || !matches!(shown.state, Ok(true)) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    let is_interrupted = interrupt.end();
    let (generated, timings) = result?;
    shown.state?;
    Ok(Answer { generated, timings, is_interrupted })
}

/// stdout, piece by piece.
struct Stream {
    is_silent: bool,
    is_terminal: bool,
    /// Whether its reader takes more.
    state: Result<bool, Failure>,
}

impl Stream {
    fn write(&mut self, text: &str) {
        if self.is_silent || text.is_empty() {
            return;
        }
        // what a model writes must not drive the terminal; a program gets it as it is
        let text = if self.is_terminal { printable(text) } else { text.into() };
        self.state = term::out_while_read(&text);
    }
}

/// Ends the output of one text: a line feed or the JSON object, and the figures.
pub(super) fn deliver(
    args: &Args,
    model: &LoadedModel,
    answer: &Answer,
    prompt: &Value,
) -> Result<(), Failure> {
    match args.json {
        true => term::out_json(&report(args, model, answer, prompt)?)?,
        false => end_of_text(answer)?,
    }
    if !args.quiet {
        figures(answer);
    }
    if answer.is_interrupted { Err(Interrupted.into()) } else { Ok(()) }
}

/// Ends the text with a line feed, on a terminal and in a file alike.
pub(super) fn end_of_text(answer: &Answer) -> Result<(), Failure> {
    if answer.generated.text.ends_with('\n') { Ok(()) } else { term::out("\n") }
}

/// Says how many tokens there were and how fast, and why the text ended.
pub(super) fn figures(answer: &Answer) {
    let Timings { prompt_tokens, reused_tokens, prompt_time, generated_tokens, generation_time } =
        answer.timings;
    let per_second = |tokens: usize, seconds: f64| match seconds > 0.0 {
        true => format!("{:.1} tokens/s", tokens as f64 / seconds),
        false => "no time".to_owned(),
    };
    let reused = if reused_tokens > 0 { format!(" ({reused_tokens} more known)") } else { String::new() };
    // the first token comes with the prompt
    let speed = per_second(generated_tokens.saturating_sub(1), generation_time.as_secs_f64());
    let why = match (answer.is_interrupted, answer.generated.finish_reason) {
        (true, _) => "interrupted",
        (_, FinishReason::EndOfGeneration) => "the model ended it",
        (_, FinishReason::Stop) => "a stop string came",
        (_, FinishReason::Length) => "--max-tokens or the context ended it",
    };
    term::say(&format!(
        "prompt {prompt_tokens} tokens{reused}, {}; text {generated_tokens} tokens, {speed}; {why}",
        per_second(prompt_tokens, prompt_time.as_secs_f64()),
    ));
}

fn report(args: &Args, model: &LoadedModel, answer: &Answer, prompt: &Value) -> Result<Value, Failure> {
    let Generated { text, tokens, finish_reason } = &answer.generated;
    let timings = answer.timings;
    let compute = args.compute.to_possible_value().map(|value| value.get_name().to_owned());
    let mut report = json!({
        "text": text,
        "tokens": tokens,
        "finish_reason": if answer.is_interrupted { json!("interrupted") } else { json!(finish_reason) },
        "seed": args.seed,
        "sampling": args.request(Vec::new()).sampling,
        "max_tokens": args.max_tokens,
        "stop": args.stop,
        "compute": compute,
        "digests": {
            "model": model.digest()?,
            "adapter": model.adapter_digest()?,
            "tokenizer": model.tokenizer.digest(),
        },
        "timings": {
            "prompt_tokens": timings.prompt_tokens,
            "prompt_seconds": timings.prompt_time.as_secs_f64(),
            "generated_tokens": timings.generated_tokens,
            "generation_seconds": timings.generation_time.as_secs_f64(),
        },
    });
    if let Some(device) = model.on_device() {
        report["device"] = json!(device);
    }
    if let (Some(report), Some(prompt)) = (report.as_object_mut(), prompt.as_object()) {
        report.extend(prompt.clone());
    }
    Ok(report)
}

//! One sequence that goes on: a conversation's turns share their keys and values.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::{Writer, nothing};
use crate::eval::request::{FinishReason, GenerateRequest, Generated};
use crate::eval::{Error, LanguageModel, SequenceCache};
use crate::model::{Segment, SequenceId, Wanted};
use crate::text::Tokenizer;

/// A model with one sequence in its cache.
pub struct Session<'a, M: LanguageModel> {
    model: &'a M,
    tokenizer: &'a Tokenizer,
    cache: M::Cache,
    sequence: SequenceId,
    /// What the cache holds.
    tokens: Vec<u32>,
    /// Most tokens of a prompt computed at once.
    batch_tokens: usize,
}

/// What a text took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Tokens of the prompt that the cache did not hold.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that it held.
    pub reused_tokens: usize,
    pub prompt_time: Duration,
    /// Tokens written.
    pub generated_tokens: usize,
    /// From the first token written to the last.
    pub generation_time: Duration,
}

impl<'a, M: LanguageModel> Session<'a, M> {
    /// Returns a session without tokens; of a prompt it computes `batch_tokens` at once.
    ///
    /// Keys and values grow with the sequence, up to the model's context. Errors if there is no cache.
    pub fn new(model: &'a M, tokenizer: &'a Tokenizer, batch_tokens: usize) -> Result<Self, Error> {
        let mut cache = model.new_cache(usize::MAX)?;
        let sequence = cache.create();
        let batch_tokens = batch_tokens.max(1);
        Ok(Session { model, tokenizer, cache, sequence, tokens: Vec::new(), batch_tokens })
    }

    /// Returns the text that continues `request.prompt`; what the prompt shares with the tokens of the
    /// prompt and text before is not computed again.
    ///
    /// `on_text` gets the text piece by piece and can end it; then the reason is [`FinishReason::Length`].
    ///
    /// Errors if the prompt is empty or has no room in the context, and if the model fails.
    pub fn generate(
        &mut self,
        request: &GenerateRequest,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(Generated, Timings), Error> {
        let mut writer = Writer::new(0, request, self.tokenizer, self.model)?;
        let mut timings = Timings::default();
        if let Some(nothing) = nothing(request) {
            return Ok((nothing, timings));
        }
        let begun = Instant::now();
        let Some(mut logits) = self.prefill(&request.prompt, &mut timings, on_text)? else {
            return Ok((writer.into_generated(FinishReason::Length), timings));
        };
        timings.prompt_time = begun.elapsed();
        let begun = Instant::now();
        loop {
            let (text, finished) = writer.write(&logits)?;
            timings.generated_tokens = writer.tokens.len();
            timings.generation_time = begun.elapsed();
            let flow = on_text(&text);
            if let Some(reason) = finished {
                return Ok((writer.into_generated(reason), timings));
            }
            if flow.is_break() {
                writer.end();
                return Ok((writer.into_generated(FinishReason::Length), timings));
            }
            let last = writer.tokens[writer.tokens.len() - 1]; // written just now
            logits = self.forward(&[last], true)?;
        }
    }

    /// Puts the prompt into the cache; returns the logits behind it, or `None` if `on_text` ends it.
    fn prefill(
        &mut self,
        prompt: &[u32],
        timings: &mut Timings,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Option<Vec<f32>>, Error> {
        let same = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // the last token's logits are needed
        let kept = same.min(prompt.len() - 1);
        self.cache.truncate(self.sequence, kept);
        self.tokens.truncate(kept);
        timings.reused_tokens = kept;
        timings.prompt_tokens = prompt.len() - kept;
        let mut logits = Vec::new();
        for (start, end) in chunks(kept, prompt.len(), self.batch_tokens) {
            if on_text("").is_break() {
                return Ok(None);
            }
            logits = self.forward(&prompt[start..end], end == prompt.len())?;
        }
        Ok(Some(logits))
    }

    /// Appends tokens; returns the logits behind the last of them, if they are wanted.
    fn forward(&mut self, tokens: &[u32], wanted: bool) -> Result<Vec<f32>, Error> {
        let wants = if wanted { Wanted::Last } else { Wanted::None };
        let segment = Segment { sequence: self.sequence, tokens, wanted: wants };
        let hidden = self.model.forward(&mut self.cache, &[segment])?;
        self.tokens.extend_from_slice(tokens);
        match wanted {
            true => Ok(self.model.logits(&hidden, 0..1)?),
            false => Ok(Vec::new()),
        }
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.cache.truncate(self.sequence, 0);
        self.tokens.clear();
    }
}

/// Returns the stretches of `from..to` of at most `size`.
fn chunks(from: usize, to: usize, size: usize) -> impl Iterator<Item = (usize, usize)> {
    (from..to).step_by(size).map(move |start| (start, to.min(start + size)))
}

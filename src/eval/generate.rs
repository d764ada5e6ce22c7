//! Text that a model writes: one sequence after another turn, or many requests at once.
//!
//! Every draw is keyed by (seed, request index, token number), and a model's logits do not depend on the
//! batch, so a request's text depends on nothing but the request.

mod batch;
mod session;

#[cfg(test)]
mod tests;

pub use batch::generate;
pub use session::{Session, Timings};

use super::request::{FinishReason, GenerateRequest, Generated};
use super::sampling::sample;
use super::stop::StopScanner;
use super::{Error, LanguageModel};
use crate::kernel::philox::{Philox, Purpose};
use crate::text::{Detokenizer, Tokenizer};

/// Errors if the prompt is empty, too long for a single token more, or outside the vocabulary.
pub(super) fn check(
    index: usize,
    request: &GenerateRequest,
    model: &impl LanguageModel,
) -> Result<(), Error> {
    let (n_prompt, max) = (request.prompt.len(), model.context_length());
    if n_prompt == 0 {
        return Err(Error::Empty { index, part: "prompt" });
    }
    if n_prompt > max {
        return Err(Error::TooLong { index, part: "prompt", found: n_prompt, max });
    }
    let vocab_size = model.vocab_size();
    match request.prompt.iter().find(|token| **token as usize >= vocab_size) {
        Some(token) => Err(Error::TokenOutOfRange { index, token: *token, vocab_size }),
        None => Ok(()),
    }
}

/// One request on its way: its tokens so far and the text they make.
struct Writer<'a> {
    request: &'a GenerateRequest,
    tokenizer: &'a Tokenizer,
    stream: Option<Detokenizer<'a>>,
    stop: StopScanner,
    tokens: Vec<u32>,
    text: String,
    /// Most tokens: what is asked for, or what the context has room for.
    max_tokens: usize,
}

impl<'a> Writer<'a> {
    /// Errors as [`check`] does.
    fn new(
        index: usize,
        request: &'a GenerateRequest,
        tokenizer: &'a Tokenizer,
        model: &impl LanguageModel,
    ) -> Result<Self, Error> {
        check(index, request, model)?;
        let room = model.context_length() - request.prompt.len() + 1;
        Ok(Writer {
            request,
            tokenizer,
            stream: Some(tokenizer.stream()),
            stop: StopScanner::new(&request.stop),
            tokens: Vec::new(),
            text: String::new(),
            // the last token is never put into the model
            max_tokens: request.max_tokens.min(room),
        })
    }

    /// Draws the next token from its logits; returns the text that became certain, and why it ends, if it does.
    ///
    /// Errors if the logits have no largest one.
    fn write(&mut self, logits: &[f32]) -> Result<(String, Option<FinishReason>), Error> {
        let step = self.tokens.len();
        let random = Philox::new(self.request.seed, Purpose::Sampling);
        let draw = random.uniform_f64(step as u32, self.request.index);
        let token = sample(&self.request.sampling, logits, draw).ok_or(Error::NoToken { step })?;
        self.tokens.push(token);
        if self.tokenizer.end_of_generation().contains(&token) {
            return Ok((self.end(), Some(FinishReason::EndOfGeneration)));
        }
        let piece = self.stream.as_mut().map(|stream| stream.push(token)).unwrap_or_default();
        let mut shown = self.stop.push(&piece);
        self.text.push_str(&shown);
        if self.stop.is_stopped() {
            return Ok((shown, Some(FinishReason::Stop)));
        }
        if self.tokens.len() < self.max_tokens {
            return Ok((shown, None));
        }
        shown.push_str(&self.end());
        let reason = if self.stop.is_stopped() { FinishReason::Stop } else { FinishReason::Length };
        Ok((shown, Some(reason)))
    }

    /// Returns what was held back; no token comes any more.
    fn end(&mut self) -> String {
        let last = self.stream.take().map(Detokenizer::finish).unwrap_or_default();
        let shown = self.stop.push(&last) + &self.stop.finish();
        self.text.push_str(&shown);
        shown
    }

    fn into_generated(self, finish_reason: FinishReason) -> Generated {
        Generated { text: self.text, tokens: self.tokens, finish_reason }
    }
}

/// Returns the answer to a request for no tokens at all.
fn nothing(request: &GenerateRequest) -> Option<Generated> {
    (request.max_tokens == 0).then(|| Generated {
        text: String::new(),
        tokens: Vec::new(),
        finish_reason: FinishReason::Length,
    })
}

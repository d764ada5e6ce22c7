//! From text to token ids, by lm-eval's rules.
//!
//! The context's trailing white space moves into the continuation; the whole is encoded, and the context by
//! itself; what is behind the context's length is the continuation. The tokenizer's own BOS goes in front
//! unless the text begins with it. Special tokens spelled out in a text are those tokens.

use std::cell::OnceCell;

use super::request::{LoglikelihoodRequest, RollingRequest};
use super::score::is_python_space;
use crate::text::{EncodeOptions, Tokenizer};

/// Why a text gives no request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Text(#[from] crate::text::Error),

    #[error("`{continuation}` has no token of its own behind its context")]
    NoContinuation { continuation: String },

    #[error("the tokenizer has neither a beginning nor an end token to put before an empty context")]
    NoPrefix,
}

/// What several continuations stand behind: encoded once for all of them.
pub struct Context<'t> {
    text: &'t str,
    /// Of the text without white space at its end.
    tokens: OnceCell<Vec<u32>>,
}

impl<'t> Context<'t> {
    pub fn new(text: &'t str) -> Self {
        Context { text, tokens: OnceCell::new() }
    }

    pub fn text(&self) -> &'t str {
        self.text
    }
}

/// Makes requests of texts.
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    /// BOS, else EOS, and its text.
    prefix: Option<(u32, String)>,
}

impl<'a> Encoder<'a> {
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        let prefix = tokenizer.bos().or(tokenizer.eos());
        let prefix = prefix.map(|id| (id, tokenizer.decode(&[id], false)));
        Encoder { tokenizer, prefix }
    }

    /// Returns the ids of a text; with BOS where the tokenizer adds one and the text does not begin with it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let has_prefix =
            self.prefix.as_ref().is_some_and(|(_, prefix)| !prefix.is_empty() && text.starts_with(prefix));
        Ok(self.tokenizer.encode(text, EncodeOptions { add_special: !has_prefix, parse_special: true })?)
    }

    /// Returns the request for the log-probability of `continuation` behind `context`.
    pub fn loglikelihood(
        &self,
        context: &Context,
        continuation: &str,
    ) -> Result<LoglikelihoodRequest, Error> {
        if context.text.is_empty() {
            return self.without_context(continuation);
        }
        let mut whole = self.encode(&format!("{}{continuation}", context.text))?;
        let mut context = match context.tokens.get() {
            Some(tokens) => tokens.clone(),
            None => {
                let tokens = self.encode(context.text.trim_end_matches(is_python_space))?;
                context.tokens.get_or_init(|| tokens).clone()
            }
        };
        if whole.len() <= context.len() {
            return Err(Error::NoContinuation { continuation: continuation.to_owned() });
        }
        let continuation = whole.split_off(context.len());
        if context.is_empty() {
            context.push(self.prefix()?);
        }
        Ok(LoglikelihoodRequest { context, continuation })
    }

    fn without_context(&self, continuation: &str) -> Result<LoglikelihoodRequest, Error> {
        let options = EncodeOptions { add_special: false, parse_special: true };
        let mut ids = self.tokenizer.encode(continuation, options)?;
        let prefix = self.prefix()?;
        if ids.first() == Some(&prefix) {
            ids.remove(0);
        }
        if ids.is_empty() {
            return Err(Error::NoContinuation { continuation: continuation.to_owned() });
        }
        Ok(LoglikelihoodRequest { context: vec![prefix], continuation: ids })
    }

    /// Returns the request for the log-probability of a whole text. A BOS that the tokenizer adds is
    /// predicted too, from the BOS in front of it.
    pub fn rolling(&self, text: &str) -> Result<RollingRequest, Error> {
        Ok(RollingRequest { tokens: self.encode(text)?, prefix: self.prefix()? })
    }

    fn prefix(&self) -> Result<u32, Error> {
        self.prefix.as_ref().map(|(id, _)| *id).ok_or(Error::NoPrefix)
    }
}

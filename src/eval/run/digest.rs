//! A digest of what a suite asks, whoever is asked.

use sha2::{Digest as _, Sha256};

use crate::eval::data::hex;
use crate::eval::prompt::{Framing, Shot};
use crate::eval::task::Ask;

/// Of prompts and answers as the suite makes them: tokenizers and chat templates, which belong to the model, leave it
/// alone.
#[derive(Default)]
pub struct PromptsDigest {
    digest: Sha256,
}

impl PromptsDigest {
    /// Adds what is asked about a document.
    pub fn add_asks(&mut self, asks: &[Ask]) {
        self.number(asks.len());
        for ask in asks {
            match ask {
                Ask::Likelihood(text) | Ask::Text(text) => self.text(text),
                // its settings are keys of the task, which has a digest of its own
                Ask::Generation { .. } => self.text(""),
            }
        }
    }

    /// Adds a prompt, both as plain text and as messages.
    pub fn add_prompt(&mut self, framing: &Framing, shots: &[Shot], question: &str) {
        self.text(&framing.plain(shots, question));
        let messages = framing.messages(shots, question);
        self.number(messages.len());
        for message in messages {
            self.text(message.role.name());
            self.text(&message.content);
        }
    }

    /// Returns the digest of everything added, lower-case hex.
    pub fn hex(self) -> String {
        hex(&self.digest.finalize())
    }

    fn number(&mut self, number: usize) {
        self.digest.update((number as u64).to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len());
        self.digest.update(text);
    }
}

//! Tokens by id and by text.

use std::collections::HashMap;
use std::path::Path;

use super::super::error::Error;
use super::super::sentencepiece::PieceKind;
use super::super::table::Token;

/// Every token of a tokenizer. Ids that no token has hold an empty text.
#[derive(Debug)]
pub struct Vocabulary {
    tokens: Vec<Token>,
    ids: HashMap<String, u32>,
    longest: usize,
}

impl Vocabulary {
    /// Returns the vocabulary of these tokens; an empty text stands for an id without a token.
    ///
    /// Errors if two ids share a text; `path` is for the message.
    pub fn new(path: &Path, tokens: Vec<Token>) -> Result<Self, Error> {
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate().filter(|(_, token)| !token.text.is_empty()) {
            if let Some(first) = ids.insert(token.text.clone(), id as u32) {
                let problem = format!("tokens {first} and {id} are both {:?}", token.text);
                return Err(Error::Pieces { path: path.to_owned(), problem });
            }
        }
        let longest = tokens.iter().map(|token| token.text.len()).max().unwrap_or(0);
        Ok(Vocabulary { tokens, ids, longest })
    }

    /// Returns one more than the largest id.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Returns the id of the token with that text.
    pub fn id(&self, text: &str) -> Option<u32> {
        match text.len() <= self.longest {
            true => self.ids.get(text).copied(),
            false => None,
        }
    }

    /// Returns the token, unless no token has that id.
    pub fn token(&self, id: u32) -> Option<&Token> {
        self.tokens.get(id as usize).filter(|token| !token.text.is_empty())
    }

    /// Returns all tokens by id, those without a text too.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Returns whether the token is a control or unknown token: text cannot spell it.
    pub fn is_special(&self, id: u32) -> bool {
        self.token(id).is_some_and(|token| matches!(token.kind, PieceKind::Control | PieceKind::Unknown))
    }

    pub fn set_kind(&mut self, id: u32, kind: PieceKind) {
        if let Some(token) = self.tokens.get_mut(id as usize) {
            token.kind = kind;
        }
    }
}

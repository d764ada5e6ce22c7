//! A micro-batch: documents laid out as rows, one after another, without padding.

use std::sync::Arc;

use super::{Document, Error};
use crate::kernel::dropout::RowPlace;
use crate::model::batch::Ropes;
use crate::nn::Turns;

pub(super) struct Sheet {
    pub tokens: Vec<u32>,
    /// Rows where documents begin, and the number of rows.
    pub cu: Vec<usize>,
    pub places: Vec<RowPlace>,
    /// How rows turn in layers of full attention.
    pub turns: Turns,
    /// The same in layers of sliding attention.
    pub local_turns: Turns,
    /// Rows that a target is predicted from, ascending.
    pub scored: Vec<usize>,
    /// The places of those rows.
    pub scored_places: Vec<RowPlace>,
    pub targets: Vec<u32>,
    /// Where the documents begin in `scored`, and its length.
    pub scored_cu: Vec<usize>,
}

impl Sheet {
    /// Lays documents out; the first has that index within its step.
    ///
    /// Errors on a token outside the vocabulary, on flags that don't fit the tokens, and on a document longer than the
    /// context.
    pub fn new(
        documents: &[Document<'_>],
        first_index: u32,
        ropes: &Ropes,
        vocab_size: usize,
        context: usize,
    ) -> Result<Sheet, Error> {
        let mut sheet = Sheet {
            tokens: Vec::new(),
            cu: vec![0],
            places: Vec::new(),
            turns: Turns { positions: Arc::from([]), tables: Vec::new() },
            local_turns: Turns { positions: Arc::from([]), tables: Vec::new() },
            scored: Vec::new(),
            scored_places: Vec::new(),
            targets: Vec::new(),
            scored_cu: vec![0],
        };
        for (index, Document { tokens, is_target }) in documents.iter().enumerate() {
            check(index, tokens, is_target, vocab_size, context)?;
            let first = sheet.tokens.len();
            sheet.tokens.extend_from_slice(tokens);
            sheet.cu.push(sheet.tokens.len());
            // a context, and the documents of a step, are below 2^32
            let document = first_index + index as u32;
            sheet.places.extend((0..tokens.len() as u32).map(|position| RowPlace { document, position }));
            sheet.turns.tables.push((tokens.len(), ropes.of_length(tokens.len())));
            for (i, token) in tokens.iter().enumerate().skip(1).filter(|(i, _)| is_target[*i]) {
                sheet.scored.push(first + i - 1);
                sheet.targets.push(*token);
            }
            sheet.scored_cu.push(sheet.scored.len());
        }
        sheet.scored_places = sheet.scored.iter().map(|row| sheet.places[*row]).collect();
        sheet.turns.positions = sheet.places.iter().map(|place| place.position).collect();
        sheet.local_turns = match &ropes.local {
            Some(table) => Turns {
                positions: sheet.turns.positions.clone(),
                tables: vec![(sheet.tokens.len(), table.clone())],
            },
            None => sheet.turns.clone(),
        };
        Ok(sheet)
    }
}

fn check(
    index: usize,
    tokens: &[u32],
    is_target: &[bool],
    vocab_size: usize,
    context: usize,
) -> Result<(), Error> {
    if is_target.len() != tokens.len() {
        return Err(Error::Flags { index, found: is_target.len(), expected: tokens.len() });
    }
    if tokens.len() > context {
        return Err(Error::TooLong { index, length: tokens.len(), context });
    }
    match tokens.iter().find(|token| **token as usize >= vocab_size) {
        Some(&token) => Err(crate::model::Error::TokenOutOfRange { token, vocab_size }.into()),
        None => Ok(()),
    }
}

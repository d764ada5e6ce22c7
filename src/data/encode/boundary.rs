//! From places in a text to places among its tokens, and where a turn ends.

use std::sync::atomic::Ordering;

use super::Encoder;
use crate::data::RowError;

impl Encoder<'_> {
    /// Returns the number of the first token that reaches beyond byte `at` of the text.
    pub(super) fn first_token_from(&self, text: &str, ids: &[u32], at: usize) -> Result<usize, RowError> {
        let (shared, left) = self.shared_with_start(text, ids, at)?;
        if left == 0 {
            return Ok(shared);
        }
        self.straddling.fetch_add(1, Ordering::Relaxed);
        Ok(shared + self.tokens_within(&ids[shared..], left))
    }

    /// Returns the number behind the last token that begins before byte `at` of the text.
    pub(super) fn end_token_of(&self, text: &str, ids: &[u32], at: usize) -> Result<usize, RowError> {
        if at == text.len() {
            return Ok(ids.len());
        }
        let (shared, left) = self.shared_with_start(text, ids, at)?;
        if left == 0 {
            return Ok(shared);
        }
        let whole = self.tokens_within(&ids[shared..], left);
        let covered: usize =
            ids[shared..shared + whole].iter().map(|id| self.tokenizer.piece(*id).len()).sum();
        Ok((shared + whole + usize::from(covered < left)).min(ids.len()))
    }

    /// Returns how many tokens the text up to `at`, by itself, has in common with the whole's, and how many of its bytes are
    /// in other tokens: 0 if a token ends there.
    fn shared_with_start(&self, text: &str, ids: &[u32], at: usize) -> Result<(usize, usize), RowError> {
        let start = self.ids(&text[..at])?;
        let shared = start.iter().zip(ids).take_while(|(start, whole)| start == whole).count();
        let left = start[shared..].iter().map(|id| self.tokenizer.piece(*id).len()).sum();
        Ok((shared, left))
    }

    /// Returns how many of the tokens lie within the first `bytes` bytes.
    fn tokens_within(&self, ids: &[u32], bytes: usize) -> usize {
        let mut end = 0;
        let lengths = ids.iter().map(|id| self.tokenizer.piece(*id).len());
        lengths
            .take_while(|length| {
                end += length;
                end <= bytes
            })
            .count()
    }

    /// Returns whether the token ends a generation.
    pub(super) fn ends(&self, id: u32) -> bool {
        self.tokenizer.end_of_generation().contains(&id)
    }

    fn is_space(&self, ids: &[u32]) -> bool {
        self.tokenizer.decode(ids, false).trim().is_empty()
    }

    /// Returns the range of an answer up to and with the token that ends the turn; white space behind that is written by
    /// the template, never by the model.
    pub(super) fn with_end_of_turn(&self, ids: &[u32], (start, end): (usize, usize)) -> (usize, usize) {
        match ids[start..end].iter().rposition(|id| self.ends(*id)) {
            Some(at) if self.is_space(&ids[start + at + 1..end]) => (start, start + at + 1),
            _ if ids.get(end).is_some_and(|id| self.ends(*id)) => (start, end + 1),
            _ => (start, end),
        }
    }

    /// Puts the end token behind the last answer of a row if the template puts none there: the model learns to stop.
    pub(super) fn end_row(&self, ids: &mut Vec<u32>, last: &mut (usize, usize)) {
        let has_end = ids[last.0..last.1].iter().rposition(|id| self.ends(*id));
        let is_ended = has_end.is_some_and(|at| self.is_space(&ids[last.0 + at + 1..last.1]));
        if !is_ended && self.is_space(&ids[last.1..]) {
            ids.truncate(last.1);
            ids.extend(self.end);
            last.1 = ids.len();
        }
    }
}

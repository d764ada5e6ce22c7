//! Many requests at once: every round computes the next token of all that are being written, and of the
//! prompts as much as there is room for; what is finished makes room for what waits.
//!
//! Requests start in the order of their prompts, so that prompts that begin alike follow each other: what a
//! prompt shares with one in the cache is not computed again.

use super::{Writer, nothing};
use crate::eval::request::{FinishReason, GenerateRequest, Generated};
use crate::eval::{EngineOptions, Error, LanguageModel, SequenceCache};
use crate::model::{Segment, SequenceId, Wanted};
use crate::text::Tokenizer;

/// A request that has pages in the cache.
struct Active<'a> {
    index: usize,
    writer: Writer<'a>,
    sequence: SequenceId,
    /// Tokens of prompt and text in the cache.
    n_cached: usize,
    /// Pages set aside for it.
    n_pages: usize,
}

/// Tokens of one round that belong to one request.
struct Part {
    active: usize,
    tokens: Vec<u32>,
    is_wanted: bool,
}

/// Answers the requests; `on_done` gets each response as it is finished, with the number of tokens that
/// were computed since the last call.
///
/// Errors if a prompt is empty, longer than the context or outside the vocabulary, if one request's keys
/// and values exceed the budget, if the model fails, and with what `on_done` returns.
pub fn generate<M: LanguageModel>(
    model: &M,
    tokenizer: &Tokenizer,
    requests: &[(usize, &GenerateRequest)],
    options: &EngineOptions,
    on_done: &mut dyn FnMut(usize, Generated, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    let cache = model.new_cache(options.cache_bytes)?;
    let n_pages = options.cache_bytes / cache.page_bytes().max(1);
    let mut waiting = Vec::new();
    for &(index, request) in requests {
        let writer = Writer::new(index, request, tokenizer, model)?;
        match nothing(request) {
            Some(generated) => on_done(index, generated, 0)?,
            None => waiting.push((index, writer)),
        }
    }
    if options.prefix_cache {
        waiting.sort_by(|(_, a), (_, b)| a.request.prompt.cmp(&b.request.prompt));
    }
    waiting.reverse();
    let mut batch = Batch {
        model,
        cache,
        free_pages: n_pages,
        active: Vec::new(),
        waiting,
        newest: None,
        spare: None,
        batch_tokens: options.batch_tokens.max(1),
        shares: options.prefix_cache,
    };
    let mut n_tokens = 0;
    loop {
        batch.admit()?;
        if batch.active.is_empty() {
            return Ok(());
        }
        n_tokens += batch.round(&mut |index, generated, computed| {
            let since = std::mem::take(&mut n_tokens) + computed;
            on_done(index, generated, since)
        })?;
    }
}

struct Batch<'a, M: LanguageModel> {
    model: &'a M,
    cache: M::Cache,
    free_pages: usize,
    active: Vec<Active<'a>>,
    /// The last is next.
    waiting: Vec<(usize, Writer<'a>)>,
    /// The request started last. When it is finished its prompt stays in the cache, as `spare`, for the next.
    newest: Option<usize>,
    spare: Option<Spare<'a>>,
    batch_tokens: usize,
    shares: bool,
}

/// A prompt in the cache.
struct Spare<'a> {
    prompt: &'a [u32],
    sequence: SequenceId,
    n_pages: usize,
}

/// A sequence that begins as a prompt does.
#[derive(Clone, Copy, Default)]
struct Donor {
    /// Tokens that it has in common with the prompt, less the prompt's last.
    shared: usize,
    /// How many of them are in the cache.
    ready: usize,
    sequence: Option<SequenceId>,
}

impl<'a, M: LanguageModel> Batch<'a, M> {
    /// Starts what waits, in order, as long as the cache has room for all its tokens.
    fn admit(&mut self) -> Result<(), Error> {
        // a round has room for one token of each
        while self.active.len() < self.batch_tokens {
            let Some((_, writer)) = self.waiting.last() else { return Ok(()) };
            let n_tokens = writer.request.prompt.len() + writer.max_tokens - 1;
            let n_pages = n_tokens.div_ceil(M::Cache::PAGE);
            let donor = self.donor(&writer.request.prompt);
            if donor.shared > donor.ready {
                return Ok(()); // it is being computed
            }
            if n_pages > self.free_pages {
                if self.drop_spare() {
                    continue;
                }
                if self.active.is_empty() {
                    let page = self.cache.page_bytes() as u64;
                    let (needed, budget) = (n_pages as u64 * page, self.free_pages as u64 * page);
                    return Err(Error::CacheTooSmall { needed, budget });
                }
                return Ok(());
            }
            let Some((index, writer)) = self.waiting.pop() else { return Ok(()) };
            self.free_pages -= n_pages;
            let sequence = match donor.sequence {
                Some(sequence) => self.cache.fork(sequence, donor.shared)?,
                None => self.cache.create(),
            };
            self.newest = Some(index);
            self.drop_spare();
            self.active.push(Active { index, writer, sequence, n_cached: donor.shared, n_pages });
        }
        Ok(())
    }

    /// Returns the sequence that has most in common with the prompt.
    fn donor(&self, prompt: &[u32]) -> Donor {
        let mut best = Donor::default();
        if !self.shares {
            return best;
        }
        let active =
            self.active.iter().map(|one| (&one.writer.request.prompt[..], one.n_cached, one.sequence));
        let spare = self.spare.iter().map(|spare| (spare.prompt, spare.prompt.len(), spare.sequence));
        for (other, n_cached, sequence) in active.chain(spare) {
            let same = prompt.iter().zip(other).take_while(|(a, b)| a == b).count();
            let shared = same.min(prompt.len() - 1);
            let ready = shared.min(n_cached);
            // less than a page would be copied, not shared
            if shared >= M::Cache::PAGE && (shared, ready) > (best.shared, best.ready) {
                best = Donor { shared, ready, sequence: Some(sequence) };
            }
        }
        best
    }

    /// Forgets the spare prompt; returns whether there was one.
    fn drop_spare(&mut self) -> bool {
        let Some(spare) = self.spare.take() else { return false };
        self.cache.free(spare.sequence);
        self.free_pages += spare.n_pages;
        true
    }

    /// Forgets a finished request's sequence, or keeps its prompt.
    fn release(&mut self, done: &Active<'a>) {
        if !self.shares || self.newest != Some(done.index) || self.waiting.is_empty() {
            self.cache.free(done.sequence);
            self.free_pages += done.n_pages;
            return;
        }
        let prompt = &done.writer.request.prompt;
        self.cache.truncate(done.sequence, prompt.len());
        let n_pages = prompt.len().div_ceil(M::Cache::PAGE);
        self.free_pages += done.n_pages - n_pages;
        self.spare = Some(Spare { prompt, sequence: done.sequence, n_pages });
    }

    /// Returns what goes into the next round: one token of every text, then prompts in order.
    fn parts(&self) -> Vec<Part> {
        let mut parts = Vec::new();
        for (active, one) in self.active.iter().enumerate() {
            if let Some(last) = one.writer.tokens.last() {
                parts.push(Part { active, tokens: vec![*last], is_wanted: true });
            }
        }
        let mut room = self.batch_tokens - parts.len();
        for (active, one) in self.active.iter().enumerate() {
            let prompt = &one.writer.request.prompt;
            if room == 0 || !one.writer.tokens.is_empty() {
                continue;
            }
            let end = prompt.len().min(one.n_cached + room);
            let tokens = prompt[one.n_cached..end].to_vec();
            room -= tokens.len();
            parts.push(Part { active, tokens, is_wanted: end == prompt.len() });
        }
        parts
    }

    /// Computes one round; returns the tokens computed since `on_done` was last called.
    fn round(
        &mut self,
        on_done: &mut dyn FnMut(usize, Generated, usize) -> Result<(), Error>,
    ) -> Result<usize, Error> {
        let parts = self.parts();
        let segments: Vec<Segment<'_>> = parts
            .iter()
            .map(|part| Segment {
                sequence: self.active[part.active].sequence,
                tokens: &part.tokens,
                wanted: if part.is_wanted { Wanted::Last } else { Wanted::None },
            })
            .collect();
        let hidden = self.model.forward(&mut self.cache, &segments)?;
        let mut computed: usize = parts.iter().map(|part| part.tokens.len()).sum();
        for part in &parts {
            self.active[part.active].n_cached += part.tokens.len();
        }
        let rows: Vec<usize> = parts.iter().filter(|part| part.is_wanted).map(|part| part.active).collect();
        let vocab_size = self.model.vocab_size();
        let mut finished: Vec<(usize, FinishReason)> = Vec::new();
        let together = self.model.logit_rows();
        for (chunk, actives) in rows.chunks(together).enumerate() {
            let first = chunk * together;
            let logits = self.model.logits(&hidden, first..first + actives.len())?;
            for (row, active) in logits.chunks_exact(vocab_size).zip(actives) {
                if let (_, Some(reason)) = self.active[*active].writer.write(row)? {
                    finished.push((*active, reason));
                }
            }
        }
        // from the back, so that what is removed moves nothing that is still to go
        finished.sort_by_key(|(active, _)| std::cmp::Reverse(*active));
        for (active, reason) in finished {
            let done = self.active.remove(active);
            self.release(&done);
            on_done(done.index, done.writer.into_generated(reason), std::mem::take(&mut computed))?;
        }
        Ok(computed)
    }
}

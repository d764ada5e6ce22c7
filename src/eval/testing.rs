//! A language model for tests of the engine: its logits hash the whole prefix, its cache counts pages.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use super::{LanguageModel, SequenceCache};
use crate::model::{Error, Scored, Segment, SequenceId, Wanted};

/// Next-token logits depend on every token before, and on nothing else.
pub struct FakeModel {
    pub vocab_size: usize,
    pub context_length: usize,
    /// Models with other salts have other logits.
    pub salt: u64,
    /// Tokens given to `forward` so far.
    pub n_forwarded: Cell<usize>,
    /// Tokens of each `forward`.
    pub batches: RefCell<Vec<usize>>,
    /// Rows of logits computed for `score`.
    pub n_rows: Cell<usize>,
    /// Fails after this many batches.
    pub fail_after: Cell<usize>,
    /// Its weights are damaged: token 0's logit is no number.
    pub is_broken: bool,
    /// Sequences in all caches.
    pub n_live: Rc<Cell<usize>>,
}

/// Numbers that are the same in every run.
pub struct Numbers(pub u64);

impl Numbers {
    /// Returns a number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        (mix(0, self.0) % n as u64) as usize
    }

    /// Returns `len` token ids below `vocab_size`.
    pub fn tokens(&mut self, len: usize, vocab_size: usize) -> Vec<u32> {
        (0..len).map(|_| self.below(vocab_size) as u32).collect()
    }
}

impl FakeModel {
    pub fn new(vocab_size: usize, context_length: usize) -> Self {
        FakeModel {
            vocab_size,
            context_length,
            salt: 0,
            n_forwarded: Cell::new(0),
            batches: RefCell::default(),
            n_rows: Cell::new(0),
            fail_after: Cell::new(usize::MAX),
            is_broken: false,
            n_live: Rc::default(),
        }
    }

    /// Returns the logits behind a prefix whose hash is `state`; few levels, so that ties come up.
    pub fn logits_of(&self, state: u64) -> Vec<f32> {
        let level = |token| (mix(state ^ self.salt, token as u64) >> 58) as f32;
        let mut logits: Vec<f32> = (0..self.vocab_size).map(|token| level(token) / 8.0).collect();
        if self.is_broken {
            logits[0] = f32::NAN;
        }
        logits
    }

    /// Returns the state behind `prefix`.
    pub fn state_of(prefix: &[u32]) -> u64 {
        prefix.iter().fold(0, |state, token| mix(state, u64::from(*token)))
    }

    /// Scores `token` behind `prefix` without a cache.
    pub fn score_plainly(&self, prefix: &[u32], token: u32) -> Scored {
        scored(&self.logits_of(Self::state_of(prefix)), token)
    }
}

/// SplitMix64's finalizer over both.
fn mix(state: u64, value: u64) -> u64 {
    let mut z = state.rotate_left(17) ^ value.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn scored(logits: &[f32], token: u32) -> Scored {
    let token = token as usize;
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|logit| (logit - max).exp()).sum();
    let first = logits.iter().position(|logit| *logit == max);
    Scored { log_prob: logits[token] - max - sum.ln(), is_greedy: first == Some(token) }
}

/// Bytes of a page of [`FakeCache`].
pub const PAGE_BYTES: usize = 100;

/// Pages are counted as the real cache counts them; taking one too many panics.
pub struct FakeCache {
    budget: usize,
    sequences: HashMap<SequenceId, Sequence>,
    owners: HashMap<usize, usize>,
    next: usize,
    n_live: Rc<Cell<usize>>,
}

#[derive(Clone, Default)]
struct Sequence {
    states: Vec<u64>,
    pages: Vec<usize>,
}

impl FakeCache {
    fn fresh(&mut self) -> usize {
        self.next += 1;
        self.next
    }

    fn take_page(&mut self) -> usize {
        let page = self.fresh();
        self.owners.insert(page, 1);
        assert!(self.owners.len() <= self.budget, "more than {} pages", self.budget);
        page
    }

    fn drop_page(&mut self, page: usize) {
        let owners = self.owners.get_mut(&page).unwrap();
        *owners -= 1;
        if *owners == 0 {
            self.owners.remove(&page);
        }
    }

    fn append(&mut self, id: SequenceId, token: u32) -> u64 {
        let mut sequence = self.sequences.remove(&id).unwrap();
        if sequence.states.len().is_multiple_of(Self::PAGE) {
            sequence.pages.push(self.take_page());
        }
        assert_eq!(self.owners[sequence.pages.last().unwrap()], 1, "a shared page is never written");
        let state = mix(sequence.states.last().copied().unwrap_or(0), u64::from(token));
        sequence.states.push(state);
        self.sequences.insert(id, sequence);
        state
    }
}

impl SequenceCache for FakeCache {
    const PAGE: usize = 4;

    fn page_bytes(&self) -> usize {
        PAGE_BYTES
    }

    fn create(&mut self) -> SequenceId {
        let id = SequenceId(self.fresh());
        self.n_live.set(self.n_live.get() + 1);
        self.sequences.insert(id, Sequence::default());
        id
    }

    fn fork(&mut self, sequence: SequenceId, len: usize) -> Result<SequenceId, Error> {
        let mut fork = self.sequences[&sequence].clone();
        assert!(len <= fork.states.len());
        fork.states.truncate(len);
        fork.pages.truncate(len / Self::PAGE);
        for page in &fork.pages {
            *self.owners.get_mut(page).unwrap() += 1;
        }
        if !len.is_multiple_of(Self::PAGE) {
            fork.pages.push(self.take_page());
        }
        let id = SequenceId(self.fresh());
        self.n_live.set(self.n_live.get() + 1);
        self.sequences.insert(id, fork);
        Ok(id)
    }

    fn truncate(&mut self, id: SequenceId, len: usize) {
        let mut sequence = self.sequences.remove(&id).unwrap();
        sequence.states.truncate(len);
        for page in sequence.pages.split_off(len.div_ceil(Self::PAGE).min(sequence.pages.len())) {
            self.drop_page(page);
        }
        self.sequences.insert(id, sequence);
    }

    fn free(&mut self, id: SequenceId) {
        self.n_live.set(self.n_live.get() - 1);
        for page in self.sequences.remove(&id).unwrap().pages {
            self.drop_page(page);
        }
    }
}

impl LanguageModel for FakeModel {
    type Cache = FakeCache;
    type Hidden = Vec<u64>;

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn context_length(&self) -> usize {
        self.context_length
    }

    fn cache_bytes(&self, n: usize) -> usize {
        n.div_ceil(FakeCache::PAGE) * PAGE_BYTES
    }

    fn new_cache(&self, budget_bytes: usize) -> Result<FakeCache, Error> {
        let budget = budget_bytes / PAGE_BYTES;
        let n_live = self.n_live.clone();
        Ok(FakeCache { budget, sequences: HashMap::new(), owners: HashMap::new(), next: 0, n_live })
    }

    fn forward(&self, cache: &mut FakeCache, segments: &[Segment<'_>]) -> Result<Vec<u64>, Error> {
        if self.batches.borrow().len() == self.fail_after.get() {
            return Err(Error::MissingKey { path: "fake".into(), key: "enough".into() });
        }
        let mut hidden = Vec::new();
        let mut n = 0;
        for segment in segments {
            n += segment.tokens.len();
            let mut states = Vec::new();
            for token in segment.tokens {
                states.push(cache.append(segment.sequence, *token));
            }
            assert!(cache.sequences[&segment.sequence].states.len() <= self.context_length);
            match segment.wanted {
                Wanted::None => {}
                Wanted::Last => hidden.extend(states.last()),
                Wanted::All => hidden.extend(&states),
                Wanted::At(at) => hidden.extend(at.iter().map(|at| states[*at])),
            }
        }
        self.n_forwarded.set(self.n_forwarded.get() + n);
        self.batches.borrow_mut().push(n);
        Ok(hidden)
    }

    fn score(&self, hidden: &Vec<u64>, targets: &[(usize, u32)]) -> Result<Vec<Scored>, Error> {
        let mut rows: Vec<usize> = targets.iter().map(|(row, _)| *row).collect();
        rows.dedup();
        assert!(rows.is_sorted());
        self.n_rows.set(self.n_rows.get() + rows.len());
        Ok(targets.iter().map(|(row, token)| scored(&self.logits_of(hidden[*row]), *token)).collect())
    }

    fn logits(&self, hidden: &Vec<u64>, rows: Range<usize>) -> Result<Vec<f32>, Error> {
        Ok(hidden[rows].iter().flat_map(|state| self.logits_of(*state)).collect())
    }
}

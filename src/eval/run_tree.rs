//! Computes a [`Tree`] batch by batch and hands out each path's scores when its last token is in.

use std::collections::HashMap;

use super::plan::{NodeId, Path, Tree};
use super::schedule::{Bounds, Schedule, Step};
use super::{EngineOptions, Error, LanguageModel, SequenceCache};
use crate::model::{Scored, Segment, SequenceId, Wanted};

/// What happens on the way.
pub trait Listener {
    /// Takes the scores of a path, one per scored token, in order. Paths end in any order, each once.
    fn path_done(&mut self, path: usize, scored: &[Scored]);

    /// Takes the number of tokens of a batch whose paths were all reported.
    fn batch_done(&mut self, n_tokens: usize) -> Result<(), Error>;
}

/// Scores `paths`, whose tree is `tree`.
///
/// Errors if the model fails, or the cache's budget is too small for one path.
pub fn run_tree<M: LanguageModel>(
    model: &M,
    options: &EngineOptions,
    paths: &[Path<'_>],
    tree: &Tree,
    listener: &mut dyn Listener,
) -> Result<(), Error> {
    if paths.is_empty() {
        return Ok(());
    }
    let mut cache = model.new_cache(options.cache_bytes)?;
    let page_bytes = cache.page_bytes();
    let bounds = Bounds {
        batch_tokens: options.batch_tokens.max(1),
        pages: options.cache_bytes / page_bytes,
        page_len: M::Cache::PAGE,
    };
    let mut schedule = Schedule::new(tree, bounds).map_err(|pages| Error::CacheTooSmall {
        needed: pages as u64 * page_bytes as u64,
        budget: options.cache_bytes as u64,
    })?;
    let nothing = Scored { log_prob: 0.0, is_greedy: false };
    let mut run =
        Run { model, paths, tree, sequences: HashMap::new(), scores: vec![nothing; tree.targets.len()] };
    loop {
        let batch = schedule.next_batch();
        if batch.is_empty() {
            return Ok(());
        }
        run.compute(&mut cache, &batch)?;
        let mut n_tokens = 0;
        for step in &batch {
            n_tokens += step.positions.len();
            for node in schedule.finish(step) {
                if let Some(sequence) = run.sequences.remove(&node) {
                    cache.free(sequence);
                }
            }
            if step.positions.end == tree.nodes[step.node].end {
                run.report(step.node, listener);
            }
        }
        listener.batch_done(n_tokens)?;
    }
}

/// Errors if the model gave no probability.
pub fn checked(scored: Scored, token: u32) -> Result<Scored, Error> {
    match scored.log_prob.is_nan() {
        true => Err(Error::NoProbability { token }),
        false => Ok(scored),
    }
}

struct Run<'a, M> {
    model: &'a M,
    paths: &'a [Path<'a>],
    tree: &'a Tree,
    /// Of the nodes in the cache.
    sequences: HashMap<NodeId, SequenceId>,
    /// Beside the tree's targets.
    scores: Vec<Scored>,
}

/// Rows of hidden states and what is asked of them.
#[derive(Default)]
struct Asked {
    /// Per step: indexes into its tokens.
    wanted: Vec<Vec<usize>>,
    /// Row and token.
    targets: Vec<(usize, u32)>,
    /// Beside `targets`: index into the tree's targets.
    slots: Vec<usize>,
}

impl<M: LanguageModel> Run<'_, M> {
    fn compute(&mut self, cache: &mut M::Cache, batch: &[Step]) -> Result<(), Error> {
        let mut tokens: Vec<Vec<u32>> = Vec::with_capacity(batch.len());
        let mut sequences = Vec::with_capacity(batch.len());
        for step in batch {
            sequences.push(self.sequence(cache, step)?);
            let mut run = Vec::with_capacity(step.positions.len());
            self.paths[self.tree.nodes[step.node].path].extend(step.positions.clone(), &mut run);
            tokens.push(run);
        }
        let asked = self.asked(batch);
        let parts = sequences.iter().zip(&tokens).zip(&asked.wanted);
        let segments: Vec<Segment<'_>> = parts
            .map(|((sequence, tokens), wanted)| Segment {
                sequence: *sequence,
                tokens,
                wanted: Wanted::At(wanted),
            })
            .collect();
        let hidden = self.model.forward(cache, &segments)?;
        if !asked.targets.is_empty() {
            let scored = self.model.score(&hidden, &asked.targets)?;
            for ((slot, (_, token)), scored) in asked.slots.iter().zip(&asked.targets).zip(scored) {
                self.scores[*slot] = checked(scored, *token)?;
            }
        }
        Ok(())
    }

    /// Returns the sequence of the step's node; a node that begins is forked from its parent.
    fn sequence(&mut self, cache: &mut M::Cache, step: &Step) -> Result<SequenceId, Error> {
        if let Some(sequence) = self.sequences.get(&step.node) {
            return Ok(*sequence);
        }
        let node = &self.tree.nodes[step.node];
        let parent = node.parent.and_then(|parent| self.sequences.get(&parent));
        let sequence = match parent {
            Some(parent) => cache.fork(*parent, node.start)?,
            None => cache.create(),
        };
        self.sequences.insert(step.node, sequence);
        Ok(sequence)
    }

    fn asked(&self, batch: &[Step]) -> Asked {
        let mut asked = Asked::default();
        let mut n_rows = 0;
        for Step { node, positions } in batch {
            let mut wanted: Vec<usize> = Vec::new();
            let slots = self.tree.nodes[*node].targets.clone();
            let of_node = &self.tree.targets[slots.clone()];
            let first = of_node.partition_point(|target| target.position < positions.start);
            let last = of_node.partition_point(|target| target.position < positions.end);
            for (target, slot) in of_node[first..last].iter().zip(slots.start + first..) {
                let at = target.position - positions.start;
                if wanted.last() != Some(&at) {
                    wanted.push(at);
                    n_rows += 1;
                }
                asked.targets.push((n_rows - 1, target.token));
                asked.slots.push(slot);
            }
            asked.wanted.push(wanted);
        }
        asked
    }

    fn report(&self, node: NodeId, listener: &mut dyn Listener) {
        for &path in self.tree.ends(node) {
            let scored: Vec<Scored> = self.tree.slots(path).iter().map(|slot| self.scores[*slot]).collect();
            listener.path_done(path, &scored);
        }
    }
}

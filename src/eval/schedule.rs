//! In which order a [`Tree`]'s nodes are computed: batches bounded by tokens, the cache by pages.
//!
//! Depth first: what is computed next is what hangs on the newest keys and values, so that these can go soon,
//! and a batch is filled up from the rest. Memory is bounded whatever the number of requests: a node starts
//! only if behind it the cache still has room for the longest way down any node has; where nothing can start
//! so, the top node goes alone, into that room, and gives it back with everything below it.

use std::ops::Range;

use super::plan::{NodeId, Tree};

/// Bounds of a batch and of the cache.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Tokens computed at once, > 0.
    pub batch_tokens: usize,
    /// Pages of the cache.
    pub pages: usize,
    /// Positions per page.
    pub page_len: usize,
}

/// Positions of one node to compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub node: NodeId,
    pub positions: Range<usize>,
}

/// Hands out batches and knows which nodes are in the cache.
pub struct Schedule<'a> {
    tree: &'a Tree,
    bounds: Bounds,
    /// Nodes whose parents are computed; the last one is next.
    ready: Vec<NodeId>,
    /// Position up to which a node is computed.
    computed: Vec<usize>,
    /// Children whose subtrees are unfinished.
    unfinished: Vec<usize>,
    pages_used: usize,
    /// Pages of the longest way down.
    reserve: usize,
}

impl<'a> Schedule<'a> {
    /// Returns the schedule, or else the pages that the longest path needs if the bounds have fewer.
    pub fn new(tree: &'a Tree, bounds: Bounds) -> Result<Self, usize> {
        let reserve = longest_way(tree, bounds.page_len);
        if reserve > bounds.pages {
            return Err(reserve);
        }
        Ok(Schedule {
            tree,
            bounds,
            ready: tree.roots.iter().rev().copied().collect(),
            computed: tree.nodes.iter().map(|node| node.start).collect(),
            unfinished: tree.nodes.iter().map(|node| node.children.len()).collect(),
            pages_used: 0,
            reserve,
        })
    }

    /// Returns what to compute next, empty at the end; a node's positions may be spread over batches.
    pub fn next_batch(&mut self) -> Vec<Step> {
        let mut batch = Vec::new();
        let mut room = self.bounds.batch_tokens;
        for &node in self.ready.iter().rev() {
            if room == 0 {
                break;
            }
            let (start, done, end) = {
                let n = &self.tree.nodes[node];
                (n.start, self.computed[node], n.end)
            };
            if done == start {
                let pages = pages(&(start..end), self.bounds.page_len);
                if self.pages_used + pages + self.reserve > self.bounds.pages && !batch.is_empty() {
                    break;
                }
                self.pages_used += pages;
            }
            let positions = done..end.min(done + room);
            room -= positions.len();
            self.computed[node] = positions.end;
            batch.push(Step { node, positions });
            if self.pages_used + self.reserve > self.bounds.pages {
                break; // it went alone into the reserve, or filled what is before it
            }
        }
        batch
    }

    /// Takes a computed step; returns the nodes that the cache can forget, children before parents.
    pub fn finish(&mut self, step: &Step) -> Vec<NodeId> {
        let node = &self.tree.nodes[step.node];
        if step.positions.end < node.end {
            return Vec::new();
        }
        // A batch is taken from the top, so the node is near it.
        if let Some(at) = self.ready.iter().rposition(|ready| *ready == step.node) {
            self.ready.remove(at);
        }
        self.ready.extend(node.children.iter().rev());
        let mut freed = Vec::new();
        let mut at = Some(step.node).filter(|_| node.children.is_empty());
        while let Some(done) = at {
            let node = &self.tree.nodes[done];
            self.pages_used -= pages(&(node.start..node.end), self.bounds.page_len);
            freed.push(done);
            at = node.parent.filter(|parent| {
                self.unfinished[*parent] -= 1;
                self.unfinished[*parent] == 0
            });
        }
        freed
    }
}

/// Returns the pages that positions take beside those their sequence was forked from: a shared page that is
/// not full is copied.
fn pages(positions: &Range<usize>, page_len: usize) -> usize {
    positions.end.div_ceil(page_len) - positions.start / page_len
}

/// Returns the most pages that a root, a child of it, a child of that and so on take together.
fn longest_way(tree: &Tree, page_len: usize) -> usize {
    let mut longest = 0;
    let mut stack: Vec<(NodeId, usize)> = tree.roots.iter().map(|root| (*root, 0)).collect();
    while let Some((id, above)) = stack.pop() {
        let node = &tree.nodes[id];
        let with = above + pages(&(node.start..node.end), page_len);
        longest = longest.max(with);
        stack.extend(node.children.iter().map(|child| (*child, with)));
    }
    longest
}

//! Which tokens are computed once: the requests' inputs as a tree of shared beginnings.
//!
//! Pure: token ids in, a tree out. What requests share (few-shot examples, a question, the beginning of an
//! answer) is one node; a scored position knows every token asked for there.

use std::cmp::Ordering;
use std::ops::Range;

/// A run of tokens of which the model computes all but the last, and is asked for those of the second part, each
/// predicted from the one before it. Neither part is empty.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    /// Not scored.
    head: &'a [u32],
    /// Scored.
    tail: &'a [u32],
}

impl<'a> Path<'a> {
    /// Returns the path over `context`, then `continuation`, which is scored; with more than
    /// `max_length + 1` tokens the first ones are dropped, as lm-eval does.
    ///
    /// # Panics
    /// If either is empty, or `continuation.len() > max_length` (callers check).
    pub fn new(context: &'a [u32], continuation: &'a [u32], max_length: usize) -> Self {
        assert!(!context.is_empty() && !continuation.is_empty() && continuation.len() <= max_length);
        let kept = context.len().min(max_length + 1 - continuation.len());
        Path { head: &context[context.len() - kept..], tail: continuation }
    }

    /// Returns the path over `tokens` in which those from `first_scored` on are scored.
    ///
    /// # Panics
    /// Unless `0 < first_scored < tokens.len()`.
    pub fn within(tokens: &'a [u32], first_scored: usize) -> Self {
        assert!(0 < first_scored && first_scored < tokens.len());
        let (head, tail) = tokens.split_at(first_scored);
        Path { head, tail }
    }

    /// Returns the number of tokens, the last one included.
    pub fn len(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// Returns the number of tokens the model computes.
    pub fn n_inputs(&self) -> usize {
        self.len() - 1
    }

    /// Returns the number of scored tokens.
    pub fn n_scored(&self) -> usize {
        self.tail.len()
    }

    fn first_scored(&self) -> usize {
        self.head.len()
    }

    fn token(&self, at: usize) -> u32 {
        match at.checked_sub(self.head.len()) {
            None => self.head[at],
            Some(at) => self.tail[at],
        }
    }

    /// Appends tokens `range` to `out`.
    pub fn extend(&self, range: Range<usize>, out: &mut Vec<u32>) {
        let split = self.head.len();
        out.extend_from_slice(&self.head[range.start.min(split)..range.end.min(split)]);
        out.extend_from_slice(&self.tail[range.start.max(split) - split..range.end.max(split) - split]);
    }

    /// Returns the inputs from `at` on, as far as they lie together; none behind the last.
    fn run(&self, at: usize) -> &'a [u32] {
        let run = match at.checked_sub(self.head.len()) {
            None => &self.head[at..],
            Some(at) => &self.tail[at..],
        };
        &run[..run.len().min(self.n_inputs() - at)]
    }

    /// Returns how many first inputs both have in common.
    fn common(&self, other: &Path<'_>) -> usize {
        let mut at = 0;
        loop {
            let (a, b) = (self.run(at), other.run(at));
            let n = a.len().min(b.len());
            if n == 0 {
                return at;
            }
            if a[..n] != b[..n] {
                return at + a.iter().zip(b).take_while(|(a, b)| a == b).count();
            }
            at += n;
        }
    }
}

/// Index of a node of a [`Tree`].
pub type NodeId = usize;

/// Positions `start..end` of every path through this node.
#[derive(Clone, Debug)]
pub struct Node {
    pub parent: Option<NodeId>,
    pub children: Vec<NodeId>,
    /// One of the paths through it.
    pub path: usize,
    pub start: usize,
    pub end: usize,
    /// Where in [`Tree::order`] the paths lie whose inputs end with this node.
    ends: Range<usize>,
    /// Its targets, in [`Tree::targets`].
    pub targets: Range<usize>,
}

impl Node {
    pub fn n_tokens(&self) -> usize {
        self.end - self.start
    }
}

/// A token asked for behind a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    node: NodeId,
    /// The position in the sequence that it is predicted from.
    pub position: usize,
    pub token: u32,
}

/// All paths, their beginnings shared.
#[derive(Debug)]
pub struct Tree {
    pub nodes: Vec<Node>,
    pub roots: Vec<NodeId>,
    /// Ascending by node and position; none twice.
    pub targets: Vec<Target>,
    /// The paths, sorted by their inputs.
    order: Vec<usize>,
    /// The index into `targets` of every scored token, path after path.
    slots: Vec<usize>,
    /// Where in `slots` each path begins; one more than there are paths.
    slots_of: Vec<usize>,
}

impl Tree {
    /// Returns the tree of `paths`; without `share` every path has a root of its own.
    pub fn new(paths: &[Path<'_>], share: bool) -> Self {
        let mut order: Vec<usize> = (0..paths.len()).collect();
        if share {
            order.sort_by(|a, b| compare(&paths[*a], &paths[*b]).then(a.cmp(b)));
        }
        let mut tree = Tree {
            nodes: Vec::new(),
            roots: Vec::new(),
            targets: Vec::new(),
            order,
            slots: Vec::new(),
            slots_of: Vec::new(),
        };
        tree.grow(paths, share);
        tree.place_targets(paths);
        tree
    }

    /// Returns the paths whose inputs end with that node.
    pub fn ends(&self, node: NodeId) -> &[usize] {
        &self.order[self.nodes[node].ends.clone()]
    }

    /// Returns the index into `targets` of each scored token of a path, in order.
    pub fn slots(&self, path: usize) -> &[usize] {
        &self.slots[self.slots_of[path]..self.slots_of[path + 1]]
    }

    /// Returns the number of tokens that the model computes.
    pub fn n_tokens(&self) -> usize {
        self.nodes.iter().map(Node::n_tokens).sum()
    }

    /// Returns the number of tokens if nothing was shared but equal inputs.
    pub fn n_plain_tokens(&self) -> usize {
        self.nodes.iter().filter(|node| !node.ends.is_empty()).map(|node| node.end).sum()
    }

    /// Adds the paths in sorted order: each leaves the way of the one before it where they first differ.
    fn grow(&mut self, paths: &[Path<'_>], share: bool) {
        let mut way: Vec<NodeId> = Vec::new();
        for at in 0..self.order.len() {
            let path = &paths[self.order[at]];
            let shared = match at.checked_sub(1) {
                Some(before) if share => paths[self.order[before]].common(path),
                _ => 0,
            };
            while way.last().is_some_and(|node| self.nodes[*node].start >= shared) {
                way.pop();
            }
            if let Some(last) = way.last().copied()
                && self.nodes[last].end > shared
            {
                self.split(last, shared);
            }
            match way.last() {
                // the same inputs as the path before it
                Some(last) if shared == path.n_inputs() => self.nodes[*last].ends.end = at + 1,
                last => {
                    let parent = last.copied();
                    way.push(self.add(parent, self.order[at], shared..path.n_inputs(), at..at + 1));
                }
            }
        }
    }

    fn add(&mut self, parent: Option<NodeId>, path: usize, at: Range<usize>, ends: Range<usize>) -> NodeId {
        let id = self.nodes.len();
        match parent {
            Some(parent) => self.nodes[parent].children.push(id),
            None => self.roots.push(id),
        }
        let (start, end) = (at.start, at.end);
        self.nodes.push(Node { parent, children: Vec::new(), path, start, end, ends, targets: 0..0 });
        id
    }

    /// Cuts a node in two at position `at`; the second half becomes the only child of the first.
    fn split(&mut self, node: NodeId, at: usize) {
        let lower = self.nodes.len();
        let mut below = self.nodes[node].clone();
        (below.start, below.parent) = (at, Some(node));
        for child in &below.children {
            self.nodes[*child].parent = Some(lower);
        }
        let above = &mut self.nodes[node];
        above.end = at;
        above.ends = 0..0;
        above.children = vec![lower];
        self.nodes.push(below);
    }

    fn place_targets(&mut self, paths: &[Path<'_>]) {
        let mut asked = Vec::new();
        self.slots_of = vec![0; paths.len() + 1];
        for node in 0..self.nodes.len() {
            for path in self.order[self.nodes[node].ends.clone()].iter().copied() {
                self.slots_of[path + 1] = paths[path].n_scored();
                let mut holder = node;
                for at in (paths[path].first_scored()..paths[path].len()).rev() {
                    while self.nodes[holder].start >= at {
                        // A root starts at position 0 and at > 0, so a holder left here has a parent.
                        holder = self.nodes[holder].parent.unwrap_or(holder);
                    }
                    let target = Target { node: holder, position: at - 1, token: paths[path].token(at) };
                    asked.push((target, path, at));
                }
            }
        }
        for path in 0..paths.len() {
            self.slots_of[path + 1] += self.slots_of[path];
        }
        asked.sort_unstable();
        self.slots = vec![0; asked.len()];
        for (target, path, at) in asked {
            if self.targets.last() != Some(&target) {
                self.targets.push(target);
            }
            let slot = self.targets.len() - 1;
            self.slots[self.slots_of[path] + at - paths[path].first_scored()] = slot;
            let range = &mut self.nodes[target.node].targets;
            *range = if range.end == 0 { slot..slot + 1 } else { range.start..slot + 1 };
        }
    }
}

/// Lexicographic by inputs; a path before those that continue it.
fn compare(a: &Path<'_>, b: &Path<'_>) -> Ordering {
    let at = a.common(b);
    a.run(at).first().cmp(&b.run(at).first())
}

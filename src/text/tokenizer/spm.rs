//! SentencePiece's BPE: of all neighbours whose union is a piece, those with the best score merge first
//! (google/sentencepiece, bpe_model.cc), over text whose spaces are `▁`.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap, HashSet};

use super::super::sentencepiece::PieceKind;
use super::super::table::Token;
use super::cache::WordCache;
use super::vocabulary::Vocabulary;

const SPACE: char = '▁';

/// The score of runs of spaces in Llama 2's tokenizer.model.
const SPACES_SCORE: f32 = -1e9;

/// Splits text into pieces by score.
#[derive(Debug)]
pub struct Spm {
    /// Priority of every token: its score, or its rank where the scores were lost.
    scores: Vec<f32>,
    bytes: Bytes,
    /// Characters that some piece has before a `▁`: anywhere else a `▁` starts a word, and no merge
    /// crosses the boundary.
    before_space: HashSet<char>,
    /// Whether merges of pieces that are unused are taken back, as SentencePiece does.
    resegments: bool,
    cache: WordCache,
}

/// What becomes of a character that is no piece.
#[derive(Clone, Debug)]
struct Bytes {
    /// The piece of every byte (`<0x0A>`).
    pieces: Option<Box<[u32; 256]>>,
    unknown: Option<u32>,
}

/// A pair of neighbours whose union is a piece.
#[derive(Debug)]
struct Pair {
    score: f32,
    left: usize,
    /// Bytes of both; tells a pair that has changed since.
    len: usize,
    id: u32,
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pair {
    /// The best score is greatest; of equal ones the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

/// A stretch of a word; `len` 0 marks one that was merged into its left neighbour.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    start: usize,
    len: usize,
    prev: usize,
    next: usize,
    id: Option<u32>,
}

/// No neighbour.
const NONE: usize = usize::MAX;

impl Spm {
    /// Returns the model of the vocabulary; `unknown` stands for characters without a piece where
    /// there are no byte pieces.
    pub fn new(vocabulary: &Vocabulary, unknown: Option<u32>, resegments: bool) -> Self {
        let mut before_space = HashSet::new();
        for token in vocabulary.tokens() {
            let mut previous = None;
            for c in token.text.chars() {
                if let (Some(previous), SPACE) = (previous, c) {
                    before_space.insert(previous);
                }
                previous = Some(c);
            }
        }
        before_space.insert(SPACE);
        Spm {
            scores: priorities(vocabulary.tokens()),
            bytes: Bytes { pieces: byte_pieces(vocabulary), unknown },
            before_space,
            resegments,
            cache: WordCache::default(),
        }
    }

    /// Appends the ids of `text`, whose spaces are `▁` already.
    pub fn encode(&self, vocabulary: &Vocabulary, text: &str, out: &mut Vec<u32>) {
        let words = Words { text, before_space: &self.before_space };
        self.cache.encode(words.map(str::as_bytes), out, |word, out| {
            // cut from a string at character boundaries
            let word = std::str::from_utf8(word).unwrap_or_default();
            self.encode_word(vocabulary, word, out);
        });
    }

    fn encode_word(&self, vocabulary: &Vocabulary, word: &str, out: &mut Vec<u32>) {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(word.len());
        for (start, c) in word.char_indices() {
            let index = symbols.len();
            let len = c.len_utf8();
            let id = vocabulary.id(&word[start..start + len]);
            symbols.push(Symbol { start, len, prev: index.wrapping_sub(1), next: index + 1, id });
        }
        let Some(last) = symbols.last_mut() else { return };
        last.next = NONE;
        let mut queue = BinaryHeap::with_capacity(symbols.len());
        let mut halves = HashMap::new();
        for left in 0..symbols.len() - 1 {
            self.push_pair(vocabulary, word, &symbols, left, &mut queue, &mut halves);
        }
        while let Some(pair) = queue.pop() {
            let (left, right) = (symbols[pair.left], symbols[pair.left].next);
            if left.len == 0 || right == NONE || left.len + symbols[right].len != pair.len {
                continue;
            }
            let next = symbols[right].next;
            symbols[right].len = 0;
            let merged = &mut symbols[pair.left];
            (merged.len, merged.next, merged.id) = (pair.len, next, Some(pair.id));
            if next != NONE {
                symbols[next].prev = pair.left;
                self.push_pair(vocabulary, word, &symbols, pair.left, &mut queue, &mut halves);
            }
            if left.prev != NONE {
                self.push_pair(vocabulary, word, &symbols, left.prev, &mut queue, &mut halves);
            }
        }
        let word_start = out.len();
        let mut at = 0;
        while at != NONE {
            let Symbol { start, len, next, id, .. } = symbols[at];
            self.output(vocabulary, (&word[start..start + len], id), &halves, word_start, out);
            at = next;
        }
    }

    /// Queues the symbol and its right neighbour if their union is a piece.
    fn push_pair<'a>(
        &self,
        vocabulary: &Vocabulary,
        word: &'a str,
        symbols: &[Symbol],
        left: usize,
        queue: &mut BinaryHeap<Pair>,
        halves: &mut Halves<'a>,
    ) {
        let Symbol { start, len: left_len, next, .. } = symbols[left];
        let len = left_len + symbols[next].len;
        let union = &word[start..start + len];
        if let Some(id) = vocabulary.id(union) {
            queue.push(Pair { score: self.scores[id as usize], left, len, id });
            if self.resegments && is_unused(vocabulary, id) {
                halves.insert(union, left_len);
            }
        }
    }

    /// Appends a symbol's id. One without becomes its bytes; an unused one the pieces it was merged from.
    fn output(
        &self,
        vocabulary: &Vocabulary,
        symbol: (&str, Option<u32>),
        halves: &Halves,
        word_start: usize,
        out: &mut Vec<u32>,
    ) {
        let mut stack = vec![symbol];
        while let Some((text, id)) = stack.pop() {
            match (id, halves.get(text)) {
                (Some(id), Some(&left)) if is_unused(vocabulary, id) => {
                    let (left, right) = text.split_at(left);
                    stack.push((right, vocabulary.id(right)));
                    stack.push((left, vocabulary.id(left)));
                }
                (Some(id), _) => out.push(id),
                (None, _) => self.bytes.output(text.as_bytes(), word_start, out),
            }
        }
    }
}

/// Unused pieces met in a word, and the bytes of their left halves.
type Halves<'a> = HashMap<&'a str, usize>;

fn is_unused(vocabulary: &Vocabulary, id: u32) -> bool {
    vocabulary.token(id).is_some_and(|token| token.kind == PieceKind::Unused)
}

impl Bytes {
    fn output(&self, bytes: &[u8], word_start: usize, out: &mut Vec<u32>) {
        match (&self.pieces, self.unknown) {
            (Some(pieces), _) => out.extend(bytes.iter().map(|&byte| pieces[usize::from(byte)])),
            // SentencePiece joins neighbouring unknown characters
            (None, Some(unknown)) if out[word_start..].last() == Some(&unknown) => {}
            (None, unknown) => out.extend(unknown),
        }
    }
}

/// Returns the scores by id. Where all pieces score alike the scores were lost (they are not in a
/// tokenizer.json); SentencePiece numbers BPE pieces in the order of their merges, so ids tell it, but for
/// runs of spaces, which Llama 2 and Mistral merge last.
fn priorities(tokens: &[Token]) -> Vec<f32> {
    let mut merged = tokens
        .iter()
        .filter(|token| token.kind == PieceKind::Normal && token.text.chars().nth(1).is_some())
        .map(|token| token.score);
    let alike = match merged.next() {
        Some(first) => merged.all(|score| score == first),
        None => false,
    };
    match alike {
        true => {
            let rank = |(id, token): (usize, &Token)| match token.text.chars().all(|c| c == SPACE) {
                true => SPACES_SCORE,
                false => -(id as f32),
            };
            tokens.iter().enumerate().map(rank).collect()
        }
        false => tokens.iter().map(|token| token.score).collect(),
    }
}

fn byte_pieces(vocabulary: &Vocabulary) -> Option<Box<[u32; 256]>> {
    let mut pieces = Box::new([0; 256]);
    for byte in 0..=255u8 {
        let hex = vocabulary.id(&format!("<0x{byte:02X}>"));
        pieces[usize::from(byte)] = hex?;
    }
    Some(pieces)
}

/// The words of a text: each starts at a `▁` that no piece has inside.
struct Words<'a> {
    text: &'a str,
    before_space: &'a HashSet<char>,
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let text = self.text;
        let mut chars = text.char_indices();
        let (_, mut previous) = chars.next()?;
        let end = chars
            .find(|&(_, c)| {
                c == SPACE && !self.before_space.contains(&previous) || {
                    previous = c;
                    false
                }
            })
            .map_or(text.len(), |(at, _)| at);
        let (word, rest) = text.split_at(end);
        self.text = rest;
        Some(word)
    }
}

use super::*;
use crate::kernel::{Isa, KvShape, Team, kv_cache::PAGE};

pub(super) fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / 2f32.powi(31) - 1.0
    };
    (0..n).map(|_| next()).collect()
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn compute(isa: Isa, threads: usize) -> Compute {
    Compute { isa, team: Team::new(threads).unwrap() }
}

fn shape(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> AttentionShape {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionShape { n_heads, n_kv_heads, head_dim, scale, softcap: None, window: None }
}

/// A cache whose free slots all hold NaN, so that whatever reads one shows.
fn poisoned_cache(shape: &AttentionShape, n_layers: usize, n_pages: usize) -> KvCache {
    let kv = KvShape { n_layers, n_kv_heads: shape.n_kv_heads, head_dim: shape.head_dim };
    let mut cache = KvCache::new(kv, n_pages * kv.page_bytes());
    let id = cache.create();
    let n = n_pages * PAGE;
    cache.extend(id, n).unwrap();
    let nan = vec![f32::NAN; n * kv.n_kv_heads * kv.head_dim];
    for layer in 0..n_layers {
        cache.write(layer, id, 0, &nan, &nan);
    }
    cache.free(id);
    cache
}

/// One sequence of n positions with its queries; layer 1 of 2 holds the noise, layer 0 NaN.
struct Case {
    shape: AttentionShape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    n: usize,
}

const LAYER: usize = 1;

impl Case {
    fn new(shape: AttentionShape, n: usize) -> Self {
        let kv_len = n * shape.n_kv_heads * shape.head_dim;
        let q = noise(n * shape.n_heads * shape.head_dim, 1).iter().map(|x| 3.0 * x).collect();
        Case { shape, q, k: noise(kv_len, 2), v: noise(kv_len, 3), n }
    }

    fn cache(&self) -> KvCache {
        poisoned_cache(&self.shape, 2, 3 * self.n.div_ceil(PAGE) + 40)
    }

    /// Appends positions `from .. to` to a sequence.
    fn append(&self, cache: &mut KvCache, id: SequenceId, from: usize, to: usize) {
        let row = self.shape.n_kv_heads * self.shape.head_dim;
        cache.extend(id, to - from).unwrap();
        cache.write(LAYER, id, from, &self.k[from * row..to * row], &self.v[from * row..to * row]);
    }

    fn whole(&self) -> (KvCache, SequenceId) {
        let mut cache = self.cache();
        let id = cache.create();
        self.append(&mut cache, id, 0, self.n);
        (cache, id)
    }

    fn oracle(&self) -> Vec<f32> {
        let (cache, id) = self.whole();
        let mut out = vec![0.0; self.q.len()];
        let span = Span { sequence: id, start: 0, first_row: 0, n_rows: self.n };
        let compute = compute(Isa::detect(), 1);
        oracle::attention(&compute, &self.shape, &self.q, &cache, LAYER, &[span], &mut out);
        out
    }

    fn run(&self, compute: &Compute, cache: &KvCache, spans: &[Span]) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.q.len()];
        attention(compute, &self.shape, &self.q, cache, LAYER, spans, &mut out);
        out
    }

    /// Attention in f64, straight from the formula.
    fn exact(&self) -> Vec<f64> {
        let s = &self.shape;
        let group = s.n_heads / s.n_kv_heads;
        let mut out = vec![0.0; self.q.len()];
        for (at, out) in out.chunks_exact_mut(s.head_dim).enumerate() {
            let (i, head) = (at / s.n_heads, at % s.n_heads);
            let q = &self.q[at * s.head_dim..][..s.head_dim];
            let kv_row = |j: usize| (j * s.n_kv_heads + head / group) * s.head_dim;
            let first = s.window.map_or(0, |window| (i + 1).saturating_sub(window));
            let scores = (first..=i).map(|j| {
                let k = &self.k[kv_row(j)..][..s.head_dim];
                let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                let score = dot * f64::from(s.scale);
                s.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            });
            let p: Vec<f64> = scores.map(f64::exp).collect();
            let sum: f64 = p.iter().sum();
            for (j, p) in (first..=i).zip(p) {
                for (out, v) in out.iter_mut().zip(&self.v[kv_row(j)..]) {
                    *out += p / sum * f64::from(*v);
                }
            }
        }
        out
    }
}

fn cases() -> Vec<Case> {
    let with = |shape: AttentionShape, softcap, window| AttentionShape { softcap, window, ..shape };
    vec![
        Case::new(shape(4, 4, 64), 70),
        Case::new(shape(8, 1, 64), 40),
        Case::new(shape(6, 2, 80), 37),
        Case::new(shape(14, 2, 32), 50),
        Case::new(shape(1, 1, 2), 33),
        Case::new(shape(2, 2, 10), 16),
        Case::new(shape(2, 1, 50), 45),
        Case::new(shape(2, 1, 256), 20),
        Case::new(shape(2, 2, 270), 18),
        Case::new(with(shape(4, 2, 32), Some(5.0), Some(20)), 90),
        Case::new(with(shape(4, 4, 32), None, Some(3)), 90),
        Case::new(with(shape(4, 4, 32), None, Some(1)), 40),
        Case::new(with(shape(3, 1, 48), Some(30.0), None), 60),
    ]
}

#[test]
fn every_isa_and_thread_count_has_the_bits_of_the_oracle() {
    for case in cases() {
        let want = bits(&case.oracle());
        let (cache, id) = case.whole();
        let span = Span { sequence: id, start: 0, first_row: 0, n_rows: case.n };
        for isa in Isa::available() {
            for threads in [1, 3] {
                let got = case.run(&compute(isa, threads), &cache, &[span]);
                assert!(bits(&got) == want, "{:?} on {} x {threads}", case.shape, isa.name());
            }
        }
    }
}

#[test]
fn results_are_near_f64() {
    for case in cases() {
        let exact = case.exact();
        for (got, want) in case.oracle().iter().zip(exact) {
            // values are below 1 and the weights add up to 1
            assert!((f64::from(*got) - want).abs() < 2e-6, "{:?}: {got} for {want}", case.shape);
        }
    }
}

/// Splits rows into spans of uneven lengths, at most `longest`.
fn pieces(n: usize, longest: usize) -> Vec<(usize, usize)> {
    let (mut pieces, mut from) = (Vec::new(), 0);
    while from < n {
        let to = n.min(from + 1 + (from * 7 + 3) % longest);
        pieces.push((from, to));
        from = to;
    }
    pieces
}

#[test]
fn splitting_rows_into_steps_changes_no_bit() {
    for case in cases() {
        let want = bits(&case.oracle());
        let row = case.shape.n_heads * case.shape.head_dim;
        for longest in [1, 5, 19] {
            let mut cache = case.cache();
            let id = cache.create();
            let compute = compute(Isa::detect(), 2);
            for (from, to) in pieces(case.n, longest) {
                // the future is not even in the cache
                case.append(&mut cache, id, from, to);
                let span = Span { sequence: id, start: from, first_row: from, n_rows: to - from };
                let got = case.run(&compute, &cache, &[span]);
                assert!(bits(&got[from * row..to * row]) == want[from * row..to * row], "{:?}", case.shape);
                assert!(got[..from * row].iter().all(|x| x.is_nan()), "rows of no span stay");
            }
        }
    }
}

#[test]
fn batches_of_forks_change_no_bit() {
    for case in cases() {
        let want = bits(&case.oracle());
        let mut cache = case.cache();
        let base = cache.create();
        let n_shared = case.n / 2;
        case.append(&mut cache, base, 0, n_shared);
        let fork = cache.fork(base, n_shared).unwrap();
        let other = cache.fork(base, n_shared / 3).unwrap();
        case.append(&mut cache, fork, n_shared, case.n);
        // another continuation of a shorter prefix, and of the parent
        let noisy =
            Case { k: noise(case.k.len(), 8), v: noise(case.v.len(), 9), ..Case::new(case.shape, case.n) };
        noisy.append(&mut cache, other, n_shared / 3, case.n);
        noisy.append(&mut cache, base, n_shared, case.n);
        let spans: Vec<Span> = pieces(case.n, 11)
            .into_iter()
            .rev()
            .map(|(from, to)| Span { sequence: fork, start: from, first_row: from, n_rows: to - from })
            .collect();
        for threads in [1, 4] {
            let got = case.run(&compute(Isa::detect(), threads), &cache, &spans);
            assert!(bits(&got) == want, "{:?}", case.shape);
        }
    }
}

#[test]
fn a_nan_that_is_masked_leaks_nowhere() {
    let window = AttentionShape { window: Some(9), ..shape(4, 2, 32) };
    for shape in [shape(4, 2, 32), window] {
        let clean = Case::new(shape, 50);
        let want = clean.oracle();
        let row = shape.n_kv_heads * shape.head_dim;
        for poisoned in [0, 15, 16, 31, 49] {
            let mut case = Case::new(shape, 50);
            case.k[poisoned * row..][..row].fill(f32::NAN);
            case.v[poisoned * row..][..row].fill(f32::INFINITY);
            let (cache, id) = case.whole();
            let span = Span { sequence: id, start: 0, first_row: 0, n_rows: 50 };
            for isa in Isa::available() {
                let got = case.run(&compute(isa, 1), &cache, &[span]);
                let q_row = shape.n_heads * shape.head_dim;
                for (i, (got, want)) in got.chunks_exact(q_row).zip(want.chunks_exact(q_row)).enumerate() {
                    let sees = poisoned <= i && shape.window.is_none_or(|window| i - poisoned < window);
                    if sees {
                        assert!(got.iter().all(|x| x.is_nan()), "row {i} sees {poisoned}");
                    } else {
                        assert_eq!(bits(got), bits(want), "row {i}, NaN at {poisoned}, {}", isa.name());
                    }
                }
            }
        }
    }
}

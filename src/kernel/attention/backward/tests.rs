use super::*;
use crate::kernel::attention::tests::{bits, noise};
use crate::kernel::attention::{Span, attention, document_attention};
use crate::kernel::{Isa, KvCache, KvShape, Team};

fn compute(isa: Isa, threads: usize) -> Compute {
    Compute { isa, team: Team::new(threads).unwrap() }
}

struct Case {
    shape: AttentionShape,
    cu: Vec<usize>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dout: Vec<f32>,
}

/// out, lse, dq, dk, dv
type Results = [Vec<f32>; 5];

impl Case {
    fn new(heads: (usize, usize), head_dim: usize, lens: &[usize]) -> Self {
        let (n_heads, n_kv_heads) = heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let shape = AttentionShape { n_heads, n_kv_heads, head_dim, scale, softcap: None, window: None };
        let cu: Vec<usize> = (0..=lens.len()).map(|i| lens[..i].iter().sum()).collect();
        let (q, kv) = (cu[lens.len()] * n_heads * head_dim, cu[lens.len()] * n_kv_heads * head_dim);
        let large = noise(q, 1).iter().map(|x| 3.0 * x).collect();
        Case { shape, cu, q: large, k: noise(kv, 2), v: noise(kv, 3), dout: noise(q, 4) }
    }

    fn with(self, softcap: Option<f32>, window: Option<usize>) -> Self {
        Case { shape: AttentionShape { softcap, window, ..self.shape }, ..self }
    }

    fn rows(&self) -> DocumentRows<'_> {
        DocumentRows { q: &self.q, k: &self.k, v: &self.v, cu: &self.cu }
    }

    fn forward(&self, compute: &Compute) -> (Vec<f32>, Vec<f32>) {
        let mut out = vec![f32::NAN; self.q.len()];
        let mut lse = vec![f32::NAN; self.cu[self.cu.len() - 1] * self.shape.n_heads];
        document_attention(compute, &self.shape, &self.rows(), &mut out, &mut lse);
        (out, lse)
    }

    fn run(&self, compute: &Compute, is_oracle: bool) -> Results {
        let (out, lse) = self.forward(compute);
        let nan = |n: usize| vec![f32::NAN; n];
        let (mut dq, mut dk, mut dv) = (nan(self.q.len()), nan(self.k.len()), nan(self.v.len()));
        let gradients = DocumentGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        let saved = Saved { out: &out, lse: &lse, dout: &self.dout };
        if is_oracle {
            oracle::backward(compute, &self.shape, &self.rows(), &saved, gradients);
        } else {
            document_attention_backward(compute, &self.shape, &self.rows(), &saved, gradients);
        }
        [out, lse, dq, dk, dv]
    }
}

fn cases() -> Vec<Case> {
    vec![
        Case::new((4, 4), 64, &[70]),
        Case::new((8, 1), 64, &[40, 1, 0, 33]),
        Case::new((6, 2), 80, &[37, 130]),
        Case::new((14, 2), 32, &[5, 50]),
        Case::new((1, 1), 2, &[33, 2]),
        Case::new((2, 2), 10, &[16, 17]),
        Case::new((2, 1), 50, &[45]),
        Case::new((2, 1), 256, &[20]),
        Case::new((2, 2), 270, &[18]),
        Case::new((1, 1), 32, &[300]),
        Case::new((4, 2), 32, &[90, 40]).with(Some(5.0), Some(20)),
        Case::new((4, 4), 32, &[90]).with(None, Some(3)),
        Case::new((4, 4), 32, &[40]).with(None, Some(1)),
        Case::new((2, 1), 16, &[290]).with(None, Some(70)),
        Case::new((3, 1), 48, &[60]).with(Some(30.0), None),
    ]
}

#[test]
fn every_isa_and_thread_count_has_the_bits_of_the_oracle() {
    for case in cases() {
        let want = case.run(&compute(Isa::detect(), 1), true).map(|values| bits(&values));
        for isa in Isa::available() {
            for threads in [1, 2, 7] {
                let got = case.run(&compute(isa, threads), false).map(|values| bits(&values));
                for (i, name) in ["out", "lse", "dq", "dk", "dv"].iter().enumerate() {
                    assert!(got[i] == want[i], "{name} of {:?} on {} x {threads}", case.shape, isa.name());
                }
            }
        }
    }
}

#[test]
fn documents_have_the_bits_of_sequences_in_a_cache() {
    for case in cases() {
        let shape = &case.shape;
        let kv = KvShape { n_layers: 1, n_kv_heads: shape.n_kv_heads, head_dim: shape.head_dim };
        let compute = compute(Isa::detect(), 1);
        let row = shape.n_kv_heads * shape.head_dim;
        let mut cache = KvCache::new(kv, 1 << 26);
        let mut spans = Vec::new();
        for ends in case.cu.windows(2) {
            let sequence = cache.create();
            cache.extend(sequence, ends[1] - ends[0]).unwrap();
            let range = ends[0] * row..ends[1] * row;
            cache.write(0, sequence, 0, &case.k[range.clone()], &case.v[range]);
            spans.push(Span { sequence, start: 0, first_row: ends[0], n_rows: ends[1] - ends[0] });
        }
        let mut want = vec![0.0; case.q.len()];
        spans.retain(|span| span.n_rows > 0);
        attention(&compute, shape, &case.q, &cache, 0, &spans, &mut want);
        assert!(bits(&case.forward(&compute).0) == bits(&want), "{shape:?}");
    }
}

#[test]
fn packing_documents_changes_no_bit() {
    let lens = [37, 5, 64, 1];
    let packed = Case::new((4, 2), 32, &lens);
    let compute = compute(Isa::detect(), 2);
    let all = packed.run(&compute, false);
    for ends in packed.cu.windows(2) {
        let part = |values: &[f32]| {
            let row = values.len() / packed.cu[lens.len()];
            values[ends[0] * row..ends[1] * row].to_vec()
        };
        let alone = Case {
            shape: packed.shape,
            cu: vec![0, ends[1] - ends[0]],
            q: part(&packed.q),
            k: part(&packed.k),
            v: part(&packed.v),
            dout: part(&packed.dout),
        };
        for (alone, all) in alone.run(&compute, false).iter().zip(&all) {
            assert!(bits(alone) == bits(&part(all)));
        }
    }
}

#[test]
fn tasks_cover_every_gradient_once() {
    for (n_heads, n_kv_heads, window) in [(4, 4, None), (9, 3, None), (8, 1, Some(40)), (1, 1, None)] {
        for cu in [vec![0, 512], vec![0, 3, 3, 700], vec![0, 1], vec![0]] {
            for threads in [1, 2, 7, 64] {
                let scale = 1.0;
                let shape = AttentionShape { n_heads, n_kv_heads, head_dim: 8, scale, softcap: None, window };
                let group = n_heads / n_kv_heads;
                let n = cu[cu.len() - 1];
                let (mut queries, mut keys) = (vec![0; n * n_heads], vec![0; n * n_kv_heads]);
                for task in tasks(&shape, &cu, threads) {
                    if task.wanted != Wanted::Keys {
                        for row in task.rows.clone() {
                            let head = task.kv_head * group + row % group;
                            queries[(task.start + row / group) * n_heads + head] += 1;
                        }
                    }
                    if task.wanted != Wanted::Queries {
                        for key in task.keys.clone() {
                            keys[(task.start + key) * n_kv_heads + task.kv_head] += 1;
                        }
                    }
                }
                assert!(queries.iter().chain(&keys).all(|count| *count == 1));
            }
        }
    }
}

#[test]
fn a_long_document_keeps_no_thread_waiting() {
    let scale = 1.0;
    let shape =
        |n| AttentionShape { n_heads: n, n_kv_heads: n, head_dim: 8, scale, softcap: None, window: None };
    let n_divided = |n, cu: &[usize], threads| {
        let tasks = tasks(&shape(n), cu, threads);
        tasks
            .iter()
            .filter(|task| task.wanted == Wanted::Queries)
            .map(|task| task.rows.end)
            .collect::<Vec<_>>()
    };
    // as many units as threads, or one left over, or one that is longer than the rest together
    assert!(n_divided(4, &[0, 512], 2).is_empty());
    assert_eq!(n_divided(3, &[0, 512], 2), [512, 384, 256, 128]);
    assert_eq!(n_divided(1, &[0, 100, 2100], 2), [2000, 1536, 1024, 512]);
    assert!(n_divided(1, &[0, 2000], 1).is_empty());
    assert_eq!(pairs(&shape(1), 5), 15);
    assert_eq!(pairs(&AttentionShape { window: Some(2), ..shape(1) }, 5), 9);
}

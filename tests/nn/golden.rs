//! Gradients against PyTorch's autograd: tests/scripts/make_nn_goldens.py.

use std::sync::Arc;

use candle_core::Tensor;
use lctl::kernel::attention::AttentionShape;
use lctl::kernel::rope::{RopeTable, inv_freq};
use lctl::kernel::{Compute, Isa};
use lctl::nn::{self, Activation, Turns};
use lctl::tensor::TensorSource;
use lctl::tensor::safetensors::SafeTensors;

use super::{compute, tensor, values};

struct Golden {
    name: &'static str,
    file: SafeTensors,
    compute: Arc<Compute>,
}

fn golden(name: &'static str) -> Golden {
    let dir = crate::common::root().join("tests/golden/nn");
    let file = SafeTensors::open_file(&dir.join(format!("{name}.safetensors"))).unwrap();
    Golden { name, file, compute: compute(Isa::detect(), 2) }
}

impl Golden {
    fn bytes(&self, name: &str) -> Vec<u8> {
        self.file.bytes(self.file.find(name).unwrap()).unwrap().to_vec()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let bytes = self.bytes(name);
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn ints<T: TryFrom<i64>>(&self, name: &str) -> Vec<T> {
        let int = |b: &[u8]| T::try_from(i64::from_le_bytes(b.try_into().unwrap())).ok().unwrap();
        self.bytes(name).chunks_exact(8).map(int).collect()
    }

    fn tensor(&self, name: &str) -> Tensor {
        tensor(self.floats(name), &self.file.find(name).unwrap().shape)
    }

    fn setting(&self, name: &str) -> f32 {
        self.file.metadata(0)[name].parse().unwrap()
    }

    fn check(&self, name: &str, got: &[f32]) {
        let want = self.floats(name);
        assert_eq!(got.len(), want.len(), "{}: {name}", self.name);
        let largest = want.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            // sums of some ten terms, each with a handful of roundings of 2^-24
            assert!((got - want).abs() <= 3e-6 * largest, "{}: {name}[{i}]: {got} for {want}", self.name);
        }
    }
}

#[test]
fn rms_norms() {
    for name in ["rms_norm", "rms_norm_heads"] {
        let g = golden(name);
        let (x, weight, eps): (_, Arc<[f32]>, _) =
            (g.tensor("x"), g.floats("weight").into(), g.setting("eps"));
        g.check("y", &values(&nn::rms_norm(&g.compute, &x, &weight, eps).unwrap()));
        let mut dweight = vec![0.0; weight.len()];
        let dy = g.tensor("dy");
        let dx = nn::rms_norm_backward(&g.compute, &x, &weight, eps, &dy, Some(&mut dweight)).unwrap();
        g.check("dx", &values(&dx));
        g.check("dweight", &dweight);
    }
}

#[test]
fn rotations() {
    let g = golden("rope");
    let head_dim = g.setting("head_dim") as usize;
    let table = Arc::new(RopeTable::new(&inv_freq(g.setting("theta"), head_dim), 1.0));
    let positions: Vec<u32> = g.ints("positions");
    let turns = Turns { tables: vec![(positions.len(), table)], positions: positions.into() };
    g.check("y", &values(&nn::rope(&g.compute, &g.tensor("x"), head_dim, &turns).unwrap()));
    let dx = nn::rope_backward(&g.compute, &g.tensor("dy"), head_dim, &turns).unwrap();
    g.check("dx", &values(&dx));
}

#[test]
fn gates() {
    for (name, activation) in [("gated_silu", Activation::Silu), ("gated_gelu_tanh", Activation::GeluTanh)] {
        let g = golden(name);
        let (gate, up) = (g.tensor("gate"), g.tensor("up"));
        g.check("y", &values(&nn::gated(&g.compute, activation, &gate, &up).unwrap()));
        let (dgate, dup) = nn::gated_backward(&g.compute, activation, &gate, &up, &g.tensor("dy")).unwrap();
        g.check("dgate", &values(&dgate));
        g.check("dup", &values(&dup));
    }
}

#[test]
fn softmax_and_caps() {
    let g = golden("softmax");
    let y = nn::softmax(&g.compute, &g.tensor("x")).unwrap();
    g.check("y", &values(&y));
    g.check("dx", &values(&nn::softmax_backward(&g.compute, &y, &g.tensor("dy")).unwrap()));
    let g = golden("softcap");
    let (x, cap) = (g.tensor("x"), g.setting("cap"));
    g.check("y", &values(&nn::softcap(&g.compute, &x, cap).unwrap()));
    g.check("dx", &values(&nn::softcap_backward(&g.compute, &x, cap, &g.tensor("dy")).unwrap()));
}

#[test]
fn embeddings() {
    let g = golden("embedding");
    let mut gradient = vec![0.0; g.floats("table").len()];
    nn::embedding_backward(&g.ints::<u32>("ids"), &g.tensor("dy"), g.setting("scale"), &mut gradient)
        .unwrap();
    g.check("dtable", &gradient);
}

#[test]
fn attention_within_documents() {
    let names =
        ["attention", "attention_groups", "attention_window", "attention_softcap", "attention_gemma2"];
    for name in names {
        let g = golden(name);
        let size = |name: &str| g.setting(name) as usize;
        let head_dim = size("head_dim");
        let shape = AttentionShape {
            n_heads: size("heads"),
            n_kv_heads: size("kv_heads"),
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            softcap: Some(g.setting("cap")).filter(|cap| *cap > 0.0),
            window: Some(size("window")).filter(|window| *window > 0),
        };
        let [q, k, v] = ["q", "k", "v"].map(|name| g.tensor(name));
        let cu: Vec<usize> = g.ints("cu");
        let (out, lse) = nn::document_attention(&g.compute, shape, &q, &k, &v, &cu).unwrap();
        g.check("y", &values(&out));
        g.check("lse", &values(&lse));
        let dy = g.tensor("dy");
        let (dq, dk, dv) =
            nn::document_attention_backward(&g.compute, shape, &q, &k, &v, &out, &lse, &dy, &cu).unwrap();
        g.check("dq", &values(&dq));
        g.check("dk", &values(&dk));
        g.check("dv", &values(&dv));
    }
}

/// Rows that go through an expert, and their weights.
fn rows_of(probabilities: &[f32], n_experts: usize, renormalized: bool) -> Vec<Vec<(usize, f32)>> {
    let mut rows = vec![Vec::new(); n_experts];
    for (row, p) in probabilities.chunks_exact(n_experts).enumerate() {
        let mut order: Vec<usize> = (0..n_experts).collect();
        order.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
        let by = if renormalized { p[order[0]] + p[order[1]] } else { 1.0 };
        order[..2].iter().for_each(|expert| rows[*expert].push((row, p[*expert] / by)));
    }
    rows
}

#[test]
fn experts_that_multiply() {
    for (name, renormalized) in [("experts", false), ("experts_renormalized", true)] {
        let g = golden(name);
        let (x, dy, factors) = (g.tensor("x"), g.floats("dy"), g.floats("factors"));
        let probabilities = nn::softmax(&g.compute, &g.tensor("logits")).unwrap();
        let p = values(&probabilities);
        let (mut y, mut dx, mut dfactors) = (vec![0.0; dy.len()], vec![0.0; dy.len()], Vec::new());
        let mut dp = vec![0.0; p.len()];
        let rows_of = rows_of(&p, factors.len(), renormalized);
        let mut d_weights = vec![Vec::new(); x.dims()[0]];
        for (rows, factor) in rows_of.iter().zip(&factors) {
            let picked: Vec<usize> = rows.iter().map(|(row, _)| *row).collect();
            let inner = nn::gather(&x, &picked).unwrap();
            let scaled = |t: &Tensor| tensor(values(t).iter().map(|x| factor * x).collect(), t.dims());
            let outer = scaled(&inner);
            nn::scatter_scaled(&outer, rows, &mut y).unwrap();
            let (d_outer, dw) = nn::scatter_scaled_backward(&g.compute, &outer, rows, &dy).unwrap();
            let products = values(&d_outer).into_iter().zip(values(&inner));
            dfactors.push(products.map(|(dy, x)| dy * x).sum::<f32>());
            nn::gather_backward(&scaled(&d_outer), &picked, &mut dx).unwrap();
            picked.iter().zip(dw).for_each(|(row, dw)| d_weights[*row].push(dw));
        }
        for (row, dw) in d_weights.iter().enumerate() {
            let chosen: Vec<(usize, f32)> = rows_of
                .iter()
                .enumerate()
                .filter_map(|(e, rows)| rows.iter().find(|(r, _)| *r == row).map(|(_, w)| (e, *w)))
                .collect();
            let range = row * factors.len()..(row + 1) * factors.len();
            nn::expert_weights_backward(&p[range.clone()], &chosen, dw, renormalized, &mut dp[range]);
        }
        g.check("y", &y);
        g.check("dx", &dx);
        g.check("dfactors", &dfactors);
        let dp = tensor(dp, probabilities.dims());
        g.check("dlogits", &values(&nn::softmax_backward(&g.compute, &probabilities, &dp).unwrap()));
    }
}

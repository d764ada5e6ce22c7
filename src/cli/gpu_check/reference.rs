//! The obvious forms in f64.

#![allow(clippy::needless_range_loop, reason = "several arrays by one index")]

use crate::kernel::attention::AttentionShape;

/// Returns `x / sqrt(mean(x^2) + eps) * w` of every row.
pub fn norm(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    let row = |x: &[f64]| {
        let f = factor(x, eps);
        x.iter().zip(w).map(|(x, w)| x * f * w).collect::<Vec<_>>()
    };
    x.chunks_exact(w.len()).flat_map(row).collect()
}

fn factor(x: &[f64], eps: f64) -> f64 {
    1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt()
}

/// Returns the gradients of x and of w.
pub fn norm_backward(x: &[f64], w: &[f64], eps: f64, dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let cols = w.len();
    let (mut dx, mut dw) = (Vec::with_capacity(x.len()), vec![0.0; cols]);
    for (x, dy) in x.chunks_exact(cols).zip(dy.chunks_exact(cols)) {
        let f = factor(x, eps);
        let product: f64 = (0..cols).map(|i| dy[i] * w[i] * x[i]).sum();
        for i in 0..cols {
            dx.push(dy[i] * w[i] * f - x[i] * f * f * f * product / cols as f64);
            dw[i] += dy[i] * x[i] * f;
        }
    }
    (dx, dw)
}

/// Returns the value of an activation and its slope.
pub fn activation(is_gelu: bool, x: f64) -> (f64, f64) {
    let sigmoid = |u: f64| 1.0 / (1.0 + (-u).exp());
    if !is_gelu {
        let s = sigmoid(x);
        return (x * s, s * (1.0 + x * (1.0 - s)));
    }
    let c = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
    let s = sigmoid(c * (x + 0.044715 * x * x * x));
    (x * s, s + x * s * (1.0 - s) * c * (1.0 + 3.0 * 0.044715 * x * x))
}

/// Returns `-ln(probability of the target)` of a row, and the gradient by its logits.
pub fn cross_entropy(logits: &[f64], target: usize, cap: Option<f64>) -> (f64, Vec<f64>) {
    let capped: Vec<f64> = logits.iter().map(|x| cap.map_or(*x, |cap| cap * (x / cap).tanh())).collect();
    let largest = capped.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = capped.iter().map(|x| (x - largest).exp()).sum();
    let gradient = capped.iter().enumerate().map(|(i, x)| {
        let slope = cap.map_or(1.0, |cap| 1.0 - (x / cap) * (x / cap));
        ((x - largest).exp() / sum - f64::from(u8::from(i == target))) * slope
    });
    (largest + sum.ln() - capped[target], gradient.collect())
}

/// What attention gives, and its gradients.
pub struct Attention {
    pub out: Vec<f64>,
    pub lse: Vec<f64>,
    pub dq: Vec<f64>,
    pub dk: Vec<f64>,
    pub dv: Vec<f64>,
}

/// Returns the attention of documents that begin at `cu`, and its gradients, given that of its result.
pub fn attention(shape: &AttentionShape, [q, k, v, dout]: [&[f64]; 4], cu: &[usize]) -> Attention {
    let &AttentionShape { n_heads, n_kv_heads, head_dim, .. } = shape;
    let (scale, cap) = (f64::from(shape.scale), shape.softcap.map(f64::from));
    let n = cu[cu.len() - 1];
    let zeros = |n: usize| vec![0.0; n];
    let mut r = Attention {
        out: zeros(q.len()),
        lse: zeros(n * n_heads),
        dq: zeros(q.len()),
        dk: zeros(k.len()),
        dv: zeros(v.len()),
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for ends in cu.windows(2) {
        for i in ends[0]..ends[1] {
            let first = shape.window.map_or(ends[0], |window| ends[0].max((i + 1).saturating_sub(window)));
            for head in 0..n_heads {
                let at = (i * n_heads + head) * head_dim;
                let kv = |j: usize| (j * n_kv_heads + head / (n_heads / n_kv_heads)) * head_dim;
                let (query, gradient) = (&q[at..][..head_dim], &dout[at..][..head_dim]);
                let scores = (first..=i).map(|j| {
                    let x = dot(query, &k[kv(j)..][..head_dim]) * scale;
                    cap.map_or((x, 1.0), |cap| (cap * (x / cap).tanh(), 1.0 - (x / cap).tanh().powi(2)))
                });
                let scores: Vec<(f64, f64)> = scores.collect();
                let largest = scores.iter().fold(f64::NEG_INFINITY, |max, (s, _)| max.max(*s));
                let sum: f64 = scores.iter().map(|(s, _)| (s - largest).exp()).sum();
                r.lse[i * n_heads + head] = largest + sum.ln();
                for (j, (s, _)) in (first..).zip(&scores) {
                    let p = (s - largest).exp() / sum;
                    (0..head_dim).for_each(|d| r.out[at + d] += p * v[kv(j) + d]);
                }
                let delta = dot(&r.out[at..][..head_dim], gradient);
                for (j, (s, slope)) in (first..).zip(&scores) {
                    let p = (s - largest).exp() / sum;
                    let ds = p * (dot(gradient, &v[kv(j)..][..head_dim]) - delta) * slope * scale;
                    for d in 0..head_dim {
                        r.dq[at + d] += ds * k[kv(j) + d];
                        r.dk[kv(j) + d] += ds * query[d];
                        r.dv[kv(j) + d] += p * gradient[d];
                    }
                }
            }
        }
    }
    r
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u32) -> Vec<f64> {
        crate::kernel::testing::noise(n, seed).into_iter().map(f64::from).collect()
    }

    /// Compares a gradient with central differences of `f`.
    fn check(what: &str, x: &[f64], gradient: &[f64], f: impl Fn(&[f64]) -> f64) {
        const STEP: f64 = 1e-5;
        let mut at = x.to_vec();
        for i in 0..x.len() {
            at[i] = x[i] + STEP;
            let above = f(&at);
            at[i] = x[i] - STEP;
            let slope = (above - f(&at)) / (2.0 * STEP);
            at[i] = x[i];
            assert!((slope - gradient[i]).abs() < 1e-7, "{what}[{i}]: {} for {slope}", gradient[i]);
        }
    }

    fn weighted(y: &[f64], dy: &[f64]) -> f64 {
        y.iter().zip(dy).map(|(y, dy)| y * dy).sum()
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let (x, w, dy) = (values(15, 1), values(5, 2), values(15, 3));
        let (dx, dw) = norm_backward(&x, &w, 1e-3, &dy);
        check("norm by x", &x, &dx, |x| weighted(&norm(x, &w, 1e-3), &dy));
        check("norm by w", &w, &dw, |w| weighted(&norm(&x, w, 1e-3), &dy));
        for is_gelu in [false, true] {
            let slopes: Vec<f64> = x.iter().map(|x| activation(is_gelu, *x).1).collect();
            check("activation", &x, &slopes, |x| x.iter().map(|x| activation(is_gelu, *x).0).sum());
        }
        for cap in [None, Some(2.0)] {
            check("logits", &x, &cross_entropy(&x, 4, cap).1, |x| cross_entropy(x, 4, cap).0);
        }
        let shape = AttentionShape {
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 3,
            scale: 0.7,
            softcap: Some(1.5),
            window: Some(3),
        };
        let cu = [0, 2, 2, 7];
        let [q, k, v, dout] = [values(84, 4), values(42, 5), values(42, 6), values(84, 7)];
        let loss =
            |q: &[f64], k: &[f64], v: &[f64]| weighted(&attention(&shape, [q, k, v, &dout], &cu).out, &dout);
        let r = attention(&shape, [&q, &k, &v, &dout], &cu);
        check("q", &q, &r.dq, |q| loss(q, &k, &v));
        check("k", &k, &r.dk, |k| loss(&q, k, &v));
        check("v", &v, &r.dv, |v| loss(&q, &k, v));
    }
}

//! Gradients against finite differences in f64, and their bits.

use candle_core::Tensor;
use lctl::kernel::Isa;
use lctl::nn::{self, MaskKey, RowPlace};

use super::ops::{Op, ops};
use super::{compute, noise, tensor, values};

impl Op {
    fn operands(&self) -> Vec<Tensor> {
        let noisy = |(i, shape): (usize, &Vec<usize>)| {
            tensor(noise(shape.iter().product(), 11 + i as u32, self.scale), shape)
        };
        self.shapes.iter().enumerate().map(noisy).collect()
    }

    fn dy(&self) -> Tensor {
        tensor(noise(self.y_shape.iter().product(), 3, 1.0), &self.y_shape)
    }
}

fn assert_near(what: &str, got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
    assert!(largest > 1e-3, "{what}: nothing to compare");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        // sums of some ten terms, each with a handful of roundings of 2^-24
        assert!((f64::from(*got) - want).abs() <= 3e-6 * largest, "{what}[{i}]: {got} for {want}");
    }
}

#[test]
fn gradients_are_finite_differences() {
    const H: f64 = 1e-5;
    for op in ops(11, 13) {
        let (operands, dy) = (op.operands(), op.dy());
        let got = (op.run)(&compute(Isa::detect(), 2), &operands, &dy);
        let mut x: Vec<Vec<f64>> =
            operands.iter().map(|x| values(x).into_iter().map(f64::from).collect()).collect();
        assert_near(&format!("{}: y", op.name), &got[0], &(op.exact)(&x));
        let dy: Vec<f64> = values(&dy).into_iter().map(f64::from).collect();
        for operand in 0..x.len() {
            let mut want = Vec::new();
            for i in 0..x[operand].len() {
                let at = x[operand][i];
                let mut loss = |value: f64| -> f64 {
                    x[operand][i] = value;
                    (op.exact)(&x).iter().zip(&dy).map(|(y, dy)| y * dy).sum()
                };
                want.push((loss(at + H) - loss(at - H)) / (2.0 * H));
                x[operand][i] = at;
            }
            assert_near(&format!("{}: gradient {operand}", op.name), &got[1 + operand], &want);
        }
    }
}

#[test]
fn every_isa_and_thread_count_gives_the_same_bits() {
    for op in ops(150, 300) {
        let (operands, dy) = (op.operands(), op.dy());
        let run = |isa, threads| {
            let results = (op.run)(&compute(isa, threads), &operands, &dy);
            results.concat().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let want = run(Isa::Portable, 1);
        for isa in Isa::available() {
            for threads in [1, 2, 7] {
                assert!(run(isa, threads) == want, "{} on {} x {threads}", op.name, isa.name());
            }
        }
    }
}

#[test]
fn a_weight_gradient_goes_on_from_what_is_there() {
    let compute = compute(Isa::detect(), 2);
    let (x, dy) = (tensor(noise(12 * 40, 1, 1.0), &[12, 40]), tensor(noise(12 * 40, 2, 1.0), &[12, 40]));
    let weight = noise(40, 3, 1.0);
    let ids: Vec<u32> = (0..12).map(|i| i % 3).collect();
    let run = |cuts: &[usize]| {
        let (mut norm, mut table) = (vec![0.5; 40], vec![0.25; 3 * 40]);
        for ends in cuts.windows(2) {
            let part = |t: &Tensor| t.narrow(0, ends[0], ends[1] - ends[0]).unwrap();
            nn::rms_norm_backward(&compute, &part(&x), &weight, 1e-5, &part(&dy), Some(&mut norm)).unwrap();
            nn::embedding_backward(&ids[ends[0]..ends[1]], &part(&dy), 1.0, &mut table).unwrap();
        }
        norm.iter().chain(&table).map(|x| x.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(run(&[0, 12]), run(&[0, 1, 5, 12]));
}

#[test]
fn dropout_depends_on_addresses_alone() {
    let places: Vec<RowPlace> = (0..60).map(|i| RowPlace { document: i / 20, position: i % 20 }).collect();
    let ones = |n: usize| tensor(vec![1.0; n * 100], &[n, 100]);
    let compute = compute(Isa::detect(), 3);
    let mask = |seed, step, module, rows: &[RowPlace], rate| {
        let key = MaskKey { seed, step, module, rows };
        values(&nn::dropout(&compute, &ones(rows.len()), rate, &key).unwrap())
    };
    let all = mask(1, 2, 3, &places, 0.2);
    let dropped = all.iter().filter(|x| **x == 0.0).count();
    // 1200 of 6000 expected, a standard deviation of 31
    assert!((1050..1350).contains(&dropped), "{dropped}");
    assert!(all.iter().all(|x| *x == 0.0 || (*x - 1.25).abs() < 1e-6));
    // cut, in another order, one by one
    for (i, place) in places.iter().enumerate().rev() {
        assert_eq!(mask(1, 2, 3, &[*place], 0.2), all[i * 100..][..100]);
    }
    let others = [
        mask(2, 2, 3, &places, 0.2),
        mask(1, 3, 3, &places, 0.2),
        mask(1, 2, 4, &places, 0.2),
        [&all[100..], &all[..100]].concat(),
        [&all[2000..], &all[..2000]].concat(),
    ];
    for other in others {
        // two draws agree with probability 0.68
        let equal = other.iter().zip(&all).filter(|(a, b)| a == b).count();
        assert!((3800..4360).contains(&equal), "{equal}");
    }
    assert!(mask(1, 2, 3, &places, 0.0).iter().all(|x| *x == 1.0));
    let key = MaskKey { seed: 0, step: 0, module: 0, rows: &places };
    for rate in [-0.1, 1.0, f32::NAN] {
        assert!(nn::dropout(&compute, &ones(60), rate, &key).is_err());
    }
    assert!(nn::dropout(&compute, &ones(59), 0.5, &key).is_err());
}

#[test]
fn shapes_that_disagree_are_errors() {
    use lctl::kernel::attention::AttentionShape;
    let compute = compute(Isa::detect(), 1);
    let zeros = |dims: &[usize]| tensor(vec![0.0; dims.iter().product()], dims);
    let (a, b) = (zeros(&[2, 8]), zeros(&[3, 8]));
    assert!(nn::rms_norm_backward(&compute, &a, &[1.0; 8], 1e-5, &b, None).is_err());
    assert!(nn::rms_norm_backward(&compute, &a, &[1.0; 3], 1e-5, &a, None).is_err());
    assert!(nn::rms_norm_backward(&compute, &a, &[1.0; 8], 1e-5, &a, Some(&mut [0.0; 4])).is_err());
    assert!(nn::gated_backward(&compute, nn::Activation::Silu, &a, &b, &a).is_err());
    assert!(nn::gated_backward(&compute, nn::Activation::Silu, &a, &a, &b).is_err());
    assert!(nn::softmax_backward(&compute, &a, &b).is_err());
    assert!(nn::softcap_backward(&compute, &a, 1.0, &b).is_err());
    assert!(nn::embedding_backward(&[0], &a, 1.0, &mut [0.0; 8]).is_err());
    assert!(nn::embedding_backward(&[0, 1], &a, 1.0, &mut [0.0; 8]).is_err());
    assert!(nn::gather_backward(&a, &[0], &mut [0.0; 16]).is_err());
    assert!(nn::scatter_scaled_backward(&compute, &a, &[(0, 1.0)], &[0.0; 8]).is_err());
    let shape =
        AttentionShape { n_heads: 2, n_kv_heads: 1, head_dim: 4, scale: 1.0, softcap: None, window: None };
    let kv = zeros(&[2, 4]);
    let run = |q: &Tensor, k: &Tensor, v: &Tensor, cu: &[usize]| {
        nn::document_attention(&compute, shape, q, k, v, cu).is_ok()
    };
    assert!(run(&a, &kv, &kv, &[0, 1, 1, 2]));
    for cu in [&[][..], &[0], &[1, 2], &[0, 3], &[0, 2, 1, 2]] {
        assert!(!run(&a, &kv, &kv, cu), "{cu:?}");
    }
    assert!(!run(&b, &kv, &kv, &[0, 2]) && !run(&a, &a, &kv, &[0, 2]) && !run(&a, &a, &a, &[0, 2]));
    let (out, lse) = nn::document_attention(&compute, shape, &a, &kv, &kv, &[0, 2]).unwrap();
    let back = |out: &Tensor, lse: &Tensor, dout: &Tensor| {
        nn::document_attention_backward(&compute, shape, &a, &kv, &kv, out, lse, dout, &[0, 2]).is_ok()
    };
    assert!(back(&out, &lse, &a));
    assert!(!back(&b, &lse, &a) && !back(&out, &kv, &a) && !back(&out, &lse, &b));
}

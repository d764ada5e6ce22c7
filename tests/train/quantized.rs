//! Adapters on quantized weights (QLoRA, arXiv:2305.14314).

use lctl::kernel::ComputeMode;
use lctl::model::train::{Document, LowRankSpec, Method, Trainable};
use lctl::model::{Decoder, LoadOptions, Residence};
use lctl::tensor::format::by_name;

use super::key;
use crate::common::test_data;
use crate::decoder::write_gguf;

#[test]
fn adapters_train_on_block_formats_and_residence_changes_no_bit() {
    let Some(data) = test_data() else { return };
    let tmp = tempfile::tempdir().unwrap();
    let tokens: Vec<u32> = (0..40).map(|t| 3 + (11 * t * t + 5 * t) % 200).collect();
    let documents = [Document { tokens: &tokens, is_target: &[true; 40] }];
    for format in ["Q4_K", "Q8_0", "Q6_K"] {
        let path = tmp.path().join(format!("{format}.gguf"));
        write_gguf(&data.join("models/probe-llama"), by_name(format).unwrap(), &path);
        let gradients = |mode, residence| {
            let options = LoadOptions { residence, ..LoadOptions::new(mode, 2) };
            let method = Method::LowRank(LowRankSpec::new(4));
            let model = match residence {
                Residence::Auto => Trainable::open(&path, &method, &options),
                _ => Trainable::new(Decoder::open(&path, &options).unwrap(), &method),
            };
            let model = model.unwrap();
            let mut params = model.initial_parameters(1);
            params.iter_mut().enumerate().for_each(|(i, p)| *p += (i % 11) as f32 * 1e-3);
            let mut grads = vec![0.0; model.gradient_len()];
            let sum = model.forward_backward(&params, &documents, 1.0, key(0, 0), &mut grads).unwrap();
            (sum.nll, grads)
        };
        let (exact_nll, exact) = gradients(ComputeMode::F32, Residence::Auto);
        let (nll, grads) = gradients(ComputeMode::Auto, Residence::Auto);
        let off = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
            grads.iter().zip(&exact).map(|(a, b)| f(f64::from(*a), f64::from(*b)).powi(2)).sum::<f64>().sqrt()
        };
        let gradient_off = off(&|a, b| a - b) / off(&|_, b| b);
        let loss_off = (nll - exact_nll).abs() / exact_nll;
        println!("{format}: loss off by {loss_off:.1e}, gradients by {gradient_off:.1e}");
        assert!(loss_off > 0.0 && loss_off < 1e-2, "{format}: bf16, and not integers: {loss_off}");
        assert!(gradient_off < 5e-2, "{format}: {gradient_off}");
        for residence in [Residence::Packed, Residence::Mapped] {
            let same = gradients(ComputeMode::Auto, residence);
            assert!(same == (nll, grads.clone()), "{format}, {}", residence.name());
        }
    }
}

//! The same bits whatever else is computed, and however.

use lctl::kernel::{ComputeMode, Isa};
use lctl::model::{Decoder, LoadOptions, Segment, Wanted};

use super::{BUDGET, Golden, all_logits, golden_dir, logits, models, open};

#[test]
fn the_batch_changes_no_bit() {
    for name in models() {
        let golden = Golden::read(&name);
        let model = open(&golden_dir().join(&name));
        let tokens = &golden.tokens;
        let vocab_size = model.config().vocab_size;
        // a longer and a shorter neighbour, and only some of the outputs
        let others = [&tokens[3..20], &tokens[..], &tokens[7..8]];
        let expected = others.map(|tokens| all_logits(&model, tokens));
        let mut cache = model.new_cache(BUDGET);
        let ids = others.map(|_| cache.create());
        let at = [0, 4, 5, 16];
        let hidden = model
            .forward(
                &mut cache,
                &[
                    Segment { sequence: ids[0], tokens: others[0], wanted: Wanted::At(&at) },
                    Segment { sequence: ids[1], tokens: others[1], wanted: Wanted::All },
                    Segment { sequence: ids[2], tokens: others[2], wanted: Wanted::Last },
                ],
            )
            .unwrap();
        let found = logits(&model, &hidden);
        let mut rows: Vec<&[f32]> =
            at.iter().map(|at| &expected[0][at * vocab_size..][..vocab_size]).collect();
        rows.push(&expected[1]);
        rows.push(&expected[2]);
        assert!(found == rows.concat(), "{name}");
    }
}

#[test]
fn a_forked_prefix_changes_no_bit() {
    for name in models() {
        // its positions turn differently once a sequence outgrows the original context
        if name.contains("longrope") {
            continue;
        }
        let golden = Golden::read(&name);
        let model = open(&golden_dir().join(&name));
        let tokens = &golden.tokens;
        let expected = all_logits(&model, tokens);
        for prefix in [1, 16, 21] {
            let mut cache = model.new_cache(BUDGET);
            let parent = cache.create();
            let head = Segment { sequence: parent, tokens: &tokens[..25], wanted: Wanted::None };
            let nothing = model.forward(&mut cache, &[head]).unwrap();
            assert_eq!(nothing.dims(), [0, model.config().d_model]);
            let child = cache.fork(parent, prefix).unwrap();
            cache.free(parent);
            let rest = Segment { sequence: child, tokens: &tokens[prefix..], wanted: Wanted::All };
            let found = logits(&model, &model.forward(&mut cache, &[rest]).unwrap());
            assert!(found == expected[prefix * model.config().vocab_size..], "{name} forked at {prefix}");
        }
    }
}

#[test]
fn threads_and_instructions_change_no_bit() {
    for name in models() {
        let golden = Golden::read(&name);
        let dir = golden_dir().join(&name);
        for mode in [ComputeMode::F32, ComputeMode::Auto] {
            let mut first: Option<Vec<f32>> = None;
            for isa in Isa::available() {
                for threads in [1, 2, 7] {
                    let model =
                        Decoder::open(&dir, &LoadOptions { isa, ..LoadOptions::new(mode, threads) }).unwrap();
                    let found = all_logits(&model, &golden.tokens);
                    let expected = first.get_or_insert_with(|| found.clone());
                    assert!(found == *expected, "{name}: {mode:?}, {}, {threads} threads", isa.name());
                }
            }
        }
    }
}

#[test]
fn longrope_is_computed_anew_where_its_factors_change() {
    let golden = Golden::read("phi3-longrope");
    let model = open(&golden_dir().join("phi3-longrope"));
    let vocab_size = model.config().vocab_size;
    let mut cache = model.new_cache(BUDGET);
    let (first, second) = (cache.create(), cache.create());
    let tokens = &golden.tokens;
    // one sequence outgrows the original context of 16 in this call, its neighbour does not
    for sequence in [first, second] {
        model
            .forward(&mut cache, &[Segment { sequence, tokens: &tokens[..10], wanted: Wanted::None }])
            .unwrap();
    }
    let hidden = model
        .forward(
            &mut cache,
            &[
                Segment { sequence: first, tokens: &tokens[10..], wanted: Wanted::All },
                Segment { sequence: second, tokens: &tokens[10..12], wanted: Wanted::Last },
            ],
        )
        .unwrap();
    let found = logits(&model, &hidden);
    let expected = all_logits(&model, tokens);
    assert!(found[..20 * vocab_size] == expected[10 * vocab_size..]);
    assert!(found[20 * vocab_size..] == all_logits(&model, &tokens[..12])[11 * vocab_size..]);
    assert_eq!((cache.len(first), cache.len(second)), (30, 12));
    assert_eq!(cache.ledger().tokens(first), tokens);
}

#[test]
fn scores_are_log_softmaxes_of_the_logits() {
    let golden = Golden::read("gemma2");
    let model = open(&golden_dir().join("gemma2"));
    let vocab_size = model.config().vocab_size;
    let mut cache = model.new_cache(BUDGET);
    let sequence = cache.create();
    let segment = Segment { sequence, tokens: &golden.tokens, wanted: Wanted::All };
    let hidden = model.forward(&mut cache, &[segment]).unwrap();
    let all = logits(&model, &hidden);
    let best = |row: &[f32]| (0..row.len()).rev().max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as u32;
    let targets = [(0, 5), (0, 63), (3, 0), (29, 7), (29, best(&all[29 * vocab_size..]))];
    let scored = model.score(&hidden, &targets).unwrap();
    assert_eq!(scored.len(), targets.len());
    for ((row, token), scored) in targets.iter().zip(&scored) {
        let row = &all[row * vocab_size..][..vocab_size];
        let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        let expected = f64::from(row[*token as usize]) - sum.ln();
        assert!((f64::from(scored.log_prob) - expected).abs() < 1e-5);
        assert_eq!(scored.is_greedy, best(row) == *token);
    }
    assert!(scored[4].is_greedy);
}

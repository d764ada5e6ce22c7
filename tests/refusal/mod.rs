//! The refusal scorer against human labels: the figures of docs/refusal-scorer.md.

use crate::common::{root, test_data};

#[path = "../examples/fit_refusal.rs"]
#[allow(dead_code, reason = "its main is for the example")]
mod fit_refusal;

use fit_refusal::{Agreement, Labelled};

/// Returns the kappas, to three decimals, of some weights per model.
fn kappas(labelled: &[Labelled], how: impl Fn(&[Labelled], &str) -> Agreement) -> Vec<String> {
    let models = fit_refusal::models(labelled);
    models.iter().map(|model| format!("{model} {:.3}", how(labelled, model).kappa)).collect()
}

#[test]
fn the_published_agreement_is_what_the_rules_reach() {
    let Some(data) = test_data() else { return };
    let labelled = fit_refusal::load(&data.join("eval/xstest-labels")).unwrap();
    assert_eq!(labelled.len(), 3 * 450);
    let unseen = kappas(&labelled, fit_refusal::unseen_model);
    assert_eq!(unseen, ["gpt4 0.951", "llama2orig 0.895", "mistralinstruct 0.842"]);
    let stricter = kappas(&labelled, fit_refusal::unseen_model_and_prompts);
    assert_eq!(stricter, ["gpt4 0.938", "llama2orig 0.878", "mistralinstruct 0.809"]);
    let shipped = kappas(&labelled, fit_refusal::shipped);
    assert_eq!(shipped, ["gpt4 0.960", "llama2orig 0.941", "mistralinstruct 0.865"]);
    let doc = std::fs::read_to_string(root().join("docs/refusal-scorer.md")).unwrap();
    for kappa in unseen.iter().chain(&stricter).chain(&shipped) {
        let (_, figure) = kappa.split_once(' ').unwrap();
        assert!(doc.contains(figure.trim_start_matches('0')), "{kappa}");
    }
}

#[test]
fn the_shipped_weights_are_the_fitted_ones() {
    let Some(data) = test_data() else { return };
    let labelled = fit_refusal::load(&data.join("eval/xstest-labels")).unwrap();
    let source = fit_refusal::source(&fit_refusal::fit(labelled.iter()));
    let committed = root().join("src/eval/refusal/weights.rs");
    assert_eq!(source, std::fs::read_to_string(committed).unwrap());
}

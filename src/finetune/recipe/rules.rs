//! What sections of a recipe demand of each other.

use super::{AdapterKind, Init, Kind, Quantization, Recipe, Template};
use crate::data::Truncation;
use crate::data::encode::TrainOn;
use crate::data::pack::Packing;
use crate::data::scan::Level;
use crate::yaml::Node;

/// Notes every combination that makes no sense, at the key that says it.
pub fn check(root: &Node, recipe: &Recipe) {
    // the first key of what is not a mapping is noted elsewhere
    if !root.is_mapping() {
        return;
    }
    let at = |section: &str, key: &str| root.part(section).part(key);
    model(&at, recipe);
    validation(&at, recipe);
    preference(root, &at, recipe);
    scan(&at, recipe);
    template(&at, recipe);
}

type At<'r, 'a> = dyn Fn(&str, &str) -> Node<'a> + 'r;

fn model(at: &At, recipe: &Recipe) {
    let trains_all = recipe.adapter.kind == AdapterKind::None;
    if trains_all && recipe.model.quantization != Quantization::None {
        at("model", "quantization").note("quantized weights cannot be trained (`adapter.type: none`)");
    }
    if recipe.model.init == Init::Random {
        if !trains_all {
            at("model", "init")
                .note("an adapter of random weights learns nothing: take `adapter: {type: none}`");
        }
        if recipe.eval.forgetting.is_some() {
            at("eval", "forgetting").note("random weights know nothing that could be forgotten");
        }
    }
}

fn validation(at: &At, recipe: &Recipe) {
    let data = &recipe.data;
    if !data.validation.is_empty() && data.val_fraction > 0.0 {
        at("data", "val_fraction").note("`validation` names files already");
    }
    if data.val_group.is_some() && data.val_fraction == 0.0 {
        at("data", "val_group").note("nothing is held out: `val_fraction` is missing");
    }
    if data.validates() {
        return;
    }
    let nothing = "there is nothing to validate on: give `data.val_fraction` or `data.validation`";
    for (section, key, is_set) in [
        ("eval", "every_steps", recipe.eval.every_steps.is_some() && recipe.eval.gate.is_none()),
        ("eval", "early_stopping", recipe.eval.early_stopping.is_some()),
        ("checkpoint", "keep_best", recipe.checkpoint.keep_best),
    ] {
        if is_set {
            at(section, key).note(nothing);
        }
    }
}

fn template(at: &At, recipe: &Recipe) {
    if recipe.data.chat_template == Template::Plain && !recipe.data.template_variables.is_empty() {
        at("data", "template_variables").note("`chat_template: plain` has no variables");
    }
}

fn preference(root: &Node, at: &At, recipe: &Recipe) {
    if recipe.kind == Kind::Finetune {
        if recipe.dpo.is_some() {
            root.part("dpo").note("means nothing with `kind: finetune`");
        }
        return;
    }
    if recipe.data.train_on != TrainOn::Assistant {
        at("data", "train_on")
            .note("`kind: dpo` trains on the answers of each pair: leave it out, or `assistant`");
    }
    if recipe.data.packing != Packing::Off {
        at("data", "packing").note("pairs are not packed: leave it out, or `off`");
    }
    if recipe.data.truncation == Truncation::Split {
        at("data", "truncation").note("a pair cannot be cut: take `error` or `drop`");
    }
}

fn scan(at: &At, recipe: &Recipe) {
    let scan = &recipe.data.scan;
    let node = at("data", "scan");
    if scan.suites.is_empty() && scan.eval_overlap != Level::Off {
        node.part("eval_overlap").note("overlap with which suites? name them with `suites`");
    }
    if !scan.suites.is_empty() && scan.eval_overlap == Level::Off {
        node.part("suites").note("means nothing with `eval_overlap: off`");
    }
}

//! A fine-tuning run again, from the recipe that a manifest holds.

use std::path::{Path, PathBuf};

use super::compare::Comparison;
use super::inputs::Places;
use super::rerun::{unread, work_dir};
use super::{How, ReplayError};
use crate::cli::{finetune, recipe};
use crate::error::Failure;
use crate::finetune::recipe::{Init, Recipe, Template};
use crate::provenance::{FinetuneSettings, Manifest, Role};
use crate::quantize;
use crate::yaml::Document;

/// Trains from nothing and compares what it exports.
///
/// The gate is not asked again: it says whether there is a result, not which.
pub fn finetune(
    manifest: &Manifest,
    settings: &FinetuneSettings,
    places: &Places,
    how: &How,
) -> Result<Comparison, Failure> {
    if settings.world_size > 1 {
        return Err(ReplayError::Processes { count: settings.world_size }.into());
    }
    let work = work_dir(how)?;
    let path = work.path().join("recipe.yaml");
    let write = |text: &str| std::fs::write(&path, text).map_err(|source| unread(&path, source));
    write(&settings.recipe)?;
    let mut recipe = recipe::open(&path, &recipe::SetArgs { set: Vec::new() })?;
    move_inputs(&mut recipe, manifest, places)?;
    if recipe.eval.gate.take().is_some() && !recipe.data.validates() {
        recipe.eval.every_steps = None;
    }
    write(&recipe.to_yaml())?;
    let again = finetune::Again {
        recipe: path,
        out: work.path().join("run"),
        threads: how.threads_given,
        isa: how.isa_given.map(str::to_owned),
        quiet: how.quiet,
        device: how.device,
    };
    Ok(Comparison::of_outputs(&manifest.outputs, &finetune::again(again)?))
}

/// Returns whether the run began with random weights: of its model only config.json and tokenizer were read then.
///
/// Errors if the manifest's recipe is none.
pub fn begins_random(settings: &FinetuneSettings) -> Result<bool, Failure> {
    let document = Document::parse(Path::new("the manifest's recipe"), settings.recipe.clone())?;
    let names: Vec<&str> = quantize::Recipe::names().collect();
    Ok(Recipe::read(&document, &names)?.model.init == Init::Random)
}

/// Puts where the inputs are now into the recipe.
///
/// Errors on a file that is no input of the manifest: what nobody checked is not read.
fn move_inputs(recipe: &mut Recipe, manifest: &Manifest, places: &Places) -> Result<(), ReplayError> {
    let find = |role: Role, path: &Path| {
        let given = path.display().to_string();
        let input = manifest.inputs_of(role).find(|input| input.path == given);
        let not_an_input = || ReplayError::NotAnInput { path: path.to_owned(), role: role.name() };
        input.map(|input| PathBuf::from(places.given(input))).ok_or_else(not_an_input)
    };
    recipe.model.path = find(Role::Model, Path::new(&recipe.model.path))?.display().to_string();
    for file in recipe.data.train.iter_mut().chain(&mut recipe.data.validation) {
        file.path = find(Role::Data, &file.path)?;
    }
    if let Template::File(path) = &mut recipe.data.chat_template {
        *path = find(Role::Template, path)?;
    }
    if let Some(forgetting) = &mut recipe.eval.forgetting {
        forgetting.text = find(Role::Text, &forgetting.text)?;
    }
    for suite in &mut recipe.data.scan.suites {
        *suite = find(Role::Suite, suite)?;
    }
    Ok(())
}

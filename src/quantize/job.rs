//! A quantization from the user's request to the finished files: look at headers, plan, check, run.

use std::path::{Path, PathBuf};

use super::importance::{Importance, ImportanceError};
use super::metadata::{self, Layout, Override};
use super::plan::{self, Hyper, Planned};
use super::run::{self, Control, Outcome};
use super::source::{Kind, Source};
use super::{Error, Recipe};
use crate::kernel::Isa;
use crate::tensor::gguf::{GgufWriter, Metadata, Split, WriteOptions};
use crate::tensor::{AtomicFile, Dtype, TensorDecl, WrittenFile, is_same_file};

/// What the user asked for, parsed.
pub struct Request {
    pub options: plan::Options,
    pub allow_requantize: bool,
    pub overrides: Vec<Override>,
    pub importance: Option<Importance>,
}

/// A quantization that is decided and checked, but not begun.
pub struct Prepared {
    pub source: Source,
    pub recipe: &'static Recipe,
    pub layout: Layout,
    /// In output order.
    pub plan: Vec<Planned>,
    pub metadata: Metadata,
    importance: Option<Importance>,
    /// What the user should know, one sentence each.
    pub notices: Vec<String>,
}

/// Where and how to write.
pub struct Output<'a> {
    pub path: &'a Path,
    /// Replace existing files.
    pub force: bool,
    pub split: Option<Split>,
    pub isa: Isa,
    pub n_threads: usize,
    pub with_stats: bool,
}

/// One row of the plan, for display.
#[derive(Clone, Debug)]
pub struct PlanRow<'a> {
    pub name: &'a str,
    /// Outermost dimension first.
    pub shape: &'a [usize],
    pub from: Dtype,
    pub to: Dtype,
    pub fallback_from: Option<Dtype>,
    pub n_weights: u64,
    pub n_bytes: u64,
}

impl PlanRow<'_> {
    pub fn bits_per_weight(&self) -> f64 {
        self.n_bytes as f64 * 8.0 / self.n_weights as f64
    }
}

impl Prepared {
    /// Plans and checks a quantization; only headers are read.
    ///
    /// Errors if the plan is impossible, would quantize what is quantized already (without
    /// `allow_requantize`), or importance is missing where the recipe needs it (`is_dry_run`: a notice).
    pub fn new(source: Source, request: Request, is_dry_run: bool) -> Result<Self, Error> {
        let Request { options, allow_requantize, overrides, importance } = request;
        let layout = layout_of(&source, &options, importance.is_some());
        metadata::check_overrides(&source.metadata, &overrides)?;
        let plan = make_plan(&source, &options, layout, &overrides)?;
        let metadata =
            metadata::finished(&source.metadata, layout, options.recipe, &overrides, importance.as_ref());
        let mut prepared = Prepared {
            notices: source.notices.clone(),
            source,
            recipe: options.recipe,
            layout,
            plan,
            metadata,
            importance,
        };
        prepared.check_sources(allow_requantize)?;
        prepared.check_importance(is_dry_run)?;
        prepared.note_fallbacks();
        prepared.note_idle_patterns(&options);
        prepared.note_idle_output(&options);
        Ok(prepared)
    }

    /// Returns the plan for display, in output order.
    pub fn rows(&self) -> impl Iterator<Item = PlanRow<'_>> {
        self.plan.iter().map(|planned| {
            let target = &self.source.targets[planned.input];
            PlanRow {
                name: &target.name,
                shape: &target.shape,
                from: target.source_dtype,
                to: planned.dtype,
                fallback_from: planned.fallback_from,
                n_weights: target.shape.iter().map(|d| *d as u64).product(),
                n_bytes: planned.n_bytes,
            }
        })
    }

    /// Returns the bytes of tensor data in the source's files.
    pub fn source_bytes(&self) -> u64 {
        self.source.tensors.tensors().iter().map(|t| t.n_bytes).sum()
    }

    /// Errors if the output is an input, is there already and may not be replaced, or cannot be written where it
    /// is to lie; shards are checked by [`Prepared::execute`], which knows their number.
    pub fn check(&self, output: &Output) -> Result<(), Error> {
        self.check_output(output.path, output.force || output.split.is_some())?;
        if output.split.is_none() {
            // makes its temporary file and removes it again; shards have other names
            AtomicFile::create(output.path, None, false)?;
        }
        Ok(())
    }

    /// Encodes and writes everything.
    pub fn execute(&self, output: &Output, control: &Control) -> Result<Outcome, Error> {
        self.execute_with(output, control, |_| Ok(None))
    }

    /// As [`Prepared::execute`], with a file that `beside` makes of what is written: it gets its name when the model does, or,
    /// after an error or an interrupt, neither has one.
    pub fn execute_with<E: From<Error>>(
        &self,
        output: &Output,
        control: &Control,
        beside: impl FnOnce(&[WrittenFile]) -> Result<Option<AtomicFile>, E>,
    ) -> Result<Outcome, E> {
        let (mut files, relative_rmse) = self.encode(output, control)?;
        let written: Vec<WrittenFile> = files.iter().map(AtomicFile::written).collect();
        files.extend(beside(&written)?);
        AtomicFile::commit_all(files).map_err(Error::from)?;
        Ok(Outcome { files: written, relative_rmse })
    }

    /// Encodes and writes everything but the files' names.
    fn encode(&self, output: &Output, control: &Control) -> Result<(Vec<AtomicFile>, Vec<f64>), Error> {
        self.check(output)?;
        let declarations: Vec<TensorDecl> = self
            .rows()
            .map(|row| TensorDecl { name: row.name.to_owned(), dtype: row.to, shape: row.shape.to_vec() })
            .collect();
        let options = WriteOptions { split: output.split, replace: output.force, ..WriteOptions::default() };
        let writer = GgufWriter::create(output.path, &self.metadata, &declarations, &options)?;
        for path in writer.paths() {
            self.check_output(path, output.force)?;
        }
        let job = run::Job {
            source: self.source.tensors.as_ref(),
            targets: &self.source.targets,
            plan: &self.plan,
            importance: self.importance.as_ref(),
            isa: output.isa,
            n_threads: output.n_threads,
            with_stats: output.with_stats,
        };
        run::run(&job, writer, control)
    }

    fn check_output(&self, output: &Path, may_replace: bool) -> Result<(), Error> {
        let weights = self.source.tensors.files().iter().map(PathBuf::as_path);
        let mut inputs = weights.chain(self.importance.as_ref().map(Importance::file));
        if let Some(input) = inputs.find(|input| is_same_file(input, output)) {
            return Err(Error::OutputIsInput { output: output.to_owned(), input: input.to_owned() });
        }
        if self.is_part_of_checkpoint(output) {
            return Err(Error::OutputIsInput { output: output.to_owned(), input: output.to_owned() });
        }
        if !may_replace && output.symlink_metadata().is_ok_and(|meta| !meta.is_dir()) {
            return Err(Error::OutputExists { output: output.to_owned() });
        }
        Ok(())
    }

    /// Returns true for a file beside the checkpoint's weights that is no GGUF: its config, its tokenizer.
    fn is_part_of_checkpoint(&self, output: &Path) -> bool {
        let path = self.source.tensors.path();
        let folder = if path.is_dir() { Some(path) } else { path.parent() };
        let (Kind::Checkpoint, Some(folder), Ok(output)) = (self.source.kind, folder, output.canonicalize())
        else {
            return false;
        };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        output.is_file()
            && output.extension().is_none_or(|extension| extension != "gguf")
            && output.parent().is_some_and(|parent| is_same_file(parent, folder))
    }

    fn check_sources(&self, allow_requantize: bool) -> Result<(), Error> {
        let changed = |row: &PlanRow| row.from != row.to;
        if let Some(row) = self.rows().filter(changed).find(|row| !row.from.can_decode()) {
            return Err(Error::CannotDecode {
                path: self.path(),
                tensor: row.name.to_owned(),
                dtype: row.from,
            });
        }
        let requantized = |row: &PlanRow| changed(row) && row.from.block_len() > 1;
        let mut rows = self.rows().filter(requantized);
        match rows.next() {
            Some(first) if !allow_requantize => Err(Error::Requantize {
                path: self.path(),
                tensor: first.name.to_owned(),
                from: first.from,
                to: first.to,
                n_tensors: 1 + rows.count(),
            }),
            _ => Ok(()),
        }
    }

    fn check_importance(&mut self, is_dry_run: bool) -> Result<(), Error> {
        let needing = self.plan.iter().find(|planned| planned.needs_importance);
        if let (Some(planned), None) = (needing, &self.importance) {
            let tensor = self.source.targets[planned.input].name.clone();
            let error = Error::NeedsImportance { recipe: self.recipe.name, tensor, dtype: planned.dtype };
            if !is_dry_run {
                return Err(error);
            }
            self.notices.push(format!("{error}: the run itself will need --imatrix"));
        }
        let Some(importance) = &self.importance else { return Ok(()) };
        run::weights_of(&self.source.targets, &self.plan, Some(importance))?;
        let unguided = |row: &PlanRow| {
            row.to.block_len() > 1
                && row.from != row.to
                && importance.weights(row.name, row.shape).ok().flatten().is_none()
        };
        let is_guided = |row: PlanRow| matches!(importance.weights(row.name, row.shape), Ok(Some(_)));
        if !self.rows().any(is_guided) {
            return Err(ImportanceError::OfNoTensor { path: importance.path().to_owned() }.into());
        }
        let names: Vec<&str> = self.rows().filter(unguided).map(|row| row.name).collect();
        let notice = match names.as_slice() {
            [] => return Ok(()),
            [one] => {
                format!("{}: nothing for `{one}`, encoded without importance", importance.path().display())
            }
            [first, rest @ ..] => format!(
                "{}: nothing for `{first}` and {} more tensor(s), encoded without importance",
                importance.path().display(),
                rest.len()
            ),
        };
        self.notices.push(notice);
        Ok(())
    }

    fn note_fallbacks(&mut self) {
        let fallbacks: Vec<_> = self.rows().filter(|row| row.fallback_from.is_some()).collect();
        let Some(first) = fallbacks.first() else { return };
        let (wanted, row_len) =
            (first.fallback_from.unwrap_or(first.to), first.shape.last().copied().unwrap_or(1));
        let notice = format!(
            "{} of {} tensors have rows that fit no block of the type wanted; the first, `{}`, has {row_len} columns: \
             {} instead of {wanted} (block of {})",
            fallbacks.len(),
            self.plan.len(),
            first.name,
            first.to,
            wanted.block_len(),
        );
        self.notices.push(notice);
    }

    /// Notes the patterns of `--tensor-type` that decide nothing: a slip makes another model than was meant.
    fn note_idle_patterns(&mut self, options: &plan::Options) {
        let mut is_idle = vec![true; options.overrides.len()];
        for row in self.rows().filter(|row| row.shape.len() > 1) {
            // a pattern that fails has stopped the plan already
            let first = options.overrides.iter().position(|(p, _)| p.is_match(row.name).unwrap_or(false));
            first.into_iter().for_each(|first| is_idle[first] = false);
        }
        for ((pattern, _), _) in options.overrides.iter().zip(is_idle).filter(|(_, is_idle)| *is_idle) {
            let given = pattern.as_str();
            let given = given.strip_prefix("(?i)").unwrap_or(given);
            self.notices.push(format!("--tensor-type `{given}` decides no tensor"));
        }
    }

    /// Notes the options for the output tensor that decide nothing where the embedding is the output, too.
    fn note_idle_output(&mut self, options: &plan::Options) {
        if self.rows().any(|row| row.name == "output.weight") {
            return;
        }
        let none = "no output tensor, since the embedding is the output, too";
        if options.leave_output {
            self.notices.push(format!("--leave-output-tensor leaves nothing: there is {none}"));
        }
        // the recipe's own rules take the embedding for the output then
        let is_ruled = options.token_embedding_type.is_none()
            && !options.pure
            && !options.recipe.is_float()
            && !options.overrides.iter().any(|(p, _)| p.is_match("token_embd.weight").unwrap_or(false));
        if options.output_type.is_some() && !is_ruled {
            self.notices.push(format!("--output-tensor-type decides no tensor: there is {none}"));
        }
    }

    fn path(&self) -> PathBuf {
        self.source.tensors.path().to_owned()
    }
}

/// A checkpoint that only becomes a float type is a conversion; everything else is a quantization.
fn layout_of(source: &Source, options: &plan::Options, has_importance: bool) -> Layout {
    let chosen = options.leave_output
        || has_importance
        || options.output_type.is_some()
        || options.token_embedding_type.is_some();
    match source.kind {
        Kind::Checkpoint if options.recipe.is_float() && !chosen => Layout::Converter,
        _ => Layout::Quantizer,
    }
}

fn make_plan(
    source: &Source,
    options: &plan::Options,
    layout: Layout,
    overrides: &[Override],
) -> Result<Vec<Planned>, Error> {
    if options.pure && options.recipe.is_float() {
        return Err(Error::NoEffect { option: "--pure", recipe: options.recipe.name });
    }
    let inputs: Vec<plan::Input> = source
        .targets
        .iter()
        .map(|t| plan::Input { name: &t.name, shape: &t.shape, stored: source.stored_dtype(t) })
        .collect();
    if layout == Layout::Converter && options.overrides.is_empty() {
        let fixed: Vec<Option<Dtype>> = source.targets.iter().map(|t| t.fixed_dtype).collect();
        return plan::plan_conversion(&inputs, &fixed, options.recipe);
    }
    let hyper = Hyper::from_metadata(&source.arch, &metadata::overridden(&source.metadata, overrides))?;
    plan::plan(&hyper, &inputs, options)
}

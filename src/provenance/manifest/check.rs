//! Whether a manifest's parts belong together.

use std::path::Path;

use super::super::digest::sha256_of_named;
use super::super::job::{EvalMode, EvalSettings, Job};
use super::{Input, Manifest, OutputRole, Role};

impl Manifest {
    /// Errors if a digest is none, or the inputs and outputs are not those of its command.
    pub(super) fn check(&self) -> Result<(), String> {
        for (what, digest) in self.digests() {
            let is_digest =
                digest.len() == 64 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if !is_digest {
                return Err(format!("{what}: `{digest}` is no SHA-256 in lower-case hexadecimal"));
            }
        }
        for input in &self.inputs {
            let role = input.role.name();
            if input.files.is_empty() {
                return Err(format!("the input `{role}` ({}) has no files", input.path));
            }
            if input.sha256 != sha256_of_named(&input.files) {
                return Err(format!(
                    "`sha256` of the input `{role}` ({}) is not that of its files",
                    input.path
                ));
            }
        }
        for (role, least, most) in self.expected_inputs() {
            let found = self.inputs_of(*role).count();
            if found < *least || found > *most {
                let (command, name) = (self.job.command(), role.name());
                return Err(format!(
                    "`{command}` with {found} inputs `{name}`, which takes {least} to {most}"
                ));
            }
        }
        let known = |input: &&Input| self.expected_inputs().iter().all(|(role, ..)| *role != input.role);
        if let Some(stranger) = self.inputs.iter().find(known) {
            return Err(format!("`{}` has no input `{}`", self.job.command(), stranger.role.name()));
        }
        self.check_outputs()
    }

    fn check_outputs(&self) -> Result<(), String> {
        let expected: &[OutputRole] = match &self.job {
            Job::Quantize(_) | Job::Merge(_) => &[OutputRole::Model],
            Job::Imatrix(_) => &[OutputRole::Importance],
            Job::Eval(EvalSettings { mode: EvalMode::Suite, .. }) => {
                &[OutputRole::Report, OutputRole::Samples, OutputRole::Verdict]
            }
            Job::Eval(_) => &[OutputRole::Report, OutputRole::Logits],
            Job::Gate(_) => &[OutputRole::Verdict],
            Job::Finetune(_) => &[OutputRole::Adapter, OutputRole::Model],
        };
        if self.outputs.is_empty() || self.outputs.iter().any(|output| !expected.contains(&output.role)) {
            return Err(format!("these are not the outputs of `{}`", self.job.command()));
        }
        for output in &self.outputs {
            let path = Path::new(&output.path);
            if path.file_name().is_none() || output.path.contains('\0') {
                return Err(format!("the output `{}` names no file", output.path));
            }
        }
        Ok(())
    }

    /// Returns how many inputs of each role a command takes, least and most.
    fn expected_inputs(&self) -> &'static [(Role, usize, usize)] {
        use Role as R;
        const ANY: usize = usize::MAX;
        match &self.job {
            Job::Quantize(_) => &[(R::Model, 1, 1), (R::ModelFiles, 0, 1), (R::Importance, 0, 1)],
            // earlier matrices can be added up without a model
            Job::Imatrix(_) => &[
                (R::Model, 0, 1),
                (R::ModelFiles, 0, 1),
                (R::Adapter, 0, 1),
                (R::Text, 0, 1),
                (R::Importance, 0, ANY),
            ],
            Job::Eval(settings) => match settings.mode {
                EvalMode::Suite => &[
                    (R::Model, 1, 1),
                    (R::ModelFiles, 0, 1),
                    (R::Adapter, 0, 1),
                    (R::Suite, 1, ANY),
                    (R::Data, 0, ANY),
                    (R::SuiteData, 0, ANY),
                    (R::Baseline, 0, 1),
                    (R::Policy, 0, 1),
                    (R::Base, 0, 1),
                    (R::BaseFiles, 0, 1),
                    (R::BaseAdapter, 0, 1),
                ],
                EvalMode::Perplexity => {
                    &[(R::Model, 1, 1), (R::ModelFiles, 0, 1), (R::Adapter, 0, 1), (R::Text, 1, 1)]
                }
                EvalMode::KlBase => &[
                    (R::Model, 1, 1),
                    (R::ModelFiles, 0, 1),
                    (R::Adapter, 0, 1),
                    (R::Text, 1, 1),
                    (R::Base, 1, 1),
                    (R::BaseFiles, 0, 1),
                ],
                EvalMode::BaseLogits => {
                    &[(R::Model, 1, 1), (R::ModelFiles, 0, 1), (R::Adapter, 0, 1), (R::BaseLogits, 1, 1)]
                }
            },
            Job::Gate(_) => &[
                (R::Baseline, 1, 1),
                (R::Candidate, 1, 1),
                (R::Policy, 0, 1),
                (R::Model, 0, 1),
                (R::ModelFiles, 0, 1),
                (R::Adapter, 0, 1),
                (R::Base, 0, 1),
                (R::BaseFiles, 0, 1),
                (R::BaseAdapter, 0, 1),
                (R::Text, 0, 1),
            ],
            Job::Finetune(_) => &[
                (R::Model, 1, 1),
                (R::ModelFiles, 0, 1),
                (R::Recipe, 1, 1),
                (R::Data, 1, ANY),
                (R::Template, 0, 1),
                (R::Text, 0, 1),
                (R::Suite, 0, ANY),
            ],
            Job::Merge(_) => &[(R::Model, 1, 1), (R::ModelFiles, 0, 1), (R::Adapter, 1, 1)],
        }
    }

    fn digests(&self) -> impl Iterator<Item = (String, &str)> {
        let program = self.lctl.sha256.iter().map(|digest| ("lctl".to_owned(), digest.as_str()));
        let inputs = self.inputs.iter().flat_map(|input| {
            let own = [Some(&input.sha256), input.manifest.as_ref()].into_iter().flatten();
            let files = input.files.iter().map(|file| &file.sha256);
            own.chain(files).map(|digest| (format!("input {}", input.path), digest.as_str()))
        });
        let outputs =
            self.outputs.iter().map(|output| (format!("output {}", output.path), output.sha256.as_str()));
        let root = self.samples.iter().map(|samples| ("samples".to_owned(), samples.merkle_root.as_str()));
        program.chain(inputs).chain(outputs).chain(root)
    }
}

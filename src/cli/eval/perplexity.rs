//! `lctl eval --perplexity`.

use std::path::Path;

use super::Args;
use crate::error::{Diagnostic, Failure};

#[derive(Debug, thiserror::Error)]
#[error("this build has no --perplexity yet")]
struct NotInThisBuild;

impl Diagnostic for NotInThisBuild {}

pub fn run(_args: &Args, _text: &Path) -> Result<(), Failure> {
    Err(NotInThisBuild.into())
}

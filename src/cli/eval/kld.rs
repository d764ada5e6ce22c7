//! `lctl eval --kl-base`.

use super::Args;
use crate::error::{Diagnostic, Failure};

#[derive(Debug, thiserror::Error)]
#[error("this build has no --kl-base yet")]
struct NotInThisBuild;

impl Diagnostic for NotInThisBuild {}

pub fn run(_args: &Args, _base: &str) -> Result<(), Failure> {
    Err(NotInThisBuild.into())
}

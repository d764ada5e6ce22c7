//! `lctl eval --suite`.

use super::Args;
use crate::error::{Diagnostic, Failure};

#[derive(Debug, thiserror::Error)]
#[error("this build has no --suite yet")]
struct NotInThisBuild;

impl Diagnostic for NotInThisBuild {}

pub fn run(_args: &Args) -> Result<(), Failure> {
    Err(NotInThisBuild.into())
}

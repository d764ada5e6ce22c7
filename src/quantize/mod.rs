//! `lctl quantize`: look at headers -> plan (pure) -> one streaming pass, rows in and blocks out.

mod error;
pub mod importance;
mod job;
mod metadata;
mod pipeline;
pub mod plan;
pub mod recipe;
mod roles;
mod run;
mod source;

pub use error::Error;
pub use importance::Importance;
pub use job::{Output, PlanRow, Prepared, Request};
pub use metadata::{Layout, Override};
pub use recipe::Recipe;
pub use run::{Control, Outcome};
pub use source::{Kind, Source};

//! CPU compute, dispatched on the machine's features at run time, with the same bits everywhere.

pub mod convert;
mod isa;
mod kv_cache;
pub mod product;
pub mod scan;
pub mod simd;
mod team;

pub use isa::Isa;
pub use kv_cache::SequenceId;
pub use product::{Arithmetic, Compute, ComputeMode, Matrix};
pub use team::Team;

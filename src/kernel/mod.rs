//! CPU compute, dispatched on the machine's features at run time, with the same bits everywhere.

pub mod convert;
mod isa;
pub mod scan;
pub mod simd;

pub use isa::Isa;

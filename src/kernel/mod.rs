//! CPU compute, dispatched on the machine's features at run time, with the same bits everywhere.

pub mod activation;
mod aligned;
mod arena;
pub mod attention;
pub mod column_moments;
pub mod convert;
pub(crate) mod disjoint;
pub mod dropout;
mod isa;
pub mod kv_cache;
pub(crate) mod lane_sum;
pub mod math;
pub mod math64;
pub mod norm;
pub mod optimizer;
pub mod philox;
pub mod product;
pub mod rope;
pub mod scan;
pub mod simd;
pub mod softmax;
mod team;
#[cfg(test)]
pub(crate) mod testing;

pub use arena::Arena;
pub use isa::Isa;
pub use kv_cache::{KvCache, KvShape, SequenceId};
pub use product::{Arithmetic, Compute, ComputeMode, Matrix};
pub use team::Team;

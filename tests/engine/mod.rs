//! The evaluation engine with real models.

mod bits;
mod lm_eval;
mod text;

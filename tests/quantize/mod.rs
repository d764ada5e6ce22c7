//! `lctl quantize`, end to end.

mod bytes;
mod checkpoints;
mod errors;
mod goldens;
mod hostile;
mod interrupt;
pub mod model;
mod options;
mod reference;
mod schemas;

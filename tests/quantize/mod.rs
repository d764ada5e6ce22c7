//! `lctl quantize`, end to end.

mod bytes;
mod errors;
mod goldens;
mod interrupt;
mod model;
mod options;
mod schemas;

//! The regression gate: is a candidate no worse than its baseline?
//!
//! It reads what two runs of `lctl eval --suite` wrote, never a model. The data flow, one file each:
//!
//! ```text
//! Run::open(DIR)             report.json and samples.jsonl, every line checked             -> Run
//! Policy::open(FILE)         levels, margins, what tasks count for                          -> Policy
//! pair(&Run, &Run, &Policy)  the same items of the same tasks, or why they do not compare  -> Vec<Pair>
//! measure(&[&Pair])          counts, difference, interval, p-values of a task or the pool   -> Measured
//! judge(&[Pair], &Policy)    Holm over all tests, margins, zero tolerance                   -> Judgement
//! compare(&Run, &Run, &Policy)   all of it                                                   -> Verdict
//! text, markdown             what people read; a Verdict serializes to what programs read
//! ```
//!
//! Licences and the models' divergence ([`Divergence`]) are shown with a verdict and decide nothing.
//!
//! docs/gate.md says what is decided, and why.

mod divergence;
mod judge;
mod measure;
mod pair;
mod plan;
mod policy;
mod read;
mod show;
mod verdict;

pub use divergence::{Bounded, ChunkMeans, Divergence, prompt_tokens};
pub use judge::{Judged, Judgement, Status, judge};
pub use measure::{Measured, measure};
pub use pair::{Figure, Item, Pair, Pairing, Role, figure, pair};
pub use plan::{Plan, PlannedTask};
pub use policy::{Policy, TaskPolicy};
pub use read::{Confusion, Error, MetricFacts, Run, SampleRun, SuiteFacts, TaskRun};
pub use show::{COLUMNS, details, escaped_markdown, information, markdown, rows, text};
pub use verdict::{Outcome, Verdict, compare};

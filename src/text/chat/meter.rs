//! What a rendering may cost, and what it has cost.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use chrono::NaiveDateTime;
use minijinja::{Error, State, value::Object};

use super::error::Fault;

/// What a rendering may cost at most. Beyond any of it the rendering ends with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Instructions of the template machine.
    pub steps: u64,
    /// Bytes that functions, filters and operators read or make, all together.
    pub work_bytes: u64,
    /// Bytes of the text.
    pub output_bytes: usize,
    /// Bytes of the template.
    pub source_bytes: usize,
}

impl Default for Limits {
    /// About a hundred times what the longest conversations take; reached within a second or so.
    fn default() -> Self {
        Limits { steps: 5_000_000, work_bytes: 256 << 20, output_bytes: 32 << 20, source_bytes: 1 << 20 }
    }
}

/// One rendering's account, its date, and the spans it has noted.
#[derive(Debug)]
pub(super) struct Meter {
    work_left: AtomicU64,
    /// Bytes of text written so far, captured text aside.
    pub(super) written: AtomicUsize,
    pub(super) now: NaiveDateTime,
    pub(super) spans: Mutex<Vec<(usize, usize)>>,
}

impl Object for Meter {
    fn repr(self: &std::sync::Arc<Self>) -> minijinja::value::ObjectRepr {
        minijinja::value::ObjectRepr::Plain
    }
}

/// The variable that holds the meter: no template can spell it, so none can read or replace it.
pub(super) const METER: &str = "lctl.meter";

impl Meter {
    pub(super) fn new(limits: Limits, now: NaiveDateTime) -> Self {
        Meter {
            work_left: AtomicU64::new(limits.work_bytes),
            written: AtomicUsize::new(0),
            now,
            spans: Mutex::new(Vec::new()),
        }
    }

    /// Takes `bytes` off the account; errors when it is empty.
    pub(super) fn charge(&self, bytes: usize) -> Result<(), Error> {
        let left = self.work_left.load(Ordering::Relaxed);
        match left.checked_sub(bytes as u64) {
            Some(left) => {
                self.work_left.store(left, Ordering::Relaxed);
                Ok(())
            }
            None => Err(Fault::Limit("it takes too much memory".into()).into()),
        }
    }

    /// Returns the meter of the rendering that `state` belongs to.
    pub(super) fn of(state: &State) -> Result<std::sync::Arc<Meter>, Error> {
        let meter = state.lookup(METER).and_then(|value| value.downcast_object::<Meter>());
        meter.ok_or_else(|| Fault::Unsupported("a function called outside of a rendering".into()).into())
    }
}

/// Text that grows on a meter's account.
pub(super) struct Text<'a> {
    text: String,
    meter: &'a Meter,
}

impl<'a> Text<'a> {
    pub(super) fn new(meter: &'a Meter) -> Self {
        Text { text: String::new(), meter }
    }

    pub(super) fn push(&mut self, text: &str) -> Result<(), Error> {
        // A piece costs something, too: there can be endless empty ones.
        self.meter.charge(text.len() + 16)?;
        self.text.push_str(text);
        Ok(())
    }

    /// Appends `text` `count` times; a negative count is none.
    pub(super) fn repeat(&mut self, text: &str, count: i128) -> Result<(), Error> {
        let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
        self.meter.charge(text.len().saturating_mul(count))?;
        if !text.is_empty() {
            self.text.push_str(&text.repeat(count));
        }
        Ok(())
    }

    pub(super) fn finish(self) -> String {
        self.text
    }
}

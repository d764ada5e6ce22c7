//! How far the engine is, on stderr.

use std::cell::Cell;

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::term;
use crate::eval::Progress;

/// A bar with tokens per second and the time left; nothing where stderr is no terminal.
pub struct EngineProgress {
    bar: Option<ProgressBar>,
    has_length: Cell<bool>,
}

impl EngineProgress {
    pub fn new(is_quiet: bool) -> Self {
        let bar = (!is_quiet && term::is_interactive()).then(|| {
            let bar = ProgressBar::new(1);
            let template = "{bar:30} {pos}/{len} tokens  {msg}  {eta} left";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        EngineProgress { bar, has_length: Cell::new(false) }
    }

    pub fn show(&self, state: &Progress) {
        let Some(bar) = &self.bar else { return };
        if !self.has_length.replace(true) {
            bar.set_length(state.tokens_total as u64);
        }
        bar.set_position(state.tokens_done as u64);
        bar.set_message(format!("{:.0} tokens/s", state.tokens_per_second()));
    }

    pub fn finish(&self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }
}

//! Progress of an evaluation on stderr: a bar on a terminal, a line now and then elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::term;

/// Time between plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows tokens computed, tokens per second and the time left.
pub struct EvalProgress {
    bar: Option<ProgressBar>,
    quiet: bool,
    begun: Instant,
    said: Instant,
}

impl EvalProgress {
    pub fn new(quiet: bool) -> Self {
        let begun = Instant::now();
        let bar = (!quiet && term::is_interactive()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
            let template = "{percent:>3}% [{bar:30}] {msg}, {eta} left";
            match ProgressStyle::with_template(template) {
                Ok(style) => bar.with_style(style.progress_chars("=> ")),
                Err(_) => bar,
            }
        });
        EvalProgress { bar, quiet, begun, said: begun }
    }

    /// Shows how far it is; `more` goes behind the speed.
    pub fn show(&mut self, tokens_done: usize, tokens_total: usize, more: &str) {
        let elapsed = self.begun.elapsed().as_secs_f64();
        let speed = tokens_done as f64 / elapsed.max(1e-9);
        if let Some(bar) = &self.bar {
            bar.set_length(tokens_total as u64);
            bar.set_position(tokens_done as u64);
            bar.set_message(format!("{speed:.0} tokens/s{more}"));
        } else if !self.quiet && self.said.elapsed() >= LINE_EVERY {
            self.said = Instant::now();
            let left = (tokens_total - tokens_done.min(tokens_total)) as f64 / speed.max(1e-9);
            let share = 100.0 * tokens_done as f64 / tokens_total.max(1) as f64;
            term::say(&format!("{share:.0} %, {speed:.0} tokens/s{more}, {left:.0} s left"));
        }
    }

    /// Clears the bar and says what it came to.
    pub fn finish(&self, tokens: usize) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if !self.quiet {
            let elapsed = self.begun.elapsed().as_secs_f64();
            let speed = tokens as f64 / elapsed.max(1e-9);
            term::say(&format!("{tokens} tokens in {elapsed:.2} s ({speed:.0} tokens/s)"));
        }
    }
}

//! Progress on stderr: a bar with the time left on a terminal, a line now and then elsewhere.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::term;

/// Seconds between plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

pub enum Progress {
    Bar(ProgressBar),
    Lines { total: u64, started: Instant, state: Mutex<LineState> },
    Silent,
}

pub struct LineState {
    done: u64,
    printed: Instant,
}

impl Progress {
    /// Returns the form that suits stderr.
    pub fn new(total: u64, quiet: bool) -> Self {
        if quiet || total == 0 {
            return Progress::Silent;
        }
        let started = Instant::now();
        if !term::is_interactive() {
            let state = Mutex::new(LineState { done: 0, printed: started });
            return Progress::Lines { total, started, state };
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
        let style = ProgressStyle::with_template("{percent:>3}% [{bar:40}] {elapsed} elapsed, {eta} left");
        if let Ok(style) = style {
            bar.set_style(style.progress_chars("=> "));
        }
        Progress::Bar(bar)
    }

    /// Counts `n` more weights as written.
    pub fn advance(&self, n: u64) {
        match self {
            Progress::Bar(bar) => bar.inc(n),
            Progress::Lines { total, started, state } => {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                state.done += n;
                if state.printed.elapsed() < LINE_EVERY {
                    return;
                }
                state.printed = Instant::now();
                let share = state.done as f64 / *total as f64;
                let elapsed = started.elapsed().as_secs_f64();
                let left = elapsed * (1.0 - share) / share;
                term::say(&format!("{:>3.0} %, {elapsed:.0} s elapsed, {left:.0} s left", share * 100.0));
            }
            Progress::Silent => {}
        }
    }

    /// Clears the bar.
    pub fn finish(&self) {
        if let Progress::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

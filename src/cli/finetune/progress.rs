//! A run on stderr: a bar on a terminal, a line now and then elsewhere.

use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::term;
use crate::finetune::run::{Observer, StepEvent, ValidationEvent};

/// Time between plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows loss, learning rate, gradient norm, speed and the time left.
pub struct Progress {
    quiet: bool,
    bar: Option<ProgressBar>,
    begun: Instant,
    said: Option<Instant>,
    first: u64,
    total: u64,
    tokens: u64,
}

impl Progress {
    pub fn new(quiet: bool) -> Progress {
        Progress { quiet, bar: None, begun: Instant::now(), said: None, first: 0, total: 0, tokens: 0 }
    }

    /// Clears the bar.
    pub fn finish(&mut self) {
        self.bar.take().iter().for_each(ProgressBar::finish_and_clear);
    }

    fn say(&self, line: &str) {
        match &self.bar {
            _ if self.quiet => {}
            Some(bar) => bar.suspend(|| term::say(line)),
            None => term::say(line),
        }
    }
}

impl Observer for Progress {
    fn began(&mut self, done: u64, total: u64) {
        (self.begun, self.first, self.total) = (Instant::now(), done, total);
        if done > 0 {
            self.say(&format!("going on after step {done} of {total}"));
        }
        self.bar = (!self.quiet && term::is_interactive()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
            bar.set_position(done);
            match ProgressStyle::with_template("{pos}/{len} [{bar:24}] {msg}") {
                Ok(style) => bar.with_style(style.progress_chars("=> ")),
                Err(_) => bar,
            }
        });
    }

    fn step(&mut self, event: &StepEvent) {
        self.tokens += event.tokens;
        let elapsed = self.begun.elapsed().as_secs_f64().max(1e-9);
        let speed = self.tokens as f64 / elapsed;
        let (done, left) = (event.step - self.first, self.total.saturating_sub(event.step));
        let seconds_left = elapsed / done.max(1) as f64 * left as f64;
        let shown = format!(
            "loss {:.4}, lr {:.2e}, grad norm {:.3}, {speed:.0} tokens/s, {} left",
            event.loss,
            event.lr,
            event.grad_norm,
            duration(seconds_left)
        );
        let is_last = left == 0;
        if let Some(bar) = &self.bar {
            bar.set_position(event.step);
            bar.set_message(shown);
        } else if is_last || self.said.is_none_or(|said| said.elapsed() >= LINE_EVERY) {
            self.said = Some(Instant::now());
            self.say(&format!("step {}/{}: {shown}", event.step, self.total));
        }
    }

    fn validated(&mut self, event: &ValidationEvent) {
        let accuracy = event.accuracy.map(|share| format!(", {:.1} % of pairs right", 100.0 * share));
        self.say(&format!(
            "step {}/{}: validation loss {:.4}{}",
            event.step,
            self.total,
            event.loss,
            accuracy.unwrap_or_default()
        ));
    }

    fn saved(&mut self, checkpoint: &Path) {
        if self.bar.is_none() {
            self.say(&format!("wrote {}", term::printable(&checkpoint.display().to_string())));
        }
    }

    fn note(&mut self, note: &str) {
        self.say(&format!("note: {}", term::printable(note)));
    }
}

/// Returns a time as people say it: `42 s`, `3 min 20 s`, `2 h 05 min`.
pub fn duration(seconds: f64) -> String {
    // negative and NaN become 0
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        assert_eq!(
            [0.4, 59.6, 200.0, 7500.0].map(duration),
            ["0 s", "1 min 00 s", "3 min 20 s", "2 h 05 min"]
        );
    }
}

//! How a pull is shown: a bar on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};

use super::term;
use crate::hub::{Event, Pulled, SkipReason};

/// Shows the events of a pull on stderr.
pub struct PullProgress {
    id: String,
    bar: Option<ProgressBar>,
    /// Files left on the hub because nothing asked for them.
    unselected: usize,
    unselected_shown: bool,
    /// Whether files that stay on the hub are mentioned.
    mentions_skipped: bool,
    is_quiet: bool,
}

impl PullProgress {
    pub fn new(id: &str, is_quiet: bool) -> Self {
        PullProgress {
            id: id.to_owned(),
            bar: None,
            unselected: 0,
            unselected_shown: false,
            mentions_skipped: true,
            is_quiet,
        }
    }

    /// Of a single file of a repository: nobody asked for the others.
    pub fn of_a_file(id: &str, is_quiet: bool) -> Self {
        PullProgress { mentions_skipped: false, ..PullProgress::new(id, is_quiet) }
    }

    /// Shows one event.
    pub fn show(&mut self, event: Event) {
        if self.is_quiet {
            return;
        }
        match event {
            Event::Skipped { .. } if !self.mentions_skipped => {}
            Event::Resolved { commit } => term::say(&format!("{}: commit {commit}", self.id)),
            Event::Warning { message } => term::say(&format!("warning: {message}")),
            Event::Skipped { path, bytes, reason } => self.skipped(&path, bytes, reason),
            Event::Cached { path, bytes } => {
                self.mention_unselected();
                term::say(&format!("{} ({}): cached", term::printable(&path), term::bytes(bytes)));
            }
            Event::Started { path, bytes, have } => self.started(&path, bytes, have),
            Event::Received { bytes } => self.bar.iter().for_each(|bar| bar.inc(bytes)),
            Event::Retrying { path, at, reason } => self.retrying(&path, at, &reason),
            Event::Finished { path, bytes } => {
                self.bar.take().iter().for_each(ProgressBar::finish_and_clear);
                term::say(&format!("{} ({}): digest verified", term::printable(&path), term::bytes(bytes)));
            }
        }
    }

    /// Says what the whole pull came to.
    pub fn finish(&mut self, pulled: &Pulled) {
        if self.is_quiet {
            return;
        }
        self.mention_unselected();
        let total: u64 = pulled.files.iter().map(|file| file.bytes).sum();
        term::say(&format!(
            "{}: {} files, {}, of which {} received now",
            self.id,
            pulled.files.len(),
            term::bytes(total),
            term::bytes(pulled.received_bytes)
        ));
    }

    fn skipped(&mut self, path: &str, bytes: u64, reason: SkipReason) {
        let why = match reason {
            SkipReason::Pickle => "a pickle file runs code when it is loaded",
            SkipReason::Excluded => "--exclude matches it",
            SkipReason::Duplicate => "the model*.safetensors files hold the same weights",
            SkipReason::NotSelected => {
                self.unselected += 1;
                return;
            }
        };
        term::say(&format!("skipped {} ({}): {why}", term::printable(path), term::bytes(bytes)));
    }

    fn mention_unselected(&mut self) {
        if self.unselected > 0 && !self.unselected_shown {
            term::say(&format!(
                "skipped {} files that running the model does not need or that no pattern chose",
                self.unselected
            ));
            self.unselected_shown = true;
        }
    }

    fn started(&mut self, path: &str, bytes: u64, have: u64) {
        self.mention_unselected();
        if have > 0 {
            let (have, bytes) = (term::bytes(have), term::bytes(bytes));
            term::say(&format!("{}: resuming after {have} of {bytes}", term::printable(path)));
        }
        if term::is_interactive() {
            let colour = if term::has_colour() { "cyan" } else { "" };
            let template = format!(
                "{{msg}} {{bar:30.{colour}}} {{decimal_bytes}}/{{decimal_total_bytes}} {{decimal_bytes_per_sec}} {{eta}}"
            )
            .replace(".}", "}");
            let bar = ProgressBar::new(bytes).with_message(term::printable(path));
            if let Ok(style) = ProgressStyle::with_template(&template) {
                bar.set_style(style);
            }
            bar.set_position(have);
            self.bar = Some(bar);
        }
    }

    fn retrying(&mut self, path: &str, at: u64, reason: &str) {
        let line = format!("{}: {reason}; continuing at byte {at}", term::printable(path));
        match &self.bar {
            Some(bar) => bar.suspend(|| term::say(&line)),
            None => term::say(&line),
        }
        self.bar.iter().for_each(|bar| bar.set_position(at));
    }
}

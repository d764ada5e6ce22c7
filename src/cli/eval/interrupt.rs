//! Ctrl-C during an evaluation: it ends at once, leaves no half-written file, and says how to go on.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use crate::cli::term;
use crate::tensor::cleanup_partial_files;

/// What the handler of Ctrl-C knows.
#[derive(Clone, Default)]
pub struct Interrupt {
    journal: Arc<OnceLock<PathBuf>>,
    temporary: Arc<OnceLock<PathBuf>>,
}

impl Interrupt {
    /// Ends the process at Ctrl-C (SIGTERM, SIGHUP) with status 130.
    ///
    /// The journal's lines are complete but perhaps the last, which a resumed run leaves out.
    pub fn install() -> Interrupt {
        let interrupt = Interrupt::default();
        let (journal, temporary) = (Arc::clone(&interrupt.journal), Arc::clone(&interrupt.temporary));
        // a handler can only be there already if a library user set one: theirs then decides
        let _ = ctrlc::set_handler(move || {
            cleanup_partial_files();
            // what it held cannot be told from results any more, so a failure has no consequence
            temporary.get().into_iter().for_each(|dir| drop(std::fs::remove_dir_all(dir)));
            term::say(&match journal.get() {
                Some(path) if temporary.get().is_none() => format!(
                    "\ninterrupted; the answers so far are in {}: the same command with --resume goes on",
                    term::printable(&path.display().to_string())
                ),
                _ => "\ninterrupted".to_owned(),
            });
            std::process::exit(130);
        });
        interrupt
    }

    /// Names a directory that goes when the run is interrupted, journal and all.
    pub fn set_temporary(&self, path: PathBuf) {
        // there is one in a run
        let _ = self.temporary.set(path);
    }

    /// Names the journal that a resumed run can go on with.
    pub fn set_journal(&self, path: PathBuf) {
        // there is one journal in a run
        let _ = self.journal.set(path);
    }
}

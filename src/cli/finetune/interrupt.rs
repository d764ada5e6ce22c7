//! Ctrl-C, SIGTERM and SIGHUP: while a run trains a wish to end well, before and after that an end of what is being written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::tensor::cleanup_partial_files;

/// Whether the user wants an end. A second signal ends the process at once.
#[derive(Clone, Default)]
pub struct Interrupt {
    is_asked: Arc<AtomicBool>,
    is_training: Arc<AtomicBool>,
}

impl Interrupt {
    /// Listens from here on.
    pub fn install() -> Interrupt {
        let interrupt = Interrupt::default();
        let handler = {
            let Interrupt { is_asked, is_training } = interrupt.clone();
            move || {
                let is_second = is_asked.swap(true, Ordering::SeqCst);
                // a run that trains still writes how far it came
                if is_second || !is_training.load(Ordering::SeqCst) {
                    cleanup_partial_files();
                }
                if is_second {
                    std::process::exit(130);
                }
            }
        };
        // a handler can only be there already if a library user set one: theirs then decides
        let _ = ctrlc::set_handler(handler);
        interrupt
    }

    /// Returns the flag that the first signal sets.
    pub fn flag(&self) -> &AtomicBool {
        &self.is_asked
    }

    pub fn is_asked(&self) -> bool {
        self.is_asked.load(Ordering::SeqCst)
    }

    /// Says whether the run trains from here on. While it does not, a signal takes away unfinished files and forbids new ones,
    /// which ends what writes them.
    pub fn set_training(&self, is_training: bool) {
        self.is_training.store(is_training, Ordering::SeqCst);
    }
}

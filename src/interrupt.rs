//! Stopping on Ctrl-C or SIGTERM: the first one asks long jobs to save and end, a second one ends the program at once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::error::{Error, Result};

/// The exit code of a program that the user stopped (128 + SIGINT).
pub const EXIT_CODE: u8 = 130;

/// Whether the user has asked to stop. Clones share one answer.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// An interrupt that Ctrl-C, SIGTERM and SIGHUP raise; once in a process.
    ///
    /// # Errors
    /// If the signals are already handled.
    pub fn from_signals() -> Result<Self> {
        let interrupt = Self::default();
        let raised = interrupt.clone();
        ctrlc::set_handler(move || {
            if raised.0.swap(true, Ordering::SeqCst) {
                // A second signal means at once; files are only ever written whole.
                std::process::exit(EXIT_CODE.into());
            }
        })
        .map_err(|error| Error::invalid(format!("cannot listen for Ctrl-C: {error}")))?;
        Ok(interrupt)
    }

    /// Asks to stop, as a signal does.
    pub fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// An error if the user has asked to stop; `saved` says what is kept and how to go on.
    ///
    /// # Errors
    /// [`Error::Interrupted`] if so.
    pub fn check(&self, saved: &str) -> Result<()> {
        if self.is_raised() { Err(Error::Interrupted { saved: saved.to_owned() }) } else { Ok(()) }
    }

    /// Whether the user has asked to stop.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

//! Handles Ctrl-C, SIGTERM and SIGHUP: the first signal is acknowledged immediately, whatever the program is doing,
//! and requests that it save and exit; a second one exits immediately. Signals that arrive together count as one, because
//! `timeout` and schedulers signal a process and then its group.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    error::{Error, Result},
    files::temporary::{clean_up, is_untouched},
};

/// Exit code of a program that the user stopped (128 + SIGINT).
pub(crate) const EXIT_CODE: u8 = 130;

/// The acknowledgment of a signal if the current step is finished first.
pub(crate) const ACKNOWLEDGMENT: &str =
    "interrupted: finishing the running step; press Ctrl-C again to stop at once";

/// The report of a command that was interrupted before it wrote anything.
const UNTOUCHED: &str = "nothing was written";

/// Message of a run interrupted before its first step.
pub(crate) const NO_STEP: &str = "no step had been done yet, so there was nothing to save";

/// Message of a resumed run interrupted before its first new step.
pub(crate) const AS_IT_WAS: &str = "the run is unchanged; run the same command again";

/// How long the exit waits for its last line to be printed; the terminal may be blocked.
const PATIENCE: Duration = Duration::from_secs(1);

/// Signals within this time of the first one belong to it.
const TOGETHER: Duration = Duration::from_millis(200);

/// Whether the user requested to stop. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<State>);

#[derive(Debug, Default)]
struct State {
    raised: AtomicBool,
    /// Set during work that only reads and can be aborted at any point: what is saved of the job, and how to continue.
    only_reading: Mutex<Option<String>>,
}

impl State {
    fn only_reading(&self) -> MutexGuard<'_, Option<String>> {
        self.only_reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interrupt {
    /// Creates an interrupt that is raised by Ctrl-C, SIGTERM and SIGHUP; at most one per process. `tell` prints a
    /// line, on a separate thread.
    ///
    /// # Errors
    /// If a signal handler is already installed.
    pub fn from_signals(tell: impl Fn(&str) + Clone + Send + 'static) -> Result<Self> {
        let interrupt = Self::default();
        let state = Arc::clone(&interrupt.0);
        let mut first: Option<Instant> = None;
        listen(move || {
            if first.is_some_and(|first| first.elapsed() < TOGETHER) {
                return;
            }
            first.get_or_insert_with(Instant::now);
            if state.raised.swap(true, Ordering::SeqCst) {
                // A second signal exits immediately; files are always written atomically.
                clean_up();
                std::process::exit(EXIT_CODE.into());
            }
            // While this lock is held, no work that writes can start.
            let only_reading = state.only_reading();
            let saved = only_reading.clone().or_else(|| is_untouched().then(|| UNTOUCHED.to_owned()));
            let at_once = saved.is_some();
            let sentence = match saved {
                Some(saved) => Error::Interrupted { saved }.to_string(),
                None => ACKNOWLEDGMENT.to_owned(),
            };
            // A blocked terminal must not delay the handling of the second signal.
            let (done, printed) = mpsc::channel();
            let (line, print) = (sentence.clone(), tell.clone());
            let started = thread::Builder::new().spawn(move || {
                print(&line);
                let _nobody_waits = done.send(());
            });
            if started.is_err() {
                tell(&sentence);
            }
            if at_once {
                let _ended_either_way = printed.recv_timeout(PATIENCE);
                clean_up();
                std::process::exit(EXIT_CODE.into());
            }
        })?;
        Ok(interrupt)
    }

    /// Requests to stop, like a signal.
    pub fn raise(&self) {
        self.0.raised.store(true, Ordering::SeqCst);
    }

    /// An error if the user requested to stop; `saved` says what is saved and how to continue.
    ///
    /// # Errors
    /// [`Error::Interrupted`] if so.
    pub fn check(&self, saved: &str) -> Result<()> {
        if self.is_raised() { Err(Error::Interrupted { saved: saved.to_owned() }) } else { Ok(()) }
    }

    /// Whether the user requested to stop.
    pub fn is_raised(&self) -> bool {
        self.0.raised.load(Ordering::SeqCst)
    }

    /// Runs work that writes nothing: a signal exits the program in the middle of it, so the work need not call
    /// [`check`](Self::check). `saved` says what is saved and how to continue.
    ///
    /// # Errors
    /// The error of the work; [`Error::Interrupted`] if the user requested to stop before or during it.
    pub(crate) fn while_reading<T>(&self, saved: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = {
            let mut only_reading = self.0.only_reading();
            self.check(saved)?;
            only_reading.replace(saved.to_owned())
        };
        let reading = Reading { state: &self.0, before };
        let result = work();
        drop(reading);
        self.check(saved)?;
        result
    }
}

/// Makes a failed allocation exit with code 1 instead of SIGABRT; by then the standard library has printed the
/// requested size. This applies to every abort: the cause is printed, but no core dump is written.
#[cfg(unix)]
pub(crate) fn exit_on_failed_allocation() {
    let always = Arc::new(AtomicBool::new(true));
    // If this fails, the signal still ends the program.
    let _registered =
        signal_hook::flag::register_conditional_shutdown(signal_hook::consts::SIGABRT, 1, always);
}

/// Does nothing, as there are no signals.
#[cfg(not(unix))]
pub(crate) fn exit_on_failed_allocation() {}

/// Calls `heard` on a separate thread for every Ctrl-C, SIGTERM and SIGHUP. SIGHUP is not handled if the program was
/// started with it ignored, for example by `nohup`, so that a job outlives its terminal.
#[cfg(unix)]
fn listen(mut heard: impl FnMut() + Send + 'static) -> Result<()> {
    use signal_hook::{
        consts::{SIGHUP, SIGINT, SIGTERM},
        iterator::Signals,
    };
    let failed = |error: std::io::Error| Error::invalid(format!("cannot listen for Ctrl-C: {error}"));
    let mut handled = vec![SIGINT, SIGTERM];
    handled.extend((!is_ignored(SIGHUP)).then_some(SIGHUP));
    let mut signals = Signals::new(handled).map_err(failed)?;
    let thread = thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || signals.forever().for_each(|_| heard())).map(drop).map_err(failed)
}

/// Whether the process ignores a signal; `false` if the system does not report it.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

/// Calls `heard` on a separate thread for every Ctrl-C.
#[cfg(not(unix))]
fn listen(heard: impl FnMut() + Send + 'static) -> Result<()> {
    ctrlc::set_handler(heard).map_err(|error| Error::invalid(format!("cannot listen for Ctrl-C: {error}")))
}

/// A scope of work that only reads.
struct Reading<'a> {
    state: &'a State,
    /// The state before the scope.
    before: Option<String>,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        *self.state.only_reading() = self.before.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_ends_with_what_was_found_or_with_the_interrupt() {
        let interrupt = Interrupt::default();
        assert_eq!(interrupt.while_reading("nothing", || Ok(3)).unwrap(), 3);
        let nested = interrupt.while_reading("outer", || {
            interrupt.while_reading("inner", || Ok(()))?;
            assert_eq!(interrupt.0.only_reading().as_deref(), Some("outer"));
            Ok(())
        });
        assert!(nested.is_ok() && interrupt.0.only_reading().is_none());
        let failed = interrupt.while_reading::<()>("nothing", || Err(Error::invalid("broken")));
        assert_eq!(failed.unwrap_err().to_string(), "broken");
        let meanwhile = interrupt.while_reading("nothing was written", || {
            interrupt.raise();
            Ok(3)
        });
        assert_eq!(meanwhile.unwrap_err().to_string(), "interrupted; nothing was written");
        let after = interrupt.while_reading::<()>("nothing was written", || unreachable!("it is too late"));
        assert!(matches!(after, Err(Error::Interrupted { .. })));
    }
}

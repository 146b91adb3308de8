//! Work that is captured once and replayed many times.

use super::{device::Device, driver::Recording};
use crate::error::{Error, Result};

/// Captured work of a device; see [`Device::capture`].
///
/// Dropping it waits for the device and frees the memory that it kept.
#[derive(Debug)]
pub struct Graph {
    device: Device,
    number: u64,
    recording: Recording,
}

impl Device {
    /// Records the launches, products, copies within the device and clears that `work` queues, instead of running them.
    /// [`Graph::replay`] runs them all at the cost of one launch.
    ///
    /// Run the same work once before capturing it, so that everything it needs is loaded.
    ///
    /// A replay uses the same addresses. The graph therefore keeps, as long as it lives, every buffer that existed when
    /// the capture began, even if it is dropped (it takes part in the work only if `work` uses it), and all memory that
    /// `work` allocates. Buffers that `work` drops are reused within the capture. Buffers among the results are
    /// uninitialized until the first replay, and each replay overwrites them; they may be dropped.
    ///
    /// Values that the work computes on the host (arguments by value, sizes) are captured as they are now.
    ///
    /// # Errors
    /// Those of `work`. Uploads, downloads, events and waiting cannot be captured, nor can another capture.
    pub fn capture<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<(Graph, R)> {
        self.refuse_in_capture("a second recording")?;
        let mut recorder = Recorder { device: self, number: 0, recording: None, kept: false };
        {
            let mut arena = self.arena();
            self.driver().begin_recording()?;
            recorder.number = arena.begin_recording();
        }
        let result = work();
        recorder.end()?;
        let result = result?;
        let recording = recorder.recording.take().ok_or_else(|| self.failure("nothing was recorded"))?;
        recorder.kept = true;
        Ok((Graph { device: self.clone(), number: recorder.number, recording }, result))
    }

    /// Whether work is being captured.
    pub(crate) fn is_recording(&self) -> bool {
        self.arena().is_recording()
    }

    fn failure(&self, message: &str) -> Error {
        Error::Device { device: self.facts().name.clone(), message: message.to_owned() }
    }

    /// Returns an error if work is being captured.
    pub(super) fn refuse_in_capture(&self, what: &str) -> Result<()> {
        if self.arena().is_recording() {
            return Err(
                self.failure(&format!("{what} cannot be recorded: do it before or after the recording"))
            );
        }
        Ok(())
    }
}

/// Ends a capture, however the work ends.
struct Recorder<'a> {
    device: &'a Device,
    number: u64,
    recording: Option<Recording>,
    kept: bool,
}

impl Recorder<'_> {
    fn end(&mut self) -> Result<()> {
        let mut arena = self.device.arena();
        if arena.is_recording() {
            arena.end_recording();
            self.recording = Some(self.device.driver().end_recording()?);
        }
        Ok(())
    }
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        if !self.kept {
            // The error that matters is that of the work.
            let _ = self.end();
            let mut arena = self.device.arena();
            let freed = arena.remove_graph(self.number);
            self.device.take_back(&mut arena, freed);
        }
    }
}

impl Graph {
    /// Runs the work again.
    ///
    /// # Errors
    /// If the device fails; in [`Device::capture`].
    pub fn replay(&self) -> Result<()> {
        self.device.refuse_in_capture("a replay")?;
        // SAFETY: every call met its obligations when it was captured, and the arena has kept all memory since.
        unsafe { self.device.driver().replay(&self.recording) }
    }

    /// The device that it belongs to.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // A failure here is reported by the next use of the device.
        let _ = self.device.driver().synchronize();
        let mut arena = self.device.arena();
        let freed = arena.remove_graph(self.number);
        self.device.take_back(&mut arena, freed);
    }
}

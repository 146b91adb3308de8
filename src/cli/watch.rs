//! Progress of a training run: a progress bar on the terminal, and TensorBoard events in the run directory.

use std::{path::PathBuf, time::Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    jobs::progress::{Metrics, Progress},
    report::event_file::EventFile,
};

/// A bar on stderr, which indicatif hides if that is not a terminal.
fn bar(template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    // The templates are constants; an invalid one would leave the default bar.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Shows the progress of counted work: scoring, and the preparation of training.
pub struct Counted {
    bar: ProgressBar,
    what: String,
}

impl Counted {
    /// A bar that appears with the first count.
    pub fn new() -> Self {
        Self {
            bar: bar("{msg} {wide_bar} {human_pos}/{human_len}, {per_sec}, {eta} left"),
            what: String::new(),
        }
    }
}

impl Progress for Counted {
    fn counted(&mut self, what: &str, done: u64, total: u64) {
        if self.what != what {
            what.clone_into(&mut self.what);
            self.bar.reset();
            self.bar.set_message(self.what.clone());
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
        if done >= total {
            self.bar.finish_and_clear();
        }
    }
}

impl Default for Counted {
    fn default() -> Self {
        Self::new()
    }
}

/// Shows the progress of a training run.
pub struct Watch {
    folder: PathBuf,
    events: Option<EventFile>,
    failed: bool,
    preparing: Counted,
    bar: ProgressBar,
    begun: Option<(Instant, u64)>,
    samples: u64,
}

impl Watch {
    /// Watches the run in `folder`, and writes events there.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            events: None,
            failed: false,
            preparing: Counted::new(),
            bar: bar("step {human_pos}/{human_len} {wide_bar} {msg}, {eta} left"),
            begun: None,
            samples: 0,
        }
    }

    /// Writes events; a failure ends them with a warning, and the run continues.
    fn write_events(&mut self, step: u64, scalars: &[(&str, f64)]) {
        if self.failed {
            return;
        }
        let mut write = || {
            let events = match &mut self.events {
                Some(events) => events,
                none => none.insert(EventFile::resume(&self.folder, step)?),
            };
            for (tag, value) in scalars {
                events.scalar(tag, *value, step)?;
            }
            events.flush()
        };
        if let Err(error) = write() {
            tracing::warn!("no more TensorBoard events: {error}");
            self.failed = true;
        }
    }

    /// Advances the bar and returns the images/s so far.
    fn advance(&mut self, step: u64, total: u64, samples: usize) -> f64 {
        // The first step only starts the clock, because its duration is unknown.
        let (begun, first) = *self.begun.get_or_insert_with(|| (Instant::now(), step));
        let seconds = begun.elapsed().as_secs_f64();
        let rate = if step > first && seconds > 0.0 {
            self.samples += samples as u64;
            self.samples as f64 / seconds
        } else {
            0.0
        };
        self.bar.set_length(total);
        self.bar.set_position(step + 1);
        if step + 1 == total {
            self.bar.finish_and_clear();
        }
        rate
    }
}

impl Progress for Watch {
    fn counted(&mut self, what: &str, done: u64, total: u64) {
        self.preparing.counted(what, done, total);
    }

    fn note(&mut self, sentence: &str) {
        self.bar.suspend(|| tracing::info!("{sentence}"));
    }

    fn step(&mut self, step: u64, total: u64, samples: usize, metrics: &Metrics) {
        let rate = self.advance(step, total, samples);
        let Metrics { summary, values } = metrics;
        self.bar.set_message(format!("{summary}, {rate:.1} images/s"));
        self.write_events(step, &[&values[..], &[("speed/images_per_second", rate)]].concat());
    }

    fn validated(&mut self, steps: u64, metrics: &Metrics) {
        self.note(&format!("after step {steps}: {}", metrics.summary));
        self.write_events(steps, &metrics.values);
    }
}

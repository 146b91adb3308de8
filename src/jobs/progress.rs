//! Progress of long jobs: completed parts, metrics of training steps, and notes for the user.

/// Observes a job, for example with a progress bar or an event file. `()` ignores everything.
///
/// Called on the thread that does the work.
pub trait Progress {
    /// `done` of `total` units of `what` are done.
    fn counted(&mut self, what: &str, done: u64, total: u64);

    /// A note for the user, as one sentence.
    fn note(&mut self, _sentence: &str) {}

    /// Training step `step` of `total`, counted from 0, is done; it had `samples` samples.
    fn step(&mut self, _step: u64, _total: u64, _samples: usize, _metrics: &Metrics) {}

    /// The model was evaluated on the validation set after `steps` steps.
    fn validated(&mut self, _steps: u64, _metrics: &Metrics) {}
}

impl Progress for () {
    fn counted(&mut self, _what: &str, _done: u64, _total: u64) {}
}

/// Metrics of a training step or a validation.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// A few values as text.
    pub summary: String,
    /// All values, with their tags in an event file.
    pub values: Vec<(&'static str, f64)>,
}

impl Metrics {
    /// The value of a tag, if present.
    pub fn value(&self, tag: &str) -> Option<f64> {
        self.values.iter().find(|(name, _)| *name == tag).map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_by_its_full_tag() {
        let values = vec![("loss/validation_tail", 2.0), ("loss/validation", 1.0)];
        let metrics = Metrics { summary: String::new(), values };
        assert_eq!(metrics.value("loss/validation"), Some(1.0));
        assert_eq!(metrics.value("loss/validation_tail"), Some(2.0));
        assert_eq!(metrics.value("loss"), None);
    }
}

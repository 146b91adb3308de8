//! What a long job says while it runs: how much of it is done, what its training steps measured, and what the user should know.

/// Follows a job from outside: a progress bar, an event file. `()` follows nothing.
///
/// A job calls it on the thread that does the work.
pub trait Progress {
    /// `done` of `total` parts of `what` are done.
    fn counted(&mut self, what: &str, done: u64, total: u64);

    /// Something the user should know, in one sentence.
    fn note(&mut self, _sentence: &str) {}

    /// The training step `step` of `total`, counted from 0, is done on so many samples.
    fn step(&mut self, _step: u64, _total: u64, _samples: usize, _metrics: &Metrics) {}

    /// The model was measured on the validation set after so many steps.
    fn validated(&mut self, _steps: u64, _metrics: &Metrics) {}
}

impl Progress for () {
    fn counted(&mut self, _what: &str, _done: u64, _total: u64) {}
}

/// What a training step or a validation measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// A few of the values in words.
    pub summary: String,
    /// All values, under the tags that they have in an event file.
    pub values: Vec<(&'static str, f64)>,
}

impl Metrics {
    /// The value of a tag, if it was measured.
    pub fn value(&self, tag: &str) -> Option<f64> {
        self.values.iter().find(|(name, _)| *name == tag).map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_by_its_whole_tag() {
        let values = vec![("loss/validation_tail", 2.0), ("loss/validation", 1.0)];
        let metrics = Metrics { summary: String::new(), values };
        assert_eq!(metrics.value("loss/validation"), Some(1.0));
        assert_eq!(metrics.value("loss/validation_tail"), Some(2.0));
        assert_eq!(metrics.value("loss"), None);
    }
}

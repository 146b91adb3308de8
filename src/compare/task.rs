//! The progress of a part of a comparison, under its name.

use crate::jobs::progress::{Metrics, Progress};

/// A part of a comparison: training a rater, or a model. Its steps are counted under its name.
pub(super) struct Task<'a> {
    pub(super) name: String,
    pub(super) progress: &'a mut dyn Progress,
}

impl Task<'_> {
    /// A progress that counts everything under the task's name.
    pub(super) fn renaming(&mut self) -> Renaming<'_> {
        Renaming { name: &self.name, progress: self.progress }
    }
}

impl Progress for Task<'_> {
    fn counted(&mut self, what: &str, done: u64, total: u64) {
        self.progress.counted(what, done, total);
    }

    fn note(&mut self, sentence: &str) {
        tracing::info!("{}: {sentence}", self.name);
    }

    fn step(&mut self, step: u64, total: u64, _samples: usize, _metrics: &Metrics) {
        self.progress.counted(&self.name, step + 1, total);
    }
}

/// See [`Task::renaming`].
pub(super) struct Renaming<'a> {
    name: &'a str,
    progress: &'a mut dyn Progress,
}

impl Progress for Renaming<'_> {
    fn counted(&mut self, _what: &str, done: u64, total: u64) {
        self.progress.counted(self.name, done, total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Kept(Vec<String>);

    impl Progress for Kept {
        fn counted(&mut self, what: &str, done: u64, total: u64) {
            self.0.push(format!("{what} {done}/{total}"));
        }
    }

    #[test]
    fn steps_are_counted_under_the_name_and_counts_under_theirs() {
        let mut kept = Kept(Vec::new());
        let mut task = Task { name: "seed 1".to_owned(), progress: &mut kept };
        task.counted("encoding", 1, 4);
        task.step(0, 2, 8, &Metrics { summary: String::new(), values: Vec::new() });
        task.renaming().counted("scoring", 3, 5);
        assert_eq!(kept.0, ["encoding 1/4", "seed 1 1/2", "seed 1 3/5"]);
    }
}

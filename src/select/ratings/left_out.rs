//! Rows of a ratings table that are left out and counted.

use std::path::Path;

/// Which rows of a ratings table are left out and counted, instead of being refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RatingsOptions {
    /// Rows that cannot be read: too many or too few fields, unbalanced quotes, no UTF-8, no id, a rating that is no number.
    pub skip_bad_rows: bool,
    /// Rows without a rating: NaN, null or an empty field.
    pub drop_nan: bool,
}

/// How many rows were left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Rows that could not be read.
    pub malformed: u64,
    /// Rows without a rating.
    pub without_rating: u64,
    /// What is wrong with the first that could not be read.
    pub first_malformed: Option<String>,
}

/// Why a row is not kept.
pub(super) enum Verdict {
    Malformed(String),
    Missing(String),
}

impl LeftOut {
    /// Counts a row that is left out; in text it is that of a line.
    ///
    /// # Errors
    /// What is wrong with it, if it is to be refused.
    pub(super) fn count(
        &mut self,
        verdict: Verdict,
        options: RatingsOptions,
        line: Option<u64>,
    ) -> Result<(), String> {
        match verdict {
            Verdict::Malformed(message) if options.skip_bad_rows => {
                self.malformed += 1;
                self.first_malformed.get_or_insert_with(|| match line {
                    Some(line) => format!("line {line}: {message}"),
                    None => message,
                });
            }
            Verdict::Missing(_) if options.drop_nan => self.without_rating += 1,
            Verdict::Malformed(message) | Verdict::Missing(message) => return Err(message),
        }
        Ok(())
    }

    pub(super) fn add(&mut self, other: Self) {
        self.malformed += other.malformed;
        self.without_rating += other.without_rating;
        self.first_malformed = self.first_malformed.take().or(other.first_malformed);
    }

    /// All of them.
    pub(crate) fn total(&self) -> u64 {
        self.malformed + self.without_rating
    }

    /// Warns of what was left out of `path`.
    pub(crate) fn warn(&self, path: &Path) {
        let path = path.display();
        if let Some(first) = &self.first_malformed {
            tracing::warn!("{path}: {} malformed rows are left out; the first: {first}", self.malformed);
        }
        if self.without_rating > 0 {
            tracing::warn!("{path}: {} rows without a rating are left out", self.without_rating);
        }
    }
}

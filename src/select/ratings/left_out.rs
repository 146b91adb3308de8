//! Rows of a ratings table that are skipped and counted.

use std::path::Path;

/// Which rows of a ratings table are skipped and counted instead of being an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RatingsOptions {
    /// Malformed rows: too many or too few fields, unbalanced quotes, not UTF-8, no id, or a rating that is not a
    /// finite value.
    pub skip_bad_rows: bool,
    /// Rows without a rating: NaN, null or an empty field.
    pub drop_nan: bool,
}

/// Number of skipped rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Malformed rows.
    pub malformed: u64,
    /// Rows without a rating.
    pub without_rating: u64,
    /// The error of the first malformed row.
    pub first_malformed: Option<String>,
}

/// A number of rows, with its noun.
fn rows(count: u64) -> String {
    format!("{count} {}", if count == 1 { "row" } else { "rows" })
}

/// Why a row is not kept.
pub(super) enum Verdict {
    Malformed(String),
    Missing(String),
}

impl LeftOut {
    /// Counts a skipped row; `line` is its line in a text file.
    ///
    /// # Errors
    /// The message to report, if such rows are not to be skipped.
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

    /// Total number of skipped rows.
    pub(crate) fn total(&self) -> u64 {
        self.malformed + self.without_rating
    }

    /// Warns about the skipped rows of `path`.
    pub(crate) fn warn(&self, path: &Path) {
        let path = path.display();
        if let Some(first) = &self.first_malformed {
            tracing::warn!(
                "{path}: skipped {} that cannot be parsed; the first is {first}",
                rows(self.malformed)
            );
        }
        if self.without_rating > 0 {
            tracing::warn!("{path}: skipped {} without a rating", rows(self.without_rating));
        }
    }
}

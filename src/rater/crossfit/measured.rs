//! Looks up the ratings that a run measured by cross-fitting.

use std::{
    collections::HashMap,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{COLUMNS, HeldOut, normal::normal_share};
use crate::{
    engine::Tensor,
    error::{Error, Result},
    files::sha256_of_file,
    tokens::encoded::record_digest,
    training::{checkpoint::Checkpoint, run_directory::GAINS, trained::Named},
};

/// The ratings of a run's training records, by the records' digests.
pub(crate) struct MeasuredRatings {
    of: HashMap<u64, f64>,
    /// Records that were found and not found.
    found: [AtomicU64; 2],
    /// SHA-256 of the table.
    pub(crate) digest: String,
}

impl MeasuredRatings {
    /// Reads the table of a run.
    ///
    /// # Errors
    /// If it is missing, damaged or cannot be read.
    pub(crate) fn of_run(named: &Named) -> Result<Self> {
        Checkpoint::run_files(&named.folder()?)?.expect_recordings(&named.run)?;
        Self::read(&named.run)
    }

    fn read(run: &Path) -> Result<Self> {
        let path = run.join(GAINS);
        let mut of = HashMap::new();
        each_row(&path, |row| {
            let digest = u64::from_str_radix(row.get(COLUMNS.len())?, 16).ok()?;
            of.insert(digest, row.get(1)?.parse().ok()?);
            Some(())
        })?;
        Ok(Self { of, found: Default::default(), digest: sha256_of_file(&path)? })
    }

    /// Warns if the rater rated some of the records.
    pub(crate) fn warn_of_others(&self) {
        let [known, others] = self.found.each_ref().map(|count| count.load(Ordering::Relaxed));
        if others > 0 {
            tracing::warn!(
                "{others} of {} records are not among those of the run (another id, caption or image), so the rater rated \
                 them; its ratings are less spread than measured ones, so do not select from both together, or rate all with \
                 --by-rater",
                known + others
            );
        }
    }

    /// The measured rating of each record of codes `[B, L]`; that of a record that is not in the table is the normal
    /// distribution's share below the rater's logit, which estimates the normal score of the same percentile.
    ///
    /// # Errors
    /// If the codes are not `u32`.
    pub(crate) fn replace<'r>(
        &self,
        logits: Vec<f64>,
        codes: &Tensor,
        records: impl Iterator<Item = (&'r str, &'r str)>,
    ) -> Result<Vec<f64>> {
        let rows = codes.as_slice::<u32>()?.chunks(codes.dim(1).max(1));
        let rated = logits.into_iter().zip(rows.zip(records)).map(|(logit, (codes, (id, caption)))| {
            // A run's codes are 16 bits wide.
            let codes = codes.iter().map(|&code| u16::try_from(code).unwrap_or(u16::MAX));
            let known = self.of.get(&record_digest(id, caption, codes));
            self.found[usize::from(known.is_none())].fetch_add(1, Ordering::Relaxed);
            known.copied().unwrap_or_else(|| normal_share(logit))
        });
        Ok(rated.collect())
    }
}

/// Reads the measurements of a run's training records, by their ids.
///
/// # Errors
/// If the table is missing, damaged or cannot be read.
pub(crate) fn read_measured(path: &Path) -> Result<Vec<(String, HeldOut)>> {
    let mut found = Vec::new();
    each_row(path, |row| {
        let number = |at: usize| row.get(at)?.parse().ok();
        let measured = HeldOut {
            fold: row.get(2)?.parse().ok()?,
            loss: number(3)?,
            gain: number(4)?,
            gain_std: number(5)?,
            gain_empty: number(6)?,
            gradient_norm: number(7)?,
        };
        found.push((row.get(0)?.to_owned(), measured));
        Some(())
    })?;
    Ok(found)
}

/// Passes each row of the table to `take`, which returns `None` for a damaged one.
fn each_row(path: &Path, mut take: impl FnMut(&csv::StringRecord) -> Option<()>) -> Result<()> {
    let damaged = |line: u64| Error::Table {
        path: path.to_path_buf(),
        line: Some(line),
        message: "is damaged, or from an earlier version; train the run again".to_owned(),
    };
    let unreadable = |error| Error::input(path, format!("{} cannot be read: {error}", path.display()));
    let mut reader = csv::Reader::from_path(path).map_err(unreadable)?;
    let header = reader.headers().map_err(|_| damaged(1))?;
    if header.iter().skip(1).ne(COLUMNS) {
        return Err(damaged(1));
    }
    for (row, record) in reader.records().enumerate() {
        record.ok().and_then(|record| take(&record)).ok_or_else(|| damaged(row as u64 + 2))?;
    }
    Ok(())
}

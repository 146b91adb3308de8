//! The records of a table, as a configuration wants them read, and those that cannot be used.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    config::Config,
    data::{ColumnNames, Corpus, Preprocess, corpus::RELEASED_EMPTY_CAPTION},
    error::{Error, Reasons, Result},
    files::write_csv,
};

/// A record that could not be used, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedRecord {
    /// The record's id.
    pub id: String,
    /// Its line in the table.
    pub line: u64,
    /// What is wrong.
    pub reason: String,
}

/// How pictures are decoded under a configuration, for a tokenizer of this side.
pub fn preprocess(config: &Config, side: usize) -> Preprocess {
    let mut preprocess = Preprocess::default_for(side);
    let released = Preprocess::released(side);
    if config.compat.drop_alpha {
        preprocess.alpha = released.alpha;
    }
    preprocess.apply_orientation = !config.compat.ignore_exif;
    preprocess.clip_grey16 = config.compat.clip_grey16;
    preprocess.max_pixels = config.data.max_pixels;
    preprocess.truncated = config.data.truncated_images;
    preprocess
}

/// The columns that a configuration names.
pub fn columns(config: &Config) -> ColumnNames {
    ColumnNames {
        id: config.data.id_column.clone(),
        image: config.data.image_column.clone(),
        caption: config.data.caption_column.clone(),
    }
}

/// Opens a corpus as a configuration wants it read.
///
/// # Errors
/// If the table cannot be used.
pub fn open(config: &Config, path: &Path) -> Result<Corpus> {
    let corpus = Corpus::open(path, &columns(config))?.skipping_malformed(config.data.skip_bad_rows);
    Ok(if config.compat.empty_caption_text {
        corpus.with_empty_caption(RELEASED_EMPTY_CAPTION)
    } else {
        corpus
    })
}

/// Says how far a long job is; called from the thread that does it.
pub type Progress<'a> = dyn FnMut(&str, u64, u64) + 'a;

/// Writes a table of records that were left out.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write_failed<'a>(path: &Path, failed: impl Iterator<Item = &'a FailedRecord>) -> Result<()> {
    let row = |record: &FailedRecord| [record.id.clone(), record.line.to_string(), record.reason.clone()];
    write_csv(path, &["id", "line", "reason"], failed.map(row))
}

/// Why a job ends that can use no row of `table`: the reasons with their counts. `failed_out`, if it is given, lists every row.
///
/// # Errors
/// If the list cannot be written.
pub(crate) fn none_usable(table: &Path, failed: &[FailedRecord], failed_out: Option<&Path>) -> Result<Error> {
    if let Some(path) = failed_out {
        write_failed(path, failed.iter())?;
    }
    let reasons: Reasons = failed.iter().map(|record| record.reason.as_str()).collect();
    Ok(reasons.none_usable(table, failed_out))
}

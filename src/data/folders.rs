//! Where a corpus' images lie.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::Record;

/// The folders of the images that records name, each once. An output must not be one of them, nor hold one.
pub(crate) fn image_folders(records: &[Record]) -> Vec<PathBuf> {
    let folders: BTreeSet<&Path> = records.iter().filter_map(|record| record.image.parent()).collect();
    folders.into_iter().map(Path::to_path_buf).collect()
}

//! How a configuration opens a corpus: the columns to read, and how to decode the images.

use std::path::{Path, PathBuf};

use super::Config;
use crate::{
    data::{
        ColumnNames, Corpus, Preprocess,
        corpus::{CorpusFormat, RELEASED_EMPTY_CAPTION, files::CorpusFiles},
    },
    error::Result,
};

impl Config {
    /// The decoding settings for a tokenizer of this image side.
    pub fn preprocess(&self, side: usize) -> Preprocess {
        let mut preprocess = Preprocess::default_for(side);
        let released = Preprocess::released(side);
        if self.compat.drop_alpha {
            preprocess.alpha = released.alpha;
        }
        preprocess.apply_orientation = !self.compat.ignore_exif;
        preprocess.clip_gray16 = self.compat.clip_gray16;
        preprocess.max_pixels = self.data.max_pixels;
        preprocess.truncated = self.data.truncated_images;
        preprocess
    }

    /// The column names.
    pub fn columns(&self) -> ColumnNames {
        ColumnNames {
            id: self.data.id_column.clone(),
            image: self.data.image_column.clone(),
            caption: self.data.caption_column.clone(),
        }
    }

    /// Sets the format of the corpus at `path`, if one is given.
    pub(crate) fn read_as(&mut self, path: &Path, format: Option<CorpusFormat>) {
        if let Some(format) = format {
            self.data.formats.insert(path.to_path_buf(), format);
        }
    }

    /// The files of a corpus, and its path, which no output may replace.
    pub(crate) fn corpus_inputs(&self, path: &Path) -> Vec<PathBuf> {
        CorpusFiles::inputs(path, self.data.formats.get(path).copied())
    }

    /// Opens a corpus with these columns and settings.
    ///
    /// # Errors
    /// If the table cannot be opened or lacks a column.
    pub fn open_corpus(&self, path: &Path) -> Result<Corpus> {
        let format = self.data.formats.get(path).copied();
        let corpus =
            Corpus::open_as(path, &self.columns(), format)?.skipping_malformed(self.data.skip_bad_rows);
        Ok(if self.compat.empty_caption_text {
            corpus.with_empty_caption(RELEASED_EMPTY_CAPTION)
        } else {
            corpus
        })
    }
}

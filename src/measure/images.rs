//! The images to measure: those of a table, of a folder that `sample` wrote, or all in a folder.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;

use crate::{
    data::{
        ColumnNames, Corpus, ImageRef, Location, Origin, Record,
        corpus::{
            CorpusFormat,
            delimited::{DelimitedTable, Read},
            files::CorpusFiles,
        },
    },
    error::{Error, Result},
    files::text::read_text,
};

/// The table that `sample` writes next to its images.
const SAMPLES: &str = "samples.csv";

/// The metadata file in each prompt's folder of GenEval's layout.
const METADATA: &str = "metadata.jsonl";

/// An image to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeasuredImage {
    /// Its id in its table; in a folder, its relative path.
    pub id: String,
    /// Its location: the row in a table, or the position in a folder, counted from 1.
    pub origin: Origin,
    /// The image.
    pub image: ImageRef,
    /// Its caption, if known.
    pub caption: Option<String>,
    /// Why its row cannot be used, if malformed rows are skipped.
    pub malformed: Option<String>,
}

impl From<Record> for MeasuredImage {
    fn from(record: Record) -> Self {
        let Record { id, origin, image, caption, malformed, .. } = record;
        Self { id, origin, image, caption: Some(caption), malformed }
    }
}

/// Lists the images of `path`: a corpus with these columns (malformed rows are skipped on request), a table
/// `samples.csv`, a folder with such a table, a folder in GenEval's layout, a folder that is a corpus, or all PNG,
/// JPEG, WebP and GIF files in a folder, recursively, by name.
///
/// # Errors
/// If the table or folder does not exist, cannot be read, or has no image.
pub fn images(path: &Path, columns: &ColumnNames, skip_bad_rows: bool) -> Result<Vec<MeasuredImage>> {
    images_as(path, columns, None, skip_bad_rows)
}

/// Like [`images`], but reads a corpus as `form`, if one is given.
///
/// # Errors
/// See [`images`]; also if it is not in that format.
pub fn images_as(
    path: &Path,
    columns: &ColumnNames,
    form: Option<CorpusFormat>,
    skip_bad_rows: bool,
) -> Result<Vec<MeasuredImage>> {
    if form.is_some() || !path.is_dir() {
        return of_table(path, columns, form, skip_bad_rows);
    }
    if path.join(SAMPLES).is_file() {
        return of_table(&path.join(SAMPLES), columns, form, skip_bad_rows);
    }
    let prompts = prompt_folders(path)?;
    // A folder that is a corpus also has captions.
    if prompts.is_empty() && Corpus::open(path, columns).is_ok() {
        return of_table(path, columns, form, skip_bad_rows);
    }
    let found = if prompts.is_empty() { of_folder(path)? } else { of_prompts(path, &prompts)? };
    if found.is_empty() {
        return Err(Error::input(
            path,
            format!(
                "{} contains no images: neither {SAMPLES}, nor GenEval's folders, nor PNG, JPEG, WebP or GIF files",
                path.display()
            ),
        ));
    }
    Ok(found)
}

fn of_table(
    path: &Path,
    columns: &ColumnNames,
    form: Option<CorpusFormat>,
    skip_bad_rows: bool,
) -> Result<Vec<MeasuredImage>> {
    if CorpusFiles::of(path, form)?.one_csv() == Some(path) {
        let table = DelimitedTable::open(path)?;
        let column = |name: &str| table.header().iter().position(|column| column == name);
        if let (Some(file), Some(prompt), None) = (column("file"), column("prompt"), column(&columns.image)) {
            return of_samples(table, file, prompt);
        }
    }
    let corpus = Corpus::open_as(path, columns, form)?.skipping_malformed(skip_bad_rows);
    Ok(corpus.read_all()?.into_iter().map(MeasuredImage::from).collect())
}

/// The images of a table written by `sample`.
fn of_samples(mut table: DelimitedTable, file: usize, prompt: usize) -> Result<Vec<MeasuredImage>> {
    let table_file = Arc::new(table.location().clone());
    let mut found = Vec::new();
    loop {
        match table.read()? {
            Read::End => break,
            Read::Malformed(row) => return Err(table.refuse_row(row)),
            Read::Row => found.push(MeasuredImage {
                id: table.field(file).to_owned(),
                origin: Origin::new(&table_file, table.line()),
                image: table_file.sibling(table.field(file)).into(),
                caption: Some(table.field(prompt).to_owned()),
                malformed: None,
            }),
        }
    }
    if found.is_empty() {
        return Err(table.refuse("the table has a header but no rows"));
    }
    Ok(found)
}

/// The entries of a folder, by name.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()).map_err(Error::io("read", folder)))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// The folders of GenEval's layout, by number.
fn prompt_folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let numbered = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.parse::<u64>().is_ok())
    };
    Ok(entries(folder)?.into_iter().filter(|path| numbered(path) && path.join(METADATA).is_file()).collect())
}

fn of_prompts(folder: &Path, prompts: &[PathBuf]) -> Result<Vec<MeasuredImage>> {
    let mut found = Vec::new();
    let listing = Arc::new(Location::from(folder));
    for prompt in prompts {
        let path = prompt.join(METADATA);
        let text = read_text(&path)?;
        let value: Option<Value> = serde_json::from_str(&text).ok();
        let Some(caption) = value.as_ref().and_then(|value| value["prompt"].as_str()) else {
            let message = "is not one JSON object with a text `prompt`".to_owned();
            return Err(Error::Table { path, line: None, message });
        };
        for image in of_folder(&prompt.join("samples"))? {
            let path = image.image.as_path();
            let id = path.strip_prefix(folder).unwrap_or(path).display().to_string();
            let origin = Origin::new(&listing, found.len() as u64 + 1);
            found.push(MeasuredImage { id, origin, caption: Some(caption.to_owned()), ..image });
        }
    }
    Ok(found)
}

fn of_folder(folder: &Path) -> Result<Vec<MeasuredImage>> {
    let mut found = Vec::new();
    let listing = Arc::new(Location::from(folder));
    let mut waiting = entries(folder)?;
    waiting.reverse();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(entries(&path)?.into_iter().rev());
            continue;
        }
        let end = path.extension().and_then(|end| end.to_str()).map(str::to_ascii_lowercase);
        if end.is_some_and(|end| ["png", "jpg", "jpeg", "webp", "gif"].contains(&end.as_str())) {
            let id = path.strip_prefix(folder).unwrap_or(&path).display().to_string();
            let origin = Origin::new(&listing, found.len() as u64 + 1);
            found.push(MeasuredImage { id, origin, image: path.into(), caption: None, malformed: None });
        }
    }
    Ok(found)
}

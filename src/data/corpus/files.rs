//! The files of a corpus: one file, a folder, a brace list or a wildcard pattern.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use super::{
    columns::warn_once,
    delimited::ending_of,
    file_kind::{IMAGE_ENDINGS, folder},
    folder::ImageFolder,
    format::CorpusFormat,
    pattern::{braces, expand, is_pattern},
};
use crate::{
    data::location::Location,
    error::{Error, Result},
    files::folder_of,
};

/// The files of a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CorpusFiles {
    /// The format of all of them.
    pub(super) format: CorpusFormat,
    /// The files, in reading order; never empty.
    pub(super) files: Vec<Location>,
    /// The folder that relative image paths start at.
    pub(super) folder: PathBuf,
}

impl CorpusFiles {
    /// The files that `path` stands for, read in this format, or if none is given in the format of the first file.
    ///
    /// # Errors
    /// If there is none, one is listed twice, or a folder cannot be read or contains no corpus.
    pub(crate) fn of(path: &Path, format: Option<CorpusFormat>) -> Result<Self> {
        let refuse = |message: String| Error::Table { path: path.to_path_buf(), line: None, message };
        if path.is_dir() {
            let (format, files) = in_folder(path, format)?;
            let files = files.into_iter().map(Location::from).collect();
            return Ok(Self { format, files, folder: path.to_path_buf() });
        }
        let paths = match is_pattern(path) && !path.exists() {
            false => vec![path.to_path_buf()],
            true => expand(path)?,
        };
        let Some(first) = paths.first() else {
            return Err(refuse("no file matches; check the pattern and the folder".to_owned()));
        };
        if paths.len() > 1 {
            expect_distinct(&paths).map_err(refuse)?;
        }
        let folder = paths[1..].iter().fold(folder_of(first), |folder, path| shared(folder, folder_of(path)));
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder }.to_path_buf();
        if let Some(missing) = paths.iter().find(|file| !file.exists() && file.as_path() != path) {
            return Err(refuse(format!("{} is in the list, but there is no such file", missing.display())));
        }
        let first = Location::from(first.as_path());
        let format = match format {
            Some(format) => format.expect(&first)?,
            None => CorpusFormat::of_file(&first)?,
        };
        Ok(Self { format, files: paths.into_iter().map(Location::from).collect(), folder })
    }

    /// The table of a corpus that is one file of delimited text, whose rows can be copied byte for byte.
    pub(crate) fn one_csv(&self) -> Option<&Path> {
        match &self.files[..] {
            [only] if self.format == CorpusFormat::Csv => Some(only.as_path()),
            _ => None,
        }
    }

    /// Prints the detected format once, unless it is a plain table.
    pub(super) fn tell(&self, path: &Path) {
        let codec = self.files[0].codec().ok().flatten();
        if self.one_csv() == Some(path) && codec.is_none() {
            return;
        }
        let compressed = codec.map_or(String::new(), |codec| format!(", compressed with {}", codec.name()));
        let what = self.format.describe(self.files.len());
        warn_once(format!("{}: read as {what}{compressed}", path.display()));
    }

    /// The paths in the corpus that an output must not replace or become part of: `path` itself, its files, and
    /// whatever its wildcards or its folder stand for. Errors are left to the reader of the corpus, which explains
    /// them.
    pub(crate) fn inputs(path: &Path, format: Option<CorpusFormat>) -> Vec<PathBuf> {
        let mut inputs = vec![path.to_path_buf()];
        if path.is_dir() || !path.exists() {
            let files = Self::of(path, format).map(|found| found.files).unwrap_or_default();
            inputs.extend(files.iter().map(|file| file.as_path().to_path_buf()));
        }
        if path.is_dir() {
            inputs.push(path.join("**"));
        } else if !path.exists() {
            let listed = path.to_str().and_then(|path| braces(path).ok()).unwrap_or_default();
            inputs.extend(listed.into_iter().map(PathBuf::from).filter(|path| !path.exists()));
        }
        inputs
    }
}

/// The deepest folder that contains both.
fn shared<'a>(one: &'a Path, other: &Path) -> &'a Path {
    one.ancestors().find(|folder| other.starts_with(folder)).unwrap_or(Path::new(""))
}

/// Fails if a file is listed twice.
fn expect_distinct(paths: &[PathBuf]) -> Result<(), String> {
    let mut found: HashMap<PathBuf, &Path> = HashMap::new();
    for path in paths {
        // A missing file is reported by its own name.
        let Ok(real) = path.canonicalize() else { continue };
        if let Some(earlier) = found.insert(real, path) {
            return Err(match earlier == path {
                true => format!("{} is listed twice", path.display()),
                false => format!("{} and {} are the same file", earlier.display(), path.display()),
            });
        }
    }
    Ok(())
}

/// The format of the corpus in a folder, and its files sorted by name, byte by byte. Names that start with `_` or `.`
/// are metadata of the program that wrote the folder (`_SUCCESS`, `_metadata`) and are skipped.
fn in_folder(path: &Path, format: Option<CorpusFormat>) -> Result<(CorpusFormat, Vec<PathBuf>)> {
    let refuse = |message: String| Error::Table { path: path.to_path_buf(), line: None, message };
    let mut files = Vec::new();
    let mut other = false;
    for entry in fs::read_dir(path).map_err(Error::io("read", path))? {
        let file = entry.map_err(Error::io("read", path))?.path();
        if file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(['_', '.'])) {
            continue;
        }
        match file.is_file() {
            true => files.push(file),
            false => other = true,
        }
    }
    files.sort();
    let tables = |format: CorpusFormat, endings: &[&str]| {
        let found = files.iter().filter(|file| endings.contains(&ending_of(file).as_str()));
        Some((format, found.cloned().collect::<Vec<_>>())).filter(|(_, found)| !found.is_empty())
    };
    let csv = || tables(CorpusFormat::Csv, &["csv", "tsv", "tab"]);
    let json_lines = || tables(CorpusFormat::JsonLines, &["jsonl", "ndjson"]);
    let web_dataset = || {
        // `.tar`, `.tar.gz` and `.tgz`. img2dataset also writes a table of the downloads for each.
        let found = files.iter().filter(|file| {
            let name = file.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
            ending_of(file) == "tar" || name.ends_with(".tgz")
        });
        Some((CorpusFormat::WebDataset, found.cloned().collect::<Vec<_>>()))
            .filter(|(_, found)| !found.is_empty())
    };
    // Hugging Face's image folder, which has a table that lists the images.
    let metadata = || {
        let named =
            |name: &str| files.iter().find(|file| file.file_name() == Some(OsStr::new(name))).cloned();
        METADATA.iter().find_map(|&(format, name)| Some((format, vec![named(name)?])))
    };
    let captioned = || match ImageFolder::has_captions(path) {
        Ok(true) => Some((CorpusFormat::ImageFolder, vec![path.to_path_buf()])),
        _ => None,
    };
    let parquet = || tables(CorpusFormat::Parquet, &["parquet"]);
    expect_one_metadata(path, &files)?;
    let found = match format {
        Some(CorpusFormat::ImageFolder) => {
            metadata().or_else(|| Some((CorpusFormat::ImageFolder, vec![path.to_path_buf()])))
        }
        Some(CorpusFormat::Parquet) => parquet(),
        Some(CorpusFormat::WebDataset) => web_dataset(),
        Some(CorpusFormat::Csv) => csv(),
        Some(CorpusFormat::JsonLines) => json_lines(),
        // A table among other files lists them. If all files are tables, they are the parts of one table.
        None => metadata()
            .or_else(web_dataset)
            .or_else(parquet)
            .or_else(|| csv().or_else(json_lines).filter(|(_, found)| found.len() == files.len() && !other))
            .or_else(captioned),
    };
    let found = found.ok_or_else(|| refuse(folder(path)))?;
    if matches!(found.0, CorpusFormat::WebDataset | CorpusFormat::Parquet) {
        let images = files.iter().filter(|file| IMAGE_ENDINGS.contains(&ending_of(file).as_str())).count();
        if images > 0 {
            warn_once(format!(
                "{}: {images} image files next to the shards are not read; for them, pass --format imagefolder",
                path.display()
            ));
        }
    }
    Ok(found)
}

/// The tables that list the images of a folder, in the convention of Hugging Face.
const METADATA: [(CorpusFormat, &str); 3] = [
    (CorpusFormat::Csv, "metadata.csv"),
    (CorpusFormat::JsonLines, "metadata.jsonl"),
    (CorpusFormat::Parquet, "metadata.parquet"),
];

/// Fails if a folder has several tables that list its images.
fn expect_one_metadata(path: &Path, files: &[PathBuf]) -> Result<()> {
    let has = |name: &str| files.iter().any(|file| file.file_name() == Some(OsStr::new(name)));
    let found: Vec<&str> = METADATA.iter().map(|(_, name)| *name).filter(|name| has(name)).collect();
    if found.len() < 2 {
        return Ok(());
    }
    let message = format!("contains {}; pass the one that lists the images", found.join(" and "));
    Err(Error::Table { path: path.to_path_buf(), line: None, message })
}

//! A corpus in a folder of images, each with its caption in a text file of the same name: `IMAGE.jpg` and
//! `IMAGE.txt`. Subfolders are included, but not outputs of this program. An image without a text file has an empty caption.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    ColumnNames,
    columns::warn_once,
    delimited::{Malformed, Read, refuse_row},
    file_kind::IMAGE_ENDINGS,
    reader::{Origin, TableReader},
};
use crate::{
    data::location::Location,
    error::{Error, Result},
    jobs::{
        hidden,
        marker::{MARKER, Marker},
    },
};

/// Upper bound on the length of a caption.
const MOST_CAPTION_BYTES: u64 = 16 << 20;

/// An image and the file of its caption, if there is one.
type Pair = (PathBuf, Option<PathBuf>);

/// Reads the images of a folder in the order of their paths.
pub(super) struct ImageFolder {
    folder: PathBuf,
    header: [String; 2],
    pairs: Vec<Pair>,
    /// Index of the next image.
    next: usize,
    fields: [String; 2],
}

impl ImageFolder {
    /// Lists the images in a folder.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn open(at: &Location) -> Result<Self> {
        let folder = at.as_path().to_path_buf();
        let pairs = list(&folder)?;
        Ok(Self {
            folder,
            header: ["image", "caption"].map(str::to_owned),
            pairs,
            next: 0,
            fields: Default::default(),
        })
    }

    /// Whether an image in the folder has a caption.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn has_captions(folder: &Path) -> Result<bool> {
        Ok(list(folder)?.iter().any(|(_, caption)| caption.is_some()))
    }

    /// The path of an image relative to the folder, and its caption.
    fn pair(&self, (image, caption): &Pair) -> Result<[String; 2], String> {
        let within = image.strip_prefix(&self.folder).unwrap_or(image);
        let parts: Option<Vec<&str>> = within.iter().map(|part| part.to_str()).collect();
        let path = parts.map(|parts| parts.join("/")).ok_or("the path is not UTF-8; rename the file")?;
        let Some(file) = caption else { return Ok([path, String::new()]) };
        let failed = |error: std::io::Error| format!("{}: cannot be read: {error}", file.display());
        // Opening a named pipe blocks, and a device has no end.
        if !fs::metadata(file).map_err(failed)?.is_file() {
            return Err(format!("{}: not a regular file", file.display()));
        }
        let mut bytes = Vec::new();
        let opened = fs::File::open(file).map_err(failed)?;
        opened.take(MOST_CAPTION_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MOST_CAPTION_BYTES {
            return Err(format!("{}: longer than {} MiB", file.display(), MOST_CAPTION_BYTES >> 20));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| format!("{}: not UTF-8; save the file as UTF-8", file.display()))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        Ok([path, text.trim_end_matches(['\r', '\n']).to_owned()])
    }
}

/// The images below a folder, sorted by path, with their captions. Hidden files and folders are skipped.
fn list(folder: &Path) -> Result<Vec<Pair>> {
    let (mut images, mut captions) = (Vec::new(), HashMap::new());
    let mut waiting = vec![folder.to_path_buf()];
    let (whole, mut outputs) = (folder, HashSet::new());
    while let Some(folder) = waiting.pop() {
        if folder != whole && folder.join(MARKER).exists() {
            warn_once(format!(
                "{}: is an output of this program, so its images are left out",
                folder.display()
            ));
            continue;
        }
        for entry in fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
            let entry = entry.map_err(Error::io("read", &folder))?;
            let path = entry.path();
            if let Some(output) = entry.file_name().to_str().and_then(|name| hidden(name, MARKER)) {
                let marker = Marker::read_for(&folder.join(output)).ok().flatten();
                let files = marker.map_or(Vec::new(), |marker| marker.files);
                outputs.extend(files.into_iter().map(|file| folder.join(file.name)));
            }
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            // A link to a folder may lead back here.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push(path);
                continue;
            }
            let ending = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
            if ending == "txt" {
                captions.insert(path.with_extension(""), path);
            } else if IMAGE_ENDINGS.contains(&ending.as_str()) {
                images.push(path);
            }
        }
    }
    let found = images.len();
    images.retain(|image| !outputs.contains(image));
    if images.len() < found {
        let count = found - images.len();
        warn_once(format!(
            "{}: {count} images are outputs of this program and are left out",
            whole.display()
        ));
    }
    images.sort();
    let pair = |image: PathBuf| {
        let caption = captions.get(&image.with_extension("")).cloned();
        (image, caption)
    };
    Ok(images.into_iter().map(pair).collect())
}

impl TableReader for ImageFolder {
    fn header(&self) -> &[String] {
        &self.header
    }

    fn names(&self, names: &ColumnNames) -> ColumnNames {
        let [image, caption] = self.header.clone();
        ColumnNames { id: names.id.clone(), image, caption }
    }

    fn read(&mut self) -> Result<Read> {
        let Some(pair) = self.pairs.get(self.next) else { return Ok(Read::End) };
        let found = self.pair(pair);
        self.next += 1;
        Ok(match found {
            Ok(fields) => {
                self.fields = fields;
                Read::Row
            }
            Err(message) => Read::Malformed(Malformed { line: self.number(), message }),
        })
    }

    fn field(&self, column: usize) -> &str {
        self.fields.get(column).map_or("", String::as_str)
    }

    fn unit(&self) -> &'static str {
        "image"
    }

    fn number(&self) -> u64 {
        self.next as u64
    }

    fn origin(&self, file: &Arc<Location>) -> Origin {
        let image = self.next.checked_sub(1).and_then(|at| self.pairs.get(at));
        let within =
            image.map_or(Path::new(""), |(image, _)| image.strip_prefix(&self.folder).unwrap_or(image));
        Origin::member(file, &within.to_string_lossy())
    }

    fn position(&self) -> [u64; 2] {
        [self.next as u64, 0]
    }

    fn seek(&mut self, [next, _]: [u64; 2]) -> Result<()> {
        self.next = usize::try_from(next).unwrap_or(usize::MAX);
        if self.next > self.pairs.len() {
            return Err(self.refuse_header(format!(
                "the folder has {} images, fewer than the {next} that were already read; it has changed since",
                self.pairs.len()
            )));
        }
        Ok(())
    }

    fn has_more(&mut self) -> Result<bool> {
        Ok(self.next < self.pairs.len())
    }

    fn refuse_header(&self, message: String) -> Error {
        Error::Table { path: self.folder.clone(), line: None, message }
    }

    fn refuse_row(&self, row: Malformed) -> Error {
        refuse_row(&self.folder, None, format!("image {}: {}", row.line, row.message))
    }
}

//! Converts a subset to the formats of other trainers: a Parquet table, a Hugging Face image folder, WebDataset
//! shards, and DataComp's array of uids.

use std::{
    collections::HashSet,
    fmt,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde_json::{Map, Value};

use super::ratings::{NumberHeader, NumberWriter};
use crate::{
    data::{
        ColumnNames, Corpus, ImageRef, Record,
        corpus::{CorpusFormat, Schema, files::CorpusFiles, image_folders, moved_paths::absolute_path},
        image::decode::{self, SNIFFED_BYTES},
        location::{EMPTY_PATH, not_local},
    },
    error::{Error, LeftOutRows, Reasons, Result},
    files::{AtomicFile, write_atomic},
    interrupt::Interrupt,
    jobs::{Claim, folder::OutputFolder, output::Output, progress::Progress},
};

/// Default number of samples per WebDataset shard.
pub const SHARD: usize = 10_000;

/// An output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A `.csv` table with absolute image paths.
    Csv,
    /// A `.parquet` table with absolute image paths.
    Parquet,
    /// A folder with `metadata.jsonl` and images, for `datasets.load_dataset("imagefolder", data_dir=…)`. Images are
    /// copied or linked.
    ImageFolder {
        /// Whether to create symbolic links instead of copies.
        link: bool,
    },
    /// A folder of tar files for `webdataset`: `KEY.png` (or another extension that matches the content), `KEY.txt`
    /// (the caption) and `KEY.json` (all columns except that of the images, and `original_path`, the absolute path of
    /// the image). Keys are row numbers, because a key ends at its first dot and ids may have dots.
    WebDataset,
    /// DataComp's `.npy`: a sorted array of ids, each 32 hexadecimal digits, as pairs of u64.
    Uids,
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Ok(match name {
            "csv" => Self::Csv,
            "parquet" => Self::Parquet,
            "imagefolder" => Self::ImageFolder { link: false },
            "imagefolder-links" => Self::ImageFolder { link: true },
            "webdataset" => Self::WebDataset,
            "uids" => Self::Uids,
            _ => {
                return Err(Error::invalid(format!(
                    "unknown format `{name}`; expected one of csv, parquet, imagefolder, imagefolder-links, \
                     webdataset, uids"
                )));
            }
        })
    }
}

/// Options of [`pack`].
#[derive(Clone, Debug, PartialEq)]
pub struct PackJob {
    /// The subset: a CSV written by `select`, or any corpus.
    pub subset: PathBuf,
    /// The format of the subset; `None` to detect it.
    pub data_format: Option<CorpusFormat>,
    /// Names of its columns.
    pub columns: ColumnNames,
    /// Skips malformed rows and counts them as unusable records.
    pub skip_bad_rows: bool,
    /// The output format.
    pub format: Format,
    /// The output file or folder.
    pub out: PathBuf,
    /// Samples per WebDataset shard.
    pub shard: usize,
    /// Replaces an existing output.
    pub overwrite: bool,
}

/// Summary of [`pack`]: `rows` equals the rows written plus `left_out`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Rows in the subset.
    pub rows: usize,
    /// Records skipped because their image is missing or unreadable: id and reason.
    pub left_out: Vec<(String, String)>,
    /// The output file or folder.
    pub out: PathBuf,
}

impl fmt::Display for Packed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lost = self.left_out.len();
        write!(
            formatter,
            "{} rows in = {} written + {lost} skipped\n{}",
            self.rows,
            self.rows - lost,
            self.out.display()
        )?;
        if lost > 0 {
            write!(formatter, "\nskipped: {}", reasons(&self.left_out))?;
        }
        Ok(())
    }
}

/// Converts a subset to another format.
///
/// # Errors
/// If the subset cannot be read, the output exists and must not be replaced, an id does not fit the format, a file
/// cannot be written, or the user interrupts the job.
pub fn pack(job: &PackJob, interrupt: &Interrupt, progress: &mut dyn Progress) -> Result<Packed> {
    let corpus =
        Corpus::open_as(&job.subset, &job.columns, job.data_format)?.skipping_malformed(job.skip_bad_rows);
    let schema = corpus.schema().clone();
    let (records, malformed) = interrupt.while_reading("nothing was written", || corpus.read_usable())?;
    let malformed: Vec<(String, String)> =
        malformed.into_iter().map(|record| (record.id, record.malformed.unwrap_or_default())).collect();
    if records.is_empty() {
        return Err(none_usable(&job.subset, &malformed));
    }
    let mut inputs = CorpusFiles::inputs(&job.subset, job.data_format);
    inputs.extend(image_folders(&records));
    let claim = Claim { command: "pack", inputs: &inputs, overwrite: job.overwrite };
    let packing =
        |out| Packing { job, out, schema, left_out: Vec::new(), said: LeftOutRows::default(), interrupt };
    let mut left_out = match job.format {
        Format::Csv | Format::Parquet | Format::Uids => {
            job.expect_ending()?;
            Output::fresh(&claim, &job.out, &[])?.write(|output| {
                let mut packing = packing(output.staged());
                if job.format == Format::Uids {
                    packing.uids(&records)?
                } else {
                    packing.table(&records)?
                }
                Ok(packing.left_out)
            })?
        }
        Format::ImageFolder { .. } | Format::WebDataset => {
            let folder = OutputFolder::claim(&claim, &job.out, &[])?;
            folder.refuse_present(job.overwrite)?;
            folder.write(|out| {
                let mut packing = packing(out.to_path_buf());
                match job.format {
                    Format::ImageFolder { link } => packing.image_folder(&records, link, progress)?,
                    _ => packing.web_dataset(&records, progress)?,
                }
                Ok(packing.left_out)
            })?
        }
    };
    let rows = records.len() + malformed.len();
    left_out.extend(malformed);
    Ok(Packed { rows, left_out, out: job.out.clone() })
}

impl PackJob {
    /// Checks that the extension of a table's path matches its format.
    fn expect_ending(&self) -> Result<()> {
        let expected = match self.format {
            Format::Csv => "csv",
            Format::Parquet => "parquet",
            _ => return Ok(()),
        };
        if self.out.extension().is_none_or(|ending| !ending.eq_ignore_ascii_case(expected)) {
            return Err(Error::invalid(format!("{}: the name must end in .{expected}", self.out.display())));
        }
        Ok(())
    }
}

struct Packing<'a> {
    job: &'a PackJob,
    /// The staging path of the output.
    out: PathBuf,
    schema: Schema,
    left_out: Vec<(String, String)>,
    said: LeftOutRows,
    interrupt: &'a Interrupt,
}

impl Packing<'_> {
    fn check(&self) -> Result<()> {
        self.interrupt.check("nothing was written; run the same command again")
    }

    /// A record's image, and the file extension that matches its content. Records without a usable image are skipped.
    ///
    /// # Errors
    /// If there is not enough memory or too many files are open, which says nothing about the image.
    fn image<'r>(&mut self, record: &'r Record) -> Result<Option<(&'r ImageRef, &'static str)>> {
        let found = match not_local(self.written(record)) {
            None => ending_of(&record.image),
            Some(reason) => Err(record.image.refuse(reason)),
        };
        match found {
            Ok(ending) => return Ok(Some((&record.image, ending))),
            Err(error) if error.is_of_machine() => return Err(error),
            Err(Error::Image { message, .. }) => self.leave_out(record, message),
            Err(error) => self.leave_out(record, error.to_string()),
        }
        Ok(None)
    }

    fn leave_out(&mut self, record: &Record, reason: String) {
        let line = format!("{}: {reason}", self.written(record));
        self.said.add(&record.id, &line);
        self.left_out.push((record.id.clone(), reason));
    }

    /// The image path, as written in the table.
    fn written<'r>(&self, record: &'r Record) -> &'r str {
        &record.fields[self.schema.image]
    }

    /// Fails if no record could be written.
    fn require_any(&self, records: &[Record]) -> Result<()> {
        if self.left_out.len() < records.len() || records.is_empty() {
            return Ok(());
        }
        Err(none_usable(&self.job.subset, &self.left_out))
    }

    /// All columns of a record except the image path, as JSON.
    fn columns_json(&self, record: &Record) -> Map<String, Value> {
        let columns = self.schema.columns.iter().zip(&record.fields).enumerate();
        columns
            .filter(|(at, _)| *at != self.schema.image)
            .map(|(_, (name, field))| (name.clone(), Value::from(field.as_str())))
            .collect()
    }

    fn table(&mut self, records: &[Record]) -> Result<()> {
        let header =
            NumberHeader::for_corpus(&self.schema.columns, self.schema.id, Vec::new()).map_err(|error| {
                Error::Table { path: self.job.subset.clone(), line: Some(1), message: error.to_string() }
            })?;
        let mut table = NumberWriter::create(&self.out, header)?;
        for record in records {
            self.check()?;
            let written = self.written(record);
            if written.is_empty() {
                self.leave_out(record, EMPTY_PATH.to_owned());
                continue;
            }
            let mut fields = record.fields.clone();
            fields[self.schema.image] = absolute_path(written, &record.image)?.into_owned();
            table.write(&fields, &[])?;
        }
        self.require_any(records)?;
        table.finish()
    }

    fn image_folder(&mut self, records: &[Record], link: bool, progress: &mut dyn Progress) -> Result<()> {
        // The column of images is replaced by the absolute path.
        let image = self.schema.image;
        let taken =
            self.schema.columns.iter().enumerate().find(|&(at, name)| name == "file_name" && at != image);
        if let Some((_, name)) = taken {
            return Err(Error::Table {
                path: self.job.subset.clone(),
                line: Some(1),
                message: format!(
                    "the column `{name}` already exists, but it is also an output column; rename it"
                ),
            });
        }
        let folder = self.out.join("images");
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let mut lines = AtomicFile::create(&self.out.join("metadata.jsonl"))?;
        for (at, record) in records.iter().enumerate() {
            self.check()?;
            progress.counted("packing", at as u64 + 1, records.len() as u64);
            let Some((from, ending)) = self.image(record)? else { continue };
            let name = format!("images/{at:08}.{ending}");
            let to = self.out.join(&name);
            copy_or_link(from, &to, link)?;
            let mut line = Map::from_iter([("file_name".to_owned(), Value::from(name))]);
            line.extend(self.columns_json(record));
            let line = format!("{}\n", Value::Object(line));
            lines.write_all(line.as_bytes()).map_err(Error::io("write", lines.path()))?;
        }
        self.require_any(records)?;
        // The metadata is finished last: if it exists, all images do.
        lines.finish()
    }

    fn web_dataset(&mut self, records: &[Record], progress: &mut dyn Progress) -> Result<()> {
        let size = self.job.shard.max(1);
        let mut written = 0;
        for (number, shard) in records.chunks(size).enumerate() {
            let path = self.out.join(format!("shard-{written:06}.tar"));
            // Created by its first image, so that no shard is empty.
            let mut archive: Option<tar::Builder<AtomicFile>> = None;
            for (index, record) in shard.iter().enumerate() {
                self.check()?;
                let at = number * size + index;
                progress.counted("packing", at as u64 + 1, records.len() as u64);
                let Some((from, ending)) = self.image(record)? else { continue };
                let image = from.read(u64::MAX)?;
                let mut columns = self.columns_json(record);
                let original = absolute_path(self.written(record), from)?;
                columns.insert("original_path".to_owned(), Value::from(&*original));
                let json = Value::Object(columns).to_string();
                let parts =
                    [(ending, &image[..]), ("txt", record.caption.as_bytes()), ("json", json.as_bytes())];
                let archive = match &mut archive {
                    Some(archive) => archive,
                    none => none.insert(tar::Builder::new(AtomicFile::create(&path)?)),
                };
                for (ending, bytes) in parts {
                    let mut header = tar::Header::new_ustar();
                    header.set_size(bytes.len() as u64);
                    header.set_mode(0o644);
                    archive
                        .append_data(&mut header, format!("{at:08}.{ending}"), bytes)
                        .map_err(Error::io("write", &path))?;
                }
            }
            if let Some(archive) = archive {
                archive.into_inner().map_err(Error::io("write", &path))?.finish()?;
                written += 1;
            }
        }
        self.require_any(records)
    }

    fn uids(&mut self, records: &[Record]) -> Result<()> {
        let mut uids = Vec::with_capacity(records.len());
        for record in records {
            let number = |range: std::ops::Range<usize>| {
                record.id.get(range).and_then(|digits| u64::from_str_radix(digits, 16).ok())
            };
            let hexadecimal = record.id.len() == 32 && record.id.bytes().all(|byte| byte.is_ascii_hexdigit());
            match (number(0..16), number(16..32)) {
                (Some(high), Some(low)) if hexadecimal => uids.push((high, low)),
                _ => {
                    return Err(record.origin.refuse(format!(
                        "the id `{}` is not a DataComp uid (32 hexadecimal digits); choose another format",
                        record.id
                    )));
                }
            }
        }
        uids.sort_unstable();
        let kept: HashSet<&(u64, u64)> = uids.iter().collect();
        if kept.len() != uids.len() {
            return Err(Error::invalid("two ids are the same uid except for letter case"));
        }
        write_atomic(&self.out, &npy(&uids))
    }
}

/// The extension that matches an image's content.
///
/// # Errors
/// If the image cannot be packed.
fn ending_of(image: &ImageRef) -> Result<&'static str> {
    let start = image.start(SNIFFED_BYTES as u64)?;
    decode::FileFormat::of(&start).map(decode::FileFormat::ending).map_err(|message| image.refuse(message))
}

/// The error for a subset without a usable record.
fn none_usable(subset: &Path, left_out: &[(String, String)]) -> Error {
    reasons(left_out).none_usable(subset, None)
}

/// The reasons why records were skipped, by id.
fn reasons(left_out: &[(String, String)]) -> Reasons {
    let reasons: Vec<String> = left_out.iter().map(|(id, reason)| format!("{id}: {reason}")).collect();
    reasons.iter().map(String::as_str).collect()
}

/// Copies or links an image.
fn copy_or_link(from: &ImageRef, to: &Path, link: bool) -> Result<()> {
    if !link {
        let copied = match from.local().filter(|from| from.is_file()) {
            Some(from) => fs::copy(from, to),
            // A member of an archive.
            None => from.open().and_then(|mut from| std::io::copy(&mut from, &mut File::create(to)?)),
        };
        return copied.map(drop).map_err(Error::io("write", to));
    }
    let from = from.local().filter(|from| from.is_file()).ok_or_else(|| {
        from.refuse("is not a local file of its own, so it cannot be linked; pack with --format imagefolder")
    })?;
    #[cfg(unix)]
    return std::path::absolute(from)
        .and_then(|from| std::os::unix::fs::symlink(from, to))
        .map_err(Error::io("link", to));
    #[cfg(not(unix))]
    Err(Error::invalid("symbolic links need Unix; copy the images with --format imagefolder"))
}

/// Encodes an array of pairs of u64 in NumPy's format 1.0.
fn npy(uids: &[(u64, u64)]) -> Vec<u8> {
    let description = format!(
        "{{'descr': [('f0', '<u8'), ('f1', '<u8')], 'fortran_order': False, 'shape': ({},), }}",
        uids.len()
    );
    // Magic, version and length take 10 bytes; the header, with its newline, is padded to a multiple of 64.
    let length = (10 + description.len() + 1).next_multiple_of(64) - 10;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend(format!("{description:<width$}\n", width = length - 1).bytes());
    bytes.extend(uids.iter().flat_map(|(high, low)| [high.to_le_bytes(), low.to_le_bytes()].concat()));
    bytes
}

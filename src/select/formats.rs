//! A chosen subset in the forms that other trainers read: a Parquet table, a Hugging Face image folder, WebDataset shards, and
//! DataComp's array of uids.

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
        corpus::{Schema, image_folders, moved_paths::whole_path},
        image::decode::{self, SNIFFED_BYTES},
        location::not_local,
    },
    error::{Error, LeftOutRows, Reasons, Result},
    files::{WholeFile, write_whole},
    interrupt::Interrupt,
    jobs::{Claim, folder::OutputFolder, output::Output, progress::Progress},
};

/// Samples of a WebDataset shard.
pub const SHARD: usize = 10_000;

/// A form of subsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One `.csv` table, images named by whole paths.
    Csv,
    /// One `.parquet` table, images named by whole paths.
    Parquet,
    /// A folder with `metadata.jsonl` and images, as `datasets.load_dataset("imagefolder", data_dir=…)` reads it. Images are
    /// copied, or linked.
    ImageFolder {
        /// Whether images are symbolic links.
        link: bool,
    },
    /// A folder of tar files, as `webdataset` reads them: `KEY.png` (or whatever the content is), `KEY.txt` (the caption) and
    /// `KEY.json` (all columns). Keys are row numbers, because a dot in an id would cut a key off.
    WebDataset,
    /// DataComp's `.npy`: pairs of 64-bit numbers, sorted, of ids that are 32 hexadecimal digits.
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
                    "`{name}` is not a form of subsets; they are csv, parquet, imagefolder, imagefolder-links, webdataset and uids"
                )));
            }
        })
    }
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct PackJob {
    /// The subset: a CSV, as `select` writes it.
    pub subset: PathBuf,
    /// Its columns.
    pub columns: ColumnNames,
    /// Leave out malformed rows, as records that cannot be used.
    pub skip_bad_rows: bool,
    /// The form.
    pub format: Format,
    /// A file, or a folder for those forms that are one.
    pub out: PathBuf,
    /// Samples of a WebDataset shard.
    pub shard: usize,
    /// Replace what is there.
    pub overwrite: bool,
}

/// What was written. Rows in are rows written and rows left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Rows of the subset.
    pub rows: usize,
    /// Records left out because their image is not there or is none: id and reason.
    pub left_out: Vec<(String, String)>,
    /// The file or folder.
    pub out: PathBuf,
}

impl fmt::Display for Packed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lost = self.left_out.len();
        write!(
            formatter,
            "{} rows in = {} written + {lost} left out\n{}",
            self.rows,
            self.rows - lost,
            self.out.display()
        )?;
        if lost > 0 {
            write!(formatter, "\nleft out: {}", reasons(&self.left_out))?;
        }
        Ok(())
    }
}

/// Writes a subset in another form.
///
/// # Errors
/// If the subset cannot be read, the output is there and not to be replaced, an id does not fit the form, a file cannot be
/// written, or the user interrupts.
pub fn pack(job: &PackJob, interrupt: &Interrupt, progress: &mut dyn Progress) -> Result<Packed> {
    let corpus = Corpus::open(&job.subset, &job.columns)?.skipping_malformed(job.skip_bad_rows);
    let schema = corpus.schema().clone();
    let (records, malformed) = interrupt.while_reading("nothing was written", || corpus.read_usable())?;
    let malformed: Vec<(String, String)> =
        malformed.into_iter().map(|record| (record.id, record.malformed.unwrap_or_default())).collect();
    if records.is_empty() {
        return Err(none_usable(&job.subset, &malformed));
    }
    let mut inputs = vec![job.subset.clone()];
    inputs.extend(image_folders(&records));
    let claim = Claim { command: "pack", inputs: &inputs, overwrite: job.overwrite };
    let packing =
        |out| Packing { job, out, schema, left_out: Vec::new(), said: LeftOutRows::default(), interrupt };
    let mut left_out = match job.format {
        Format::Csv | Format::Parquet | Format::Uids => {
            job.expect_ending()?;
            Output::anew(&claim, &job.out, &[])?.write(|output| {
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
    /// Refuses a table's name that does not say what it is.
    fn expect_ending(&self) -> Result<()> {
        let wanted = match self.format {
            Format::Csv => "csv",
            Format::Parquet => "parquet",
            _ => return Ok(()),
        };
        if self.out.extension().is_none_or(|ending| !ending.eq_ignore_ascii_case(wanted)) {
            return Err(Error::invalid(format!("{} must end in .{wanted}", self.out.display())));
        }
        Ok(())
    }
}

struct Packing<'a> {
    job: &'a PackJob,
    /// Where the output is written until all of it is there.
    out: PathBuf,
    schema: Schema,
    left_out: Vec<(String, String)>,
    said: LeftOutRows,
    interrupt: &'a Interrupt,
}

impl Packing<'_> {
    fn check(&self) -> Result<()> {
        self.interrupt.check("nothing was written; give the same command again")
    }

    /// The image's file and the ending that its content has, or the record is left out.
    fn image<'r>(&mut self, record: &'r Record) -> Option<(&'r ImageRef, &'static str)> {
        match not_local(self.written(record)).map_or_else(|| ending_of(&record.image), Err) {
            Ok(ending) => Some((&record.image, ending)),
            Err(reason) => {
                self.leave_out(record, reason);
                None
            }
        }
    }

    fn leave_out(&mut self, record: &Record, reason: String) {
        let told = format!("{}: {reason}", self.written(record));
        self.said.add(&record.id, &told);
        self.left_out.push((record.id.clone(), reason));
    }

    /// The image's path as it is written in the table.
    fn written<'r>(&self, record: &'r Record) -> &'r str {
        &record.fields[self.schema.image]
    }

    /// Refuses an output without a record.
    fn require_any(&self, records: &[Record]) -> Result<()> {
        if self.left_out.len() < records.len() || records.is_empty() {
            return Ok(());
        }
        Err(none_usable(&self.job.subset, &self.left_out))
    }

    /// All columns of a record but the image's path, as JSON.
    fn told(&self, record: &Record) -> Map<String, Value> {
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
                self.leave_out(record, "its path is empty".to_owned());
                continue;
            }
            let mut fields = record.fields.clone();
            fields[self.schema.image] = whole_path(written, &record.image)?.into_owned();
            table.write(&fields, &[])?;
        }
        self.require_any(records)?;
        table.finish()
    }

    fn image_folder(&mut self, records: &[Record], link: bool, progress: &mut dyn Progress) -> Result<()> {
        // Where that is the column of images, it is what is written in its place.
        let image = self.schema.image;
        let taken =
            self.schema.columns.iter().enumerate().find(|&(at, name)| name == "file_name" && at != image);
        if let Some((_, name)) = taken {
            return Err(Error::Table {
                path: self.job.subset.clone(),
                line: Some(1),
                message: format!("the column `{name}` is to be written and is there already; rename it"),
            });
        }
        let folder = self.out.join("images");
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let mut lines = WholeFile::create(&self.out.join("metadata.jsonl"))?;
        for (at, record) in records.iter().enumerate() {
            self.check()?;
            progress.counted("packing", at as u64 + 1, records.len() as u64);
            let Some((from, ending)) = self.image(record) else { continue };
            let name = format!("images/{at:08}.{ending}");
            let to = self.out.join(&name);
            place(from, &to, link)?;
            let mut line = Map::from_iter([("file_name".to_owned(), Value::from(name))]);
            line.extend(self.told(record));
            let line = format!("{}\n", Value::Object(line));
            lines.write_all(line.as_bytes()).map_err(Error::io("write", lines.path()))?;
        }
        self.require_any(records)?;
        // The table of the images is last: where it is, they are.
        lines.finish()
    }

    fn web_dataset(&mut self, records: &[Record], progress: &mut dyn Progress) -> Result<()> {
        let size = self.job.shard.max(1);
        let mut written = 0;
        for (number, shard) in records.chunks(size).enumerate() {
            let path = self.out.join(format!("shard-{written:06}.tar"));
            // Made by its first image, so that none is empty.
            let mut archive: Option<tar::Builder<WholeFile>> = None;
            for (place, record) in shard.iter().enumerate() {
                self.check()?;
                let at = number * size + place;
                progress.counted("packing", at as u64 + 1, records.len() as u64);
                let Some((from, ending)) = self.image(record) else { continue };
                let image = from.read(u64::MAX).map_err(|message| from.refuse(message))?;
                let mut told = self.told(record);
                let original = whole_path(self.written(record), from)?;
                told.insert("original_path".to_owned(), Value::from(&*original));
                let told = Value::Object(told).to_string();
                let parts =
                    [(ending, &image[..]), ("txt", record.caption.as_bytes()), ("json", told.as_bytes())];
                let archive = match &mut archive {
                    Some(archive) => archive,
                    none => none.insert(tar::Builder::new(WholeFile::create(&path)?)),
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
                        "the id `{}` is no uid of DataComp, which has 32 hexadecimal digits; choose another form",
                        record.id
                    )));
                }
            }
        }
        uids.sort_unstable();
        let kept: HashSet<&(u64, u64)> = uids.iter().collect();
        if kept.len() != uids.len() {
            return Err(Error::invalid("two ids are the same uid but for the case of their letters"));
        }
        write_whole(&self.out, &npy(&uids))
    }
}

/// The ending that an image's content has, whatever its name is, or why it cannot be packed.
fn ending_of(image: &ImageRef) -> std::result::Result<&'static str, String> {
    let start = image.start(SNIFFED_BYTES as u64)?;
    decode::FileFormat::of(&start).map(decode::FileFormat::ending)
}

/// The error of a subset of which nothing can be packed.
fn none_usable(subset: &Path, left_out: &[(String, String)]) -> Error {
    reasons(left_out).none_usable(subset, None)
}

/// Why records, by id, are left out.
fn reasons(left_out: &[(String, String)]) -> Reasons {
    let reasons: Vec<String> = left_out.iter().map(|(id, reason)| format!("{id}: {reason}")).collect();
    reasons.iter().map(String::as_str).collect()
}

/// Copies an image, or links to it.
fn place(from: &ImageRef, to: &Path, link: bool) -> Result<()> {
    if !link {
        let copied = match from.local() {
            Some(from) => fs::copy(from, to),
            None => from.open().and_then(|mut from| std::io::copy(&mut from, &mut File::create(to)?)),
        };
        return copied.map(drop).map_err(Error::io("write", to));
    }
    let from =
        from.local().ok_or_else(|| from.refuse("is no file of this machine, so nothing can link to it"))?;
    #[cfg(unix)]
    return std::path::absolute(from)
        .and_then(|from| std::os::unix::fs::symlink(from, to))
        .map_err(Error::io("link", to));
    #[cfg(not(unix))]
    Err(Error::invalid("images can be linked on Unix only; copy them with imagefolder"))
}

/// NumPy's format 1.0 of an array of pairs of 64-bit numbers.
fn npy(uids: &[(u64, u64)]) -> Vec<u8> {
    let told = format!(
        "{{'descr': [('f0', '<u8'), ('f1', '<u8')], 'fortran_order': False, 'shape': ({},), }}",
        uids.len()
    );
    // Magic, version and length take 10 bytes, and all of the header a multiple of 64, with a line end.
    let length = (10 + told.len() + 1).next_multiple_of(64) - 10;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend(format!("{told:<width$}\n", width = length - 1).bytes());
    bytes.extend(uids.iter().flat_map(|(high, low)| [high.to_le_bytes(), low.to_le_bytes()].concat()));
    bytes
}

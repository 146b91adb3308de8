//! A corpus in a WebDataset shard: a tar whose members are grouped by the names before their first dot, as the
//! `webdataset` library does.
//!
//! | column | is |
//! | --- | --- |
//! | `__key__` | the name before the first dot, with its folders |
//! | `image` | the image's path: that of the shard, continued by the member's name |
//! | `caption` | the text in `.txt`, else the key `caption` of `.json`; without either, another key of `.json` |
//! | `__path__` | the image's path, for an id that is unique where keys repeat; only if it is named as the id |
//! | others | the keys of `.json`, as `json.KEY` if the name is taken |
//!
//! The members of a sample must be adjacent: the library, which reads streams, would otherwise make two samples of
//! them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    ColumnNames,
    columns::{CAPTION_NAMES, IMAGE_NAMES, warn_once},
    delimited::{Malformed, Read, refuse_row},
    jsonl::Object,
    read_error::read_error,
    reader::{Origin, TableReader},
};
use crate::{
    data::{
        location::Location,
        store::{
            Kind,
            container::{
                Archive, escaped,
                tar::{Member, MemberKind, TarError, TarScan, sample_key},
            },
        },
    },
    error::{Error, Result},
};

/// Number of samples whose keys become columns.
const SCANNED_SAMPLES: usize = 256;
/// Upper bound on a caption or on `.json`.
const MOST_TEXT_BYTES: u64 = 16 << 20;
/// Extensions of images, in order of preference. Unsupported ones are listed so that such an image is reported by name.
const IMAGE_ENDINGS: [&str; 14] =
    ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif", "jxl", "jp2", "ppm"];
/// The name of the column of keys.
const KEY: &str = "__key__";
/// The name of a column of paths for use as ids.
pub(super) const PATH: &str = "__path__";
/// Prefix of a key of `.json` whose name is taken.
const JSON: &str = "json.";
/// Maximum number of keys named in a warning because they have no column.
const NAMED_KEYS: usize = 16;

/// The source of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Key,
    Image,
    /// `.txt`, or else a key of `.json`.
    Text,
    Path,
    Json(String),
}

/// The members of a sample that were read.
#[derive(Default)]
struct Sample {
    key: String,
    /// The first member's name, for messages.
    first: String,
    /// The rank of the image's extension among the known ones, and its name.
    image: Option<(usize, String)>,
    text: Option<String>,
    json: Vec<(String, super::jsonl::Text)>,
    endings: HashSet<String>,
    /// The reason why it cannot be used.
    malformed: Option<String>,
}

/// Reads the samples of a shard.
pub(super) struct WebDataset {
    at: Location,
    archive: Archive,
    scan: TarScan,
    /// The first member of the next sample.
    pending: Option<Member>,
    header: Vec<String>,
    sources: Vec<Source>,
    /// The columns of the keys of `.json`.
    json_columns: HashMap<String, usize>,
    /// The extension of images, if the user gave one.
    image_ending: Option<String>,
    /// Keys of `.json` that must be plain text.
    plain: Vec<String>,
    sample: Sample,
    fields: Vec<String>,
    number: u64,
    other_keys: HashSet<String>,
}

impl WebDataset {
    /// Opens a shard. Its columns are `header` or, if that is `None`, those of its first samples.
    ///
    /// # Errors
    /// If it is not a regular file, cannot be read or is not a tar archive.
    pub(super) fn open(at: &Location, names: &ColumnNames, header: Option<&[String]>) -> Result<Self> {
        let path = at.as_path();
        let refuse = |message: &str| Error::Table {
            path: path.to_path_buf(),
            line: None,
            message: message.to_owned(),
        };
        // Opening a named pipe blocks.
        if !matches!(at.kind().map_err(Error::io("read", path))?, Kind::File(_)) {
            return Err(refuse(
                "is not a regular file, and an archive is read more than once; write it to a file first",
            ));
        }
        let archive = Archive::list(path).map_err(read_error(at))?;
        let archive = archive.ok_or_else(|| {
            refuse("is not a tar archive; leave out --format, or name the format that it has")
        })?;
        let image_name = if names.image == IMAGE_NAMES[0] { "image" } else { &names.image };
        let text_name = if names.caption == "txt" { "txt" } else { CAPTION_NAMES[0] };
        let mut shard = Self {
            at: at.clone(),
            archive,
            scan: TarScan::open(at, 0).map_err(read_error(at))?,
            pending: None,
            header: Vec::new(),
            sources: Vec::new(),
            json_columns: HashMap::new(),
            image_ending: Some(names.image.to_lowercase()).filter(|_| names.image != IMAGE_NAMES[0]),
            plain: Vec::new(),
            sample: Sample::default(),
            fields: Vec::new(),
            number: 0,
            other_keys: HashSet::new(),
        };
        shard.header = match header {
            Some(header) => header.to_vec(),
            None => {
                let mut header = shard.scan_columns(image_name, text_name)?;
                header.extend((names.id == PATH).then(|| PATH.to_owned()));
                shard.scan = TarScan::open(at, 0).map_err(read_error(at))?;
                (shard.pending, shard.number) = (None, 0);
                header
            }
        };
        let source = |(column, name): (usize, &String)| match column {
            0 => Source::Key,
            1 => Source::Image,
            _ if name == text_name => Source::Text,
            _ if name == PATH => Source::Path,
            _ => Source::Json(name.strip_prefix(JSON).unwrap_or(name).to_owned()),
        };
        shard.sources = shard.header.iter().enumerate().map(source).collect();
        let columns = shard.sources.iter().enumerate();
        shard.json_columns = columns
            .filter_map(|(column, source)| match source {
                Source::Json(key) => Some((key.clone(), column)),
                _ => None,
            })
            .collect();
        // A key of `.json` that is named like the text column and has no column of its own replaces a missing `.txt`.
        if let Some(text) = shard.sources.iter().position(|source| *source == Source::Text) {
            shard.json_columns.entry(text_name.to_owned()).or_insert(text);
        }
        shard.fields = vec![String::new(); shard.header.len()];
        Ok(shard)
    }

    /// The columns that the first samples have.
    fn scan_columns(&mut self, image: &str, text: &str) -> Result<Vec<String>> {
        // `columns.caption=txt` requests a column of `.txt`, even if the first samples have none.
        let (mut has_text, mut keys, mut known) = (text == "txt", Vec::new(), HashSet::new());
        for _ in 0..SCANNED_SAMPLES {
            let Some(sample) = self.next_sample()? else { break };
            has_text |= sample.text.is_some();
            keys.extend(sample.json.into_iter().map(|(key, _)| key).filter(|key| known.insert(key.clone())));
        }
        if self.number == 0 {
            let message = "the archive has no samples, which are members such as 000.jpg and 000.txt";
            return Err(self.refuse_header(message.to_owned()));
        }
        let mut header = vec![KEY.to_owned(), image.to_owned()];
        header.extend(has_text.then(|| text.to_owned()));
        let mut taken: HashSet<String> = header.iter().cloned().chain([PATH.to_owned()]).collect();
        for key in keys {
            // No other column may have a name of the image column, so that an output can be read again.
            let is_image = IMAGE_NAMES.iter().any(|name| name.eq_ignore_ascii_case(&key));
            let is_free = !is_image && !key.starts_with(JSON) && taken.insert(key.clone());
            header.push(if is_free { key } else { format!("{JSON}{key}") });
        }
        Ok(header)
    }

    /// The next member that belongs to a sample, and its key and extension.
    fn member(&mut self) -> Result<Option<(Member, String, String)>> {
        loop {
            let member = match self.pending.take() {
                Some(member) => member,
                None => match self.scan.next_member() {
                    Ok(Some(member)) => member,
                    Ok(None) => {
                        return Ok(None);
                    }
                    Err(TarError::Io(error)) => return Err(read_error(&self.at)(error)),
                    Err(error) => return Err(self.refuse_header(error.to_string())),
                },
            };
            if member.kind == MemberKind::Other {
                continue;
            }
            // Names without a dot or with a leading one belong to no sample.
            if let Some((key, ending)) = sample_key(&member.name) {
                let (key, ending) = (escaped(key), escaped(ending).to_lowercase());
                return Ok(Some((member, key, ending)));
            }
        }
    }

    /// Reads the members of the next sample; `None` at the end of the shard.
    fn next_sample(&mut self) -> Result<Option<Sample>> {
        let mut sample: Option<Sample> = None;
        while let Some((member, key, ending)) = self.member()? {
            if sample.as_ref().is_some_and(|sample| sample.key != key) {
                self.pending = Some(member);
                break;
            }
            let sample = sample.get_or_insert_with(|| Sample {
                key,
                first: escaped(&member.name),
                ..Sample::default()
            });
            self.add(sample, &member, ending)?;
        }
        if let Some(sample) = &mut sample
            && self.pending.is_none()
            && !self.scan.is_complete()
        {
            sample.refuse(
                "the archive ends here without its end marker, so members of this sample may be missing; copy the archive \
                 again"
                    .to_owned(),
            );
        }
        self.number += u64::from(sample.is_some());
        Ok(sample)
    }

    /// Adds a member to its sample.
    fn add(&mut self, sample: &mut Sample, member: &Member, ending: String) -> Result<()> {
        let name = escaped(&member.name);
        if sample.endings.is_empty()
            && sample_key(&member.name).is_some_and(|(key, _)| self.archive.is_split(key))
        {
            let first = sample.key.clone();
            sample.refuse(format!(
                "the members of `{first}` are not next to each other in the archive; pack it again in the order of names \
                 (tar --sort=name)"
            ));
        }
        let rank = match &self.image_ending {
            Some(expected) => (*expected == ending).then_some(0),
            None => IMAGE_ENDINGS.iter().position(|known| *known == ending),
        };
        if let (Some(_), Some((_, other))) = (rank, &sample.image) {
            let ending_of = |name: &str| {
                sample_key(name.as_bytes())
                    .map_or_else(String::new, |(_, ending)| String::from_utf8_lossy(ending).to_lowercase())
            };
            warn_once(format!(
                "some samples have several images, such as .{} and .{ending}, of which one is used; choose with \
                 --set columns.image=ENDING",
                ending_of(other)
            ));
        }
        if let Some(rank) = rank
            && sample.image.as_ref().is_none_or(|(chosen, _)| rank < *chosen)
        {
            sample.image = Some((rank, name.clone()));
        }
        if ending == "txt" || ending == "json" {
            match self.text_of(member, &name)? {
                Ok(bytes) if ending == "json" => match Object::parse(&bytes) {
                    Ok(Object(pairs)) => sample.json = pairs,
                    Err(error) => sample.refuse(format!("{name} is not one JSON object: {error}")),
                },
                Ok(bytes) => match String::from_utf8(bytes) {
                    Ok(text) => sample.text = Some(text),
                    Err(_) => sample.refuse(format!("{name} is not UTF-8")),
                },
                Err(message) => sample.refuse(message),
            }
        }
        if !sample.endings.insert(ending) {
            sample.refuse(format!("the member {name} occurs twice"));
        }
        Ok(())
    }

    /// The contents of a member that is text.
    fn text_of(&mut self, member: &Member, name: &str) -> Result<Result<Vec<u8>, String>> {
        if member.kind == MemberKind::Link {
            return Ok(Err(format!(
                "{name} is a link, which is not followed; pack the archive again with the files themselves (tar \
                 --dereference --hard-dereference)"
            )));
        }
        if member.kind == MemberKind::Sparse {
            return Ok(Err(format!("{name} is a sparse member; pack the archive again without --sparse")));
        }
        if member.size > MOST_TEXT_BYTES {
            return Ok(Err(format!("{name} is longer than {} MiB", MOST_TEXT_BYTES >> 20)));
        }
        let bytes = self.scan.contents(member, MOST_TEXT_BYTES).map_err(read_error(&self.at))?;
        Ok(if bytes.len() as u64 == member.size {
            Ok(bytes)
        } else {
            Err(format!("the archive ends in the middle of {name}; copy the archive again"))
        })
    }

    /// Sets the fields of the current row.
    fn fill(&mut self, sample: Sample) {
        self.fields.iter_mut().for_each(String::clear);
        let shard = self.at.name();
        for (column, source) in self.sources.iter().enumerate() {
            let field = &mut self.fields[column];
            match source {
                Source::Key => sample.key.clone_into(field),
                // A sample without an image gets a path that belongs to no member of another sample.
                Source::Image | Source::Path => {
                    *field = match &sample.image {
                        Some((_, name)) => format!("{shard}/{name}"),
                        None => format!("{shard}/{}.(no image)", sample.key),
                    };
                }
                Source::Text => field.push_str(sample.text.as_deref().unwrap_or_default()),
                Source::Json(_) => {}
            }
        }
        for (key, value) in &sample.json {
            match self.json_columns.get(key) {
                Some(&column) if self.sources[column] == Source::Text && sample.text.is_some() => {}
                Some(&column) => value.text.clone_into(&mut self.fields[column]),
                None if self.other_keys.len() < NAMED_KEYS && !self.other_keys.contains(key) => {
                    warn_once(format!(
                        "{}: the key `{key}` of {}.json occurs after the columns were determined; it is ignored",
                        self.at, sample.key
                    ));
                    self.other_keys.insert(key.clone());
                }
                None => {}
            }
        }
        if sample.text.is_some() && !self.sources.contains(&Source::Text) {
            warn_once(format!(
                "{}: {}.txt occurs after the columns were determined; it is ignored; for captions in .txt, name their \
                 column (--set columns.caption=txt)",
                self.at, sample.key
            ));
        }
        self.sample = sample;
    }
}

impl Sample {
    /// Keeps the first reason why the sample cannot be used.
    fn refuse(&mut self, message: String) {
        self.malformed.get_or_insert(message);
    }
}

impl TableReader for WebDataset {
    fn header(&self) -> &[String] {
        &self.header
    }

    fn names(&self, names: &ColumnNames) -> ColumnNames {
        ColumnNames { image: self.header[1].clone(), ..names.clone() }
    }

    fn expect_text(&mut self, columns: &[usize]) {
        let plain = self.json_columns.iter().filter(|(_, column)| columns.contains(column));
        self.plain = plain.map(|(key, _)| key.clone()).collect();
    }

    fn read(&mut self) -> Result<Read> {
        let Some(mut sample) = self.next_sample()? else { return Ok(Read::End) };
        let nested = sample.json.iter().filter(|(key, _)| self.plain.contains(key));
        let nested = nested.filter_map(|(key, value)| Some((key, value.scalar().err()?))).next();
        if let Some((key, what)) = nested {
            let message = format!("the value of `{key}` in {}.json is {what}, not text", sample.key);
            sample.refuse(message);
        }
        if let Some(message) = sample.malformed.take() {
            self.sample = sample;
            return Ok(Read::Malformed(Malformed { line: self.number, message }));
        }
        self.fill(sample);
        Ok(Read::Row)
    }

    fn field(&self, column: usize) -> &str {
        self.fields.get(column).map_or("", String::as_str)
    }

    fn unit(&self) -> &'static str {
        "sample"
    }

    fn number(&self) -> u64 {
        self.number
    }

    fn origin(&self, file: &Arc<Location>) -> Origin {
        let image = self.sample.image.as_ref().map(|(_, name)| name);
        Origin::member(file, image.unwrap_or(&self.sample.first))
    }

    fn position(&self) -> [u64; 2] {
        [self.pending.as_ref().map_or(self.scan.next_header(), |member| member.at), self.number]
    }

    fn seek(&mut self, to: [u64; 2]) -> Result<()> {
        if self.position() != to {
            let [at, number] = to;
            self.scan = TarScan::open(&self.at, at).map_err(read_error(&self.at))?;
            (self.pending, self.number) = (None, number);
        }
        Ok(())
    }

    fn has_more(&mut self) -> Result<bool> {
        let before = self.position();
        let more = self.next_sample()?.is_some();
        self.seek(before)?;
        Ok(more)
    }

    fn refuse_header(&self, message: String) -> Error {
        Error::Table { path: self.at.as_path().to_path_buf(), line: None, message }
    }

    fn refuse_row(&self, row: Malformed) -> Error {
        refuse_row(self.at.as_path(), None, format!("sample {}: {}", row.line, row.message))
    }
}

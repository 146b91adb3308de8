//! `encode`: makes a token cache, a shard at a time. What is there and whole is kept; what was cut off is made again.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    path::{Path, PathBuf},
    time::Instant,
};

use rayon::prelude::*;

use super::{
    CACHE, Description, FORMAT, Preparation, START, TableDescription, TextDescription, TextKept, absolute,
    image_tokenizer_folder, picture_key,
    shard::{self, Entry, Key, Row, Text, TextRows},
    text_encoder_folder,
};
use crate::{
    config::Config,
    data::{Corpus, Position, Record},
    encode::{ImageTokenizer, TextEncoder},
    error::{Error, LeftOutRows, Reasons, Result},
    files::{
        remove_leftovers,
        sealed::{Written, seal},
        sha256, sha256_of_file, write_whole,
    },
    interrupt::Interrupt,
    jobs::{
        Claim,
        folder::{Layout, OutputFolder, Present},
    },
    train::{
        corpus::{self, FailedRecord, NO_STEP, Progress},
        identity::{Image, Seen, Stamp, first_changed},
        prepared::{READY, expect_pyramid, make_folder},
        tokenise::{FitPictures, Tokenise},
        trained::Encoders,
    },
};

/// The table of the rows that were left out.
const FAILED: &str = "failed.csv";
/// Captions encoded at once.
const CAPTIONS: usize = 64;

/// What is to be encoded and how.
#[derive(Clone, Debug)]
pub struct EncodeRequest {
    /// Names the encoders, the columns and how pictures are prepared.
    pub config: Config,
    /// A run whose encoders are used, in place of those that the configuration names.
    pub run: Option<PathBuf>,
    /// The tables; the configuration's training and validation set if there is none.
    pub tables: Vec<PathBuf>,
    /// The folder of the cache.
    pub out: PathBuf,
    /// What is kept of captions, `Some(None)`: nothing. `None`: states in bf16 for a pretrained encoder, nothing for hashed
    /// words, which are made as fast as they are read.
    pub text: Option<Option<TextKept>>,
    /// Rows of a shard.
    pub shard_rows: usize,
    /// Replace another cache that is in the folder.
    pub overwrite: bool,
}

/// What came of it. Rows in are rows encoded and rows failed, which [`encode`] has checked.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodeSummary {
    /// Rows of all tables.
    pub rows: u64,
    /// Rows encoded.
    pub encoded: u64,
    /// Rows left out; `failed.csv` in the folder says why.
    pub failed: u64,
    /// Different captions whose states are kept.
    pub captions: u64,
    /// Shards in all.
    pub shards: usize,
    /// Shards that were made now; the others were there.
    pub made: usize,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Pictures encoded now.
    pub pictures_now: u64,
    /// How long that took, in seconds.
    pub seconds: f64,
    /// The folder.
    pub out: PathBuf,
}

impl fmt::Display for EncodeSummary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, encoded, failed, captions, shards, made, bytes, pictures_now, seconds, out } = self;
        writeln!(
            formatter,
            "{rows} rows in = {encoded} encoded + {failed} failed; states of {captions} captions"
        )?;
        writeln!(
            formatter,
            "{shards} shards, {made} of them made now, {:.1} MB: {}",
            *bytes as f64 / 1e6,
            out.display()
        )?;
        if *made > 0 {
            let rate = *pictures_now as f64 / seconds.max(1e-9);
            write!(formatter, "{pictures_now} pictures in {seconds:.1} s, {rate:.2} images/s; ")?;
        }
        write!(formatter, "use it with --set token_cache={}", out.display())
    }
}

/// What became of the records of a shard.
struct Rows {
    /// The usable ones, by their place.
    usable: Vec<(usize, Row)>,
    /// The others.
    failed: Vec<FailedRecord>,
    /// What the images of all of them were.
    images: Vec<Seen>,
}

/// Everything that a shard is made with.
struct Builder<'a> {
    config: &'a Config,
    folder: PathBuf,
    description: Description,
    tables: Vec<PathBuf>,
    tokenizer: Box<dyn ImageTokenizer>,
    text: Option<Box<dyn TextEncoder>>,
    /// Captions that earlier shards hold.
    seen: HashSet<Key>,
    /// Rows of the first table that the image tokenizer could not be fitted to, and why: they stay left out, whatever a later
    /// look at them gives.
    unfit: HashMap<u64, String>,
    /// What is wrong if the images that the tokenizer was fitted to are others now. Shards that are there name the image first.
    changed: Option<Error>,
    left_out: LeftOutRows,
}

/// Makes a token cache, or goes on with it, or repairs it.
///
/// # Errors
/// If a table or an encoder cannot be used, the folder holds something else, or the user interrupts: whole shards are then
/// kept and the same command goes on.
pub fn encode(
    request: &EncodeRequest,
    interrupt: &Interrupt,
    progress: &mut Progress<'_>,
) -> Result<EncodeSummary> {
    let config = &request.config;
    if request.shard_rows == 0 {
        return Err(Error::invalid("a shard needs at least one row"));
    }
    // A device that cannot be used ends the job before the data is read.
    let device = config.device.open()?;
    let tables = tables(request)?;
    let described = interrupt.while_reading("nothing had been encoded yet", || {
        tables.iter().map(|path| describe(config, path)).collect::<Result<Vec<_>>>()
    })?;
    let mut inputs = tables.clone();
    inputs.extend(request.run.clone());
    inputs.extend([&config.image_tokenizer.path, &config.text_encoder.path].into_iter().flatten().cloned());
    let claim = Claim { command: "encode", inputs: &inputs, overwrite: request.overwrite };
    let output = OutputFolder::claim(&claim, &request.out, LAYOUT)?;
    let settings = settings(request)?;
    let complete = output.present()? == Present::Complete;
    let (folder, beside) = place(&output, request, &settings, &described)?;
    for folder in [folder.clone(), image_tokenizer_folder(&folder), text_encoder_folder(&folder)] {
        if folder.exists() {
            remove_leftovers(&folder)?;
        }
    }
    let (tokenizer, unfit, changed) =
        image_tokenizer(request, (&folder, complete), &tables[0], interrupt, progress)?;
    let (text, kept) = text_encoder(request, &folder, interrupt)?;
    let (tokenizer, text) = match &device {
        None => (tokenizer, text),
        Some(device) => {
            let text = text.map(|text| text.to_device(device)).transpose()?;
            (tokenizer.to_device(device)?, text)
        }
    };
    let quantizer = tokenizer.quantizer();
    let description = Description {
        format: FORMAT,
        image_tokenizer: tokenizer.fingerprint(),
        side: tokenizer.image_side(),
        patch_nums: quantizer.patch_nums().to_vec(),
        vocabulary: quantizer.vocabulary(),
        preparation: Preparation::of(&corpus::preprocess(config, tokenizer.image_side())),
        text: text.as_ref().zip(kept).map(|(text, kept)| TextDescription {
            encoder: text.fingerprint(),
            tokens: text.tokens(),
            channels: text.channels(),
            kept,
        }),
        settings,
        shard_rows: request.shard_rows,
        tables: described,
    };
    let path = folder.join(CACHE);
    let json = serde_json::to_vec_pretty(&description).map_err(|error| Error::invalid(error.to_string()))?;
    write_whole(&path, &seal(json))?;
    let seen = HashSet::new();
    let left_out = LeftOutRows::default();
    let builder =
        Builder { config, folder, description, tables, tokenizer, text, seen, unfit, changed, left_out };
    let summary = builder.run(interrupt, progress)?;
    if beside {
        output.publish()?;
    } else {
        output.complete()?;
    }
    Ok(EncodeSummary { out: absolute(&request.out)?, ..summary })
}

/// What a cache's folder holds; see [`Layout`].
const LAYOUT: Layout = &[CACHE, "failed.csv", "image_tokenizer/*", "text_encoder/*", "shard-*"];

/// The tables that are to be encoded.
fn tables(request: &EncodeRequest) -> Result<Vec<PathBuf>> {
    if !request.tables.is_empty() {
        return Ok(request.tables.clone());
    }
    let data = &request.config.data;
    let mut tables = vec![data.train_csv()?.to_path_buf()];
    tables.extend(data.validation.clone());
    Ok(tables)
}

/// Reads a table once, so that a bad line ends the job now, and says what it is.
fn describe(config: &Config, path: &Path) -> Result<TableDescription> {
    let mut rows = 0;
    for record in corpus::open(config, path)?.refusing_duplicates() {
        record?;
        rows += 1;
    }
    Ok(TableDescription { path: absolute(path)?, rows, sha256: sha256_of_file(path)? })
}

/// SHA-256 over the keys that decide by what pictures and captions are encoded.
fn settings(request: &EncodeRequest) -> Result<String> {
    let all = request.config.to_json();
    let keys =
        ["image_tokenizer", "text_encoder", "pn", "patch_nums", "patch_size", "seed", "compat", "columns"];
    let chosen: Vec<_> = keys.iter().map(|key| (key, all.get(key))).collect();
    let run = request.run.as_deref().map(absolute).transpose()?;
    let told = serde_json::to_vec(&(chosen, run, request.text))
        .map_err(|error| Error::invalid(error.to_string()))?;
    Ok(sha256(&told))
}

/// Where the cache is written: in its folder, if that is empty or holds the same cache; else beside it, and whether so.
fn place(
    output: &OutputFolder,
    request: &EncodeRequest,
    settings: &str,
    tables: &[TableDescription],
) -> Result<(PathBuf, bool)> {
    let same = |held: &Result<Description>| {
        held.as_ref().is_ok_and(|held| {
            held.format == FORMAT
                && held.settings == settings
                && held.tables == tables
                && held.shard_rows == request.shard_rows
        })
    };
    let folder = output.target().to_path_buf();
    if output.present()? == Present::Nothing {
        output.begin_in_place()?;
        return Ok((folder, false));
    }
    if !folder.join(CACHE).exists() {
        // What was begun and never described is begun again.
        output.expect_own()?;
        output.clear_in_place()?;
        return Ok((folder, false));
    }
    let held = Description::read(&folder);
    if same(&held) {
        output.begin_in_place()?;
        return Ok((folder, false));
    }
    if !request.overwrite {
        let changed = |held: &Description| {
            let same =
                |one: &TableDescription, other: &TableDescription| one.path == other.path && one != other;
            let table = tables.iter().find(|table| held.tables.iter().any(|held| same(held, table)))?;
            Some(table.path.display().to_string())
        };
        let why = match &held {
            Ok(held) if held.format != FORMAT => "of an older version".to_owned(),
            Ok(held) if held.tables != tables => match changed(held) {
                Some(table) => format!("of other tables, or they were changed since: {table}"),
                None => "of other tables".to_owned(),
            },
            Ok(_) => "by other encoders or options".to_owned(),
            Err(error) => format!("that cannot be read ({error})"),
        };
        return Err(Error::invalid(format!(
            "{} holds a token cache {why}; give --overwrite to make it anew, or another --out",
            folder.display()
        )));
    }
    output.expect_own()?;
    let keep = same(&Description::read(&output.staging()));
    Ok((output.begin_beside(keep)?, true))
}

/// An image tokenizer, why images could not be used to fit it, by their rows, and what is wrong if they are others than before.
type Fitted = (Box<dyn ImageTokenizer>, HashMap<u64, String>, Option<Error>);

/// The tokenizer that the cache holds, or that of the run, or the configuration's; saved before anything is made by it.
fn image_tokenizer(
    request: &EncodeRequest,
    (cache, complete): (&Path, bool),
    first: &Path,
    interrupt: &Interrupt,
    progress: &mut Progress<'_>,
) -> Result<Fitted> {
    let (config, folder) = (&request.config, image_tokenizer_folder(cache));
    let mut unfit = HashMap::new();
    let mut saved = None;
    if folder.join(READY).exists() {
        let tokenizer = corpus::saved_image_tokenizer(config, &folder)?;
        if complete || request.run.is_some() || config.image_tokenizer.path.is_some() {
            return Ok((tokenizer, unfit, None));
        }
        saved = Some(tokenizer);
    }
    let tokenizer = match &request.run {
        Some(run) => corpus::saved_image_tokenizer(config, &run.join("image_tokenizer"))?,
        None => {
            let records = match config.image_tokenizer.path {
                // Nothing has to be fitted.
                Some(_) => Vec::new(),
                None => interrupt.while_reading(NO_STEP, || corpus::open(config, first)?.read_all())?,
            };
            let failed_out = cache.join(FAILED);
            let (tokenizer, _, images) =
                corpus::image_tokenizer(config, (first, &records), Some(&failed_out), interrupt, progress)?;
            unfit.extend(images.failed().map(|(place, reason)| (records[place].row, reason)));
            expect_pyramid(config, tokenizer.as_ref())?;
            // A job that goes on is fitted once more, as this alone says whether the images are still the same.
            if let Some(saved) = saved {
                if saved.fingerprint() == tokenizer.fingerprint() {
                    return Ok((saved, unfit, None));
                }
                if shard::codes_path(cache, 0).exists() {
                    let changed = Error::invalid(format!(
                        "{}: images that the image tokenizer was fitted to were replaced, added or deleted since; put them back as \
                         they were, or give --overwrite to make {} anew",
                        first.display(),
                        cache.display()
                    ));
                    return Ok((saved, unfit, Some(changed)));
                }
            }
            tokenizer
        }
    };
    make_folder(&folder)?;
    tokenizer.save(&folder)?;
    write_whole(&folder.join(READY), b"")?;
    Ok((tokenizer, unfit, None))
}

/// A text encoder, if there is one, and what is kept of what it gives.
type KeptText = (Option<Box<dyn TextEncoder>>, Option<TextKept>);

/// The text encoder whose states or ids are to be kept, if they are, and which.
fn text_encoder(request: &EncodeRequest, cache: &Path, interrupt: &Interrupt) -> Result<KeptText> {
    let config = &request.config;
    let kept = match request.text {
        Some(asked) => asked,
        None if Encoders::text_is_pretrained(config, request.run.as_deref())? => Some(TextKept::Bf16),
        None => None,
    };
    if kept.is_none() {
        return Ok((None, None));
    }
    let folder = text_encoder_folder(cache);
    if folder.join(READY).exists() {
        return Ok((Some(corpus::saved_text_encoder(config, &folder)?), kept));
    }
    let text = interrupt.while_reading(NO_STEP, || match &request.run {
        Some(run) => corpus::saved_text_encoder(config, &run.join("text_encoder")),
        None => corpus::text_encoder(config),
    })?;
    if kept == Some(TextKept::Ids) {
        text.ids(&[""])?;
    }
    make_folder(&folder)?;
    text.save(&folder)?;
    write_whole(&folder.join(READY), b"")?;
    Ok((Some(text), kept))
}

impl Builder<'_> {
    fn run(mut self, interrupt: &Interrupt, progress: &mut Progress<'_>) -> Result<EncodeSummary> {
        let start = Instant::now();
        let total: u64 = self.description.tables.iter().map(|table| table.rows).sum();
        let (mut number, mut done, mut made, mut pictures_now) = (0, 0, 0, 0);
        let mut entries: Vec<Entry> = Vec::new();
        for table in 0..self.tables.len() {
            let mut from: Option<Position> = None;
            loop {
                progress("encoding", done, total);
                interrupt.check(&format!(
                    "{done} of {total} rows are encoded and kept; give the same command again to go on"
                ))?;
                let held = Entry::read(&self.folder, number, FORMAT).filter(|entry| {
                    (entry.table, entry.from) == (table, from)
                        && entry.images.len() as u64 == entry.rows
                        && entry.next.is_none_or(|next| next.byte > from.unwrap_or(START).byte)
                        && entry.is_whole(&self.folder, number)
                });
                let entry = match held {
                    Some(entry) => {
                        self.expect_unchanged(&entry)?;
                        self.note_captions(&entry, number)?;
                        entry
                    }
                    None => {
                        self.changed.take().map_or(Ok(()), Err)?;
                        let entry = self.make(number, table, from, (done, total), interrupt, progress)?;
                        made += 1;
                        pictures_now += entry.rows - entry.failed.len() as u64;
                        entry
                    }
                };
                done += entry.rows;
                number += 1;
                from = entry.next;
                entries.push(entry);
                if from.is_none() {
                    break;
                }
            }
        }
        progress("encoding", done, total);
        self.changed.take().map_or(Ok(()), Err)?;
        if done != total {
            return Err(Error::invalid(format!(
                "{total} rows went in, but {done} came out: a table was changed meanwhile; give --overwrite to begin anew"
            )));
        }
        let failed: Vec<&FailedRecord> = entries.iter().flat_map(|entry| &entry.failed).collect();
        let failed_out = self.folder.join(FAILED);
        corpus::write_failed(&failed_out, failed.iter().copied())?;
        if failed.len() as u64 == total {
            let tables: Vec<String> = self.tables.iter().map(|path| path.display().to_string()).collect();
            let tables = PathBuf::from(tables.join(", "));
            let reasons: Reasons = failed.iter().map(|record| record.reason.as_str()).collect();
            return Err(reasons.none_usable(&tables, Some(&failed_out)));
        }
        let failed = failed.len() as u64;
        let bytes = |entry: &Entry| entry.codes.bytes + entry.text.as_ref().map_or(0, |text| text.bytes);
        Ok(EncodeSummary {
            rows: total,
            encoded: total - failed,
            failed,
            captions: self.seen.len() as u64,
            shards: number,
            made,
            bytes: entries.iter().map(bytes).sum(),
            pictures_now,
            seconds: start.elapsed().as_secs_f64(),
            out: self.folder,
        })
    }

    /// Remembers which captions a shard holds.
    fn note_captions(&mut self, entry: &Entry, number: usize) -> Result<()> {
        if let (Some(described), Some(written)) = (&self.description.text, &entry.text) {
            let text = Text::open(&shard::text_path(&self.folder, number), described, written)?;
            self.seen.extend(text.keys());
        }
        Ok(())
    }

    /// Refuses to go on with a shard of images that were replaced or deleted since: the tokenizer may have been fitted to them,
    /// so that making the shard anew would not give what an undisturbed job gives.
    fn expect_unchanged(&self, entry: &Entry) -> Result<()> {
        let mut corpus = corpus::open(self.config, &self.tables[entry.table])?;
        if let Some(position) = entry.from {
            corpus.seek(position)?;
        }
        let records: Vec<Record> = corpus.take(entry.images.len()).collect::<Result<_>>()?;
        let images: Vec<_> = records.iter().map(|record| record.image.as_path()).zip(&entry.images).collect();
        match first_changed(&images, None) {
            None => Ok(()),
            Some(at) => Err(Error::Image {
                path: records[at].image.clone(),
                message: format!(
                    "was replaced, added or deleted since it was encoded into {}; put it back as it was, or remove that folder \
                     to encode all anew",
                    self.folder.display()
                ),
            }),
        }
    }

    /// Makes one shard.
    fn make(
        &mut self,
        number: usize,
        table: usize,
        from: Option<Position>,
        (done, total): (u64, u64),
        interrupt: &Interrupt,
        progress: &mut Progress<'_>,
    ) -> Result<Entry> {
        let mut corpus = corpus::open(self.config, &self.tables[table])?;
        if let Some(position) = from {
            corpus.seek(position)?;
        }
        let size = self.description.shard_rows;
        let records: Vec<Record> = corpus.by_ref().take(size).collect::<Result<_>>()?;
        let next = (records.len() == size).then(|| Corpus::position(&corpus));
        // A table whose last shard is full has nothing after it.
        let next = if next.is_some() && corpus.next().is_none() { None } else { next };
        let Rows { usable, failed, images } = self.rows(table, &records, |at| {
            progress("encoding", done + at, total);
            interrupt.check(&format!(
                "{done} of {total} rows are encoded and kept; give the same command again to go on"
            ))
        })?;
        let kept: Vec<&Record> = usable.iter().map(|(at, _)| &records[*at]).collect();
        let text = self.text_states(number, &kept)?;
        let rows: Vec<Row> = usable.into_iter().map(|(_, row)| row).collect();
        let tokens = self.description.tokens();
        let codes = shard::write_codes(&shard::codes_path(&self.folder, number), tokens, &rows)?;
        let rows = records.len() as u64;
        let entry = Entry { table, from, next, rows, failed, images, codes, text };
        entry.write(&self.folder, number)?;
        Ok(entry)
    }

    /// The usable records, by their place, and the others.
    fn rows(
        &mut self,
        table: usize,
        records: &[Record],
        mut report: impl FnMut(u64) -> Result<()>,
    ) -> Result<Rows> {
        let stamps: Vec<Option<Stamp>> = records.par_iter().map(|record| Stamp::of(&record.image)).collect();
        let tokenise = Tokenise { config: self.config, tokenizer: self.tokenizer.as_ref(), cache: None };
        let mut found = Vec::with_capacity(records.len());
        let unfit = |record: &Record| self.unfit.get(&record.row).filter(|_| table == 0);
        let known = records.iter().enumerate().filter_map(|(at, record)| Some((at, unfit(record)?.clone())));
        tokenise.each(records, &mut FitPictures::of_failed(known), |at, codes| {
            report(at as u64)?;
            found.push(codes.map_err(|error| error.to_string()));
            Ok(())
        })?;
        // The file that was stamped must be the one that was decoded.
        let digests: Vec<Option<[u8; 32]>> = records
            .par_iter()
            .zip(&stamps)
            .map(|(record, stamp)| shard::unchanged(&record.image, (*stamp)?))
            .collect();
        let mut rows =
            Rows { usable: Vec::with_capacity(records.len()), failed: Vec::new(), images: Vec::new() };
        for (at, ((record, found), (stamp, digest))) in
            records.iter().zip(found).zip(stamps.into_iter().zip(digests)).enumerate()
        {
            rows.images.push(stamp.map(|stamp| Image::new(stamp, digest.as_ref())));
            let reason = match (found, stamp.zip(digest)) {
                (Ok(codes), Some((stamp, digest))) => {
                    let picture = picture_key(&self.folder, &record.image);
                    rows.usable.push((at, Row { id: record.id.clone(), picture, stamp, digest, codes }));
                    continue;
                }
                (Ok(_), None) => "the picture was changed while it was encoded".to_owned(),
                (Err(reason), _) => reason,
            };
            self.left_out.add(&record.id, &reason);
            rows.failed.push(FailedRecord { id: record.id.clone(), line: record.line, reason });
        }
        Ok(rows)
    }

    /// Writes the states or ids of the captions that no earlier shard holds.
    fn text_states(&mut self, number: usize, records: &[&Record]) -> Result<Option<Written>> {
        let (Some(encoder), Some(described)) = (&self.text, &self.description.text) else {
            return Ok(None);
        };
        // The first shard also holds the empty caption, which stands for those that are left out in training.
        let empty = (number == 0).then_some("");
        let mut captions = Vec::new();
        for caption in empty.into_iter().chain(records.iter().map(|record| record.caption.as_str())) {
            let key = shard::key(caption.as_bytes());
            if self.seen.insert(key) {
                captions.push((key, caption));
            }
        }
        let mut rows = TextRows::default();
        for chunk in captions.chunks(CAPTIONS) {
            let (keys, texts): (Vec<Key>, Vec<&str>) = chunk.iter().copied().unzip();
            match described.kept.floats() {
                Some(floats) => rows.add(&keys, &encoder.encode(&texts)?, floats)?,
                None => rows.add_ids(&keys, &encoder.ids(&texts)?)?,
            }
        }
        rows.write(&shard::text_path(&self.folder, number), described).map(Some)
    }
}

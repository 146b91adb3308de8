//! Builds the shards of a token cache.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    time::Instant,
};

use rayon::prelude::*;

use super::{EncodeSummary, FAILED};
use crate::{
    config::Config,
    data::{Corpus, Cursor, Record, RecordBatch, store::Stamp},
    encode::{ImageTokenizer, TextEncoder},
    error::{Error, LeftOutRows, Reasons, Result},
    files::sealed::Written,
    interrupt::Interrupt,
    jobs::progress::Progress,
    tokens::{
        cache::{
            Description, FORMAT, image_key,
            shard::{self, Entry, Key, ShardRow, Text, TextRows},
        },
        identity::first_changed,
        records::{self, FailedRecord},
        stamp::{Image, ImageState},
        tokenize::{FitImages, Tokenize},
    },
};

/// Captions per forward pass of the text encoder.
const CAPTIONS: usize = 64;

/// The records of a shard after encoding.
struct Rows {
    /// Usable records, with their index in the shard.
    usable: Vec<(usize, ShardRow)>,
    /// Records that could not be encoded.
    failed: Vec<FailedRecord>,
    /// State of every record's image when it was read.
    images: Vec<ImageState>,
}

/// Inputs and state of a build.
pub(super) struct Builder<'a> {
    pub(super) config: &'a Config,
    pub(super) folder: PathBuf,
    pub(super) description: Description,
    pub(super) tables: Vec<PathBuf>,
    pub(super) tokenizer: Box<dyn ImageTokenizer>,
    pub(super) text: Option<Box<dyn TextEncoder>>,
    /// Captions in the shards built so far.
    pub(super) known_captions: HashSet<Key>,
    /// Rows of the first table whose images could not be used to fit the image tokenizer, with the reasons. They stay
    /// excluded even if they can be read later.
    pub(super) unfit: HashMap<u64, String>,
    /// The error to report if the images that the tokenizer was fitted to have changed. Shards that already exist are
    /// checked first, as they can name the image.
    pub(super) changed: Option<Error>,
    pub(super) left_out: LeftOutRows,
}

impl Builder<'_> {
    pub(super) fn run(mut self, interrupt: &Interrupt, progress: &mut dyn Progress) -> Result<EncodeSummary> {
        let start = Instant::now();
        let total: u64 = self.description.tables.iter().map(|table| table.rows).sum();
        let (mut number, mut done, mut made, mut images_now) = (0, 0, 0, 0);
        let mut entries: Vec<Entry> = Vec::new();
        for table in 0..self.tables.len() {
            let mut from: Option<Cursor> = None;
            let mut corpus = self.config.open_corpus(&self.tables[table])?;
            loop {
                progress.counted("encoding", done, total);
                interrupt.check(&format!(
                    "{done} of {total} rows are encoded and kept; run the same command again to continue"
                ))?;
                let kept = Entry::read(&self.folder, number, FORMAT).filter(|entry| {
                    (entry.table, entry.from) == (table, from)
                        && entry.images.len() as u64 == entry.rows
                        && entry.next.is_none_or(|next| next.is_after(from))
                        && entry.is_whole(&self.folder, number)
                });
                let entry = match kept {
                    Some(entry) => {
                        self.expect_unchanged(&mut corpus, &entry)?;
                        self.note_captions(&entry, number)?;
                        entry
                    }
                    None => {
                        self.changed.take().map_or(Ok(()), Err)?;
                        let entry = self.make(
                            number,
                            (&mut corpus, table),
                            from,
                            (done, total),
                            interrupt,
                            progress,
                        )?;
                        made += 1;
                        images_now += entry.rows - entry.failed.len() as u64;
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
        progress.counted("encoding", done, total);
        self.changed.take().map_or(Ok(()), Err)?;
        if done != total {
            return Err(Error::invalid(format!(
                "{done} of {total} rows were encoded: a table changed meanwhile; pass --overwrite to start over"
            )));
        }
        let failed: Vec<&FailedRecord> = entries.iter().flat_map(|entry| &entry.failed).collect();
        let failed_out = self.folder.join(FAILED);
        records::write_failed(&failed_out, failed.iter().copied())?;
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
            captions: self.known_captions.len() as u64,
            shards: number,
            made,
            bytes: entries.iter().map(bytes).sum(),
            images_now,
            seconds: start.elapsed().as_secs_f64(),
            out: self.folder,
        })
    }

    /// Records which captions a shard has.
    fn note_captions(&mut self, entry: &Entry, number: usize) -> Result<()> {
        if let (Some(described), Some(written)) = (&self.description.text, &entry.text) {
            let text = Text::open(&shard::text_path(&self.folder, number), described, written)?;
            self.known_captions.extend(text.keys());
        }
        Ok(())
    }

    /// Fails if images of an existing shard were replaced or deleted: the tokenizer may have been fitted to them, so
    /// that rebuilding the shard would differ from the result of an uninterrupted job.
    fn expect_unchanged(&self, corpus: &mut Corpus, entry: &Entry) -> Result<()> {
        let RecordBatch { records, .. } = corpus.batch(entry.from, entry.images.len())?;
        let images: Vec<_> = records.iter().map(|record| &record.image).zip(&entry.images).collect();
        match first_changed(&images, None) {
            None => Ok(()),
            Some(at) => Err(records[at].image.refuse(format!(
                "was replaced, added or deleted since it was encoded into {}; restore it, or remove that folder to \
                 encode everything again",
                self.folder.display()
            ))),
        }
    }

    /// Builds one shard.
    fn make(
        &mut self,
        number: usize,
        (corpus, table): (&mut Corpus, usize),
        from: Option<Cursor>,
        (done, total): (u64, u64),
        interrupt: &Interrupt,
        progress: &mut dyn Progress,
    ) -> Result<Entry> {
        let RecordBatch { records, next } = corpus.batch(from, self.description.shard_rows)?;
        let Rows { usable, failed, images } = self.rows(table, &records, |at| {
            progress.counted("encoding", done + at, total);
            interrupt.check(&format!(
                "{done} of {total} rows are encoded and kept; run the same command again to continue"
            ))
        })?;
        let kept: Vec<&Record> = usable.iter().map(|(at, _)| &records[*at]).collect();
        let text = self.text_states(number, &kept)?;
        let rows: Vec<ShardRow> = usable.into_iter().map(|(_, row)| row).collect();
        let tokens = self.description.tokens();
        let codes = shard::write_codes(&shard::codes_path(&self.folder, number), tokens, &rows)?;
        let rows = records.len() as u64;
        let entry = Entry { table, from, next, rows, failed, images, codes, text };
        entry.write(&self.folder, number)?;
        Ok(entry)
    }

    /// Encodes records and separates the usable ones, with their index, from the others.
    fn rows(
        &mut self,
        table: usize,
        records: &[Record],
        mut report: impl FnMut(u64) -> Result<()>,
    ) -> Result<Rows> {
        let stamps: Vec<Option<Stamp>> = records.par_iter().map(|record| record.image.stamp()).collect();
        let tokenize = Tokenize { config: self.config, tokenizer: self.tokenizer.as_ref(), cache: None };
        let mut found = Vec::with_capacity(records.len());
        let unfit = |record: &Record| self.unfit.get(&record.row).filter(|_| table == 0);
        let known = records.iter().enumerate().filter_map(|(at, record)| Some((at, unfit(record)?.clone())));
        tokenize.each(records, &mut FitImages::of_failed(known), |at, codes| {
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
                    let image = image_key(&self.folder, &record.image);
                    rows.usable.push((at, ShardRow { id: record.id.clone(), image, stamp, digest, codes }));
                    continue;
                }
                (Ok(_), None) => "the image changed while it was being encoded".to_owned(),
                (Err(reason), _) => reason,
            };
            self.left_out.add(&record.id, &reason);
            rows.failed.push(FailedRecord::of(record, reason));
        }
        Ok(rows)
    }

    /// Writes the states or ids of the captions that no earlier shard has.
    fn text_states(&mut self, number: usize, records: &[&Record]) -> Result<Option<Written>> {
        let (Some(encoder), Some(described)) = (&self.text, &self.description.text) else {
            return Ok(None);
        };
        // The first shard also stores the empty caption, which replaces captions dropped in training.
        let empty = (number == 0).then_some("");
        let mut captions = Vec::new();
        for caption in empty.into_iter().chain(records.iter().map(|record| record.caption.as_str())) {
            let key = shard::key(caption.as_bytes());
            if self.known_captions.insert(key) {
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

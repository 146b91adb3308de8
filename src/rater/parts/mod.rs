//! Jobs over a corpus that are taken up again after a kill: constant memory, the corpus' order, no row lost or doubled.
//!
//! What is found goes into part files beside the output, each written whole; a part names the place in the corpus where
//! it and the next one begin. When all parts are there the output is put together from them and the corpus, and they are
//! removed. A job that goes over the corpus several times has a sequence of parts for each time.
//!
//! Parts belong to what they were made of. `job.json` names it: a job with other inputs is refused by the first of them that
//! differs, and so is one of whose images one was replaced, added or deleted since its row was done, when the job goes on and once
//! more when the output is put together (see [`identity`](crate::tokens::identity)). What numbers do not depend on is no part of
//! that: parts serve whatever the batch and the threads. A part that was damaged is made again.

mod inputs;
mod source;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use inputs::{FORMAT, Job};
pub(crate) use inputs::{Input, deciding};
pub(crate) use source::{Outcome, PartRow, Source};
use source::{PART, Part};

use crate::{
    data::{Cursor, ImageRef, Record},
    engine::Tensor,
    error::{Error, LeftOutRows, Reasons, Result},
    files::{
        WholeFile, remove_leftovers,
        sealed::{Unsealed, read_sealed, seal, unseal, write_sealed},
        write_whole,
    },
    interrupt::Interrupt,
    jobs::{Claim, output::Output, progress::Progress},
    select::ratings::{TableKind, write_error},
    tokens::{
        identity::{are_same, first_changed},
        stamp::ImageState,
    },
};

/// Name of the file that says what the parts belong to.
const JOB: &str = "job.json";

/// What images were, by the order of their rows.
#[derive(Serialize, Deserialize)]
struct Images {
    images: Vec<ImageState>,
}

/// What an interrupted job has kept before its first part.
pub(crate) const NOTHING_DONE: &str = "nothing had been done yet; give the same command again";
/// What it has kept when all parts are there.
pub(crate) const PARTS_KEPT: &str = "all rows are done and kept; give the same command again for the table";

/// How messages name a job.
#[derive(Clone, Copy)]
pub(crate) struct Words {
    /// The command: `score`.
    pub(crate) command: &'static str,
    /// What it is about: `scoring`.
    pub(crate) doing: &'static str,
    /// What becomes of a row: `scored`.
    pub(crate) done: &'static str,
}

/// One of a job's ways through its corpus.
#[derive(Clone, Copy)]
pub(crate) struct Sequence {
    /// Which one, counted from 0.
    pub(crate) number: usize,
    /// Of how many.
    pub(crate) of: usize,
    /// Rows of the corpus.
    pub(crate) rows: u64,
}

/// How many rows went in and came out; checked to add up.
pub(crate) struct Counts {
    pub(crate) found: u64,
    pub(crate) failed: u64,
    /// Why rows failed.
    reasons: Reasons,
}

/// Ending of the table of the records left out.
const FAILED: &str = ".failed.csv";

/// A job's files: its output with companions, and its parts until it is done, which lie where the output is written meanwhile.
pub(crate) struct Parts {
    output: Output,
    folder: PathBuf,
    words: Words,
}

impl Parts {
    /// The files of the job that writes `out`, and beside it `companions` and the table of failed records.
    ///
    /// # Errors
    /// If the output is no kind of table, or may not be written; see [`Output::claim`].
    pub(crate) fn of(claim: &Claim<'_>, out: &Path, companions: &[&str], words: Words) -> Result<Self> {
        TableKind::of(out)?;
        let output = Output::claim(claim, out, &[companions, &[FAILED]].concat())?;
        let folder = output.staging().join("parts");
        Ok(Self { output, folder, words })
    }

    /// The table of the records left out, beside `out`.
    pub(crate) fn failed_out(out: &Path) -> PathBuf {
        let mut name = out.file_stem().unwrap_or_default().to_os_string();
        name.push(FAILED);
        out.with_file_name(name)
    }

    /// Lets the output's marker say in which column the ratings are.
    pub(crate) fn note_rating_column(&mut self, name: &str) {
        self.output.note_rating_column(name);
    }

    /// Where the output is written until all of it is there.
    pub(crate) fn staged(&self) -> PathBuf {
        self.output.staged()
    }

    /// Makes the folder of parts, or finds that of the same job; parts of another job are refused.
    pub(crate) fn prepare(&self, inputs: &[Input], overwrite: bool) -> Result<()> {
        let (path, job) = (self.folder.join(JOB), Job::of(inputs));
        let described = serde_json::to_vec_pretty(&job).map_err(|error| Error::invalid(error.to_string()))?;
        if path.exists() {
            let held = fs::read(&path).map_err(Error::io("read", &path))?;
            let refused = match unseal(&held) {
                Unsealed::Whole(held) => match serde_json::from_slice::<Job>(&held) {
                    Ok(held) if held == job => return remove_leftovers(&self.folder),
                    Ok(held) if held.format == FORMAT => Error::invalid(format!(
                        "{} holds parts of another job: {} is another one now, or was changed; put it back as it was, or give \
                         --overwrite to begin anew",
                        self.folder.display(),
                        job.first_difference(inputs, &held)
                    )),
                    _ => self.of_another_version(),
                },
                Unsealed::Broken => self.damaged(&path),
                Unsealed::Without => self.of_another_version(),
            };
            if !overwrite {
                return Err(refused);
            }
        }
        self.output.clear()?;
        fs::create_dir_all(&self.folder).map_err(Error::io("create", &self.folder))?;
        write_whole(&path, &seal(described))
    }

    fn of_another_version(&self) -> Error {
        Error::invalid(format!(
            "{} holds parts of another version of this program, or its {JOB} is damaged; give --overwrite to begin anew",
            self.folder.display()
        ))
    }

    fn damaged(&self, path: &Path) -> Error {
        Error::Table { path: path.to_path_buf(), line: None, message: format!("is damaged; {}", self.cure()) }
    }

    fn cure(&self) -> String {
        format!("remove {} to {} anew", self.folder.display(), self.words.command)
    }

    fn changed(&self, image: &ImageRef) -> Error {
        image.refuse(format!(
            "was replaced, added or deleted since its row was {}; put it back as it was, or {}",
            self.words.done,
            self.cure()
        ))
    }

    /// Refuses a table that is no longer the one that the parts were made from.
    pub(crate) fn expect_unchanged(&self, source: &Source<'_>, digest: &str) -> Result<()> {
        if source.open()?.identity()? == digest {
            return Ok(());
        }
        let Words { command, doing, .. } = self.words;
        Err(Error::invalid(format!(
            "{} was changed while {doing} was going on, so nothing was written; {command} again with --overwrite",
            source.path.display()
        )))
    }

    fn path(&self, sequence: usize, number: u64) -> PathBuf {
        self.folder.join(format!("{sequence:04}-{number:08}.json"))
    }

    fn read<T: DeserializeOwned>(&self, path: &Path) -> Result<T> {
        read_sealed(path, "give the same command again, which makes it anew")
    }

    /// The part that is there and begins `from` there. One that is damaged is made anew: all that it takes is its time.
    fn held<N: DeserializeOwned>(
        &self,
        sequence: usize,
        number: u64,
        from: Option<Cursor>,
    ) -> Option<Part<N>> {
        let path = self.path(sequence, number);
        if !path.exists() {
            return None;
        }
        match self.read::<Part<N>>(&path) {
            // After one that was made anew with another batch, parts may begin elsewhere.
            Ok(part) => Some(part).filter(|part| part.from == from),
            Err(error) => {
                tracing::warn!("{error}: its rows are {} again", self.words.done);
                None
            }
        }
    }

    fn note_path(&self, sequence: usize) -> PathBuf {
        self.folder.join(format!("{sequence:04}-note.json"))
    }

    /// Keeps something that belongs to a sequence; to be read when the output is put together.
    pub(crate) fn keep_note(&self, sequence: usize, note: &impl Serialize) -> Result<()> {
        write_sealed(&self.note_path(sequence), note)
    }

    /// What [`keep_note`](Self::keep_note) kept.
    pub(crate) fn note<T: DeserializeOwned>(&self, sequence: usize) -> Result<T> {
        self.read(&self.note_path(sequence))
    }

    fn images_path(&self) -> PathBuf {
        self.folder.join("validation.json")
    }

    /// Keeps what the images of a further table were, on which all numbers depend; or refuses others than those that were kept.
    pub(crate) fn keep_images(&self, source: &Source<'_>, images: Vec<ImageState>) -> Result<()> {
        let path = self.images_path();
        if !path.exists() {
            return write_sealed(&path, &Images { images });
        }
        let held: Images = read_sealed(&path, &self.cure())?;
        let same = |(one, other)| are_same(one, other);
        match held.images.iter().zip(&images).position(|pair| !same(pair)) {
            None if held.images.len() == images.len() => Ok(()),
            at => {
                let record = source.open()?.nth(at.unwrap_or_default()).transpose()?;
                Err(self.changed(&record.map(|record| record.image).unwrap_or_default()))
            }
        }
    }

    /// Refuses to go on if one of those images is another one now.
    pub(crate) fn expect_images(&self, source: &Source<'_>) -> Result<()> {
        let path = self.images_path();
        if !path.exists() {
            return Ok(());
        }
        let held: Images = read_sealed(&path, &self.cure())?;
        match source.first_changed(None, held.images.iter())? {
            None => Ok(()),
            Some(image) => Err(self.changed(&image)),
        }
    }

    /// Does the parts of a sequence that are not there. `begin` makes what measures a batch (see [`Source::part`]), and
    /// runs only if something is missing.
    ///
    /// # Errors
    /// Those of reading and measuring; [`Error::Interrupted`] when the user stopped it, the parts being kept.
    pub(crate) fn complete<N, M>(
        &self,
        sequence: Sequence,
        source: &Source<'_>,
        interrupt: &Interrupt,
        progress: &mut dyn Progress,
        begin: impl FnOnce(&mut dyn Progress) -> Result<M>,
    ) -> Result<()>
    where
        N: Serialize + DeserializeOwned,
        M: FnMut(&Tensor, &[&Record]) -> Result<Vec<Outcome<N>>>,
    {
        let Sequence { number: at, of, rows } = sequence;
        let mut done = at as u64 * rows;
        let total = of as u64 * rows;
        let mut next = Some(None);
        let mut number = 0;
        let mut begin = Some(begin);
        let mut measure = None;
        let mut left_out = LeftOutRows::default();
        while let Some(from) = next {
            progress.counted(self.words.doing, done, total);
            if let Some(part) = self.held::<N>(at, number, from) {
                let images = part.rows.iter().map(|row| &row.image);
                if let Some(image) = source.first_changed(from, images)? {
                    return Err(self.changed(&image));
                }
                done += part.rows.len() as u64;
                next = part.next.map(Some);
                number += 1;
                continue;
            }
            if let Some(begin) = begin.take() {
                measure = Some(begin(progress)?);
            }
            let Some(measure) = &mut measure else { break };
            progress.counted(self.words.doing, done, total);
            interrupt.check(&format!(
                "{done} of {total} rows are {} and kept; give the same command again to go on",
                self.words.done
            ))?;
            let part = source.part(&mut source.open()?, from, &mut left_out, measure)?;
            done += part.rows.len() as u64;
            write_sealed(&self.path(at, number), &part)?;
            next = part.next.map(Some);
            number += 1;
        }
        progress.counted(self.words.doing, done, total);
        Ok(())
    }

    /// Goes through the corpus and the parts of all sequences side by side: gives every record of which all have numbers
    /// to `write`, puts the others into the table of failed records, and checks that no row is lost or doubled.
    ///
    /// # Errors
    /// Those of reading and writing; if the corpus has changed, or no row has numbers.
    pub(crate) fn gather<N: DeserializeOwned>(
        &self,
        source: &Source<'_>,
        sequences: usize,
        rows: u64,
        mut write: impl FnMut(Record, Vec<N>) -> Result<()>,
    ) -> Result<Counts> {
        let (folder, Words { command, done, .. }) = (self.folder.display(), self.words);
        let mut failures = Failures::create(&self.output.companion(FAILED))?;
        let mut corpus = source.open()?;
        let mut counts = Counts { found: 0, failed: 0, reasons: Reasons::default() };
        let mut sequences: Vec<_> = (0..sequences).map(|sequence| Going::new(self, sequence)).collect();
        let mut left = false;
        let mut more = true;
        while more {
            // Some rows at once, as their images are looked at side by side.
            let mut chunk: Vec<(Record, Vec<PartRow<N>>)> = Vec::with_capacity(PART);
            while more && chunk.len() < PART {
                let found: Vec<PartRow<N>> = sequences
                    .iter_mut()
                    .filter_map(|going| going.next().transpose())
                    .collect::<Result<_>>()?;
                let record = corpus.next().transpose()?;
                if found.is_empty() {
                    (more, left) = (false, record.is_some());
                    break;
                }
                let same = |record: &Record| {
                    found.len() == sequences.len() && found.iter().all(|found| found.row == record.row)
                };
                let Some(record) = record.filter(same) else {
                    let row = found.first().map_or(0, |found| found.row);
                    return Err(Error::invalid(format!(
                        "{} changed while it was {done} (row {row} is another); remove {folder} and {command} again",
                        source.path.display()
                    )));
                };
                chunk.push((record, found));
            }
            let images: Vec<(&ImageRef, &ImageState)> = chunk
                .iter()
                .flat_map(|(record, found)| found.iter().map(|found| (&record.image, &found.image)))
                .collect();
            if let Some(at) = first_changed(&images, source.cache) {
                return Err(self.changed(images[at].0));
            }
            for (record, found) in chunk {
                let mut numbers = Vec::with_capacity(sequences.len());
                let mut reason = None;
                for PartRow { outcome, .. } in found {
                    match outcome {
                        Outcome::Found(found) => numbers.push(found),
                        Outcome::Failed(failed) => reason = reason.or(Some(failed)),
                    }
                }
                match reason {
                    None => {
                        write(record, numbers)?;
                        counts.found += 1;
                    }
                    Some(reason) => {
                        failures.add(&record, &reason)?;
                        counts.failed += 1;
                    }
                }
            }
        }
        let Counts { found, failed, .. } = counts;
        if found + failed != rows || left {
            return Err(Error::invalid(format!(
                "{rows} rows went in, but {found} were {done} and {failed} failed; the corpus changed meanwhile: remove \
                 {folder} and {command} again"
            )));
        }
        let reasons = failures.finish()?;
        counts.reasons = reasons;
        Ok(counts)
    }

    /// The error of a job that found nothing. The table of failed rows gets its name, and the same command can be given again.
    pub(crate) fn none_usable(self, counts: &Counts, table: &Path, out: &Path) -> Result<Error> {
        self.output.publish_unfinished()?;
        Ok(counts.reasons.none_usable(table, Some(&Self::failed_out(out))))
    }

    /// Gives the output and its companions their names; the parts go.
    pub(crate) fn publish(self) -> Result<()> {
        self.output.publish()
    }
}

/// A sequence of parts, row by row.
struct Going<'a, N> {
    parts: &'a Parts,
    sequence: usize,
    number: u64,
    rows: std::vec::IntoIter<PartRow<N>>,
    more: bool,
}

impl<'a, N: DeserializeOwned> Going<'a, N> {
    fn new(parts: &'a Parts, sequence: usize) -> Self {
        Self { parts, sequence, number: 0, rows: Vec::new().into_iter(), more: true }
    }

    fn next(&mut self) -> Result<Option<PartRow<N>>> {
        loop {
            match self.rows.next() {
                None if self.more => {
                    let part: Part<N> = self.parts.read(&self.parts.path(self.sequence, self.number))?;
                    self.number += 1;
                    self.more = part.next.is_some();
                    self.rows = part.rows.into_iter();
                }
                next => return Ok(next),
            }
        }
    }
}

/// The table of the records left out.
struct Failures {
    path: PathBuf,
    writer: csv::Writer<WholeFile>,
    reasons: Reasons,
}

impl Failures {
    fn create(path: &Path) -> Result<Self> {
        let mut writer = csv::Writer::from_writer(WholeFile::create(path)?);
        writer.write_record(["id", "origin", "reason"]).map_err(|error| write_error(path, error))?;
        Ok(Self { path: path.to_path_buf(), writer, reasons: Reasons::default() })
    }

    fn add(&mut self, record: &Record, reason: &str) -> Result<()> {
        self.reasons.add(reason);
        self.writer
            .write_record([&record.id, &record.origin.to_string(), reason])
            .map_err(|error| write_error(&self.path, error))
    }

    /// Gives the reasons.
    fn finish(self) -> Result<Reasons> {
        let path = self.path;
        let file = self.writer.into_inner().map_err(|error| Error::io("write", &path)(error.into_error()))?;
        file.finish()?;
        Ok(self.reasons)
    }
}

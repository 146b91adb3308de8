//! Jobs over a corpus that resume after a kill, in constant memory and in the order of the corpus, with no row lost
//! or duplicated.
//!
//! Results go into part files next to the output, each written atomically; a part records the position in the corpus
//! where it and the next one begin. When all parts are there, the output is assembled from them and the corpus, and
//! they are removed. A job that passes over the corpus several times has one sequence of parts per pass.
//!
//! Parts belong to the inputs recorded in `job.json`. A job with other inputs is refused, and the message names the
//! first input that differs. A job is also refused if an image was replaced, added or deleted since its row was done;
//! this is checked when the job resumes and again when the output is assembled (see
//! [`identity`](crate::tokens::identity)). Batch size and thread count are not among the inputs, so parts stay valid
//! when these change. A damaged part is recomputed.

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
        AtomicFile, remove_leftovers,
        sealed::{Unsealed, read_sealed, seal, unseal, write_sealed},
        write_atomic,
    },
    interrupt::Interrupt,
    jobs::{Claim, output::Output, progress::Progress},
    select::ratings::{TableKind, write_error},
    tokens::{
        identity::{are_same, first_changed},
        stamp::ImageState,
    },
};

/// The file that records the inputs of the parts.
const JOB: &str = "job.json";

/// The stamps of the images, in the order of their rows.
#[derive(Serialize, Deserialize)]
struct Images {
    images: Vec<ImageState>,
}

/// The state of a job interrupted before its first part.
pub(crate) const NOTHING_DONE: &str = "nothing was done yet; run the same command again";
/// The state of a job interrupted when all parts are there.
pub(crate) const PARTS_KEPT: &str =
    "all rows are done and kept; run the same command again to write the table";

/// The words for a job in messages.
#[derive(Clone, Copy)]
pub(crate) struct Words {
    /// The command: `score`.
    pub(crate) command: &'static str,
    /// The activity: `scoring`.
    pub(crate) doing: &'static str,
    /// The result for a row: `scored`.
    pub(crate) done: &'static str,
}

/// One pass of a job over its corpus.
#[derive(Clone, Copy)]
pub(crate) struct Sequence {
    /// Its index, counted from 0.
    pub(crate) number: usize,
    /// The number of passes.
    pub(crate) of: usize,
    /// Rows of the corpus.
    pub(crate) rows: u64,
}

/// Numbers of rows by outcome, which are checked to add up to the rows of the corpus.
pub(crate) struct Counts {
    pub(crate) found: u64,
    pub(crate) failed: u64,
    /// Why rows failed.
    reasons: Reasons,
}

/// Suffix of the table of failed records.
const FAILED: &str = ".failed.csv";

/// A job's files: the output with its companions and, until the job is done, the parts, which are in the staging folder
/// of the output.
pub(crate) struct Parts {
    output: Output,
    folder: PathBuf,
    words: Words,
}

impl Parts {
    /// The files of the job that writes `out`, with `companions` and the table of failed records next to it.
    ///
    /// # Errors
    /// If the output's extension is not that of a table, or the output cannot be claimed; see [`Output::claim`].
    pub(crate) fn of(claim: &Claim<'_>, out: &Path, companions: &[&str], words: Words) -> Result<Self> {
        TableKind::of(out)?;
        let output = Output::claim(claim, out, &[companions, &[FAILED]].concat())?;
        let folder = output.staging().join("parts");
        Ok(Self { output, folder, words })
    }

    /// The table of failed records, next to `out`.
    pub(crate) fn failed_out(out: &Path) -> PathBuf {
        let mut name = out.file_stem().unwrap_or_default().to_os_string();
        name.push(FAILED);
        out.with_file_name(name)
    }

    /// Records the rating column in the output's marker.
    pub(crate) fn note_rating_column(&mut self, name: &str) {
        self.output.note_rating_column(name);
    }

    /// The path that the output is written to until it is published.
    pub(crate) fn staged(&self) -> PathBuf {
        self.output.staged()
    }

    /// Creates the folder of parts, or reuses that of the same job; parts of another job are refused.
    pub(crate) fn prepare(&self, inputs: &[Input], overwrite: bool) -> Result<()> {
        let (path, job) = (self.folder.join(JOB), Job::of(inputs));
        let described = serde_json::to_vec_pretty(&job).map_err(|error| Error::invalid(error.to_string()))?;
        if path.exists() {
            let stored = fs::read(&path).map_err(Error::io("read", &path))?;
            let refused = match unseal(&stored) {
                Unsealed::Whole(stored) => match serde_json::from_slice::<Job>(&stored) {
                    Ok(stored) if stored == job => return remove_leftovers(&self.folder),
                    Ok(stored) if stored.format == FORMAT => Error::invalid(format!(
                        "{} contains parts of another job: {} has changed; restore it, or pass --overwrite to start over",
                        self.folder.display(),
                        job.first_difference(inputs, &stored)
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
        write_atomic(&path, &seal(described))
    }

    fn of_another_version(&self) -> Error {
        Error::invalid(format!(
            "{} contains parts of another version of this program, or its {JOB} is damaged; pass --overwrite to start \
             over",
            self.folder.display()
        ))
    }

    fn damaged(&self, path: &Path) -> Error {
        Error::Table { path: path.to_path_buf(), line: None, message: format!("is damaged; {}", self.hint()) }
    }

    fn hint(&self) -> String {
        format!("remove {} to {} again", self.folder.display(), self.words.command)
    }

    fn changed(&self, image: &ImageRef) -> Error {
        image.refuse(format!(
            "was replaced, added or deleted since its row was {}; restore it, or {}",
            self.words.done,
            self.hint()
        ))
    }

    /// Refuses a table that changed since the parts were made from it.
    pub(crate) fn expect_unchanged(&self, source: &Source<'_>, digest: &str) -> Result<()> {
        if source.open()?.identity()? == digest {
            return Ok(());
        }
        let Words { command, doing, .. } = self.words;
        Err(Error::invalid(format!(
            "{} changed during {doing}, so nothing was written; {command} again with --overwrite",
            source.path.display()
        )))
    }

    fn path(&self, sequence: usize, number: u64) -> PathBuf {
        self.folder.join(format!("{sequence:04}-{number:08}.json"))
    }

    fn read<T: DeserializeOwned>(&self, path: &Path) -> Result<T> {
        read_sealed(path, "run the same command again to recompute it")
    }

    /// The existing part that begins at `from`, if any. A damaged part is recomputed, which only costs time.
    fn stored<N: DeserializeOwned>(
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
            // If an earlier part was recomputed with another batch size, later parts may begin at other positions.
            Ok(part) => Some(part).filter(|part| part.from == from),
            Err(error) => {
                tracing::warn!("{error}: its rows will be {} again", self.words.done);
                None
            }
        }
    }

    fn note_path(&self, sequence: usize) -> PathBuf {
        self.folder.join(format!("{sequence:04}-note.json"))
    }

    /// Stores a note for a sequence, to be read when the output is assembled.
    pub(crate) fn keep_note(&self, sequence: usize, note: &impl Serialize) -> Result<()> {
        write_sealed(&self.note_path(sequence), note)
    }

    /// The note stored by [`keep_note`](Self::keep_note).
    pub(crate) fn note<T: DeserializeOwned>(&self, sequence: usize) -> Result<T> {
        self.read(&self.note_path(sequence))
    }

    fn images_path(&self) -> PathBuf {
        self.folder.join("validation.json")
    }

    /// Stores the stamps of the images of a second table that all results depend on, or refuses images that differ
    /// from the stored ones.
    pub(crate) fn keep_images(&self, source: &Source<'_>, images: Vec<ImageState>) -> Result<()> {
        let path = self.images_path();
        if !path.exists() {
            return write_sealed(&path, &Images { images });
        }
        let stored: Images = read_sealed(&path, &self.hint())?;
        let same = |(one, other)| are_same(one, other);
        match stored.images.iter().zip(&images).position(|pair| !same(pair)) {
            None if stored.images.len() == images.len() => Ok(()),
            at => {
                let record = source.open()?.nth(at.unwrap_or_default()).transpose()?;
                Err(self.changed(&record.map(|record| record.image).unwrap_or_default()))
            }
        }
    }

    /// Refuses to continue if one of those images has changed.
    pub(crate) fn expect_images(&self, source: &Source<'_>) -> Result<()> {
        let path = self.images_path();
        if !path.exists() {
            return Ok(());
        }
        let stored: Images = read_sealed(&path, &self.hint())?;
        match source.first_changed(&mut source.open()?, None, stored.images.iter())? {
            None => Ok(()),
            Some(image) => Err(self.changed(&image)),
        }
    }

    /// Computes the missing parts of a sequence. `begin` creates the function that measures a batch (see
    /// [`Source::part`]); it is called only if a part is missing.
    ///
    /// # Errors
    /// Those of reading and measuring; [`Error::Interrupted`] if the user stopped the job, whose parts are kept.
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
        let mut corpus = source.open()?;
        while let Some(from) = next {
            progress.counted(self.words.doing, done, total);
            if let Some(part) = self.stored::<N>(at, number, from) {
                let images = part.rows.iter().map(|row| &row.image);
                if let Some(image) = source.first_changed(&mut corpus, from, images)? {
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
                "{done} of {total} rows are {} and kept; run the same command again to continue",
                self.words.done
            ))?;
            let part = source.part(&mut corpus, from, &mut left_out, measure)?;
            done += part.rows.len() as u64;
            write_sealed(&self.path(at, number), &part)?;
            next = part.next.map(Some);
            number += 1;
        }
        progress.counted(self.words.doing, done, total);
        Ok(())
    }

    /// Reads the corpus and the parts of all sequences in lockstep. Passes each record with results from all of them to
    /// `write`, adds the others to the table of failed records, and checks that no row is lost or duplicated.
    ///
    /// # Errors
    /// Those of reading and writing; if the corpus has changed, or no row has results.
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
        let mut sequences: Vec<_> = (0..sequences).map(|sequence| PartRows::new(self, sequence)).collect();
        let mut left = false;
        let mut more = true;
        while more {
            // Several rows at a time, since their images are checked in parallel.
            let mut chunk: Vec<(Record, Vec<PartRow<N>>)> = Vec::with_capacity(PART);
            while more && chunk.len() < PART {
                let found: Vec<PartRow<N>> = sequences
                    .iter_mut()
                    .filter_map(|sequence| sequence.next().transpose())
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
                        "{} changed while it was {done} (row {row} differs); remove {folder} and {command} again",
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
                "of {rows} rows, {found} were {done} and {failed} failed: the corpus changed meanwhile; remove \
                 {folder} and {command} again"
            )));
        }
        let reasons = failures.finish()?;
        counts.reasons = reasons;
        Ok(counts)
    }

    /// The error of a job without any result. The table of failed records is published, and the same command can be
    /// run again.
    pub(crate) fn none_usable(self, counts: &Counts, table: &Path, out: &Path) -> Result<Error> {
        self.output.publish_unfinished()?;
        Ok(counts.reasons.none_usable(table, Some(&Self::failed_out(out))))
    }

    /// Publishes the output and its companions; removes the parts.
    pub(crate) fn publish(self) -> Result<()> {
        self.output.publish()
    }
}

/// The rows of a sequence of parts, in order.
struct PartRows<'a, N> {
    parts: &'a Parts,
    sequence: usize,
    number: u64,
    rows: std::vec::IntoIter<PartRow<N>>,
    more: bool,
}

impl<'a, N: DeserializeOwned> PartRows<'a, N> {
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

/// The table of failed records.
struct Failures {
    path: PathBuf,
    writer: csv::Writer<AtomicFile>,
    reasons: Reasons,
}

impl Failures {
    fn create(path: &Path) -> Result<Self> {
        let mut writer = csv::Writer::from_writer(AtomicFile::create(path)?);
        writer.write_record(["id", "origin", "reason"]).map_err(|error| write_error(path, error))?;
        Ok(Self { path: path.to_path_buf(), writer, reasons: Reasons::default() })
    }

    fn add(&mut self, record: &Record, reason: &str) -> Result<()> {
        self.reasons.add(reason);
        self.writer
            .write_record([&record.id, &record.origin.to_string(), reason])
            .map_err(|error| write_error(&self.path, error))
    }

    /// Finishes the table and returns the reasons.
    fn finish(self) -> Result<Reasons> {
        let path = self.path;
        let file = self.writer.into_inner().map_err(|error| Error::io("write", &path)(error.into_error()))?;
        file.finish()?;
        Ok(self.reasons)
    }
}

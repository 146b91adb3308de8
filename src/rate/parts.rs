//! Jobs over a corpus that are taken up again after a kill: constant memory, the corpus' order, no row lost or doubled.
//!
//! What is found goes into part files beside the output, each written whole; a part names the place in the corpus where
//! the next one begins. When all parts are there the output is put together from them and the corpus, and they are
//! removed. A job that goes over the corpus several times has a sequence of parts for each time.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    config::Config,
    data::{Corpus, Position, Record},
    encode::ImageTokenizer,
    engine::Tensor,
    error::{Error, Reasons, Result},
    files::{WholeFile, remove_folder, remove_leftovers, sha256_of_file, write_whole},
    interrupt::Interrupt,
    select::ratings::{TableKind, write_error},
    train::{
        cache::TokenCache,
        corpus::{self, Progress},
        tokenise::{FitPictures, Tokenise},
    },
};

/// Records of one part file, rounded up to whole batches.
const PART: usize = 512;
/// Name of the file that says what the parts belong to.
const JOB: &str = "job.json";

/// One part file: what became of consecutive records.
#[derive(Serialize, Deserialize)]
pub(crate) struct Part<N> {
    /// Where the next part begins; `None` at the end of the corpus.
    pub(crate) next: Option<Position>,
    /// Row, and what was found of it, in order.
    pub(crate) rows: Vec<(u64, Outcome<N>)>,
}

/// What became of a record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Outcome<N> {
    /// The numbers that were asked for.
    Found(N),
    /// Why there are none.
    Failed(String),
}

/// Looks at a batch of usable records and their codes `[B, L]`, and answers for each.
pub(crate) type Measure<'a, N> = dyn FnMut(&Tensor, &[&Record]) -> Result<Vec<Outcome<N>>> + 'a;

/// A table of pictures and how it is read.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    /// The table.
    pub(crate) path: &'a Path,
    /// Columns, decoding and threads.
    pub(crate) config: &'a Config,
    /// Turns pictures into codes.
    pub(crate) tokenizer: &'a dyn ImageTokenizer,
    /// Codes that are kept.
    pub(crate) cache: Option<&'a TokenCache>,
    /// Usable pictures handed over at once.
    pub(crate) batch: usize,
}

impl Source<'_> {
    /// Opens the table.
    pub(crate) fn open(&self) -> Result<Corpus> {
        corpus::open(self.config, self.path)
    }

    /// Reads the whole table once and counts its rows, so that a bad line ends a job now and not at its end.
    pub(crate) fn rows(&self) -> Result<u64> {
        let mut rows = 0;
        for record in self.open()?.refusing_duplicates() {
            record?;
            rows += 1;
        }
        Ok(rows)
    }

    /// Does the next part.
    pub(crate) fn part<N>(&self, corpus: &mut Corpus, measure: &mut Measure<'_, N>) -> Result<Part<N>> {
        let size = PART.div_ceil(self.batch) * self.batch;
        let records: Vec<Record> = corpus.by_ref().take(size).collect::<Result<_>>()?;
        let next = (records.len() == size).then(|| Corpus::position(corpus));
        let Self { config, tokenizer, cache, .. } = *self;
        let mut reasons = Vec::with_capacity(records.len());
        let (mut usable, mut codes) = (Vec::new(), Vec::new());
        let tokenise = Tokenise { config, tokenizer, cache };
        tokenise.each(&records, &mut FitPictures::default(), |place, found| {
            reasons.push(match found {
                Ok(found) => {
                    usable.push(&records[place]);
                    codes.extend(found.into_iter().map(u32::from));
                    None
                }
                Err(error) => {
                    tracing::warn!("left out {}: {error}", records[place].id);
                    Some(error.to_string())
                }
            });
            Ok(())
        })?;
        let tokens = tokenizer.quantizer().tokens();
        let mut measured = Vec::with_capacity(usable.len());
        for (records, codes) in usable.chunks(self.batch).zip(codes.chunks(self.batch * tokens)) {
            measured.extend(measure(&Tensor::new(&[records.len(), tokens], codes.to_vec())?, records)?);
        }
        let mut measured = measured.into_iter();
        let mut rows = Vec::with_capacity(records.len());
        for (record, reason) in records.iter().zip(reasons) {
            let outcome = match reason {
                Some(reason) => Outcome::Failed(reason),
                None => measured
                    .next()
                    .ok_or_else(|| Error::invalid(format!("nothing was found of {}", record.id)))?,
            };
            rows.push((record.row, outcome));
        }
        Ok(Part { next, rows })
    }
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
}

/// A job's files: its output's companions, and its parts until it is done.
pub(crate) struct Parts {
    folder: PathBuf,
    /// The table of the records left out.
    pub(crate) failed_out: PathBuf,
    words: Words,
}

impl Parts {
    /// The files of the job that writes `out`.
    ///
    /// # Errors
    /// If the output is no kind of table, or is there and is neither to be replaced nor that of an unfinished job.
    pub(crate) fn of(out: &Path, overwrite: bool, words: Words) -> Result<Self> {
        TableKind::of(out)?;
        let (folder, failed_out) = (beside(out, ".parts"), beside(out, ".failed.csv"));
        // Beside the parts of an unfinished job, outputs are what it had got to when it was stopped.
        let unfinished = folder.join(JOB).exists();
        for path in [out, &failed_out] {
            if path.exists() && !overwrite && !unfinished {
                let path = path.display();
                return Err(Error::invalid(format!(
                    "{path} is there already; give --overwrite or another --out"
                )));
            }
        }
        Ok(Self { folder, failed_out, words })
    }

    /// Makes the folder of parts, or finds that of the same job; parts of another job are refused.
    pub(crate) fn prepare(&self, job: &impl Serialize, overwrite: bool) -> Result<()> {
        let path = self.folder.join(JOB);
        let described = serde_json::to_vec_pretty(job).map_err(|error| Error::invalid(error.to_string()))?;
        if path.exists() {
            let held = fs::read(&path).map_err(Error::io("read", &path))?;
            if held == described {
                return remove_leftovers(&self.folder);
            }
            if !overwrite {
                return Err(Error::invalid(format!(
                    "{} holds parts of another job (another checkpoint, corpus or option); remove it, or give --overwrite",
                    self.folder.display()
                )));
            }
        }
        if self.folder.exists() {
            remove_folder(&self.folder)?;
        }
        fs::create_dir_all(&self.folder).map_err(Error::io("create", &self.folder))?;
        write_whole(&path, &described)
    }

    /// Refuses a table that is no longer the one that the parts were made from.
    pub(crate) fn expect_unchanged(&self, table: &Path, digest: &str) -> Result<()> {
        if sha256_of_file(table)? == digest {
            return Ok(());
        }
        let Words { command, doing, .. } = self.words;
        Err(Error::invalid(format!(
            "{} was changed while {doing} was going on, so nothing was written; {command} again with --overwrite",
            table.display()
        )))
    }

    fn path(&self, sequence: usize, number: u64) -> PathBuf {
        self.folder.join(format!("{sequence:04}-{number:08}.json"))
    }

    fn read<T: DeserializeOwned>(&self, path: &Path) -> Result<T> {
        let bytes = fs::read(path).map_err(Error::io("read", path))?;
        serde_json::from_slice(&bytes).map_err(|error| Error::Table {
            path: path.to_path_buf(),
            line: None,
            message: format!(
                "is damaged ({error}); remove {} and {} again",
                self.folder.display(),
                self.words.command
            ),
        })
    }

    fn write(path: &Path, value: &impl Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(value).map_err(|error| Error::invalid(error.to_string()))?;
        write_whole(path, &bytes)
    }

    /// Keeps something that belongs to a sequence; to be read when the output is put together.
    pub(crate) fn keep_note(&self, sequence: usize, note: &impl Serialize) -> Result<()> {
        Self::write(&self.folder.join(format!("{sequence:04}-note.json")), note)
    }

    /// What [`keep_note`](Self::keep_note) kept.
    pub(crate) fn note<T: DeserializeOwned>(&self, sequence: usize) -> Result<T> {
        self.read(&self.folder.join(format!("{sequence:04}-note.json")))
    }

    /// Does the parts of a sequence that are not there. `begin` makes what measures a batch (see [`Measure`]), and
    /// runs only if something is missing.
    ///
    /// # Errors
    /// Those of reading and measuring; [`Error::Interrupted`] when the user stopped it, the parts being kept.
    pub(crate) fn complete<N, M>(
        &self,
        sequence: Sequence,
        source: &Source<'_>,
        interrupt: &Interrupt,
        progress: &mut Progress<'_>,
        begin: impl FnOnce(&mut Progress<'_>) -> Result<M>,
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
        while next.is_some() && self.path(at, number).exists() {
            let part: Part<N> = self.read(&self.path(at, number))?;
            done += part.rows.len() as u64;
            next = part.next.map(Some);
            number += 1;
        }
        if next.is_some() {
            let mut measure = begin(progress)?;
            while let Some(position) = next {
                progress(self.words.doing, done, total);
                interrupt.check(&format!(
                    "{done} of {total} rows are {} and kept; give the same command again to go on",
                    self.words.done
                ))?;
                let mut corpus = source.open()?;
                if let Some(position) = position {
                    corpus.seek(position)?;
                }
                let part = source.part(&mut corpus, &mut measure)?;
                done += part.rows.len() as u64;
                Self::write(&self.path(at, number), &part)?;
                next = part.next.map(Some);
                number += 1;
            }
        }
        progress(self.words.doing, done, total);
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
        let mut failures = Failures::create(&self.failed_out)?;
        let mut corpus = source.open()?;
        let mut counts = Counts { found: 0, failed: 0 };
        let mut more = true;
        for number in 0.. {
            if !more {
                break;
            }
            let parts: Vec<Part<N>> = (0..sequences)
                .map(|sequence| self.read(&self.path(sequence, number)))
                .collect::<Result<_>>()?;
            more = parts.iter().any(|part| part.next.is_some());
            let most = parts.iter().map(|part| part.rows.len()).max().unwrap_or(0);
            let mut parts: Vec<_> = parts.into_iter().map(|part| part.rows.into_iter()).collect();
            for _ in 0..most {
                let outcomes: Vec<(u64, Outcome<N>)> = parts.iter_mut().filter_map(Iterator::next).collect();
                let record = corpus.next().transpose()?;
                let same = |record: &Record| {
                    outcomes.len() == sequences && outcomes.iter().all(|(row, _)| *row == record.row)
                };
                let Some(record) = record.filter(same) else {
                    let row = outcomes.first().map_or(0, |(row, _)| *row);
                    return Err(Error::invalid(format!(
                        "{} changed while it was {done} (row {row} is another); remove {folder} and {command} again",
                        source.path.display()
                    )));
                };
                let mut numbers = Vec::with_capacity(sequences);
                let mut reason = None;
                for (_, outcome) in outcomes {
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
        let Counts { found, failed } = counts;
        if found + failed != rows || corpus.next().is_some() {
            return Err(Error::invalid(format!(
                "{rows} rows went in, but {found} were {done} and {failed} failed; the corpus changed meanwhile: remove \
                 {folder} and {command} again"
            )));
        }
        let reasons = failures.finish()?;
        if found == 0 {
            // The parts say only that nothing could be read: with other files, the same command is to look again.
            remove_folder(&self.folder)?;
            return Err(reasons.none_usable(source.path, Some(&self.failed_out)));
        }
        Ok(counts)
    }

    /// Removes the parts, when the output is there.
    pub(crate) fn remove(self) -> Result<()> {
        remove_folder(&self.folder)
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
        writer.write_record(["id", "line", "reason"]).map_err(|error| write_error(path, error))?;
        Ok(Self { path: path.to_path_buf(), writer, reasons: Reasons::default() })
    }

    fn add(&mut self, record: &Record, reason: &str) -> Result<()> {
        self.reasons.add(reason);
        self.writer
            .write_record([&record.id, &record.line.to_string(), reason])
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

/// `dir/name.csv` to `dir/name` and an ending.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_os_string();
    name.push(ending);
    path.with_file_name(name)
}

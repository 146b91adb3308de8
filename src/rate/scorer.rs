//! Rates every record of a corpus, streaming: constant memory, the corpus' order, resumable after a kill.
//!
//! Ratings go into part files beside the output, each written whole; a part names the place in the corpus where the
//! next one begins. When all parts are there the table is put together from them and the corpus, and they are removed.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    config::Config,
    data::{Corpus, Loader, Position, Record, stack},
    encode::{ImageTokenizer, TextEncoder, load_image_tokenizer, load_text_encoder, pyramid::CodeReader},
    engine::{DType, Parameters, Purpose, Random, Tape, Tensor, cuda::Device},
    error::{Error, Result},
    files::{remove_folder, remove_leftovers, sha256, write_whole},
    interrupt::Interrupt,
    models::{Mode, Rater, Weighing},
    rate::corpus::{self, batch, in_parallel},
    select::ratings::{ColumnNames as RatingColumns, RatingRow, RatingsHeader, RatingsWriter},
    train::{
        checkpoint::{self, Checkpoint, expect_fingerprint},
        run_directory::RunDirectory,
    },
};

/// Records of one part file, rounded up to whole batches.
const PART: usize = 512;
/// Pictures decoded ahead of their use.
const AHEAD: usize = 128;
/// Name of the file that says what the parts belong to.
const JOB: &str = "job.json";

/// What is to be rated and how.
#[derive(Clone, Debug)]
pub struct ScoreRequest {
    /// A run directory, for its newest checkpoint, or one checkpoint in it.
    pub checkpoint: PathBuf,
    /// The corpus.
    pub corpus: PathBuf,
    /// The ratings table to write, `.csv` or `.parquet`.
    pub out: PathBuf,
    /// Records rated at once.
    pub batch: usize,
    /// Give the released rating, which depends on the batch, instead of the instance logit, which does not.
    pub batch_normalised: bool,
    /// Replace an output that is there.
    pub overwrite: bool,
    /// `key=value` arguments on top of the run's configuration.
    pub sets: Vec<String>,
}

impl ScoreRequest {
    /// The run that the checkpoint belongs to, and the checkpoint itself where one is named.
    fn run(&self) -> (PathBuf, Option<PathBuf>) {
        let given = &self.checkpoint;
        if given.join("config.json").exists() {
            return (given.clone(), None);
        }
        let run = given.parent().and_then(Path::parent).unwrap_or(Path::new("."));
        (run.to_path_buf(), Some(given.clone()))
    }

    /// The run's configuration with the arguments on top.
    ///
    /// # Errors
    /// If there is no run or an argument cannot be used.
    pub fn configuration(&self) -> Result<Config> {
        let run = self.run().0;
        let held = RunDirectory::config_of(&run)?;
        Config::parse(&run.display().to_string(), &held.to_json().to_string(), &self.sets)
    }
}

/// What came of it. Rows in are rows scored and rows failed, which [`score`] has checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoreSummary {
    /// Rows of the corpus.
    pub rows: u64,
    /// Rows rated.
    pub scored: u64,
    /// Rows left out, with their reasons in their own file.
    pub failed: u64,
    /// The ratings table.
    pub out: PathBuf,
    /// The file of the rows left out.
    pub failed_out: PathBuf,
}

impl fmt::Display for ScoreSummary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, scored, failed, out, failed_out } = self;
        write!(formatter, "{rows} rows in = {scored} scored + {failed} failed\nratings: {}", out.display())?;
        if *failed > 0 {
            write!(formatter, "\nfailed:  {}", failed_out.display())?;
        }
        Ok(())
    }
}

/// One part file: what became of consecutive records.
#[derive(Serialize, Deserialize)]
struct Part {
    /// Where the next part begins; `None` at the end of the corpus.
    next: Option<Position>,
    /// Row, and rating or reason, in order.
    rows: Vec<(u64, Outcome)>,
}

#[derive(Serialize, Deserialize)]
enum Outcome {
    Rating(f64),
    Failed(String),
}

/// What a set of parts belongs to; parts of another job are refused.
#[derive(PartialEq, Serialize, Deserialize)]
struct Job {
    checkpoint: String,
    corpus: String,
    rows: u64,
    batch: usize,
    batch_normalised: bool,
    config: String,
}

struct Scorer {
    config: Config,
    tokenizer: Box<dyn ImageTokenizer>,
    text: Box<dyn TextEncoder>,
    rater: Rater,
    parameters: Parameters,
    weighing: Weighing,
    /// On a device: makes the rater's input from codes.
    reader: Option<CodeReader>,
    batch: usize,
    batch_normalised: bool,
    /// SHA-256 of the checkpoint's state.
    checkpoint: String,
}

/// Rates a corpus. `progress` is told how many rows of how many are done.
///
/// # Errors
/// If the checkpoint, the corpus or the output cannot be used, or the user interrupts: what was rated is then kept and
/// the same command goes on.
pub fn score(
    request: &ScoreRequest,
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<ScoreSummary> {
    let failed_out = beside(&request.out, ".failed.csv");
    let parts = beside(&request.out, ".parts");
    // Beside the parts of an unfinished job, outputs are what it had got to when it was stopped.
    let unfinished = parts.join(JOB).exists();
    for path in [&request.out, &failed_out] {
        if path.exists() && !request.overwrite && !unfinished {
            let path = path.display();
            return Err(Error::invalid(format!(
                "{path} is there already; give --overwrite or another --out"
            )));
        }
    }
    let scorer = Scorer::new(request)?;
    // The whole table is read once before the first picture, so that a bad line ends the job now and not at its end.
    let mut rows = 0;
    for record in corpus::open(&scorer.config, &request.corpus)?.refusing_duplicates() {
        record?;
        rows += 1;
    }
    let header = corpus::open(&scorer.config, &request.corpus)?.header().to_vec();
    let columns = RatingColumns { id: scorer.config.data.id_column.clone(), ..RatingColumns::default() };
    let ratings = RatingsHeader::for_corpus(&header, &columns)?;
    let mut number = prepare_parts(&parts, &scorer.job(request, rows), request.overwrite)?;
    let mut done = 0;
    let mut next = Some(None);
    for at in 0..number {
        let part = read_part(&parts, at)?;
        done += part.rows.len() as u64;
        next = part.next.map(Some);
    }
    while let Some(position) = next {
        progress(done, rows);
        if interrupt.is_raised() {
            let saved =
                format!("{done} of {rows} rows are rated and kept; give the same command again to go on");
            return Err(Error::Interrupted { saved });
        }
        let mut corpus = corpus::open(&scorer.config, &request.corpus)?;
        if let Some(position) = position {
            corpus.seek(position)?;
        }
        let part = scorer.part(&mut corpus)?;
        done += part.rows.len() as u64;
        let bytes = serde_json::to_vec(&part).map_err(|error| Error::invalid(error.to_string()))?;
        write_whole(&part_path(&parts, number), &bytes)?;
        next = part.next.map(Some);
        number += 1;
    }
    progress(done, rows);
    let summary = scorer.assemble(request, ratings, (&parts, number), rows, failed_out)?;
    remove_folder(&parts)?;
    Ok(summary)
}

/// `dir/name.csv` to `dir/name` and an ending.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_os_string();
    name.push(ending);
    path.with_file_name(name)
}

fn part_path(parts: &Path, number: u64) -> PathBuf {
    parts.join(format!("{number:08}.json"))
}

fn read_part(parts: &Path, number: u64) -> Result<Part> {
    let path = part_path(parts, number);
    let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
    serde_json::from_slice(&bytes).map_err(|error| Error::Table {
        path: path.clone(),
        line: None,
        message: format!("is damaged ({error}); remove {} and score again", parts.display()),
    })
}

/// Makes the folder of parts, or finds one of the same job, and gives the number of parts in it.
fn prepare_parts(parts: &Path, job: &Job, overwrite: bool) -> Result<u64> {
    let path = parts.join(JOB);
    let described = serde_json::to_vec_pretty(job).map_err(|error| Error::invalid(error.to_string()))?;
    if path.exists() {
        let held = fs::read(&path).map_err(Error::io("read", &path))?;
        if held == described {
            remove_leftovers(parts)?;
            return Ok((0..).take_while(|&number| part_path(parts, number).exists()).count() as u64);
        }
        if !overwrite {
            return Err(Error::invalid(format!(
                "{} holds parts of another job (another checkpoint, corpus or option); remove it, or give --overwrite",
                parts.display()
            )));
        }
    }
    if parts.exists() {
        remove_folder(parts)?;
    }
    fs::create_dir_all(parts).map_err(Error::io("create", parts))?;
    write_whole(&path, &described)?;
    Ok(0)
}

impl Scorer {
    fn new(request: &ScoreRequest) -> Result<Self> {
        let (run, folder) = request.run();
        let config = request.configuration()?;
        let folder = match folder {
            Some(folder) => folder,
            None => Checkpoint::newest(&run.join("checkpoints"))?.ok_or_else(|| {
                Error::invalid(format!("{} has no checkpoint yet; train it further first", run.display()))
            })?,
        };
        let tokenizer = load_image_tokenizer(&run.join("image_tokenizer"))?;
        let text = load_text_encoder(&run.join("text_encoder"))?;
        let (tensors, state) = Checkpoint::load_rater(&folder)?;
        expect_fingerprint(&folder, "image tokenizer", &state.image_tokenizer, &tokenizer.fingerprint())?;
        expect_fingerprint(&folder, "text encoder", &state.text_encoder, &text.fingerprint())?;
        let quantizer = tokenizer.quantizer();
        let backbone = config.rater_backbone(quantizer.vocabulary(), quantizer.channels(), text.channels());
        let (rater, mut parameters) = Rater::new(&backbone, DType::F32, 0)?;
        checkpoint::restore_weights(&folder, &tensors, &mut parameters)?;
        let weighing = if config.compat.double_softmax {
            Weighing::Released
        } else {
            Weighing::Logits { temperature: config.training.rater_temperature }
        };
        let described = serde_json::to_vec(&state).map_err(|error| Error::invalid(error.to_string()))?;
        let weights: Vec<u8> = parameters
            .iter()
            .map(|(_, _, value)| Ok(bytemuck::cast_slice::<f32, u8>(value.as_slice::<f32>()?).to_vec()))
            .collect::<Result<Vec<_>>>()?
            .concat();
        let (mut reader, batch) = (None, request.batch.max(1));
        if let Some(device) = config.device.open()? {
            parameters = parameters.to_device(&device, config.compute)?;
            reader = Some(CodeReader::new(tokenizer.quantizer(), &device, batch)?);
        }
        Ok(Self {
            config,
            tokenizer,
            text,
            rater,
            parameters,
            weighing,
            reader,
            batch,
            batch_normalised: request.batch_normalised,
            checkpoint: sha256(&[described, weights].concat()),
        })
    }

    fn job(&self, request: &ScoreRequest, rows: u64) -> Job {
        Job {
            checkpoint: self.checkpoint.clone(),
            corpus: request.corpus.display().to_string(),
            rows,
            batch: self.batch,
            batch_normalised: self.batch_normalised,
            config: sha256(self.config.to_json().to_string().as_bytes()),
        }
    }

    /// Rates the next records.
    fn part(&self, corpus: &mut Corpus) -> Result<Part> {
        let size = PART.div_ceil(self.batch) * self.batch;
        let records: Vec<Record> = corpus.by_ref().take(size).collect::<Result<_>>()?;
        let next = (records.len() == size).then(|| Corpus::position(corpus));
        let requests: Vec<_> = records.iter().map(|record| ((), record.image.clone())).collect();
        let preprocess = corpus::preprocess(&self.config, self.tokenizer.image_side());
        let loader = Loader::new(requests, preprocess, self.config.data.workers, AHEAD)?;
        let mut rows = Vec::with_capacity(records.len());
        let mut usable = Vec::new();
        let mut pictures = Vec::new();
        for (record, ((), picture)) in records.iter().zip(loader) {
            match picture {
                Ok(picture) => {
                    usable.push((rows.len(), record));
                    pictures.push(picture);
                    rows.push((record.row, Outcome::Rating(f64::NAN)));
                }
                Err(error) => {
                    tracing::warn!("left out {}: {error}", record.id);
                    rows.push((record.row, Outcome::Failed(error.to_string())));
                }
            }
        }
        for (records, pictures) in usable.chunks(self.batch).zip(pictures.chunks(self.batch)) {
            let codes = self.tokenizer.encode(&stack(pictures)?)?;
            let ratings = self.rate(&codes, records.iter().map(|(_, record)| *record))?;
            for ((place, record), rating) in records.iter().zip(ratings) {
                let outcome = if rating.is_finite() {
                    Outcome::Rating(rating)
                } else {
                    Outcome::Failed(format!(
                        "the rating is {rating}, not a number; the checkpoint has diverged"
                    ))
                };
                rows[*place] = (record.row, outcome);
            }
        }
        Ok(Part { next, rows })
    }

    fn caption<'r>(&self, record: &'r Record) -> &'r str {
        // The released scorer drops a tenth of the captions at random (upstream.md, D4); here by the row, so that
        // even that is the same every time.
        let mut random = Random::new(self.config.seed, Purpose::CaptionDrop, u64::MAX - record.row);
        let long = record.caption.chars().count() > 20 || !self.config.compat.caption_drop_length_rule;
        let drop = self.config.compat.drop_captions_when_scoring && long && random.uniform() < 0.1;
        if drop { "" } else { &record.caption }
    }

    /// Ratings of one batch of codes `[B, L]`.
    fn rate<'r>(&self, codes: &Tensor, records: impl Iterator<Item = &'r Record>) -> Result<Vec<f64>> {
        let captions: Vec<&str> = records.map(|record| self.caption(record)).collect();
        if let Some(device) = self.parameters.device() {
            return self.rate_on_device(device, codes, captions);
        }
        // Samples influence each other in the released rating, and in the released cross-attention.
        if self.batch_normalised || self.config.compat.cross_attention_first_sample {
            let batch = batch(codes.clone(), &captions, self.tokenizer.as_ref(), self.text.as_ref())?
                .with_input(self.tokenizer.quantizer())?;
            let mut tape = Tape::inference(&self.parameters);
            let rated =
                self.rater.forward(&mut tape, batch.input()?, &batch.text, self.weighing, Mode::Evaluate)?;
            if !self.batch_normalised {
                return rated.logit.value().to_f64_vec();
            }
            // A last, smaller batch would be rated higher by the ratio of the sizes (upstream.md, A3).
            let share = captions.len() as f64 / self.batch as f64;
            return Ok(rated.score.value().to_f64_vec()?.into_iter().map(|score| score * share).collect());
        }
        // One sample at a time, so that not a bit of a rating depends on the others.
        let tokens = codes.dim(1);
        let rows: Vec<(&[u32], &str)> = codes.as_slice::<u32>()?.chunks(tokens).zip(captions).collect();
        in_parallel(&rows, |(codes, caption)| {
            let codes = Tensor::new(&[1, tokens], codes.to_vec())?;
            let batch = batch(codes, &[caption], self.tokenizer.as_ref(), self.text.as_ref())?
                .with_input(self.tokenizer.quantizer())?;
            let mut tape = Tape::inference(&self.parameters);
            let (_, logit) = self.rater.instance(&mut tape, batch.input()?, &batch.text, Mode::Evaluate)?;
            Ok(logit.value().to_f64_vec()?[0])
        })
    }

    /// Ratings of one batch on a device. A batch that is not full is filled up with its last sample, so that every batch
    /// is the same work and a rating does not depend on which one it falls into.
    fn rate_on_device(&self, device: &Device, codes: &Tensor, mut captions: Vec<&str>) -> Result<Vec<f64>> {
        let (count, tokens) = (captions.len(), codes.dim(1));
        let mixed = self.batch_normalised || self.config.compat.cross_attention_first_sample;
        let mut codes = codes.as_slice::<u32>()?.to_vec();
        while !mixed && captions.len() < self.batch {
            codes.extend_from_within(codes.len() - tokens..);
            captions.push(captions[count - 1]);
        }
        let codes = Tensor::new(&[captions.len(), tokens], codes)?;
        let dtype = self.parameters.compute_dtype();
        let mut batch =
            batch(codes, &captions, self.tokenizer.as_ref(), self.text.as_ref())?.to_device(device, dtype)?;
        batch.read_codes(self.reader.as_ref(), dtype)?;
        let mut tape = Tape::inference(&self.parameters);
        if !self.batch_normalised {
            let (_, logit) = self.rater.instance(&mut tape, batch.input()?, &batch.text, Mode::Evaluate)?;
            return Ok(logit.value().to_f64_vec()?[..count].to_vec());
        }
        let rated =
            self.rater.forward(&mut tape, batch.input()?, &batch.text, self.weighing, Mode::Evaluate)?;
        // As on the processor: a last, smaller batch would be rated higher by the ratio of the sizes.
        let share = count as f64 / self.batch as f64;
        Ok(rated.score.value().to_f64_vec()?.into_iter().map(|score| score * share).collect())
    }

    /// Puts the table together from the parts and the corpus, and checks that no row is lost or doubled.
    fn assemble(
        &self,
        request: &ScoreRequest,
        header: RatingsHeader,
        (parts, number): (&Path, u64),
        rows: u64,
        failed_out: PathBuf,
    ) -> Result<ScoreSummary> {
        let mut ratings = RatingsWriter::create(&request.out, header)?;
        let mut failures = csv::Writer::from_writer(Vec::new());
        let refuse =
            |error: csv::Error| Error::invalid(format!("cannot write {}: {error}", failed_out.display()));
        failures.write_record(["id", "line", "reason"]).map_err(refuse)?;
        let mut corpus = corpus::open(&self.config, &request.corpus)?;
        let id = corpus.columns()[0];
        let (mut scored, mut failed) = (0, 0);
        for at in 0..number {
            for (row, outcome) in read_part(parts, at)?.rows {
                let Some(record) = corpus.next().transpose()?.filter(|record| record.row == row) else {
                    return Err(Error::invalid(format!(
                        "{} changed while it was rated (row {row} is another); remove {} and score again",
                        request.corpus.display(),
                        parts.display()
                    )));
                };
                match outcome {
                    Outcome::Rating(rating) => {
                        let mut carried = record.fields;
                        carried.remove(id);
                        ratings.write(&RatingRow { id: record.id, rating, carried })?;
                        scored += 1;
                    }
                    Outcome::Failed(reason) => {
                        failures
                            .write_record([&record.id, &record.line.to_string(), &reason])
                            .map_err(refuse)?;
                        failed += 1;
                    }
                }
            }
        }
        if scored + failed != rows || corpus.next().is_some() {
            return Err(Error::invalid(format!(
                "{rows} rows went in, but {scored} were scored and {failed} failed; the corpus changed meanwhile: remove \
                 {} and score again",
                parts.display()
            )));
        }
        let failures = failures.into_inner().map_err(|error| Error::invalid(error.to_string()))?;
        write_whole(&failed_out, &failures)?;
        ratings.finish()?;
        Ok(ScoreSummary { rows, scored, failed, out: request.out.clone(), failed_out })
    }
}

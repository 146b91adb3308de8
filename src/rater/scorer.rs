//! Rates every record of a corpus by streaming: in constant memory, in the order of the corpus, resumable after a
//! kill (see `rater::parts`).

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Instant,
};

use sha2::{Digest, Sha256};

use crate::{
    config::Config,
    data::{
        Record,
        corpus::{CorpusFormat, columns::absent, moved_paths::MovedPaths},
    },
    engine::{DType, Parameters, Purpose, Random, Tape, Tensor, cuda::Device, ops::pyramid::CodeReader},
    error::{Error, Result},
    files::hexadecimal,
    interrupt::Interrupt,
    jobs::{Claim, progress::Progress},
    models::{Mode, Rater, Weighing},
    rater::{
        crossfit::MeasuredRatings,
        images::{CONTACT_SHEET, HISTOGRAM, rating_figures},
        parts::{Input, NOTHING_DONE, Outcome, PARTS_KEPT, Parts, Sequence, Source, Words, deciding},
    },
    select::ratings::{RatingColumns, RatingRow, RatingsHeader, RatingsWriter},
    tokens::{
        encoded::{batch, in_parallel},
        encoders::Encoders,
    },
    training::{
        checkpoint::{self, Checkpoint},
        released,
        trained::{Named, configuration},
    },
};

/// The words for the job in messages.
const WORDS: Words = Words { command: "score", doing: "scoring", done: "scored" };

/// A scoring job.
#[derive(Clone, Debug)]
pub struct ScoreRequest {
    /// A run directory, for its newest checkpoint, or one checkpoint in it; with `config`, a checkpoint of the
    /// released code.
    pub checkpoint: PathBuf,
    /// The configuration of a rater that was not trained by this program.
    pub config: Option<PathBuf>,
    /// The corpus.
    pub corpus: PathBuf,
    /// The format of the corpus; `None` to detect it.
    pub format: Option<CorpusFormat>,
    /// The ratings table to write, `.csv` or `.parquet`.
    pub out: PathBuf,
    /// The name of the rating column.
    pub rating_column: String,
    /// Batch size.
    pub batch: usize,
    /// Write the released rating, which depends on the batch, instead of the instance logit, which does not.
    pub batch_normalized: bool,
    /// Rate all records with the rater, including those that the run measured by cross-fitting.
    pub by_rater: bool,
    /// Replace an existing output.
    pub overwrite: bool,
    /// Also write the histogram of the ratings and the contact sheet, next to the table.
    pub images: bool,
    /// A column of the corpus that the contact sheet shows before each caption.
    pub note_column: Option<String>,
    /// `key=value` arguments that override the run's configuration.
    pub sets: Vec<String>,
}

impl ScoreRequest {
    /// The run's configuration with the overrides applied.
    ///
    /// # Errors
    /// If there is no run or an override is not accepted.
    pub(crate) fn configuration(&self) -> Result<Config> {
        let mut config = match &self.config {
            Some(path) => Config::load(path, &self.sets)?,
            None => {
                let run = Named::new(&self.checkpoint)?.run;
                let config = configuration(&run, &self.sets)?;
                expect_fixed(&configuration(&run, &[])?, &config)?;
                config
            }
        };
        config.read_as(&self.corpus, self.format);
        Ok(config)
    }
}

/// Refuses overrides of what a rating of this run rests on: its rule, its folds and their captions.
fn expect_fixed(trained: &Config, config: &Config) -> Result<()> {
    let fixed = |key: &str| key == "seed" || ["rule", "crossfit"].iter().any(|group| key.starts_with(group));
    match trained.differences(config).into_iter().find(|(key, ..)| fixed(key)) {
        Some((key, trained, given)) => Err(Error::argument(format!(
            "--set {key}={given}: the run was trained with {trained}, which its ratings depend on; leave it out, or train \
             another run"
        ))),
        None => Ok(()),
    }
}

/// The summary of a job; [`score`] checks that the rows in are the rows scored and failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoreSummary {
    /// Rows of the corpus.
    pub rows: u64,
    /// Rows rated.
    pub scored: u64,
    /// Rows that failed; `failed_out` lists the reasons.
    pub failed: u64,
    /// The ratings table.
    pub out: PathBuf,
    /// The table of failed rows.
    pub failed_out: PathBuf,
    /// The histogram and the contact sheet.
    pub images: Vec<PathBuf>,
}

impl fmt::Display for ScoreSummary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, scored, failed, out, failed_out, .. } = self;
        write!(formatter, "{rows} rows in = {scored} scored + {failed} failed\nratings: {}", out.display())?;
        if *failed > 0 {
            write!(formatter, "\nfailed:  {}", failed_out.display())?;
        }
        Ok(())
    }
}

struct Scorer {
    config: Config,
    encoders: Encoders,
    rater: Rater,
    parameters: Parameters,
    weighing: Weighing,
    /// On a device: computes the rater's input from codes.
    reader: Option<CodeReader>,
    batch: usize,
    batch_normalized: bool,
    /// Measured ratings of the run's own records, which take precedence over the rater's.
    measured: Option<MeasuredRatings>,
    /// SHA-256 of the checkpoint's state.
    checkpoint: String,
}

/// Rates a corpus. `progress` counts the finished rows.
///
/// # Errors
/// If the checkpoint, the corpus or the output cannot be used, or the user interrupts; finished rows are then kept,
/// and the same command resumes.
pub fn score(
    request: &ScoreRequest,
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<ScoreSummary> {
    let config = request.configuration()?;
    let mut inputs = config.inputs();
    inputs.extend(request.config.clone());
    inputs.push(request.checkpoint.clone());
    inputs.extend(config.corpus_inputs(&request.corpus));
    let claim = Claim { command: WORDS.command, inputs: &inputs, overwrite: request.overwrite };
    let companions: &[&str] = if request.images { &[HISTOGRAM, CONTACT_SHEET] } else { &[] };
    let mut parts = Parts::of(&claim, &request.out, companions, WORDS)?;
    parts.note_rating_column(&request.rating_column);
    let scorer = interrupt.while_reading(NOTHING_DONE, || Scorer::new(request, interrupt))?;
    let source = scorer.source(&request.corpus);
    let rows = interrupt.while_reading(NOTHING_DONE, || source.rows())?;
    let corpus = source.open()?;
    let schema = corpus.schema();
    let (id, image) = (schema.id, schema.image);
    let columns = RatingColumns { id: schema.columns[id].clone(), rating: request.rating_column.clone() };
    let header = RatingsHeader::for_corpus(&schema.columns, &columns)
        .map_err(|error| corpus.refuse_schema(error.to_string()))?;
    let digest = interrupt.while_reading(NOTHING_DONE, || corpus.identity())?;
    if let Some(column) = request.note_column.as_ref().filter(|column| !schema.columns.contains(column)) {
        return Err(corpus.refuse_schema(absent(&schema.columns, column)));
    }
    parts.prepare(&scorer.inputs(request, &digest), request.overwrite)?;
    let paths = MovedPaths::from_folder(corpus.folder(), &request.out)?;
    let begun = Instant::now();
    parts.complete(Sequence { number: 0, of: 1, rows }, &source, interrupt, progress, |_| {
        Ok(|codes: &Tensor, records: &[&Record]| scorer.measure(codes, records))
    })?;
    if let Some(measured) = &scorer.measured {
        measured.warn_of_others();
    }
    let seconds = begun.elapsed().as_secs_f64();
    tracing::info!("{rows} rows in {seconds:.2} s, {:.1} rows/s", rows as f64 / seconds.max(1e-9));
    interrupt.while_reading(PARTS_KEPT, || parts.expect_unchanged(&source, &digest))?;
    let mut ratings = RatingsWriter::create(&parts.staged(), header)?;
    let counts = parts.gather(&source, 1, rows, |record, found: Vec<f64>| {
        interrupt.check(PARTS_KEPT)?;
        let mut carried = record.fields;
        if paths.changes(&carried[image]) {
            carried[image] = paths.moved(&carried[image])?.into_owned();
        }
        carried.remove(id);
        ratings.write(&RatingRow { id: record.id, rating: found[0], carried })
    })?;
    if counts.found == 0 {
        return Err(parts.none_usable(&counts, &request.corpus, &request.out)?);
    }
    ratings.finish()?;
    let mut images = Vec::new();
    if request.images {
        let note = request.note_column.as_deref();
        let figures = interrupt.while_reading(PARTS_KEPT, || {
            rating_figures(&scorer.config, &parts.staged(), &columns, &request.corpus, note)
        })?;
        for figure in figures {
            images.push(request.out.with_file_name(figure.file_name().unwrap_or_default()));
        }
    }
    parts.publish()?;
    Ok(ScoreSummary {
        rows,
        scored: counts.found,
        failed: counts.failed,
        failed_out: Parts::failed_out(&request.out),
        out: request.out.clone(),
        images,
    })
}

impl Scorer {
    fn new(request: &ScoreRequest, interrupt: &Interrupt) -> Result<Self> {
        let config = request.configuration()?;
        // An unusable device ends the job before the data is read.
        let device = config.device.open()?;
        let rater_for = |encoders: &Encoders| {
            let (vocabulary, code_channels, text_channels) = encoders.sizes();
            Rater::uninitialized(&config.rater_backbone(vocabulary, code_channels, text_channels), DType::F32)
        };
        let (encoders, rater, mut parameters, described) = if request.config.is_some() {
            let encoders = Encoders::named(&config, interrupt)?.on(device.as_ref())?;
            let (rater, mut parameters) = rater_for(&encoders)?;
            released::load(&request.checkpoint, released::RATER, &mut parameters)?;
            let described = [encoders.tokenizer.fingerprint(), encoders.text.fingerprint()].concat();
            (encoders, rater, parameters, described.into_bytes())
        } else {
            let named = Named::new(&request.checkpoint)?;
            let folder = named.folder()?;
            let encoders = Encoders::of(&named.run, &config)?.on(device.as_ref())?;
            let (tensors, state) = Checkpoint::load_rater(&folder)?;
            state.expect_encoders(&folder, &encoders)?;
            let (rater, mut parameters) = rater_for(&encoders)?;
            checkpoint::restore_weights(&folder, &tensors, &mut parameters)?;
            let described = serde_json::to_vec(&state).map_err(|error| Error::invalid(error.to_string()))?;
            (encoders, rater, parameters, described)
        };
        let cross_fitted = request.config.is_none() && config.training.rule.rule.needs().caption_gain;
        if request.by_rater && !cross_fitted {
            return Err(Error::argument(format!(
                "--by-rater: {} has no ratings that were measured by cross-fitting, so the rater rates all records; leave \
                 the option out",
                request.checkpoint.display()
            )));
        }
        let measured = (cross_fitted && !request.by_rater && !request.batch_normalized)
            .then(|| {
                let named = Named::new(&request.checkpoint)?;
                MeasuredRatings::of_run(&named, &config, &encoders, device.as_ref())
            })
            .transpose()?;
        let weighing = if config.compat.double_softmax {
            Weighing::Released
        } else {
            Weighing::Logits { temperature: config.training.rater_temperature }
        };
        let mut checkpoint = Sha256::new_with_prefix(&described);
        for (_, _, value) in parameters.iter() {
            checkpoint.update(bytemuck::cast_slice::<f32, u8>(value.as_slice::<f32>()?));
        }
        let (mut reader, batch) = (None, request.batch.max(1));
        if let Some(device) = &device {
            parameters = parameters.to_device(device, config.compute)?;
            reader = Some(CodeReader::new(encoders.tokenizer.quantizer(), device, batch)?);
        }
        Ok(Self {
            config,
            encoders,
            rater,
            parameters,
            weighing,
            reader,
            batch,
            batch_normalized: request.batch_normalized,
            measured,
            checkpoint: hexadecimal(&checkpoint.finalize()),
        })
    }

    /// The inputs that determine the ratings. The batch size is among them if samples influence each other, and on a
    /// device, where it determines the order of sums.
    fn inputs(&self, request: &ScoreRequest, corpus_digest: &str) -> Vec<Input> {
        let mut inputs = vec![
            Input::file("the checkpoint", &request.checkpoint, &self.checkpoint),
            Input::file("the corpus", &request.corpus, corpus_digest),
            Input::new("the kind of rating (--batch-normalized)", self.batch_normalized.to_string()),
        ];
        let measured = self.measured.as_ref().map_or("none", |measured| &measured.digest);
        inputs.push(Input::new("the ratings that the run measured (--by-rater)", measured.to_owned()));
        let device = self.parameters.device().map(|_| self.parameters.compute_dtype());
        inputs.extend(deciding(&self.config, self.encoders.cache.as_deref(), device));
        let mixed = self.batch_normalized || self.config.compat.cross_attention_first_sample;
        if mixed || device.is_some() {
            inputs.push(Input::new("--batch", self.batch.to_string()));
        }
        inputs
    }

    fn source<'a>(&'a self, path: &'a Path) -> Source<'a> {
        let Encoders { tokenizer, cache, .. } = &self.encoders;
        let (config, tokenizer, cache) = (&self.config, tokenizer.as_ref(), cache.as_deref());
        Source { path, config, tokenizer, cache, batch: self.batch }
    }

    /// Rates a batch of records.
    fn measure(&self, codes: &Tensor, records: &[&Record]) -> Result<Vec<Outcome<f64>>> {
        let ratings = match &self.measured {
            Some(measured) => {
                let named: Vec<_> = records.iter().map(|record| (&*record.id, &*record.caption)).collect();
                measured.rate(&self.config, &self.encoders, codes, &named)?
            }
            None => self.rate(codes, records)?,
        };
        let outcome = |rating: f64| match rating.is_finite() {
            true => Outcome::Found(rating),
            false => Outcome::Failed(format!("the rating is {rating}; the checkpoint has diverged")),
        };
        Ok(ratings.into_iter().map(outcome).collect())
    }

    fn caption<'r>(&self, record: &'r Record) -> &'r str {
        // Upstream drops 10% of the captions at random when scoring (upstream.md, D4); here the row selects them, so
        // that ratings are reproducible.
        let mut random = Random::new(self.config.seed, Purpose::CaptionDrop, u64::MAX - record.row);
        let long = record.caption.chars().count() > 20 || !self.config.compat.caption_drop_length_rule;
        let drop = self.config.compat.drop_captions_when_scoring && long && random.uniform() < 0.1;
        if drop { "" } else { &record.caption }
    }

    /// Ratings of one batch of codes `[B, L]`.
    fn rate(&self, codes: &Tensor, records: &[&Record]) -> Result<Vec<f64>> {
        let captions: Vec<&str> = records.iter().map(|record| self.caption(record)).collect();
        let (Encoders { tokenizer, text, .. }, reach) = (&self.encoders, self.config.rater_reach());
        if let Some(device) = self.parameters.device() {
            return self.rate_on_device(device, codes, captions);
        }
        // Samples influence each other in the released rating and in upstream's cross-attention.
        if self.batch_normalized || self.config.compat.cross_attention_first_sample {
            let batch = batch(codes.clone(), &captions, tokenizer.as_ref(), text.as_ref())?
                .with_reach(tokenizer.quantizer(), reach)?;
            let mut tape = Tape::inference(&self.parameters);
            let input = batch.reaching(reach)?;
            let rated = self.rater.forward(&mut tape, input, &batch.text, self.weighing, Mode::Evaluate)?;
            if !self.batch_normalized {
                return rated.logit.value().to_f64_vec();
            }
            // A smaller last batch would be rated higher by the ratio of the sizes (upstream.md, A3).
            let share = captions.len() as f64 / self.batch as f64;
            return Ok(rated.score.value().to_f64_vec()?.into_iter().map(|score| score * share).collect());
        }
        // One sample at a time, so that the bits of a rating do not depend on the other samples.
        let tokens = codes.dim(1);
        let rows: Vec<(&[u32], &str)> = codes.as_slice::<u32>()?.chunks(tokens).zip(captions).collect();
        in_parallel(&rows, |(codes, caption)| {
            let codes = Tensor::new(&[1, tokens], codes.to_vec())?;
            let batch = batch(codes, &[caption], tokenizer.as_ref(), text.as_ref())?
                .with_reach(tokenizer.quantizer(), reach)?;
            let mut tape = Tape::inference(&self.parameters);
            let (_, logit) =
                self.rater.instance(&mut tape, batch.reaching(reach)?, &batch.text, Mode::Evaluate)?;
            Ok(logit.value().to_f64_vec()?[0])
        })
    }

    /// Ratings of one batch on a device. A partial batch is padded with its last sample, so that every batch does the
    /// same work and a rating does not depend on its batch.
    fn rate_on_device(&self, device: &Device, codes: &Tensor, mut captions: Vec<&str>) -> Result<Vec<f64>> {
        let (count, tokens) = (captions.len(), codes.dim(1));
        let mixed = self.batch_normalized || self.config.compat.cross_attention_first_sample;
        let (Encoders { tokenizer, text, .. }, reach) = (&self.encoders, self.config.rater_reach());
        let mut codes = codes.as_slice::<u32>()?.to_vec();
        while !mixed && captions.len() < self.batch {
            codes.extend_from_within(codes.len() - tokens..);
            captions.push(captions[count - 1]);
        }
        let codes = Tensor::new(&[captions.len(), tokens], codes)?;
        let dtype = self.parameters.compute_dtype();
        let mut batch =
            batch(codes, &captions, tokenizer.as_ref(), text.as_ref())?.to_device(device, dtype)?;
        batch.read_codes(self.reader.as_ref(), dtype, reach)?;
        let input = batch.reaching(reach)?;
        let mut tape = Tape::inference(&self.parameters);
        if !self.batch_normalized {
            let (_, logit) = self.rater.instance(&mut tape, input, &batch.text, Mode::Evaluate)?;
            return Ok(logit.value().to_f64_vec()?[..count].to_vec());
        }
        let rated = self.rater.forward(&mut tape, input, &batch.text, self.weighing, Mode::Evaluate)?;
        // As on the CPU: a smaller last batch would be rated higher by the ratio of the sizes.
        let share = count as f64 / self.batch as f64;
        Ok(rated.score.value().to_f64_vec()?.into_iter().map(|score| score * share).collect())
    }
}

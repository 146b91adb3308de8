//! Attributes the proxy's validation loss to individual records: compares each record's gradient with the gradient of
//! the mean validation loss, at one checkpoint or several, streaming and resumable (see `rater::parts`).
//!
//! Let θ be the proxy's weights at a checkpoint and `V = ∇_θ` of the mean loss over the whole validation set, without
//! drop-path. A record's row contains its loss ℓ, `‖∇_θ ℓ‖`, `⟨∇_θ ℓ, V⟩` and their cosine, once per checkpoint.
//! `tracin` is the sum over checkpoints of the product times the learning rate (TracInCP, Pruthi et al., arXiv
//! 2002.08484). With AdamW's geometry, V is replaced everywhere by `V / (√v̂ + ε)`, the direction in which the
//! optimizer moves along V.

mod learning_rate;
mod proxy_at;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    config::{Config, Geometry},
    data::{
        Record,
        corpus::{CorpusFormat, files::CorpusFiles},
    },
    engine::{Tensor, cuda::Device},
    error::{Error, Result},
    files::sha256,
    interrupt::Interrupt,
    jobs::{Claim, progress::Progress},
    rater::parts::{Counts, Input, NOTHING_DONE, PARTS_KEPT, Parts, Sequence, Source, Words, deciding},
    select::ratings::{NumberColumn, NumberHeader, NumberWriter},
    tokens::encoders::Encoders,
    training::{
        checkpoint::Checkpoint,
        run_directory::{GAINS, RunDirectory},
        trained::{Named, configuration, every_checkpoint},
    },
};

use learning_rate::LearningRates;
use proxy_at::{ProxyAt, RecordGradient};

/// The words for the job in messages.
const WORDS: Words = Words { command: "attribute", doing: "attributing", done: "attributed" };

/// Validation samples per backward pass on the CPU. Constant, so that no bit depends on `--batch`.
const VALIDATION_BATCH: usize = 32;

/// An attribution job.
#[derive(Clone, Debug)]
pub struct AttributeRequest {
    /// Checkpoints of one run, or the run directory, for its newest one.
    pub checkpoints: Vec<PathBuf>,
    /// Use all checkpoints that the run keeps; `checkpoints` is then the run directory.
    pub every: bool,
    /// The corpus.
    pub corpus: PathBuf,
    /// The validation set, whose mean loss is attributed.
    pub validation: PathBuf,
    /// The format of the corpus and of the validation set; `None` to detect them.
    pub format: Option<CorpusFormat>,
    /// The table to write, `.csv` or `.parquet`.
    pub out: PathBuf,
    /// The geometry of the inner products.
    pub geometry: Geometry,
    /// Batch size.
    pub batch: usize,
    /// Replace an existing output.
    pub overwrite: bool,
    /// `key=value` arguments that override the run's configuration.
    pub sets: Vec<String>,
}

/// The results at one checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct AtCheckpoint {
    /// Updates done.
    pub step: u64,
    /// The factor of its products in `tracin`: the learning rate of the update that led to it, or 1 for all
    /// checkpoints if one of them is unknown.
    pub factor: f64,
    /// The validation set at this checkpoint.
    pub validation: Validation,
}

/// Measurements of the validation set at a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Records used.
    pub records: u64,
    /// Records that could not be read.
    pub failed: u64,
    /// Mean loss.
    pub loss: f64,
    /// Norm of the mean gradient, or of its direction in AdamW's geometry.
    pub norm: f64,
}

/// The summary of a job; [`attribute`] checks that `rows` equals `attributed + failed`.
#[derive(Clone, Debug, PartialEq)]
pub struct AttributeSummary {
    /// Rows of the corpus.
    pub rows: u64,
    /// Rows with results.
    pub attributed: u64,
    /// Rows that failed; `failed_out` lists the reasons.
    pub failed: u64,
    /// Rows with a zero gradient at some checkpoint, which have no cosine there.
    pub zero_gradients: u64,
    /// Whether the factors of `tracin` are learning rates.
    pub learning_rates_known: bool,
    /// The checkpoints, oldest first.
    pub checkpoints: Vec<AtCheckpoint>,
    /// The table.
    pub out: PathBuf,
    /// The table of failed rows.
    pub failed_out: PathBuf,
}

impl fmt::Display for AttributeSummary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, attributed, failed, zero_gradients, .. } = self;
        writeln!(formatter, "{rows} rows in = {attributed} attributed + {failed} failed")?;
        for AtCheckpoint { step, factor, validation } in &self.checkpoints {
            let Validation { records, failed, loss, norm } = validation;
            writeln!(
                formatter,
                "step {step}: validation loss {loss:.4} on {records} records ({failed} skipped), norm of its gradient \
                 {norm:.4e}, factor {factor:.4e}"
            )?;
        }
        if !self.learning_rates_known {
            let why =
                "the run's metrics.jsonl does not determine the learning rates, so tracin uses the factor 1";
            writeln!(formatter, "{why}")?;
        }
        if *zero_gradients > 0 {
            writeln!(formatter, "{zero_gradients} rows have a zero gradient, so their cosine is undefined")?;
        }
        write!(formatter, "attribution: {}", self.out.display())?;
        if *failed > 0 {
            write!(formatter, "\nfailed:      {}", self.failed_out.display())?;
        }
        Ok(())
    }
}

/// A requested checkpoint, not yet loaded.
struct NamedCheckpoint {
    folder: PathBuf,
    step: u64,
    digest: String,
}

/// What all checkpoints share.
struct Setting<'a> {
    config: Config,
    encoders: Encoders,
    device: Option<Device>,
    request: &'a AttributeRequest,
}

/// Attributes a corpus. `progress` counts the finished rows of each checkpoint and of the validation set.
///
/// # Errors
/// If a checkpoint, a table or the output cannot be used, the run mixes samples and so has no per-sample gradients,
/// or the user interrupts; finished rows are then kept, and the same command resumes.
pub fn attribute(
    request: &AttributeRequest,
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<AttributeSummary> {
    let mut inputs = request.checkpoints.clone();
    for path in [&request.corpus, &request.validation] {
        inputs.extend(CorpusFiles::inputs(path, request.format));
    }
    let claim = Claim { command: WORDS.command, inputs: &inputs, overwrite: request.overwrite };
    let parts = Parts::of(&claim, &request.out, &[], WORDS)?;
    let (run, folders) = request.folders()?;
    let (setting, checkpoints) = interrupt.while_reading(NOTHING_DONE, || {
        let setting = Setting::new(&run, request)?;
        let checkpoints = setting.checkpoints(folders)?;
        Ok((setting, checkpoints))
    })?;
    let (source, validation) = (setting.source(&request.corpus), setting.validation());
    let [validation_rows, rows] =
        interrupt.while_reading(NOTHING_DONE, || Ok([validation.rows()?, source.rows()?]))?;
    let corpus = source.open()?;
    let columns = columns(&checkpoints);
    let header = NumberHeader::for_corpus(&corpus.schema().columns, corpus.schema().id, columns)
        .map_err(|error| corpus.refuse_schema(error.to_string()))?;
    let trained = RunDirectory::config_of(&run)?;
    let rates = LearningRates::of(&run, &trained)?;
    let factors: Option<Vec<f64>> =
        checkpoints.iter().map(|checkpoint| rates.leading_to(checkpoint.step)).collect();
    let learning_rates_known = factors.is_some();
    let factors = factors.unwrap_or_else(|| vec![1.0; checkpoints.len()]);
    let digests =
        [source, validation].map(|table| interrupt.while_reading(NOTHING_DONE, || table.open()?.identity()));
    let [corpus_digest, validation_digest] = digests;
    let (corpus_digest, validation_digest) = (corpus_digest?, validation_digest?);
    let inputs = setting.inputs(&checkpoints, [&corpus_digest, &validation_digest], &factors);
    parts.prepare(&inputs, request.overwrite)?;
    parts.expect_images(&validation)?;
    let at = |checkpoint: &NamedCheckpoint, progress: &mut dyn Progress| {
        let (proxy, images) =
            ProxyAt::new(&setting, checkpoint, &validation, validation_rows, interrupt, progress)?;
        parts.keep_images(&validation, images)?;
        Ok::<_, Error>(proxy)
    };
    for (number, checkpoint) in checkpoints.iter().enumerate() {
        let sequence = Sequence { number, of: checkpoints.len(), rows };
        parts.complete(sequence, &source, interrupt, progress, |progress| {
            let proxy = at(checkpoint, progress)?;
            parts.keep_note(number, proxy.validation())?;
            Ok(move |codes: &Tensor, records: &[&Record]| proxy.measure(codes, records))
        })?;
        if let Err(error) = parts.note::<Validation>(number) {
            tracing::warn!("{error}: the validation gradient is recomputed");
            parts.keep_note(number, at(checkpoint, progress)?.validation())?;
        }
    }

    interrupt.while_reading(PARTS_KEPT, || {
        parts.expect_unchanged(&validation, &validation_digest)?;
        parts.expect_images(&validation)?;
        parts.expect_unchanged(&source, &corpus_digest)
    })?;
    let mut table = NumberWriter::create(&parts.staged(), header)?;
    let mut zero_gradients = 0;
    let counts = parts.gather(&source, checkpoints.len(), rows, |record, found: Vec<RecordGradient>| {
        interrupt.check(PARTS_KEPT)?;
        zero_gradients += u64::from(found.iter().any(|numbers| numbers.cosine.is_none()));
        table.write(&record.fields, &row(&found, &factors))
    })?;
    if counts.found == 0 {
        return Err(parts.none_usable(&counts, &request.corpus, &request.out)?);
    }
    table.finish()?;
    let at = |(number, (checkpoint, factor)): (usize, (&NamedCheckpoint, f64))| {
        Ok(AtCheckpoint { step: checkpoint.step, factor, validation: parts.note(number)? })
    };
    let found = checkpoints.iter().zip(factors).enumerate().map(at).collect::<Result<_>>()?;
    parts.publish()?;
    let Counts { found: attributed, failed, .. } = counts;
    Ok(AttributeSummary {
        rows,
        attributed,
        failed,
        zero_gradients,
        learning_rates_known,
        checkpoints: found,
        out: request.out.clone(),
        failed_out: Parts::failed_out(&request.out),
    })
}

/// The result columns: four per checkpoint, with the step in the name if there are several, and the sum.
fn columns(checkpoints: &[NamedCheckpoint]) -> Vec<NumberColumn> {
    let mut columns = Vec::new();
    for checkpoint in checkpoints {
        for name in ["loss", "gradient_norm", "product", "cosine"] {
            let at = if checkpoints.len() > 1 { format!("@{}", checkpoint.step) } else { String::new() };
            columns.push(NumberColumn { name: format!("{name}{at}"), optional: name == "cosine" });
        }
    }
    columns.push(NumberColumn { name: "tracin".to_owned(), optional: false });
    columns
}

/// The results of a row in the order of [`columns`].
fn row(found: &[RecordGradient], factors: &[f64]) -> Vec<Option<f64>> {
    let mut row = Vec::with_capacity(4 * found.len() + 1);
    for RecordGradient { loss, gradient_norm, product, cosine } in found {
        row.extend([Some(*loss), Some(*gradient_norm), Some(*product), *cosine]);
    }
    row.push(Some(found.iter().zip(factors).map(|(numbers, factor)| factor * numbers.product).sum()));
    row
}

impl AttributeRequest {
    /// The run, and the folders of the requested checkpoints.
    fn folders(&self) -> Result<(PathBuf, Vec<PathBuf>)> {
        let named = self.checkpoints.iter().map(|path| Named::new(path)).collect::<Result<Vec<_>>>()?;
        let Some(first) = named.first() else {
            return Err(Error::argument("no checkpoint; pass --checkpoint"));
        };
        // `run` and `run/` are the same run.
        if let Some(other) = named.iter().find(|other| !same_folder(&other.run, &first.run)) {
            return Err(Error::mismatch(
                &other.run,
                format!(
                    "the checkpoints belong to two runs, {} and {}; attribute one run at a time",
                    first.run.display(),
                    other.run.display()
                ),
            ));
        }
        RunDirectory::config_of(&first.run)?;
        let folders = match (self.every, &named[..]) {
            (true, [Named { run, checkpoint: None }]) => every_checkpoint(run)?,
            (true, _) => {
                return Err(Error::argument(
                    "--every uses all checkpoints of a run; pass only the run directory as --checkpoint",
                ));
            }
            (false, _) => named.iter().map(Named::folder).collect::<Result<_>>()?,
        };
        Ok((first.run.clone(), folders))
    }
}

fn same_folder(one: &Path, other: &Path) -> bool {
    one == other
        || matches!((fs::canonicalize(one), fs::canonicalize(other)), (Ok(one), Ok(other)) if one == other)
}

impl<'a> Setting<'a> {
    fn new(run: &Path, request: &'a AttributeRequest) -> Result<Self> {
        let mut config = configuration(run, &request.sets)?;
        config.read_as(&request.corpus, request.format);
        config.read_as(&request.validation, request.format);
        if config.compat.cross_attention_first_sample {
            return Err(Error::input(
                run,
                format!(
                    "{} was trained with compat.cross_attention_first_sample, which mixes the samples of a batch, so \
                     there are no per-sample gradients; attribute a run without it",
                    run.display()
                ),
            ));
        }
        // A run of `fit` is refused when its checkpoint is read.
        if config.training.rule.rule.needs().caption_gain && run.join(GAINS).exists() {
            return Err(Error::input(
                run,
                format!(
                    "{} was trained with the rule {}, whose proxies belong to folds; their gains are in {GAINS}; to attribute, \
                     train a run with another rule",
                    run.display(),
                    config.training.rule.rule
                ),
            ));
        }
        // An unusable device ends the job before the data is read.
        let device = config.device.open()?;
        let encoders = Encoders::of(run, &config)?.on(device.as_ref())?;
        Ok(Self { config, encoders, device, request })
    }

    /// The checkpoints in the order of their steps.
    fn checkpoints(&self, folders: Vec<PathBuf>) -> Result<Vec<NamedCheckpoint>> {
        let mut checkpoints = Vec::with_capacity(folders.len());
        for folder in folders {
            let (_, state) = Checkpoint::load_rater(&folder)?;
            state.expect_encoders(&folder, &self.encoders)?;
            if self.request.geometry == Geometry::AdamW && state.proxy_optimizer_steps == 0 {
                return Err(Error::input(
                    &folder,
                    format!(
                        "the optimizer of {} has not updated the proxy yet, so it has no second moments; pass \
                         --geometry sgd",
                        folder.display()
                    ),
                ));
            }
            let path = folder.join("state.json");
            let digest = sha256(&fs::read(&path).map_err(Error::io("read", &path))?);
            // Steps of the rater alone leave the proxy unchanged.
            checkpoints.push(NamedCheckpoint {
                folder,
                step: state.step - state.rater_only_steps.min(state.step),
                digest,
            });
        }
        checkpoints.sort_by_key(|checkpoint| checkpoint.step);
        if self.request.every {
            checkpoints.dedup_by_key(|checkpoint| checkpoint.step);
        }
        if let Some([first, _]) = checkpoints.array_windows().find(|[one, other]| one.step == other.step) {
            return Err(Error::mismatch(
                &first.folder,
                format!(
                    "{} has the same proxy as another checkpoint; pass only one of them",
                    first.folder.display()
                ),
            ));
        }
        Ok(checkpoints)
    }

    /// The inputs that determine the results. On the CPU the batch size is not among them, because records are
    /// processed one at a time.
    fn inputs(&self, checkpoints: &[NamedCheckpoint], digests: [&str; 2], factors: &[f64]) -> Vec<Input> {
        let AttributeRequest { corpus, validation, geometry, .. } = self.request;
        let checkpoint_digests: Vec<&str> =
            checkpoints.iter().map(|checkpoint| checkpoint.digest.as_str()).collect();
        let rates: Vec<String> = factors.iter().map(f64::to_string).collect();
        let [corpus_digest, validation_digest] = digests;
        let mut inputs = vec![
            Input::new("one of the checkpoints", checkpoint_digests.join(" ")),
            Input::file("the corpus", corpus, corpus_digest),
            Input::file("the validation set", validation, validation_digest),
            Input::new("--geometry", format!("{geometry:?}")),
            Input::new("a learning rate in the run's metrics.jsonl", rates.join(" ")),
        ];
        let device = self.device.as_ref().map(|_| self.config.compute);
        inputs.extend(deciding(&self.config, self.encoders.cache.as_deref(), device));
        if device.is_some() {
            inputs.push(Input::new("--batch", self.request.batch.to_string()));
        }
        inputs
    }

    fn source<'s>(&'s self, path: &'s Path) -> Source<'s> {
        let Encoders { tokenizer, cache, .. } = &self.encoders;
        let (config, tokenizer, cache) = (&self.config, tokenizer.as_ref(), cache.as_deref());
        Source { path, config, tokenizer, cache, batch: self.request.batch.max(1) }
    }

    fn validation(&self) -> Source<'_> {
        let source = self.source(&self.request.validation);
        if self.device.is_some() { source } else { Source { batch: VALIDATION_BATCH, ..source } }
    }
}

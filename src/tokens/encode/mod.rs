//! `encode`: builds a token cache one shard at a time. Complete shards are kept; incomplete ones are rebuilt.

mod builder;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    path::{Path, PathBuf},
};

use builder::Builder;

use crate::{
    config::Config,
    encode::{ImageTokenizer, TextEncoder},
    error::{Error, LeftOutRows, Result},
    files::{remove_leftovers, sealed::seal, sha256, write_atomic},
    interrupt::{Interrupt, NO_STEP},
    jobs::{
        Claim,
        folder::{FolderPatterns, OutputFolder, Present},
        progress::Progress,
    },
    tokens::{
        IMAGE_TOKENIZER_FOLDER, TEXT_ENCODER_FOLDER,
        cache::{
            CACHE, Description, FORMAT, Preparation, TableDescription, TextDescription, TextKept, absolute,
            image_tokenizer_folder, shard, text_encoder_folder,
        },
        encoders::{self, Encoders, READY, expect_pyramid, make_folder},
        fitting,
    },
};

/// The table of rows that could not be encoded.
pub(crate) const FAILED: &str = "failed.csv";

/// Options of [`encode`].
#[derive(Clone, Debug)]
pub struct EncodeRequest {
    /// Names the encoders, the columns and the image preprocessing.
    pub config: Config,
    /// A run whose encoders are used instead of those that the configuration names.
    pub run: Option<PathBuf>,
    /// The tables; if empty, the configuration's training and validation tables.
    pub tables: Vec<PathBuf>,
    /// The output folder.
    pub out: PathBuf,
    /// The data to store per caption; `Some(None)` for none. The default, `None`, stores states in bf16 for a
    /// pretrained encoder, and nothing for hashed words, which are computed as fast as they would be read.
    pub text: Option<Option<TextKept>>,
    /// Rows per shard.
    pub shard_rows: usize,
    /// Replaces a different cache in the folder.
    pub overwrite: bool,
}

/// Summary of [`encode`]. `rows` equals `encoded + failed`, which [`encode`] checks.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodeSummary {
    /// Rows in all tables.
    pub rows: u64,
    /// Encoded rows.
    pub encoded: u64,
    /// Rows that could not be encoded; `failed.csv` in the folder lists the reasons.
    pub failed: u64,
    /// Distinct captions whose states are stored.
    pub captions: u64,
    /// Shards in total.
    pub shards: usize,
    /// Shards built by this call; the others existed.
    pub made: usize,
    /// Size of all shards, in bytes.
    pub bytes: u64,
    /// Images encoded by this call.
    pub images_now: u64,
    /// Duration of this call, in seconds.
    pub seconds: f64,
    /// The output folder.
    pub out: PathBuf,
}

impl fmt::Display for EncodeSummary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, encoded, failed, captions, shards, made, bytes, images_now, seconds, out } = self;
        writeln!(
            formatter,
            "{rows} rows in = {encoded} encoded + {failed} failed; states of {captions} captions"
        )?;
        writeln!(
            formatter,
            "{shards} shards, {made} of them new, {:.1} MB: {}",
            *bytes as f64 / 1e6,
            out.display()
        )?;
        if *made > 0 {
            let rate = *images_now as f64 / seconds.max(1e-9);
            write!(formatter, "{images_now} images in {seconds:.1} s, {rate:.2} images/s; ")?;
        }
        write!(formatter, "use it with --set token_cache={}", out.display())
    }
}

/// Builds a token cache, or continues or repairs an existing one.
///
/// # Errors
/// If a table or an encoder cannot be used, the folder contains something else, or the user interrupts the job.
/// Complete shards are then kept, and the same command continues.
pub fn encode(
    request: &EncodeRequest,
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<EncodeSummary> {
    let config = &request.config;
    if request.shard_rows == 0 {
        return Err(Error::invalid("a shard needs at least one row"));
    }
    // Opens the device first, so that an unusable one is reported before any data is read.
    let device = config.device.open()?;
    let tables = tables(request)?;
    let described = interrupt.while_reading("nothing had been encoded yet", || {
        tables.iter().map(|path| describe(config, path)).collect::<Result<Vec<_>>>()
    })?;
    let mut inputs: Vec<PathBuf> = tables.iter().flat_map(|path| config.corpus_inputs(path)).collect();
    inputs.extend(request.run.clone());
    inputs.extend([&config.image_tokenizer.path, &config.text_encoder.path].into_iter().flatten().cloned());
    let claim = Claim { command: "encode", inputs: &inputs, overwrite: request.overwrite };
    let output = OutputFolder::claim(&claim, &request.out, LAYOUT)?;
    let settings = settings(request)?;
    let complete = output.present()? == Present::Complete;
    let (folder, staged) = choose_folder(&output, request, &settings, &described)?;
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
        preparation: Preparation::of(&config.preprocess(tokenizer.image_side())),
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
    write_atomic(&path, &seal(json))?;
    let known_captions = HashSet::new();
    let left_out = LeftOutRows::default();
    let builder = Builder {
        config,
        folder,
        description,
        tables,
        tokenizer,
        text,
        known_captions,
        unfit,
        changed,
        left_out,
    };
    let summary = builder.run(interrupt, progress)?;
    if staged {
        output.publish()?;
    } else {
        output.complete()?;
    }
    Ok(EncodeSummary { out: absolute(&request.out)?, ..summary })
}

/// The files of a cache's folder; see [`FolderPatterns`].
const LAYOUT: FolderPatterns = &[CACHE, FAILED, "image_tokenizer/*", "text_encoder/*", "shard-*"];

/// The tables to encode.
fn tables(request: &EncodeRequest) -> Result<Vec<PathBuf>> {
    if !request.tables.is_empty() {
        return Ok(request.tables.clone());
    }
    let data = &request.config.data;
    let mut tables = vec![data.train_csv()?.to_path_buf()];
    tables.extend(data.validation.clone());
    Ok(tables)
}

/// Reads a table once, so that a malformed row fails the job before encoding starts, and describes it.
fn describe(config: &Config, path: &Path) -> Result<TableDescription> {
    let corpus = config.open_corpus(path)?;
    let sha256 = corpus.identity()?;
    Ok(TableDescription { path: absolute(path)?, rows: corpus.count_records()?, sha256 })
}

/// SHA-256 over the keys that determine how images and captions are encoded.
fn settings(request: &EncodeRequest) -> Result<String> {
    let all = request.config.to_json();
    let keys =
        ["image_tokenizer", "text_encoder", "pn", "patch_nums", "patch_size", "seed", "compat", "columns"];
    let chosen: Vec<_> = keys.iter().map(|key| (key, all.get(key))).collect();
    let run = request.run.as_deref().map(absolute).transpose()?;
    let bytes = serde_json::to_vec(&(chosen, run, request.text))
        .map_err(|error| Error::invalid(error.to_string()))?;
    Ok(sha256(&bytes))
}

/// Chooses where the cache is written: its folder, if that is empty or contains the same cache, else a staging folder
/// next to it. Returns the path and whether it is the staging folder.
fn choose_folder(
    output: &OutputFolder,
    request: &EncodeRequest,
    settings: &str,
    tables: &[TableDescription],
) -> Result<(PathBuf, bool)> {
    let same = |found: &Result<Description>| {
        found.as_ref().is_ok_and(|found| {
            found.format == FORMAT
                && found.settings == settings
                && found.tables == tables
                && found.shard_rows == request.shard_rows
        })
    };
    let folder = output.target().to_path_buf();
    if output.present()? == Present::Nothing {
        output.begin_in_place()?;
        return Ok((folder, false));
    }
    if !folder.join(CACHE).exists() {
        // An earlier attempt stopped before it wrote `cache.json`: start over.
        output.expect_own()?;
        output.clear_in_place()?;
        return Ok((folder, false));
    }
    let found = Description::read(&folder);
    if same(&found) {
        output.begin_in_place()?;
        return Ok((folder, false));
    }
    if !request.overwrite {
        let changed = |found: &Description| {
            let same =
                |one: &TableDescription, other: &TableDescription| one.path == other.path && one != other;
            let table = tables.iter().find(|table| found.tables.iter().any(|other| same(other, table)))?;
            Some(table.path.display().to_string())
        };
        let why = match &found {
            Ok(found) if found.format != FORMAT => "with an older format".to_owned(),
            Ok(found) if found.tables != tables => match changed(found) {
                Some(table) => format!("of other tables, or of tables that have changed since: {table}"),
                None => "of other tables".to_owned(),
            },
            Ok(_) => "built with other encoders or options".to_owned(),
            Err(error) => format!("that cannot be read ({error})"),
        };
        return Err(Error::invalid(format!(
            "{} already contains a token cache {why}; pass --overwrite to replace it, or another --out",
            folder.display()
        )));
    }
    output.expect_own()?;
    let keep = same(&Description::read(&output.staging()));
    Ok((output.begin_sibling(keep)?, true))
}

/// An image tokenizer, the rows whose images could not be used to fit it with the reasons, and the error to report if
/// the images have changed since it was saved.
type Fitted = (Box<dyn ImageTokenizer>, HashMap<u64, String>, Option<Error>);

/// Loads the tokenizer from the cache or the run, or creates the configured one; saves it before it is used.
fn image_tokenizer(
    request: &EncodeRequest,
    (cache, complete): (&Path, bool),
    first: &Path,
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<Fitted> {
    let (config, folder) = (&request.config, image_tokenizer_folder(cache));
    let mut unfit = HashMap::new();
    let mut saved = None;
    if folder.join(READY).exists() {
        let tokenizer = encoders::saved_image_tokenizer(config, &folder)?;
        if complete || request.run.is_some() || config.image_tokenizer.path.is_some() {
            return Ok((tokenizer, unfit, None));
        }
        saved = Some(tokenizer);
    }
    let tokenizer = match &request.run {
        Some(run) => encoders::saved_image_tokenizer(config, &run.join(IMAGE_TOKENIZER_FOLDER))?,
        None => {
            let records = match config.image_tokenizer.path {
                // There is nothing to fit.
                Some(_) => Vec::new(),
                None => interrupt.while_reading(NO_STEP, || config.open_corpus(first)?.read_all())?,
            };
            let failed_out = cache.join(FAILED);
            let (tokenizer, _, images) =
                fitting::image_tokenizer(config, (first, &records), Some(&failed_out), interrupt, progress)?;
            unfit.extend(images.failed().map(|(index, reason)| (records[index].row, reason)));
            expect_pyramid(config, tokenizer.as_ref())?;
            // A continued job fits the tokenizer again: this is the only check that the images are still the same.
            if let Some(saved) = saved {
                if saved.fingerprint() == tokenizer.fingerprint() {
                    return Ok((saved, unfit, None));
                }
                if shard::codes_path(cache, 0).exists() {
                    let changed = Error::invalid(format!(
                        "{}: images that the image tokenizer was fitted to were replaced, added or deleted since; \
                         restore them, or pass --overwrite to rebuild {}",
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
    write_atomic(&folder.join(READY), b"")?;
    Ok((tokenizer, unfit, None))
}

/// A text encoder, if one is used, and the part of its output that is stored.
type KeptText = (Option<Box<dyn TextEncoder>>, Option<TextKept>);

/// The text encoder to run, if any, and the part of its output that is stored.
fn text_encoder(request: &EncodeRequest, cache: &Path, interrupt: &Interrupt) -> Result<KeptText> {
    let config = &request.config;
    let kept = match request.text {
        Some(requested) => requested,
        None if Encoders::text_is_pretrained(config, request.run.as_deref())? => Some(TextKept::Bf16),
        None => None,
    };
    if kept.is_none() {
        return Ok((None, None));
    }
    let folder = text_encoder_folder(cache);
    if folder.join(READY).exists() {
        return Ok((Some(encoders::saved_text_encoder(config, &folder)?), kept));
    }
    let text = interrupt.while_reading(NO_STEP, || match &request.run {
        Some(run) => encoders::saved_text_encoder(config, &run.join(TEXT_ENCODER_FOLDER)),
        None => encoders::text_encoder(config),
    })?;
    if kept == Some(TextKept::Ids) {
        text.ids(&[""])?;
    }
    make_folder(&folder)?;
    text.save(&folder)?;
    write_atomic(&folder.join(READY), b"")?;
    Ok((Some(text), kept))
}

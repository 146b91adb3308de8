//! Copies a corpus with planted flaws, as ground truth for evaluating ratings.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{
    Flaw, FlawShares, Neighbors, captions::is_of_captions, corrupt, corrupt_caption, plan, relocate, sources,
};
use crate::{
    Error, Result,
    data::{
        corpus::{ColumnNames, Corpus, CorpusFormat, Record, Schema, files::CorpusFiles, image_folders},
        image::{
            loader::Loader,
            preprocess::{Preprocess, SquareImage, write_png},
        },
    },
    error::{LeftOutRows, Reasons},
    files::write_csv,
    interrupt::Interrupt,
    jobs::{Claim, folder::OutputFolder, progress::Progress},
};

/// Images corrupted and written per chunk.
const CHUNK: usize = 64;
/// Images decoded in advance.
const AHEAD: usize = 128;
/// The column with the flaw of each record.
pub(crate) const FLAW_COLUMN: &str = "flaw";
/// The column with the source record of a duplicate or of another record's caption.
pub(crate) const SOURCE_COLUMN: &str = "flaw_source";
/// The column of categories, if the corpus has it and no other one is named.
const CATEGORY_COLUMN: &str = "category";
/// File name of the table.
const TABLE: &str = "corpus.csv";

/// Options of [`plant`].
#[derive(Clone, Debug, PartialEq)]
pub struct PlantSettings {
    /// The corpus.
    pub corpus: PathBuf,
    /// The format of the corpus; `None` to detect it.
    pub format: Option<CorpusFormat>,
    /// Its columns.
    pub columns: ColumnNames,
    /// Counts malformed rows as failed records.
    pub skip_bad_rows: bool,
    /// The output folder.
    pub out: PathBuf,
    /// Image preprocessing. All images, clean or corrupted, are cropped to squares of this side, so that the image
    /// size does not reveal a flaw.
    pub preprocess: Preprocess,
    /// The share of records with each flaw.
    pub shares: FlawShares,
    /// The column of categories, in which [`Flaw::NeighborCaption`] finds neighbors; `None` for `category`, if there
    /// is one.
    pub category_column: Option<String>,
    /// Number of decoding threads.
    pub workers: usize,
    /// Seed for the choice of records and for their flaws.
    pub seed: u64,
    /// Replaces an existing output.
    pub overwrite: bool,
}

/// Summary of [`plant`].
#[derive(Clone, Debug, PartialEq)]
pub struct Planted {
    /// The table: the columns of the corpus, with caption and image path replaced, and two more.
    pub table: PathBuf,
    /// Number of records by flaw, in the order of [`Flaw::ALL`]; 0 of a flaw whose share is less than half a record.
    pub counts: Vec<(Flaw, usize)>,
    /// Records skipped because their image, or the image that they were to duplicate, cannot be read; `failed.csv`
    /// lists the reasons.
    pub failed: usize,
}

/// Copies a corpus and corrupts a share of it. The output is deterministic for a given seed.
///
/// # Errors
/// If the corpus cannot be used, already has one of the output columns or lacks the column of categories, a share is
/// out of range, a flaw needs the scene of an image or applies to too few records, a file cannot be written, or the
/// user interrupts the job.
pub fn plant(
    settings: &PlantSettings,
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<Planted> {
    let PlantSettings { shares, seed, .. } = settings;
    let corpus = Corpus::open_as(&settings.corpus, &settings.columns, settings.format)?
        .skipping_malformed(settings.skip_bad_rows);
    let schema = corpus.schema().clone();
    if let Some(taken) =
        schema.columns.iter().find(|name| [FLAW_COLUMN, SOURCE_COLUMN].contains(&name.as_str()))
    {
        let message = format!("the column `{taken}` already exists, but it is an output column; rename it");
        return Err(corpus.refuse_schema(message));
    }
    if let Some(flaw) = shares.flaws().find(|flaw| flaw.needs_scene()) {
        return Err(Error::argument(format!(
            "`{flaw}` needs the scene of an image, which is known of the built-in data alone; pass it to `demo`"
        )));
    }
    let category = settings.category_column.as_deref().unwrap_or(CATEGORY_COLUMN);
    let category = schema.columns.iter().position(|name| name == category);
    if let (None, Some(name)) = (category, &settings.category_column) {
        return Err(corpus.refuse_schema(format!("there is no column `{name}`; check --category-column")));
    }
    let (records, malformed) = interrupt.while_reading("nothing was written", || corpus.read_usable())?;
    let assigned = assign(&records, category, shares, *seed)?;
    let mut inputs = CorpusFiles::inputs(&settings.corpus, settings.format);
    inputs.extend(image_folders(&records));
    let claim = Claim { command: "plant", inputs: &inputs, overwrite: settings.overwrite };
    let folder = OutputFolder::claim(&claim, &settings.out, &[])?;
    folder.refuse_present(settings.overwrite)?;
    let plan = Plan { settings, schema, records: &records, malformed: &malformed, assigned };
    folder.write(|out| plan.write(out, interrupt, progress))
}

/// Records whose image was written, and failed records with the reason.
type Written = (Vec<usize>, Vec<(usize, String)>);

/// The flaw and the source of each record.
struct Assigned {
    flaws: Vec<Flaw>,
    sources: Vec<Option<usize>>,
    /// Indices of random streams.
    streams: Vec<u64>,
}

/// Assigns flaws and sources to the records. `category` is the index of a column.
///
/// If there are only the oldest flaws, they are assigned by row, so that the published figures remain valid. Otherwise
/// all flaws are assigned by id, and the order of the rows has no effect.
fn assign(records: &[Record], category: Option<usize>, shares: &FlawShares, seed: u64) -> Result<Assigned> {
    let by_row = shares.flaws().all(|flaw| flaw <= Flaw::Watermark);
    let mut order: Vec<usize> = (0..records.len()).collect();
    if !by_row {
        order.sort_by(|&left, &right| records[left].id.cmp(&records[right].id));
    }
    let stream = |at: usize| if by_row { at as u64 } else { stream_of(&records[at].id) };
    let streams: Vec<u64> = (0..records.len()).map(stream).collect();
    let captions: Vec<&str> = order.iter().map(|&at| records[at].caption.as_str()).collect();
    let neighbors = if shares.share(Flaw::NeighborCaption) > 0.0 {
        let category_of = |&at: &usize| category.map_or("", |column| records[at].fields[column].as_str());
        Neighbors::new(&captions, &order.iter().map(category_of).collect::<Vec<_>>())
    } else {
        Neighbors::default()
    };
    let mut flaws = plan(records.len(), shares, seed)?;
    relocate(&mut flaws, seed, |rank, flaw| match flaw {
        Flaw::NeighborCaption => neighbors.of(rank, seed).is_some(),
        _ if is_of_captions(flaw) => {
            corrupt_caption(captions[rank], flaw, seed, streams[order[rank]]).is_some()
        }
        _ => true,
    })?;
    let sources = sources(&flaws, &captions, &neighbors, seed)?;
    let mut assigned =
        Assigned { flaws: vec![Flaw::Clean; records.len()], sources: vec![None; records.len()], streams };
    for (rank, &at) in order.iter().enumerate() {
        assigned.flaws[at] = flaws[rank];
        assigned.sources[at] = sources[rank].map(|source| order[source]);
    }
    Ok(assigned)
}

/// The index of the random stream of an id: 48 bits of its SHA-256.
fn stream_of(id: &str) -> u64 {
    Sha256::digest(id).iter().take(6).fold(0, |bits, &byte| bits << 8 | u64::from(byte))
}

/// The records with their flaws.
struct Plan<'a> {
    settings: &'a PlantSettings,
    schema: Schema,
    records: &'a [Record],
    malformed: &'a [Record],
    assigned: Assigned,
}

impl Plan<'_> {
    /// Writes the corrupted corpus to a staging folder.
    fn write(&self, out: &Path, interrupt: &Interrupt, progress: &mut dyn Progress) -> Result<Planted> {
        let Self { settings, records, malformed, assigned, .. } = self;
        let Assigned { flaws, sources, streams } = assigned;
        let images = out.join("images");
        fs::create_dir_all(&images).map_err(Error::io("create", &images))?;
        let (kept, failed) = self.write_images(out, interrupt, progress)?;
        if kept.is_empty() {
            let reasons: Reasons = failed.iter().map(|(_, reason)| reason.as_str()).collect();
            return Err(reasons.none_usable(&settings.corpus, None));
        }
        let row =
            |record: &Record, reason: &str| [record.id.clone(), record.origin.to_string(), reason.to_owned()];
        let failures = malformed
            .iter()
            .map(|record| row(record, record.malformed.as_deref().unwrap_or_default()))
            .chain(failed.iter().map(|(at, reason)| row(&records[*at], reason)));
        write_csv(&out.join("failed.csv"), &["id", "origin", "reason"], failures)?;
        let source_id = |at: usize| sources[at].map_or(String::new(), |source| records[source].id.clone());
        let rows = kept.iter().map(|&at| {
            let caption = &records[sources[at].unwrap_or(at)].caption;
            let corrupted = corrupt_caption(caption, flaws[at], settings.seed, streams[at]);
            let caption = corrupted.as_ref().unwrap_or(caption);
            let mut fields = replaced(&records[at], &self.schema, image_path(at), caption);
            fields.extend([flaws[at].name().to_owned(), source_id(at)]);
            fields
        });
        let header =
            [self.schema.columns.clone(), vec![FLAW_COLUMN.to_owned(), SOURCE_COLUMN.to_owned()]].concat();
        write_csv(&out.join(TABLE), &header, rows)?;
        let counts = Flaw::ALL
            .into_iter()
            .map(|flaw| (flaw, kept.iter().filter(|&&at| flaws[at] == flaw).count()))
            .filter(|(flaw, count)| *count > 0 || settings.shares.share(*flaw) > 0.0)
            .collect();
        Ok(Planted { table: settings.out.join(TABLE), counts, failed: failed.len() + malformed.len() })
    }

    /// Writes the images. Returns the written records, and the failed ones with the reason.
    fn write_images(
        &self,
        out: &Path,
        interrupt: &Interrupt,
        progress: &mut dyn Progress,
    ) -> Result<Written> {
        let Self { settings, records, assigned, .. } = self;
        let Assigned { flaws, sources, streams } = assigned;
        let PlantSettings { seed, preprocess, .. } = settings;
        // The image of a duplicate is that of its source.
        let from = |at: usize| sources[at].filter(|_| flaws[at].copies_image()).unwrap_or(at);
        let requests: Vec<_> = (0..records.len()).map(|at| (at, records[from(at)].image.clone())).collect();
        let total = records.len() as u64;
        let mut loader = Loader::new(requests, *preprocess, settings.workers, AHEAD)?;
        let mut kept = Vec::with_capacity(records.len());
        let mut failed: Vec<(usize, String)> = Vec::new();
        let mut left_out = LeftOutRows::default();
        loop {
            interrupt.check("nothing was written; run the same command again")?;
            let chunk: Vec<(usize, Result<SquareImage>)> = loader.by_ref().take(CHUNK).collect();
            if chunk.is_empty() {
                return Ok((kept, failed));
            }
            let mut usable = Vec::with_capacity(chunk.len());
            for (at, image) in chunk {
                progress.counted("planting", at as u64 + 1, total);
                match image {
                    Ok(image) => usable.push((at, image)),
                    Err(error) if error.is_of_machine() => return Err(error),
                    Err(error) => {
                        left_out.add(&records[at].id, &error);
                        failed.push((at, error.to_string()));
                    }
                }
            }
            kept.extend(usable.iter().map(|(at, _)| *at));
            usable.into_par_iter().try_for_each(|(at, SquareImage { side, mut rgb })| {
                corrupt(&mut rgb, side, side, flaws[at], *seed, streams[at])?;
                write_png(&out.join(image_path(at)), &rgb, side)
            })?;
        }
    }
}

fn image_path(at: usize) -> String {
    format!("images/{at:07}.png")
}

/// The fields of a record with another image path and caption.
fn replaced(record: &Record, schema: &Schema, path: String, caption: &str) -> Vec<String> {
    let mut fields = record.fields.clone();
    fields[schema.image] = path;
    caption.clone_into(&mut fields[schema.caption]);
    fields
}

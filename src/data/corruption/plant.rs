//! Planted truth: known flaws in a copy of any corpus, so that a rating of it can be judged.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use super::{Flaw, FlawShares, plan, sources, spoil};
use crate::{
    Error, Result,
    data::{
        corpus::{ColumnNames, Corpus, Record, Schema, image_folders},
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

/// Images spoiled and written at once.
const CHUNK: usize = 64;
/// Images decoded ahead of their use.
const AHEAD: usize = 128;
/// The column that says what was done to a record.
pub(crate) const FLAW_COLUMN: &str = "flaw";
/// The column that says which record a duplicate is of, or whose caption a wrong one is.
pub(crate) const SOURCE_COLUMN: &str = "flaw_source";
/// The table of the planted corpus.
const TABLE: &str = "corpus.csv";

/// What [`plant`] does.
#[derive(Clone, Debug, PartialEq)]
pub struct PlantSettings {
    /// The corpus.
    pub corpus: PathBuf,
    /// Its columns.
    pub columns: ColumnNames,
    /// Count malformed rows as failed records.
    pub skip_bad_rows: bool,
    /// The folder that is made.
    pub out: PathBuf,
    /// How images are decoded. All of them, spoiled or not, are cut to squares of this side, so that a flaw cannot be told by
    /// the size of its file's image.
    pub preprocess: Preprocess,
    /// How many records get which flaw.
    pub shares: FlawShares,
    /// Decoding threads.
    pub workers: usize,
    /// Fixes which records, and what becomes of them.
    pub seed: u64,
    /// Replace a planted corpus that is there.
    pub overwrite: bool,
}

/// What was planted.
#[derive(Clone, Debug, PartialEq)]
pub struct Planted {
    /// The table: the corpus' columns, the caption and the image's path replaced, and two of our own.
    pub table: PathBuf,
    /// Records of it by flaw, in the order of [`Flaw::ALL`].
    pub counts: Vec<(Flaw, usize)>,
    /// Records left out because their image, or that which they were to be a duplicate of, cannot be read; `failed.csv` says
    /// why.
    pub failed: usize,
}

/// Copies a corpus and spoils a part of it on purpose. The same seed gives the same bytes.
///
/// # Errors
/// If the corpus cannot be used or has one of the columns already, a share does not fit, a file cannot be written, or the user
/// interrupts.
pub fn plant(
    settings: &PlantSettings,
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<Planted> {
    let PlantSettings { shares, seed, .. } = settings;
    let corpus =
        Corpus::open(&settings.corpus, &settings.columns)?.skipping_malformed(settings.skip_bad_rows);
    let schema = corpus.schema().clone();
    if let Some(taken) =
        schema.columns.iter().find(|name| [FLAW_COLUMN, SOURCE_COLUMN].contains(&name.as_str()))
    {
        let message = format!("the column `{taken}` is there already, and is to be added; rename it");
        return Err(corpus.refuse_schema(message));
    }
    let (records, malformed) = interrupt.while_reading("nothing was written", || corpus.read_usable())?;
    let flaws = plan(records.len(), shares, *seed)?;
    let captions: Vec<&str> = records.iter().map(|record| record.caption.as_str()).collect();
    let sources = sources(&flaws, &captions, *seed)?;
    let mut inputs = vec![settings.corpus.clone()];
    inputs.extend(image_folders(&records));
    let claim = Claim { command: "plant", inputs: &inputs, overwrite: settings.overwrite };
    let folder = OutputFolder::claim(&claim, &settings.out, &[])?;
    folder.refuse_present(settings.overwrite)?;
    let plan = Plan { settings, schema, records: &records, malformed: &malformed, flaws, sources };
    folder.write(|out| plan.write(out, interrupt, progress))
}

/// Records whose image is written, and the others with the reason.
type Written = (Vec<usize>, Vec<(usize, String)>);

/// Which record gets what.
struct Plan<'a> {
    settings: &'a PlantSettings,
    schema: Schema,
    records: &'a [Record],
    malformed: &'a [Record],
    flaws: Vec<Flaw>,
    sources: Vec<Option<usize>>,
}

impl Plan<'_> {
    /// Writes the planted corpus into a folder, which later has another name.
    fn write(&self, out: &Path, interrupt: &Interrupt, progress: &mut dyn Progress) -> Result<Planted> {
        let Self { settings, records, malformed, flaws, sources, .. } = self;
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
            .filter(|(_, count)| *count > 0)
            .collect();
        Ok(Planted { table: settings.out.join(TABLE), counts, failed: failed.len() + malformed.len() })
    }

    /// Writes the images; gives the records whose image is there, and the others with the reason.
    fn write_images(
        &self,
        out: &Path,
        interrupt: &Interrupt,
        progress: &mut dyn Progress,
    ) -> Result<Written> {
        let Self { settings, records, flaws, sources, .. } = self;
        let PlantSettings { seed, preprocess, .. } = settings;
        // A duplicate's image is that of its source.
        let from = |at: usize| sources[at].filter(|_| flaws[at] == Flaw::Duplicate).unwrap_or(at);
        let requests: Vec<_> = (0..records.len()).map(|at| (at, records[from(at)].image.clone())).collect();
        let total = records.len() as u64;
        let mut loader = Loader::new(requests, *preprocess, settings.workers, AHEAD)?;
        let mut kept = Vec::with_capacity(records.len());
        let mut failed: Vec<(usize, String)> = Vec::new();
        let mut left_out = LeftOutRows::default();
        loop {
            interrupt.check("nothing was written; give the same command again")?;
            let chunk: Vec<(usize, Result<SquareImage>)> = loader.by_ref().take(CHUNK).collect();
            if chunk.is_empty() {
                return Ok((kept, failed));
            }
            let mut usable = Vec::with_capacity(chunk.len());
            for (at, image) in chunk {
                progress.counted("planting", at as u64 + 1, total);
                match image {
                    Ok(image) => usable.push((at, image)),
                    Err(error @ Error::Memory { .. }) => return Err(error),
                    Err(error) => {
                        left_out.add(&records[at].id, &error);
                        failed.push((at, error.to_string()));
                    }
                }
            }
            kept.extend(usable.iter().map(|(at, _)| *at));
            usable.into_par_iter().try_for_each(|(at, SquareImage { side, mut rgb })| {
                spoil(&mut rgb, side, side, flaws[at], *seed, at as u64)?;
                write_png(&out.join(image_path(at)), &rgb, side)
            })?;
        }
    }
}

fn image_path(at: usize) -> String {
    format!("images/{at:07}.png")
}

/// A record's fields with another image and caption.
fn replaced(record: &Record, schema: &Schema, path: String, caption: &str) -> Vec<String> {
    let mut fields = record.fields.clone();
    fields[schema.image] = path;
    caption.clone_into(&mut fields[schema.caption]);
    fields
}

//! The data of a comparison: the usable training records, a validation set that guides the raters, a held-out set that
//! no rater reads and models are measured on, and the tokens of all. No two sets share an image.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{CompareRequest, task::Task};
use crate::{
    data::{Corpus, Record, corpus::moved_paths::absolute_path, corruption::Flaw},
    engine::{Purpose, Random},
    error::{Error, Reasons, Result},
    files::{
        sealed::{Unsealed, read_sealed, unseal, write_sealed},
        write_csv,
    },
    interrupt::Interrupt,
    tokens::{
        cache::TokenCache,
        encode::{EncodeRequest, FAILED, encode},
    },
};

/// Fraction split off for the validation and held-out sets together, if no table is given.
const ASIDE_SHARE: f64 = 0.2;

/// Identifies the data of a comparison; a folder with a different description is refused.
#[derive(PartialEq, Serialize, Deserialize)]
struct Described {
    /// The configuration's fingerprint.
    config: String,
    /// SHA-256 of the tables.
    tables: Vec<String>,
    /// The data type that device kernels compute in; `None` on the CPU. A comparison must not mix models of the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kernels: Option<String>,
}

impl Described {
    /// Refuses a folder that contains a different comparison; `tables` are the tables described.
    fn expect_held(&self, path: &Path, out: &Path, tables: &[&PathBuf]) -> Result<()> {
        if !path.exists() {
            return Ok(());
        }
        let bytes = fs::read(path).map_err(Error::io("read", path))?;
        let older = matches!(unseal(&bytes), Unsealed::Without)
            && serde_json::from_slice::<Described>(&bytes).is_ok();
        if older {
            return Err(Error::mismatch(
                out,
                format!(
                    "{} contains a comparison of an older version, which `report` reads, but which cannot be resumed; \
                     give another --out, or remove it",
                    out.display()
                ),
            ));
        }
        let cure = "restore it, or choose another --out";
        let found: Described = read_sealed(path, cure)?;
        if let Some(at) = (0..found.tables.len().max(self.tables.len()))
            .find(|&at| found.tables.get(at) != self.tables.get(at))
            .filter(|_| found.config == self.config && found.kernels == self.kernels)
        {
            let table = tables
                .get(at)
                .map_or_else(|| path.display().to_string(), |table| table.display().to_string());
            return Err(Error::mismatch(
                out,
                format!(
                    "{} contains a comparison of other tables: {table} differs, or was changed since; {cure}",
                    out.display()
                ),
            ));
        }
        if found != *self {
            return Err(Error::mismatch(
                out,
                format!(
                    "{} contains a comparison of another configuration or other tables, or one that was started with \
                     other arithmetic (--device, fp16); choose another --out, or remove it",
                    out.display()
                ),
            ));
        }
        Ok(())
    }
}

/// The prepared data.
pub(super) struct Data {
    /// The usable records of the training set.
    pub(super) pool: PathBuf,
    /// The validation table, which guides the raters.
    pub(super) validation: PathBuf,
    /// The held-out table, which models are measured on.
    pub(super) held_out: PathBuf,
    /// Usable records of the validation and of the held-out set.
    pub(super) aside: [usize; 2],
    /// Columns of the training set.
    pub(super) records: Vec<Record>,
    /// The token cache of all sets.
    pub(super) cache: PathBuf,
}

/// Splits off the sets that no table is given for, encodes all, and keeps the usable records. `begin` is called after
/// the tables are read, before anything is written.
pub(super) fn prepare(
    request: &CompareRequest,
    out: &Path,
    begin: impl FnOnce() -> Result<()>,
    interrupt: &Interrupt,
    task: &mut Task<'_>,
) -> Result<Data> {
    let config = &request.config;
    let folder = out.join("data");
    let (pool, cache) = (folder.join("pool.csv"), out.join("tokens"));
    let train = config.data.train_csv()?.to_path_buf();
    let given = config.data.validation.clone();
    let tables = std::iter::once(&train)
        .chain(&given)
        .chain(&request.held_out)
        .map(|path| interrupt.while_reading(NOT_BEGUN, || config.open_corpus(path)?.identity()))
        .collect::<Result<Vec<_>>>()?;
    let kernels = config.device.open()?.map(|_| format!("{:?}", config.compute));
    let described = Described { config: config.fingerprint(), tables, kernels };
    let path = out.join("compare.json");
    let named: Vec<&PathBuf> = std::iter::once(&train).chain(&given).chain(&request.held_out).collect();
    described.expect_held(&path, out, &named)?;
    let read = |path: &Path| {
        interrupt.while_reading(NOT_BEGUN, || {
            let corpus = config.open_corpus(path)?;
            Ok((Columns::of(&corpus), corpus.read_usable()?.0))
        })
    };
    // Tables that are given are read; the other sets are split off, the same for every model.
    let (named, mut records) = read(&train)?;
    let (aside_columns, aside) = match &given {
        Some(path) => read(path)?,
        None => {
            let (aside, left) = set_aside(request, &train, &named, records)?;
            records = left;
            (named.clone(), aside)
        }
    };
    let (validation, held_out, held_out_columns) = match &request.held_out {
        Some(path) => {
            let (columns, held_out) = read(path)?;
            (aside, held_out, columns)
        }
        None => {
            let count = aside.len() / 2;
            tracing::warn!(
                "no held-out set is given, so {count} of the {} validation records are held out: models are measured on \
                 them, and no rater reads them",
                aside.len()
            );
            let (held_out, validation) = split(aside, count, config.seed, u64::MAX - 1, |_| true);
            (validation, held_out, aside_columns.clone())
        }
    };
    expect_batches([validation.len(), held_out.len()], config.training.batch)?;
    begin()?;
    write_sealed(&path, &described)?;
    let paths = ["validation.csv", "held_out.csv"].map(|name| folder.join(name));
    write_records(&paths[0], &aside_columns, &validation)?;
    write_records(&paths[1], &held_out_columns, &held_out)?;
    let all = folder.join("train.csv");
    write_records(&all, &named, &records)?;
    let encoding = EncodeRequest {
        config: config.clone(),
        run: None,
        tables: [&[all][..], &paths].concat(),
        out: cache.clone(),
        text: None,
        shard_rows: 512,
        overwrite: false,
    };
    encode(&encoding, interrupt, task)?;
    let tokens = TokenCache::open(&cache)?;
    let usable = |record: &Record| tokens.contains(&record.image);
    let before = records.len();
    records.retain(usable);
    if records.is_empty() {
        let reasons = reasons_in(&cache.join(FAILED))?;
        return Err(reasons.none_usable(&train, Some(&cache.join(FAILED))));
    }
    if records.len() < before {
        tracing::warn!(
            "{} of {before} records cannot be used; see {}",
            before - records.len(),
            cache.join(FAILED).display()
        );
    }
    refuse_shared(request, [("training", &records), ("validation", &validation), ("held-out", &held_out)])?;
    write_records(&pool, &named, &records)?;
    // Their images have absolute paths now.
    let records = config.open_corpus(&pool)?.read_all()?;
    let aside = [&validation, &held_out].map(|set| set.iter().filter(|record| usable(record)).count());
    expect_batches(aside, config.training.batch)?;
    let [validation, held_out] = paths;
    Ok(Data { pool, validation, held_out, aside, records, cache })
}

/// Splits off the validation and held-out records if no table of them is given; returns them and the remaining ones.
fn set_aside(
    request: &CompareRequest,
    train: &Path,
    columns: &Columns,
    records: Vec<Record>,
) -> Result<(Vec<Record>, Vec<Record>)> {
    let config = &request.config;
    let share = config.data.validation_portion.unwrap_or(ASIDE_SHARE);
    let count = ((records.len() as f64 * share).round() as usize).max(2 * config.training.batch);
    if count >= records.len() {
        let message = format!("{} records are too few to set {count} of them aside", records.len());
        return Err(Error::Table { path: train.to_path_buf(), line: None, message });
    }
    tracing::warn!("no validation set is given, so {count} records are held out");
    // Where flaws are known, validation and held-out records are clean ones.
    let flaw = columns.header.iter().position(|column| column == request.flaw_column());
    let sound = |record: &Record| flaw.is_none_or(|flaw| record.fields[flaw] == Flaw::Clean.name());
    let enough = records.iter().filter(|record| sound(record)).count() > count;
    if flaw.is_some() && !enough {
        tracing::warn!(
            "at most {count} records are `{}`, so corrupted ones are held out, too",
            Flaw::Clean.name()
        );
    }
    Ok(split(records, count, config.seed, u64::MAX, |record| !enough || sound(record)))
}

/// The message of a comparison that is interrupted before anything is encoded.
const NOT_BEGUN: &str = "nothing had been encoded or trained yet; run the same command again";

/// The reasons in a list of failed rows.
fn reasons_in(failed: &Path) -> Result<Reasons> {
    let refuse = |error: csv::Error| Error::Table {
        path: failed.to_path_buf(),
        line: None,
        message: error.to_string(),
    };
    let mut reasons = Reasons::default();
    for row in csv::Reader::from_path(failed).map_err(refuse)?.records() {
        reasons.add(row.map_err(refuse)?.get(2).unwrap_or_default());
    }
    Ok(reasons)
}

/// Refuses validation and held-out sets with fewer records than a batch. Called before images are read, and again when
/// the usable records are known.
fn expect_batches(records: [usize; 2], batch: usize) -> Result<()> {
    for (what, count) in std::iter::zip(["validation", "held-out"], records) {
        if count < batch {
            return Err(Error::not_enough_data(format!(
                "the {what} set has {count} usable records, fewer than a batch of {batch}; add data, or lower bs"
            )));
        }
    }
    Ok(())
}

/// The columns of a table, which differ between the sets.
#[derive(Clone)]
struct Columns {
    header: Vec<String>,
    image: usize,
}

impl Columns {
    fn of(corpus: &Corpus) -> Self {
        let schema = corpus.schema();
        Self { header: schema.columns.clone(), image: schema.image }
    }
}

/// Takes `count` random records out of those that are eligible; returns them and the remaining ones, both in their
/// order.
fn split(
    records: Vec<Record>,
    count: usize,
    seed: u64,
    turn: u64,
    may_be_taken: impl Fn(&Record) -> bool,
) -> (Vec<Record>, Vec<Record>) {
    let mut indices: Vec<usize> = (0..records.len()).filter(|&at| may_be_taken(&records[at])).collect();
    Random::new(seed, Purpose::Shuffle, turn).shuffle(&mut indices);
    let mut taken = vec![false; records.len()];
    indices[..count].iter().for_each(|&at| taken[at] = true);
    let (out, left): (Vec<_>, Vec<_>) = records.into_iter().zip(taken).partition(|(_, taken)| *taken);
    let only = |records: Vec<(Record, bool)>| records.into_iter().map(|(record, _)| record).collect();
    (only(out), only(left))
}

/// Refuses images that are in two of the sets, by their content.
fn refuse_shared(request: &CompareRequest, sets: [(&str, &[Record]); 3]) -> Result<()> {
    let digests = sets.map(|(_, records)| -> Vec<Option<[u8; 32]>> {
        records.par_iter().map(|record| record.image.digest().ok()).collect()
    });
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        let found: HashMap<[u8; 32], &str> = std::iter::zip(&digests[other], sets[other].1)
            .filter_map(|(digest, record)| Some(((*digest)?, record.id.as_str())))
            .collect();
        let shared: Vec<(&str, &str)> = std::iter::zip(&digests[one], sets[one].1)
            .filter_map(|(digest, record)| Some((record.id.as_str(), *found.get(&(*digest)?)?)))
            .collect();
        let Some((first, second)) = shared.first() else { continue };
        let (one, other) = (sets[one].0, sets[other].0);
        let message = format!(
            "{} {one} images are also in the {other} set (the first: `{first}` in the {one} set, `{second}` in the {other} \
             set)",
            shared.len()
        );
        if !request.allow_duplicates {
            return Err(Error::argument(format!("{message}; remove them, or pass --allow-duplicates")));
        }
        tracing::warn!("{message}");
    }
    Ok(())
}

/// Writes records with all their columns, images as absolute paths.
fn write_records(path: &Path, columns: &Columns, records: &[Record]) -> Result<()> {
    let row = |record: &Record| -> Result<Vec<String>> {
        let mut fields = record.fields.clone();
        fields[columns.image] = absolute_path(&record.fields[columns.image], &record.image)?.into_owned();
        Ok(fields)
    };
    write_csv(path, &columns.header, records.iter().map(row).collect::<Result<Vec<_>>>()?)
}

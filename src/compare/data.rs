//! The data of a comparison: the records that can be used, a validation set that has none of their pictures, and the tokens of
//! both.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{CompareRequest, Teller};
use crate::{
    data::Record,
    engine::{Purpose, Random},
    error::{Error, Result},
    files::{digest_of_file, hexadecimal, write_csv, write_whole},
    interrupt::Interrupt,
    train::{
        cache::{EncodeRequest, TokenCache, encode},
        corpus,
    },
};

/// Share held out for validation where no table of it is named.
const VALIDATION_SHARE: f64 = 0.1;

/// What the data of a comparison is; a folder of another one is refused.
#[derive(PartialEq, Serialize, Deserialize)]
struct Described {
    /// The configuration's fingerprint.
    config: String,
    /// SHA-256 of the tables.
    tables: Vec<String>,
}

/// The data, ready.
pub(super) struct Data {
    /// The records that models can be trained on.
    pub(super) pool: PathBuf,
    /// The validation set.
    pub(super) validation: PathBuf,
    /// Usable records of it.
    pub(super) validation_records: usize,
    /// Those of the pool.
    pub(super) records: Vec<Record>,
    /// The tokens of both.
    pub(super) cache: PathBuf,
}

/// Splits off a validation set where there is none, encodes both, and leaves the records that can be used.
pub(super) fn prepare(
    request: &CompareRequest,
    out: &Path,
    interrupt: &Interrupt,
    teller: &mut Teller<'_>,
) -> Result<Data> {
    let config = &request.config;
    let folder = out.join("data");
    let (pool, cache) = (folder.join("pool.csv"), out.join("tokens"));
    let train = config.data.train_csv()?.to_path_buf();
    let given = config.data.validation.clone();
    let tables = std::iter::once(&train)
        .chain(&given)
        .map(|path| Ok(hexadecimal(&digest_of_file(path).map_err(Error::io("read", path))?)))
        .collect::<Result<Vec<_>>>()?;
    let described = Described { config: config.fingerprint(), tables };
    let path = out.join("compare.json");
    if path.exists() {
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        let same = serde_json::from_slice::<Described>(&bytes).is_ok_and(|held| held == described);
        if !same {
            return Err(Error::invalid(format!(
                "{} holds a comparison of another configuration or other tables; give another --out, or remove it",
                out.display()
            )));
        }
    }
    let json = serde_json::to_vec_pretty(&described).map_err(|error| Error::invalid(error.to_string()))?;
    write_whole(&path, &json)?;

    let corpus = corpus::open(config, &train)?;
    let (header, columns) = (corpus.header().to_vec(), corpus.columns());
    let mut records = corpus.read_all()?;
    let validation = match given {
        Some(path) => path,
        None => {
            let share = config.data.validation_portion.unwrap_or(VALIDATION_SHARE);
            let count = ((records.len() as f64 * share).round() as usize).max(config.training.batch);
            if count >= records.len() {
                let message =
                    format!("{} records are too few to hold {count} out for validation", records.len());
                return Err(Error::Table { path: train, line: None, message });
            }
            tracing::warn!(
                "no validation set is named, so {count} records are held out for it, the same for every model"
            );
            let mut places: Vec<usize> = (0..records.len()).collect();
            Random::new(config.seed, Purpose::Shuffle, u64::MAX).shuffle(&mut places);
            let mut held = vec![false; records.len()];
            places[..count].iter().for_each(|&at| held[at] = true);
            let path = folder.join("validation.csv");
            let (out, left): (Vec<_>, Vec<_>) = records.into_iter().zip(held).partition(|(_, held)| *held);
            let only = |records: Vec<(Record, bool)>| -> Vec<Record> {
                records.into_iter().map(|(record, _)| record).collect()
            };
            write_records(&path, &header, columns, &only(out))?;
            records = only(left);
            path
        }
    };
    let all = folder.join("train.csv");
    write_records(&all, &header, columns, &records)?;
    let encoding = EncodeRequest {
        config: config.clone(),
        run: None,
        tables: vec![all, validation.clone()],
        out: cache.clone(),
        text: None,
        shard_rows: 512,
        overwrite: false,
    };
    encode(&encoding, interrupt, &mut |what, done, total| (teller.progress)(what, done, total))?;
    let tokens = TokenCache::open(&cache)?;
    let held = corpus::open(config, &validation)?.read_all()?;
    let usable = |record: &Record| tokens.holds(&record.image);
    let before = records.len();
    records.retain(usable);
    if records.len() < before {
        tracing::warn!(
            "{} of {before} records cannot be used; {} says why",
            before - records.len(),
            cache.join("failed.csv").display()
        );
    }
    refuse_shared(request, &records, &held)?;
    write_records(&pool, &header, columns, &records)?;
    // Their pictures are named by whole paths now.
    let records = corpus::open(config, &pool)?.read_all()?;
    let validation_records = held.iter().filter(|record| usable(record)).count();
    Ok(Data { pool, validation, validation_records, records, cache })
}

/// Refuses pictures that are in both sets, by their content.
fn refuse_shared(request: &CompareRequest, train: &[Record], validation: &[Record]) -> Result<()> {
    let digests = |records: &[Record]| -> HashMap<[u8; 32], String> {
        records
            .par_iter()
            .filter_map(|record| Some((digest_of_file(&record.image).ok()?, record.id.clone())))
            .collect()
    };
    let held = digests(validation);
    let shared: Vec<(String, String)> = train
        .par_iter()
        .filter_map(|record| {
            let other = held.get(&digest_of_file(&record.image).ok()?)?;
            Some((record.id.clone(), other.clone()))
        })
        .collect();
    let Some((first, other)) = shared.first() else { return Ok(()) };
    let message = format!(
        "{} training pictures are in the validation set, too (the first: {first} is {other})",
        shared.len()
    );
    if request.allow_duplicates {
        tracing::warn!("{message}");
        return Ok(());
    }
    Err(Error::invalid(format!("{message}; remove them, or allow it by --allow-duplicates")))
}

/// Writes records with all their columns, pictures by their whole paths.
fn write_records(path: &Path, header: &[String], columns: [usize; 3], records: &[Record]) -> Result<()> {
    let row = |record: &Record| {
        let image = std::path::absolute(&record.image).map_err(Error::io("resolve", &record.image))?;
        let Some(image) = image.to_str() else {
            return Err(Error::invalid(format!("{} is not UTF-8", image.display())));
        };
        let mut fields = record.fields.clone();
        image.clone_into(&mut fields[columns[1]]);
        Ok(fields)
    };
    write_csv(path, header, records.iter().map(row).collect::<Result<Vec<_>>>()?)
}

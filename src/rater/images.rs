//! The figures written after scoring: the histogram of the ratings and a contact sheet by rating decile.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use crate::{
    config::Config,
    data::{Record, load_image},
    error::Result,
    report::{
        contact_sheet::{Thumbnail, contact_sheet, decile_samples},
        plot::{RatingHistogram, rating_histogram},
    },
    select::ratings::{RatingColumns, RatingsTable},
};

/// Thumbnails per decile.
const THUMBNAILS: usize = 12;

/// Suffix of the histogram's file name.
pub(crate) const HISTOGRAM: &str = ".histogram.png";
/// Suffix of the contact sheet's file name.
pub(crate) const CONTACT_SHEET: &str = ".contact_sheet.png";

/// Writes both next to the ratings table, as `<stem>.histogram.png` and `<stem>.contact_sheet.png`. `columns` are its
/// id and rating columns; `note_column` is a column of the corpus shown before each caption.
///
/// # Errors
/// If the table or the corpus cannot be read, or an image cannot be written.
pub(crate) fn rating_figures(
    config: &Config,
    ratings: &Path,
    columns: &RatingColumns,
    corpus_csv: &Path,
    note_column: Option<&str>,
) -> Result<Vec<PathBuf>> {
    let table = RatingsTable::read(ratings, columns)?;
    let name = |ending: &str| {
        let mut name = ratings.file_stem().unwrap_or_default().to_os_string();
        name.push(ending);
        ratings.with_file_name(name)
    };
    let paths = [name(HISTOGRAM), name(CONTACT_SHEET)];
    let histogram = RatingHistogram { title: "Ratings".to_owned(), ratings: &table.ratings, kept: &[] };
    rating_histogram(&histogram)?.write_png(&paths[0])?;

    let samples = decile_samples(&table.ratings, THUMBNAILS)?;
    let requested: HashSet<&str> =
        samples.iter().flat_map(|sample| &sample.rows).map(|&row| table.ids.get(row as usize)).collect();
    let (header, found) = records_of(config, corpus_csv, &requested)?;
    let note = note_column.and_then(|name| header.iter().position(|column| column == name));
    let preprocess = config.preprocess(config.networks.image_side());
    let mut rows = Vec::new();
    for sample in &samples {
        let mut thumbnails = Vec::new();
        let of_row = |&row: &u32| {
            let record = found.get(table.ids.get(row as usize))?;
            Some((row, record, load_image(&record.image, &preprocess)))
        };
        let loaded: Vec<_> = sample.rows.par_iter().filter_map(of_row).collect();
        for (row, record, image) in loaded {
            let image = match image {
                Ok(image) => image,
                // It was rated from cached tokens, so its rating stands.
                Err(error) => {
                    tracing::warn!("not on the contact sheet: {error}");
                    continue;
                }
            };
            let note = note.map_or(String::new(), |column| format!("[{}] ", record.fields[column]));
            thumbnails.push(Thumbnail {
                side: u32::try_from(image.side).unwrap_or(u32::MAX),
                rgb: image.rgb,
                caption: format!("{note}{}", record.caption),
                rating: Some(table.ratings[row as usize]),
            });
        }
        if !thumbnails.is_empty() {
            rows.push(sample.sheet_row(thumbnails));
        }
    }
    let [histogram, sheet] = paths;
    if rows.is_empty() {
        return Ok(vec![histogram]);
    }
    contact_sheet("Images by rating, highest first", &rows)?.write_png(&sheet)?;
    Ok(vec![histogram, sheet])
}

/// The columns of the corpus, and the requested records by id.
///
/// # Errors
/// If the table cannot be read.
pub(crate) fn records_of(
    config: &Config,
    corpus_csv: &Path,
    requested: &HashSet<&str>,
) -> Result<(Vec<String>, HashMap<String, Record>)> {
    let corpus = config.open_corpus(corpus_csv)?;
    let header = corpus.schema().columns.clone();
    let mut found = HashMap::new();
    for record in corpus {
        let record = record?;
        if requested.contains(record.id.as_str()) {
            found.insert(record.id.clone(), record);
        }
    }
    Ok((header, found))
}

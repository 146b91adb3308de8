//! Writes the synthetic data set: images, captions and flaws.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use super::{description::Description, draw_scene, language::english, misdescribed};
use crate::{
    Error, Result,
    data::{
        corruption::{Flaw, FlawShares, Neighbors, corrupt, corrupt_caption, plan, relocate, sources},
        image::preprocess::write_png,
    },
    files::write_csv,
    interrupt::Interrupt,
};

/// Maximum side of a synthetic image, in pixels.
const LARGEST_SIDE: usize = 4096;

/// Options of [`write_data_set`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DataSetSettings {
    /// Number of records in `train.csv`.
    pub train: usize,
    /// Number of records in `validation.csv`, all clean.
    pub validation: usize,
    /// Side length of the images in pixels.
    pub side: usize,
    /// The share of training records with each flaw.
    pub shares: FlawShares,
    /// Seed of all images, captions and flaws.
    pub seed: u64,
}

/// Paths of the tables written by [`write_data_set`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSet {
    /// Training records, including corrupted ones.
    pub train_csv: PathBuf,
    /// Validation records.
    pub validation_csv: PathBuf,
}

/// A row of a table.
struct Row {
    id: usize,
    caption: String,
    flaw: Flaw,
    duplicate_of: Option<usize>,
}

/// Generates a data set in `folder`, which is created: PNG images in `train/` and `validation/`, and the tables
/// `train.csv` and `validation.csv` with the columns `id,image_save_path,caption,flaw,duplicate_of`.
///
/// Paths are relative to the tables. Training ids count from 0, and validation ids continue from there. The output is
/// deterministic for a given seed. The tables are written last: if they exist, the images are complete.
///
/// # Errors
/// If a setting is out of range or a file cannot be written.
pub fn write_data_set(folder: &Path, settings: &DataSetSettings) -> Result<DataSet> {
    write_data_set_until(folder, settings, &Interrupt::default())
}

/// Like [`write_data_set`], but the user can interrupt it; images written by then are kept.
///
/// # Errors
/// See [`write_data_set`]; [`Error::Interrupted`] if the user interrupts the job.
pub fn write_data_set_until(
    folder: &Path,
    settings: &DataSetSettings,
    interrupt: &Interrupt,
) -> Result<DataSet> {
    let check = || interrupt.check("the data set is incomplete; run the same command again");
    let DataSetSettings { train, validation, side, shares, seed } = *settings;
    if !(8..=LARGEST_SIDE).contains(&side) {
        return Err(Error::argument(format!(
            "the side of synthetic images is {side}, but it must be from 8 to {LARGEST_SIDE}"
        )));
    }
    if train == 0 || validation == 0 {
        return Err(Error::argument(
            "a synthetic data set needs at least one training and one validation record",
        ));
    }
    // Flaws depend on the scenes and refer to other records, so the scenes are generated twice.
    let descriptions = (0..train)
        .into_par_iter()
        .map(|record| {
            check()?;
            Ok(draw_scene(seed, record as u64, side).description)
        })
        .collect::<Result<Vec<Description>>>()?;
    let assigned = assign(&descriptions, &shares, seed)?;
    let data_set =
        DataSet { train_csv: folder.join("train.csv"), validation_csv: folder.join("validation.csv") };
    for table in [&data_set.train_csv, &data_set.validation_csv] {
        match fs::remove_file(table) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("replace", table)(error));
            }
            _ => {}
        }
    }
    for part in ["train", "validation"] {
        let images = folder.join(part);
        fs::create_dir_all(&images).map_err(Error::io("create", &images))?;
    }

    let rows = (0..train)
        .into_par_iter()
        .map(|id| {
            check()?;
            let (flaw, source) = (assigned.flaws[id], assigned.sources[id]);
            let duplicate_of = source.filter(|_| flaw.copies_image());
            let mut scene = draw_scene(seed, duplicate_of.unwrap_or(id) as u64, side);
            corrupt(&mut scene.rgb, side, side, flaw, seed, id as u64)?;
            write_png(&folder.join(image_path("train", id)), &scene.rgb, side)?;
            let caption = source.map_or(scene.caption, |source| english(&descriptions[source]));
            let caption = corrupt_caption(&caption, flaw, seed, id as u64)
                .or_else(|| misdescribed(&descriptions[id], flaw, seed, id as u64))
                .unwrap_or(caption);
            Ok(Row { id, caption, flaw, duplicate_of })
        })
        .collect::<Result<Vec<Row>>>()?;
    let validation_rows = (train..train + validation)
        .into_par_iter()
        .map(|id| {
            check()?;
            let scene = draw_scene(seed, id as u64, side);
            write_png(&folder.join(image_path("validation", id)), &scene.rgb, side)?;
            Ok(Row { id, caption: scene.caption, flaw: Flaw::Clean, duplicate_of: None })
        })
        .collect::<Result<Vec<Row>>>()?;
    write_table(&data_set.validation_csv, "validation", &validation_rows)?;
    write_table(&data_set.train_csv, "train", &rows)?;
    Ok(data_set)
}

/// The flaw and the source of each record.
struct Assigned {
    flaws: Vec<Flaw>,
    sources: Vec<Option<usize>>,
}

/// Assigns flaws and sources to the scenes. The category of a scene is the shape of its first object.
fn assign(descriptions: &[Description], shares: &FlawShares, seed: u64) -> Result<Assigned> {
    let captions: Vec<String> = descriptions.iter().map(english).collect();
    let neighbors = if shares.share(Flaw::NeighborCaption) > 0.0 {
        let category_of = |description: &Description| {
            description.subjects.first().map_or("", |first| first.subject.looks.shape.words().0)
        };
        Neighbors::new(&captions, &descriptions.iter().map(category_of).collect::<Vec<_>>())
    } else {
        Neighbors::default()
    };
    let mut flaws = plan(descriptions.len(), shares, seed)?;
    relocate(&mut flaws, seed, |record, flaw| match flaw {
        Flaw::NeighborCaption => neighbors.of(record, seed).is_some(),
        _ if flaw.needs_scene() => misdescribed(&descriptions[record], flaw, seed, record as u64).is_some(),
        _ => true,
    })?;
    let sources = sources(&flaws, &captions, &neighbors, seed)?;
    Ok(Assigned { flaws, sources })
}

fn image_path(part: &str, id: usize) -> String {
    format!("{part}/{id:06}.png")
}

fn write_table(path: &Path, part: &str, rows: &[Row]) -> Result<()> {
    let row = |row: &Row| {
        let original = row.duplicate_of.map_or(String::new(), |original| original.to_string());
        let image = image_path(part, row.id);
        [row.id.to_string(), image, row.caption.clone(), row.flaw.name().to_owned(), original]
    };
    let header = ["id", "image_save_path", "caption", "flaw", "duplicate_of"];
    write_csv(path, &header, rows.iter().map(row))
}

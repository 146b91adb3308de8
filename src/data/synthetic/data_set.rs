//! Writes the synthetic data set: images, captions and flaws.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use super::draw_scene;
use crate::{
    Error, Result,
    data::{
        corruption::{Flaw, FlawShares, corrupt, plan, sources},
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
    let flaws = plan(train, &shares, seed)?;
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

    // Wrong captions and duplicates refer to other records, so scenes are generated first; a duplicate's own scene is
    // not used.
    let captions: Vec<String> = (0..train)
        .into_par_iter()
        .map(|record| {
            check()?;
            let mut scene = draw_scene(seed, record as u64, side);
            if flaws[record] != Flaw::Duplicate {
                corrupt(&mut scene.rgb, side, side, flaws[record], seed, record as u64)?;
                write_png(&folder.join(image_path("train", record)), &scene.rgb, side)?;
            }
            Ok(scene.caption)
        })
        .collect::<Result<_>>()?;
    let sources = sources(&flaws, &captions, seed)?;
    let rows = (0..train)
        .into_par_iter()
        .map(|id| {
            check()?;
            let caption = captions[sources[id].unwrap_or(id)].clone();
            let duplicate_of = sources[id].filter(|_| flaws[id] == Flaw::Duplicate);
            if let Some(original) = duplicate_of {
                let scene = draw_scene(seed, original as u64, side);
                write_png(&folder.join(image_path("train", id)), &scene.rgb, side)?;
            }
            Ok(Row { id, caption, flaw: flaws[id], duplicate_of })
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

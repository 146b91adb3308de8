//! The drawn data set on disk: images, captions and what was done to them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use super::draw_scene;
use crate::{
    Error, Result,
    data::{
        corruption::{Flaw, FlawShares, plan, sources, spoil},
        image::preprocess::write_png,
    },
    files::write_csv,
    interrupt::Interrupt,
};

/// The largest side of a drawn image, in pixels.
const LARGEST_SIDE: usize = 4096;

/// What [`write_data_set`] draws.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DataSetSettings {
    /// Records of `train.csv`.
    pub train: usize,
    /// Records of `validation.csv`, none of them spoiled.
    pub validation: usize,
    /// The images' side in pixels.
    pub side: usize,
    /// How many of the training records are spoiled.
    pub shares: FlawShares,
    /// Fixes every image, caption and flaw.
    pub seed: u64,
}

/// Where [`write_data_set`] has put its tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSet {
    /// Training records, spoiled ones among them.
    pub train_csv: PathBuf,
    /// Validation records.
    pub validation_csv: PathBuf,
}

/// One row of a table.
struct Row {
    id: usize,
    caption: String,
    flaw: Flaw,
    duplicate_of: Option<usize>,
}

/// Draws a data set into `folder`, which is created: images as PNG under `train/` and `validation/`, and the tables
/// `train.csv` and `validation.csv` with the columns `id,image_save_path,caption,flaw,duplicate_of`.
///
/// Paths are relative to the tables. Training ids count from 0 and validation ids go on from there. One seed gives the
/// same bytes in every file. The tables are written last: where they exist, the images are complete.
///
/// # Errors
/// If a setting is out of range or a file cannot be written.
pub fn write_data_set(folder: &Path, settings: &DataSetSettings) -> Result<DataSet> {
    write_data_set_until(folder, settings, &Interrupt::default())
}

/// The same, unless the user interrupts; the images that are written by then stay.
///
/// # Errors
/// As for [`write_data_set`]; [`Error::Interrupted`] when the user stopped it.
pub fn write_data_set_until(
    folder: &Path,
    settings: &DataSetSettings,
    interrupt: &Interrupt,
) -> Result<DataSet> {
    let check = || interrupt.check("the data set was not complete; give the same command again");
    let DataSetSettings { train, validation, side, shares, seed } = *settings;
    if !(8..=LARGEST_SIDE).contains(&side) {
        return Err(Error::argument(format!(
            "drawn images cannot be {side} pixels wide; choose from 8 to {LARGEST_SIDE}"
        )));
    }
    if train == 0 || validation == 0 {
        return Err(Error::argument(
            "a drawn data set needs at least one record for training and one for validation",
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

    // Wrong captions and duplicates take from other records, so the scenes come first; a duplicate's own is not used.
    let captions: Vec<String> = (0..train)
        .into_par_iter()
        .map(|record| {
            check()?;
            let mut scene = draw_scene(seed, record as u64, side);
            if flaws[record] != Flaw::Duplicate {
                spoil(&mut scene.rgb, side, side, flaws[record], seed, record as u64)?;
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

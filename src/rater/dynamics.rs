//! Figure 3: loss and gradient norm by rating over the epochs of a run, as a table and as plots, from the recordings
//! of each training sample.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    files::write_atomic,
    rater::samples::MEASURES,
    report::plot::{LossCurves, Series, loss_curves},
};

/// Rating ranges in the table.
const RANGES: usize = 10;
/// Lines in a plot, each covering several ranges.
const LINES: usize = 5;

/// The recording of one epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct EpochDynamics {
    /// The epoch, counted from 0.
    pub epoch: u64,
    /// The samples' ids, in the order of all recordings of a run.
    pub ids: Vec<String>,
    /// One column per entry of `MEASURES`, then the running average of the sample's signal; NaN where there is
    /// none.
    pub columns: Vec<Vec<f64>>,
}

impl EpochDynamics {
    /// A column by its name.
    pub(crate) fn column(&self, name: &str) -> Option<&[f64]> {
        let at = MEASURES.iter().chain(&["average"]).position(|measure| *measure == name)?;
        self.columns.get(at).map(Vec::as_slice)
    }
}

/// The recordings in a folder, by epoch.
///
/// # Errors
/// If one cannot be read, or contains samples other than those of the first.
pub(crate) fn recordings(folder: &Path) -> Result<Vec<EpochDynamics>> {
    let mut found = Vec::new();
    if folder.exists() {
        for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
            let entry = entry.map_err(Error::io("read", folder))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let epoch = name.strip_prefix("epoch-").and_then(|rest| rest.strip_suffix(".csv"));
            if let Some(epoch) = epoch.and_then(|epoch| epoch.parse::<u64>().ok()) {
                found.push((epoch, entry.path()));
            }
        }
    }
    found.sort();
    let mut all: Vec<EpochDynamics> = Vec::new();
    for (epoch, path) in found {
        let recording = read(&path, epoch)?;
        if all.first().is_some_and(|first| first.ids != recording.ids) {
            return Err(Error::Table {
                path,
                line: None,
                message: "contains samples other than those of the earlier recordings".to_owned(),
            });
        }
        all.push(recording);
    }
    Ok(all)
}

fn read(path: &Path, epoch: u64) -> Result<EpochDynamics> {
    let refuse =
        |line: Option<u64>, message: String| Error::Table { path: path.to_path_buf(), line, message };
    let mut table = csv::Reader::from_path(path).map_err(|error| refuse(None, error.to_string()))?;
    let mut recording =
        EpochDynamics { epoch, ids: Vec::new(), columns: vec![Vec::new(); MEASURES.len() + 1] };
    let mut row = csv::StringRecord::new();
    loop {
        let line = table.position().line();
        if !table.read_record(&mut row).map_err(|error| refuse(Some(line), error.to_string()))? {
            return Ok(recording);
        }
        let mut cells = row.iter();
        recording.ids.push(cells.next().unwrap_or_default().to_owned());
        for column in &mut recording.columns {
            column.push(match cells.next() {
                None => return Err(refuse(Some(line), "has too few cells".to_owned())),
                Some("") => f64::NAN,
                Some(cell) => cell
                    .parse()
                    .map_err(|_| refuse(Some(line), format!("contains \"{cell}\" instead of a number")))?,
            });
        }
    }
}

/// The mean of the finite values; NaN if there is none.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0u64);
    for value in values.filter(|value| value.is_finite()) {
        sum += value;
        count += 1;
    }
    if count == 0 { f64::NAN } else { sum / count as f64 }
}

/// The samples of each range by their rating in the last recording. Range 0 has the highest; ties keep their order.
fn ranges(ratings: &[f64]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..ratings.len()).filter(|&at| ratings[at].is_finite()).collect();
    order.sort_by(|&left, &right| ratings[right].total_cmp(&ratings[left]));
    (0..RANGES)
        .map(|range| order[range * order.len() / RANGES..(range + 1) * order.len() / RANGES].to_vec())
        .collect()
}

/// Writes `by_rating.csv` and one plot per measurement (loss, and gradient norm if it was recorded) into the folder
/// of the recordings. Returns the paths written; none if no recording has ratings.
///
/// # Errors
/// If a recording cannot be read or a file cannot be written.
pub(crate) fn write_figure(folder: &Path) -> Result<Vec<PathBuf>> {
    let recordings = recordings(folder)?;
    let Some(ratings) = recordings.last().and_then(|last| last.column("rating")) else {
        return Ok(Vec::new());
    };
    let ranges = ranges(ratings);
    if ranges.iter().any(Vec::is_empty) {
        return Ok(Vec::new());
    }
    let measures = ["loss", "gradient_norm", "product"];
    let means = |recording: &EpochDynamics, samples: &[usize]| {
        measures.map(|measure| {
            let column = recording.column(measure).unwrap_or_default();
            mean(samples.iter().filter_map(|&at| column.get(at).copied()))
        })
    };
    let table_path = folder.join("by_rating.csv");
    let refuse =
        |error: csv::Error| Error::Table { path: table_path.clone(), line: None, message: error.to_string() };
    let mut table = csv::Writer::from_writer(Vec::new());
    let header = ["epoch", "from_percentile", "to_percentile", "samples"].into_iter().chain(measures);
    table.write_record(header).map_err(refuse)?;
    for recording in &recordings {
        for (range, samples) in ranges.iter().enumerate() {
            let numbers = means(recording, samples).map(|value| match value.is_finite() {
                true => value.to_string(),
                false => String::new(),
            });
            let width = 100 / RANGES;
            let range_cells = [recording.epoch as usize, range * width, (range + 1) * width, samples.len()];
            let row = range_cells.map(|number| number.to_string()).into_iter().chain(numbers);
            table.write_record(row).map_err(refuse)?;
        }
    }
    let bytes = table.into_inner().map_err(|error| Error::invalid(error.to_string()))?;
    write_atomic(&table_path, &bytes)?;
    let mut written = vec![table_path.clone()];
    for (name, curves) in figures(&recordings) {
        let path = folder.join(format!("{name}.png"));
        loss_curves(&curves)?.write_png(&path)?;
        written.push(path);
    }
    Ok(written)
}

/// The plots of figure 3, loss and gradient norm, each with a name; only those with measurements.
pub(crate) fn figures(recordings: &[EpochDynamics]) -> Vec<(&'static str, LossCurves)> {
    let Some(ratings) = recordings.last().and_then(|last| last.column("rating")) else {
        return Vec::new();
    };
    let ranges = ranges(ratings);
    if ranges.iter().any(Vec::is_empty) {
        return Vec::new();
    }
    let measured = [("loss", "mean loss per sample"), ("gradient_norm", "mean gradient norm per sample")];
    let chart = |(name, label): (&'static str, &str)| {
        let line = |number: usize| {
            let samples = ranges[number * RANGES / LINES..(number + 1) * RANGES / LINES].concat();
            let points = recordings.iter().map(|recording| {
                let column = recording.column(name).unwrap_or_default();
                // Plotted at the end of the epoch.
                let mean = mean(samples.iter().filter_map(|&at| column.get(at).copied()));
                (recording.epoch as f64 + 1.0, mean)
            });
            let width = 100 / LINES;
            Series::new(format!("rated {}–{}%", number * width, (number + 1) * width), points.collect())
        };
        let series: Vec<Series> = (0..LINES).map(line).collect();
        let curves = LossCurves {
            title: format!("{} by rating (0% is the highest)", label[..1].to_uppercase() + &label[1..]),
            x_label: "epoch".to_owned(),
            y_label: label.to_owned(),
            series,
            smoothing: 0.0,
        };
        let any = curves.series.iter().any(|line| line.points.iter().any(|(_, value)| value.is_finite()));
        any.then_some((name, curves))
    };
    measured.into_iter().filter_map(chart).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rater::{bilevel::StepReport, samples::SampleRecords};

    /// Forty samples whose loss falls with their rating, over two epochs.
    #[test]
    fn the_figure_shows_loss_by_rating() {
        let folder = tempfile::tempdir().unwrap();
        let count = 40;
        let ids: Vec<String> = (0..count).map(|at| format!("sample {at}")).collect();
        let mut samples = SampleRecords::new(count, 0);
        assert!(write_figure(folder.path()).unwrap().is_empty(), "nothing is recorded yet");
        for epoch in 0..2 {
            let indices: Vec<usize> = (0..count).collect();
            let report = StepReport {
                train_loss: indices.iter().map(|&at| 5.0 - at as f64 / 10.0 - epoch as f64).collect(),
                logit: indices.iter().map(|&at| at as f64).collect(),
                constant: vec![1.0; count],
                ..StepReport::default()
            };
            samples.record(&indices, &report, epoch);
            samples.end_epoch(&ids, epoch, Some(folder.path())).unwrap();
        }
        let all = recordings(folder.path()).unwrap();
        assert_eq!((all.len(), &all[0].ids), (2, &ids));
        assert_eq!(all[1].column("loss").unwrap()[10], 3.0);
        assert!(all[1].column("gradient_norm").unwrap().iter().all(|norm| norm.is_nan()));
        assert_eq!(all[1].column("average").unwrap(), vec![-1.0; count]);
        let written = write_figure(folder.path()).unwrap();
        assert_eq!(written.len(), 2, "no norm was measured, so only the loss is plotted: {written:?}");
        let table = fs::read_to_string(&written[0]).unwrap();
        let rows: Vec<&str> = table.lines().collect();
        assert_eq!(rows.len(), 1 + 2 * RANGES);
        // The four highest-rated of the first epoch: samples 36 to 39.
        let mean = (36..40).map(|at| f64::from(5.0f32 - at as f32 / 10.0)).sum::<f64>() / 4.0;
        let cells: Vec<&str> = rows[1].split(',').collect();
        assert_eq!(&cells[..4], ["0", "0", "10", "4"]);
        approx::assert_relative_eq!(cells[4].parse::<f64>().unwrap(), mean, max_relative = 1e-6);
        assert_eq!(cells[5], "");
    }
}

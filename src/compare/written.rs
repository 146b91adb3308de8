//! A comparison as files: all models, the summary and more as CSV, Markdown and images.

use std::path::{Path, PathBuf};

use super::{
    Comparison, TrainedModel,
    comparison::FlawLine,
    markdown::markdown,
    table::{Line, measure_names, summarize},
};
use crate::{
    error::Result,
    files::{write_atomic, write_csv},
    report::intervals::{Interval, interval_chart},
};

/// Writes `fits.csv`, `summary.csv`, `summary.md`, `scales.csv`, `flaws.csv` and `subsets.csv` if there are flaws, and
/// an image for each share and convention. Returns the paths written.
///
/// # Errors
/// If a file cannot be written.
pub(super) fn write(folder: &Path, comparison: &Comparison) -> Result<Vec<PathBuf>> {
    let Comparison { outcomes, flaws, .. } = comparison;
    let lines = &summarize(outcomes);
    let measures = outcomes.iter().flat_map(|outcome| &outcome.result.images);
    let names = measure_names(measures.map(|measure| measure.name.as_str()));
    let mut tables = vec![fits(outcomes, &names), scales(outcomes), summary(lines, &names)];
    if !flaws.is_empty() {
        tables.extend([flaw_table(flaws), subsets(outcomes)]);
    }
    let mut written = Vec::new();
    for Table { name, header, rows } in tables {
        let path = folder.join(name);
        write_csv(&path, &header.iter().map(String::as_str).collect::<Vec<_>>(), rows)?;
        written.push(path);
    }
    let path = folder.join("summary.md");
    write_atomic(&path, markdown(comparison).as_bytes())?;
    written.push(path);
    written.extend(images(folder, lines)?);
    Ok(written)
}

/// A table to be written as CSV.
struct Table {
    name: &'static str,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// The columns that identify a model.
const CELL: [&str; 5] = ["rating", "sampler", "keep", "convention", "seed"];

fn cell(outcome: &TrainedModel) -> Vec<String> {
    let TrainedModel { rating, sampler, keep, convention, seed, .. } = outcome;
    vec![rating.clone(), sampler.clone(), keep.clone(), convention.clone(), seed.to_string()]
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// A mean and half its interval.
fn pair(value: Option<(f64, Option<f64>)>) -> [String; 2] {
    let half = value.and_then(|(_, half)| half);
    [number(value.map(|(mean, _)| mean)), number(half)]
}

/// All models.
fn fits(outcomes: &[TrainedModel], names: &[String]) -> Table {
    const RESULT: [&str; 11] = [
        "records",
        "epochs",
        "steps",
        "held_out_loss",
        "held_out_tail_loss",
        "held_out_accuracy",
        "held_out_tail_accuracy",
        "held_out_caption_gain",
        "seconds",
        "diverged",
        "fit",
    ];
    let mut header = owned(&[&CELL[..], &RESULT].concat());
    if !names.is_empty() {
        header.push("images".to_owned());
    }
    header.extend(names.iter().cloned());
    let row = |outcome: &TrainedModel| {
        let result = &outcome.result;
        let mut row = cell(outcome);
        row.extend([
            result.records.to_string(),
            result.epochs.to_string(),
            result.steps.to_string(),
            number(result.loss),
            number(result.tail_loss),
            number(result.accuracy),
            number(result.tail_accuracy),
            number(result.caption_gain),
            format!("{:.1}", result.seconds),
            result.diverged.clone().unwrap_or_default(),
            result.key.clone(),
        ]);
        if !names.is_empty() {
            row.push(result.images.first().map_or(String::new(), |one| one.generated.to_string()));
        }
        let measured =
            |name: &String| result.images.iter().find(|one| one.name == *name).map(|one| one.value);
        row.extend(names.iter().map(|name| number(measured(name))));
        row
    };
    Table { name: "fits.csv", header, rows: outcomes.iter().map(row).collect() }
}

/// The measures of each model at each scale.
fn scales(outcomes: &[TrainedModel]) -> Table {
    let header = owned(&[&CELL[..], &["side", "held_out_loss", "held_out_accuracy"]].concat());
    let rows = outcomes.iter().flat_map(|outcome| {
        outcome.result.scales.iter().map(move |scale| {
            let mut row = cell(outcome);
            row.extend([scale.side.to_string(), scale.loss.to_string(), scale.accuracy.to_string()]);
            row
        })
    });
    Table { name: "scales.csv", header, rows: rows.collect() }
}

/// The means over the seeds.
fn summary(lines: &[Line], names: &[String]) -> Table {
    let mut header = owned(&CELL[..4]);
    header.extend(owned(&[
        "seeds",
        "diverged",
        "records",
        "steps",
        "held_out_loss",
        "half_interval",
        "held_out_accuracy",
        "accuracy_half_interval",
        "difference_to_random",
        "difference_half_interval",
        "gap_closed",
        "held_out_caption_gain",
        "caption_gain_half_interval",
        "caption_gain_difference_to_random",
        "caption_gain_difference_half_interval",
        "caption_gain_gap_closed",
    ]));
    for name in names {
        header.push(name.clone());
        header.extend(
            ["half_interval", "difference_to_random", "difference_half_interval"]
                .map(|part| format!("{name}, {part}")),
        );
    }
    let row = |line: &Line| {
        let mut row = vec![
            line.rating.clone(),
            line.sampler.clone(),
            line.keep.clone(),
            line.convention.clone(),
            line.seeds.to_string(),
            line.diverged.to_string(),
            line.records.to_string(),
            line.steps.to_string(),
        ];
        row.extend([line.loss, line.accuracy, line.difference].into_iter().flat_map(pair));
        row.push(number(line.closed));
        row.extend([line.caption_gain.value, line.caption_gain.difference].into_iter().flat_map(pair));
        row.push(number(line.caption_gain.closed));
        for name in names {
            let found = line.images.iter().find(|image| image.name == *name);
            row.extend(pair(found.and_then(|found| found.value)));
            row.extend(pair(found.and_then(|found| found.difference)));
        }
        row
    };
    Table { name: "summary.csv", header, rows: lines.iter().map(row).collect() }
}

/// How well each rating detects each flaw.
fn flaw_table(flaws: &[FlawLine]) -> Table {
    let row = |line: &FlawLine| {
        let FlawLine { rating, flaw, auroc: (auroc, half), percentile } = line;
        vec![rating.clone(), flaw.clone(), auroc.to_string(), number(*half), percentile.to_string()]
    };
    Table {
        name: "flaws.csv",
        header: owned(&["rating", "flaw", "auroc", "half_interval", "mean_percentile"]),
        rows: flaws.iter().map(row).collect(),
    }
}

/// The kinds of records in each subset.
fn subsets(outcomes: &[TrainedModel]) -> Table {
    let rows = outcomes.iter().flat_map(|outcome| {
        outcome.flaws.iter().map(move |(flaw, share)| {
            let mut row = cell(outcome);
            row.extend([flaw.clone(), share.to_string()]);
            row
        })
    });
    Table {
        name: "subsets.csv",
        header: owned(&[&CELL[..], &["flaw", "share"]].concat()),
        rows: rows.collect(),
    }
}

/// The differences to random, an image per share and convention.
fn images(folder: &Path, lines: &[Line]) -> Result<Vec<PathBuf>> {
    let mut settings: Vec<(&str, &str)> = Vec::new();
    for line in lines.iter().filter(|line| line.difference.is_some() && !line.convention.is_empty()) {
        if !settings.contains(&(&line.keep, &line.convention)) {
            settings.push((&line.keep, &line.convention));
        }
    }
    let mut written = Vec::new();
    for (keep, convention) in settings {
        let rows: Vec<Interval> = lines
            .iter()
            .filter(|line| (line.keep.as_str(), line.convention.as_str()) == (keep, convention))
            .filter_map(|line| {
                let (mean, half) = line.difference?;
                let name = format!("{} {}", line.rating, line.sampler);
                Some(Interval { name: name.trim().to_owned(), mean, half: half.unwrap_or(0.0) })
            })
            .collect();
        let title = format!("Held-out loss minus random's, {keep} kept, equal {convention}");
        let path = folder.join(format!("difference-{}-{convention}.png", keep.replace(['%', ' '], "")));
        interval_chart(&title, "difference of the held-out loss (left is better)", &rows)?
            .write_png(&path)?;
        written.push(path);
    }
    Ok(written)
}

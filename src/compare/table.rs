//! What a comparison comes to: every fit by itself, means with intervals, differences to a random part of the same size, and
//! the share of the gap to the ceiling that is closed; as CSV and a picture. `markdown` writes it for people.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Comparison, Outcome,
    cells::CellResult,
    drawn::{PictureLine, measure_names, picture_lines},
    markdown::markdown,
};
use crate::{
    error::Result,
    files::{write_csv, write_whole},
    report::{
        intervals::{Interval, interval_chart},
        statistics::mean_interval,
    },
};

/// One line of the summary.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The rating, or `everything`, `random`, `oracle`.
    pub rating: String,
    /// The sampler; nothing where there is none.
    pub sampler: String,
    /// How much is kept; `100%` for everything.
    pub keep: String,
    /// `epochs` or `steps`; nothing for everything, which is both.
    pub convention: String,
    /// Seeds that came to an end.
    pub seeds: usize,
    /// Seeds whose loss was no number any more.
    pub diverged: usize,
    /// Mean records and steps of a fit.
    pub records: f64,
    /// Mean steps of a fit.
    pub steps: f64,
    /// Validation loss: mean, and half the 95% interval where there are two seeds.
    pub loss: Option<(f64, Option<f64>)>,
    /// The same of the accuracy, in percent.
    pub accuracy: Option<(f64, Option<f64>)>,
    /// The difference of the loss to random's, paired by seed.
    pub difference: Option<(f64, Option<f64>)>,
    /// The share of the gap between random and the ceiling that is closed, in the mean over the seeds that all three came to an end
    /// with.
    pub closed: Option<f64>,
    /// What was measured of the models' pictures, where they drew some.
    pub pictures: Vec<PictureLine>,
}

/// By what cells are compared with one another.
type Setting = (String, String);

/// Rating, sampler, and the setting.
type Cell = (String, String, Setting);

/// The summary, in the order in which arms first come.
pub fn summarise(outcomes: &[Outcome]) -> Vec<Line> {
    let mut order: Vec<Cell> = Vec::new();
    let mut groups: BTreeMap<Cell, Vec<(u64, &CellResult)>> = BTreeMap::new();
    for outcome in outcomes {
        let setting = (outcome.keep.clone(), outcome.convention.clone());
        let key = (outcome.rating.clone(), outcome.sampler.clone(), setting);
        if !groups.contains_key(&key) {
            order.push(key.clone());
        }
        groups.entry(key).or_default().push((outcome.seed, &outcome.result));
    }
    let loss_of = |rating: &str, setting: &Setting| -> BTreeMap<u64, f64> {
        let sampler = if rating == "oracle" { "random" } else { "" };
        let held = groups.get(&(rating.to_owned(), sampler.to_owned(), setting.clone()));
        held.into_iter().flatten().filter_map(|(seed, result)| Some((*seed, result.loss?))).collect()
    };
    let mean = |values: &BTreeMap<u64, f64>| mean_interval(&values.values().copied().collect::<Vec<_>>());
    order
        .into_iter()
        .map(|key| {
            let results = &groups[&key];
            let (rating, sampler, setting) = key;
            let losses: BTreeMap<u64, f64> =
                results.iter().filter_map(|(seed, result)| Some((*seed, result.loss?))).collect();
            let accuracies: Vec<f64> = results.iter().filter_map(|(_, result)| result.accuracy).collect();
            let random = loss_of("random", &setting);
            let paired: Vec<f64> =
                losses.iter().filter_map(|(seed, loss)| Some(loss - random.get(seed)?)).collect();
            let difference = if rating == "random" { None } else { mean_interval(&paired) };
            let ceiling = loss_of("oracle", &setting);
            // Over the seeds that all three came to an end with.
            let paired_gaps = losses.iter().filter_map(|(seed, loss)| {
                Some((random.get(seed)? - loss, random.get(seed)? - ceiling.get(seed)?))
            });
            let (own_gap, whole_gap) =
                paired_gaps.fold((0.0, 0.0), |(own, whole), gaps| (own + gaps.0, whole + gaps.1));
            let closed = (rating != "random" && whole_gap > 0.0).then(|| own_gap / whole_gap);
            let average = |number: fn(&CellResult) -> u64| {
                results.iter().map(|(_, result)| number(result) as f64).sum::<f64>()
                    / results.len().max(1) as f64
            };
            let beside = groups.get(&("random".to_owned(), String::new(), setting.clone()));
            let beside = beside.filter(|_| rating != "random").map(Vec::as_slice);
            Line {
                pictures: picture_lines(results, beside),
                seeds: losses.len(),
                diverged: results.iter().filter(|(_, result)| result.diverged.is_some()).count(),
                records: average(|result| result.records),
                steps: average(|result| result.steps),
                loss: mean(&losses),
                accuracy: mean_interval(&accuracies),
                difference,
                closed,
                rating,
                sampler,
                keep: setting.0,
                convention: setting.1,
            }
        })
        .collect()
}

/// How well a rating tells a flaw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlawLine {
    /// The rating.
    pub rating: String,
    /// The flaw.
    pub flaw: String,
    /// The chance that a record with it is rated below an unspoiled one, mean over the seeds and half its interval.
    pub auroc: (f64, Option<f64>),
    /// Mean place in the ranking, 0 the best rated.
    pub percentile: f64,
}

/// Writes `fits.csv`, `summary.csv`, `summary.md`, `scales.csv`, `flaws.csv` and `subsets.csv` where there are flaws, and a
/// picture for each share and convention. Gives what was written.
///
/// # Errors
/// If a file cannot be written.
pub(super) fn write(folder: &Path, comparison: &Comparison) -> Result<Vec<PathBuf>> {
    let Comparison { outcomes, flaws, .. } = comparison;
    let lines = &summarise(outcomes);
    let mut written = Vec::new();
    let mut csv_file = |name: &str, header: &[&str], rows: Vec<Vec<String>>| -> Result<()> {
        let path = folder.join(name);
        write_csv(&path, header, rows)?;
        written.push(path);
        Ok(())
    };
    let number = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    let cell = |outcome: &Outcome| {
        vec![
            outcome.rating.clone(),
            outcome.sampler.clone(),
            outcome.keep.clone(),
            outcome.convention.clone(),
            outcome.seed.to_string(),
        ]
    };
    let measures = outcomes.iter().flat_map(|outcome| &outcome.result.pictures);
    let names = measure_names(measures.map(|measure| measure.name.as_str()));
    let mut header = vec![
        "rating",
        "sampler",
        "keep",
        "convention",
        "seed",
        "records",
        "epochs",
        "steps",
        "held_out_loss",
        "held_out_tail_loss",
        "held_out_accuracy",
        "held_out_tail_accuracy",
        "seconds",
        "diverged",
        "fit",
    ];
    if !names.is_empty() {
        header.push("pictures");
    }
    header.extend(names.iter().map(String::as_str));
    csv_file(
        "fits.csv",
        &header,
        outcomes
            .iter()
            .map(|outcome| {
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
                    format!("{:.1}", result.seconds),
                    result.diverged.clone().unwrap_or_default(),
                    result.key.clone(),
                ]);
                if !names.is_empty() {
                    row.push(result.pictures.first().map_or(String::new(), |one| one.generated.to_string()));
                }
                row.extend(names.iter().map(|name| {
                    number(result.pictures.iter().find(|one| one.name == *name).map(|one| one.value))
                }));
                row
            })
            .collect(),
    )?;
    csv_file(
        "scales.csv",
        &["rating", "sampler", "keep", "convention", "seed", "side", "held_out_loss", "held_out_accuracy"],
        outcomes
            .iter()
            .flat_map(|outcome| {
                outcome.result.scales.iter().map(move |scale| {
                    let mut row = cell(outcome);
                    row.extend([scale.side.to_string(), scale.loss.to_string(), scale.accuracy.to_string()]);
                    row
                })
            })
            .collect(),
    )?;
    let pair = |value: Option<(f64, Option<f64>)>| {
        let half = value.and_then(|(_, half)| half);
        [number(value.map(|(mean, _)| mean)), number(half)]
    };
    let mut header: Vec<String> = [
        "rating",
        "sampler",
        "keep",
        "convention",
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
    ]
    .map(str::to_owned)
    .to_vec();
    for name in &names {
        header.push(name.clone());
        header.extend(
            ["half_interval", "difference_to_random", "difference_half_interval"]
                .map(|part| format!("{name}, {part}")),
        );
    }
    csv_file(
        "summary.csv",
        &header.iter().map(String::as_str).collect::<Vec<_>>(),
        lines
            .iter()
            .map(|line| {
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
                for name in &names {
                    let found = line.pictures.iter().find(|picture| picture.name == *name);
                    row.extend(pair(found.and_then(|found| found.value)));
                    row.extend(pair(found.and_then(|found| found.difference)));
                }
                row
            })
            .collect(),
    )?;
    if !flaws.is_empty() {
        let rows = flaws.iter().map(|line| {
            let FlawLine { rating, flaw, auroc: (auroc, half), percentile } = line;
            vec![rating.clone(), flaw.clone(), auroc.to_string(), number(*half), percentile.to_string()]
        });
        csv_file(
            "flaws.csv",
            &["rating", "flaw", "auroc", "half_interval", "mean_percentile"],
            rows.collect(),
        )?;
        let rows = outcomes.iter().flat_map(|outcome| {
            outcome.flaws.iter().map(move |(flaw, share)| {
                let mut row = cell(outcome);
                row.extend([flaw.clone(), share.to_string()]);
                row
            })
        });
        csv_file(
            "subsets.csv",
            &["rating", "sampler", "keep", "convention", "seed", "flaw", "share"],
            rows.collect(),
        )?;
    }
    let path = folder.join("summary.md");
    write_whole(&path, markdown(comparison).as_bytes())?;
    written.push(path);
    written.extend(pictures(folder, lines)?);
    Ok(written)
}

/// The differences to random, a picture for each share and convention.
fn pictures(folder: &Path, lines: &[Line]) -> Result<Vec<PathBuf>> {
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
        let title = format!("Held-out loss less random's, {keep} kept, equal {convention}");
        let path = folder.join(format!("difference-{}-{convention}.png", keep.replace(['%', ' '], "")));
        interval_chart(&title, "difference of the held-out loss (left is better)", &rows)?
            .write_png(&path)?;
        written.push(path);
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(rating: &str, seed: u64, loss: Option<f64>) -> Outcome {
        let diverged = CellResult::diverged(10, "the loss is no longer a number".to_owned());
        let result = match loss {
            None => diverged,
            Some(_) => CellResult { loss, accuracy: Some(50.0), diverged: None, ..diverged },
        };
        Outcome {
            rating: rating.to_owned(),
            sampler: if rating == "oracle" { "random".to_owned() } else { String::new() },
            keep: "50%".to_owned(),
            convention: "steps".to_owned(),
            seed,
            result,
            flaws: Vec::new(),
        }
    }

    /// A seed that diverged is told and stands in no mean; differences are of the seeds that both have.
    #[test]
    fn a_seed_that_diverges_is_told_and_not_dropped() {
        let outcomes = [
            outcome("random", 0, Some(4.0)),
            outcome("oracle", 0, Some(3.0)),
            outcome("own", 0, Some(3.5)),
            outcome("random", 1, None),
            outcome("oracle", 1, Some(3.2)),
            outcome("own", 1, Some(3.6)),
            outcome("random", 2, Some(4.2)),
            outcome("oracle", 2, Some(3.1)),
            outcome("own", 2, Some(3.9)),
        ];
        let lines = summarise(&outcomes);
        let line = |rating: &str| lines.iter().find(|line| line.rating == rating).unwrap();
        assert_eq!((line("random").seeds, line("random").diverged), (2, 1));
        assert_eq!((line("own").seeds, line("own").diverged), (3, 0));
        let (difference, half) = line("own").difference.unwrap();
        approx::assert_relative_eq!(difference, -0.4, max_relative = 1e-12);
        approx::assert_relative_eq!(half.unwrap(), 12.706 * 0.1, max_relative = 1e-9);
        let closed = (0.5 + 0.3) / (1.0 + 1.1);
        approx::assert_relative_eq!(line("own").closed.unwrap(), closed, max_relative = 1e-9);
        assert_eq!((line("random").difference, line("random").closed), (None, None));
        let comparison = Comparison {
            config: serde_json::Value::Null,
            flaw_column: String::new(),
            records: 20,
            validation: 8,
            held_out: 8,
            outcomes: outcomes.to_vec(),
            flaws: Vec::new(),
            kinds: Vec::new(),
            costs: Vec::new(),
        };
        let text = markdown(&comparison);
        assert!(text.contains("| random |  | 2 (1 diverged) |"), "{text}");
        for row in ["| random |  | 4.1000 ± ", "| own |  | -0.400 ± 1.271 (38%) |"] {
            assert!(text.contains(row), "{text}");
        }
    }
}

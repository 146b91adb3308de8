//! The summary of a comparison: means with intervals, differences to a random subset of the same size, and the fraction
//! of the gap to the ceiling that is closed.

use std::collections::BTreeMap;

use super::{TrainedModel, result::CellResult};
use crate::report::statistics::mean_interval;

/// One line of the summary.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    /// The rating, or `everything`, `random`, `oracle`.
    pub rating: String,
    /// The sampler, empty if there is none.
    pub sampler: String,
    /// How much is kept; `100%` for everything.
    pub keep: String,
    /// `epochs` or `steps`; empty for everything, which is both.
    pub convention: String,
    /// Seeds that finished.
    pub seeds: usize,
    /// Seeds that diverged.
    pub diverged: usize,
    /// Mean number of training records.
    pub records: f64,
    /// Mean number of steps.
    pub steps: f64,
    /// Held-out loss: mean, and half the 95% interval if there are at least two seeds.
    pub loss: Option<(f64, Option<f64>)>,
    /// Held-out accuracy in percent, likewise.
    pub accuracy: Option<(f64, Option<f64>)>,
    /// The difference of the loss to random's, paired by seed.
    pub difference: Option<(f64, Option<f64>)>,
    /// The fraction of the gap between random and the ceiling that is closed, mean over the seeds that finished for all
    /// three.
    pub closed: Option<f64>,
    /// The caption gain on held-out pairs.
    pub caption_gain: GainLine,
    /// Measures of the models' generated images, if any.
    pub images: Vec<ImageLine>,
}

/// The caption gain of a line's models: how much better they predict held-out images with their own captions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct GainLine {
    /// Its mean, and half the 95% interval if there are at least two seeds.
    pub value: Option<(f64, Option<f64>)>,
    /// The difference to random's, paired by seed.
    pub difference: Option<(f64, Option<f64>)>,
    /// The fraction of the gap between random and the ceiling that is closed.
    pub closed: Option<f64>,
}

/// What models must share to be compared: how much is kept, and the convention.
type Setting = (String, String);

/// Rating, sampler and setting.
type Cell = (String, String, Setting);

/// The summary, in order of first appearance.
pub(crate) fn summarize(outcomes: &[TrainedModel]) -> Vec<Line> {
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
    let by_seed = |rating: &str, setting: &Setting, value: Value| -> BTreeMap<u64, f64> {
        let sampler = if rating == "oracle" { "random" } else { "" };
        let results = groups.get(&(rating.to_owned(), sampler.to_owned(), setting.clone()));
        results.map_or_else(BTreeMap::new, |results| values(results, value))
    };
    order
        .into_iter()
        .map(|key| {
            let results = &groups[&key];
            let (rating, sampler, setting) = key;
            let losses = values(results, |result| result.loss);
            let accuracies: Vec<f64> = results.iter().filter_map(|(_, result)| result.accuracy).collect();
            // The sign makes lower values better.
            let against_random = |value: Value, sign: f64| {
                let [random, ceiling] = ["random", "oracle"].map(|name| by_seed(name, &setting, value));
                let own = values(results, value);
                if rating == "random" { (None, None) } else { gap(&own, &random, &ceiling, sign) }
            };
            let (difference, closed) = against_random(|result| result.loss, 1.0);
            let (gain_difference, gain_closed) = against_random(|result| result.caption_gain, -1.0);
            let caption_gain = GainLine {
                value: mean(&values(results, |result| result.caption_gain)),
                difference: gain_difference,
                closed: gain_closed,
            };
            let average = |number: fn(&CellResult) -> u64| {
                results.iter().map(|(_, result)| number(result) as f64).sum::<f64>()
                    / results.len().max(1) as f64
            };
            let random = groups.get(&("random".to_owned(), String::new(), setting.clone()));
            let random = random.filter(|_| rating != "random").map(Vec::as_slice);
            Line {
                images: image_lines(results, random),
                caption_gain,
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

/// A measurement of a model; `None` if it diverged.
type Value = fn(&CellResult) -> Option<f64>;

fn values(results: &Seeds<'_>, value: Value) -> BTreeMap<u64, f64> {
    results.iter().filter_map(|(seed, result)| Some((*seed, value(result)?))).collect()
}

fn mean(values: &BTreeMap<u64, f64>) -> Option<(f64, Option<f64>)> {
    mean_interval(&values.values().copied().collect::<Vec<_>>())
}

/// The mean difference to random with half its interval, and the fraction of the gap between random and the ceiling that
/// is closed, over the seeds that finished for all three. `sign` is 1 if lower values are better, and −1 if higher
/// ones are.
fn gap(
    own: &BTreeMap<u64, f64>,
    random: &BTreeMap<u64, f64>,
    ceiling: &BTreeMap<u64, f64>,
    sign: f64,
) -> (Option<(f64, Option<f64>)>, Option<f64>) {
    let paired: Vec<f64> = own.iter().filter_map(|(seed, value)| Some(value - random.get(seed)?)).collect();
    let gaps = own.iter().filter_map(|(seed, value)| {
        let random = random.get(seed)?;
        Some((sign * (random - value), sign * (random - ceiling.get(seed)?)))
    });
    let (own_gap, whole_gap) = gaps.fold((0.0, 0.0), |(own, whole), gaps| (own + gaps.0, whole + gaps.1));
    (mean_interval(&paired), (whole_gap > 0.0).then(|| own_gap / whole_gap))
}

/// An image measure of one line of the summary.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageLine {
    /// The name of the measure.
    pub name: String,
    /// Its mean over the seeds, and half the 95% interval if there are at least two.
    pub value: Option<(f64, Option<f64>)>,
    /// The difference to random's, paired by seed.
    pub difference: Option<(f64, Option<f64>)>,
}

/// Seeds and the results of their models.
type Seeds<'a> = [(u64, &'a CellResult)];

/// The image metrics of an arm, alongside those of random subsets of the same size if it is not random itself.
pub(super) fn image_lines(results: &Seeds<'_>, random: Option<&Seeds<'_>>) -> Vec<ImageLine> {
    let of = |results: &Seeds<'_>, name: &str| -> BTreeMap<u64, f64> {
        let value = |result: &CellResult| Some(result.images.iter().find(|one| one.name == name)?.value);
        results.iter().filter_map(|(seed, result)| Some((*seed, value(result)?))).collect()
    };
    let mut names: Vec<&str> = Vec::new();
    for measure in results.iter().flat_map(|(_, result)| &result.images) {
        if !names.contains(&measure.name.as_str()) {
            names.push(&measure.name);
        }
    }
    let line = |name: &str| {
        let own = of(results, name);
        let random = random.map(|random| of(random, name)).unwrap_or_default();
        let paired: Vec<f64> =
            own.iter().filter_map(|(seed, value)| Some(value - random.get(seed)?)).collect();
        ImageLine {
            name: name.to_owned(),
            value: mean_interval(&own.into_values().collect::<Vec<_>>()),
            difference: mean_interval(&paired),
        }
    };
    names.into_iter().map(line).collect()
}

/// The names of all measures, in order of first appearance.
pub(super) fn measure_names<'a>(named: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names = Vec::new();
    for name in named {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Comparison, markdown::markdown};

    fn outcome(rating: &str, seed: u64, loss: Option<f64>) -> TrainedModel {
        let diverged = CellResult::diverged(10, "the loss is no longer a number".to_owned());
        let result = match loss {
            None => diverged,
            Some(_) => {
                let caption_gain = loss.map(|loss| 1.0 - 0.1 * loss);
                CellResult { loss, accuracy: Some(50.0), caption_gain, diverged: None, ..diverged }
            }
        };
        TrainedModel {
            rating: rating.to_owned(),
            sampler: if rating == "oracle" { "random".to_owned() } else { String::new() },
            keep: "50%".to_owned(),
            convention: "steps".to_owned(),
            seed,
            result,
            flaws: Vec::new(),
        }
    }

    /// A diverged seed is counted but excluded from the means; differences use the seeds that both arms finished.
    #[test]
    fn a_seed_that_diverges_is_counted_and_not_dropped() {
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
        let lines = summarize(&outcomes);
        let line = |rating: &str| lines.iter().find(|line| line.rating == rating).unwrap();
        assert_eq!((line("random").seeds, line("random").diverged), (2, 1));
        assert_eq!((line("own").seeds, line("own").diverged), (3, 0));
        let (difference, half) = line("own").difference.unwrap();
        approx::assert_relative_eq!(difference, -0.4, max_relative = 1e-12);
        approx::assert_relative_eq!(half.unwrap(), 12.706 * 0.1, max_relative = 1e-9);
        let closed = (0.5 + 0.3) / (1.0 + 1.1);
        approx::assert_relative_eq!(line("own").closed.unwrap(), closed, max_relative = 1e-9);
        assert_eq!((line("random").difference, line("random").closed), (None, None));
        // Higher is better: the gap is the same, and the difference has the other sign.
        let gain = line("own").caption_gain;
        approx::assert_relative_eq!(gain.difference.unwrap().0, 0.04, max_relative = 1e-9);
        approx::assert_relative_eq!(gain.closed.unwrap(), closed, max_relative = 1e-9);
        assert_eq!(
            (line("random").caption_gain.difference, line("random").caption_gain.closed),
            (None, None)
        );
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

//! The tables of a comparison in Markdown.

use super::{
    Comparison,
    result::CellResult,
    table::{Line, measure_names, summarize},
};

/// The rating name of the full data set.
const EVERYTHING: &str = "everything";

/// A value with half its interval.
fn with_interval(value: Option<(f64, Option<f64>)>, digits: usize) -> String {
    match value {
        None => "-".to_owned(),
        Some((mean, None)) => format!("{mean:.digits$}"),
        Some((mean, Some(half))) => format!("{mean:.digits$} ± {half:.digits$}"),
    }
}

/// The tables of a comparison.
pub(crate) fn markdown(comparison: &Comparison) -> String {
    let Comparison { outcomes, flaws, costs, .. } = comparison;
    let lines = summarize(outcomes);
    let mut text = overview(&lines);
    text.push_str(
        "\nThe same by setting. Loss of the model on held-out pairs, mean ± half the 95% interval over seeds; difference \
         to a random subset of the same size, paired by seed; fraction of the gap between random and the ceiling (`oracle`: \
         clean records only) that is closed. The caption gain is how much better the model predicts held-out images with \
         their own captions than with others, in nats per token; higher is better.\n\n\
         | keep | equal | rating | sampler | seeds | steps | held-out loss | difference to random | gap closed | caption gain \
         | difference to random | gap closed |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for line in &lines {
        let seeds = match line.diverged {
            0 => line.seeds.to_string(),
            diverged => format!("{} ({diverged} diverged)", line.seeds),
        };
        let percent =
            |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{:.0}%", 100.0 * share));
        text.push_str(&format!(
            "| {} | {} | {} | {} | {seeds} | {:.0} | {} | {} | {} | {} | {} | {} |\n",
            line.keep,
            line.convention,
            line.rating,
            line.sampler,
            line.steps,
            with_interval(line.loss, 4),
            with_interval(line.difference, 4),
            percent(line.closed),
            with_interval(line.caption_gain.value, 4),
            with_interval(line.caption_gain.difference, 4),
            percent(line.caption_gain.closed),
        ));
    }
    text.push_str(&image_measures(
        &lines,
        &outcomes.iter().map(|outcome| &outcome.result).collect::<Vec<_>>(),
    ));
    if !flaws.is_empty() {
        let mut kinds: Vec<&str> = Vec::new();
        let mut ratings: Vec<&str> = Vec::new();
        for line in flaws {
            if !kinds.contains(&line.flaw.as_str()) {
                kinds.push(&line.flaw);
            }
            if !ratings.contains(&line.rating.as_str()) {
                ratings.push(&line.rating);
            }
        }
        text.push_str(
            "\nAUROC of each planted flaw (of a low rating; 0.5 is chance), mean percentile in parentheses.\n\n",
        );
        text.push_str(&format!(
            "| rating | {} |\n| --- |{}\n",
            kinds.join(" | "),
            " --- |".repeat(kinds.len())
        ));
        for rating in ratings {
            let cells = kinds.iter().map(|kind| {
                let found = flaws.iter().find(|line| line.rating == rating && line.flaw == *kind);
                found.map_or("-".to_owned(), |line| {
                    format!("{} ({:.2})", with_interval(Some(line.auroc), 2), line.percentile)
                })
            });
            text.push_str(&format!("| {rating} | {} |\n", cells.collect::<Vec<_>>().join(" | ")));
        }
    }
    if !costs.is_empty() {
        text.push_str(
            "\nCost of the ratings, mean seconds per seed.\n\n| rater | training | scoring |\n| --- | --- | --- |\n",
        );
        for (rule, training, scoring) in costs {
            let seconds = |value: &Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
            text.push_str(&format!("| {rule} | {} | {} |\n", seconds(training), seconds(scoring)));
        }
    }
    text
}

/// One row per rating and sampler, one column per share and convention.
fn overview(lines: &[Line]) -> String {
    let mut settings: Vec<(&str, &str)> = Vec::new();
    let mut arms: Vec<(&str, &str)> = Vec::new();
    for line in lines.iter().filter(|line| line.rating != EVERYTHING) {
        let (setting, arm) =
            ((line.keep.as_str(), line.convention.as_str()), (line.rating.as_str(), line.sampler.as_str()));
        if !settings.contains(&setting) {
            settings.push(setting);
        }
        if !arms.contains(&arm) {
            arms.push(arm);
        }
    }
    let mut text = String::from(
        "Held-out loss minus that of a random subset of the same size, paired by seed, ± half the 95% interval over \
         seeds; in parentheses the fraction of the gap between random and the ceiling (`oracle`: clean records only) \
         that is closed. For random subsets, the loss itself.\n",
    );
    for line in lines.iter().filter(|line| line.rating == EVERYTHING) {
        text.push_str(&format!(
            "Everything: {} after {:.0} steps.\n",
            with_interval(line.loss, 4),
            line.steps
        ));
    }
    let columns = settings.iter().map(|(keep, convention)| format!(" {keep}, equal {convention} |"));
    text.push_str(&format!(
        "\n| rating | sampler |{}\n| --- | --- |{}\n",
        columns.collect::<String>(),
        " --- |".repeat(settings.len())
    ));
    for (rating, sampler) in arms {
        text.push_str(&format!("| {rating} | {sampler} |"));
        for (keep, convention) in &settings {
            let found = lines.iter().find(|line| {
                let names = (line.rating.as_str(), line.sampler.as_str());
                names == (rating, sampler)
                    && (line.keep.as_str(), line.convention.as_str()) == (*keep, *convention)
            });
            let cell = match found {
                None => "-".to_owned(),
                Some(line) => match (line.difference, line.closed) {
                    (None, _) => with_interval(line.loss, 4),
                    (difference, None) => with_interval(difference, 3),
                    (difference, Some(closed)) => {
                        format!("{} ({:.0}%)", with_interval(difference, 3), 100.0 * closed)
                    }
                },
            };
            text.push_str(&format!(" {cell} |"));
        }
        text.push('\n');
    }
    text
}

/// Tables of the image measures; empty if no images were sampled.
fn image_measures(lines: &[Line], results: &[&CellResult]) -> String {
    let mut text = String::new();
    let all = || results.iter().flat_map(|result| &result.images);
    for name in measure_names(lines.iter().flat_map(|line| &line.images).map(|line| line.name.as_str())) {
        let Some(first) = all().find(|measure| measure.name == name) else { continue };
        let reference =
            first.reference.map_or(String::new(), |count| format!(", compared with {count} held-out ones"));
        text.push_str(&format!(
            "\n{name}: of {} images that each model generates from held-out captions{reference}; mean ± half the 95% interval \
             over seeds, and the difference to a random subset, paired by seed.\n\n\
             | keep | equal | rating | sampler | value | difference to random |\n| --- | --- | --- | --- | --- | --- |\n",
            first.generated
        ));
        for line in lines {
            let found = line.images.iter().find(|image| image.name == name);
            text.push_str(&format!(
                "| {} | {} | {} | {} | {} | {} |\n",
                line.keep,
                line.convention,
                line.rating,
                line.sampler,
                with_interval(found.and_then(|found| found.value), 4),
                with_interval(found.and_then(|found| found.difference), 4),
            ));
        }
    }
    text
}

//! The tables of a comparison as people read them.

use super::{
    Comparison,
    result::CellResult,
    table::{Line, measure_names, summarize},
};

/// The rating that stands for all records.
const EVERYTHING: &str = "everything";

/// A number with half its interval.
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
        "\nThe same by setting. Loss of the model on held-out pairs, mean ± half the 95% interval over seeds; difference to a random part of the same size, paired \
         by seed; share of the gap between random and the ceiling (`oracle`: unspoiled records only) that is closed.\n\n\
         | keep | equal | rating | sampler | seeds | steps | held-out loss | difference to random | gap closed |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for line in &lines {
        let seeds = match line.diverged {
            0 => line.seeds.to_string(),
            diverged => format!("{} ({diverged} diverged)", line.seeds),
        };
        let closed = line.closed.map_or("-".to_owned(), |closed| format!("{:.0}%", 100.0 * closed));
        text.push_str(&format!(
            "| {} | {} | {} | {} | {seeds} | {:.0} | {} | {} | {closed} |\n",
            line.keep,
            line.convention,
            line.rating,
            line.sampler,
            line.steps,
            with_interval(line.loss, 4),
            with_interval(line.difference, 4),
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
        text.push_str("\nAUROC of each planted flaw (a low rating tells it; 0.5 is chance), and in brackets its mean percentile.\n\n");
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
        text.push_str("\nWhat the ratings cost, mean seconds a seed.\n\n| rater | training | scoring |\n| --- | --- | --- |\n");
        for (rule, training, scoring) in costs {
            let seconds = |value: &Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
            text.push_str(&format!("| {rule} | {} | {} |\n", seconds(training), seconds(scoring)));
        }
    }
    text
}

/// One row for each rating and sampler, one column for each share and convention.
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
        "Held-out loss less that of a random part of the same size, paired by seed, ± half the 95% interval over seeds, and in brackets the \
         share of the gap between random and the ceiling (`oracle`: unspoiled records only) that is closed. Of random parts the loss itself.\n",
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
            "\n{name}: of {} images that each model draws of held-out captions{reference}; mean ± half the 95% interval over seeds, \
             and the difference to a random part, paired by seed.\n\n\
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

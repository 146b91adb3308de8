//! Tables of a comparison's page other than those of the loss.

use super::table::Line;
use crate::report::page::{Cell, Content, Table};

/// A mean with half its interval.
pub(super) fn with_interval(value: Option<(f64, Option<f64>)>) -> Cell {
    let Some((mean, half)) = value else { return Cell::Nothing };
    let text = half.map_or_else(|| format!("{mean:.4}"), |half| format!("{mean:.4} ± {half:.4}"));
    Cell::Number(text, mean)
}

/// The caption gain of the models, if it was measured.
pub(super) fn caption_gains(lines: &[&Line]) -> Option<Content> {
    lines.iter().find_map(|line| line.caption_gain.value)?;
    let header = ["rating", "sampler", "caption gain", "difference to random", "gap closed"];
    let row = |line: &&Line| {
        let closed = line.caption_gain.closed.map_or(Cell::Nothing, |closed| {
            Cell::Number(format!("{:.0}%", 100.0 * closed).replace('-', "−"), closed)
        });
        let [value, difference] = [line.caption_gain.value, line.caption_gain.difference].map(with_interval);
        vec![Cell::Text(line.rating.clone()), Cell::Text(line.sampler.clone()), value, difference, closed]
    };
    let table = Table { header: header.map(str::to_owned).to_vec(), rows: lines.iter().map(row).collect() };
    let about = "How much better the model predicts held-out images with their own captions than with others, in nats per \
                 token; higher is better."
        .to_owned();
    Some(Content::Folded("Caption gain".to_owned(), vec![Content::Text(about), Content::Table(table)]))
}

/// The measures of the models' images, if any.
pub(super) fn image_measures(lines: &[&Line]) -> Option<Content> {
    let mut names: Vec<&str> = Vec::new();
    for measure in lines.iter().flat_map(|line| &line.images) {
        if !names.contains(&measure.name.as_str()) {
            names.push(&measure.name);
        }
    }
    if names.is_empty() {
        return None;
    }
    let mut header = vec!["rating".to_owned(), "sampler".to_owned()];
    header.extend(names.iter().flat_map(|name| [(*name).to_owned(), "difference to random".to_owned()]));
    let row = |line: &&Line| {
        let mut row = vec![Cell::Text(line.rating.clone()), Cell::Text(line.sampler.clone())];
        for name in &names {
            let measured = line.images.iter().find(|measure| measure.name == *name);
            let (value, difference) = measured.map_or((None, None), |one| (one.value, one.difference));
            row.extend([value, difference].map(with_interval));
        }
        row
    };
    let rows = lines.iter().map(row).collect();
    Some(Content::Folded(
        "Measures of the generated images".to_owned(),
        vec![Content::Table(Table { header, rows })],
    ))
}

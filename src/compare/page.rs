//! The HTML page of a comparison.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use super::{
    Comparison, TrainedModel,
    arms::{Rating, SamplingArm},
    page_tables::{caption_gains, image_measures, with_interval},
    table::{Line, summarize},
};
use crate::{
    config::Config,
    error::{Error, Result},
    rater::{
        crossfit::RunMeasurements,
        dynamics::recordings,
        page::{Rated, auroc_cell, dynamics_parts, histogram_part, kind_number, last_losses},
    },
    report::{
        page::{Cell, Content, Page, Section, Table, legend},
        plot::{LossCurves, Series, loss_curves_svg},
        statistics::mean_interval,
    },
    select::{Keep, RatingsTable, Strategy, ratings::RatingColumns},
    training::run_directory::RunDirectory,
};

/// Ratings in a chart of losses over time, alongside everything, random and the oracle.
const BEST: usize = 3;

/// The source of a comparison's page.
#[derive(Clone, Debug)]
pub(crate) struct ComparisonPage<'a> {
    /// The comparison's folder.
    pub folder: &'a Path,
    /// The ratings whose images are shown; if empty, the three with the lowest losses.
    pub sheets: &'a [Rating],
}

impl ComparisonPage<'_> {
    /// Builds the page.
    ///
    /// # Errors
    /// If the folder contains no comparison, or a part of it cannot be read.
    pub(crate) fn page(&self) -> Result<Page> {
        let comparison = Comparison::read(self.folder)?;
        let config = comparison.config()?;
        let lines = summarize(&comparison.outcomes);
        let seeds: BTreeSet<u64> = comparison.outcomes.iter().map(|outcome| outcome.seed).collect();
        let mut lead = vec![format!(
            "One text-to-image model, trained with {} on everything, on random subsets, and on what each rating and \
             sampler selects from {} pairs; each seed starts every model from the same weights. {} other pairs guide \
             the raters; the models are measured on {} held-out pairs that no rater reads.",
            counted(seeds.len(), "seed"),
            comparison.records,
            comparison.validation,
            comparison.held_out
        )];
        lead.extend(settings(&lines).iter().map(|setting| best_of(&lines, *setting)));
        let mut sections = vec![
            Section { title: "Held-out loss".to_owned(), parts: tables(&lines) },
            Section { title: "Loss over time".to_owned(), parts: curves(&comparison.outcomes, &lines)? },
        ];
        if !comparison.flaws.is_empty() {
            sections.push(Section { title: "Planted flaws".to_owned(), parts: flaws(&comparison) });
        }
        sections.extend(self.ratings(&comparison, &config, &lines)?);
        sections.push(Section { title: "Cost".to_owned(), parts: cost(&comparison) });
        Ok(Page { title: format!("Comparison of ratings: {}", config.experiment), lead, sections })
    }

    /// Histograms, images and the paper's figure 3 of the ratings shown.
    fn ratings(&self, comparison: &Comparison, config: &Config, lines: &[Line]) -> Result<Vec<Section>> {
        let ranked = by_loss(lines);
        let shown: Vec<Rating> = if self.sheets.is_empty() {
            ranked.into_iter().filter_map(|(rating, _)| rating.parse().ok()).take(BEST).collect()
        } else {
            self.sheets.to_vec()
        };
        let mut seeds: Vec<u64> = comparison.outcomes.iter().map(|outcome| outcome.seed).collect();
        seeds.dedup();
        let mut sections = Vec::new();
        let mut strategies: Vec<Strategy> = Vec::new();
        for outcome in &comparison.outcomes {
            if let Ok(SamplingArm(strategy)) = outcome.sampler.parse()
                && !strategies.contains(&strategy)
            {
                strategies.push(strategy);
            }
        }
        let keep: Keep = match comparison.outcomes.iter().rfind(|outcome| !outcome.sampler.is_empty()) {
            Some(outcome) => outcome.keep.parse()?,
            None => Keep::Share(0.5),
        };
        for rating in shown {
            let path_of = |seed: u64| self.folder.join("ratings").join(format!("{rating}-{seed}.csv"));
            // A rater that diverged with a seed has no ratings.
            let Some(seed) = seeds.iter().copied().find(|seed| path_of(*seed).is_file()) else {
                let of = self.folder.display();
                let message =
                    format!("{of} contains no ratings by {rating}; name others, or add it to the comparison");
                return Err(Error::input(self.folder, message));
            };
            let path = path_of(seed);
            let names = RatingColumns { id: config.data.id_column.clone(), ..RatingColumns::default() };
            let table = RatingsTable::read(&path, &names)?;
            let (mut dynamics, mut explanations) = (Vec::new(), HashMap::new());
            if let Some(rule) = rating.run() {
                let run = self.folder.join("raters").join(format!("{}-{seed}", Rating::Rater(rule)));
                dynamics = recordings(&run.join("dynamics"))?;
                if RunDirectory::is_run(&run) {
                    let measured = RunMeasurements::of_run(&run, &RunDirectory::config_of(&run)?)?;
                    explanations = measured.as_ref().map_or_else(HashMap::new, RunMeasurements::explanations);
                }
            }
            let losses = last_losses(&dynamics);
            let pool = self.folder.join("data/pool.csv");
            let rated = Rated {
                config,
                corpus: &pool,
                ids: (0..table.ratings.len()).map(|row| table.ids.get(row).to_owned()).collect(),
                ratings: table.ratings,
                losses: &losses,
                explanations: &explanations,
                note_column: Some(&comparison.flaw_column),
            };
            // Strategies that cannot choose this many rows are not part of the comparison either.
            let rows = rated.ratings.len();
            let kept = keep.count(rows).unwrap_or(rows);
            let fits = |strategy: &&Strategy| kept <= strategy.reach(rows);
            let fitting: Vec<Strategy> = strategies.iter().filter(fits).copied().collect();
            let mut parts = vec![histogram_part(&rated.ratings, &fitting, keep, seed)?];
            if matches!(rating, Rating::Rater(_)) {
                parts.extend(dynamics_parts(&dynamics)?);
            }
            parts.push(Content::Text(
                "Deciles of the ranking, best-rated first. Click a pair to see it with its neighbors."
                    .to_owned(),
            ));
            parts.push(rated.sheet()?);
            sections.push(Section { title: format!("Ratings by {rating}, seed {seed}"), parts });
        }
        Ok(sections)
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// How much is kept, and the convention.
type Setting<'a> = (&'a str, &'a str);

fn settings(lines: &[Line]) -> Vec<Setting<'_>> {
    let mut found = Vec::new();
    for line in lines.iter().filter(|line| !line.convention.is_empty()) {
        let setting = (line.keep.as_str(), line.convention.as_str());
        if !found.contains(&setting) {
            found.push(setting);
        }
    }
    found
}

fn of_setting<'a>(lines: &'a [Line], (keep, convention): Setting<'_>) -> Vec<&'a Line> {
    lines.iter().filter(|line| line.keep == keep && line.convention == convention).collect()
}

fn is_control(rating: &str) -> bool {
    ["everything", "random", "oracle"].contains(&rating)
}

/// The selected arms, lowest loss first.
fn chosen<'a>(lines: &'a [Line], setting: Setting<'_>) -> Vec<&'a Line> {
    let mut chosen = of_setting(lines, setting);
    chosen.retain(|line| !is_control(&line.rating) && line.loss.is_some());
    let loss = |line: &&Line| line.loss.map_or(f64::INFINITY, |(mean, _)| mean);
    chosen.sort_by(|one, other| loss(one).total_cmp(&loss(other)));
    chosen
}

/// Ratings by the mean difference to random of their best samplers over all settings.
fn by_loss(lines: &[Line]) -> Vec<(&str, f64)> {
    let mut sums: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for setting in settings(lines) {
        let mut ratings = BTreeSet::new();
        for line in chosen(lines, setting) {
            if let Some((difference, _)) = line.difference
                && ratings.insert(&line.rating)
            {
                let (sum, count) = sums.entry(&line.rating).or_default();
                *sum += difference;
                *count += 1.0;
            }
        }
    }
    let mut means: Vec<(&str, f64)> =
        sums.into_iter().map(|(rating, (sum, count))| (rating, sum / count)).collect();
    means.sort_by(|one, other| one.1.total_cmp(&other.1));
    means
}

/// The best arm of a setting, in words.
fn best_of(lines: &[Line], (keep, convention): Setting<'_>) -> String {
    let begin = format!("{keep} kept, equal {convention}:");
    let Some(best) = chosen(lines, (keep, convention)).into_iter().next() else {
        return format!("{begin} nothing was chosen.");
    };
    let name = format!("{} with {}", best.rating, best.sampler);
    let difference = match best.difference {
        Some((mean, Some(half))) if mean + half < 0.0 => {
            format!(
                "its loss is {:.4} ± {half:.4} below that of a random subset, and the interval excludes 0",
                -mean
            )
        }
        Some((mean, Some(half))) => {
            format!(
                "its loss differs from that of a random subset by {mean:+.4} ± {half:.4}, which may be chance"
            )
        }
        Some((mean, None)) => {
            format!("its loss differs from that of a random subset by {mean:+.4}, with one seed only")
        }
        None => "there is no random subset to compare it with".to_owned(),
    };
    let closed = best.closed.map_or(String::new(), |closed| {
        format!("; {:.0}% of the gap to the oracle is closed", 100.0 * closed)
    });
    // A true minus sign; hyphens in the names of ratings and samplers stay.
    let result = format!("{difference}{closed}").replace(" -", " −");
    format!("{begin} the lowest loss is that of {name}; {result}.")
}

/// One table per setting.
fn tables(lines: &[Line]) -> Vec<Content> {
    let mut parts = vec![Content::Text(
        "Mean over the seeds ± half the 95% interval. The difference is to a random subset of the same size, paired by \
         seed; blue lies entirely below 0. The gap is that between random and the oracle, which is trained on clean \
         pairs only. Click a column's name to sort by it."
            .to_owned(),
    )];
    for setting in settings(lines) {
        let mut of = lines.iter().filter(|line| line.rating == "everything").collect::<Vec<_>>();
        of.extend(of_setting(lines, setting));
        let ends = of.iter().filter_map(|line| line.difference).flat_map(|(mean, half)| {
            let half = half.unwrap_or(0.0);
            [mean - half, mean + half]
        });
        let range = ends.fold((0.0f64, 0.0f64), |(low, high), end| (low.min(end), high.max(end)));
        let row = |line: &&Line| {
            let seeds = match line.diverged {
                0 => line.seeds.to_string(),
                diverged => format!("{} ({diverged} diverged)", line.seeds),
            };
            vec![
                Cell::Text(line.rating.clone()),
                Cell::Text(line.sampler.clone()),
                Cell::Number(seeds, line.seeds as f64),
                Cell::Number(format!("{:.0}", line.records), line.records),
                Cell::Number(format!("{:.0}", line.steps), line.steps),
                with_interval(line.loss),
                line.difference.map_or(Cell::Nothing, |(mean, half)| Cell::Interval { mean, half, range }),
                line.closed.map_or(Cell::Nothing, |closed| {
                    Cell::Number(format!("{:.0}%", 100.0 * closed).replace('-', "−"), closed)
                }),
                line.accuracy.map_or(Cell::Nothing, |(mean, _)| Cell::Number(format!("{mean:.2}%"), mean)),
            ]
        };
        let header = [
            "rating",
            "sampler",
            "seeds",
            "pairs",
            "steps",
            "held-out loss",
            "difference to random",
            "gap closed",
            "accuracy",
        ];
        parts.push(Content::Heading(format!("{} kept, equal {}", setting.0, setting.1)));
        parts.push(Content::Table(Table {
            header: header.map(str::to_owned).to_vec(),
            rows: of.iter().map(row).collect(),
        }));
        parts.extend(caption_gains(&of));
        parts.extend(image_measures(&of));
    }
    parts
}

/// Held-out loss over the steps with bands (figure 6 of the paper), one chart per setting.
fn curves(outcomes: &[TrainedModel], lines: &[Line]) -> Result<Vec<Content>> {
    let mut parts = Vec::new();
    for setting in settings(lines) {
        let mut named = vec![("everything", "", "100%", ""), ("random", "", setting.0, setting.1)];
        named.push(("oracle", "random", setting.0, setting.1));
        let mut ratings = BTreeSet::new();
        for line in chosen(lines, setting) {
            if ratings.len() < BEST && ratings.insert(line.rating.as_str()) {
                named.push((&line.rating, &line.sampler, setting.0, setting.1));
            }
        }
        let series = named.into_iter().filter_map(|(rating, sampler, keep, convention)| {
            let mut by_step: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
            let of = outcomes.iter().filter(|outcome| {
                (
                    outcome.rating.as_str(),
                    outcome.sampler.as_str(),
                    outcome.keep.as_str(),
                    outcome.convention.as_str(),
                ) == (rating, sampler, keep, convention)
            });
            for (step, loss) in of.flat_map(|outcome| &outcome.result.curve) {
                by_step.entry(*step).or_default().push(*loss);
            }
            let name = if rating == "oracle" { rating.to_owned() } else { format!("{rating} {sampler}") };
            let mut series = Series::new(name.trim(), Vec::new());
            for (step, losses) in by_step {
                let (mean, half) = mean_interval(&losses)?;
                series.points.push((step as f64, mean));
                series.band.extend(half.map(|half| (step as f64, mean - half, mean + half)));
            }
            (!series.points.is_empty()).then_some(series)
        });
        let curves = LossCurves {
            title: format!("Held-out loss over the steps, {} kept, equal {}", setting.0, setting.1),
            x_label: "update".to_owned(),
            y_label: "held-out loss".to_owned(),
            series: series.collect(),
            smoothing: 0.0,
        };
        if curves.series.is_empty() {
            continue;
        }
        parts.push(Content::Chart {
            svg: loss_curves_svg(&curves)?,
            caption: format!(
                "{}: after each epoch, mean over the seeds, 95% bands. Alongside the controls, the {BEST} ratings with \
                 the lowest losses, each with its best sampler.",
                curves.title
            ),
        });
    }
    Ok(parts)
}

/// The number of subsets, and the sums of their fractions by kind.
type Sum<'a> = (f64, BTreeMap<&'a str, f64>);

/// How well each rating detects each flaw, and the kinds of pairs in every subset.
fn flaws(comparison: &Comparison) -> Vec<Content> {
    let mut kinds: Vec<&str> = Vec::new();
    let mut ratings: Vec<&str> = Vec::new();
    for line in &comparison.flaws {
        if !kinds.contains(&line.flaw.as_str()) {
            kinds.push(&line.flaw);
        }
        if !ratings.contains(&line.rating.as_str()) {
            ratings.push(&line.rating);
        }
    }
    let row = |rating: &&str| {
        let mut row = vec![Cell::Text((*rating).to_owned())];
        for kind in &kinds {
            let found = comparison.flaws.iter().find(|line| line.rating == *rating && line.flaw == *kind);
            row.extend(found.map_or([Cell::Nothing, Cell::Nothing], |line| {
                [auroc_cell(line.auroc.0), Cell::Number(format!("{:.2}", line.percentile), line.percentile)]
            }));
        }
        row
    };
    let mut header = vec!["rating".to_owned()];
    header.extend(kinds.iter().flat_map(|kind| [(*kind).to_owned(), "percentile".to_owned()]));
    let mut parts = vec![
        Content::Text(
            "AUROC: the probability that a pair with the flaw is rated below a clean one, mean over the seeds; 0.5 is \
             chance. Percentile: mean percentile in the ranking, 0 is the best rated."
                .to_owned(),
        ),
        Content::Table(Table { header, rows: ratings.iter().map(row).collect() }),
        legend(comparison.kinds.iter().map(|(kind, _)| (kind.as_str(), kind_number(kind)))),
    ];
    // The mean fractions of each subset; epochs and steps train on the same subsets.
    let mut sums: HashMap<(&str, &str, &str), Sum<'_>> = HashMap::new();
    let mut order = Vec::new();
    for outcome in comparison.outcomes.iter().filter(|outcome| !outcome.flaws.is_empty()) {
        let key = (outcome.keep.as_str(), outcome.rating.as_str(), outcome.sampler.as_str());
        if !order.contains(&key) {
            order.push(key);
        }
        let (count, shares) = sums.entry(key).or_default();
        *count += 1.0;
        for (kind, share) in &outcome.flaws {
            *shares.entry(kind).or_default() += share;
        }
    }
    let keeps: Vec<&str> = order.iter().fold(Vec::new(), |mut keeps, key| {
        if !keeps.contains(&key.0) {
            keeps.push(key.0);
        }
        keeps
    });
    for keep in keeps {
        let rows = order.iter().filter(|key| key.0 == keep).map(|key| {
            let (count, shares) = &sums[key];
            let share = |kind: &str| shares.get(kind).copied().unwrap_or(0.0) / count;
            let clean = share("clean");
            let of = comparison.kinds.iter().map(|(kind, _)| (kind.clone(), kind_number(kind), share(kind)));
            vec![
                Cell::Text(key.1.to_owned()),
                Cell::Text(key.2.to_owned()),
                Cell::Number(format!("{:.1}%", 100.0 * clean), clean),
                Cell::Shares(of.collect()),
            ]
        });
        parts.push(Content::Folded(
            format!("Composition of the subsets, {keep} kept"),
            vec![Content::Table(Table {
                header: ["rating", "sampler", "clean", "kinds of pairs"].map(str::to_owned).to_vec(),
                rows: rows.collect(),
            })],
        ));
    }
    parts
}

/// Seconds of the raters alongside those of a model.
fn cost(comparison: &Comparison) -> Vec<Content> {
    let of: Vec<f64> = comparison
        .outcomes
        .iter()
        .filter(|outcome| outcome.rating == "everything")
        .map(|outcome| outcome.result.seconds)
        .collect();
    let whole = mean_interval(&of).map(|(mean, _)| mean);
    let seconds = |value: f64| Cell::Number(format!("{value:.1}"), value);
    let mut rows: Vec<Vec<Cell>> = comparison
        .costs
        .iter()
        .map(|(rater, training, scoring)| {
            let known = |value: &Option<f64>| value.map_or(Cell::Nothing, seconds);
            let times = whole.and_then(|whole| Some(((*training)? + (*scoring)?) / whole));
            vec![
                Cell::Text(format!("rater by {rater}")),
                known(training),
                known(scoring),
                times.map_or(Cell::Nothing, |times| Cell::Number(format!("{times:.1}"), times)),
            ]
        })
        .collect();
    if let Some(whole) = whole {
        rows.push(vec![
            Cell::Text("the model itself, on everything".to_owned()),
            seconds(whole),
            Cell::Nothing,
            Cell::Number("1.0".to_owned(), 1.0),
        ]);
    }
    let header = ["what", "training, s", "scoring, s", "× model training"].map(str::to_owned).to_vec();
    vec![
        Content::Text(
            "Mean seconds per seed. A rating that is recorded during a run costs that run, and no scoring."
                .to_owned(),
        ),
        Content::Table(Table { header, rows }),
    ]
}

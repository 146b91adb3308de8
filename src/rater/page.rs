//! Page sections on ratings: the histogram with the rows that each strategy keeps, images by decile with their
//! neighbors in rank, planted flaws, figure 3; and the page of a run.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use crate::{
    config::Config,
    data::{Preprocess, Record, corpus::columns::absent, corruption::Flaw, load_image},
    error::{Error, Result},
    rater::{
        crossfit::{Explanation, RunMeasurements},
        dynamics::{EpochDynamics, figures, recordings},
        images::records_of,
    },
    report::{
        contact_sheet::decile_samples,
        page::{Cell, Content, Page, Section, Sheet, SheetDecile, Table, Tile, data_address, legend},
        plot::{Kept, LossCurves, RatingHistogram, Series, loss_curves_svg, rating_histogram_svg},
        statistics::{auroc, mean_percentile},
    },
    select::{
        Keep, Ranking, Strategy,
        ratings::{RatingColumns, RatingsTable},
        select,
    },
    training::run_directory::{GAINS, METRICS, RunDirectory, metrics},
};

/// Images per decile, and neighbors in rank on either side of each.
const SHOWN: usize = 10;
const NEIGHBORS: usize = 2;
/// The caption of the loss curves.
const CURVES: &str =
    "Loss of the proxy over the steps; bold lines are smoothed, faint ones are single steps.";
/// Side of an image on a page, in pixels.
const SIDE: usize = 96;

/// Rated records and the source of their images.
pub(crate) struct Rated<'a> {
    /// Column names, and how to read images.
    pub config: &'a Config,
    /// The corpus.
    pub corpus: &'a Path,
    /// The ids.
    pub ids: Vec<String>,
    /// Their ratings.
    pub ratings: Vec<f64>,
    /// Training losses by id, if they were recorded.
    pub losses: &'a HashMap<String, f64>,
    /// Why pairs have their ratings, by id; empty unless the run was cross-fitted.
    pub explanations: &'a HashMap<String, Explanation>,
    /// A column of the corpus shown with each pair, such as `flaw`.
    pub note_column: Option<&'a str>,
}

/// The histogram of the ratings with the rows that each strategy keeps.
///
/// # Errors
/// If there is no rating, or a strategy does not fit.
pub(crate) fn histogram_part(
    ratings: &[f64],
    strategies: &[Strategy],
    keep: Keep,
    seed: u64,
) -> Result<Content> {
    let kept = strategies
        .iter()
        .map(|strategy| {
            Ok(Kept { name: strategy.name().to_owned(), rows: select(ratings, strategy, keep, seed)?.kept })
        })
        .collect::<Result<Vec<_>>>()?;
    let histogram =
        RatingHistogram { title: "Ratings, with the rows that are kept".to_owned(), ratings, kept: &kept };
    Ok(Content::Chart {
        svg: rating_histogram_svg(&histogram)?,
        caption: format!("All ratings, and those of the rows that each strategy keeps ({keep})."),
    })
}

impl Rated<'_> {
    /// Refuses ratings whose ids are all missing from the corpus.
    fn expect_known(&self) -> Result<()> {
        let requested: HashSet<&str> = self.ids.iter().map(String::as_str).collect();
        for record in self.config.open_corpus(self.corpus)? {
            if requested.contains(record?.id.as_str()) {
                return Ok(());
            }
        }
        Err(Error::Table {
            path: self.corpus.to_path_buf(),
            line: None,
            message: format!(
                "has none of the {} rated ids, such as `{}`; pass the rated corpus as --data FILE",
                self.ids.len(),
                self.ids.first().map_or("", String::as_str)
            ),
        })
    }

    /// Images by decile of the ranking with caption, rating and loss (figures 4 and 5 of the paper), each with its
    /// neighbors.
    ///
    /// # Errors
    /// If there is no rating or the corpus cannot be read. An image that cannot be read is replaced by the reason.
    pub(crate) fn sheet(&self) -> Result<Content> {
        let order = Ranking::new(&self.ratings)?.order().to_vec();
        let mut rank_of = vec![0usize; order.len()];
        order.iter().enumerate().for_each(|(rank, &row)| rank_of[row as usize] = rank);
        let samples = decile_samples(&self.ratings, SHOWN)?;
        let mut ranks: Vec<usize> = samples
            .iter()
            .flat_map(|sample| &sample.rows)
            .flat_map(|&row| {
                let rank = rank_of[row as usize];
                rank.saturating_sub(NEIGHBORS)..(rank + NEIGHBORS + 1).min(order.len())
            })
            .collect();
        ranks.sort_unstable();
        ranks.dedup();
        let id_of = |rank: usize| self.ids[order[rank] as usize].as_str();
        let requested: HashSet<&str> = ranks.iter().map(|&rank| id_of(rank)).collect();
        let (header, records) = records_of(self.config, self.corpus, &requested)?;
        let note = self.note_column.and_then(|name| header.iter().position(|column| column == name));
        let preprocess = self.config.preprocess(SIDE);
        let tile = |&rank: &usize| -> Result<Tile> {
            let id = id_of(rank);
            let record = records.get(id);
            let explanation = self.explanations.get(id);
            let note = record.zip(note).map_or("", |(record, column)| record.fields[column].as_str());
            Ok(Tile {
                rank,
                id: id.to_owned(),
                caption: record.map_or_else(String::new, |record| record.caption.clone()),
                note: if note == Flaw::Clean.name() { String::new() } else { note.to_owned() },
                rating: self.ratings[order[rank] as usize],
                loss: self.losses.get(id).copied(),
                reason: explanation.map_or("", |explanation| explanation.brief),
                measured: explanation.map_or_else(Vec::new, |explanation| explanation.lines.clone()),
                image: image(record, &preprocess)?,
            })
        };
        let tiles = ranks.iter().map(tile).collect::<Result<Vec<_>>>()?;
        let decile = |number: usize| {
            let found = samples.iter().find(|sample| sample.decile == number);
            let index = |row: &u32| ranks.binary_search(&rank_of[*row as usize]).ok();
            SheetDecile {
                decile: number,
                ratings: found.map_or((f64::NAN, f64::NAN), |sample| (sample.highest, sample.lowest)),
                shown: found.map_or_else(Vec::new, |sample| sample.rows.iter().filter_map(index).collect()),
            }
        };
        Ok(Content::Sheet(Sheet { rows: order.len(), tiles, deciles: (0..10).map(decile).collect() }))
    }

    /// How the ratings rank each kind of record named by a column of the corpus: AUROC, mean percentile, and the
    /// share of each kind per decile. Empty without such a column.
    ///
    /// # Errors
    /// If there is no rating or the corpus cannot be read.
    pub(crate) fn flaws(&self) -> Result<Vec<Content>> {
        let requested: HashSet<&str> = self.ids.iter().map(String::as_str).collect();
        let (header, records) = records_of(self.config, self.corpus, &requested)?;
        let Some(column) = self.note_column.and_then(|name| header.iter().position(|column| column == name))
        else {
            return Ok(Vec::new());
        };
        let kinds: Vec<&str> = self
            .ids
            .iter()
            .map(|id| records.get(id).map_or("", |record| record.fields[column].as_str()))
            .collect();
        let mut counts: BTreeMap<(usize, &str), usize> = BTreeMap::new();
        for kind in &kinds {
            *counts.entry((kind_number(kind), kind)).or_default() += 1;
        }
        let mut rows = Vec::new();
        for (&(_, kind), count) in &counts {
            let of: Vec<bool> = kinds.iter().map(|other| *other == kind).collect();
            let (scores, positives): (Vec<f64>, Vec<bool>) = std::iter::zip(&self.ratings, &kinds)
                .filter(|(_, other)| **other == kind || **other == Flaw::Clean.name())
                .map(|(rating, other)| (-rating, *other == kind))
                .unzip();
            rows.push(vec![
                Cell::Text(kind.to_owned()),
                Cell::Number(count.to_string(), *count as f64),
                mean_percentile(&self.ratings, &of)
                    .map_or(Cell::Nothing, |percentile| Cell::Number(format!("{percentile:.2}"), percentile)),
                auroc(&scores, &positives).map_or(Cell::Nothing, auroc_cell),
            ]);
        }
        let table = Table {
            header: ["kind", "records", "mean percentile", "AUROC"].map(str::to_owned).to_vec(),
            rows,
        };
        let order = Ranking::new(&self.ratings)?.order().to_vec();
        let decile = |number: usize| {
            let (from, to) = ((order.len() * number).div_ceil(10), (order.len() * (number + 1)).div_ceil(10));
            let within = &order[from..to];
            let share = |&(index, kind): &(usize, &str)| {
                let count = within.iter().filter(|&&row| kinds[row as usize] == kind).count();
                (kind.to_owned(), index, count as f64 / within.len().max(1) as f64)
            };
            vec![
                Cell::Text(format!("{}–{}%", number * 10, number * 10 + 10)),
                Cell::Shares(counts.keys().map(share).collect()),
            ]
        };
        let deciles = Table {
            header: ["decile, highest-rated first", "kinds of records"].map(str::to_owned).to_vec(),
            rows: (0..10).map(decile).collect(),
        };
        Ok(vec![
            Content::Text(
                "AUROC: the probability that a record with the flaw is rated below a clean one; 0.5 is chance. \
                 Percentile: mean position in the ranking, 0 being the highest-rated."
                    .to_owned(),
            ),
            Content::Table(table),
            legend(counts.keys().map(|&(index, kind)| (kind, index))),
            Content::Table(deciles),
        ])
    }
}

/// The index of a kind of record, which selects its color; unknown kinds come last.
pub(crate) fn kind_number(kind: &str) -> usize {
    Flaw::ALL.iter().position(|known| known.name() == kind).unwrap_or(Flaw::ALL.len())
}

/// An AUROC as a bar that starts at 0.5.
pub(crate) fn auroc_cell(value: f64) -> Cell {
    Cell::Bar { share: value, from: 0.5, text: format!("{value:.2}") }
}

/// The image as a data URL, or why there is none.
fn image(record: Option<&Record>, preprocess: &Preprocess) -> Result<std::result::Result<String, String>> {
    let Some(record) = record else { return Ok(Err("the corpus has no such record".to_owned())) };
    match load_image(&record.image, preprocess) {
        Ok(image) => data_address(image.side, &image.rgb).map(Ok),
        Err(error) => {
            tracing::warn!("not on the page: {error}");
            Ok(Err(error.to_string()))
        }
    }
}

/// Loss and gradient norm by rating over the epochs (figure 3). Empty if nothing was recorded.
///
/// # Errors
/// If a chart cannot be rendered.
pub(crate) fn dynamics_parts(recorded: &[EpochDynamics]) -> Result<Vec<Content>> {
    let chart = |(_, curves): (&str, LossCurves)| {
        Ok(Content::Chart { svg: loss_curves_svg(&curves)?, caption: curves.title })
    };
    figures(recorded).into_iter().map(chart).collect()
}

/// The loss of each sample in the last epoch of a run, by id.
pub(crate) fn last_losses(recorded: &[EpochDynamics]) -> HashMap<String, f64> {
    let Some(last) = recorded.last() else { return HashMap::new() };
    let losses = last.column("loss").unwrap_or_default();
    let known = std::iter::zip(&last.ids, losses).filter(|(_, loss)| loss.is_finite());
    known.map(|(id, loss)| (id.clone(), *loss)).collect()
}

/// The inputs of a run's page.
#[derive(Clone, Debug)]
pub(crate) struct RunPage {
    /// The run directory of `train`.
    pub run: PathBuf,
    /// The table written by `score`; without it, the ratings of the last epoch are shown.
    pub ratings: Option<PathBuf>,
    /// The rating column of that table.
    pub rating_column: String,
    /// The rated corpus; without it, the training set of the run.
    pub corpus: Option<PathBuf>,
    /// The column of kinds of records; `flaw` by default, if it exists.
    pub flaw_column: Option<String>,
}

impl RunPage {
    /// Builds the page.
    ///
    /// # Errors
    /// If the run, the ratings or the corpus cannot be read, or the run has neither ratings nor recordings.
    pub(crate) fn page(&self) -> Result<Page> {
        let config = RunDirectory::config_of(&self.run)?;
        if RunDirectory::was_stopped(&self.run)? {
            tracing::warn!("{} is not complete", self.run.display());
        }
        let corpus = match &self.corpus {
            Some(path) => path.clone(),
            None => {
                let path = config.data.train_csv()?.to_path_buf();
                // The training set may be a list or a pattern instead of a path.
                if config.corpus_inputs(&path).iter().all(|file| !file.exists()) {
                    return Err(Error::input(
                        &path,
                        format!(
                            "the run was trained on {}, which no longer exists; pass the corpus as --data FILE",
                            path.display()
                        ),
                    ));
                }
                path
            }
        };
        let recorded = recordings(&self.run.join("dynamics"))?;
        let losses = last_losses(&recorded);
        let (ids, ratings) = self.rated(&config, &recorded)?;
        let measured = RunMeasurements::of_run(&self.run, &config)?;
        let explanations = measured.as_ref().map_or_else(HashMap::new, RunMeasurements::explanations);
        let note = self.flaw_column.as_deref().unwrap_or("flaw");
        let rated = Rated {
            config: &config,
            corpus: &corpus,
            ids,
            ratings,
            losses: &losses,
            explanations: &explanations,
            note_column: Some(note),
        };
        rated.expect_known()?;
        if let Some(column) = &self.flaw_column {
            let header = config.open_corpus(&corpus)?;
            if !header.schema().columns.contains(column) {
                return Err(header.refuse_schema(absent(&header.schema().columns, column)));
            }
        }
        let mut sections = vec![match &measured {
            Some(measured) => measured.training()?,
            None => self.training(&config)?,
        }];
        let dynamics = dynamics_parts(&recorded)?;
        if !dynamics.is_empty() {
            sections.push(Section { title: "Loss and gradient norm by rating".to_owned(), parts: dynamics });
        }
        let strategies = [Strategy::TopK, Strategy::FILTER, Strategy::SHIFT_GSAMPLE];
        sections.push(Section {
            title: "Ratings".to_owned(),
            parts: vec![histogram_part(&rated.ratings, &strategies, Keep::Share(0.5), config.seed)?],
        });
        let flaws = rated.flaws()?;
        if !flaws.is_empty() {
            sections.push(Section { title: "Planted flaws".to_owned(), parts: flaws });
        }
        sections.push(Section {
            title: "Pairs by rating".to_owned(),
            parts: vec![
                Content::Text(
                    "Deciles of the ranking, highest-rated first. Click a pair to see it with its neighbors."
                        .to_owned(),
                ),
                rated.sheet()?,
            ],
        });
        let lead = vec![format!(
            "{} rated pairs of {}; the rule is {}, the seed {}.",
            rated.ids.len(),
            corpus.file_name().unwrap_or_default().to_string_lossy(),
            config.training.rule.rule,
            config.seed
        )];
        let name = self.run.file_name().unwrap_or(self.run.as_os_str()).to_string_lossy();
        Ok(Page { title: format!("Ratings of the run {name}"), lead, sections })
    }

    fn rated(&self, config: &Config, recorded: &[EpochDynamics]) -> Result<(Vec<String>, Vec<f64>)> {
        if let Some(path) = &self.ratings {
            let names =
                RatingColumns { id: config.data.id_column.clone(), rating: self.rating_column.clone() };
            let table = RatingsTable::read(path, &names)?;
            let ids = (0..table.ratings.len()).map(|row| table.ids.get(row).to_owned()).collect();
            return Ok((ids, table.ratings));
        }
        // Under rules with cross-fitted proxies, the table of gains has the ratings.
        let gains = self.run.join(GAINS);
        if recorded.is_empty() && gains.exists() {
            let names = RatingColumns { id: config.data.id_column.clone(), rating: "rating".to_owned() };
            let table = RatingsTable::read(&gains, &names)?;
            let ids = (0..table.ratings.len()).map(|row| table.ids.get(row).to_owned()).collect();
            return Ok((ids, table.ratings));
        }
        let ratings = recorded.last().and_then(|last| Some((last, last.column("rating")?)));
        let pairs = ratings.into_iter().flat_map(|(last, ratings)| {
            std::iter::zip(&last.ids, ratings).filter(|(_, rating)| rating.is_finite())
        });
        let (ids, ratings): (Vec<String>, Vec<f64>) = pairs.map(|(id, rating)| (id.clone(), *rating)).unzip();
        if ids.is_empty() {
            return Err(Error::input(
                &self.run,
                format!(
                    "{} has no recorded ratings; pass the table written by `score` as --ratings FILE",
                    self.run.display()
                ),
            ));
        }
        Ok((ids, ratings))
    }

    /// The losses over the steps (figure 6 of the paper, for one run).
    fn training(&self, config: &Config) -> Result<Section> {
        let path = self.run.join(METRICS);
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let lines = metrics(&path, &text)?;
        let line = |name: &str, key: &str| {
            let point =
                |line: &serde_json::Value| Some((line["step"].as_u64()? as f64 + 1.0, line[key].as_f64()?));
            Series::new(name, lines.iter().filter_map(point).collect())
        };
        let curves = LossCurves {
            title: "Loss of the proxy over the steps".to_owned(),
            x_label: "step".to_owned(),
            y_label: "cross-entropy per token".to_owned(),
            series: vec![
                line("validation", "validation_loss"),
                line("validation, last scale", "validation_tail_loss"),
                line("training", "train_loss"),
            ],
            smoothing: 0.9,
        };
        let mut parts = Vec::new();
        if curves.series.iter().any(|series| !series.points.is_empty()) {
            parts.push(Content::Chart { svg: loss_curves_svg(&curves)?, caption: CURVES.to_owned() });
        }
        let last = lines.last();
        let number = |key: &str| last.and_then(|line| line[key].as_f64());
        let rows = [
            ("epochs", Some(config.training.epochs as f64), 0),
            ("steps", number("step").map(|step| step + 1.0), 0),
            ("final validation loss", number("validation_loss"), 4),
            ("final training loss", number("train_loss"), 4),
            ("final validation accuracy, %", number("validation_accuracy"), 2),
        ];
        let rows = rows.into_iter().filter_map(|(name, value, digits)| {
            let value = value?;
            Some(vec![Cell::Text(name.to_owned()), Cell::Number(format!("{value:.digits$}"), value)])
        });
        parts
            .push(Content::Table(Table { header: vec![String::new(), String::new()], rows: rows.collect() }));
        Ok(Section { title: "Training".to_owned(), parts })
    }
}

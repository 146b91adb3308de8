//! The whole pipeline on synthetic data: generate, corrupt, train, score, and report how well each kind of flaw was
//! found.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use crate::{
    config::Config,
    data::{
        corruption::{Flaw, FlawShares},
        location::path_text,
        synthetic::{DataSetSettings, write_data_set_until},
    },
    error::{Error, Result},
    files::{sync_tree, write_atomic, write_csv},
    interrupt::Interrupt,
    jobs::{
        Claim,
        folder::{FolderPatterns, OutputFolder, Present},
        progress::{Metrics, Progress},
    },
    rater::{
        crossfit::{HeldOut, read_measured},
        dynamics::{EpochDynamics, recordings},
        page::RunPage,
        scorer::{ScoreRequest, ScoreSummary, score},
        trainer::{TrainSummary, train},
    },
    report::{
        plot::{LossCurves, Series, loss_curves},
        statistics::{auroc, mean_percentile},
    },
    select::{
        ratings::{RatingColumns, RatingsOptions, RatingsReader},
        strategy::{Keep, Strategy},
        subset::{SubsetJob, write_subset},
    },
    training::run_directory::{Existing, GAINS, RunDirectory},
};

/// The built-in configuration, also a file of the repository.
pub(crate) const CONFIG: &str = include_str!("../configs/demo.json");
/// Number of training and validation images.
const IMAGES: (usize, usize) = (2_400, 320);

/// Options of [`demo`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DemoSettings {
    /// The share of training images with each flaw.
    pub shares: FlawShares,
    /// Seed of the data set, its flaws and the run.
    pub seed: u64,
    /// Keys set in the configuration, as `KEY=VALUE`.
    pub sets: Vec<String>,
    /// Replaces an existing demo.
    pub overwrite: bool,
}

/// How the ratings treat one kind of flaw.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FlawReport {
    /// The kind.
    pub flaw: Flaw,
    /// Records with the flaw.
    pub records: usize,
    /// Their mean percentile in the ranking, 0 is the best rated.
    pub mean_percentile: f64,
    /// Probability that a record with the flaw is rated below a clean one; `None` for clean records.
    pub auroc: Option<f64>,
    /// The same with each of the run's [`MEASURED`] quantities in place of the rating; `None` if it has none.
    pub auroc_of_measured: [Option<f64>; 4],
}

/// Quantities that a run measures; their names say which values count as a low rating. The first two are those of a
/// jointly trained proxy (the loss, averaged over the epochs, and the average of the rule's signal), the others those
/// of cross-fitted proxies.
pub(crate) const MEASURED: [&str; 4] = ["high loss", "low signal", "low caption gain", "high gradient norm"];

/// The results of the demo.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DemoReport {
    /// One entry per kind of record, clean first.
    pub flaws: Vec<FlawReport>,
    /// The training summary.
    pub training: TrainSummary,
    /// The scoring summary.
    pub scoring: ScoreSummary,
    /// Image files written.
    pub images: Vec<PathBuf>,
    /// The HTML page of the run.
    pub page: PathBuf,
    /// [`flaws`](Self::flaws) as a file.
    pub table: PathBuf,
    /// The selected half.
    pub subset: PathBuf,
}

/// Runs the demo in `folder`: `data/`, `run/`, `ratings.csv` and the images.
///
/// # Errors
/// If the folder is in use or cannot be written; [`Error::Interrupted`] if the user interrupts.
pub(crate) fn demo(
    folder: &Path,
    settings: &DemoSettings,
    command_line: &[String],
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<DemoReport> {
    let overwrite = settings.overwrite;
    let output = OutputFolder::claim(&Claim { command: "demo", inputs: &[], overwrite }, folder, LAYOUT)?;
    let mut present = output.present()?;
    if present == Present::Unfinished && output.keeps_former() {
        // A process was killed while it replaced a demo.
        output.expect_own()?;
        output.restore()?;
        present = Present::Complete;
    }
    match present {
        Present::Nothing => {}
        Present::Complete if !overwrite => {
            let message =
                format!("{}: already exists; pass --overwrite or choose another --out", folder.display());
            return Err(Error::mismatch(folder, message));
        }
        Present::Complete => {
            output.expect_own()?;
            output.put_aside()?;
        }
        Present::Unfinished => {
            output.expect_own()?;
            output.clear_in_place()?;
        }
    }
    output.begin_in_place()?;
    match write(folder, settings, command_line, interrupt, progress) {
        Ok(report) => output.complete().map(|()| report),
        Err(error) => {
            output.restore()?;
            Err(error)
        }
    }
}

/// The contents of a demo's folder; see [`FolderPatterns`].
const LAYOUT: FolderPatterns = &[
    "data/*.csv",
    "data/*/*.png",
    "run/config.json",
    "run/provenance.json",
    "run/metrics.jsonl",
    "run/failed.csv",
    "run/inputs.json",
    "run/gains.csv",
    "run/folds/*/*",
    "run/folds/*/*/*",
    "run/dynamics/*",
    "run/image_tokenizer/*",
    "run/text_encoder/*",
    "run/checkpoints/*/*",
    "run/events.out.tfevents.*",
    "*.csv",
    "*.png",
    "*.ids.txt",
    "*.summary.json",
    "report.html",
];

/// Writes everything into the empty folder.
fn write(
    folder: &Path,
    settings: &DemoSettings,
    command_line: &[String],
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<DemoReport> {
    let &DemoSettings { shares, seed, ref sets, .. } = settings;
    let run_folder = folder.join("run");
    let ratings = folder.join("ratings.csv");
    let side = demo_config(sets)?.networks.image_side();
    progress.note(&format!(
        "generating {} images and corrupting {:.0}% of the training images",
        IMAGES.0 + IMAGES.1,
        100.0 * shares.corrupted()
    ));
    let data = folder.join("data");
    let settings = DataSetSettings { train: IMAGES.0, validation: IMAGES.1, side, shares, seed };
    let data_set = write_data_set_until(&data, &settings, interrupt)?;
    // The images were renamed into the folder without a sync, so the whole folder is synced here.
    sync_tree(&data)?;
    let quoted =
        |path: &Path| path_text(path.to_path_buf()).map(|text| serde_json::Value::from(text).to_string());
    let mut own =
        vec![format!("data_args.train_csv_path={}", quoted(&data_set.train_csv)?), format!("seed={seed}")];
    if !demo_config(sets)?.training.rule.rule.needs().caption_gain {
        own.push(format!("data_args.val_csv_path={}", quoted(&data_set.validation_csv)?));
    }
    let config = demo_config(&[&own, sets.as_slice()].concat())?;
    let directory = RunDirectory::create(&run_folder, &config, Existing::Refuse)?;
    let mut curves = Curves { inner: progress, points: [const { Vec::new() }; 3] };
    let training = train(&config, &directory, command_line, interrupt, &mut curves)?;
    let points = curves.points;
    let dynamics = recordings(&directory.dynamics())?;
    drop(directory);
    let request = ScoreRequest {
        config: None,
        checkpoint: run_folder.clone(),
        corpus: data_set.train_csv.clone(),
        format: None,
        out: ratings.clone(),
        rating_column: "rating".to_owned(),
        batch: config.training.batch,
        batch_normalized: false,
        by_rater: false,
        overwrite: false,
        images: true,
        note_column: Some("flaw".to_owned()),
        sets: Vec::new(),
    };
    let scoring = score(&request, interrupt, progress)?;
    let rows = read_ratings(&ratings, &dynamics, &run_folder.join(GAINS))?;
    let mut images = scoring.images.clone();
    // Under a rule with cross-fitted proxies, no proxy is trained jointly with the rater.
    if points.iter().any(|points| !points.is_empty()) {
        let losses = folder.join("losses.png");
        draw_losses(&losses, points)?;
        images.insert(0, losses);
    }
    let page = folder.join("report.html");
    let of_run = RunPage {
        run: run_folder,
        ratings: Some(ratings.clone()),
        rating_column: "rating".to_owned(),
        corpus: None,
        flaw_column: None,
    };
    let trained = "the run and its ratings are complete; pass --overwrite to run the demo again";
    let html = interrupt.while_reading(trained, || Ok(of_run.page()?.to_html()))?;
    write_atomic(&page, html.as_bytes())?;
    let subset = write_subset(
        &SubsetJob {
            ratings,
            options: RatingsOptions::default(),
            names: RatingColumns::default(),
            image_column: config.data.image_column.clone(),
            strategy: Strategy::FILTER,
            keep: Keep::Share(0.5),
            seed,
            out: folder.join("subset.csv"),
            data: None,
            format: None,
            caption_column: config.data.caption_column.clone(),
            overwrite: false,
        },
        interrupt,
    )?;
    let flaws = judge(&rows);
    let table = folder.join("flaws.csv");
    write_table(&table, &flaws)?;
    Ok(DemoReport { flaws, training, scoring, images, page, table, subset: subset.subset })
}

fn demo_config(sets: &[String]) -> Result<Config> {
    Config::parse("configs/demo.json", CONFIG, sets)
}

/// Forwards all progress and records the losses.
struct Curves<'a> {
    inner: &'a mut dyn Progress,
    points: [Vec<(f64, f64)>; 3],
}

impl Progress for Curves<'_> {
    fn counted(&mut self, what: &str, done: u64, total: u64) {
        self.inner.counted(what, done, total);
    }

    fn note(&mut self, sentence: &str) {
        self.inner.note(sentence);
    }

    fn step(&mut self, step: u64, total: u64, samples: usize, metrics: &Metrics) {
        self.inner.step(step, total, samples, metrics);
        // The last scale has most of the tokens; its curve shows whether detail is learned.
        let tags = ["loss/validation", "loss/validation_tail", "loss/train"];
        for (points, tag) in self.points.iter_mut().zip(tags) {
            points.extend(metrics.value(tag).map(|value| (step as f64, value)));
        }
    }

    fn validated(&mut self, steps: u64, metrics: &Metrics) {
        self.inner.validated(steps, metrics);
    }
}

struct Rated {
    rating: f64,
    /// The [`MEASURED`] quantities, so that a low value counts as a low rating; NaN if not measured.
    measured: [f64; 4],
    flaw: Flaw,
}

fn read_ratings(path: &Path, dynamics: &[EpochDynamics], gains: &Path) -> Result<Vec<Rated>> {
    let mut measured: HashMap<String, [f64; 4]> = HashMap::new();
    if let Some(last) = dynamics.last() {
        let average = last.column("average").unwrap_or_default();
        for (at, id) in last.ids.iter().enumerate() {
            let losses = dynamics.iter().filter_map(|epoch| Some(epoch.column("loss")?[at]));
            let loss = losses.sum::<f64>() / dynamics.len() as f64;
            measured.insert(id.clone(), [-loss, average[at], f64::NAN, f64::NAN]);
        }
    }
    if gains.exists() {
        for (id, HeldOut { gain, gain_empty, gradient_norm, .. }) in read_measured(gains)? {
            let gain = f64::midpoint(gain, gain_empty);
            measured.insert(id, [f64::NAN, f64::NAN, gain, -gradient_norm]);
        }
    }
    let mut reader = RatingsReader::open(path, &RatingColumns::default())?;
    let column = reader.header().carried().position(|column| column == "flaw");
    let column =
        column.ok_or_else(|| Error::input(path, format!("{} has no column `flaw`", path.display())))?;
    let mut rows = Vec::new();
    let mut row = Default::default();
    while reader.read(&mut row)? {
        let flaw = row.carried[column]
            .parse()
            .map_err(|_| Error::invalid("the demo's table has an unknown flaw"))?;
        let measured = measured.get(row.id.as_str()).copied().unwrap_or([f64::NAN; 4]);
        rows.push(Rated { rating: row.rating, measured, flaw });
    }
    Ok(rows)
}

fn write_table(path: &Path, flaws: &[FlawReport]) -> Result<()> {
    let used = used(flaws);
    let mut header = ["flaw", "records", "mean_percentile", "auroc"].map(str::to_owned).to_vec();
    header.extend(used.iter().map(|&at| format!("auroc_of_{}", MEASURED[at].replace(' ', "_"))));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let number = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    let row = |line: &FlawReport| {
        let mut row = vec![line.flaw.to_string(), line.records.to_string(), line.mean_percentile.to_string()];
        row.push(number(line.auroc));
        row.extend(used.iter().map(|&at| number(line.auroc_of_measured[at])));
        row
    };
    write_csv(path, &header, flaws.iter().map(row))
}

/// The [`MEASURED`] quantities that the run has.
pub(crate) fn used(flaws: &[FlawReport]) -> Vec<usize> {
    let has = |at: &usize| flaws.iter().any(|line| line.auroc_of_measured[*at].is_some());
    (0..MEASURED.len()).filter(has).collect()
}

/// How each kind of record was rated. A flaw is detected if its records are rated below clean ones.
fn judge(rows: &[Rated]) -> Vec<FlawReport> {
    let ratings: Vec<f64> = rows.iter().map(|row| row.rating).collect();
    Flaw::ALL
        .iter()
        .filter(|&&flaw| rows.iter().any(|row| row.flaw == flaw))
        .map(|&flaw| {
            let of: Vec<bool> = rows.iter().map(|row| row.flaw == flaw).collect();
            // The AUROC of the flaw against clean records; low values indicate the flaw.
            let auroc_of = |value: &dyn Fn(&Rated) -> f64| {
                let compared = rows.iter().filter(|row| row.flaw == flaw || row.flaw == Flaw::Clean);
                let (scores, positives): (Vec<f64>, Vec<bool>) =
                    compared.map(|row| (-value(row), row.flaw == flaw)).unzip();
                let known = flaw != Flaw::Clean && scores.iter().all(|score| score.is_finite());
                if known { auroc(&scores, &positives) } else { None }
            };
            FlawReport {
                flaw,
                records: of.iter().filter(|&&is| is).count(),
                mean_percentile: mean_percentile(&ratings, &of).unwrap_or(f64::NAN),
                auroc: auroc_of(&|row| row.rating),
                auroc_of_measured: std::array::from_fn(|at| auroc_of(&|row| row.measured[at])),
            }
        })
        .collect()
}

fn draw_losses(path: &Path, [validation, tail, train]: [Vec<(f64, f64)>; 3]) -> Result<()> {
    let series = |name: &str, points| Series::new(name, points);
    let curves = LossCurves {
        title: "Loss of the proxy".to_owned(),
        x_label: "step".to_owned(),
        y_label: "cross-entropy per token".to_owned(),
        series: vec![
            series("validation", validation),
            series("validation, last scale", tail),
            series("training", train),
        ],
        smoothing: 0.9,
    };
    loss_curves(&curves)?.write_png(path)
}

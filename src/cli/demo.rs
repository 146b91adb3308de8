//! `demo`: the whole pipeline on synthetic data.

use std::path::PathBuf;

use clap::Args;

use crate::{
    cli::{flaws::shares, watch::Watch},
    data::corruption::{FlawShares, Mixture},
    demo::{DemoReport, DemoSettings, MEASURED, demo, used},
    engine::cuda::DeviceChoice,
    error::Result,
    interrupt::Interrupt,
    report::text_table::TextTable,
};

/// The arguments of `demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArguments {
    /// Directory for everything the demo writes.
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    pub out: PathBuf,
    /// Seed of the data set, its flaws and the run.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Shares of the flaws of the training images, such as noise=5%,wrong_count=0.05; the others are 0. The flaws are those
    /// of plant, and translated_caption, wrong_attribute, wrong_count, wrong_position and swapped_subjects [default:
    /// plain, noise, blur, wrong_caption and duplicate, 32% in total].
    #[arg(long, value_name = "FLAW=SHARE,…", value_delimiter = ',')]
    pub flaws: Vec<String>,
    /// A named mixture instead of --flaws, 30% in total: pixels, text, both, mismatch (captions that are fine on their
    /// own) or duplicates.
    #[arg(long, value_name = "NAME", conflicts_with = "flaws")]
    pub mixture: Option<Mixture>,
    /// Replace an existing demo.
    #[arg(long)]
    pub overwrite: bool,
    /// Device of the networks: cpu, cuda, cuda:N, emulated or auto; `devices` lists them.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Set a key of the demo's configuration; may be repeated: --set rule=excess
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// If the folder is in use or cannot be written; [`Error::Interrupted`](crate::Error::Interrupted) if the user
/// interrupts.
pub(super) fn run(arguments: &DemoArguments, interrupt: &Interrupt) -> Result<()> {
    let command_line: Vec<String> = std::env::args().collect();
    let mut watch = Watch::new(arguments.out.join("run"));
    let DemoArguments { out, seed, flaws, mixture, overwrite, device, set } = arguments;
    let mut sets = set.clone();
    sets.extend(device.map(|device| format!("device={device}")));
    let shares = shares(flaws, *mixture, FlawShares::default(), true)?;
    let settings = DemoSettings { shares, seed: *seed, sets, overwrite: *overwrite };
    let report = demo(out, &settings, &command_line, interrupt, &mut watch)?;
    super::say(&table(&report))
}

fn table(report: &DemoReport) -> String {
    let used = used(&report.flaws);
    let mut header = ["flaw", "records", "mean percentile", "AUROC (low rating)"].map(str::to_owned).to_vec();
    header.extend(used.iter().map(|&at| format!("AUROC ({})", MEASURED[at])));
    let mut table = TextTable::new(header);
    let auroc = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
    for line in &report.flaws {
        let mut row = vec![line.flaw.to_string(), line.records.to_string()];
        row.extend([format!("{:.3}", line.mean_percentile), auroc(line.auroc)]);
        row.extend(used.iter().map(|&at| auroc(line.auroc_of_measured[at])));
        table.row(row);
    }
    let images: Vec<String> = report.images.iter().map(|path| path.display().to_string()).collect();
    let DemoReport { training, scoring, subset, page, table: file, .. } = report;
    let (subset, file, images, page) = (subset.display(), file.display(), images.join("\n"), page.display());
    format!("{training}\n{scoring}\nsubset:  {subset}\n\n{table}\n{file}\n{images}\n{page}")
}

//! `demo`: the whole loop on a built-in data set.

use std::path::PathBuf;

use clap::Args;

use crate::{
    cli::watch::Watch,
    demo::{DemoReport, demo},
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
    /// Fixes the data set, its flaws and the run.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Discard the demo that is in the directory.
    #[arg(long)]
    pub overwrite: bool,
    /// Where the networks are: cpu, cuda, cuda:N, emulated or auto; `devices` lists what there is.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Sets a key of the demo's configuration; as often as wanted: --set compat=released
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// Whatever keeps the demo from running; [`Error::Interrupted`](crate::Error::Interrupted) when the user stopped it.
pub(super) fn run(arguments: &DemoArguments, interrupt: &Interrupt) -> Result<()> {
    let command_line: Vec<String> = std::env::args().collect();
    let mut watch = Watch::new(arguments.out.join("run"));
    let DemoArguments { out, seed, overwrite, device, set } = arguments;
    let mut sets = set.clone();
    sets.extend(device.map(|device| format!("device={device}")));
    let report = demo(out, *seed, *overwrite, &sets, &command_line, interrupt, &mut watch)?;
    super::say(&table(&report))
}

fn table(report: &DemoReport) -> String {
    let mut table = TextTable::new([
        "record",
        "number",
        "mean percentile",
        "AUROC (flaw = low rating)",
        "of high loss",
        "of low average worth",
    ]);
    let auroc = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
    for line in &report.flaws {
        table.row([
            line.flaw.to_string(),
            line.records.to_string(),
            format!("{:.3}", line.mean_percentile),
            auroc(line.auroc),
            auroc(line.auroc_of_loss),
            auroc(line.auroc_of_average),
        ]);
    }
    let images: Vec<String> = report.images.iter().map(|path| path.display().to_string()).collect();
    let DemoReport { training, scoring, subset, page, table: file, .. } = report;
    let (subset, file, images, page) = (subset.display(), file.display(), images.join("\n"), page.display());
    format!("{training}\n{scoring}\nsubset:  {subset}\n\n{table}\n{file}\n{images}\n{page}")
}

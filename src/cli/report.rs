//! `report`: writes the HTML page of a run or a comparison.

use std::path::PathBuf;

use clap::Args;

use crate::{
    compare::{Comparison, arms::Rating, page::ComparisonPage},
    data::corpus::files::CorpusFiles,
    error::{Error, Result},
    files::write_atomic,
    interrupt::Interrupt,
    jobs::{Claim, output::Output},
    rater::page::RunPage,
    select,
    training::run_directory::RunDirectory,
};

/// The arguments of `report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArguments {
    /// A run of `train`, or the folder of a comparison.
    #[arg(long, value_name = "DIR")]
    of: PathBuf,
    /// Output [default: report.html in the folder].
    #[arg(long, value_name = "FILE.html")]
    out: Option<PathBuf>,
    /// For a run: ratings that `score` wrote, instead of those that the run recorded.
    #[arg(long, value_name = "FILE")]
    ratings: Option<PathBuf>,
    /// For a run: the rating column of --ratings [default: the one that `score` wrote, or `rating`].
    #[arg(long, value_name = "NAME")]
    rating_column: Option<String>,
    /// For a run: the rated corpus, if it is not the training set.
    #[arg(long, value_name = "CORPUS")]
    data: Option<PathBuf>,
    /// For a run: the column of planted flaws.
    #[arg(long, value_name = "NAME")]
    flaw_column: Option<String>,
    /// For a comparison: the ratings whose images are shown [default: the three with the lowest losses].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    sheets: Vec<String>,
    /// Replace an existing output of this command.
    #[arg(long)]
    overwrite: bool,
}

/// Runs the command.
///
/// # Errors
/// If the folder is neither, a part of it cannot be read, or the page cannot be written; [`Error::Interrupted`] if the
/// user interrupts.
pub(super) fn run(arguments: ReportArguments, interrupt: &Interrupt) -> Result<()> {
    let out = arguments.out.clone().unwrap_or_else(|| arguments.of.join("report.html"));
    let mut inputs: Vec<PathBuf> =
        [Some(&arguments.of), arguments.ratings.as_ref()].into_iter().flatten().cloned().collect();
    inputs.extend(arguments.data.iter().flat_map(|path| CorpusFiles::inputs(path, None)));
    if !arguments.of.exists() {
        return Err(Error::input(
            &arguments.of,
            format!("--of {}: no such folder; pass a run of `train` or a comparison", arguments.of.display()),
        ));
    }
    if !arguments.of.is_dir() {
        return Err(Error::input(
            &arguments.of,
            format!(
                "--of {}: is a file; pass the folder of a run of `train` or of a comparison",
                arguments.of.display()
            ),
        ));
    }
    let claim = Claim { command: "report", inputs: &inputs, overwrite: arguments.overwrite };
    Output::fresh(&claim, &out, &[])?.write(|output| {
        let html = interrupt.while_reading("nothing was written", || page(arguments))?;
        write_atomic(&output.staged(), html.as_bytes())
    })?;
    super::say(&out.display().to_string())
}

/// The page as HTML.
fn page(arguments: ReportArguments) -> Result<String> {
    let ReportArguments { of, ratings, rating_column, data, flaw_column, sheets, .. } = arguments;
    let page = if Comparison::is_in(&of) {
        if ratings.is_some() || data.is_some() || flaw_column.is_some() {
            return Err(Error::argument("--ratings, --data and --flaw-column are for the page of a run"));
        }
        let sheets = sheets.iter().map(|name| name.trim().parse()).collect::<Result<Vec<Rating>>>()?;
        ComparisonPage { folder: &of, sheets: &sheets }.page()?
    } else if RunDirectory::is_run(&of) {
        if !sheets.is_empty() {
            return Err(Error::argument("--sheets is for the page of a comparison"));
        }
        let rating_column = match &ratings {
            Some(table) => select::ratings::rating_column(table, rating_column)?,
            None if rating_column.is_some() => {
                return Err(Error::argument("--rating-column requires --ratings FILE"));
            }
            None => String::new(),
        };
        RunPage { run: of.clone(), ratings, rating_column, corpus: data, flaw_column }.page()?
    } else {
        return Err(Error::input(
            &of,
            format!("{} is neither a run of `train` nor a comparison that has finished a seed", of.display()),
        ));
    };
    Ok(page.to_html())
}

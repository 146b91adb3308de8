//! `report`: one page of a run or a comparison.

use std::path::PathBuf;

use clap::Args;

use crate::{
    compare::{Comparison, arms::Rating, page::ComparisonPage},
    error::{Error, Result},
    files::write_whole,
    rate::page::RunPage,
    train::run_directory::RunDirectory,
};

/// The arguments of `report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArguments {
    /// A run of `train`, or the folder of a comparison.
    #[arg(long, value_name = "DIR")]
    of: PathBuf,
    /// The page; report.html in the folder unless it is named.
    #[arg(long, value_name = "FILE.html")]
    out: Option<PathBuf>,
    /// Of a run: the ratings that `score` wrote, in place of those of the last epoch.
    #[arg(long, value_name = "FILE")]
    ratings: Option<PathBuf>,
    /// Of a run: the column of the ratings in it.
    #[arg(long, value_name = "NAME", default_value = "rating")]
    rating_column: String,
    /// Of a run: the corpus that was rated, if it is not what the run was trained on.
    #[arg(long, value_name = "FILE.csv")]
    data: Option<PathBuf>,
    /// Of a run: the column that says what is known of a pair.
    #[arg(long, value_name = "NAME")]
    flaw_column: Option<String>,
    /// Of a comparison: the ratings whose pictures are shown, in place of the three that come to the lowest losses.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    sheets: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// If the folder is neither, or a part of it cannot be read, or the page cannot be written.
pub fn run(arguments: ReportArguments) -> Result<()> {
    let ReportArguments { of, out, ratings, rating_column, data, flaw_column, sheets } = arguments;
    let page = if Comparison::is_in(&of) {
        if ratings.is_some() || data.is_some() || flaw_column.is_some() {
            return Err(Error::invalid(
                "--ratings, --data and --flaw-column are for the page of a run; a comparison knows its own",
            ));
        }
        let sheets = sheets.iter().map(|name| name.trim().parse()).collect::<Result<Vec<Rating>>>()?;
        ComparisonPage { folder: &of, sheets: &sheets }.page()?
    } else if RunDirectory::is_run(&of) {
        if !sheets.is_empty() {
            return Err(Error::invalid("--sheets is for the page of a comparison"));
        }
        RunPage { run: of.clone(), ratings, rating_column, corpus: data, flaw_column }.page()?
    } else {
        return Err(Error::invalid(format!(
            "{} is neither a run of `train` nor a comparison that has finished a seed",
            of.display()
        )));
    };
    let out = out.unwrap_or_else(|| of.join("report.html"));
    write_whole(&out, page.to_html().as_bytes())?;
    super::say(&out.display().to_string())
}

//! `select`: selects a subset of a rated corpus.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    data::corpus::CorpusFormat,
    interrupt::Interrupt,
    report::text_table::TextTable,
    select::{
        Keep, Parameter, RatingColumns, RatingsOptions, Strategy, SubsetJob, ratings::rating_column,
        write_subset,
    },
};

/// Select a subset of a rated corpus.
#[derive(Args, Clone, Debug)]
pub struct SelectArguments {
    /// The ratings: a .csv or .parquet file such as `score` writes, a .tsv file, or a folder of .parquet files, which are
    /// read as one table in the order of their names.
    #[arg(long, value_name = "FILE")]
    pub ratings: PathBuf,
    /// How much to keep: a share (50% or 0.5) or a number of rows (1200). 1 is one row; 1.0 and 100% are all rows.
    #[arg(long, value_name = "SHARE|COUNT", allow_hyphen_values = true)]
    pub keep: Keep,
    /// The selection strategy. Percentile 0 is the best-rated row; percentiles and shares are written as 30% or 0.3.
    #[arg(long, value_enum, default_value_t = StrategyName::Filter)]
    pub strategy: StrategyName,
    /// shift-gsample: share of all rows to drop from the top [default: 0.05; the paper's best is about 0.1].
    #[arg(long, value_name = "SHARE", allow_hyphen_values = true, value_parser = |text: &str| Parameter::DropTop.parse(text))]
    pub drop_top: Option<f64>,
    /// gsample, shift-gsample: mean of the Gaussian, a percentile [default: 0.5 for gsample, 0.3 for shift-gsample; the
    /// paper's best for shift-gsample is about 0.45].
    #[arg(long, value_name = "PERCENTILE", allow_hyphen_values = true, value_parser = |text: &str| Parameter::Mean.parse(text))]
    pub mean: Option<f64>,
    /// gsample, shift-gsample: standard deviation of the Gaussian [default: 0.2 for gsample, 0.25 for shift-gsample].
    #[arg(long, value_name = "WIDTH", allow_hyphen_values = true, value_parser = |text: &str| Parameter::Sigma.parse(text))]
    pub sigma: Option<f64>,
    /// block: percentile at which the window starts.
    #[arg(long, value_name = "PERCENTILE", allow_hyphen_values = true, value_parser = |text: &str| Parameter::Offset.parse(text))]
    pub offset: Option<f64>,
    /// filter: share of the best rated to sample from [default: 60%, or what is kept if that is more].
    #[arg(long, value_name = "SHARE", allow_hyphen_values = true, value_parser = |text: &str| Parameter::Within.parse(text))]
    pub within: Option<f64>,
    /// Seed of the sampling.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The subset, a .csv file; its ids and a summary are written to the same directory.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// The corpus to copy the kept rows from: verbatim if it is one CSV, else as a CSV of its columns.
    #[arg(long, value_name = "CORPUS")]
    pub data: Option<PathBuf>,
    /// Read --data as csv, jsonl, parquet, webdataset or imagefolder [default: detected by content].
    #[arg(long, value_name = "FORMAT", requires = "data")]
    pub format: Option<CorpusFormat>,
    /// The id column. If there is no column `id`: one of the common names (key, uid), or else the image's path.
    #[arg(long, value_name = "NAME", default_value = "id")]
    pub id_column: String,
    /// The column of image paths. Paths are relative to the folder of their table; for a subset in another folder they
    /// are made absolute (with --data, rows are not changed, and a warning says so).
    #[arg(long, value_name = "NAME", default_value = "image_save_path")]
    pub image_column: String,
    /// The caption column of --data; not read if --data is one CSV.
    #[arg(long, value_name = "NAME", default_value = "caption")]
    pub caption_column: String,
    /// The rating column [default: the one that `score` wrote, or `rating`].
    #[arg(long, value_name = "NAME")]
    pub rating_column: Option<String>,
    /// Skip and count malformed rows of the ratings and of --data, instead of ending with an error.
    #[arg(long)]
    pub skip_bad_rows: bool,
    /// Skip and count rows whose rating is missing (NaN, null, empty), instead of ending with an error.
    #[arg(long)]
    pub drop_nan: bool,
    /// Replace existing outputs.
    #[arg(long)]
    pub overwrite: bool,
}

/// The strategies by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StrategyName {
    /// A uniform sample.
    Random,
    /// The best-rated rows.
    TopK,
    /// A contiguous window of the ranking.
    Block,
    /// A uniform sample of the best-rated rows.
    Filter,
    /// A Gaussian sample over the percentiles.
    Gsample,
    /// A Gaussian sample over the percentiles, without the best-rated rows.
    ShiftGsample,
}

impl SelectArguments {
    /// The strategy with its parameters.
    ///
    /// # Errors
    /// If a parameter is given that the strategy does not have, or one is missing.
    pub fn strategy(&self) -> Result<Strategy> {
        use StrategyName as Name;
        let gaussian = matches!(self.strategy, Name::Gsample | Name::ShiftGsample);
        for (flag, given, belongs, owners) in [
            ("--drop-top", self.drop_top, self.strategy == Name::ShiftGsample, "shift-gsample"),
            ("--mean", self.mean, gaussian, "gsample and shift-gsample"),
            ("--sigma", self.sigma, gaussian, "gsample and shift-gsample"),
            ("--offset", self.offset, self.strategy == Name::Block, "block"),
            ("--within", self.within, self.strategy == Name::Filter, "filter"),
        ] {
            if given.is_some() && !belongs {
                bail!("{flag} belongs to {owners}; leave it out or choose another --strategy");
            }
        }
        let mut strategy = match (self.strategy, self.offset) {
            (Name::Random, _) => Strategy::Random,
            (Name::TopK, _) => Strategy::TopK,
            (Name::Block, Some(offset)) => Strategy::Block { offset },
            (Name::Block, None) => {
                bail!("--strategy block needs --offset, the percentile at which the window starts")
            }
            (Name::Filter, _) => self.within.map_or(Strategy::FILTER, |within| Strategy::Filter { within }),
            (Name::Gsample, _) => Strategy::GSAMPLE,
            (Name::ShiftGsample, _) => Strategy::SHIFT_GSAMPLE,
        };
        if let Strategy::ShiftGsample { drop_top, .. } = &mut strategy {
            *drop_top = self.drop_top.unwrap_or(*drop_top);
        }
        if let Strategy::Gsample { mean, sigma } | Strategy::ShiftGsample { mean, sigma, .. } = &mut strategy
        {
            *mean = self.mean.unwrap_or(*mean);
            *sigma = self.sigma.unwrap_or(*sigma);
        }
        Ok(strategy)
    }
}

/// Runs the subcommand.
///
/// # Errors
/// If the arguments are incompatible, an input cannot be used or an output cannot be written.
pub(super) fn run(arguments: SelectArguments, interrupt: &Interrupt) -> Result<()> {
    let strategy = arguments.strategy()?;
    let rating = rating_column(&arguments.ratings, arguments.rating_column)?;
    let by = format!("`{rating}` of {}", arguments.ratings.display());
    let job = SubsetJob {
        ratings: arguments.ratings,
        options: RatingsOptions { skip_bad_rows: arguments.skip_bad_rows, drop_nan: arguments.drop_nan },
        names: RatingColumns { id: arguments.id_column, rating },
        image_column: arguments.image_column,
        strategy,
        keep: arguments.keep,
        seed: arguments.seed,
        out: arguments.out,
        data: arguments.data,
        format: arguments.format,
        caption_column: arguments.caption_column,
        overwrite: arguments.overwrite,
    };
    let report = write_subset(&job, interrupt)?;
    let summary = &report.selection.summary;
    if let (Strategy::Filter { within }, Some(given)) = (strategy, arguments.within)
        && summary.kept as f64 > within * summary.rows as f64 + 0.5
    {
        tracing::warn!(
            "--within {given} is less than what is kept, so the {} best rated rows are kept, without sampling",
            summary.kept
        );
    }
    let left_out = &report.left_out;
    if left_out.total() > 0 {
        super::say(&format!(
            "{} rows in = {} rated + {} malformed + {} without a rating",
            summary.rows as u64 + left_out.total(),
            summary.rows,
            left_out.malformed,
            left_out.without_rating
        ))?;
    }
    super::say(&format!(
        "{} by {by}: kept {} of {} rows (seed {})\n",
        strategy.name(),
        summary.kept,
        summary.rows,
        arguments.seed
    ))?;
    let mut table = TextTable::new(["kept", "min", "25%", "median", "75%", "max", "mean"]);
    for (name, spread) in [("percentile", &summary.kept_percentiles), ("rating", &summary.kept_ratings)] {
        let numbers = [
            spread.minimum,
            spread.lower_quartile,
            spread.median,
            spread.upper_quartile,
            spread.maximum,
            spread.mean,
        ];
        table
            .row(std::iter::once(name.to_owned()).chain(numbers.iter().map(|number| format!("{number:.4}"))));
    }
    super::say(&table.to_string())?;
    let shares = summary.kept_share_by_decile.iter().map(|share| match share {
        Some(share) => format!("{:.0}%", share * 100.0),
        None => "–".to_owned(),
    });
    let shares = shares.collect::<Vec<_>>().join(" ");
    super::say(&format!("share kept per decile, best-rated first: {shares}\n"))?;
    for path in [&report.subset, &report.ids, &report.summary] {
        super::say(&format!("wrote {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        arguments: SelectArguments,
    }

    fn parsed(flags: &str) -> Result<SelectArguments, clap::Error> {
        let always = ["select", "--ratings", "ratings.csv", "--out", "subset.csv"];
        Program::try_parse_from(always.into_iter().chain(flags.split_whitespace()))
            .map(|program| program.arguments)
    }

    fn strategy(flags: &str) -> Result<Strategy, String> {
        parsed(&format!("--keep 50% {flags}")).unwrap().strategy().map_err(|error| error.to_string())
    }

    #[test]
    fn each_strategy_takes_its_own_parameters() {
        let shift = |drop_top, mean, sigma| Ok(Strategy::ShiftGsample { drop_top, mean, sigma });
        assert_eq!(strategy(""), Ok(Strategy::FILTER));
        assert_eq!(strategy("--within 70%"), Ok(Strategy::Filter { within: 0.7 }));
        assert_eq!(strategy("--strategy shift-gsample"), shift(0.05, 0.3, 0.25));
        assert_eq!(
            strategy("--strategy shift-gsample --drop-top 0.1 --mean 0.45 --sigma 0.2"),
            shift(0.1, 0.45, 0.2)
        );
        assert_eq!(strategy("--strategy shift-gsample --mean 0.6"), shift(0.05, 0.6, 0.25));
        assert_eq!(strategy("--strategy gsample"), Ok(Strategy::GSAMPLE));
        assert_eq!(strategy("--strategy block --offset 0.4"), Ok(Strategy::Block { offset: 0.4 }));
        assert_eq!(strategy("--strategy random"), Ok(Strategy::Random));
        assert_eq!(strategy("--strategy top-k"), Ok(Strategy::TopK));
        for (flags, expected) in [
            (
                "--strategy top-k --sigma 0.2",
                "--sigma belongs to gsample and shift-gsample; leave it out or choose another --strategy",
            ),
            (
                "--strategy gsample --drop-top 0.1",
                "--drop-top belongs to shift-gsample; leave it out or choose another --strategy",
            ),
            ("--offset 0.1", "--offset belongs to block; leave it out or choose another --strategy"),
            (
                "--strategy top-k --within 0.5",
                "--within belongs to filter; leave it out or choose another --strategy",
            ),
            (
                "--strategy block",
                "--strategy block needs --offset, the percentile at which the window starts",
            ),
        ] {
            assert_eq!(strategy(flags), Err(expected.to_owned()));
        }
    }

    #[test]
    fn what_to_keep_is_checked_while_parsing() {
        let refused = parsed("--keep 0%").err().map(|error| error.to_string()).unwrap_or_default();
        assert!(
            refused.contains("the share to keep is 0, but it must be above 0 and at most 1 (100%)"),
            "{refused}"
        );
        assert_eq!(parsed("--keep 1200").map(|arguments| arguments.keep).ok(), Some(Keep::Count(1200)));
        assert!(parsed("").is_err(), "--keep is required");
    }

    #[test]
    fn percentages_and_shares_are_alike_and_all_else_is_refused_by_flag_and_value() {
        let value = |flag: &str, text: &str| {
            let strategy = if flag == "--offset" { "block" } else { "shift-gsample" };
            let all = format!("--keep 50% --strategy {strategy} {flag} {text}");
            parsed(&all).map(|found| match flag {
                "--mean" => found.mean,
                "--sigma" => found.sigma,
                "--drop-top" => found.drop_top,
                _ => found.offset,
            })
        };
        for flag in ["--mean", "--sigma", "--drop-top", "--offset"] {
            for thousandths in 1..1000 {
                let (percent, share) =
                    (format!("{}%", f64::from(thousandths) / 10.0), f64::from(thousandths) / 1000.0);
                assert_eq!(value(flag, &percent).unwrap(), Some(share), "{flag} {percent}");
                assert_eq!(value(flag, &share.to_string()).unwrap(), Some(share), "{flag} {share}");
            }
            for text in
                ["30", "-3", "-3%", "101%", "1.01", "nan", "inf", "-inf", "half", "0,3", "%", "--seed", "3e1"]
            {
                let refused = value(flag, text).unwrap_err().to_string();
                assert!(refused.contains(flag) && refused.contains(text), "{flag} {text}: {refused}");
            }
            let refused = value(flag, "30").unwrap_err().to_string();
            assert!(refused.contains("write 30%"), "{refused}");
        }
        assert_eq!(value("--mean", "0").unwrap(), Some(0.0));
        assert_eq!(value("--mean", "100%").unwrap(), Some(1.0));
        assert_eq!(value("--sigma", "1").unwrap(), Some(1.0));
        assert_eq!(value("--drop-top", "0%").unwrap(), Some(0.0));
        for (flag, text) in [("--sigma", "0"), ("--drop-top", "100%"), ("--offset", "1")] {
            assert!(value(flag, text).is_err(), "{flag} {text}");
        }
        for text in ["-3", "-3%", "101%", "1.5", "nan", "0%", "half"] {
            let refused = parsed(&format!("--keep {text}")).err().map(|error| error.to_string()).unwrap();
            assert!(refused.contains("--keep") && refused.contains(text), "{refused}");
        }
        assert_eq!(parsed("--keep 30%").unwrap().keep, parsed("--keep 0.3").unwrap().keep);
    }

    #[test]
    fn the_command_writes_the_three_files() {
        let folder = tempfile::tempdir().unwrap();
        let ratings = folder.path().join("ratings.csv");
        std::fs::write(&ratings, "id,rating,caption\na,1,x\nb,2,y\nc,3,z\nd,4,w\n").unwrap();
        let mut arguments = parsed("--keep 2 --strategy top-k").unwrap();
        arguments.ratings = ratings;
        arguments.out = folder.path().join("subset.csv");
        let never = Interrupt::default();
        run(arguments.clone(), &never).unwrap();
        assert_eq!(std::fs::read_to_string(&arguments.out).unwrap(), "id,caption\nc,z\nd,w\n");
        assert_eq!(std::fs::read_to_string(folder.path().join("subset.ids.txt")).unwrap(), "c\nd\n");
        assert!(folder.path().join("subset.summary.json").is_file());
        assert!(run(arguments, &never).unwrap_err().to_string().contains("already exists"));
    }
}

//! Rates a corpus from Rust. Trains a rater on it, unless there is a run already, rates every pair, and prints the ten
//! best-rated and the ten worst-rated pairs. `KEY=VALUE` sets a key of the configuration, like `--set`.
//!
//! ```sh
//! cargo run --release --example rate -- corpus.csv runs/mine ep=2
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example prints")]

use std::{collections::HashMap, env, path::Path, process::ExitCode};

use alchemist_engine::{
    Error, Result,
    config::Config,
    data::Corpus,
    interrupt::Interrupt,
    rater::{
        scorer::{ScoreRequest, score},
        trainer::train,
    },
    select::{Ranking, RatingColumns, RatingsTable},
    training::run_directory::{Existing, RunDirectory},
};

/// The number of pairs that are printed from each end of the ranking.
const SHOWN: usize = 10;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().collect();
    let [_, corpus, run, sets @ ..] = &arguments[..] else {
        eprintln!("usage: rate CORPUS.csv RUN [KEY=VALUE]...");
        return ExitCode::from(2);
    };
    match rate(Path::new(corpus), Path::new(run), sets) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn rate(corpus: &Path, run: &Path, sets: &[String]) -> Result<()> {
    // `Interrupt::from_signals` would save everything and stop on Ctrl-C. `()` reports no progress.
    let interrupt = Interrupt::default();
    let text = include_str!("../configs/demo.json");
    let data = format!("data_args.train_csv_path={}", corpus.display());
    let config = Config::parse("configs/demo.json", text, &[&[data], sets].concat())?;
    if !RunDirectory::is_run(run) {
        let directory = RunDirectory::create(run, &config, Existing::Refuse)?;
        println!("{}", train(&config, &directory, &[], &interrupt, &mut ())?);
    }
    let request = ScoreRequest {
        checkpoint: run.to_path_buf(),
        config: None,
        corpus: corpus.to_path_buf(),
        format: None,
        out: run.join("ratings.csv"),
        rating_column: "rating".to_owned(),
        batch: 64,
        batch_normalized: false,
        by_rater: false,
        overwrite: true,
        images: false,
        note_column: None,
        sets: Vec::new(),
    };
    println!("{}", score(&request, &interrupt, &mut ())?);

    let records = Corpus::open(corpus, &config.columns())?.read_all()?;
    let captions: HashMap<String, String> =
        records.into_iter().map(|record| (record.id, record.caption)).collect();
    let columns = RatingColumns { id: config.data.id_column.clone(), ..RatingColumns::default() };
    let table = RatingsTable::read(&request.out, &columns)?;
    let ranking = Ranking::new(&table.ratings)?;
    let order = ranking.order();
    for (title, rows) in
        [("best", &order[..SHOWN.min(order.len())]), ("worst", &order[order.len().saturating_sub(SHOWN)..])]
    {
        println!("\n{title}");
        for &row in rows {
            let row = row as usize;
            let id = table.ids.get(row);
            let caption =
                captions.get(id).ok_or_else(|| Error::invalid(format!("{id} is not in the corpus")))?;
            println!("{:>9.4}  {id}  {caption}", table.ratings[row]);
        }
    }
    Ok(())
}

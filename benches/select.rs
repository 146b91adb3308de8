//! Selects half of a large corpus by its ratings: time and peak memory of the whole job, from table to subset.
//!
//!     cargo bench --bench select                      # 30 million rows, about 2 GiB of files in a temporary folder
//!     ROWS=1000000 cargo bench --bench select

#![expect(clippy::print_stdout, reason = "the program prints its result")]

mod memory;

use std::{
    fs::File,
    io::{BufWriter, Write},
    time::Instant,
};

use alchemist_engine::{
    interrupt::Interrupt,
    select::{Keep, RatingColumns, RatingsOptions, Strategy, SubsetJob, write_subset},
};
use memory::peak_mebibytes;

const SHIFT_GSAMPLE: Strategy = Strategy::ShiftGsample { drop_top: 0.1, mean: 0.45, sigma: 0.2 };

fn main() {
    let rows: u64 = std::env::var("ROWS").map_or(30_000_000, |rows| rows.parse().expect("ROWS is a number"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let ratings = folder.path().join("ratings.csv");
    let mut table = BufWriter::new(File::create(&ratings).expect("the temporary folder can be written"));
    table.write_all(b"id,rating,image_save_path\n").expect("there is space");
    for row in 0..rows {
        // Ratings in an order other than that of the rows.
        let rating = row.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        writeln!(table, "{row:09},{rating},images/{:03}/{row:09}.jpg", row / 100_000)
            .expect("there is space");
    }
    table.into_inner().expect("there is space");

    let job = SubsetJob {
        ratings,
        options: RatingsOptions::default(),
        names: RatingColumns { id: "id".to_owned(), rating: "rating".to_owned() },
        image_column: "image_save_path".to_owned(),
        strategy: SHIFT_GSAMPLE,
        keep: Keep::Share(0.5),
        seed: 0,
        out: folder.path().join("subset.csv"),
        data: None,
        format: None,
        caption_column: "caption".to_owned(),
        overwrite: false,
    };
    let started = Instant::now();
    let report = write_subset(&job, &Interrupt::default()).expect("the table can be used");
    let seconds = started.elapsed().as_secs_f64();
    let kept = report.selection.summary.kept;
    println!("select/shift_gsample: {kept} of {rows} rows in {seconds:.1} s, peak {} MiB", peak_mebibytes());
}

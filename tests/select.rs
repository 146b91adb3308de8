//! Choosing rows: exact counts, the distribution, ties and boundaries, every message.

use alchemist_engine::{
    Error,
    select::{Keep, Ranking, Selection, Strategy, select},
};
use proptest::prelude::*;

const STRATEGIES: [Strategy; 5] = [
    Strategy::Random,
    Strategy::TopK,
    Strategy::Block { offset: 0.0 },
    Strategy::Gsample { mean: 0.5, sigma: 0.2 },
    Strategy::ShiftGsample { drop_top: 0.1, mean: 0.45, sigma: 0.2 },
];

/// Ratings of `rows` rows in an order that is not theirs: row `r` has the rating `-(r·7919 mod rows)`.
fn shuffled_ratings(rows: usize) -> Vec<f64> {
    (0..rows).map(|row| -((row * 7919 % rows) as f64)).collect()
}

fn message<T>(outcome: Result<T, Error>) -> String {
    outcome.err().expect("this must be refused").to_string()
}

#[test]
fn every_strategy_gives_the_exact_count_on_odd_sizes() {
    for rows in [1usize, 2, 3, 7, 100, 10_007] {
        let ratings = shuffled_ratings(rows);
        for strategy in STRATEGIES {
            let available = rows - strategy.dropped(rows);
            let mut counts = vec![1, available / 3, available / 2, available - 1, available];
            counts.retain(|&count| count > 0);
            for count in counts {
                let selection = select(&ratings, &strategy, Keep::Count(count as u64), 3).unwrap();
                assert_eq!(selection.kept.len(), count, "{strategy:?} of {rows}");
                assert!(selection.kept.windows(2).all(|pair| pair[0] < pair[1]), "ascending and distinct");
                assert!(selection.kept.iter().all(|&row| (row as usize) < rows));
                assert_eq!(selection.summary.kept, count);
                assert_eq!(selection.summary.dropped, strategy.dropped(rows));
            }
        }
    }
}

#[test]
fn a_gaussian_far_away_and_thin_still_gives_the_exact_count() {
    let ratings = shuffled_ratings(1000);
    for (mean, sigma) in [(0.5, 1e-6), (-40.0, 0.01), (0.0, 1e-3), (1e6, 0.5)] {
        let strategy = Strategy::ShiftGsample { drop_top: 0.25, mean, sigma };
        for count in [1, 333, 749, 750] {
            let selection = select(&ratings, &strategy, Keep::Count(count), 1).unwrap();
            assert_eq!(selection.kept.len() as u64, count);
        }
    }
    // So thin a Gaussian keeps the rows nearest to its mean: ranks 490 to 509 around percentile 0.5.
    let strategy = Strategy::Gsample { mean: 0.4995, sigma: 1e-6 };
    let selection = select(&ratings, &strategy, Keep::Count(20), 1).unwrap();
    assert_eq!(selection.summary.kept_percentiles.minimum, 0.490);
    assert_eq!(selection.summary.kept_percentiles.maximum, 0.509);
}

#[test]
fn one_seed_gives_one_set_and_another_seed_another() {
    let ratings = shuffled_ratings(10_007);
    for strategy in [Strategy::Random, STRATEGIES[3], STRATEGIES[4]] {
        let draw = |seed| select(&ratings, &strategy, Keep::Share(0.3), seed).unwrap().kept;
        assert_eq!(draw(5), draw(5));
        let (first, second) = (draw(5), draw(6));
        let shared = first.iter().filter(|row| second.binary_search(row).is_ok()).count();
        assert!(shared < first.len() * 9 / 10, "{strategy:?}: {shared} of {} shared", first.len());
    }
}

#[test]
fn threads_do_not_change_the_set() {
    let ratings = shuffled_ratings(10_007);
    for strategy in STRATEGIES {
        let draw = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| select(&ratings, &strategy, Keep::Share(0.4), 9).unwrap())
        };
        assert_eq!(draw(1), draw(2));
    }
}

#[test]
fn top_k_keeps_the_highest_ratings_and_ties_go_to_the_earlier_row() {
    let ratings = [0.5, 2.0, 0.5, -1.0, 2.0, 0.5];
    let kept = |count| select(&ratings, &Strategy::TopK, Keep::Count(count), 0).unwrap().kept;
    assert_eq!(kept(1), [1]);
    assert_eq!(kept(2), [1, 4]);
    assert_eq!(kept(3), [0, 1, 4]);
    assert_eq!(kept(4), [0, 1, 2, 4]);
    assert_eq!(Ranking::new(&ratings).unwrap().order(), [1, 4, 0, 2, 5, 3]);
    assert_eq!(Ranking::new(&[0.0, -0.0, 0.0]).unwrap().order(), [0, 1, 2], "both zeros are one rating");
    assert_eq!(Ranking::new(&[-1.0, 1e300, f64::MIN_POSITIVE, -1e300]).unwrap().order(), [1, 2, 0, 3]);
}

#[test]
fn a_block_is_the_window_of_the_ranking_that_was_asked_for() {
    let ratings: Vec<f64> = (0..10).map(|row| -f64::from(row)).collect();
    let block =
        |offset, keep| select(&ratings, &Strategy::Block { offset }, keep, 0).map(|chosen| chosen.kept);
    assert_eq!(block(0.0, Keep::Count(3)).unwrap(), [0, 1, 2]);
    assert_eq!(block(0.4, Keep::Share(0.3)).unwrap(), [4, 5, 6]);
    assert_eq!(block(0.7, Keep::Count(3)).unwrap(), [7, 8, 9]);
    assert_eq!(
        message(block(0.8, Keep::Count(3))),
        "a block of 3 rows from offset 0.8 (rank 8) runs past the last of 10 rows; begin earlier or keep fewer"
    );
}

#[test]
fn the_dropped_top_is_never_kept_and_the_boundary_is_a_whole_row() {
    let ratings: Vec<f64> = (0..100).map(|row| -f64::from(row)).collect();
    for (drop_top, first) in [(0.29, 29), (0.07, 7), (0.0, 0), (0.995, 100 - 1)] {
        let strategy = Strategy::ShiftGsample { drop_top, mean: 0.0, sigma: 1e-4 };
        if strategy.dropped(100) == 100 {
            continue;
        }
        let kept = select(&ratings, &strategy, Keep::Count(1), 0).unwrap().kept;
        assert_eq!(kept, [first], "the nearest row to percentile 0 that was not dropped");
    }
    let strategy = Strategy::ShiftGsample { drop_top: 0.3, mean: 0.45, sigma: 0.2 };
    let selection = select(&ratings, &strategy, Keep::Count(70), 0).unwrap();
    assert_eq!(selection.kept, (30..100).collect::<Vec<u32>>());
}

/// The chance of each rank to be among `count` rows drawn without replacement with `weights`, to first order in 1/n:
/// with exponential keys, rank i is kept when Exp(1) < t·w_i, where t solves Σ (1 − exp(−t·w_i)) = count.
fn inclusion(weights: &[f64], count: f64) -> Vec<f64> {
    let (mut low, mut high) = (0.0, 1.0);
    let expected = |t: f64| weights.iter().map(|weight| 1.0 - (-t * weight).exp()).sum::<f64>();
    while expected(high) < count {
        high *= 2.0;
    }
    for _ in 0..200 {
        let middle = (low + high) / 2.0;
        if expected(middle) < count { low = middle } else { high = middle }
    }
    weights.iter().map(|weight| 1.0 - (-low * weight).exp()).collect()
}

#[test]
fn shift_gsample_follows_the_density_of_equation_11() {
    let rows = 20_000usize;
    let ratings = shuffled_ratings(rows);
    let (drop_top, mean, sigma) = (0.1, 0.45, 0.2);
    let weights: Vec<f64> = (2_000..rows)
        .map(|rank| {
            let percentile = rank as f64 / rows as f64;
            (-(percentile - mean) * (percentile - mean) / (2.0 * sigma * sigma)).exp()
        })
        .collect();
    for count in [1_000usize, 8_000] {
        let chance = inclusion(&weights, count as f64);
        let mut observed = [0.0f64; 20];
        let draws = 4;
        for seed in 0..draws {
            let strategy = Strategy::ShiftGsample { drop_top, mean, sigma };
            let kept = select(&ratings, &strategy, Keep::Count(count as u64), seed).unwrap().kept;
            // Row r was built to have rank r·7919 mod rows.
            kept.iter().for_each(|&row| observed[row as usize * 7919 % rows / 1000] += 1.0);
        }
        for (twentieth, observed) in observed.iter().enumerate() {
            let range = twentieth * 1000..(twentieth + 1) * 1000;
            let chances = range.filter(|rank| *rank >= 2_000).map(|rank| chance[rank - 2_000]);
            let (expected, variance) = chances.fold((0.0, 0.0), |(mean, variance), chance| {
                (mean + chance, variance + chance * (1.0 - chance))
            });
            let (expected, deviation) = (expected * draws as f64, (variance * draws as f64).sqrt());
            assert!(
                (observed - expected).abs() <= 4.5 * deviation,
                "{count} rows, twentieth {twentieth}: {observed} kept, {expected:.1} ± {deviation:.1} expected"
            );
        }
        assert_eq!(observed[0] + observed[1], 0.0, "the top tenth is dropped");
    }
}

#[test]
fn random_takes_every_row_equally_often() {
    let ratings = shuffled_ratings(50);
    let mut taken = [0u32; 50];
    for seed in 0..4000 {
        let kept = select(&ratings, &Strategy::Random, Keep::Count(10), seed).unwrap().kept;
        kept.iter().for_each(|&row| taken[row as usize] += 1);
    }
    // Each is binomial(4000, 0.2): 800 ± 25.3.
    assert!(taken.iter().all(|&count| (800 - 110..=800 + 110).contains(&count)), "{taken:?}");
}

#[test]
fn the_summary_says_what_was_kept() {
    let ratings: Vec<f64> = (0..20).map(|row| 20.0 - f64::from(row)).collect();
    let Selection { kept, summary } = select(&ratings, &Strategy::TopK, Keep::Share(0.25), 0).unwrap();
    assert_eq!(kept, [0, 1, 2, 3, 4]);
    assert_eq!((summary.rows, summary.kept, summary.dropped), (20, 5, 0));
    let percentiles = summary.kept_percentiles;
    assert_eq!((percentiles.minimum, percentiles.maximum), (0.0, 0.2));
    assert_eq!(
        (percentiles.lower_quartile, percentiles.median, percentiles.upper_quartile),
        (0.05, 0.1, 0.15)
    );
    assert!((percentiles.mean - 0.1).abs() < 1e-15);
    assert_eq!((summary.kept_ratings.minimum, summary.kept_ratings.maximum), (16.0, 20.0));
    assert_eq!(summary.kept_share_by_decile[..3], [Some(1.0), Some(1.0), Some(0.5)]);
    assert_eq!(summary.kept_share_by_decile[3..], [Some(0.0); 7]);
    // Of three rows, ranks 0, 1, 2 fall into tenths 0, 3, 6; the others have no row.
    let summary = select(&[3.0, 2.0, 1.0], &Strategy::TopK, Keep::Count(1), 0).unwrap().summary;
    let filled: Vec<usize> =
        (0..10).filter(|&decile| summary.kept_share_by_decile[decile].is_some()).collect();
    assert_eq!(filled, [0, 3, 6]);
}

#[test]
fn keep_reads_shares_and_counts() {
    let keep = |text: &str| text.parse::<Keep>();
    assert_eq!(keep("50%").unwrap(), Keep::Share(0.5));
    assert_eq!(keep("0.5").unwrap(), Keep::Share(0.5));
    assert_eq!(keep("100%").unwrap(), Keep::Share(1.0));
    assert_eq!(keep("1.0").unwrap(), Keep::Share(1.0));
    assert_eq!(keep("1").unwrap(), Keep::Count(1));
    assert_eq!(keep("1200").unwrap(), Keep::Count(1200));
    assert_eq!(Keep::Share(0.5).count(7).unwrap(), 4);
    assert_eq!(Keep::Share(0.29).count(100).unwrap(), 29);
    for text in ["", "half", "50 percent", "-3", "%", "5,5"] {
        let outcome = message(keep(text));
        let outside = "the share to keep is -3, but it must be above 0 and at most 1 (100%)";
        let unreadable =
            format!("`{text}` is neither a share such as 50% or 0.5 nor a number of rows such as 1200");
        assert_eq!(outcome, if text == "-3" { outside.to_owned() } else { unreadable });
    }
    assert_eq!(
        message(keep("150%")),
        "the share to keep is 1.5, but it must be above 0 and at most 1 (100%)"
    );
    assert_eq!(message(keep("0.0")), "the share to keep is 0, but it must be above 0 and at most 1 (100%)");
    assert_eq!(message(keep("NaN")), "the share to keep is NaN, but it must be above 0 and at most 1 (100%)");
    assert_eq!(message(keep("0")), "the number of rows to keep is 0, but it must be at least 1");
}

#[test]
fn parameters_out_of_range_are_refused_in_one_sentence() {
    let ratings = shuffled_ratings(10);
    let refused = |strategy, keep| message(select(&ratings, &strategy, keep, 0));
    let shift = |drop_top, mean, sigma| Strategy::ShiftGsample { drop_top, mean, sigma };
    let half = Keep::Share(0.5);
    assert_eq!(
        refused(shift(0.6, 0.5, 0.2), half),
        "cannot keep 5 rows: only 4 of 10 are available after excluding the 6 highest-rated; keep fewer"
    );
    assert_eq!(
        refused(Strategy::Random, Keep::Count(11)),
        "cannot keep 11 rows: only 10 of 10 are available; keep fewer"
    );
    assert_eq!(
        refused(Strategy::TopK, Keep::Count(0)),
        "the number of rows to keep is 0, but it must be at least 1"
    );
    assert_eq!(
        refused(Strategy::TopK, Keep::Share(0.01)),
        "1% of 10 rows is less than half a row; keep more"
    );
    for share in [0.0, -0.5, 1.01, f64::NAN] {
        assert_eq!(
            refused(Strategy::TopK, Keep::Share(share)),
            format!("the share to keep is {share}, but it must be above 0 and at most 1 (100%)")
        );
    }
    for sigma in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let expected = format!("sigma is {sigma}, but it must be a number above 0");
        assert_eq!(refused(shift(0.0, 0.5, sigma), half), expected);
        assert_eq!(refused(Strategy::Gsample { mean: 0.5, sigma }, half), expected);
    }
    for drop_top in [-0.1, 1.0, f64::NAN] {
        assert_eq!(
            refused(shift(drop_top, 0.5, 0.2), half),
            format!("drop_top is {drop_top}, but it must be at least 0 and below 1")
        );
    }
    assert_eq!(refused(shift(0.0, f64::NAN, 0.2), half), "mean is NaN, but it must be a finite number");
    assert_eq!(
        refused(Strategy::Block { offset: 1.0 }, half),
        "offset is 1, but it must be at least 0 and below 1"
    );
    assert_eq!(
        message(select(&[1.0, f64::NAN], &Strategy::TopK, half, 0)),
        "the rating of row 2 is NaN, not a finite number"
    );
    assert_eq!(message(select(&[], &Strategy::TopK, half, 0)), "there are no ratings to rank");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_ratings_are_ranked_from_high_to_low(ratings in proptest::collection::vec(-1e6f64..1e6, 1..200)) {
        let ranking = Ranking::new(&ratings).unwrap();
        for pair in ranking.order().windows(2) {
            let (left, right) = (ratings[pair[0] as usize], ratings[pair[1] as usize]);
            prop_assert!(left > right || (left == right && pair[0] < pair[1]));
        }
    }
}

//! Learning rates and the order of samples: fixtures that are a single file.

use alchemist_engine::training::{
    sampler::{ReleasedOrder, ReleasedSampler},
    schedule::Schedule,
};
use serde_json::Value;

use super::{fixture_root, named_root, sizes};

/// One figure of a fixture that is a single file rather than a folder.
fn report_file(name: &str, what: &str, worst: f64, limit: f64) {
    println!("parity {name:<24} {what:<42} worst {worst:.2e} (limit {limit:.0e})");
    assert!(worst <= limit, "{name}: {what} is off by {worst:e}, more than {limit:e}");
}

/// A fixture that is one JSON file in the chosen folder; `None`, which is said, where a folder that the user names has none.
fn json_fixture(name: &str) -> Option<Value> {
    let path = fixture_root().join(name);
    if named_root().is_some() && !path.exists() {
        println!("parity {name:<24} skipped: it is not in {}", fixture_root().display());
        return None;
    }
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Some(serde_json::from_slice(&text).expect("the fixture is JSON"))
}

#[test]
fn schedules_match_the_released_code() {
    let Some(fixture) = json_fixture("lr_schedule.json") else { return };
    let argument = |name: &str| fixture["args"][name].as_f64().expect("an argument is a number");
    let (mut worst, mut compared) = (0.0f64, 0);
    for (name, rows) in fixture["schedules"].as_object().expect("schedules by name") {
        let schedule = Schedule {
            shape: name.parse().unwrap(),
            peak: argument("peak_lr"),
            warmup: argument("wp_it"),
            start: argument("wp0"),
            end: argument("wpe"),
            weight_decay: argument("wd"),
            weight_decay_end: argument("wd_end"),
            iterations: fixture["args"]["max_it"].as_u64().expect("a count"),
        };
        for row in rows.as_array().expect("rows of a schedule") {
            let rates = schedule.at(row[0].as_u64().expect("an iteration"));
            for (found, expected) in [(rates.learning_rate, &row[1]), (rates.weight_decay, &row[2])] {
                let expected = expected.as_f64().expect("a rate is a number");
                worst = worst.max((found - expected).abs() / expected.abs().max(1e-300));
                compared += 1;
            }
        }
    }
    assert!(compared > 0, "the fixture contains no schedule");
    report_file("lr_schedule.json", &format!("{compared} rates"), worst, 1e-9);
}

#[test]
fn sampler_matches_the_released_code() {
    let Some(cases) = json_fixture("sampler.json") else { return };
    let cases = cases.as_object().expect("cases by name");
    assert!(!cases.is_empty(), "the fixture contains no case");
    for (name, case) in cases {
        let setting = |key: &str| -> Option<usize> {
            let (_, rest) = name.split_once(&format!("{key}="))?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        let order = ReleasedOrder {
            dataset_len: setting("len").expect("a length"),
            global_batch: setting("glb_bs").expect("a batch size"),
            world_size: setting("world").unwrap_or(1),
            rank: setting("rank").unwrap_or(0),
            seed: 0,
            start_epoch: 0,
            fill_last: true,
            shuffle: true,
        };
        let mut sampler = ReleasedSampler::new(order).unwrap();
        for (step, batch) in
            case.get("batches").unwrap_or(case).as_array().expect("batches").iter().enumerate()
        {
            assert_eq!(sampler.batch(step as u64).unwrap(), sizes(batch), "{name}, step {step}");
        }
    }
    report_file("sampler.json", &format!("{} cases equal", cases.len()), 0.0, 0.0);
}

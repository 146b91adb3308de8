//! A training step and scoring, at the sizes of PyTorch's CPU figures.
//!
//! A step does what the upstream `train_step` does: quantize both batches, both proxy passes, two rater passes, both
//! updates, drop-path on. `PEAK_MEMORY=tiny-demo` (or another case's name) runs a few steps and scorings of that case
//! and prints the process's peak memory instead. `benches/pytorch/step.py` does the same work in PyTorch.

#![expect(clippy::print_stdout, reason = "PEAK_MEMORY prints the peak memory")]

mod cases;
mod memory;

use std::hint::black_box;

use alchemist_engine::{
    engine::{Parameters, Tape},
    models::{Mode, Rater, Weighing},
    tokens::batch::Batch,
};
use cases::cases;
use criterion::{Criterion, SamplingMode, Throughput};
use memory::peak_mebibytes;

fn train_step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("train_step");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    for case in cases() {
        let (mut bilevel, quantizer) = (case.bilevel(), case.quantizer());
        let features = [case.features(case.batch, 10), case.features(case.batch, 20)];
        let mut step = 0;
        group.throughput(Throughput::Elements(case.batch as u64));
        group.bench_function(case.name, |bencher| {
            bencher.iter(|| {
                step += 1;
                case.step(&mut bilevel, &quantizer, &features, step);
            });
        });
    }
    group.finish();
}

fn score(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("score");
    group.sample_size(20);
    for case in cases() {
        let (rater, parameters) = case.rater();
        let batch = case.batch(&case.quantizer(), &case.features(case.score_batch, 10));
        group.throughput(Throughput::Elements(case.score_batch as u64));
        group.bench_function(case.name, |bencher| {
            bencher.iter(|| score_batch(&rater, &parameters, &batch));
        });
    }
    group.finish();
}

fn score_batch(rater: &Rater, parameters: &Parameters, batch: &Batch) {
    let mut tape = Tape::inference(parameters);
    let input = batch.input().expect("the input was made");
    let rated = rater.forward(&mut tape, input, &batch.text, Weighing::Released, Mode::Evaluate);
    black_box(rated.expect("scoring works").score.into_value());
}

/// Runs one case a few times and prints the peak memory of the process.
fn peak_memory(name: &str) {
    let names: Vec<&str> = cases().iter().map(|case| case.name).collect();
    let found = cases().into_iter().find(|case| case.name == name);
    let case = found.unwrap_or_else(|| panic!("PEAK_MEMORY names one of {names:?}, not {name}"));
    let (rater, parameters) = case.rater();
    let batch = case.batch(&case.quantizer(), &case.features(case.score_batch, 10));
    (0..3).for_each(|_| score_batch(&rater, &parameters, &batch));
    println!("score/{name}: peak {} MiB", peak_mebibytes());
    let (mut bilevel, quantizer) = (case.bilevel(), case.quantizer());
    let features = [case.features(case.batch, 10), case.features(case.batch, 20)];
    (0..3).for_each(|step| case.step(&mut bilevel, &quantizer, &features, step));
    println!("train_step/{name}: peak {} MiB", peak_mebibytes());
}

fn main() {
    if let Ok(name) = std::env::var("PEAK_MEMORY") {
        return peak_memory(&name);
    }
    let mut criterion = Criterion::default().configure_from_args();
    train_step(&mut criterion);
    score(&mut criterion);
    criterion.final_summary();
}

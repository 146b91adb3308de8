//! The cost of per-sample gradient products and norms on the CPU, at the sizes of PyTorch's CPU figures.
//!
//! `proxy`: forward and backward of a training batch: plain, with all quantities of every sample (products, norms and
//! the weighted sum, of all parameters), with one backward pass of the batch per sample, and with a separate batch per
//! sample. `bilevel`: a whole step under the rule `loss`, and under `alignment` with norms. `linear`: the two forms of
//! a linear layer's quantities, by rows per sample: `Form::cheaper` is where they break even.
//! `benches/pytorch/meta_gradient.py` does the same work in PyTorch. `PEAK_MEMORY=plain` (or `products`) runs some
//! steps of `tiny-demo` (or of `CASE=small`) and prints the process's peak memory instead.

#![expect(clippy::print_stdout, reason = "PEAK_MEMORY prints the peak memory")]

mod cases;
mod memory;

use std::hint::black_box;

use alchemist_engine::{
    engine::{
        Accumulate, Direction, Ghost, GradientVisitor, Gradients, Parameters, Tape, Tensor,
        ops::meta_gradient::{
            Form,
            cpu::{CpuRequest, LinearRows, linear},
        },
    },
    models::{Mode, Proxy},
    rater::rules::{ALIGNMENT, LOSS, RuleEntry, RuleSettings},
    tokens::batch::Batch,
};
use cases::{Case, cases};
use criterion::{BenchmarkId, Criterion, SamplingMode};
use memory::peak_mebibytes;

/// The proxy of a case, a training batch, and the gradient of a validation batch.
struct Work {
    proxy: Proxy,
    parameters: Parameters,
    batch: Batch,
    samples: usize,
    direction: Gradients,
}

impl Work {
    fn new(case: &Case) -> Self {
        let (bilevel, quantizer) = (case.bilevel(), case.quantizer());
        let batch = |stream: u64| case.batch(&quantizer, &case.features(case.batch, stream));
        let mut work = Self {
            proxy: bilevel.proxy,
            parameters: bilevel.proxy_parameters,
            batch: batch(20),
            samples: case.batch,
            direction: Gradients::new(),
        };
        work.direction = work.plain();
        work.batch = batch(10);
        work
    }

    fn pass(&self, batch: &Batch, seeds: Vec<f32>, visitor: &mut dyn GradientVisitor) {
        let mut tape = Tape::new(&self.parameters).with_per_sample_parts(true);
        let input = batch.input().expect("the input was made");
        let loss = self.proxy.loss(&mut tape, input, &batch.text, &batch.codes, 0.0, Mode::Evaluate);
        let loss = loss.expect("the sizes fit").sample_loss;
        let seeds = Tensor::new(&[seeds.len()], seeds).expect("one seed per sample");
        tape.backward(vec![(&loss, seeds)], &[], visitor).expect("it goes back");
    }

    fn plain(&self) -> Gradients {
        let mut visitor = Accumulate::default();
        self.pass(&self.batch, vec![1.0 / self.samples as f32; self.samples], &mut visitor);
        visitor.gradients
    }

    fn everything(&self) {
        let weights = Tensor::new(&[self.samples], vec![1.0 / self.samples as f64; self.samples]);
        let mut ghost = Ghost::new(self.samples)
            .with_dot(Direction { gradients: &self.direction, preconditioner: None })
            .with_norms()
            .with_weights(weights.expect("one weight per sample"))
            .with_repeated(self.proxy.repeated());
        self.pass(&self.batch, vec![1.0; self.samples], &mut ghost);
        black_box(ghost.finish(&self.parameters).expect("every parameter is covered"));
    }

    fn numbers_of(&self, gradients: &Gradients) -> [f64; 2] {
        let mut sums = [0.0; 2];
        for (own, v) in gradients.iter().zip(&self.direction) {
            let (Some(own), Some(v)) = (own, v) else { continue };
            let (own, v) = (own.as_slice::<f32>().expect("f32"), v.as_slice::<f32>().expect("f32"));
            for (own, v) in own.iter().zip(v) {
                sums[0] += f64::from(*own) * f64::from(*v);
                sums[1] += f64::from(*own) * f64::from(*own);
            }
        }
        sums
    }

    /// One backward pass of the batch per sample, each seeded with that sample's loss alone.
    fn one_backward_a_sample(&self) {
        for sample in 0..self.samples {
            let mut visitor = Accumulate::default();
            let seeds = (0..self.samples).map(|at| f32::from(u8::from(at == sample))).collect();
            self.pass(&self.batch, seeds, &mut visitor);
            black_box(self.numbers_of(&visitor.gradients));
        }
    }

    /// Each sample as a separate batch.
    fn sample_by_sample(&self, alone: &[Batch]) {
        for batch in alone {
            let mut visitor = Accumulate::default();
            self.pass(batch, vec![1.0], &mut visitor);
            black_box(self.numbers_of(&visitor.gradients));
        }
    }
}

fn proxy(criterion: &mut Criterion) {
    for case in cases() {
        let work = Work::new(&case);
        let quantizer = case.quantizer();
        let alone: Vec<Batch> = (0..case.batch as u64)
            .map(|stream| case.batch(&quantizer, &case.features(1, 100 + 10 * stream)))
            .collect();
        let mut group = criterion.benchmark_group(format!("proxy/{}", case.name));
        group.sample_size(10).sampling_mode(SamplingMode::Flat);
        group.bench_function("plain", |bencher| bencher.iter(|| black_box(work.plain())));
        group.bench_function("everything", |bencher| bencher.iter(|| work.everything()));
        group.bench_function("sample_by_sample", |bencher| bencher.iter(|| work.sample_by_sample(&alone)));
        group
            .bench_function("one_backward_a_sample", |bencher| bencher.iter(|| work.one_backward_a_sample()));
        group.finish();
    }
}

/// The rule of a step, and whether norms are measured.
const STEPS: [(&RuleEntry, bool); 2] = [(&LOSS, false), (&ALIGNMENT, true)];

fn bilevel(criterion: &mut Criterion) {
    for case in cases() {
        let mut group = criterion.benchmark_group(format!("bilevel/{}", case.name));
        group.sample_size(10).sampling_mode(SamplingMode::Flat);
        let quantizer = case.quantizer();
        let features = [case.features(case.batch, 10), case.features(case.batch, 20)];
        for (rule, norms) in STEPS {
            let mut bilevel = case.bilevel();
            bilevel.settings.rule = RuleSettings { rule, ..RuleSettings::default() };
            bilevel.settings.record_norms = norms;
            let mut step = 0;
            group.bench_function(rule.name, |bencher| {
                bencher.iter(|| {
                    step += 1;
                    case.step(&mut bilevel, &quantizer, &features, step);
                });
            });
        }
        group.finish();
    }
}

/// Both forms of a linear layer's quantities, by rows per sample.
fn forms(criterion: &mut Criterion) {
    let (inputs, outputs, samples) = (256usize, 768usize, 16usize);
    let mut group = criterion.benchmark_group("linear");
    group.sample_size(10);
    for rows in [1usize, 4, 8, 16, 32, 64, 130] {
        let values = |count: usize| (0..count).map(|at| ((at * 7919) % 2003) as f32 / 1001.5 - 1.0).collect();
        let (x, d): (Vec<f32>, Vec<f32>) =
            (values(samples * rows * inputs), values(samples * rows * outputs));
        let (v, mut sum): (Vec<f32>, Vec<f32>) = (values(inputs * outputs), values(inputs * outputs));
        let weights = vec![0.5; samples];
        for (name, form) in [("in_tile", Form::InTile), ("projected", Form::Projected)] {
            group.bench_with_input(BenchmarkId::new(name, rows), &rows, |bencher, _| {
                bencher.iter(|| {
                    let asked =
                        CpuRequest { direction: Some(&v), norms: true, sum: Some((&mut sum, &weights)) };
                    let rows = LinearRows { input: &x, d_output: &d, samples, inputs, outputs };
                    black_box(linear(asked, rows, Some(form)))
                });
            });
        }
        group.bench_with_input(BenchmarkId::new("plain", rows), &rows, |bencher, _| {
            bencher.iter(|| {
                alchemist_engine::engine::matmul::linear_backward_weight(&mut sum, &d, &x, inputs, outputs);
            });
        });
    }
    group.finish();
}

/// Runs a few steps and prints the peak memory of the process.
fn peak_memory(name: &str) {
    let found = STEPS.iter().zip(["plain", "products"]).find(|(_, of)| *of == name);
    let ((rule, norms), _) = found.unwrap_or_else(|| panic!("PEAK_MEMORY is plain or products, not {name}"));
    let wanted = std::env::var("CASE").unwrap_or_else(|_| "tiny-demo".to_owned());
    let case = cases().into_iter().find(|case| case.name == wanted);
    let case = case.unwrap_or_else(|| panic!("CASE is tiny-demo or small, not {wanted}"));
    let mut bilevel = case.bilevel();
    bilevel.settings.rule = RuleSettings { rule, ..RuleSettings::default() };
    bilevel.settings.record_norms = *norms;
    let quantizer = case.quantizer();
    let features = [case.features(case.batch, 10), case.features(case.batch, 20)];
    (0..3).for_each(|step| case.step(&mut bilevel, &quantizer, &features, step));
    println!("bilevel/{wanted}, {name}: peak {} MiB", peak_mebibytes());
}

fn main() {
    if let Ok(name) = std::env::var("PEAK_MEMORY") {
        return peak_memory(&name);
    }
    let mut criterion = Criterion::default().configure_from_args();
    proxy(&mut criterion);
    bilevel(&mut criterion);
    forms(&mut criterion);
    criterion.final_summary();
}

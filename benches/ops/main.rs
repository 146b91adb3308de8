//! Every op separately: on the CPU through the tape, and each kernel on a device if there is one, timed by the
//! device, with its share of the device's peak. One file per op.
#![expect(clippy::print_stdout, reason = "the program prints its results")]

mod activation;
mod adamw;
mod add_to_all;
mod affine_norm;
mod attention;
mod batch_softmax;
mod batch_statistics;
mod cast;
mod contributions;
mod convolution;
mod cross_entropy;
mod first_sample;
mod group_norm;
mod layer_norm;
mod linear;
mod mean_tokens;
mod measure;
mod meta_gradient;
mod modulation;
mod multiply;
mod patch_embed;
mod pyramid;
mod rater_loss;
mod residual;
mod scale_all;
mod softmax;

use std::{cell::Cell, hint::black_box, time::Duration};

use alchemist_engine::{
    Result,
    engine::{Accumulate, Parameters, Purpose, Random, Tape, Tensor, Var},
};
use criterion::{Criterion, Throughput};
use measure::Measured;
use serde_json::json;

/// A function of leaves and parameters.
type Function<'a> = dyn Fn(&mut Tape<'_>, &[Var]) -> Result<Var> + 'a;

/// The minimum work of a kernel.
#[derive(Clone, Copy)]
struct Floor {
    /// Bytes to and from memory.
    bytes: usize,
    /// Floating-point operations of matrix products.
    flop: usize,
}

struct Bench {
    criterion: Criterion,
    measured: Option<Measured>,
    /// Peak bytes and operations per second.
    ceilings: (f64, f64),
}

impl Bench {
    fn open() -> Self {
        let measured = measure::measured();
        let ceilings = measured.as_ref().map_or((0.0, 0.0), |measured| {
            let side = measured.size(8192, 16);
            let copy = measured.copy_ceiling().expect("copies work");
            (copy, measured.product_rate([side; 3], true).expect("products work"))
        });
        let criterion = Criterion::default().sample_size(10).configure_from_args();
        Self { criterion, measured, ceilings }
    }

    /// Forward and backward on the CPU, through the tape; `elements` is the size of the input.
    fn cpu(&mut self, name: &str, parameters: &Parameters, leaves: &[Tensor], function: &Function<'_>) {
        let elements: usize = leaves.iter().map(Tensor::len).sum();
        let mut group = self.criterion.benchmark_group(format!("cpu/{name}"));
        group.throughput(Throughput::Elements(elements as u64));
        group.bench_function("forward", |bencher| {
            bencher.iter(|| {
                let mut tape = Tape::inference(parameters);
                let vars: Vec<Var> = leaves.iter().map(|leaf| tape.constant(leaf.clone())).collect();
                black_box(function(&mut tape, &vars).expect("the sizes fit").into_value())
            });
        });
        group.bench_function("forward_backward", |bencher| {
            bencher.iter(|| {
                let mut tape = Tape::new(parameters);
                let vars: Vec<Var> = leaves.iter().map(|leaf| tape.leaf(leaf.clone())).collect();
                let output = function(&mut tape, &vars).expect("the sizes fit");
                let seed = output.value().clone();
                let of_leaves: Vec<&Var> = vars.iter().collect();
                let mut visitor = Accumulate::default();
                black_box(
                    tape.backward(vec![(&output, seed)], &of_leaves, &mut visitor).expect("it goes back"),
                )
            });
        });
        group.finish();
    }

    /// A kernel on the device.
    fn device(&mut self, name: &str, floor: Floor, mut work: impl FnMut() -> Result<()>) {
        let Some(measured) = &self.measured else { return };
        let best = Cell::new(f64::INFINITY);
        let mut group = self.criterion.benchmark_group(format!("device/{name}"));
        group.throughput(Throughput::Bytes(floor.bytes as u64));
        // All ops together take about two minutes on a GPU.
        let [warm_up, measurement] = if measured.rehearsal { [1, 1] } else { [200, 1000] };
        group.warm_up_time(Duration::from_millis(warm_up));
        group.measurement_time(Duration::from_millis(measurement));
        let median = Cell::new(0.0);
        group.bench_function(&measured.device.facts().name, |bencher| {
            bencher.iter_custom(|count| {
                let time = measured.time(count, &mut work).expect("the kernel runs");
                best.set(best.get().min(time.as_secs_f64() / count as f64));
                time
            });
            median.set(measured.median(&mut work).expect("the kernel runs"));
        });
        group.finish();
        if best.get().is_infinite() {
            // Filtered out by the command line.
            return;
        }
        let (seconds, (copy, product)) = (median.get(), self.ceilings);
        let least = (floor.bytes as f64 / copy).max(floor.flop as f64 / product);
        println!(
            "{}",
            json!({
                "name": name,
                "median_s": seconds,
                "min_s": best.get(),
                "bytes_per_s": floor.bytes as f64 / seconds,
                "flop_per_s": floor.flop as f64 / seconds,
                "time_over_floor": seconds / least,
            })
        );
    }
}

/// Standard normal values, the same on every run.
fn normal(shape: &[usize], stream: u64) -> Tensor {
    let mut random = Random::new(1, Purpose::Test, stream);
    let values = (0..shape.iter().product()).map(|_| random.normal() as f32).collect();
    Tensor::new(shape, values).expect("the values fill the shape")
}

/// Values between -1 and 1 in bf16, generated fast enough for many millions.
fn halves(count: usize) -> Vec<half::bf16> {
    (0..count).map(|at| half::bf16::from_f32(((at * 7919) % 2003) as f32 / 1001.5 - 1.0)).collect()
}

/// The same values in f32.
fn floats(count: usize) -> Vec<f32> {
    halves(count).into_iter().map(half::bf16::to_f32).collect()
}

fn main() {
    let mut bench = Bench::open();
    for run in [
        activation::run,
        adamw::run,
        add_to_all::run,
        affine_norm::run,
        attention::run,
        batch_softmax::run,
        batch_statistics::run,
        cast::run,
        contributions::run,
        convolution::run,
        cross_entropy::run,
        first_sample::run,
        group_norm::run,
        layer_norm::run,
        linear::run,
        mean_tokens::run,
        meta_gradient::run,
        modulation::run,
        multiply::run,
        patch_embed::run,
        pyramid::run,
        rater_loss::run,
        residual::run,
        scale_all::run,
        softmax::run,
    ] {
        run(&mut bench).expect("the device has enough memory");
    }
    bench.criterion.final_summary();
}

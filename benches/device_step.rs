//! A rater training step and scoring on a device: proxy depth 16, rater depth 8, batch 64, bf16, with codes and input
//! given.
//!
//! The counterpart of `benches/pytorch/step.py --device cuda --case large --given input`. `ALCHEMIST_BENCH_DEVICE`
//! names the device as for the other benches; on the emulator the sizes are minimal. Each result is one line of JSON.
//! `ALCHEMIST_STEP=meta_gradient` measures only the cost of products and norms; with `ALCHEMIST_PORTABLE=1`, with the
//! portable kernels.
#![expect(clippy::print_stdout, reason = "the program prints its results")]

#[path = "ops/measure.rs"]
#[allow(dead_code, reason = "ceilings are measured elsewhere")]
mod measure;

use std::time::Instant;

use alchemist_engine::{
    Result,
    encode::TextStates,
    engine::{
        Accumulate, DType, Direction, Ghost, GradientVisitor, Gradients, Purpose, Random, Tape, Tensor,
    },
    models::{BackboneConfig, Initialization, Mode, Proxy, Rater, Rope, Weighing},
    rater::{
        bilevel::{Bilevel, BilevelSettings, MicroBatch, StepRates},
        rules::{ALIGNMENT, RuleSettings},
    },
    tokens::batch::Batch,
    training::optimizer::AdamWSettings,
};
use measure::Measured;
use serde_json::json;

/// As in `benches/pytorch/step.py`: both terms of the proxy's loss are present.
const RATES: StepRates =
    StepRates { upper_level_weight: 0.9, learning_rate: 1e-4, weight_decay: 0.05, warm_up: false };

struct Case {
    patch_nums: Vec<usize>,
    vocabulary: usize,
    code_channels: usize,
    proxy_depth: usize,
    rater_depth: usize,
    text_tokens: usize,
    text_channels: usize,
    batch: usize,
    score_batch: usize,
}

impl Case {
    fn of(measured: &Measured) -> Self {
        let size = |real, tiny| measured.size(real, tiny);
        Self {
            patch_nums: if measured.rehearsal {
                vec![1, 2, 3]
            } else {
                vec![1, 2, 3, 4, 5, 6, 8, 10, 13, 16]
            },
            vocabulary: size(4096, 32),
            code_channels: size(32, 8),
            proxy_depth: size(16, 2),
            rater_depth: size(8, 1),
            text_tokens: size(77, 5),
            text_channels: size(1024, 16),
            batch: size(64, 2),
            score_batch: size(256, 2),
        }
    }

    fn backbone(&self, depth: usize) -> BackboneConfig {
        BackboneConfig {
            patch_nums: self.patch_nums.clone(),
            vocabulary: self.vocabulary,
            code_channels: self.code_channels,
            text_channels: self.text_channels,
            depth,
            width: 64 * depth,
            heads: depth,
            mlp_ratio: 4.0,
            attention_l2_norm: true,
            rope: Some(Rope { theta: 10_000.0, norm: 64.0 }),
            level_embedding: true,
            logit_norm: true,
            shared_aln: false,
            cross_attention: true,
            drop_path: 0.1 * depth as f64 / 24.0,
            cross_from_first_sample: false,
            initialization: Initialization { std: -1.0, head: 0.02, aln: 0.5, aln_gamma: 5e-5 },
        }
    }

    fn normal(&self, shape: &[usize], stream: u64) -> Result<Tensor> {
        let mut random = Random::new(1, Purpose::Test, stream);
        Tensor::new(shape, (0..shape.iter().product()).map(|_| random.normal() as f32).collect())
    }

    fn batch(&self, batch: usize, stream: u64) -> Result<Batch> {
        let tokens: usize = self.patch_nums.iter().map(|side| side * side).sum();
        let mut random = Random::new(1, Purpose::Test, stream);
        let codes = (0..batch * tokens).map(|_| random.below(self.vocabulary as u64) as u32).collect();
        Ok(Batch {
            codes: Tensor::new(&[batch, tokens], codes)?,
            input: Some(self.normal(&[batch, tokens - 1, self.code_channels], stream + 1)?),
            through: None,
            text: TextStates {
                states: self.normal(&[batch, self.text_tokens, self.text_channels], stream + 2)?,
                mask: Tensor::new(&[batch, self.text_tokens], vec![1u32; batch * self.text_tokens])?,
                pooled: self.normal(&[batch, self.text_channels], stream + 3)?,
            },
            last_scale: self.patch_nums.last().map_or(0, |side| side * side),
        })
    }

    fn bilevel(&self) -> Result<Bilevel> {
        let (proxy, proxy_parameters) = Proxy::new(&self.backbone(self.proxy_depth), DType::F32, 1)?;
        let (rater, rater_parameters) = Rater::new(&self.backbone(self.rater_depth), DType::F32, 2)?;
        Ok(Bilevel::new(
            (proxy, proxy_parameters),
            (rater, rater_parameters),
            AdamWSettings::default(),
            BilevelSettings {
                recompute: std::env::var("ALCHEMIST_RECOMPUTE").is_ok_and(|value| value == "1"),
                cuda_graph: std::env::var("ALCHEMIST_GRAPH").map_or(true, |value| value != "0"),
                ..BilevelSettings::released()
            },
        ))
    }
}

/// Times of `work`, each synchronized with the device, after two for warm-up.
fn times(measured: &Measured, most: usize, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    for _ in 0..2 {
        work()?;
    }
    measured.device.synchronize()?;
    measured.device.reset_peak_memory();
    let mut times = Vec::new();
    for _ in 0..if measured.rehearsal { 1 } else { most } {
        let start = Instant::now();
        work()?;
        measured.device.synchronize()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn report(measured: &Measured, name: &str, batch: usize, times: &[f64], product_s: f64) {
    let median = times[times.len() / 2];
    println!(
        "{}",
        json!({
            "name": name,
            "device": measured.device.facts().model,
            "median_s": median,
            "min_s": times[0],
            "max_s": times[times.len() - 1],
            "n": times.len(),
            "batch": batch,
            "images_per_s": batch as f64 / median,
            "peak_bytes": measured.device.memory().peak_bytes,
            "held_bytes": measured.device.memory().held_bytes,
            "product_share": product_s / median,
        })
    );
}

fn main() -> Result<()> {
    let Some(measured) = measure::measured() else {
        println!("{}", json!({ "name": "train_step", "state": "no device" }));
        return Ok(());
    };
    let case = Case::of(&measured);
    // `ALCHEMIST_STEP=meta_gradient`: only the runs that show the cost of products and norms.
    let aligned = RuleSettings { rule: &ALIGNMENT, ..RuleSettings::default() };
    if std::env::var("ALCHEMIST_STEP").is_ok_and(|value| value == "meta_gradient") {
        train_step(&measured, &case, "train_step_alignment", aligned)?;
        return meta_gradient(&measured, &case);
    }
    train_step(&measured, &case, "train_step", RuleSettings::default())?;
    train_step(&measured, &case, "train_step_alignment", aligned)?;
    meta_gradient(&measured, &case)?;
    score(&measured, &case)
}

/// Forward and backward of a training batch through the proxy: plain, and with the inner product, the norm and the
/// weighted sum of the per-sample gradients.
fn meta_gradient(measured: &Measured, case: &Case) -> Result<()> {
    let device = &measured.device;
    let (proxy, parameters) = Proxy::new(&case.backbone(case.proxy_depth), DType::F32, 1)?;
    let parameters = parameters.to_device(device, DType::Bf16)?;
    let batch = case.batch(case.batch, 10)?.to_device(device, DType::Bf16)?;
    let pass = |seed: f32, visitor: &mut dyn GradientVisitor| -> Result<()> {
        let mut tape = Tape::new(&parameters).with_per_sample_parts(true);
        let text = &batch.text;
        let loss = proxy.loss(&mut tape, batch.input()?, text, &batch.codes, 0.0, Mode::Evaluate)?;
        let seeds = Tensor::new(&[case.batch], vec![seed; case.batch])?.to_device(device)?;
        tape.backward(vec![(&loss.sample_loss, seeds)], &[], visitor).map(drop)
    };
    let share = 1.0 / case.batch as f32;
    let plain = |direction: &mut Gradients| {
        let mut visitor = Accumulate::default();
        pass(share, &mut visitor)?;
        *direction = visitor.gradients;
        Ok(())
    };
    let mut direction = Gradients::new();
    let plain_times = times(measured, 20, || plain(&mut direction))?;
    let ((), products) = device.time_products(|| plain(&mut direction))?;
    report(measured, "meta_gradient/plain_step", case.batch, &plain_times, products.as_secs_f64());
    let weights = Tensor::new(&[case.batch], vec![share; case.batch])?.to_device(device)?;
    let everything = || {
        let mut ghost = Ghost::new(case.batch)
            .with_dot(Direction { gradients: &direction, preconditioner: None })
            .with_norms()
            .with_weights(weights.clone())
            .with_repeated(proxy.repeated());
        pass(1.0, &mut ghost)?;
        ghost.finish(&parameters).map(drop)
    };
    let everything_times = times(measured, 20, everything)?;
    let ((), products) = device.time_products(everything)?;
    report(measured, "meta_gradient/everything", case.batch, &everything_times, products.as_secs_f64());
    Ok(())
}

fn train_step(measured: &Measured, case: &Case, name: &str, rule: RuleSettings) -> Result<()> {
    let device = &measured.device;
    let mut bilevel = case.bilevel()?;
    bilevel.settings.rule = rule;
    bilevel.settings.record_norms = rule.rule.needs().products;
    bilevel.move_to(device, DType::Bf16)?;
    let micro = MicroBatch {
        train: case.batch(case.batch, 10)?,
        validation: case.batch(case.batch, 20)?,
        prior: None,
    };
    let micro = [micro.to_device(device, DType::Bf16)?];
    let mut step = 0;
    let mut work = |bilevel: &mut Bilevel| {
        step += 1;
        bilevel.step(&micro, RATES, step).map(drop)
    };
    let times = times(measured, 20, || work(&mut bilevel))?;
    // Single products cannot be timed within a graph.
    bilevel.settings.cuda_graph = false;
    let ((), products) = device.time_products(|| work(&mut bilevel))?;
    report(measured, name, case.batch, &times, products.as_secs_f64());
    Ok(())
}

fn score(measured: &Measured, case: &Case) -> Result<()> {
    let device = &measured.device;
    let (rater, parameters) = Rater::new(&case.backbone(case.rater_depth), DType::F32, 2)?;
    let parameters = parameters.to_device(device, DType::Bf16)?;
    let batch = case.batch(case.score_batch, 10)?.to_device(device, DType::Bf16)?;
    let mut work = || {
        let mut tape = Tape::inference(&parameters);
        rater.forward(&mut tape, batch.input()?, &batch.text, Weighing::Released, Mode::Evaluate).map(drop)
    };
    let times = times(measured, 20, &mut work)?;
    let ((), products) = device.time_products(work)?;
    report(measured, "score", case.score_batch, &times, products.as_secs_f64());
    Ok(())
}

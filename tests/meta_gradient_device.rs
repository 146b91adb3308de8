//! Per-sample gradient products and norms on a device: the whole proxy against f64, and a sample's bits in its batch.
#![cfg(feature = "emulator")]

mod common;

use alchemist_engine::{
    encode::TextStates,
    engine::{
        Accumulate, DType, Direction, Ghost, GhostNumbers, GradientVisitor, Gradients, Parameters, Tape,
        Tensor, cuda::Device,
    },
    models::{BackboneConfig, Initialization, Mode, Proxy, Rope},
};
use common::{normal, relative_error, tolerance};

const SAMPLES: usize = 24;
const TOKENS: usize = 14;

fn backbone() -> BackboneConfig {
    BackboneConfig {
        patch_nums: vec![1, 2, 3],
        vocabulary: 40,
        code_channels: 6,
        text_channels: 12,
        depth: 1,
        width: 64,
        heads: 2,
        mlp_ratio: 2.0,
        attention_l2_norm: true,
        rope: Some(Rope { theta: 100.0, norm: 8.0 }),
        level_embedding: true,
        logit_norm: true,
        shared_aln: true,
        cross_attention: true,
        drop_path: 0.0,
        cross_from_first_sample: false,
        initialization: Initialization { std: 0.2, head: 2.0, aln: 0.5, aln_gamma: 0.5 },
    }
}

struct Data {
    input: Tensor,
    text: TextStates,
    codes: Tensor,
}

/// Samples in an order, in numbers that bf16 holds, so that all types see the same.
fn data(stream: u64, places: &[usize], dtype: DType) -> Data {
    let floats = |shape: &[usize], stream: u64| {
        let whole = [&[SAMPLES], shape].concat();
        let all = normal(&whole, stream, DType::F64).cast(DType::Bf16).unwrap().to_f64_vec().unwrap();
        let share = all.len() / SAMPLES;
        let chosen = places.iter().flat_map(|&at| all[at * share..(at + 1) * share].to_vec());
        let values = chosen.collect::<Vec<f64>>();
        Tensor::new(&[&[places.len()], shape].concat(), values).unwrap().cast(dtype).unwrap()
    };
    Data {
        input: floats(&[TOKENS - 1, 6], 100 + stream),
        text: TextStates {
            states: floats(&[5, 12], 200 + stream),
            mask: Tensor::new(&[places.len(), 5], vec![1u32; places.len() * 5]).unwrap(),
            pooled: floats(&[12], 300 + stream),
        },
        codes: Tensor::zeros(&[places.len(), TOKENS], DType::U32),
    }
}

/// The codes of all samples: the first has what the proxy expects most, the last what it expects least, so that losses and
/// gradients differ by more than a 16-bit number's rounding.
fn codes(proxy: &Proxy, wide: &Parameters, data: &Data) -> Vec<u32> {
    let mut tape = Tape::inference(wide);
    let logits = proxy.logits(&mut tape, &data.input, &data.text, Mode::Evaluate).unwrap().into_value();
    let vocabulary = logits.dim(2);
    let row = |(at, logits): (usize, &[f64])| {
        let mut order: Vec<usize> = (0..vocabulary).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        order[at / TOKENS * (vocabulary - 1) / (SAMPLES - 1)] as u32
    };
    logits.to_f64_vec().unwrap().chunks(vocabulary).enumerate().map(row).collect()
}

fn pass(proxy: &Proxy, parameters: &Parameters, data: &Data, seed: f64, visitor: &mut dyn GradientVisitor) {
    let place = |tensor: &Tensor| match parameters.device() {
        None => tensor.clone(),
        Some(device) => tensor.to_device(device).unwrap(),
    };
    let text = TextStates {
        states: place(&data.text.states),
        mask: place(&data.text.mask),
        pooled: place(&data.text.pooled),
    };
    let mut tape = Tape::new(parameters).with_per_sample_parts(true);
    let (input, codes) = (place(&data.input), place(&data.codes));
    let loss = proxy.loss(&mut tape, &input, &text, &codes, 0.0, Mode::Evaluate).unwrap().sample_loss;
    let seeds = Tensor::new(&[codes.dim(0)], vec![seed; codes.dim(0)]).unwrap();
    let seeds = place(&seeds.cast(loss.value().dtype()).unwrap());
    tape.backward(vec![(&loss, seeds)], &[], visitor).unwrap();
}

fn numbers(
    proxy: &Proxy,
    parameters: &Parameters,
    codes: &[u32],
    places: &[usize],
    dtype: DType,
) -> GhostNumbers {
    let all: Vec<usize> = (0..SAMPLES).collect();
    // The validation samples have codes of their own.
    let others: Vec<u32> = (0..SAMPLES * TOKENS).map(|at| (at * 7 % 40) as u32).collect();
    let of = |stream: u64, places: &[usize]| {
        let codes = if stream == 0 { codes } else { &others };
        let chosen = places.iter().flat_map(|&at| codes[at * TOKENS..(at + 1) * TOKENS].to_vec());
        let codes = Tensor::new(&[places.len(), TOKENS], chosen.collect::<Vec<u32>>()).unwrap();
        Data { codes, ..data(stream, places, dtype) }
    };
    let mut visitor = Accumulate::default();
    pass(proxy, parameters, &of(1, &all), 1.0 / SAMPLES as f64, &mut visitor);
    let v: Gradients = visitor.gradients;
    let direction = Direction { gradients: &v, preconditioner: None };
    let mut ghost = Ghost::new(places.len()).with_dot(direction).with_norms().with_repeated(proxy.repeated());
    pass(proxy, parameters, &of(0, places), 1.0, &mut ghost);
    ghost.finish(parameters).unwrap()
}

/// Spearman's: the correlation of the ranks.
fn rank_correlation(left: &[f64], right: &[f64]) -> f64 {
    let ranks = |values: &[f64]| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
        let mut ranks = vec![0.0; values.len()];
        order.iter().enumerate().for_each(|(rank, &at)| ranks[at] = rank as f64);
        ranks
    };
    let squares: f64 =
        ranks(left).iter().zip(ranks(right)).map(|(left, right)| (left - right) * (left - right)).sum();
    let count = left.len() as f64;
    1.0 - 6.0 * squares / (count * (count * count - 1.0))
}

#[test]
fn a_device_finds_the_numbers_of_f64() {
    let (proxy, narrow) = Proxy::new(&backbone(), DType::F32, 1).unwrap();
    let wide = narrow.cast(DType::F64).unwrap();
    let all: Vec<usize> = (0..SAMPLES).collect();
    let codes = codes(&proxy, &wide, &data(0, &all, DType::F64));
    let truth = numbers(&proxy, &wide, &codes, &all, DType::F64);
    let device = common::open_device().unwrap_or_else(|| Device::emulated().expect("the emulator"));
    for (compute, bound) in [(DType::F32, tolerance::GHOST_F32), (DType::Bf16, tolerance::GHOST_BF16)] {
        let parameters = narrow.to_device(&device, compute).unwrap();
        let found = numbers(&proxy, &parameters, &codes, &all, compute);
        for (what, found, truth) in [
            ("products", found.product(), truth.product()),
            ("norms", found.squared_norm(), truth.squared_norm()),
        ] {
            let (found, truth) = (found.unwrap().unwrap(), truth.unwrap().unwrap());
            let error = relative_error(&found, &truth);
            let ranks = rank_correlation(&found.to_f64_vec().unwrap(), &truth.to_f64_vec().unwrap());
            println!("{what} in {compute:?}: relative {error:.1e}, rank correlation {ranks:.4}");
            assert!(error <= bound, "{what} in {compute:?} are off by {error:e}");
            assert!(ranks >= 0.999, "{what} in {compute:?}: rank correlation {ranks}");
        }
        // Wherever in its batch a sample stands, its numbers have the same bits; on the emulator, where a product sums every row
        // alike, also whatever else is in the batch.
        let mut batches = vec![(0..SAMPLES).rev().collect::<Vec<usize>>()];
        if device.facts().name.starts_with("emulated") {
            batches.extend([vec![0], vec![SAMPLES - 1, 1]]);
        }
        for places in batches {
            let other = numbers(&proxy, &parameters, &codes, &places, compute);
            for (there, here) in
                [(&other.products, &found.products), (&other.squared_norms, &found.squared_norms)]
            {
                let bits = |numbers: &Option<Tensor>| numbers.as_ref().unwrap().to_f64_vec().unwrap();
                let (there, here) = (bits(there), bits(here));
                for (there, here) in there.chunks(places.len()).zip(here.chunks(SAMPLES)) {
                    let same = there.iter().zip(&places).all(|(there, &place)| *there == here[place]);
                    assert!(same, "{places:?} in {compute:?}");
                }
            }
        }
    }
}

//! A pyramid that grows scale by scale, with keys and values kept, gives what the whole pass gives, token by token: on the
//! host, and on the emulator unless `ALCHEMIST_DEVICE` names a card. Parts of a pyramid, too, are what they are in the whole.

mod common;

use alchemist_engine::{
    encode::TextStates,
    engine::{DType, Parameters, Tape, Tensor, cuda::Device, ops::pyramid::PyramidQuantizer},
    generator::sample::{SampleSettings, Sampler},
    models::{BackboneConfig, Initialization, Mode, Proxy, Rope},
};
use common::{normal, relative_error};

const BATCH: usize = 3;
const TEXT: usize = 4;
const CODES: usize = 7;
const CHANNELS: usize = 3;

#[derive(Clone, Copy, Debug)]
struct Form {
    rotary: bool,
    level_embedding: bool,
    shared_aln: bool,
    normalized: bool,
    first_side: usize,
}

const FORMS: [Form; 4] = [
    Form { rotary: true, level_embedding: true, shared_aln: false, normalized: true, first_side: 1 },
    Form { rotary: false, level_embedding: true, shared_aln: false, normalized: false, first_side: 1 },
    Form { rotary: true, level_embedding: true, shared_aln: true, normalized: true, first_side: 2 },
    Form { rotary: false, level_embedding: false, shared_aln: true, normalized: true, first_side: 1 },
];

fn sides(form: Form) -> Vec<usize> {
    vec![form.first_side, form.first_side + 1, form.first_side + 3]
}

fn network(form: Form, dtype: DType) -> (Proxy, Parameters) {
    let config = BackboneConfig {
        patch_nums: sides(form),
        vocabulary: CODES,
        code_channels: CHANNELS,
        text_channels: 5,
        depth: 2,
        width: 16,
        heads: 2,
        mlp_ratio: 2.0,
        attention_l2_norm: form.normalized,
        rope: form.rotary.then_some(Rope { theta: 100.0, norm: 8.0 }),
        level_embedding: form.level_embedding,
        logit_norm: true,
        shared_aln: form.shared_aln,
        cross_attention: true,
        drop_path: 0.0,
        cross_from_first_sample: false,
        initialization: Initialization { std: 0.3, head: 1.0, aln: 0.5, aln_gamma: 0.5 },
    };
    Proxy::new(&config, dtype, 1).unwrap()
}

fn text(dtype: DType) -> TextStates {
    TextStates {
        states: normal(&[BATCH, TEXT, 5], 20, dtype),
        mask: Tensor::new(&[BATCH, TEXT], vec![1u32, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 0]).unwrap(),
        pooled: normal(&[BATCH, 5], 21, dtype),
    }
}

/// The rows `from..to` of each sample of `[B, L, N]`.
fn rows(tensor: &Tensor, from: usize, to: usize) -> Tensor {
    let (length, width) = (tensor.dim(1), tensor.dim(2));
    let values = tensor.to_f64_vec().unwrap();
    let kept: Vec<f64> = values
        .chunks_exact((length * width).max(1))
        .flat_map(|sample| &sample[from * width..to * width])
        .copied()
        .collect();
    Tensor::new(&[tensor.dim(0), to - from, width], kept).unwrap().cast(tensor.dtype()).unwrap()
}

/// Logits of the whole pass and of the passes scale by scale.
fn both_ways(form: Form, dtype: DType, device: Option<(&Device, DType)>) -> [Tensor; 2] {
    let (proxy, mut parameters) = network(form, dtype);
    let sides = sides(form);
    let first = sides[0] * sides[0];
    let tokens: usize = sides.iter().map(|side| side * side).sum();
    let (input, mut text) = (normal(&[BATCH, tokens - first, CHANNELS], 22, dtype), text(dtype));
    let place = |tensor: &Tensor| match device {
        Some((device, compute)) => tensor.cast(compute).unwrap().to_device(device).unwrap(),
        None => tensor.clone(),
    };
    if let Some((device, compute)) = device {
        parameters = parameters.to_device(device, compute).unwrap();
        text = TextStates {
            states: place(&text.states),
            mask: text.mask.to_device(device).unwrap(),
            pooled: place(&text.pooled),
        };
    }
    let mut tape = Tape::inference(&parameters);
    let whole = proxy.logits(&mut tape, &place(&input), &text, Mode::Evaluate).unwrap();
    let whole = whole.into_value().to_host().unwrap();
    let (mut cache, mut end, mut parts) = (proxy.cache(), 0, Vec::new());
    for side in &sides {
        let (from, to) = (end, end + side * side);
        let part = if end == 0 { rows(&input, 0, 0) } else { rows(&input, from - first, to - first) };
        let mut tape = Tape::inference(&parameters);
        let logits = proxy.next_logits(&mut tape, &place(&part), &text, &mut cache).unwrap();
        parts.push(logits.into_value().to_host().unwrap());
        end = to;
    }
    assert!(proxy.next_logits(&mut Tape::inference(&parameters), &place(&input), &text, &mut cache).is_err());
    let mut values = Vec::new();
    for sample in 0..BATCH {
        for part in &parts {
            let part = part.to_f64_vec().unwrap();
            values.extend_from_slice(&part[sample * part.len() / BATCH..(sample + 1) * part.len() / BATCH]);
        }
    }
    [whole, Tensor::new(&[BATCH, tokens, CODES], values).unwrap()]
}

#[test]
fn scale_by_scale_is_the_whole_pass() {
    for form in FORMS {
        for (dtype, limit) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
            let [whole, grown] = both_ways(form, dtype, None);
            let error = relative_error(&grown, &whole);
            assert!(error <= limit, "{form:?} {dtype:?}: {error:e}");
        }
    }
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "needs the emulator")]
fn scale_by_scale_is_the_whole_pass_on_a_device() {
    let device = common::open_device().unwrap_or_else(|| Device::emulated().expect("the emulator"));
    for form in FORMS {
        for (compute, limit) in [(DType::F32, 1e-5), (DType::Bf16, 2e-2)] {
            let [whole, grown] = both_ways(form, DType::F32, Some((&device, compute)));
            let error = relative_error(&grown, &whole);
            assert!(error <= limit, "{form:?} {compute:?}: {error:e}");
            // And what the host gives, so that both are not wrong together.
            let [truth, _] = both_ways(form, DType::F64, None);
            let error = relative_error(&grown, &truth);
            assert!(error <= 2.0 * limit, "{form:?} {compute:?} against the host: {error:e}");
        }
    }
}

#[test]
fn a_pass_with_a_cache_has_no_gradient() {
    let (proxy, parameters) = network(FORMS[0], DType::F64);
    let nothing = Tensor::new(&[BATCH, 0, CHANNELS], Vec::<f64>::new()).unwrap();
    let mut tape = Tape::new(&parameters);
    let refused = proxy.next_logits(&mut tape, &nothing, &text(DType::F64), &mut proxy.cache());
    assert!(refused.unwrap_err().to_string().contains("no backward pass"));
}

#[test]
fn coarser_scales_alone_are_as_in_the_whole() {
    for form in FORMS {
        let (proxy, parameters) = network(form, DType::F64);
        let sides = sides(form);
        let first = sides[0] * sides[0];
        let tokens: usize = sides.iter().map(|side| side * side).sum();
        let end = first + sides[1] * sides[1];
        let input = normal(&[BATCH, tokens - first, CHANNELS], 22, DType::F64);
        let text = text(DType::F64);
        let logits = |proxy: &Proxy, input: &Tensor| {
            let mut tape = Tape::inference(&parameters);
            proxy.logits(&mut tape, input, &text, Mode::Evaluate).unwrap().into_value()
        };
        let whole = logits(&proxy, &input);
        let layout = proxy.layout().of(&(0..end).collect::<Vec<_>>()).unwrap();
        let part = logits(&proxy.with_layout(layout), &rows(&input, 0, end - first));
        assert!(relative_error(&part, &rows(&whole, 0, end)) <= 1e-12, "{form:?}");
    }
}

/// A token that is not there is seen by nobody: the others are as if the mask had hidden it, which only tokens of the same
/// and of finer scales can tell.
#[test]
fn tokens_that_are_dropped_leave_coarser_scales_alone() {
    let form = FORMS[0];
    let (proxy, parameters) = network(form, DType::F64);
    let tokens: usize = sides(form).iter().map(|side| side * side).sum();
    let input = normal(&[BATCH, tokens - 1, CHANNELS], 22, DType::F64);
    let text = text(DType::F64);
    let places: Vec<usize> = (0..tokens).filter(|place| *place != 8 && *place != 20).collect();
    let kept: Vec<Tensor> = places[1..].iter().map(|place| rows(&input, place - 1, *place)).collect();
    let mut values = Vec::new();
    for sample in 0..BATCH {
        for row in &kept {
            values.extend_from_slice(&row.to_f64_vec().unwrap()[sample * CHANNELS..(sample + 1) * CHANNELS]);
        }
    }
    let part = Tensor::new(&[BATCH, kept.len(), CHANNELS], values).unwrap();
    let logits = |proxy: &Proxy, input: &Tensor| {
        let mut tape = Tape::inference(&parameters);
        proxy.logits(&mut tape, input, &text, Mode::Evaluate).unwrap().into_value()
    };
    let (whole, dropped) =
        (logits(&proxy, &input), logits(&proxy.with_layout(proxy.layout().of(&places).unwrap()), &part));
    assert!(relative_error(&rows(&dropped, 0, 5), &rows(&whole, 0, 5)) <= 1e-12);
    let finest = relative_error(&rows(&dropped, 5, 8), &rows(&whole, 5, 8));
    assert!(finest > 1e-6, "the finest scale lacks two of its keys, and its logits do not show it");
    assert!(proxy.layout().of(&[]).is_err() && proxy.layout().of(&[1, 0]).is_err());
    assert!(proxy.layout().of(&[tokens]).is_err());
}

#[test]
fn a_image_does_not_depend_on_the_others_and_the_seed_fixes_it() {
    let form = FORMS[0];
    let (network, parameters) = network(form, DType::F32);
    let codebook = normal(&[CODES, CHANNELS], 30, DType::F32);
    let quantizer = PyramidQuantizer::new(&sides(form), &codebook, Vec::new()).unwrap();
    let text = text(DType::F32);
    let one = |at: usize| {
        let part = |tensor: &Tensor| {
            let shape = [&[1], &tensor.shape()[1..]].concat();
            let range = at * tensor.len() / BATCH..(at + 1) * tensor.len() / BATCH;
            Tensor::new(&shape, tensor.as_slice::<f32>().unwrap()[range].to_vec()).unwrap()
        };
        let mask = text.mask.as_slice::<u32>().unwrap()[at * TEXT..(at + 1) * TEXT].to_vec();
        TextStates {
            states: part(&text.states),
            mask: Tensor::new(&[1, TEXT], mask).unwrap(),
            pooled: part(&text.pooled),
        }
    };
    let settings = SampleSettings { guidance: 2.0, top_k: 5, top_p: 0.95, seed: 9 };
    let sampler =
        |settings| Sampler { network: &network, parameters: &parameters, quantizer: &quantizer, settings };
    let empty = one(2);
    let all = sampler(settings).codes(&text, &empty, &[4, 7, 1]).unwrap();
    assert!(all == sampler(settings).codes(&text, &empty, &[4, 7, 1]).unwrap());
    for (at, stream) in [4, 7, 1].into_iter().enumerate() {
        let alone = sampler(settings).codes(&one(at), &empty, &[stream]).unwrap();
        let tokens = quantizer.tokens();
        let own = &all.as_slice::<u32>().unwrap()[at * tokens..(at + 1) * tokens];
        assert_eq!(alone.as_slice::<u32>().unwrap(), own);
    }
    let other = SampleSettings { seed: 10, ..settings };
    assert!(all != sampler(other).codes(&text, &empty, &[4, 7, 1]).unwrap());
    // Without guidance the empty caption plays no part.
    let free = SampleSettings { guidance: 0.0, ..settings };
    let unguided = sampler(free).codes(&text, &empty, &[4, 7, 1]).unwrap();
    assert!(unguided == sampler(free).codes(&text, &one(0), &[4, 7, 1]).unwrap());
    assert!(all != sampler(settings).codes(&text, &one(0), &[4, 7, 1]).unwrap());
}

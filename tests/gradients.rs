//! Every op and both networks against central differences in f64, and in f32 against their own f64 run.

mod common;

use std::sync::Arc;

use alchemist_engine::{
    encode::TextStates,
    engine::{
        Accumulate, DType, Ghost, ParameterId, Parameters, Tape, Tensor, Var,
        ops::{
            activation::{Activation, activate},
            add_to_all::add_to_all,
            attention::{AttentionSettings, RotaryTable, cross_attention, self_attention, visible_keys},
            batch_softmax::batch_softmax,
            batch_statistics::batch_statistics,
            cross_entropy::cross_entropy,
            first_sample::first_sample,
            layer_norm::{ScaleShift, layer_norm},
            levels::Levels,
            linear::{Bias, linear},
            mean_tokens::mean_tokens,
            modulation::{self, gate, level_pairs},
            patch_embed::{PatchEmbed, PatchEmbedParameters, patch_embed},
            residual::residual,
            scale_all::scale_all,
        },
    },
    models::{BackboneConfig, Initialization, Mode, Proxy, Rater, Rope, Weighing},
};
use common::{normal, relative_error, tolerance};

/// A function of leaves and parameters to one tensor.
type Function<'a> = dyn Fn(&mut Tape<'_>, &[Var]) -> Var + 'a;

/// Whole networks are checked on fewer elements of each tensor than this, single ops on more.
const NETWORK_SAMPLES: usize = 10;

fn inner(left: &Tensor, right: &Tensor) -> f64 {
    left.to_f64_vec().unwrap().iter().zip(right.to_f64_vec().unwrap()).map(|(left, right)| left * right).sum()
}

/// Gradients of `⟨f, r⟩` for a fixed random `r`: of the leaves, then of the parameters.
fn analytic(
    parameters: &Parameters,
    apart: bool,
    leaves: &[Tensor],
    function: &Function<'_>,
) -> Vec<Option<Tensor>> {
    let mut tape = Tape::new(parameters).with_per_sample_parts(apart);
    let vars: Vec<Var> = leaves.iter().map(|leaf| tape.leaf(leaf.clone())).collect();
    let output = function(&mut tape, &vars);
    let seed = normal(output.value().shape(), 99, output.value().dtype());
    let mut visitor = Accumulate::default();
    let of_leaves: Vec<&Var> = vars.iter().collect();
    let mut gradients = tape.backward(vec![(&output, seed)], &of_leaves, &mut visitor).unwrap();
    visitor.gradients.resize(parameters.len(), None);
    gradients.extend(visitor.gradients);
    gradients
}

fn value(parameters: &Parameters, apart: bool, leaves: &[Tensor], function: &Function<'_>) -> f64 {
    let mut tape = Tape::inference(parameters).with_per_sample_parts(apart);
    let vars: Vec<Var> = leaves.iter().map(|leaf| tape.constant(leaf.clone())).collect();
    let output = function(&mut tape, &vars);
    inner(output.value(), &normal(output.value().shape(), 99, DType::F64))
}

/// Compares up to `samples` elements of each gradient with central differences.
fn check(name: &str, parameters: &Parameters, leaves: &[Tensor], samples: usize, function: &Function<'_>) {
    check_on(false, name, parameters, leaves, samples, function);
}

/// The same, on a tape with samples apart or without.
fn check_on(
    apart: bool,
    name: &str,
    parameters: &Parameters,
    leaves: &[Tensor],
    samples: usize,
    function: &Function<'_>,
) {
    let gradients = analytic(parameters, apart, leaves, function);
    let step = tolerance::FINITE_DIFFERENCE_STEP;
    let mut failures = Vec::new();
    let mut checked = 0;
    for (at, gradient) in gradients.iter().enumerate() {
        let (what, length) = match at.checked_sub(leaves.len()) {
            None => (format!("input {at}"), leaves[at].len()),
            Some(id) => {
                (parameters.name(ParameterId(id)).to_owned(), parameters.value(ParameterId(id)).len())
            }
        };
        let gradient = gradient
            .as_ref()
            .unwrap_or_else(|| panic!("{name}: {what} has no gradient"))
            .to_f64_vec()
            .unwrap();
        let scale = gradient.iter().fold(1e-3f64, |most, value| most.max(value.abs()));
        for element in (0..length).step_by((length / samples).max(1)) {
            let shifted = |by: f64| {
                let (mut parameters, mut leaves) = (parameters.clone(), leaves.to_vec());
                let tensor = match at.checked_sub(leaves.len()) {
                    None => &mut leaves[at],
                    Some(id) => parameters.value_mut(ParameterId(id)).0,
                };
                tensor.as_mut_slice::<f64>().unwrap()[element] += by;
                value(&parameters, apart, &leaves, function)
            };
            let numerical = (shifted(step) - shifted(-step)) / (2.0 * step);
            checked += 1;
            let error = (numerical - gradient[element]).abs() / scale;
            if error.is_nan() || error > tolerance::FINITE_DIFFERENCE {
                failures.push(format!(
                    "{what}[{element}]: {numerical} instead of {} ({error:.1e})",
                    gradient[element]
                ));
            }
        }
    }
    assert!(checked > 0, "{name}: nothing was checked");
    assert!(failures.is_empty(), "{name}:\n{}", failures.join("\n"));

    // The same in f32, against f64 on inputs that f32 holds exactly.
    let rounded: Vec<Tensor> = leaves.iter().map(|leaf| leaf.cast(DType::F32).unwrap()).collect();
    let narrow = parameters.cast(DType::F32).unwrap();
    let wide = narrow.cast(DType::F64).unwrap();
    let truth: Vec<Tensor> = rounded.iter().map(|leaf| leaf.cast(DType::F64).unwrap()).collect();
    let truth = analytic(&wide, apart, &truth, function);
    // Where a gradient is zero in truth (a softmax over one key, say), rounding is all there is: compare it with the
    // largest of the others.
    let largest = |tensor: &Tensor| {
        tensor.to_f64_vec().unwrap().iter().fold(0.0f64, |most, value| most.max(value.abs()))
    };
    let scale = truth.iter().flatten().map(largest).fold(0.0, f64::max);
    for (at, (found, truth)) in analytic(&narrow, apart, &rounded, function).iter().zip(&truth).enumerate() {
        let (Some(found), Some(truth)) = (found, truth) else { panic!("{name}: a gradient is missing") };
        let own = largest(truth);
        let error = relative_error(found, truth) * if own > 0.0 { own } else { 1.0 } / own.max(1e-2 * scale);
        let limit = if samples < NETWORK_SAMPLES { tolerance::NETWORK_F32 } else { tolerance::OP_F32 };
        assert!(error <= limit, "{name}: gradient {at} in f32 is off by {error:e}");
    }
}

fn parameters(shapes: &[(&str, &[usize])]) -> Parameters {
    let mut parameters = Parameters::default();
    for (at, (name, shape)) in shapes.iter().enumerate() {
        parameters.push(*name, normal(shape, 50 + at as u64, DType::F64)).unwrap();
    }
    parameters
}

/// Parameters under test, and one that carries the float type where an op has none.
fn none() -> Parameters {
    Parameters::default()
}

#[test]
fn linear_and_its_biases() {
    let parameters = parameters(&[("weight", &[9, 5]), ("bias", &[9])]);
    let bias = Bias { parameter: ParameterId(1), column: 0 };
    check("linear", &parameters, &[normal(&[2, 3, 5], 0, DType::F64)], 99, &|tape, x| {
        linear(tape, &x[0], ParameterId(0), &[bias]).unwrap()
    });
    let packed = self::parameters(&[("weight", &[9, 5]), ("q_bias", &[3]), ("v_bias", &[3])]);
    let biases =
        [Bias { parameter: ParameterId(1), column: 0 }, Bias { parameter: ParameterId(2), column: 6 }];
    check("packed linear", &packed, &[normal(&[7, 5], 0, DType::F64)], 99, &|tape, x| {
        linear(tape, &x[0], ParameterId(0), &biases).unwrap()
    });
}

#[test]
fn norms_and_activations() {
    for shape in [&[2, 3, 17][..], &[1, 1, 4], &[5, 33]] {
        let x = [normal(shape, 1, DType::F64)];
        check("layer_norm", &none(), &x, 99, &|tape, x| layer_norm(tape, &x[0], 1e-6, None).unwrap());
        for kind in [
            Activation::GeluTanh,
            Activation::GeluErf,
            Activation::QuickGelu,
            Activation::Relu,
            Activation::Silu,
            Activation::Sigmoid,
        ] {
            check("activation", &none(), &x, 99, &|tape, x| activate(tape, &x[0], kind).unwrap());
        }
    }
}

fn settings(
    heads: usize,
    scale: Option<ParameterId>,
    rotary: Option<&Arc<RotaryTable>>,
) -> AttentionSettings {
    AttentionSettings { heads, scale, rotary: rotary.cloned() }
}

#[test]
fn self_attention_over_odd_pyramids() {
    for patch_nums in [&[1, 2, 3][..], &[1], &[2, 5], &[1, 2, 3, 4, 5, 6, 8]] {
        let tokens: usize = patch_nums.iter().map(|side| side * side).sum();
        let samples = if tokens > 50 { 40 } else { 120 };
        let visible = Arc::new(visible_keys(patch_nums).into());
        let mut scale = parameters(&[("scale", &[1, 2, 1, 1])]);
        let rotary = Arc::new(RotaryTable::new(patch_nums, 8, 100.0, 16.0));
        let qkv = [normal(&[2, tokens, 3 * 16], 2, DType::F64)];
        check("self_attention", &scale, &qkv, samples, &|tape, x| {
            let settings = settings(2, Some(ParameterId(0)), Some(&rotary));
            self_attention(tape, &x[0], &settings, &visible).unwrap()
        });
        check("self_attention without norm", &none(), &qkv, samples, &|tape, x| {
            self_attention(tape, &x[0], &settings(2, None, None), &visible).unwrap()
        });
        // Above the bound the scale is a constant.
        scale.value_mut(ParameterId(0)).0.as_mut_slice::<f64>().unwrap()[1] = 5.0;
        check("self_attention at the bound", &scale, &qkv[..1], 20, &|tape, x| {
            let settings = settings(2, Some(ParameterId(0)), None);
            self_attention(tape, &x[0], &settings, &visible).unwrap()
        });
    }
}

#[test]
fn cross_attention_with_masks() {
    let scale = parameters(&[("scale", &[1, 3, 1, 1])]);
    let leaves = [normal(&[2, 5, 12], 3, DType::F64), normal(&[2, 7, 24], 4, DType::F64)];
    let mask = Tensor::new(&[2, 7], vec![1u32, 1, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
    check("cross_attention", &scale, &leaves, 200, &|tape, x| {
        cross_attention(tape, &x[0], &x[1], &mask, &settings(3, Some(ParameterId(0)), None)).unwrap()
    });
    // A sample whose text is hidden altogether gets zeros, not NaN.
    let mask = Tensor::new(&[2, 7], [[1u32; 7], [0; 7]].concat()).unwrap();
    let hidden = |tape: &mut Tape<'_>, x: &[Var]| {
        cross_attention(tape, &x[0], &x[1], &mask, &settings(3, None, None)).unwrap()
    };
    check("cross_attention, one hidden", &none(), &leaves, 200, &hidden);
    let mut tape = Tape::inference(&scale);
    let vars: Vec<Var> = leaves.iter().map(|leaf| tape.constant(leaf.clone())).collect();
    let output = hidden(&mut tape, &vars).into_value().to_f64_vec().unwrap();
    assert!(output[60..].iter().all(|value| *value == 0.0));
}

#[test]
fn losses_and_pooling() {
    let targets = Tensor::new(&[2, 3], vec![0u32, 4, 2, 6, 1, 1]).unwrap();
    for (smoothing, weights) in [(0.0, None), (0.1, None), (0.1, Some([0.5, 0.0, 2.0].as_slice()))] {
        check("cross_entropy", &none(), &[normal(&[2, 3, 7], 5, DType::F64)], 99, &|tape, x| {
            cross_entropy(tape, &x[0], &targets, smoothing, weights).unwrap().sample_loss
        });
    }
    check("mean_tokens", &none(), &[normal(&[3, 5, 4], 6, DType::F64)], 99, &|tape, x| {
        mean_tokens(tape, &x[0]).unwrap()
    });
    for batch in [1, 5] {
        let x = [normal(&[batch, 6], 7, DType::F64)];
        check("batch_statistics", &none(), &x, 99, &|tape, x| batch_statistics(tape, &x[0]).unwrap());
    }
    check("batch_softmax", &none(), &[normal(&[5, 1], 8, DType::F64)], 99, &|tape, x| {
        batch_softmax(tape, &x[0], 0.7).unwrap()
    });
    let pair = [normal(&[5, 1], 9, DType::F64), normal(&[1, 1], 10, DType::F64)];
    check("scale_all", &none(), &pair, 99, &|tape, x| scale_all(tape, &x[0], &x[1]).unwrap());
}

#[test]
fn additions_and_embeddings() {
    let pair = [normal(&[3, 2, 4], 11, DType::F64), normal(&[3, 2, 4], 12, DType::F64)];
    for keep in [None, Some(Tensor::new(&[3], vec![0.0, 1.25, 2.0]).unwrap())] {
        check("residual", &none(), &pair, 99, &|tape, x| residual(tape, &x[0], &x[1], keep.clone()).unwrap());
    }
    check("first_sample and add_to_all", &none(), &pair, 99, &|tape, x| {
        let first = first_sample(tape, &x[0]).unwrap();
        add_to_all(tape, &x[1], &first).unwrap()
    });
    let parameters = parameters(&[
        ("weight", &[4, 3]),
        ("bias", &[4]),
        ("start", &[1, 1, 4]),
        ("level", &[2, 4]),
        ("position", &[1, 5, 4]),
    ]);
    let embed = PatchEmbedParameters {
        weight: ParameterId(0),
        bias: ParameterId(1),
        start: ParameterId(2),
        level: Some(ParameterId(3)),
        position: Some(ParameterId(4)),
    };
    let embed = PatchEmbed::new(embed, Arc::new(Levels::new(&[1, 4])));
    // Without rows for the first scale, and with some that are not looked at.
    for rows in [4, 5] {
        let leaves = [normal(&[3, 4], 13, DType::F64), normal(&[3, rows, 3], 14, DType::F64)];
        check("patch_embed", &parameters, &leaves, 99, &|tape, x| {
            patch_embed(tape, &x[0], &x[1], &embed).unwrap()
        });
    }
}

#[test]
fn modulation_by_level() {
    let parameters = parameters(&[("level", &[2, 3]), ("table", &[1, 1, 6, 3])]);
    let levels = Arc::new(Levels::new(&[1, 4]));
    let mut only = Parameters::default();
    only.push("table", parameters.value(ParameterId(1)).clone()).unwrap();
    // Parts that the samples share, and parts of each sample's own.
    for condition in [&[2, 18][..], &[3, 2, 18]] {
        let leaves = [normal(&[3, 5, 3], 15, DType::F64), normal(condition, 16, DType::F64)];
        check("layer_norm with modulation", &only, &leaves, 99, &|tape, x| {
            let parts = &modulation::parts(tape, &x[1], ParameterId(0)).unwrap();
            let modulation = ScaleShift { parts, scale: 2, shift: 4, levels: &levels };
            layer_norm(tape, &x[0], 1e-6, Some(modulation)).unwrap()
        });
        check("gate", &only, &leaves, 99, &|tape, x| {
            let parts = modulation::parts(tape, &x[1], ParameterId(0)).unwrap();
            gate(tape, &x[0], &parts, 1, &levels).unwrap()
        });
    }
    let mut only = Parameters::default();
    only.push("level", parameters.value(ParameterId(0)).clone()).unwrap();
    for (apart, shape) in [(false, &[2, 6][..]), (true, &[3, 2, 6])] {
        check_on(apart, "level_pairs", &only, &[], 99, &|tape, _| {
            let pairs = level_pairs(tape, ParameterId(0), &levels, 3).unwrap();
            assert_eq!(pairs.value().shape(), shape);
            pairs
        });
    }
}

#[test]
fn parts_of_another_batch_are_refused() {
    let none = none();
    let mut tape = Tape::inference(&none);
    let levels = Arc::new(Levels::new(&[1, 4]));
    let x = tape.constant(normal(&[3, 5, 3], 15, DType::F64));
    for shape in [&[2, 2, 18][..], &[3, 1, 18], &[3, 18]] {
        let parts = &tape.constant(normal(shape, 16, DType::F64));
        let message = gate(&mut tape, &x, parts, 1, &levels).unwrap_err().to_string();
        assert!(message.contains("the modulation has the shape"), "{message}");
        let modulation = ScaleShift { parts, scale: 2, shift: 4, levels: &levels };
        assert!(layer_norm(&mut tape, &x, 1e-6, Some(modulation)).is_err());
    }
}

fn tiny(variant: usize) -> BackboneConfig {
    BackboneConfig {
        patch_nums: vec![1, 2, 3],
        vocabulary: 7,
        code_channels: 3,
        text_channels: 5,
        depth: 2,
        width: 16,
        heads: 2,
        mlp_ratio: 2.0,
        attention_l2_norm: variant != 2,
        rope: (variant != 1).then_some(Rope { theta: 100.0, norm: 8.0 }),
        level_embedding: variant != 2,
        logit_norm: variant != 1,
        shared_aln: variant == 1,
        cross_attention: variant != 2,
        drop_path: 0.2,
        cross_from_first_sample: variant == 3,
        initialization: Initialization { std: 0.3, head: 1.0, aln: 0.5, aln_gamma: 0.5 },
    }
}

fn batch() -> (Tensor, TextStates, Tensor) {
    let text = TextStates {
        states: normal(&[3, 4, 5], 20, DType::F64),
        mask: Tensor::new(&[3, 4], vec![1u32, 1, 1, 1, 1, 0, 0, 0, 1, 1, 0, 0]).unwrap(),
        pooled: normal(&[3, 5], 21, DType::F64),
    };
    let codes = Tensor::new(&[3, 14], (0..42).map(|at| at * 5 % 7).collect::<Vec<u32>>()).unwrap();
    (normal(&[3, 13, 3], 22, DType::F64), text, codes)
}

#[test]
fn both_networks() {
    let (input, text, codes) = batch();
    for variant in 0..4 {
        let (proxy, parameters) = Proxy::new(&tiny(variant), DType::F64, 1).unwrap();
        let dropped = proxy.draw(5, 9, 3).unwrap();
        let mode = if variant == 0 { Mode::Train(&dropped) } else { Mode::Evaluate };
        // Only the shared modulation is another with samples apart.
        for apart in if variant == 1 { &[false, true][..] } else { &[false] } {
            check_on(*apart, &format!("proxy {variant}"), &parameters, &[], 6, &|tape, _| {
                proxy.loss(tape, &input, &text, &codes, 0.0, mode).unwrap().sample_loss
            });
        }
        let (rater, parameters) = Rater::new(&tiny(variant), DType::F64, 2).unwrap();
        for weighing in [Weighing::Released, Weighing::Logits { temperature: 0.5 }] {
            check(&format!("rater {variant}"), &parameters, &[], 6, &|tape, _| {
                rater.forward(tape, &input, &text, weighing, mode).unwrap().weight
            });
        }
    }
}

/// Running each block again in the backward pass changes no bit.
#[test]
fn recomputing_gives_the_same_bits() {
    let (input, text, codes) = batch();
    for variant in 0..4 {
        let (proxy, parameters) = Proxy::new(&tiny(variant), DType::F32, 1).unwrap();
        let dropped = proxy.draw(5, 9, 3).unwrap();
        let run = |recomputing: bool| {
            let mut tape = Tape::new(&parameters).with_recomputing(recomputing);
            let mode = Mode::Train(&dropped);
            let loss = proxy.loss(&mut tape, &input, &text, &codes, 0.1, mode).unwrap().sample_loss;
            let mut visitor = Accumulate::default();
            let seeds = Tensor::new(&[3], vec![1.0f32, 0.5, 2.0]).unwrap();
            tape.backward(vec![(&loss, seeds)], &[], &mut visitor).unwrap();
            (loss.into_value(), visitor.gradients)
        };
        let kept = run(false);
        assert!(kept.1.iter().all(Option::is_some));
        assert_eq!(kept, run(true), "variant {variant}");
    }
}

#[test]
fn weighted_gradients_are_those_of_the_weighted_loss() {
    let (input, text, codes) = batch();
    let (proxy, parameters) = Proxy::new(&tiny(0), DType::F64, 1).unwrap();
    let weights = [0.2, 1.5, -0.7];
    let run = |seeds: Vec<f64>, visitor: &mut dyn alchemist_engine::engine::GradientVisitor| {
        let mut tape = Tape::new(&parameters);
        let loss = proxy.loss(&mut tape, &input, &text, &codes, 0.0, Mode::Evaluate).unwrap().sample_loss;
        tape.backward(vec![(&loss, Tensor::new(&[3], seeds).unwrap())], &[], visitor)
    };
    let mut plain = Accumulate::default();
    run(weights.to_vec(), &mut plain).unwrap();
    let weighted = || Ghost::new(3).with_weights(Tensor::new(&[3], weights.to_vec()).unwrap());
    let mut visitor = weighted();
    run(vec![1.0; 3], &mut visitor).unwrap();
    for (found, expected) in visitor.finish(&parameters).unwrap().gradients.iter().zip(&plain.gradients) {
        let (found, expected) = (found.as_ref().unwrap(), expected.as_ref().unwrap());
        assert!(relative_error(found, expected) < 1e-12);
    }

    // With the released cross-attention samples are mixed: the visitor says so instead of giving wrong numbers.
    let (proxy, parameters) = Proxy::new(&tiny(3), DType::F64, 1).unwrap();
    let mut tape = Tape::new(&parameters);
    let loss = proxy.loss(&mut tape, &input, &text, &codes, 0.0, Mode::Evaluate).unwrap().sample_loss;
    let seeds = Tensor::new(&[3], vec![1.0; 3]).unwrap();
    let refused = tape.backward(vec![(&loss, seeds)], &[], &mut weighted()).unwrap_err();
    assert!(refused.to_string().contains("mixes the samples"), "{refused}");
}

/// The losses and gradients of a step are the same to the bit on one thread and on two.
#[test]
fn threads_do_not_change_a_bit() {
    let (input, text, codes) = batch();
    let (proxy, parameters) = Proxy::new(&tiny(0), DType::F32, 1).unwrap();
    let run = || {
        let mut tape = Tape::new(&parameters);
        let loss = proxy.loss(&mut tape, &input, &text, &codes, 0.0, Mode::Evaluate).unwrap().sample_loss;
        let mut visitor = Accumulate::default();
        tape.backward(vec![(&loss, Tensor::new(&[3], vec![1.0f32; 3]).unwrap())], &[], &mut visitor).unwrap();
        (loss.into_value(), visitor.gradients)
    };
    let on =
        |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run);
    let one = on(1);
    assert!(one.1.iter().all(Option::is_some));
    assert_eq!(one, on(2));
    assert_eq!(one, on(3));
}

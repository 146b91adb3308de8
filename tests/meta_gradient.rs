//! Per-sample gradient products and norms from one backward pass, against one backward pass per sample.

mod common;

use alchemist_engine::{
    encode::TextStates,
    engine::{
        Accumulate, Contribution, DType, Direction, Ghost, GhostNumbers, GradientVisitor, Gradients,
        ParameterId, Parameters, Preconditioner, RowOwner, Tape, Tensor,
        ops::meta_gradient::{
            Form,
            cpu::{CpuRequest, LinearRows, linear},
        },
    },
    models::{BackboneConfig, Initialization, Mode, Proxy, Rope},
};
use common::{normal, relative_error, tolerance};

/// Samples of the batches.
const SAMPLES: usize = 5;

/// Networks of every kind of parameter.
fn backbone(variant: usize) -> BackboneConfig {
    BackboneConfig {
        patch_nums: vec![1, 2, 3],
        vocabulary: 7,
        code_channels: 3,
        text_channels: 5,
        depth: 2,
        width: 24,
        heads: 2,
        mlp_ratio: 2.0,
        attention_l2_norm: variant != 1,
        rope: (variant != 1).then_some(Rope { theta: 100.0, norm: 8.0 }),
        level_embedding: variant != 1,
        logit_norm: variant != 1,
        shared_aln: variant == 3,
        cross_attention: variant != 1,
        drop_path: 0.2,
        cross_from_first_sample: variant == 2,
        initialization: Initialization { std: 0.3, head: 1.0, aln: 0.5, aln_gamma: 0.5 },
    }
}

/// What the proxy is given: samples that have something in common, so that inner products stand above rounding.
#[derive(Clone)]
struct Data {
    input: Tensor,
    text: TextStates,
    codes: Tensor,
}

fn data(stream: u64, dtype: DType) -> Data {
    // Exact in f32, so that both types see the same numbers.
    let exact = |tensor: Tensor| tensor.cast(DType::F32).unwrap().cast(dtype).unwrap();
    let codes = (0..SAMPLES * 14).map(|at| (at * 5 % 7).min(3 + at % 3) as u32).collect::<Vec<u32>>();
    Data {
        input: exact(normal(&[SAMPLES, 13, 3], 100 + stream, DType::F64)),
        text: TextStates {
            states: exact(normal(&[SAMPLES, 4, 5], 200 + stream, DType::F64)),
            mask: Tensor::new(
                &[SAMPLES, 4],
                (0..SAMPLES * 4).map(|at| u32::from(at % 4 <= at / 4)).collect(),
            )
            .unwrap(),
            pooled: exact(normal(&[SAMPLES, 5], 300 + stream, DType::F64)),
        },
        codes: Tensor::new(&[SAMPLES, 14], codes).unwrap(),
    }
}

impl Data {
    /// Some of the samples, in an order.
    fn chosen(&self, places: &[usize]) -> Self {
        fn rows<T: alchemist_engine::engine::Element>(tensor: &Tensor, places: &[usize]) -> Tensor {
            let values = tensor.as_slice::<T>().unwrap();
            let share = values.len() / tensor.dim(0);
            let picked =
                places.iter().flat_map(|&at| values[at * share..(at + 1) * share].to_vec()).collect();
            let mut shape = tensor.shape().to_vec();
            shape[0] = places.len();
            Tensor::new(&shape, picked).unwrap()
        }
        let floats = |tensor: &Tensor| match tensor.dtype() {
            DType::F64 => rows::<f64>(tensor, places),
            _ => rows::<f32>(tensor, places),
        };
        Self {
            input: floats(&self.input),
            text: TextStates {
                states: floats(&self.text.states),
                mask: rows::<u32>(&self.text.mask, places),
                pooled: floats(&self.text.pooled),
            },
            codes: rows::<u32>(&self.codes, places),
        }
    }

    fn samples(&self) -> usize {
        self.codes.dim(0)
    }
}

/// One backward pass of the sum of the losses, each times `seed`.
fn backward(
    proxy: &Proxy,
    parameters: &Parameters,
    data: &Data,
    seed: f64,
    mode: Mode<'_>,
    visitor: &mut dyn GradientVisitor,
) -> alchemist_engine::Result<()> {
    let mut tape = Tape::new(parameters).with_per_sample_parts(true);
    let loss = proxy.loss(&mut tape, &data.input, &data.text, &data.codes, 0.0, mode).unwrap().sample_loss;
    let seeds = Tensor::new(&[data.samples()], vec![seed; data.samples()]).unwrap();
    let seeds = seeds.cast(loss.value().dtype()).unwrap();
    tape.backward(vec![(&loss, seeds)], &[], visitor).map(|_| ())
}

fn gradient(proxy: &Proxy, parameters: &Parameters, data: &Data, mode: Mode<'_>) -> Gradients {
    let mut visitor = Accumulate::default();
    backward(proxy, parameters, data, 1.0 / data.samples() as f64, mode, &mut visitor).unwrap();
    visitor.gradients
}

fn ghost(
    proxy: &Proxy,
    parameters: &Parameters,
    data: &Data,
    direction: &Gradients,
    mode: Mode<'_>,
) -> GhostNumbers {
    let direction = Direction { gradients: direction, preconditioner: None };
    let repeated = proxy.repeated();
    let mut ghost = Ghost::new(data.samples()).with_dot(direction).with_norms().with_repeated(repeated);
    backward(proxy, parameters, data, 1.0, mode, &mut ghost).unwrap();
    ghost.finish(parameters).unwrap()
}

fn inner(left: &Tensor, right: &Tensor) -> f64 {
    left.to_f64_vec().unwrap().iter().zip(right.to_f64_vec().unwrap()).map(|(left, right)| left * right).sum()
}

/// `[P, S]` of inner products and of squared norms, from one backward pass per sample.
fn truth(proxy: &Proxy, parameters: &Parameters, data: &Data, direction: &Gradients) -> [Tensor; 2] {
    let shape = [parameters.len(), data.samples()];
    let mut numbers = [vec![0.0; shape[0] * shape[1]], vec![0.0; shape[0] * shape[1]]];
    for sample in 0..data.samples() {
        let own = gradient(proxy, parameters, &data.chosen(&[sample]), Mode::Evaluate);
        for (at, (own, v)) in own.iter().zip(direction).enumerate() {
            let own = own.as_ref().expect("every parameter has a gradient");
            numbers[0][at * shape[1] + sample] = inner(own, v.as_ref().unwrap());
            numbers[1][at * shape[1] + sample] = inner(own, own);
        }
    }
    numbers.map(|numbers| Tensor::new(&shape, numbers).unwrap())
}

/// The columns' sums of `[P, S]`: over all parameters.
fn sums(numbers: &Tensor) -> Tensor {
    let values = numbers.to_f64_vec().unwrap();
    let samples = numbers.dim(1);
    let sum = |at: usize| values.iter().skip(at).step_by(samples).sum::<f64>();
    Tensor::new(&[samples], (0..samples).map(sum).collect::<Vec<f64>>()).unwrap()
}

#[test]
fn products_and_norms_are_those_of_one_backward_pass_a_sample() {
    for variant in [0, 1, 3] {
        let (proxy, wide) = Proxy::new(&backbone(variant), DType::F32, 1).unwrap();
        let wide = wide.cast(DType::F64).unwrap();
        let narrow = wide.cast(DType::F32).unwrap();
        let v = gradient(&proxy, &wide, &data(1, DType::F64), Mode::Evaluate);
        let [products, norms] = truth(&proxy, &wide, &data(0, DType::F64), &v);
        let found = ghost(&proxy, &wide, &data(0, DType::F64), &v, Mode::Evaluate);
        let narrow_v = gradient(&proxy, &narrow, &data(1, DType::F32), Mode::Evaluate);
        let in_f32 = ghost(&proxy, &narrow, &data(0, DType::F32), &narrow_v, Mode::Evaluate);
        for (what, found, in_f32, truth) in [
            ("products", &found.products, &in_f32.products, products),
            ("norms", &found.squared_norms, &in_f32.squared_norms, norms),
        ] {
            let (found, in_f32) = (found.as_ref().unwrap(), in_f32.as_ref().unwrap());
            let error = relative_error(&sums(in_f32), &sums(&truth));
            let all = sums(&truth).to_f64_vec().unwrap();
            println!("network {variant}: {what} in f32, over all parameters: {error:.1e}");
            assert!(error < tolerance::GHOST_F32, "{what} in f32, network {variant}: {error:e}");
            assert!(relative_error(found, &truth) < tolerance::GHOST_F64, "{what}, network {variant}");
            for (row, ((_, name, _), truth)) in
                wide.iter().zip(truth.to_f64_vec().unwrap().chunks(SAMPLES)).enumerate()
            {
                let of = |tensor: &Tensor| tensor.to_f64_vec().unwrap()[row * SAMPLES..][..SAMPLES].to_vec();
                let largest =
                    |values: &[f64]| values.iter().fold(0.0f64, |most, value| most.max(value.abs()));
                // A small parameter's share in f32 has the rounding of the activations that it comes from.
                let scales = [largest(truth), largest(&all)];
                for ((wide, narrow), truth) in of(found).iter().zip(of(in_f32)).zip(truth) {
                    let errors = [(wide - truth).abs() / scales[0], (narrow - truth).abs() / scales[1]];
                    assert!(errors[0] < tolerance::GHOST_F64, "{what} of {name}: {wide} is not {truth}");
                    assert!(
                        errors[1] < tolerance::GHOST_F32,
                        "{what} of {name} in f32: {narrow} is not {truth}"
                    );
                }
            }
        }
        let totals = found.product().unwrap().unwrap();
        assert!(relative_error(&totals, &sums(found.products.as_ref().unwrap())) < 1e-12);
    }
}

/// Singly or together, with the weighted sum and with drop-path, numbers are the same.
#[test]
fn everything_is_asked_in_one_pass_or_in_several() {
    let (proxy, parameters) = Proxy::new(&backbone(0), DType::F64, 1).unwrap();
    let (train, dropped) = (data(0, DType::F64), proxy.draw(5, 9, SAMPLES).unwrap());
    let mode = Mode::Train(&dropped);
    let v = gradient(&proxy, &parameters, &data(1, DType::F64), Mode::Evaluate);
    let weights = Tensor::new(&[SAMPLES], vec![0.2, 1.5, -0.7, 0.0, 0.4]).unwrap();
    let run = |ghost: Ghost<'_>| {
        let mut ghost = ghost;
        backward(&proxy, &parameters, &train, 1.0, mode, &mut ghost).unwrap();
        ghost.finish(&parameters).unwrap()
    };
    let direction = Direction { gradients: &v, preconditioner: None };
    let all = run(Ghost::new(SAMPLES).with_dot(direction).with_norms().with_weights(weights.clone()));
    let dot = run(Ghost::new(SAMPLES).with_dot(direction));
    let norm = run(Ghost::new(SAMPLES).with_norms());
    assert_eq!((&dot.products, &norm.squared_norms), (&all.products, &all.squared_norms));
    assert!(
        dot.squared_norms.is_none() && norm.products.is_none() && dot.gradients.iter().all(Option::is_none)
    );
    // The gradient of the weighted loss itself.
    let mut weighted = Accumulate::default();
    let mut tape = Tape::new(&parameters);
    let loss = proxy.loss(&mut tape, &train.input, &train.text, &train.codes, 0.0, mode).unwrap().sample_loss;
    tape.backward(vec![(&loss, weights.clone())], &[], &mut weighted).unwrap();
    let alone = run(Ghost::new(SAMPLES).with_weights(weights.clone()));
    for (at, expected) in weighted.gradients.iter().enumerate() {
        let expected = expected.as_ref().unwrap();
        for found in [&all, &alone] {
            assert!(relative_error(found.gradients[at].as_ref().unwrap(), expected) < 1e-12);
        }
    }
    // What was there before is added to.
    let twice =
        run(Ghost::new(SAMPLES).with_dot(direction).with_weights(weights).onto(all.gradients.clone()));
    for (found, once) in twice.gradients.iter().zip(&all.gradients) {
        let (found, once) = (found.as_ref().unwrap(), once.as_ref().unwrap().to_f64_vec().unwrap());
        let doubled = once.iter().map(|value| 2.0 * value).collect::<Vec<f64>>();
        assert!(relative_error(found, &Tensor::new(found.shape(), doubled).unwrap()) < 1e-12);
    }
}

/// The AdamW-aware product is the product with `V / (√v̂ + ε)`, and all zeros before there is a moment.
#[test]
fn a_preconditioned_product_is_the_product_with_the_step_of_adamw() {
    let (proxy, parameters) = Proxy::new(&backbone(0), DType::F64, 1).unwrap();
    let (train, v) =
        (data(0, DType::F64), gradient(&proxy, &parameters, &data(1, DType::F64), Mode::Evaluate));
    let second: Vec<Tensor> = parameters
        .iter()
        .map(|(id, _, value)| {
            let squares = normal(value.shape(), 500 + id.0 as u64, DType::F64).to_f64_vec().unwrap();
            Tensor::new(value.shape(), squares.iter().map(|value| value * value).collect::<Vec<f64>>())
                .unwrap()
        })
        .collect();
    let (inverse, epsilon) = (1.7, 1e-3);
    let scaled: Gradients = v
        .iter()
        .zip(&second)
        .map(|(v, second)| {
            let v = v.as_ref().unwrap();
            let pairs = v.to_f64_vec().unwrap().into_iter().zip(second.to_f64_vec().unwrap());
            let step =
                pairs.map(|(v, second)| v / ((second * inverse).sqrt() + epsilon)).collect::<Vec<f64>>();
            Some(Tensor::new(v.shape(), step).unwrap())
        })
        .collect();
    let run = |factors: [f64; 2]| {
        let factors = Tensor::new(&[2], factors.to_vec()).unwrap();
        let preconditioner = Preconditioner { second_moments: &second, factors: &factors };
        let direction = Direction { gradients: &v, preconditioner: Some(preconditioner) };
        let mut ghost = Ghost::new(SAMPLES).with_dot(direction);
        backward(&proxy, &parameters, &train, 1.0, Mode::Evaluate, &mut ghost).unwrap();
        ghost.finish(&parameters).unwrap().products.unwrap()
    };
    let expected = ghost(&proxy, &parameters, &train, &scaled, Mode::Evaluate).products.unwrap();
    assert!(relative_error(&run([inverse, epsilon]), &expected) < 1e-12);
    assert!(run([0.0, epsilon]).to_f64_vec().unwrap().iter().all(|product| *product == 0.0));
}

/// A sample's numbers and its loss, to the bit, wherever in its batch it stands and whatever else is in it.
#[test]
fn a_sample_has_the_same_bits_in_every_batch() {
    for dtype in [DType::F32, DType::F64] {
        let (proxy, parameters) = Proxy::new(&backbone(0), dtype, 1).unwrap();
        let (train, v) = (data(0, dtype), gradient(&proxy, &parameters, &data(1, dtype), Mode::Evaluate));
        let numbers = |places: &[usize]| -> Vec<[Vec<u64>; 2]> {
            let found = ghost(&proxy, &parameters, &train.chosen(places), &v, Mode::Evaluate);
            let bits = |numbers: &Option<Tensor>, at: usize| {
                let values = numbers.as_ref().unwrap().to_f64_vec().unwrap();
                values.iter().skip(at).step_by(places.len()).map(|value| value.to_bits()).collect()
            };
            (0..places.len()).map(|at| [bits(&found.products, at), bits(&found.squared_norms, at)]).collect()
        };
        let whole = numbers(&[0, 1, 2, 3, 4]);
        for places in [
            vec![4, 3, 2, 1, 0],
            vec![2, 0, 4, 1, 3],
            vec![0, 4, 2, 2, 1],
            vec![0],
            vec![3],
            vec![0, 1],
            vec![2, 3, 4],
            vec![4, 1, 0, 3],
            vec![1, 1, 0, 2, 3, 4, 0, 4, 3, 2, 1, 2],
        ] {
            for (found, &place) in numbers(&places).iter().zip(&places) {
                assert!(found == &whole[place], "sample {place} in the batch {places:?}, {dtype:?}");
            }
        }
    }
}

/// The forms of a linear layer's numbers agree, and each gives the same bits in any batch.
#[test]
fn the_forms_agree_on_odd_sizes_and_keep_their_bits() {
    for (samples, rows, inputs, outputs) in
        [(3, 5, 17, 33), (4, 1, 7, 5), (2, 30, 72, 130), (1, 3, 1, 1), (5, 2, 600, 300)]
    {
        let values = |count: usize, stream: u64| {
            normal(&[count], stream, DType::F64)
                .to_f64_vec()
                .unwrap()
                .iter()
                .map(|&value| value as f32)
                .collect()
        };
        let (x, d): (Vec<f32>, Vec<f32>) =
            (values(samples * rows * inputs, 1), values(samples * rows * outputs, 2));
        let (v, weights): (Vec<f32>, Vec<f32>) = (values(inputs * outputs, 3), values(samples, 4));
        let weights: Vec<f64> = weights.iter().map(|&weight| f64::from(weight)).collect();
        let run = |form: Form, chosen: &[usize]| {
            let part = |values: &[f32], width: usize| -> Vec<f32> {
                chosen.iter().flat_map(|&at| values[at * rows * width..][..rows * width].to_vec()).collect()
            };
            let (x, d) = (part(&x, inputs), part(&d, outputs));
            let weights: Vec<f64> = chosen.iter().map(|&at| weights[at]).collect();
            let mut sum = vec![0.5f32; inputs * outputs];
            let asked = CpuRequest { direction: Some(&v), norms: true, sum: Some((&mut sum, &weights)) };
            let rows = LinearRows { input: &x, d_output: &d, samples: chosen.len(), inputs, outputs };
            (linear(asked, rows, Some(form)), sum)
        };
        let all: Vec<usize> = (0..samples).collect();
        let (tile, tile_sum) = run(Form::InTile, &all);
        let (projected, projected_sum) = run(Form::Projected, &all);
        // In f64, plainly.
        let mut expected = [vec![0.0; samples], vec![0.0; samples]];
        let mut expected_sum = vec![0.5f64; inputs * outputs];
        for sample in 0..samples {
            for output in 0..outputs {
                for input in 0..inputs {
                    let g: f64 = (sample * rows..(sample + 1) * rows)
                        .map(|row| f64::from(d[row * outputs + output]) * f64::from(x[row * inputs + input]))
                        .sum();
                    expected[0][sample] += g * f64::from(v[output * inputs + input]);
                    expected[1][sample] += g * g;
                    expected_sum[output * inputs + input] += weights[sample] * g;
                }
            }
        }
        let tensor = |values: &[f64]| Tensor::new(&[values.len()], values.to_vec()).unwrap();
        for (what, found, expected) in [
            ("products in the tile", &tile.products, &expected[0]),
            ("norms in the tile", &tile.squared_norms, &expected[1]),
            ("projected products", &projected.products, &expected[0]),
            ("norms of Gram matrices", &projected.squared_norms, &expected[1]),
        ] {
            let error = relative_error(&tensor(found), &tensor(expected));
            assert!(error < tolerance::GHOST_F32, "{what} of {samples}x{rows}x{outputs}x{inputs}: {error:e}");
        }
        for sum in [tile_sum, projected_sum] {
            let error = relative_error(&Tensor::new(&[sum.len()], sum).unwrap(), &tensor(&expected_sum));
            assert!(error < tolerance::GHOST_F32, "the weighted sum: {error:e}");
        }
        for form in [Form::InTile, Form::Projected] {
            let whole = run(form, &all).0;
            let backward: Vec<usize> = (0..samples).rev().collect();
            for chosen in [&backward[..], &all[..1], &all[samples - 1..]] {
                let found = run(form, chosen).0;
                for (at, &place) in chosen.iter().enumerate() {
                    assert_eq!(found.products[at].to_bits(), whole.products[place].to_bits());
                    assert_eq!(found.squared_norms[at].to_bits(), whole.squared_norms[place].to_bits());
                }
            }
        }
    }
}

/// What no formula covers is an error that names the parameter, and never left out.
#[test]
fn what_is_not_covered_is_refused() {
    let (train, v) = (data(0, DType::F64), Gradients::new());
    let direction = Direction { gradients: &v, preconditioner: None };
    // With the released cross-attention samples are mixed.
    let (proxy, parameters) = Proxy::new(&backbone(2), DType::F64, 1).unwrap();
    let mut visitor = Ghost::new(SAMPLES).with_dot(direction);
    let refused = backward(&proxy, &parameters, &train, 1.0, Mode::Evaluate, &mut visitor).unwrap_err();
    assert!(refused.to_string().contains("mixes the samples"), "{refused}");

    let (proxy, mut parameters) = Proxy::new(&backbone(0), DType::F64, 1).unwrap();
    parameters.push("spare.weight", Tensor::zeros(&[3], DType::F64)).unwrap();
    let mut visitor = Ghost::new(SAMPLES).with_norms();
    backward(&proxy, &parameters, &train, 1.0, Mode::Evaluate, &mut visitor).unwrap();
    let refused = visitor.finish(&parameters).unwrap_err();
    assert!(refused.to_string().contains("spare.weight got no gradient"), "{refused}");

    let mut parameters = Parameters::default();
    let id = parameters.push("table", Tensor::zeros(&[3], DType::F64)).unwrap();
    let (rows, owner) = (normal(&[4, 3], 1, DType::F64), RowOwner::Samples { rows_per_sample: 2 });
    let sum = Contribution::Sum { d_output: &rows, column: 0 };
    let mut visitor = Ghost::new(2).with_norms();
    visitor.visit(&parameters, id, owner, &sum).unwrap();
    let refused = visitor.visit(&parameters, id, owner, &sum).unwrap_err();
    assert!(refused.to_string().contains("table is used more than once"), "{refused}");
    let refused = Ghost::new(3).with_norms().visit(&parameters, id, owner, &sum).unwrap_err();
    assert!(refused.to_string().contains("expected 3 samples"), "{refused}");

    // Named as used more than once, its parts meet before the norm is taken.
    let repeated = [id];
    let mut visitor = Ghost::new(2).with_norms().with_repeated(&repeated);
    visitor.visit(&parameters, id, owner, &sum).unwrap();
    visitor.visit(&parameters, id, owner, &sum).unwrap();
    let norms = visitor.finish(&parameters).unwrap().squared_norms.unwrap().to_f64_vec().unwrap();
    let values = rows.to_f64_vec().unwrap();
    for (sample, norm) in norms.iter().enumerate() {
        let expected: f64 =
            (0..3).map(|at| (2.0 * (values[sample * 6 + at] + values[sample * 6 + 3 + at])).powi(2)).sum();
        approx::assert_relative_eq!(*norm, expected, max_relative = 1e-12);
    }
    assert_eq!(id, ParameterId(0));
}

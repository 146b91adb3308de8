//! Per-sample gradient products and norms of the released model, in all and for each parameter. A training sample went through
//! it by itself, so that nothing of another leaked into it.

use alchemist_engine::engine::{Direction, Ghost, Gradients};

use super::*;

/// The gradient of the mean loss.
fn gradient(proxy: &Proxy, parameters: &Parameters, inputs: &Tensors, prefix: &str) -> Gradients {
    let mut visitor = Accumulate::default();
    pass(proxy, parameters, inputs, prefix, |samples| 1.0 / samples as f64, &mut visitor);
    visitor.gradients
}

fn pass(
    proxy: &Proxy,
    parameters: &Parameters,
    inputs: &Tensors,
    prefix: &str,
    seed: impl Fn(usize) -> f64,
    visitor: &mut dyn alchemist_engine::engine::GradientVisitor,
) -> Tensor {
    let codes = &near(&inputs[&format!("{prefix}gt_BL")]);
    let named = |name: &str| inputs[&format!("{prefix}{name}")].clone();
    let text = TextStates {
        states: named("encoder_hidden_states"),
        mask: named("encoder_attention_mask"),
        pooled: named("pooled"),
    };
    let (x, text) = (&near(&named("x_BLCv_wo_first_l")), text_near(&text));
    let mut tape = Tape::new(parameters).with_per_sample_parts(true);
    let loss = proxy.loss(&mut tape, x, &text, codes, 0.0, Mode::Evaluate).unwrap().sample_loss;
    let samples = codes.dim(0);
    let seeds = Tensor::new(&[samples], vec![seed(samples); samples]).unwrap();
    let seeds = near(&seeds.cast(loss.value().dtype()).unwrap());
    tape.backward(vec![(&loss, seeds)], &[], visitor).unwrap();
    loss.into_value()
}

/// The worst error of `[S, P]` numbers of the fixture, by parameter, against the parameter's largest.
fn worst_parameter(found: &Tensor, expected: &Tensor, places: &[usize]) -> f64 {
    let (found, expected) = (found.to_f64_vec().unwrap(), expected.to_f64_vec().unwrap());
    let samples = found.len() / places.len();
    let mut worst = 0.0f64;
    for (column, &row) in places.iter().enumerate() {
        let pairs: Vec<[f64; 2]> = (0..samples)
            .map(|sample| [found[row * samples + sample], expected[sample * places.len() + column]])
            .collect();
        let scale = pairs.iter().fold(0.0f64, |most, [_, expected]| most.max(expected.abs()));
        for [found, expected] in pairs {
            let error = (found - expected).abs() / scale.max(f64::MIN_POSITIVE);
            worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
        }
    }
    worst
}

#[test]
fn products_and_norms_are_those_of_the_released_model() {
    for fixture in fixtures("meta_gradient") {
        let [Some(inputs), Some(expected)] =
            ["inputs", "expected"].map(|file| tensors(&fixture, &format!("{file}.safetensors")))
        else {
            continue;
        };
        let path = fixture.manifest["weights"].as_str().expect("the manifest names the weights");
        let Some(weights) = tensors_at(&fixture, &fixture.folder.join(path)) else { continue };
        let order = fixture.manifest["param_order"].as_array().expect("the parameters have an order");
        let kinds: &[DType] = if device().is_some() { &[DType::F32] } else { &[DType::F64, DType::F32] };
        for &dtype in kinds {
            let network = |first_sample: bool| {
                let config = backbone(&fixture, &weights, first_sample);
                let (proxy, mut parameters) = Proxy::new(&config, DType::F32, 0).unwrap();
                load(&mut parameters, &weights);
                (proxy, parameters_near(parameters.cast(dtype).unwrap()))
            };
            let cast = |tensor: &Tensor| match tensor.dtype() {
                DType::U32 => tensor.clone(),
                _ => tensor.cast(dtype).unwrap(),
            };
            let inputs: Tensors = inputs.iter().map(|(name, tensor)| (name.clone(), cast(tensor))).collect();
            let (proxy, parameters) = network(false);
            let names: Vec<&str> = order.iter().map(|name| name.as_str().expect("a name")).collect();
            let places: Vec<usize> =
                names.iter().map(|name| parameters.id(name).expect("a parameter of the proxy").0).collect();
            assert_eq!(places.len(), parameters.len(), "every parameter is compared");
            let truth = |key: &str| {
                let key = format!("f64.{key}");
                if !expected.contains_key(&key) {
                    lacks(&fixture, &key);
                }
                expected.get(&key)
            };
            let limit = tolerance::PARITY_GHOST;
            // The validation gradient of the model without the mixing of samples, and of the one with it.
            for (first_sample, val) in [(false, "solo_val"), (true, "batch_val")] {
                let (judge, own) = network(first_sample);
                let v = gradient(&judge, &own, &inputs, "val.");
                let samples = inputs["train.gt_BL"].dim(0);
                let direction = Direction { gradients: &v, preconditioner: None };
                let mut ghost = Ghost::new(samples).with_dot(direction).with_norms();
                let losses = pass(&proxy, &parameters, &inputs, "train.", |_| 1.0, &mut ghost);
                let found = ghost.finish(&parameters).unwrap();
                let what = format!("products with {val}, {dtype:?}");
                let whole = |what: &str, found: &Tensor, key: &str| {
                    if let Some(truth) = truth(key) {
                        report(&fixture, what, relative_error(found, truth), limit);
                    }
                };
                let by_parameter = |what: &str, found: &Tensor, key: &str| {
                    if let Some(truth) = truth(key) {
                        let worst = worst_parameter(found, truth, &places);
                        report(&fixture, &format!("{what}, by parameter"), worst, limit);
                    }
                };
                let product = found.product().unwrap().unwrap();
                whole(&what, &product, &format!("ip_total__solo_train__{val}"));
                let key = format!("ip_per_param__solo_train__{val}");
                by_parameter(&what, found.products.as_ref().unwrap(), &key);
                if first_sample {
                    continue;
                }
                whole(&format!("losses, {dtype:?}"), &losses, "loss_solo_train");
                let what = format!("squared norms, {dtype:?}");
                let norm = found.squared_norm().unwrap().unwrap();
                whole(&what, &norm, "sqnorm_total__solo_train");
                by_parameter(&what, found.squared_norms.as_ref().unwrap(), "sqnorm_per_param__solo_train");
            }
        }
    }
}

//! The start of the sequence on a device against the crate's CPU reference in f64, forward and backward.

use std::sync::Arc;

use crate::device::{Number, close, noise, pyramids::PYRAMIDS, rounded, upload};
use alchemist_engine::engine::{
    Accumulate, Parameters, Tape, Tensor,
    autograd::contributions::cuda::{scale, sum_samples},
    cuda::{Buffer, Device},
    ops::{
        levels::{Levels, SequenceLevels},
        patch_embed::{
            self, PatchEmbed,
            cuda::{
                DevicePatchEmbedParameters, patch_embed_backward, patch_embed_backward_bias,
                patch_embed_backward_weight, patch_embed_forward,
            },
            patch_embed,
        },
    },
};

struct Case {
    batch: usize,
    /// Tokens of each level.
    counts: Vec<usize>,
    channels: usize,
    depth: usize,
    level: bool,
    position: bool,
}

fn cases() -> Vec<Case> {
    let case = |batch, counts: &[usize], channels, depth, level, position| Case {
        batch,
        counts: counts.to_vec(),
        channels,
        depth,
        level,
        position,
    };
    let pyramids = PYRAMIDS.map(|sides| {
        let counts: Vec<usize> = sides.iter().map(|side| side * side).collect();
        case(1, &counts, 64, 32, true, true)
    });
    let others = [
        case(1, &[1], 1, 1, false, false),
        case(2, &[1, 4], 37, 3, true, true),
        // A start of four tokens, a size of code that is no multiple of four, more channels than a block has.
        case(3, &[4, 9, 25], 131, 33, true, false),
        // Tensor cores in the 16-bit types: levels that meet within tiles of 16, several blocks of 8 samples.
        case(9, &[1, 4], 64, 64, true, true),
        case(17, &[4, 9, 16], 128, 32, true, true),
        case(2, &[1, 4, 9, 25, 100, 31], 64, 32, true, true),
        case(1, &[1, 3, 16], 320, 32, false, false),
        case(2, &[4, 16, 15], 64, 64, true, false),
        // Larger than what the tensor-core kernels take.
        case(1, &[1, 7], 64, 80, true, false),
    ];
    pyramids.into_iter().chain(others).collect()
}

fn patch_embed_case<T: Number>(device: &Device) {
    for Case { batch, counts, channels, depth, level, position } in cases() {
        let (tokens, first, levels) = (counts.iter().sum::<usize>(), counts[0], counts.len());
        let weight = rounded::<T>(&noise(channels * depth, 1));
        let [bias, start, level_table, positions] =
            [(channels, 2), (first * channels, 3), (levels * channels, 4), (tokens * channels, 5)]
                .map(|(count, seed)| rounded::<f32>(&noise(count, seed)));
        let text = rounded::<T>(&noise(batch * channels, 6));
        let rows = rounded::<T>(&noise(batch * (tokens - first) * depth, 7));
        let d_x = rounded::<T>(&noise(batch * tokens * channels, 8));

        let mut parameters = Parameters::default();
        let mut add = |name: &str, shape: &[usize], values: &[f64]| {
            parameters.push(name, Tensor::new(shape, values.to_vec()).unwrap()).unwrap()
        };
        let weight_id = add("weight", &[channels, depth], &weight);
        let bias_id = add("bias", &[channels], &bias);
        let start_id = add("start", &[1, first, channels], &start);
        let level_id = level.then(|| add("level", &[levels, channels], &level_table));
        let position_id = position.then(|| add("position", &[1, tokens, channels], &positions));
        let settings = patch_embed::PatchEmbedParameters {
            weight: weight_id,
            bias: bias_id,
            start: start_id,
            level: level_id,
            position: position_id,
        };
        let settings = PatchEmbed::new(settings, Arc::new(Levels::new(&counts)));
        let mut tape = Tape::new(&parameters);
        let text_leaf = tape.leaf(Tensor::new(&[batch, channels], text.clone()).unwrap());
        let input = tape.constant(Tensor::new(&[batch, tokens - first, depth], rows.clone()).unwrap());
        let x = patch_embed(&mut tape, &text_leaf, &input, &settings).unwrap();
        let d_output = Tensor::new(x.value().shape(), d_x.clone()).unwrap();
        let mut visitor = Accumulate::default();
        let gradients = tape.backward(vec![(&x, d_output)], &[&text_leaf], &mut visitor).unwrap();
        let gradient = |id: alchemist_engine::engine::ParameterId| {
            visitor.gradients[id.0].as_ref().unwrap().to_f64_vec().unwrap()
        };

        // The rows with zeros for the first tokens.
        let mut padded = vec![0.0; batch * tokens * depth];
        for (sample, to) in padded.chunks_mut(tokens * depth).enumerate() {
            let count = (tokens - first) * depth;
            to[first * depth..].copy_from_slice(&rows[sample * count..][..count]);
        }
        let sequence = SequenceLevels::new(device, &counts).unwrap();
        let [text, rows, padded, weight, d_x] =
            [&text, &rows, &padded, &weight, &d_x].map(|values| upload::<T>(device, values));
        let [bias, start, level_table, positions] =
            [&bias, &start, &level_table, &positions].map(|values| upload::<f32>(device, values));
        let on_device = DevicePatchEmbedParameters {
            weight: &weight,
            bias: &bias,
            start: &start,
            level: level.then_some(&level_table),
            position: position.then_some(&positions),
        };
        let expected = x.value().to_f64_vec().unwrap();
        for rows in [&rows, &padded] {
            let mut x = device.uninitialized::<T>(batch * tokens * channels).unwrap();
            patch_embed_forward(&mut x, &text, rows, &on_device, &sequence).unwrap();
            close::<T>("the sequence", &x, &expected, T::BOUND);
        }

        let mut sums = device.uninitialized(batch * levels * channels).unwrap();
        let mut d_text = device.uninitialized::<T>(batch * channels).unwrap();
        let sizes = [batch, channels];
        patch_embed_backward(&mut sums, Some(&mut d_text), &d_x, &sequence, sizes).unwrap();
        let expected = gradients[0].as_ref().unwrap().to_f64_vec().unwrap();
        close::<T>("the text's gradient", &d_text, &expected, T::BOUND);
        let summed = |d: &Buffer<f32>, count: usize, stride: usize| {
            let mut sum = device.uninitialized::<f32>(count).unwrap();
            sum_samples(&mut sum, d, None, stride, false).unwrap();
            sum
        };
        if let Some(id) = level_id {
            let sum = summed(&sums, levels * channels, levels * channels);
            close::<f32>("the level table's gradient", &sum, &gradient(id), 1e-5);
        }
        if first == 1 {
            let sum = summed(&sums, channels, levels * channels);
            close::<f32>("the gradient of a start of one token", &sum, &gradient(start_id), 1e-5);
        }
        let mut d_bias = device.uninitialized(batch * channels).unwrap();
        patch_embed_backward_bias(&mut d_bias, &sums, &sequence, sizes).unwrap();
        close::<f32>("the bias's gradient", &summed(&d_bias, channels, channels), &gradient(bias_id), 1e-5);
        let mut d_start = device.uninitialized::<f32>(first * channels).unwrap();
        sum_samples(&mut d_start, &d_x, None, tokens * channels, false).unwrap();
        close::<f32>("the start's gradient", &d_start, &gradient(start_id), 1e-5);
        if let Some(id) = position_id {
            let mut d_position = device.uninitialized::<f32>(tokens * channels).unwrap();
            sum_samples(&mut d_position, &d_x, None, tokens * channels, false).unwrap();
            close::<f32>("the positions' gradient", &d_position, &gradient(id), 1e-5);
        }
        let mut d_weight = device.zeros::<f32>(channels * depth).unwrap();
        for _ in 0..2 {
            patch_embed_backward_weight(&mut d_weight, &d_x, &padded, channels, true).unwrap();
        }
        scale(&mut d_weight, None, 0.5).unwrap();
        close::<f32>("the weight's gradient", &d_weight, &gradient(weight_id), 1e-5);
    }
}

#[test]
fn the_start_of_the_sequence_matches_the_reference() {
    in_all_types!(patch_embed_case);
}

#[test]
fn launchers_refuse_sizes_that_do_not_fit() {
    let device = Device::emulated().unwrap();
    let sequence = SequenceLevels::new(&device, &[1, 4]).unwrap();
    let zeros = |count: usize| device.zeros::<f32>(count).unwrap();
    let (text, weight, bias, start) = (zeros(2 * 8), zeros(8 * 3), zeros(8), zeros(8));
    let parameters = DevicePatchEmbedParameters {
        weight: &weight,
        bias: &bias,
        start: &start,
        level: None,
        position: None,
    };
    let mut x = zeros(2 * 5 * 8);
    assert!(patch_embed_forward(&mut x, &text, &zeros(2 * 4 * 3), &parameters, &sequence).is_ok());
    assert!(patch_embed_forward(&mut x, &text, &zeros(2 * 3 * 3), &parameters, &sequence).is_err());
    assert!(patch_embed_forward(&mut zeros(79), &text, &zeros(24), &parameters, &sequence).is_err());
    let short = zeros(7);
    let wrong = DevicePatchEmbedParameters { level: Some(&short), ..parameters };
    assert!(patch_embed_forward(&mut x, &text, &zeros(24), &wrong, &sequence).is_err());
    assert!(patch_embed_backward(&mut zeros(31), None, &x, &sequence, [2, 8]).is_err());
    assert!(SequenceLevels::new(&device, &[]).is_err());
}

//! Cross-entropy.

use alchemist_engine::engine::{
    cuda::Device,
    ops::cross_entropy::cuda::{self as kernels, CrossEntropyOutput},
};

use crate::device::{Number, close, noise, rounded, upload};

fn cross_entropy_case<T: Number>(device: &Device) {
    for (batch, tokens, codes, smoothing) in
        [(1, 1, 1, 0.0), (2, 3, 37, 0.1), (1, 2, 256, 0.0), (2, 1, 4096, 0.2), (1, 2, 4099, 0.1)]
    {
        let rows = batch * tokens;
        let mut logits = rounded::<T>(&noise(rows * codes, 7).iter().map(|z| 6.0 * z).collect::<Vec<_>>());
        // In the last row the last logit is as large as the largest, and is the target's: a later one of equals is not the first.
        let last = &mut logits[(rows - 1) * codes..];
        last[codes - 1] = last.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let seeds = rounded::<f32>(&noise(batch, 8));
        let (mut targets, mut losses, mut correct, mut gradient) = (vec![], vec![], vec![], vec![]);
        for row in 0..rows {
            let z = &logits[row * codes..][..codes];
            let best = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let first_best = z.iter().position(|&value| value == best).unwrap();
            // Every other target is the largest logit, so that both answers are seen.
            let target = match row {
                _ if row == rows - 1 => codes - 1,
                _ if row % 2 == 0 => first_best,
                _ => (row * 31) % codes,
            };
            let log_sum = best + z.iter().map(|value| (value - best).exp()).sum::<f64>().ln();
            let mean = z.iter().sum::<f64>() / codes as f64;
            targets.push(target as u32);
            losses.push((1.0 - smoothing) * (log_sum - z[target]) + smoothing * (log_sum - mean));
            correct.push(u32::from(first_best == target));
            gradient.extend((0..codes).map(|v| {
                let aim = smoothing / codes as f64 + if v == target { 1.0 - smoothing } else { 0.0 };
                ((z[v] - log_sum).exp() - aim) * seeds[row / tokens]
            }));
        }
        let z = upload::<T>(device, &logits);
        let (targets, seeds) = (device.upload(&targets).unwrap(), upload::<f32>(device, &seeds));
        let (mut loss, mut right) =
            (device.uninitialized(rows).unwrap(), device.uninitialized(rows).unwrap());
        let mut dz = device.uninitialized(rows * codes).unwrap();
        let sizes = [batch, tokens, codes];
        let output =
            CrossEntropyOutput { losses: &mut loss, correct: &mut right, d_logits: Some((&mut dz, &seeds)) };
        kernels::cross_entropy(output, &z, &targets, sizes, smoothing as f32).unwrap();
        close::<f32>("cross-entropy", &loss, &losses, 1e-5);
        close::<T>("cross-entropy's gradient", &dz, &gradient, T::BOUND);
        assert_eq!(right.to_host().unwrap(), correct);
        assert_eq!(correct[rows - 1] == 0, codes > 1);
        let output = CrossEntropyOutput { losses: &mut loss, correct: &mut right, d_logits: None };
        kernels::cross_entropy(output, &z, &targets, sizes, smoothing as f32).unwrap();
        close::<f32>("cross-entropy alone", &loss, &losses, 1e-5);
    }
}

#[test]
fn cross_entropy_and_its_gradient_match_the_reference() {
    in_all_types!(cross_entropy_case);
}

#[test]
fn a_target_that_is_no_code_stops_the_emulator() {
    let device = Device::emulated().unwrap();
    let (z, targets) = (device.upload(&[0.0f32; 8]).unwrap(), device.upload(&[3u32, 4]).unwrap());
    let (mut loss, mut right) = (device.uninitialized(2).unwrap(), device.uninitialized(2).unwrap());
    let output = CrossEntropyOutput { losses: &mut loss, correct: &mut right, d_logits: None };
    let message = kernels::cross_entropy(output, &z, &targets, [1, 2, 4], 0.0).unwrap_err().to_string();
    assert!(
        message.contains("a target is not one of the codes") && message.contains("cross_entropy.cu:"),
        "{message}"
    );
}

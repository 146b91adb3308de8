//! The softmax over the batch.

use alchemist_engine::engine::{
    cuda::Device,
    ops::batch_softmax::{batch_softmax, cuda as kernels},
};

use crate::{
    device::{Number, close, noise, rounded, upload},
    reference::reference,
};

fn batch_softmax_case<T: Number>(device: &Device) {
    for (batch, temperature) in [(1, 1.0), (7, 0.5), (64, 2.0), (300, 1.0)] {
        let (x, dy) = (rounded::<T>(&noise(batch, 1)), rounded::<T>(&noise(batch, 2)));
        let (y, _) = reference(&[(&[batch, 1], &x)], &dy, |tape, x| batch_softmax(tape, &x[0], temperature));
        // The backward takes the weights as they are stored.
        let stored = rounded::<T>(&y);
        let total: f64 = stored.iter().sum();
        let mean = stored.iter().zip(&dy).map(|(y, d)| y * d).sum::<f64>() / total;
        let d: Vec<f64> = stored.iter().zip(&dy).map(|(y, d)| y * (d - mean) / temperature).collect();
        let [x, dy, weights] = [&x, &dy, &stored].map(|values| upload::<T>(device, values));
        let mut out = device.uninitialized::<T>(batch).unwrap();
        kernels::batch_softmax_forward(&mut out, &x, temperature as f32).unwrap();
        close::<T>("the softmax over the batch", &out, &y, T::BOUND);
        kernels::batch_softmax_backward(&mut out, &dy, &weights, temperature as f32).unwrap();
        close::<T>("the softmax's gradient", &out, &d, T::BOUND);
    }
}

#[test]
fn softmaxes_match_the_reference() {
    in_all_types!(batch_softmax_case);
}

#[test]
fn launchers_refuse_a_temperature_of_zero() {
    let device = Device::emulated().unwrap();
    let x = device.zeros::<f32>(30).unwrap();
    let mut y = device.zeros::<f32>(30).unwrap();
    assert!(kernels::batch_softmax_forward(&mut y, &x, 0.0).is_err());
}

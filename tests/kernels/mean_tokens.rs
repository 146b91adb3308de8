//! Means over tokens.

use alchemist_engine::engine::{
    cuda::Device,
    ops::mean_tokens::{cuda as kernels, mean_tokens},
};

use crate::{
    device::{Number, close, noise, rounded, upload},
    reference::reference,
};

fn mean_tokens_case<T: Number>(device: &Device) {
    for (batch, tokens, channels) in [(1, 1, 1), (3, 14, 37), (2, 67, 64)] {
        let x = rounded::<T>(&noise(batch * tokens * channels, 1));
        let dy = rounded::<T>(&noise(batch * channels, 2));
        let (y, d) = reference(&[(&[batch, tokens, channels], &x)], &dy, |tape, x| mean_tokens(tape, &x[0]));
        let sizes = [batch, tokens, channels];
        let x = upload::<T>(device, &x);
        let (narrow, wide) = (upload::<T>(device, &dy), upload::<f32>(device, &dy));
        let mut mean = device.uninitialized::<T>(batch * channels).unwrap();
        let mut wide_mean = device.uninitialized::<f32>(batch * channels).unwrap();
        let mut dx = device.uninitialized::<T>(batch * tokens * channels).unwrap();
        kernels::mean_tokens_forward(&mut mean, &x, sizes).unwrap();
        close::<T>("the mean over tokens", &mean, &y, T::BOUND);
        kernels::mean_tokens_forward(&mut wide_mean, &x, sizes).unwrap();
        close::<f32>("the mean over tokens in f32", &wide_mean, &y, 1e-5);
        kernels::mean_tokens_backward(&mut dx, &narrow, sizes).unwrap();
        close::<T>("the mean's gradient", &dx, &d[0], T::BOUND);
        kernels::mean_tokens_backward(&mut dx, &wide, sizes).unwrap();
        close::<T>("the mean's gradient from f32", &dx, &d[0], T::BOUND);
    }
}

#[test]
fn means_match_the_reference() {
    in_all_types!(mean_tokens_case);
}

#[test]
fn launchers_refuse_sizes_that_do_not_fit() {
    let device = Device::emulated().unwrap();
    let x = device.zeros::<f32>(30).unwrap();
    let mut short = device.zeros::<f32>(29).unwrap();
    assert!(kernels::mean_tokens_forward(&mut short, &x, [3, 2, 5]).is_err());
}

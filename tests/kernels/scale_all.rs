//! Every number times one.

use alchemist_engine::engine::{
    cuda::Device,
    ops::scale_all::{cuda as kernels, scale_all},
};

use crate::{
    device::{Number, close, noise, rounded, upload},
    reference::reference,
};

fn scale_all_case<T: Number>(device: &Device) {
    for batch in [1, 7, 64, 300] {
        let (x, dy) = (rounded::<T>(&noise(batch, 1)), rounded::<T>(&noise(batch, 2)));
        let factor = rounded::<T>(&[0.7]);
        let (y, gradients) = reference(&[(&[batch, 1], &x), (&[1, 1], &factor)], &dy, |tape, inputs| {
            scale_all(tape, &inputs[0], &inputs[1])
        });
        let [x, dy, factor] = [&x, &dy, &factor].map(|values| upload::<T>(device, values));
        let mut out = device.uninitialized::<T>(batch).unwrap();
        kernels::scale_all_forward(&mut out, &x, &factor).unwrap();
        close::<T>("scale all", &out, &y, T::BOUND);
        let mut d_factor = device.uninitialized::<T>(1).unwrap();
        kernels::scale_all_backward(&mut out, &mut d_factor, &dy, &x, &factor).unwrap();
        close::<T>("scale all's gradient", &out, &gradients[0], T::BOUND);
        close::<T>("the scale's gradient", &d_factor, &gradients[1], T::BOUND);
    }
}

#[test]
fn products_with_one_number_match_the_reference() {
    in_all_types!(scale_all_case);
}

#[test]
fn launchers_refuse_sizes_that_do_not_fit() {
    let device = Device::emulated().unwrap();
    let x = device.zeros::<f32>(30).unwrap();
    let mut y = device.zeros::<f32>(30).unwrap();
    assert!(kernels::scale_all_forward(&mut y, &x, &x).is_err());
}

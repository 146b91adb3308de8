//! One sample added to all.

use alchemist_engine::engine::{
    cuda::Device,
    ops::add_to_all::{add_to_all, cuda as kernels},
};

use crate::{
    device::{Number, close, noise, rounded, upload},
    reference::reference,
};

fn add_to_all_case<T: Number>(device: &Device) {
    for (batch, share) in [(1, 1), (3, 37), (2, 2056), (4, 64)] {
        let count = batch * share;
        let (x, addend) = (rounded::<T>(&noise(count, 1)), rounded::<T>(&noise(share, 2)));
        let d = rounded::<T>(&noise(count, 3));
        let (y, gradients) =
            reference(&[(&[batch, share], &x), (&[1, share], &addend)], &d, |tape, inputs| {
                add_to_all(tape, &inputs[0], &inputs[1])
            });
        let [x, addend, d] = [&x, &addend, &d].map(|values| upload::<T>(device, values));
        let mut out = device.uninitialized(count).unwrap();
        kernels::add_to_all(&mut out, Some(&x), &addend).unwrap();
        close::<T>("add to all", &out, &y, T::BOUND);
        let mut in_place =
            upload::<T>(device, &x.to_host().unwrap().iter().map(|x| x.wide()).collect::<Vec<_>>());
        kernels::add_to_all(&mut in_place, None, &addend).unwrap();
        assert_eq!(in_place.to_host().unwrap(), out.to_host().unwrap(), "in place");
        let mut d_addend = device.uninitialized(share).unwrap();
        kernels::add_to_all_backward(&mut d_addend, &d).unwrap();
        close::<T>("the addend's gradient", &d_addend, &gradients[1], T::BOUND);
    }
}

#[test]
fn additions_match_the_reference() {
    in_all_types!(add_to_all_case);
}

#[test]
fn launchers_refuse_sizes_that_do_not_fit() {
    let device = Device::emulated().unwrap();
    let seven = device.zeros::<f32>(7).unwrap();
    let mut y = device.zeros::<f32>(30).unwrap();
    assert!(kernels::add_to_all(&mut y, None, &seven).is_err());
    assert!(kernels::add_to_all_backward(&mut y, &seven).is_err());
}

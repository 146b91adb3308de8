//! Residuals with drop-path.

use alchemist_engine::engine::{
    Tensor,
    autograd::contributions::cuda::{residual_forward, scale},
    cuda::Device,
    ops::residual::{cuda::residual_backward, residual},
};

use crate::{
    device::{Number, close, noise, rounded, upload},
    reference::reference,
};

fn residual_case<T: Number>(device: &Device) {
    for (batch, share, dropped) in [(1, 1, false), (3, 37, true), (2, 2056, true), (4, 64, false)] {
        let count = batch * share;
        let (x, branch) = (rounded::<T>(&noise(count, 1)), rounded::<T>(&noise(count, 2)));
        let d = rounded::<T>(&noise(count, 3));
        let keep: Vec<f64> = (0..batch).map(|sample| if sample % 2 == 1 { 0.0 } else { 1.25 }).collect();
        let shape = [batch, share];
        let (y, gradients) = reference(&[(&shape, &x), (&shape, &branch)], &d, |tape, inputs| {
            let keep = dropped.then(|| Tensor::new(&[batch], keep.clone()).unwrap());
            residual(tape, &inputs[0], &inputs[1], keep)
        });
        let mut branch = branch;
        if dropped {
            // A branch that is dropped may hold anything.
            for value in branch.chunks_mut(share).skip(1).step_by(2).flatten() {
                *value = f64::NAN;
            }
        }
        let keep = upload::<f32>(device, &keep);
        let keep = dropped.then_some(&keep);
        let [x, branch, d] = [&x, &branch, &d].map(|values| upload::<T>(device, values));
        let mut out = device.uninitialized(count).unwrap();
        residual_forward(&mut out, Some(&x), &branch, keep).unwrap();
        close::<T>("residual", &out, &y, T::BOUND);
        scale(&mut out, Some(&x), 1.0).unwrap();
        residual_forward(&mut out, None, &branch, keep).unwrap();
        close::<T>("residual in place", &out, &y, T::BOUND);
        if let Some(keep) = keep {
            residual_backward(&mut out, Some(&d), keep).unwrap();
            close::<T>("the branch's gradient", &out, &gradients[1], T::BOUND);
        }
    }
}

#[test]
fn residuals_match_the_reference() {
    in_all_types!(residual_case);
}

#[test]
fn launchers_refuse_sizes_that_do_not_fit() {
    let device = Device::emulated().unwrap();
    let x = device.zeros::<f32>(30).unwrap();
    let mut y = device.zeros::<f32>(30).unwrap();
    let four = device.zeros::<f32>(4).unwrap();
    assert!(residual_forward(&mut y, None, &x, Some(&four)).is_err());
}

//! The arithmetic of contributions: sums, gathers and scales.

use alchemist_engine::engine::{
    autograd::contributions::cuda::{self as kernels, Columns, GatherIndex},
    cuda::Device,
};
use half::bf16;

use crate::device::{Number, close, noise, rounded, upload};

fn contributions_case<T: Number>(device: &Device) {
    for (rows, width, first, count) in
        [(1, 1, 0, 1), (5, 40, 3, 33), (512, 8, 0, 8), (513, 9, 1, 5), (1100, 6, 0, 6)]
    {
        let (d, held) = (rounded::<T>(&noise(rows * width, 1)), rounded::<f32>(&noise(count, 2)));
        let sums: Vec<f64> =
            (0..count).map(|c| d.iter().skip(first + c).step_by(width).sum::<f64>()).collect();
        let d = upload::<T>(device, &d);
        let mut total = device.uninitialized(count).unwrap();
        kernels::column_sum(&mut total, &d, Columns { width, first }, false).unwrap();
        close::<f32>("sums of columns", &total, &sums, 1e-5);
        let mut total = upload::<f32>(device, &held);
        kernels::column_sum(&mut total, &d, Columns { width, first }, true).unwrap();
        let sums: Vec<f64> = sums.iter().zip(&held).map(|(sum, held)| sum + held).collect();
        close::<f32>("sums of columns, added", &total, &sums, 1e-5);
    }
    for (samples, index, rows, columns) in [
        (1, vec![0], 1, 1),
        (3, vec![0, 1, 1, 1, 1, 3, 3, 3, 3, 3, 3, 3, 3, 3], 4, 37),
        (2, vec![u32::MAX, 2, 0, 2, u32::MAX], 3, 64),
    ] {
        let d = rounded::<T>(&noise(samples * index.len() * columns, 3));
        let mut expected = rounded::<f32>(&noise(rows * columns, 4));
        let mut table = upload::<f32>(device, &expected);
        for (row, d) in d.chunks(columns).enumerate() {
            let at = index[row % index.len()];
            if at != u32::MAX {
                for (sum, d) in expected[at as usize * columns..][..columns].iter_mut().zip(d) {
                    *sum += d;
                }
            }
        }
        let index = GatherIndex::new(device, &index, rows).unwrap();
        kernels::gather_sum(&mut table, &upload::<T>(device, &d), &index).unwrap();
        close::<f32>("the gradient of a table", &table, &expected, 1e-5);
    }
    for (samples, stride, count) in [(1, 1, 1), (5, 37, 37), (3, 64, 64), (3, 64, 20), (4, 41, 7)] {
        let (d, weights) = (rounded::<T>(&noise(samples * stride, 5)), rounded::<f32>(&noise(samples, 6)));
        let held = rounded::<f32>(&noise(count, 7));
        let sum = |weighted: bool, start: &dyn Fn(usize) -> f64| -> Vec<f64> {
            (0..count)
                .map(|at| {
                    let each =
                        (0..samples).map(|s| d[s * stride + at] * if weighted { weights[s] } else { 1.0 });
                    start(at) + each.sum::<f64>()
                })
                .collect()
        };
        let (plain, weighted) = (sum(false, &|_| 0.0), sum(true, &|at| held[at]));
        let scaled: Vec<f64> = d.iter().enumerate().map(|(at, d)| d * weights[at / stride]).collect();
        let (d, weights) = (upload::<T>(device, &d), upload::<f32>(device, &weights));
        let mut same = device.uninitialized::<T>(count).unwrap();
        kernels::sum_samples(&mut same, &d, None, stride, false).unwrap();
        close::<T>("the sum of samples", &same, &plain, T::BOUND);
        let mut wide = upload::<f32>(device, &held);
        kernels::sum_samples(&mut wide, &d, Some(&weights), stride, true).unwrap();
        close::<f32>("the weighted sum of samples", &wide, &weighted, 1e-5);
        let mut out = device.uninitialized::<T>(samples * stride).unwrap();
        kernels::scale_samples(&mut out, Some(&d), &weights).unwrap();
        close::<T>("weighted samples", &out, &scaled, T::BOUND);
    }
    for count in [1, 37, 1024, 2051] {
        let x = rounded::<T>(&noise(count, 8));
        let held = rounded::<f32>(&noise(count, 10));
        let of = |value: &dyn Fn(usize) -> f64| (0..count).map(value).collect::<Vec<f64>>();
        let wide_x = &x;
        let (x, mut sum) = (upload::<T>(device, wide_x), upload::<f32>(device, &held));
        kernels::add_scaled(&mut sum, &x, -0.5).unwrap();
        close::<f32>("y += a x", &sum, &of(&|at| held[at] - 0.5 * wide_x[at]), 1e-5);
        let mut out = device.uninitialized::<T>(count).unwrap();
        kernels::scale(&mut out, Some(&x), 3.0).unwrap();
        kernels::scale(&mut out, None, 0.5).unwrap();
        close::<T>("a x", &out, &of(&|at| 1.5 * wide_x[at]), T::BOUND);
        kernels::fill(&mut out, 0.25).unwrap();
        assert_eq!(out.to_host().unwrap(), vec![T::round(0.25); count]);
    }
}

#[test]
fn contributions_match_the_reference() {
    in_all_types!(contributions_case);
}

#[test]
fn kernels_give_the_same_bits_on_any_number_of_threads() {
    let device = Device::emulated().unwrap();
    let d = upload::<bf16>(&device, &noise(700 * 40, 11));
    let sums = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut sums = device.uninitialized(40).unwrap();
            kernels::column_sum(&mut sums, &d, Columns { width: 40, first: 0 }, false).unwrap();
            sums.to_host().unwrap()
        })
    };
    assert_eq!(sums(1), sums(2));
}

#[test]
fn launchers_refuse_sizes_that_do_not_fit() {
    let device = Device::emulated().unwrap();
    let x = device.zeros::<f32>(30).unwrap();
    let mut y = device.zeros::<f32>(30).unwrap();
    let mut short = device.zeros::<f32>(29).unwrap();
    let four = device.zeros::<f32>(4).unwrap();
    assert!(kernels::column_sum(&mut short, &x, Columns { width: 29, first: 0 }, false).is_err());
    assert!(kernels::column_sum(&mut short, &x, Columns { width: 30, first: 2 }, false).is_err());
    assert!(kernels::sum_samples(&mut y, &x, None, 15, false).is_err());
    assert!(kernels::scale_samples(&mut y, Some(&x), &four).is_err());
    assert!(GatherIndex::new(&device, &[0, 3], 3).is_err());
}

//! The attention kernels against the CPU reference in f64, on the emulator and, where there is one, on a GPU.
//!
//! Inputs are rounded to the kernel's type before the reference sees them. Results and gradients must be within the
//! type's bound (f32 1e-5, bf16 2e-2, f16 3e-3) of the reference: as the root mean square of the errors over that of
//! the numbers, and number by number, relative to the number plus that root mean square. Number by number, the bound is
//! twice the error of plain loops that round each step to the type, where that is more: gradients of the first tokens,
//! which all others see, are far above the mean, and a scale of 40 or 100 multiplies the rounding of unit vectors.
//! `ALCHEMIST_REQUIRE_GPU=1` tests on the GPU alone: no GPU is an error.

#![expect(clippy::print_stdout, reason = "ALCHEMIST_SHOW_ERRORS asks for the errors")]

use crate::attention_cases::{Case, Number, Outcome, naive, reference, rounded, upload};
use crate::device::pyramids::PYRAMIDS;
use alchemist_engine::engine::{
    cuda::{Buffer, Device},
    ops::attention::cuda::{self, DeviceAttention, SourceGradients},
};
use half::{bf16, f16};

/// The devices to test on.
fn test_devices() -> Vec<Device> {
    if std::env::var("ALCHEMIST_REQUIRE_GPU").is_ok_and(|value| value == "1") {
        return vec![Device::cuda(0).unwrap_or_else(|reason| panic!("a GPU is required, but {reason}"))];
    }
    let mut found = vec![Device::emulated().expect("the emulator")];
    found.extend(Device::cuda(0));
    found
}

/// Runs a case in all three types on all devices.
macro_rules! in_all_types {
    ($case:ident) => {
        for device in test_devices() {
            $case::<f32>(&device);
            $case::<bf16>(&device);
            $case::<f16>(&device);
        }
    };
}

fn on_device<T: Number>(device: &Device, case: &Case) -> Outcome {
    let numbers = |buffer: &Buffer<T>| -> Vec<f64> {
        buffer.to_host().unwrap().into_iter().map(Number::wide).collect()
    };
    let single = |values: &[f64]| upload::<f32>(device, values);
    let visible = case.visible.as_ref().map(|visible| {
        device.upload(&visible.iter().map(|&count| count as u32).collect::<Vec<_>>()).unwrap()
    });
    let mask = case.mask.as_ref().map(|mask| device.upload(mask).unwrap());
    let log_scale = case.log_scale.as_ref().map(|scale| single(scale));
    let rotary = case.rotary.as_ref().map(|table| (single(&table.cosine), single(&table.sine)));
    let shape = DeviceAttention {
        batch: case.batch,
        heads: case.heads,
        head_dim: case.head_dim,
        queries: case.queries,
        keys: case.keys,
        packed: case.packed(),
        visible: visible.as_ref(),
        mask: mask.as_ref(),
        log_scale: log_scale.as_ref(),
        rotary: rotary.as_ref().map(|(cosine, sine)| (cosine, sine)),
    };
    let first = upload::<T>(device, &case.sources[0]);
    let other = (!case.packed()).then(|| upload::<T>(device, &case.sources[1]));
    let second = other.as_ref().unwrap_or(&first);
    let d_out = upload::<T>(device, &case.d_out);
    let mut out = device.uninitialized::<T>(d_out.len()).unwrap();
    let mut rows = device.uninitialized::<f32>(shape.rows_len::<T>()).unwrap();
    cuda::forward(&mut out, &mut rows, &shape, &first, second).unwrap();
    let mut d_first = device.uninitialized::<T>(first.len()).unwrap();
    let mut d_second = other.as_ref().map(|other| device.uninitialized::<T>(other.len()).unwrap());
    let mut d_scale =
        log_scale.as_ref().map(|_| device.uninitialized::<f32>(case.batch * case.heads).unwrap());
    let gradients = match d_second.as_mut() {
        None => SourceGradients::Packed(&mut d_first),
        Some(d_kv) => SourceGradients::Separate { d_q: &mut d_first, d_kv },
    };
    cuda::backward(gradients, d_scale.as_mut(), &mut rows, &shape, &first, second, &out, &d_out).unwrap();
    Outcome {
        out: numbers(&out),
        d_sources: [numbers(&d_first), d_second.as_ref().map_or(Vec::new(), numbers)],
        d_log_scale: d_scale
            .map_or(Vec::new(), |scale| scale.to_host().unwrap().into_iter().map(f64::from).collect()),
    }
}

/// How many digits a case leaves of its results.
#[derive(Clone, Copy, PartialEq)]
enum Digits {
    All,
    /// Large scales multiply the rounding of unit vectors.
    Fewer,
    /// All logits are nearly equal and far from 0, too.
    Canceled,
}

/// Compares with the reference. Where digits are few, mean errors are not held to the bound either.
#[track_caller]
fn check<T: Number>(device: &Device, case: &Case, digits: Digits) -> Outcome {
    let expected = reference(case);
    let found = on_device::<T>(device, case);
    let naive = naive::<T>(case).errors(&expected);
    for (part, ((what, _), [largest, mean])) in
        found.parts().into_iter().zip(found.errors(&expected)).enumerate()
    {
        // Where scales are large: twice the error of plain loops and the noise of one rounding.
        let noise = if digits != Digits::All { T::BOUND } else { 0.0 };
        let [mut most, most_mean] = naive[part].map(|error| T::BOUND.max(2.0 * error + noise));
        // Logits of 40 and more leave f32 fewer digits: one rounding of a logit of 144 is 1e-5 of its weight. Measured, with
        // scales up to 100: 3.3e-5 on the emulator, 3.8e-5 on an H200.
        if digits != Digits::All {
            most = most.max(5e-5);
        }
        // Equal logits of -40 cancel in the sum that is the scale's gradient: measured 1.7e-4 in f32, and in 16 bits
        // nothing is left of it, here or in plain loops.
        if digits == Digits::Canceled && part == 3 {
            most = if T::BOUND < 1e-4 { 5e-4 } else { f64::INFINITY };
        }
        // The gradient of the scale is a few numbers, each a sum of many that cancel: it has no mean to speak of.
        let most_mean = if part == 3 {
            f64::INFINITY
        } else if digits != Digits::All {
            most_mean
        } else {
            T::BOUND
        };
        if std::env::var_os("ALCHEMIST_SHOW_ERRORS").is_some() {
            println!(
                "{:>5} {what}: {largest:.1e} of {most:.1e}, mean {mean:.1e} of {most_mean:.1e} ({})",
                T::SUFFIX,
                case.describe()
            );
        }
        assert!(
            largest <= most && mean <= most_mean,
            "{what} in {}: the largest error {largest:.1e} of {most:.1e}, the mean {mean:.1e} of {most_mean:.1e} ({})",
            T::SUFFIX,
            case.describe()
        );
    }
    found
}

fn head_sizes<T: Number>(device: &Device) {
    for (heads, head_dim) in [(2, 4), (1, 16), (2, 20), (2, 32), (2, 36), (2, 64), (1, 128)] {
        check::<T>(device, &Case::pyramid::<T>(2, heads, head_dim, &[1, 2, 3, 5]), Digits::All);
    }
}

#[test]
fn self_attention_matches_the_reference_for_all_head_sizes() {
    in_all_types!(head_sizes);
}

fn pyramids<T: Number>(device: &Device) {
    check::<T>(device, &Case::pyramid::<T>(1, 1, 4, &[1]), Digits::All);
    for pyramid in [&[8usize][..], &[1, 8], &[1, 2, 11]] {
        check::<T>(device, &Case::pyramid::<T>(1, 1, 32, pyramid), Digits::All);
    }
}

#[test]
fn self_attention_matches_the_reference_for_small_pyramids_and_whole_tiles() {
    in_all_types!(pyramids);
}

fn configured_pyramids<T: Number>(device: &Device) {
    for pyramid in PYRAMIDS {
        check::<T>(device, &Case::pyramid::<T>(1, 1, 64, pyramid), Digits::All);
    }
}

#[test]
fn self_attention_matches_the_reference_for_the_configured_pyramids() {
    in_all_types!(configured_pyramids);
}

fn without_norm_or_positions<T: Number>(device: &Device) {
    for (normalize, rotary) in [(true, false), (false, true), (false, false)] {
        let mut case = Case::pyramid::<T>(1, 2, 64, &[1, 2, 3, 4, 6]);
        if !normalize {
            case.log_scale = None;
            // Larger numbers, so that the fixed factor leaves logits that matter.
            case.sources[0] = case.sources[0].iter().map(|value| 4.0 * value).collect();
        }
        if !rotary {
            case.rotary = None;
        }
        check::<T>(device, &case, Digits::All);
        case.visible = None;
        check::<T>(device, &case, Digits::All);
    }
}

#[test]
fn norm_positions_and_mask_can_each_be_left_out() {
    in_all_types!(without_norm_or_positions);
}

fn cross<T: Number>(device: &Device) {
    // Samples: all keys; the first few, as texts have them; scattered, with numbers that are not 1; none.
    let mask = |sample: usize, key: usize| match sample {
        0 => 1,
        1 => u32::from(key < 5),
        2 => [1, 0, 2, 1, u32::MAX][key % 5],
        _ => 0,
    };
    for (queries, keys, head_dim) in
        [(1, 1, 64), (9, 7, 20), (65, 16, 16), (30, 77, 64), (7, 130, 128), (129, 33, 4)]
    {
        let case = Case::cross::<T>([4, 2, head_dim], queries, keys, mask);
        let found = check::<T>(device, &case, Digits::All);
        let last = 3 * found.out.len() / 4;
        assert!(found.out[last..].iter().all(|&value| value == 0.0), "a sample without keys gives zeros");
        for d in found.d_sources {
            assert!(d[3 * d.len() / 4..].iter().all(|&value| value == 0.0), "and zero gradients");
        }
        assert_eq!(found.d_log_scale[6..], [0.0, 0.0]);
    }
    let mut plain = Case::cross::<T>([1, 1, 32], 11, 40, mask);
    plain.log_scale = None;
    check::<T>(device, &plain, Digits::All);
    plain.mask = None;
    check::<T>(device, &plain, Digits::All);
}

#[test]
fn cross_attention_matches_the_reference_with_masks() {
    in_all_types!(cross);
}

fn scales<T: Number>(device: &Device) {
    // Around the largest factors with a fixed maximum (6 in f16, 40 in bf16), and at the bound and above it.
    let factors = [5.99, 6.01, 39.9, 40.0, 40.1, 99.9, 150.0];
    let mut case = Case::pyramid::<T>(1, factors.len(), 16, &[1, 3, 8]);
    case.log_scale = Some(rounded::<f32>(&factors.map(f64::ln)));
    let found = check::<T>(device, &case, Digits::Fewer);
    assert_eq!(found.d_log_scale[6], 0.0, "a clamped scale has no gradient");
    assert!(found.d_log_scale[..6].iter().all(|&d| d != 0.0), "others have one");
    // Queries that point away from all keys: every logit is near the lowest that there can be.
    let channels = 16;
    let mut away = Case::pyramid::<T>(1, 1, channels, &[1, 3, 8]);
    away.rotary = None;
    for row in away.sources[0].chunks_mut(3 * channels) {
        for c in 0..channels {
            row[c] = T::round(-1.0 - 0.1 * row[c].abs()).wide();
            row[channels + c] = T::round(1.0 + 0.1 * row[channels + c]).wide();
        }
    }
    for factor in [5.99, 39.9, 40.1, 99.9f64] {
        away.log_scale = Some(rounded::<f32>(&[factor.ln()]));
        check::<T>(device, &away, Digits::Canceled);
    }
}

#[test]
fn scales_around_the_bounds_match_the_reference() {
    in_all_types!(scales);
}

fn vectors_of_no_length<T: Number>(device: &Device) {
    let mut case = Case::pyramid::<T>(1, 1, 16, &[1, 2]);
    case.d_out.iter_mut().for_each(|value| *value = 0.0);
    for c in 0..16 {
        case.sources[0][2 * 48 + c] = 0.0;
        case.sources[0][3 * 48 + 16 + c] = 0.0;
    }
    let found = check::<T>(device, &case, Digits::All);
    assert!(found.parts().iter().all(|(_, values)| values.iter().all(|value| value.is_finite())));
}

#[test]
fn vectors_of_no_length_stay_zero() {
    in_all_types!(vectors_of_no_length);
}

fn samples_alone<T: Number>(device: &Device) {
    let mask = |sample: usize, key: usize| u32::from(key % (sample + 2) != 1);
    let mut case = Case::pyramid::<T>(3, 2, 64, &[1, 2, 3, 5]);
    case.log_scale = Some(rounded::<f32>(&[4f64.ln(), 50f64.ln()]));
    for case in [case, Case::cross::<T>([3, 2, 20], 39, 70, mask)] {
        let together = on_device::<T>(device, &case);
        assert!(together == on_device::<T>(device, &case), "the same bits on every run");
        for sample in 0..case.batch {
            let alone = on_device::<T>(device, &case.alone(sample));
            for ((what, alone), (_, all)) in alone.parts().iter().zip(together.parts()) {
                assert!(
                    **alone == all[sample * alone.len()..][..alone.len()],
                    "{what} of sample {sample} in {} depends on its batch mates",
                    T::SUFFIX
                );
            }
        }
    }
}

#[test]
fn a_sample_gives_the_same_bits_on_every_run_and_in_every_batch() {
    in_all_types!(samples_alone);
}

#[test]
fn the_bounds_see_one_key_too_many() {
    let device = Device::emulated().unwrap();
    let case = Case::pyramid::<bf16>(1, 1, 64, &[1, 2, 3, 5]);
    let mut wrong = case.clone();
    wrong.visible.as_mut().unwrap()[7] += 1;
    let errors = on_device::<bf16>(&device, &wrong).errors(&reference(&case));
    assert!(errors[..2].iter().all(|[largest, _]| *largest > bf16::BOUND), "{errors:?}");
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let device = Device::emulated().unwrap();
    let zeros = |len: usize| device.zeros::<f32>(len).unwrap();
    let shape = DeviceAttention {
        batch: 1,
        heads: 2,
        head_dim: 8,
        queries: 3,
        keys: 3,
        packed: true,
        visible: None,
        mask: None,
        log_scale: None,
        rotary: None,
    };
    let source = zeros(3 * 48);
    let forward = |shape: &DeviceAttention<'_>, out: usize, rows: usize, source: &Buffer<f32>| {
        cuda::forward(&mut zeros(out), &mut zeros(rows), shape, source, source).unwrap_err().to_string()
    };
    let rows = shape.rows_len::<f32>();
    let (short, table) = (zeros(5), zeros(12));
    for (changed, out, rows, needle) in [
        (DeviceAttention { head_dim: 6, ..shape }, 48, rows, "multiples of 4 up to 128"),
        (DeviceAttention { head_dim: 132, ..shape }, 48, rows, "multiples of 4 up to 128"),
        (DeviceAttention { keys: 2, ..shape }, 48, rows, "3 queries are not the last of 2 tokens"),
        (DeviceAttention { keys: 4, ..shape }, 48, rows, "the source of keys and values has 144"),
        (DeviceAttention { batch: 0, ..shape }, 48, rows, "none may be 0"),
        (DeviceAttention { log_scale: Some(&short), ..shape }, 48, rows, "has 5 elements, expected 2"),
        (
            DeviceAttention { rotary: Some((&table, &short)), ..shape },
            48,
            rows,
            "need 12 cosines and sines, but there are 12 and 5",
        ),
        (shape, 47, rows, "the result has 47"),
        (shape, 48, rows + 1, "statistics has"),
    ] {
        let message = forward(&changed, out, rows, &source);
        assert!(message.contains(needle), "{message}");
    }
    assert!(forward(&shape, 48, rows, &zeros(7)).contains("the source of queries has 7"));
    let (mut d, mut d_q, mut d_kv) = (zeros(3 * 48), zeros(48), zeros(96));
    let (out, mut statistics) = (zeros(48), zeros(rows));
    let apart = SourceGradients::Separate { d_q: &mut d_q, d_kv: &mut d_kv };
    let message =
        cuda::backward(apart, None, &mut statistics, &shape, &source, &source, &out, &out).unwrap_err();
    assert!(message.to_string().contains("the layouts of gradients and sources differ"), "{message}");
    let packed = SourceGradients::Packed(&mut d);
    let message =
        cuda::backward(packed, Some(&mut zeros(2)), &mut statistics, &shape, &source, &source, &out, &out)
            .unwrap_err();
    assert!(message.to_string().contains("if and only if the scale is learned"), "{message}");
}

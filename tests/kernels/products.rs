//! Products of parts of buffers: several matrices at once, side by side in wider rows.

use alchemist_engine::engine::cuda::{Buffer, Device, Operand, Products, Target};
use half::bf16;

use crate::device::{Number, close, noise, rounded, test_devices, upload};

/// Runs a case in the two types that the encoders compute in.
macro_rules! in_both_types {
    ($case:ident) => {
        for device in test_devices() {
            $case::<f32>(&device);
            $case::<bf16>(&device);
        }
    };
}

/// Queries and keys side by side in wider rows, and results side by side: the products of attention's heads.
fn products_case<T: Number>(device: &Device) {
    let (tokens, heads, width) = (5, 3, 7);
    let channels = heads * width;
    let both = rounded::<T>(&noise(tokens * 2 * channels, 9));
    let held = rounded::<f32>(&noise(heads * tokens * 6, 10));
    let buffer = upload::<T>(device, &both);
    let mut scores = upload::<f32>(device, &held);
    let part = |first: usize| Operand { first, step: width, ..Operand::of(&buffer, 2 * channels) };
    let products = Products {
        sizes: [tokens, tokens, width],
        batch: heads,
        a: part(0),
        b: part(channels).transposed(),
        bias: None,
        alpha: 0.5,
        beta: 2.0,
    };
    let target = Target { buffer: &mut scores, first: 0, row: 6, step: tokens * 6 };
    device.products(target, &products).unwrap();
    let mut expected = held;
    for (head, query, key) in
        (0..heads * tokens * tokens).map(|at| (at / tokens / tokens, at / tokens % tokens, at % tokens))
    {
        let number = |token: usize, first: usize, at: usize| both[token * 2 * channels + first + at];
        let sum: f64 = (0..width)
            .map(|at| number(query, head * width, at) * number(key, channels + head * width, at))
            .sum();
        let to = &mut expected[(head * tokens + query) * 6 + key];
        *to = 2.0 * *to + 0.5 * sum;
    }
    close::<f32>("products of heads", &scores, &expected, 1e-5);

    let weights: Vec<f64> = noise(heads * tokens * tokens, 11);
    let weights = rounded::<T>(&weights);
    let placed = upload::<T>(device, &weights);
    let mut mixed = device.uninitialized::<T>(tokens * channels).unwrap();
    let products = Products {
        sizes: [tokens, width, tokens],
        batch: heads,
        a: Operand { step: tokens * tokens, ..Operand::of(&placed, tokens) },
        b: part(channels),
        bias: None,
        alpha: 1.0,
        beta: 0.0,
    };
    let target = Target { buffer: &mut mixed, first: 0, row: channels, step: width };
    device.products(target, &products).unwrap();
    let expected: Vec<f64> = (0..tokens * channels)
        .map(|at| {
            let (query, channel) = (at / channels, at % channels);
            let weight = |key: usize| weights[(channel / width * tokens + query) * tokens + key];
            (0..tokens).map(|key| weight(key) * both[key * 2 * channels + channels + channel]).sum()
        })
        .collect();
    close::<T>("heads side by side", &mixed, &expected, T::BOUND);
}

#[test]
fn products_of_parts_match_plain_loops() {
    in_both_types!(products_case);
}

#[test]
fn products_that_do_not_fit_are_refused() {
    let device = test_devices().remove(0);
    let buffer = upload::<f32>(&device, &noise(24, 12));
    let refused = |a: Operand<'_, f32>, [first, row, step]: [usize; 3]| {
        let mut c: Buffer<f32> = device.zeros(24).unwrap();
        let b = Operand::of(&buffer, 3);
        let products = Products { sizes: [2, 3, 4], batch: 2, a, b, bias: None, alpha: 1.0, beta: 0.0 };
        device.products(Target { buffer: &mut c, first, row, step }, &products).err().map(|e| e.to_string())
    };
    let whole = Operand { step: 8, ..Operand::of(&buffer, 4) };
    assert_eq!(refused(whole, [0, 3, 6]), None);
    assert_eq!(refused(whole, [0, 6, 3]), None, "side by side");
    for (what, a, to) in [
        ("A ends beyond its buffer", Operand { first: 9, ..whole }, [0, 3, 6]),
        ("A's second matrix does", Operand { step: 17, ..whole }, [0, 3, 6]),
        ("A's rows overlap", Operand { row: 3, ..whole }, [0, 3, 6]),
        ("the address overflows", Operand { step: usize::MAX, ..whole }, [0, 3, 6]),
        ("C ends beyond its buffer", whole, [13, 3, 6]),
        ("the results overlap", whole, [0, 3, 5]),
        ("the results overlap in their rows", whole, [0, 5, 3]),
    ] {
        let message = refused(a, to).unwrap_or_default();
        assert!(message.contains("2 products of the sizes [2, 3, 4]"), "{what}: {message}");
    }
}

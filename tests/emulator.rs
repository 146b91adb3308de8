//! The emulator of kernels: does what a card does, and finds what a card would hide.
//!
//! Each `planted_*` kernel of `kernels/host/planted_bugs.cu` has one mistake; the message must name the kernel, the line
//! and the mistake. Each `right_*` kernel does the same things as it should.
#![cfg(feature = "emulator")]
#![expect(
    unsafe_code,
    reason = "kernels without a launcher of their own are launched here, wrongly on purpose"
)]

use alchemist_engine::{
    Error,
    engine::cuda::{Argument, Buffer, Device, DeviceNumber, Kernel, Launch, devices},
};
use half::{bf16, f16};

const THREADS: u32 = 64;

fn emulated() -> Device {
    Device::emulated().expect("a C++ compiler for the emulator is part of the test machine")
}

fn launch(name: &str, launch: Launch, arguments: &[Argument]) -> Result<(), Error> {
    // SAFETY: the emulator compares the arguments with the kernel's and checks every access before it is made.
    unsafe { emulated().launch(&Kernel::new("host/planted_bugs", name), &launch, arguments) }
}

/// The message of a mistake that must name the kernel and the line where `planted` stands in it.
#[track_caller]
fn mistake(result: Result<(), Error>, kernel: &str, planted: &str) -> String {
    let Err(Error::Kernel { kernel: named, message }) = result else {
        panic!("{kernel}: no mistake was found, but {result:?}");
    };
    assert_eq!(named, kernel);
    let source = include_str!("../kernels/host/planted_bugs.cu");
    let start = source.find(&format!("KERNEL({kernel},")).expect("the kernel is in the file");
    let at = start + source[start..].find(planted).expect("the planted line");
    let place = format!("kernels/host/planted_bugs.cu:{}", 1 + source[..at].matches('\n').count());
    assert!(
        message.contains(&format!("{place}:")) || message.contains(&format!("{place} ")),
        "{place} is not in: {message}"
    );
    message
}

/// Runs a planted kernel on one block with an output of `len` numbers.
fn planted(name: &str, len: usize) -> Result<(), Error> {
    let mut out = emulated().zeros::<f32>(len).unwrap();
    launch(name, Launch::linear(1, THREADS), &[out.write()])
}

#[test]
fn barriers_that_not_all_threads_reach_are_found() {
    let message =
        mistake(planted("planted_divergent_barrier", 64), "planted_divergent_barrier", "__syncthreads");
    assert!(message.contains("divergent barrier: of 64 threads 40 wait"), "{message}");
    let message = mistake(
        planted("planted_two_barriers", 64),
        "planted_two_barriers",
        "__syncthreads();\n    }\n    out",
    );
    assert!(message.contains("divergent barrier"), "{message}");
}

#[test]
fn shuffles_without_all_lanes_of_their_mask_are_found() {
    let message =
        mistake(planted("planted_divergent_shuffle", 64), "planted_divergent_shuffle", "__shfl_xor");
    assert!(message.contains("divergent collective"), "{message}");
    let message =
        mistake(planted("planted_shuffle_from_outside", 64), "planted_shuffle_from_outside", "__shfl_xor");
    assert!(message.contains("lane 0 shuffles from lane 16"), "{message}");
}

#[test]
fn shared_memory_that_nobody_wrote_is_found() {
    let message =
        mistake(planted("planted_unwritten_shared", 64), "planted_unwritten_shared", "out[threadIdx.x] =");
    assert!(message.contains("no thread of the block wrote: byte 28 of `values`"), "{message}");
}

#[test]
fn races_in_shared_memory_are_found() {
    for (kernel, line) in [
        ("planted_race", "out[threadIdx.x] ="),
        ("planted_race_after_reading", "values[threadIdx.x] = next"),
        ("planted_race_in_warp", "out[threadIdx.x] ="),
    ] {
        // The side that is found is the one that runs later: it may be the write.
        let message = match planted(kernel, 64) {
            Err(Error::Kernel { message, .. }) if kernel != "planted_race_after_reading" => message,
            result => mistake(result, kernel, line),
        };
        let found =
            message.contains("with no barrier between") || message.contains("no thread of the block wrote");
        assert!(found && message.contains("planted_bugs.cu:"), "{message}");
    }
}

#[test]
fn blocks_that_write_the_same_memory_are_found() {
    let mut out = emulated().zeros::<f32>(64).unwrap();
    let result = launch("planted_race_of_blocks", Launch::linear(2, THREADS), &[out.write()]);
    let message = mistake(result, "planted_race_of_blocks", "out[threadIdx.x] =");
    assert!(message.contains("another block of the same launch"), "{message}");
}

#[test]
fn accesses_outside_an_allocation_are_found() {
    let device = emulated();
    let (mut out, values) = (device.zeros::<f32>(64).unwrap(), device.upload(&[1.0f32; 64]).unwrap());
    let result = launch("planted_read_outside", Launch::linear(1, THREADS), &[out.write(), values.read()]);
    let message = mistake(result, "planted_read_outside", "out[threadIdx.x] =");
    assert!(message.contains("reads 4 bytes at byte 256 of an allocation of 256 bytes"), "{message}");
    assert!(message.contains("thread (63, 0, 0) of block (0, 0, 0)"), "{message}");
    let message =
        mistake(planted("planted_write_outside", 64), "planted_write_outside", "out[threadIdx.x + 1]");
    assert!(message.contains("writes 4 bytes at byte 256"), "{message}");
    let nowhere = [out.write(), Argument::null::<f32>()];
    let result = launch("planted_read_outside", Launch::linear(1, THREADS), &nowhere);
    let message = mistake(result, "planted_read_outside", "out[threadIdx.x] =");
    assert!(message.contains("not device memory"), "{message}");
    let stale = emulated().zeros::<f32>(64).unwrap().write();
    let result = launch("planted_race_of_blocks", Launch::linear(1, THREADS), &[stale]);
    let message = mistake(result, "planted_race_of_blocks", "out[threadIdx.x] =");
    assert!(message.contains("allocat"), "{message}");
}

#[test]
fn device_memory_that_nothing_wrote_is_found() {
    let mut out = emulated().uninitialized::<f32>(64).unwrap();
    let result = launch("planted_unwritten_global", Launch::linear(1, THREADS), &[out.write()]);
    let message = mistake(result, "planted_unwritten_global", "out[threadIdx.x] +=");
    assert!(message.contains("where nothing was written"), "{message}");
    assert!(out.to_host().is_err(), "the host may not read it either");
}

#[test]
fn accesses_outside_an_array_are_found() {
    let message = mistake(planted("planted_shared_outside", 64), "planted_shared_outside", "place[1]");
    assert!(message.contains("outside every array"), "{message}");
    let message = mistake(planted("planted_index_outside", 64), "planted_index_outside", "out[threadIdx.x]");
    assert!(message.contains("the index 4 is outside of its array"), "{message}");
}

#[test]
fn misaligned_vectors_are_found() {
    let message = mistake(planted("planted_misaligned", 512), "planted_misaligned", "*reinterpret_cast");
    assert!(message.contains("not a multiple of 16"), "{message}");
}

#[test]
fn a_cp_async_that_is_not_waited_for_is_found() {
    let device = emulated();
    let (mut out, values) = (device.zeros::<f32>(64).unwrap(), device.upload(&[1.0f32; 256]).unwrap());
    let shape = Launch { grid: [1; 3], block: [THREADS, 1, 1], shared_bytes: 1024 };
    let result = launch("planted_missing_wait", shape, &[out.write(), values.read()]);
    let message = mistake(result, "planted_missing_wait", "out[threadIdx.x] =");
    assert!(message.contains("cp.async into it has not been waited for"), "{message}");
}

#[test]
fn launches_beyond_the_card_are_refused() {
    let mut out = emulated().zeros::<f32>(64).unwrap();
    let most = emulated().facts().shared_bytes;
    let block = [64, 1, 1];
    for (kernel, shape, expected) in [
        ("planted_race_of_blocks", Launch::linear(1, 65), "a block of 65 threads"),
        ("planted_race_of_blocks", Launch { grid: [1, 70_000, 1], block, shared_bytes: 0 }, "a grid of"),
        ("planted_race_of_blocks", Launch { grid: [1, 1, 0], block, shared_bytes: 0 }, "a grid of"),
        (
            "planted_race_of_blocks",
            Launch { grid: [1; 3], block, shared_bytes: 200_000 },
            "200000 bytes of shared",
        ),
        (
            "planted_too_much_shared",
            Launch { grid: [1; 3], block, shared_bytes: most },
            "shared memory; the limit is",
        ),
    ] {
        let message = launch(kernel, shape, &[out.write()]).unwrap_err().to_string();
        assert!(message.contains(kernel) && message.contains(expected), "{message}");
    }
}

#[test]
fn arguments_that_are_not_the_kernels_are_refused() {
    let device = emulated();
    let mut halves = device.zeros::<bf16>(64).unwrap();
    let floats = device.zeros::<f32>(64).unwrap();
    for (arguments, expected) in [
        (vec![], "got 0 arguments, expected 1"),
        (vec![halves.write()], "argument 0 is `wb`; it takes `wf`"),
        (vec![floats.read()], "argument 0 is `rf`; it takes `wf`"),
        (vec![Argument::U32(3)], "argument 0 is `vu`; it takes `wf`"),
    ] {
        let message =
            launch("planted_misaligned", Launch::linear(1, 64), &arguments).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let message = launch("no_such", Launch::linear(1, 64), &[]).unwrap_err().to_string();
    assert!(message.contains("no such kernel"), "{message}");
}

#[test]
fn exchanges_with_the_right_barriers_are_not_found_wrong() {
    let mut out = emulated().uninitialized::<f32>(64).unwrap();
    launch("right_exchanges", Launch::linear(1, THREADS), &[out.write()]).unwrap();
    let sum = |at: u32| ((at ^ 1) + 63 - at) as f32;
    let expected: Vec<f32> = (0..64).map(|at| sum((at + 5) % 64)).collect();
    assert_eq!(out.to_host().unwrap(), expected);
}

#[test]
fn shuffles_votes_and_atomics_do_what_cuda_says() {
    let (device, blocks) = (emulated(), 5);
    let mut out = device.uninitialized::<f32>(64 * blocks).unwrap();
    let mut counts = device.zeros::<u32>(2).unwrap();
    launch("right_collectives", Launch::linear(5, THREADS), &[out.write(), counts.write()]).unwrap();
    assert_eq!(counts.to_host().unwrap(), [22 * 5, 63]);
    let first: Vec<f32> = (0..32).map(|lane| (lane + if lane < 16 { lane ^ 8 } else { 0 }) as f32).collect();
    let second: Vec<f32> = (0..32).map(|lane| first[(lane + 1) % 32]).collect();
    for (at, value) in out.to_host().unwrap().into_iter().enumerate() {
        let lane = at % 32;
        let down = second[if lane % 8 + 3 < 8 { lane + 3 } else { lane }];
        let up = second[if lane % 8 >= 3 { lane - 3 } else { lane }];
        assert_eq!(value, second[lane] + (down + up), "thread {at}");
    }
}

/// Numbers that are exact in every type, different enough to show a wrong layout.
fn pattern(count: usize, step: usize) -> Vec<f32> {
    (0..count).map(|at| (at * step % 23) as f32 - 11.0).collect()
}

#[test]
fn tensor_core_products_have_the_layout_of_the_ptx_manual() {
    fn case<T: DeviceNumber>(name: &str, number: impl Fn(f32) -> T) {
        let device = emulated();
        let (a, b) = (pattern(256, 7), pattern(128, 5));
        let upload = |values: &[f32]| -> Buffer<T> {
            device.upload(&values.iter().map(|&value| number(value)).collect::<Vec<_>>()).unwrap()
        };
        let mut c = device.uninitialized::<f32>(128).unwrap();
        let (left, right) = (upload(&a), upload(&b));
        launch(name, Launch::linear(1, 32), &[c.write(), left.read(), right.read()]).unwrap();
        let c = c.to_host().unwrap();
        for row in 0..16 {
            for column in 0..8 {
                let expected: f32 = (0..16).map(|k| a[row * 16 + k] * b[k * 8 + column]).sum();
                assert_eq!(c[row * 8 + column], expected, "{name} at {row}, {column}");
            }
        }
    }
    case("right_product_bf16", bf16::from_f32);
    case("right_product_f16", f16::from_f32);
}

#[test]
fn sixteen_bit_arithmetic_rounds_as_the_half_crate_does() {
    fn case<T: DeviceNumber>(
        name: &str,
        from_bits: impl Fn(u16) -> T,
        to_f32: impl Fn(T) -> f32,
        round: impl Fn(f32) -> T,
    ) {
        let device = emulated();
        // Every exponent and sign, subnormals, infinities and NaN among them.
        let count = 4096u32;
        let bits = |number: u32| from_bits(u16::try_from(number % 65_536).unwrap());
        let left: Vec<T> = (0..count).map(|at| bits(at * 16 + at % 13)).collect();
        let right: Vec<T> = (0..count).map(|at| bits(at * 40_503)).collect();
        let mut out = device.uninitialized::<T>(4 * left.len()).unwrap();
        let (a, b) = (device.upload(&left).unwrap(), device.upload(&right).unwrap());
        let arguments = [out.write(), a.read(), b.read(), Argument::U32(count)];
        launch(name, Launch::linear(1, THREADS), &arguments).unwrap();
        let out = out.to_host().unwrap();
        for (at, (x, y)) in left.iter().zip(&right).enumerate() {
            let (x, y) = (to_f32(*x), to_f32(*y));
            for (kind, exact) in [x + y, x - y, x * y, x / y].into_iter().enumerate() {
                let (got, expected) = (to_f32(out[kind * left.len() + at]), to_f32(round(exact)));
                assert!(
                    got == expected || (got.is_nan() && expected.is_nan()),
                    "{name}: {x:e} and {y:e}, operation {kind}: {got:e}, expected {expected:e}"
                );
            }
        }
    }
    case("right_arithmetic_bf16", bf16::from_bits, bf16::to_f32, bf16::from_f32);
    case("right_arithmetic_f16", f16::from_bits, f16::to_f32, f16::from_f32);
}

#[test]
fn products_of_matrices_follow_their_definition() {
    let device = emulated();
    let (m, n, k) = (5, 7, 11);
    let (a, b, bias) = (pattern(m * k, 3), pattern(k * n, 5), pattern(n, 2));
    let turn = |values: &[f32], rows: usize, columns: usize| -> Vec<f32> {
        (0..rows * columns).map(|at| values[at % rows * columns + at / rows]).collect()
    };
    let expected: Vec<f32> = (0..m * n)
        .map(|at| {
            2.0 * (0..k).map(|i| a[at / n * k + i] * b[i * n + at % n]).sum::<f32>() + 3.0 + bias[at % n]
        })
        .collect();
    for (a_turned, b_turned) in [(false, false), (true, false), (false, true), (true, true)] {
        let a = device.upload(&if a_turned { turn(&a, m, k) } else { a.clone() }).unwrap();
        let b = device.upload(&if b_turned { turn(&b, k, n) } else { b.clone() }).unwrap();
        let mut c = device.upload(&vec![6.0f32; m * n]).unwrap();
        let bias = device.upload(&bias).unwrap();
        device.product(&mut c, [m, n, k], (&a, a_turned), (&b, b_turned), Some(&bias), 2.0, 0.5).unwrap();
        assert_eq!(c.to_host().unwrap(), expected);
    }
    let halves: Vec<bf16> = a.iter().map(|&value| bf16::from_f32(value)).collect();
    let halves = device.upload(&halves).unwrap();
    let mut c = device.uninitialized::<f32>(m * m).unwrap();
    device.product(&mut c, [m, m, k], (&halves, false), (&halves, true), None, 1.0, 0.0).unwrap();
    assert_eq!(c.to_host().unwrap()[1], (0..k).map(|i| a[i] * a[k + i]).sum::<f32>());
    let mut short = device.zeros::<f32>(3).unwrap();
    assert!(
        device.product(&mut short, [m, m, k], (&halves, false), (&halves, true), None, 1.0, 0.0).is_err()
    );
}

#[test]
fn memory_is_accounted_for() {
    let device = emulated();
    let total = device.facts().memory_bytes;
    let message = device.uninitialized::<u32>(total).unwrap_err().to_string();
    assert!(message.contains("out of memory") && message.contains("smaller batch"), "{message}");
    let kept: Vec<_> = (1..50u32).map(|len| device.upload(&vec![len; len as usize * 100]).unwrap()).collect();
    let (odd, even): (Vec<_>, Vec<_>) = kept.into_iter().partition(|buffer| buffer.len() % 200 == 100);
    drop(odd);
    let again: Vec<_> = (1..50).map(|len| device.upload(&vec![7u32; len * 37]).unwrap()).collect();
    for buffer in &even {
        assert!(buffer.to_host().unwrap().iter().all(|&value| value as usize * 100 == buffer.len()));
    }
    assert!(again.iter().all(|buffer| buffer.to_host().unwrap().iter().all(|&value| value == 7)));
}

#[test]
fn every_device_is_listed_or_says_why_not() {
    let list = devices();
    let state =
        |name: &str| list.iter().find(|device| device.name.starts_with(name)).map(|device| &device.state);
    assert!(matches!(state("emulated"), Some(Ok(_))));
    match state("cuda") {
        Some(Err(reason)) => assert!(!reason.is_empty()),
        Some(Ok(facts)) => assert!(facts.capability >= (8, 0) && facts.memory_bytes > 0),
        None => panic!("no word about GPUs"),
    }
}

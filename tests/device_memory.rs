//! The device's memory, recorded work and uploads ahead, on the emulator and, where there is one, on a GPU.
#![cfg(feature = "emulator")]
#![expect(unsafe_code, reason = "one kernel of the emulator's own is launched here, which has no launcher")]

use alchemist_engine::{
    Error, Result,
    engine::{
        cuda::{Argument, Buffer, Device, Kernel, Launch},
        ops::{
            activation::{Activation, cuda::activation_forward},
            cast::cuda::{narrow as narrowed, widen},
        },
    },
};
use half::bf16;

const PAGE: usize = 4096;

/// The devices to test on.
fn test_devices() -> Vec<Device> {
    if std::env::var("ALCHEMIST_REQUIRE_GPU").is_ok_and(|value| value == "1") {
        return vec![Device::cuda(0).unwrap_or_else(|reason| panic!("a GPU is required, but {reason}"))];
    }
    let mut found = vec![Device::emulated().expect("the emulator")];
    found.extend(Device::cuda(0));
    found
}

/// Something like a step: buffers that come and go, and a result. Gives the addresses of all of them.
fn step(device: &Device, input: &Buffer<f32>, result: &mut Buffer<f32>) -> Result<Vec<u64>> {
    let mut narrow = device.uninitialized::<bf16>(input.len())?;
    narrowed(&mut narrow, input)?;
    let mut activated = device.uninitialized::<bf16>(input.len())?;
    activation_forward(Activation::GeluTanh, &mut activated, &narrow, None, input.len())?;
    let addresses = vec![narrow.address(), activated.address()];
    drop(narrow);
    let mut wide = device.zeros::<f32>(input.len())?;
    widen(&mut wide, &activated)?;
    let side = 32;
    device.product(result, [side; 3], (&wide, false), (&wide, true), None, 1.0, 0.0)?;
    Ok([addresses, vec![wide.address()]].concat())
}

fn values(seed: u32) -> Vec<f32> {
    (0..1024u32).map(|at| ((at * 37 + seed * 101) % 211) as f32 / 100.0 - 1.0).collect()
}

#[test]
fn steps_get_the_same_memory_again() {
    for device in test_devices() {
        let input = device.upload(&values(1)).unwrap();
        let mut result = device.uninitialized(1024).unwrap();
        step(&device, &input, &mut result).unwrap();
        device.consolidate_memory().unwrap();
        let first = step(&device, &input, &mut result).unwrap();
        let requests = device.memory().requests;
        let used = device.memory().used_bytes;
        for _ in 0..3 {
            assert_eq!(step(&device, &input, &mut result).unwrap(), first);
        }
        assert_eq!(device.memory().requests, requests, "the driver is asked for nothing");
        assert_eq!(device.memory().used_bytes, used);
        device.reset_peak_memory();
        assert_eq!(device.memory().peak_bytes, used);
        step(&device, &input, &mut result).unwrap();
        assert!(device.memory().peak_bytes > used);
        drop((input, result));
        assert_eq!(device.memory().used_bytes, 0);
    }
}

#[test]
fn replays_do_what_the_work_did() {
    for device in test_devices() {
        let mut input = device.upload(&values(1)).unwrap();
        let mut result = device.uninitialized(1024).unwrap();
        step(&device, &input, &mut result).unwrap();
        let expected: Vec<Vec<f32>> = [2, 3]
            .map(|seed| {
                input.write_from(&values(seed)).unwrap();
                step(&device, &input, &mut result).unwrap();
                result.to_host().unwrap()
            })
            .to_vec();
        result.clear().unwrap();
        let (graph, scratch) = device
            .capture(|| {
                let scratch = step(&device, &input, &mut result)?;
                Ok((scratch, result.try_clone()?))
            })
            .unwrap();
        let (scratch, copy) = scratch;
        assert_eq!(result.to_host().unwrap(), vec![0.0; 1024], "recording does nothing yet");
        // What is allocated now is not what the graph uses.
        let other = device.upload(&values(9)).unwrap();
        assert!(!scratch.contains(&other.address()));
        for (seed, expected) in [2, 3].into_iter().zip(&expected) {
            input.write_from(&values(seed)).unwrap();
            graph.replay().unwrap();
            assert_eq!(&result.to_host().unwrap(), expected);
            assert_eq!(&copy.to_host().unwrap(), expected);
        }
        assert_eq!(other.to_host().unwrap(), values(9));
        let with_graph = device.memory().used_bytes;
        drop(graph);
        assert!(device.memory().used_bytes < with_graph);
        assert_eq!(&copy.to_host().unwrap(), &expected[1], "results outlive the graph");
    }
}

#[test]
fn a_graph_keeps_the_buffers_it_uses() {
    for device in test_devices() {
        let input = device.upload(&values(4)).unwrap();
        let mut result = device.uninitialized(1024).unwrap();
        step(&device, &input, &mut result).unwrap();
        let expected = result.to_host().unwrap();
        let (graph, _) = device.capture(|| step(&device, &input, &mut result)).unwrap();
        let address = input.address();
        drop(input);
        let others: Vec<_> = (0..20).map(|_| device.upload(&[f32::NAN; 1024]).unwrap()).collect();
        assert!(others.iter().all(|buffer| buffer.address() != address));
        result.clear().unwrap();
        graph.replay().unwrap();
        assert_eq!(result.to_host().unwrap(), expected);
    }
}

#[test]
fn what_cannot_be_recorded_says_so() {
    for device in test_devices() {
        let mut buffer = device.upload(&[1.0f32; 4]).unwrap();
        let ahead = device.upload_ahead(&[2.0f32; 4]).unwrap();
        let mut ahead = Some(ahead);
        let (graph, _) = device.capture(|| buffer.clear()).unwrap();
        type Work<'a> = &'a mut dyn FnMut() -> Result<()>;
        let refused = |what: &str, work: Work<'_>| {
            let message = device.capture(work).unwrap_err().to_string();
            assert!(message.contains(what) && message.contains("cannot be recorded"), "{message}");
        };
        refused("an upload", &mut || buffer.write_from(&[3.0; 4]));
        refused("an upload", &mut || device.upload(&[3.0f32; 4]).map(drop));
        refused("an upload", &mut || device.upload_ahead(&[3.0f32; 4]).map(drop));
        refused("an upload", &mut || ahead.take().map_or(Ok(()), |ahead| ahead.arrive().map(drop)));
        refused("a download", &mut || buffer.to_host().map(drop));
        refused("waiting", &mut || device.synchronize());
        refused("an event", &mut || device.record().map(drop));
        refused("a replay", &mut || graph.replay());
        refused("a second recording", &mut || device.capture(|| Ok(())).map(drop));
        // A recording that failed leaves the device as it was.
        assert_eq!(buffer.to_host().unwrap(), [1.0; 4]);
        graph.replay().unwrap();
        assert_eq!(buffer.to_host().unwrap(), [0.0; 4]);
    }
}

#[test]
fn a_recording_that_panics_ends() {
    let device = Device::emulated().unwrap();
    let used = device.memory().used_bytes;
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        device.capture(|| -> Result<()> {
            let _scratch = device.uninitialized::<f32>(10)?;
            panic!("in the work")
        })
    }));
    assert!(result.is_err());
    assert_eq!(device.memory().used_bytes, used);
    assert_eq!(device.upload(&[5.0f32]).unwrap().to_host().unwrap(), [5.0]);
}

#[test]
fn uploads_ahead_arrive_in_order() {
    for device in test_devices() {
        let mut target = device.uninitialized::<f32>(1024).unwrap();
        let (mut waiting, mut used) = (None, 0);
        for seed in 0..6 {
            // The next one is on its way while this one is worked with.
            let ahead = device.upload_ahead(&values(seed)).unwrap();
            if let Some(previous) = waiting.replace(ahead) {
                previous.copy_to(&mut target).unwrap();
                assert_eq!(target.to_host().unwrap(), values(seed - 1));
            }
            if seed == 2 {
                used = device.memory().used_bytes;
            }
        }
        assert_eq!(device.memory().used_bytes, used, "the memory is used in turns");
        assert_eq!(waiting.take().unwrap().arrive().unwrap().to_host().unwrap(), values(5));
        drop(device.upload_ahead(&values(7)).unwrap());
        assert_eq!(device.upload_ahead(&values(8)).unwrap().arrive().unwrap().to_host().unwrap(), values(8));
        assert!(device.upload_ahead::<f32>(&[]).unwrap().arrive().unwrap().is_empty());
        let mut short = device.uninitialized::<f32>(3).unwrap();
        assert!(device.upload_ahead(&values(1)).unwrap().copy_to(&mut short).is_err());
    }
}

#[test]
fn out_of_memory_says_what_would_help() {
    let device = Device::emulated_with_memory(16 * PAGE).unwrap();
    let held = device.uninitialized::<u32>(4 * PAGE / 4).unwrap();
    let error = device.uninitialized::<u32>(12 * PAGE / 4).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { requested_bytes, .. } if requested_bytes == 12 * PAGE));
    let message = error.to_string();
    for part in
        ["48.0 KiB were requested", "44.0 KiB of 64.0 KiB are free", "bs", "ac", "--recompute", "fp16"]
    {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
    // The device works on, and memory that is given back can be had.
    drop(held);
    assert_eq!(device.zeros::<u32>(14 * PAGE / 4).unwrap().to_host().unwrap()[0], 0);
}

#[test]
fn memory_that_is_reused_counts_as_unwritten() {
    let device = Device::emulated().unwrap();
    let first = device.upload(&[1.0f32; 64]).unwrap();
    let address = first.address();
    drop(first);
    let second = device.uninitialized::<f32>(64).unwrap();
    assert_eq!(second.address(), address);
    assert!(second.to_host().unwrap_err().to_string().contains("not all of the memory was written"));
    // Nor do neighbors serve: the page behind a buffer is nobody's.
    let (mut out, values) = (device.zeros::<f32>(64).unwrap(), device.upload(&[1.0f32; PAGE / 4]).unwrap());
    let behind = Argument::Read { address: values.address() + PAGE as u64 - 252, letter: b'f' };
    let kernel = Kernel::new("host/planted_bugs", "planted_read_outside");
    // SAFETY: the emulator compares the arguments with the kernel's and checks every access before it is made.
    let result = unsafe { device.launch(&kernel, &Launch::linear(1, 64), &[out.write(), behind]) };
    let message = result.unwrap_err().to_string();
    assert!(message.contains("at byte 4096 of an allocation of 4096 bytes"), "{message}");
}

#[test]
fn replays_are_checked_as_the_work_is() {
    let device = Device::emulated().unwrap();
    let mut result = device.uninitialized::<f32>(1024).unwrap();
    let input = device.uninitialized::<f32>(1024).unwrap();
    let (graph, _) = device.capture(|| step(&device, &input, &mut result)).unwrap();
    let message = graph.replay().unwrap_err().to_string();
    assert!(message.contains("where nothing was written"), "{message}");
    let result = device.capture(|| {
        let mut halves = device.uninitialized::<bf16>(4)?;
        // SAFETY: the emulator refuses arguments that are not the kernel's.
        unsafe {
            device.launch(&Kernel::new("cast", "cast_f32_to_bf16"), &Launch::linear(1, 64), &[halves.write()])
        }
    });
    assert!(result.unwrap_err().to_string().contains("got 1 arguments"));
}

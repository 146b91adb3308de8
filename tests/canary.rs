//! The kernels with planted mistakes of `kernels/canary.cu`: the emulator finds each. On a card they prove that the tools of
//! `scripts/gpu.sh` find any: those tests run only when they are asked for, each in a process of its own under its tool.
#![cfg(feature = "emulator")]
#![expect(unsafe_code, reason = "kernels are launched wrongly on purpose")]
#![expect(clippy::print_stdout, reason = "what a card said is shown to whoever runs its tool")]

use alchemist_engine::{
    Result,
    engine::cuda::{Buffer, Device, Kernel, Launch},
};

const THREADS: u32 = 64;

fn launch(name: &str, out: &mut Buffer<f32>) -> Result<()> {
    let device = out.device().clone();
    // SAFETY: none on a card, where the tool that is under test stops the mistake or the process is lost; the emulator
    // checks every access before it is made.
    unsafe { device.launch(&Kernel::new("canary", name), &Launch::linear(1, THREADS), &[out.write()]) }?;
    device.synchronize()
}

/// The message of the emulator.
fn found(name: &str, out: &mut Buffer<f32>) -> String {
    launch(name, out).unwrap_err().to_string()
}

fn emulated() -> Device {
    Device::emulated().expect("a C++ compiler for the emulator is part of the test machine")
}

#[test]
fn the_emulator_finds_every_canary() {
    let device = emulated();
    let mut out = device.zeros(64).unwrap();
    let message = found("canary_out_of_bounds", &mut out);
    assert!(message.contains("writes 4 bytes at byte 256 of an allocation of 256 bytes"), "{message}");
    let message = found("canary_race", &mut out);
    assert!(message.contains("`values`"), "{message}");
    let message = found("canary_divergent_barrier", &mut out);
    assert!(message.contains("divergent barrier"), "{message}");
    let message = found("canary_unwritten", &mut device.uninitialized(64).unwrap());
    assert!(message.contains("where nothing was written"), "{message}");
}

/// Launches a canary on the card; whether it is found is for the tool to say.
fn on_the_card(name: &str) {
    let device = Device::cuda(0).expect("a GPU");
    let mut out = device.uninitialized(64).unwrap();
    if name != "canary_unwritten" {
        out.clear().unwrap();
    }
    match launch(name, &mut out) {
        Err(alchemist_engine::Error::Kernel { message, .. }) => {
            panic!("{message}: pack with ALCHEMIST_CANARY=1")
        }
        result => println!("{name}: {result:?}"),
    }
}

#[test]
#[ignore = "wrong on purpose on a card: `scripts/gpu.sh run memcheck` runs it under compute-sanitizer"]
fn card_out_of_bounds() {
    on_the_card("canary_out_of_bounds");
}

#[test]
#[ignore = "wrong on purpose on a card: `scripts/gpu.sh run racecheck` runs it under compute-sanitizer"]
fn card_race() {
    on_the_card("canary_race");
}

#[test]
#[ignore = "wrong on purpose on a card: `scripts/gpu.sh run initcheck` runs it under compute-sanitizer"]
fn card_unwritten() {
    on_the_card("canary_unwritten");
}

#[test]
#[ignore = "wrong on purpose on a card: `scripts/gpu.sh run synccheck` runs it under compute-sanitizer"]
fn card_divergent_barrier() {
    on_the_card("canary_divergent_barrier");
}

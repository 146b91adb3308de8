//! `devices`: lists the devices, and why one cannot be used.

use clap::Args;

use crate::{
    engine::cuda::{Availability, DeviceFacts, devices},
    error::Result,
    interrupt::Interrupt,
};

/// The arguments of `devices`.
#[derive(Clone, Debug, Default, Args)]
pub struct DevicesArguments {}

/// Runs the command.
///
/// # Errors
/// If stdout cannot be written to; [`Error::Interrupted`](crate::Error::Interrupted) if the user interrupts.
pub(super) fn run(_: &DevicesArguments, interrupt: &Interrupt) -> Result<()> {
    // Drivers may be slow to answer.
    let found = interrupt.while_reading("nothing was written", || Ok(devices()))?;
    for line in lines(rayon::current_num_threads(), &found) {
        super::say(&line)?;
    }
    Ok(())
}

/// One line per device: its name, whether it can be used, and a description or the reason.
fn lines(threads: usize, devices: &[Availability]) -> Vec<String> {
    let line = |name: &str, usable: bool, what: &str| {
        format!("{name:<10} {:<5} {what}", if usable { "yes" } else { "no" })
    };
    let cpu = line("cpu", true, &format!("the CPU, {threads} threads"));
    let others = devices.iter().map(|Availability { name, state }| match state {
        Ok(facts) => line(name, true, &describe(facts)),
        Err(reason) => line(name, false, reason),
    });
    std::iter::once(cpu).chain(others).collect()
}

fn describe(facts: &DeviceFacts) -> String {
    let DeviceFacts { model, capability: (major, minor), memory_bytes, multiprocessors, .. } = facts;
    let memory = *memory_bytes as f64 / f64::from(1 << 30);
    format!("{model}; architecture {major}.{minor}, {multiprocessors} multiprocessors, {memory:.1} GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_has_a_line() {
        let facts = DeviceFacts {
            name: "cuda:0".to_owned(),
            model: "NVIDIA H100".to_owned(),
            capability: (9, 0),
            memory_bytes: 80 << 30,
            shared_bytes: 0,
            multiprocessors: 132,
        };
        let devices = [
            Availability { name: "cuda:0".to_owned(), state: Ok(facts) },
            Availability { name: "cuda:1".to_owned(), state: Err("its architecture is 7.5".to_owned()) },
        ];
        assert_eq!(
            lines(2, &devices),
            [
                "cpu        yes   the CPU, 2 threads",
                "cuda:0     yes   NVIDIA H100; architecture 9.0, 132 multiprocessors, 80.0 GiB",
                "cuda:1     no    its architecture is 7.5",
            ]
        );
    }
}

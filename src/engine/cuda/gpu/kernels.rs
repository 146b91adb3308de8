//! The kernels built into the program, the functions loaded from them, and the last launches.

use std::collections::{HashMap, VecDeque};

use crate::engine::cuda::driver::Launch;

/// The driver reads images as aligned words.
#[repr(C, align(64))]
pub(super) struct Aligned<T: ?Sized>(pub(super) T);

/// A kernel file's name and its machine code for all targets.
pub(super) type Fatbin = (&'static str, &'static Aligned<[u8]>);

/// All fatbins, or why there are none.
pub(super) const FATBINS: std::result::Result<&[Fatbin], &str> =
    include!(concat!(env!("OUT_DIR"), "/kernels/fatbins.rs"));

/// The reason why a machine without a driver has no GPU. If the program has no GPU kernels either, the message says so,
/// because a machine with a GPU would not help then.
pub(super) fn no_driver() -> &'static str {
    if FATBINS.is_ok() {
        "there is no CUDA driver (libcuda) on this machine"
    } else {
        "there is no CUDA driver (libcuda) on this machine, and this program was built without kernels for GPUs"
    }
}

/// Launches kept for the message of an error that is reported later.
const KEPT_LAUNCHES: usize = 8;

/// A kernel's function and its limits on this GPU.
#[derive(Clone, Copy)]
pub(super) struct Function {
    pub(super) handle: usize,
    pub(super) most_threads: u32,
    pub(super) most_dynamic_bytes: u32,
}

impl Function {
    /// Checks a launch first, because the driver would only report an invalid value.
    pub(super) fn check(&self, launch: &Launch) -> Result<(), String> {
        let threads: u64 = launch.block.iter().map(|&size| u64::from(size)).product();
        if threads == 0 || threads > u64::from(self.most_threads) {
            return Err(format!("a block of {threads} threads: must be from 1 to {}", self.most_threads));
        }
        if launch.shared_bytes > self.most_dynamic_bytes {
            return Err(format!(
                "{} bytes of shared memory exceed this GPU's limit of {}",
                launch.shared_bytes, self.most_dynamic_bytes
            ));
        }
        let [x, y, z] = launch.grid;
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
            return Err(format!("a grid of {x}, {y}, {z} blocks is outside the GPU's limits"));
        }
        Ok(())
    }
}

/// Modules and functions of a context, loaded on first use. Handles are addresses that only the driver reads.
#[derive(Default)]
pub(super) struct Loaded {
    pub(super) modules: HashMap<&'static str, usize>,
    pub(super) functions: HashMap<String, Function>,
    /// Set after a sticky error: the context is unusable until the process ends.
    pub(super) broken: Option<String>,
    pub(super) launches: Launches,
}

/// The last launches, one of which caused the error of a kernel that the driver reports.
#[derive(Default)]
pub(super) struct Launches(VecDeque<String>);

impl Launches {
    pub(super) fn add(&mut self, name: &str) {
        if self.0.back().is_some_and(|last| last == name) {
            return;
        }
        if self.0.len() == KEPT_LAUNCHES {
            self.0.pop_front();
        }
        self.0.push_back(name.to_owned());
    }

    /// Suffix for the message of an error that any of them may have caused.
    pub(super) fn suspects(&self) -> String {
        match self.0.len() {
            0 => String::new(),
            1 => format!("; the only launch before was {}", self.0[0]),
            _ => format!(
                "; the last launches before were {} (set ALCHEMIST_SYNC_LAUNCH=1 to find which one failed)",
                Vec::from_iter(self.0.iter().map(String::as_str)).join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_kernel_names_the_launches_that_may_have_made_it() {
        let mut launches = Launches::default();
        assert_eq!(launches.suspects(), "");
        launches.add("gelu");
        launches.add("gelu");
        assert_eq!(launches.suspects(), "; the only launch before was gelu");
        for number in 0..KEPT_LAUNCHES {
            launches.add(&format!("kernel_{number}"));
        }
        let said = launches.suspects();
        assert!(
            !said.contains("gelu") && said.contains("kernel_0, kernel_1") && said.contains("SYNC_LAUNCH")
        );
    }

    #[test]
    fn launches_beyond_the_limits_are_refused() {
        let function = Function { handle: 0, most_threads: 256, most_dynamic_bytes: 1000 };
        let fine = Launch { grid: [1, 65_535, 1], block: [64, 4, 1], shared_bytes: 1000 };
        assert_eq!(function.check(&fine), Ok(()));
        for (launch, expected) in [
            (Launch { block: [64, 4, 2], ..fine }, "512 threads"),
            (Launch { block: [0, 1, 1], ..fine }, "0 threads"),
            (Launch { shared_bytes: 1001, ..fine }, "1001 bytes of shared memory"),
            (Launch { grid: [1, 65_536, 1], ..fine }, "a grid of 1, 65536, 1"),
            (Launch { grid: [0, 1, 1], ..fine }, "a grid of 0, 1, 1"),
        ] {
            assert!(function.check(&launch).unwrap_err().contains(expected));
        }
    }
}

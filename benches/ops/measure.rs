//! Measures a device, timed by the device itself, and its peak rates.
//!
//! `ALCHEMIST_BENCH_DEVICE` names the device (`cuda:1`, `emulated` for a rehearsal with tiny sizes, `cpu` for none); by
//! default, the first GPU is measured if there is one. Each measurement is one line of JSON on stdout.

use std::time::Duration;

use alchemist_engine::{
    Result,
    engine::cuda::{Buffer, Device, DeviceChoice},
};
use half::bf16;

/// A device to measure.
pub(crate) struct Measured {
    pub(crate) device: Device,
    /// Whether it is the emulator, where only correctness is tested, not the time.
    pub(crate) rehearsal: bool,
}

/// The device that the environment names, or the first GPU if there is one.
///
/// # Panics
/// If the named device is not available.
pub(crate) fn measured() -> Option<Measured> {
    let named = std::env::var("ALCHEMIST_BENCH_DEVICE").ok();
    let choice = named.as_deref().unwrap_or("auto").parse::<DeviceChoice>();
    let device =
        choice.and_then(DeviceChoice::open).expect("ALCHEMIST_BENCH_DEVICE is a device that there is")?;
    Some(Measured { device, rehearsal: matches!(named.as_deref(), Some("emulated")) })
}

impl Measured {
    /// The real size, or a tiny one in a rehearsal.
    pub(crate) fn size(&self, real: usize, tiny: usize) -> usize {
        if self.rehearsal { tiny } else { real }
    }

    /// Time of `count` repetitions of `work`, measured by the device.
    pub(crate) fn time(&self, count: u64, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        let start = self.device.record()?;
        for _ in 0..count {
            work()?;
        }
        let end = self.device.record()?;
        Ok(Duration::from_secs_f64(f64::from(self.device.elapsed_ms(&start, &end)?) / 1e3))
    }

    /// The median time of one `work`, in seconds, after a warm-up.
    pub(crate) fn median(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let (samples, count) = if self.rehearsal { (3, 1) } else { (21, 5) };
        self.time(count, work)?;
        let mut times = Vec::new();
        for _ in 0..samples {
            times.push(self.time(count, work)?.as_secs_f64() / count as f64);
        }
        times.sort_by(f64::total_cmp);
        Ok(times[samples / 2])
    }

    /// Bytes per second of copies within the device, counting one read and one write.
    pub(crate) fn copy_ceiling(&self) -> Result<f64> {
        let len = self.size(256 << 20, 1 << 12);
        let from = self.device.zeros::<u32>(len)?;
        let mut to = self.device.uninitialized(len)?;
        let seconds = self.median(&mut || to.copy_from(&from))?;
        Ok(2.0 * from.bytes() as f64 / seconds)
    }

    /// Operations per second of one bf16 product `[m, k]·[k, n]`; `[n, k]` if the second matrix is stored transposed.
    pub(crate) fn product_rate(&self, [m, n, k]: [usize; 3], transposed: bool) -> Result<f64> {
        let noise = |count: usize| -> Result<Buffer<bf16>> {
            // Not zeros: a GPU that toggles few bits may clock higher than under a real load.
            let value = |at: usize| bf16::from_f32(((at * 7919) % 2003) as f32 / 1001.5 - 1.0);
            self.device.upload(&(0..count).map(value).collect::<Vec<_>>())
        };
        let (a, b) = (noise(m * k)?, noise(k * n)?);
        let mut c = self.device.uninitialized::<bf16>(m * n)?;
        let seconds = self.median(&mut || {
            self.device.product(&mut c, [m, n, k], (&a, false), (&b, transposed), None, 1.0, 0.0)
        })?;
        Ok(2.0 * (m * n * k) as f64 / seconds)
    }
}

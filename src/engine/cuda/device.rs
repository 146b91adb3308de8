//! Safe handles to devices.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use half::{bf16, f16};

use super::{
    arena::{Arena, MemoryUse},
    driver::{Argument, DeviceFacts, DeviceNumber, Driver, Event, Kernel, Launch, ProductNumber},
    gpu::Gpu,
    stagings::Stagings,
};
use crate::error::{Error, Result};

/// A device that runs kernels. Clones are handles to the same device.
///
/// Its memory is an arena: dropped buffers are reused at once, since work runs in the order in which it is queued; a
/// step that allocates the same buffers as the one before gets the same memory without calling the driver.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

/// State shared by all handles.
pub(super) struct Inner {
    driver: Box<dyn Driver>,
    arena: Mutex<Arena>,
    pub(super) stagings: Mutex<Stagings>,
    /// Events before and after each matrix product, while products are timed.
    pub(super) products: Mutex<Option<Vec<(Event, Event)>>>,
}

impl fmt::Debug for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Device").field(&self.0.driver).finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let arena = self.arena.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (address, bytes) in arena.pieces() {
            // SAFETY: the piece was allocated by the driver, and no handle to anything in it is left.
            unsafe { self.driver.free_piece(address, bytes) };
        }
    }
}

/// Whether a device is available.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Availability {
    /// Name for `--device`.
    pub name: String,
    /// Its properties, or why it is not available.
    pub state: Result<DeviceFacts, String>,
}

/// Every device that runs kernels: the emulator and each GPU, or the reason why there is none.
pub fn devices() -> Vec<Availability> {
    let state = |device: Result<Device>| match device {
        Ok(device) => Ok(device.facts().clone()),
        Err(Error::Device { message, .. }) => Err(message),
        Err(Error::KernelsNotBuilt { reason, .. }) => {
            Err(format!("this program was built without its kernels: {reason}"))
        }
        Err(error) => Err(error.to_string()),
    };
    let mut found = vec![Availability { name: "emulated".to_owned(), state: state(Device::emulated()) }];
    match Gpu::count() {
        Err(error) => {
            found.push(Availability { name: "cuda".to_owned(), state: state(Err(error)) });
        }
        Ok(count) => found.extend((0..count).map(|ordinal| Availability {
            name: format!("cuda:{ordinal}"),
            state: state(Device::cuda(ordinal)),
        })),
    }
    found
}

impl Device {
    fn new(driver: Box<dyn Driver>) -> Self {
        let arena = Mutex::new(Arena::new(driver.layout()));
        Self(Arc::new(Inner { driver, arena, stagings: Mutex::default(), products: Mutex::default() }))
    }

    /// GPU number `ordinal`.
    ///
    /// # Errors
    /// If there is no driver or it is too old, no such device, or this program has no kernels for it.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        Ok(Self::new(Box::new(Gpu::open(ordinal)?)))
    }

    /// The emulator: the kernels' own sources compiled for the CPU, with every memory access checked.
    ///
    /// # Errors
    /// If the program was built without it.
    pub fn emulated() -> Result<Self> {
        Self::emulated_with_memory(usize::MAX)
    }

    /// The emulator of a device with this much memory, in bytes, capped by the available address space.
    ///
    /// # Errors
    /// If the program was built without it.
    pub fn emulated_with_memory(bytes: usize) -> Result<Self> {
        #[cfg(emulator)]
        {
            Ok(Self::new(Box::new(super::emulator::Emulator::open(bytes)?)))
        }
        #[cfg(not(emulator))]
        {
            let _ = bytes;
            Err(Error::KernelsNotBuilt {
                device: "emulated",
                reason: if cfg!(feature = "emulator") {
                    "there was no C++ compiler for them when it was built"
                } else {
                    "its feature `emulator` was turned off when it was built"
                }
                .to_owned(),
            })
        }
    }

    pub(super) fn driver(&self) -> &dyn Driver {
        &*self.0.driver
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.0
    }

    pub(super) fn arena(&self) -> MutexGuard<'_, Arena> {
        self.0.arena.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether two handles refer to the same device.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Properties and limits of the device.
    pub fn facts(&self) -> &DeviceFacts {
        self.driver().facts()
    }

    /// Memory statistics.
    pub fn memory(&self) -> MemoryUse {
        self.arena().memory()
    }

    /// Restarts the peak of [`memory`](Self::memory).
    pub fn reset_peak_memory(&self) {
        self.arena().reset_peak();
    }

    /// Returns free memory to the driver and requests as much as the peak needs in one piece, so that blocks of any
    /// size fit. Call it once, after the first step, which allocates as it goes, and before the following ones.
    ///
    /// # Errors
    /// If the device fails. If the driver cannot provide such a piece, memory is allocated again on demand.
    pub fn consolidate_memory(&self) -> Result<()> {
        let mut arena = self.arena();
        if !self.driver().layout().keep {
            return Ok(());
        }
        self.free_unused_pieces(&mut arena);
        let memory = arena.memory();
        let missing = (memory.peak_bytes - memory.used_bytes).saturating_sub(arena.free_bytes());
        // Blocks leave gaps where blocks of other sizes were, hence the margin.
        let [bytes, _] = arena.piece_sizes(missing + missing / 16);
        if missing > 0
            && let Some(address) = self.driver().allocate_piece(bytes)?
        {
            arena.add_piece(address, bytes);
        }
        Ok(())
    }

    fn free_unused_pieces(&self, arena: &mut Arena) -> bool {
        let unused = arena.remove_unused_pieces();
        for &(address, bytes) in &unused {
            // SAFETY: the piece was allocated by the driver, and none of it is in use.
            unsafe { self.driver().free_piece(address, bytes) };
        }
        !unused.is_empty()
    }

    /// Allocates a block from the arena.
    pub(super) fn take(&self, bytes: usize) -> Result<u64> {
        let mut arena = self.arena();
        let address = match arena.take(bytes) {
            Some(address) => address,
            None => {
                self.add_piece(&mut arena, bytes)?;
                arena.take(bytes).ok_or_else(|| Error::Device {
                    device: self.facts().name.clone(),
                    message: format!("a piece of memory for {bytes} bytes is too small"),
                })?
            }
        };
        // SAFETY: the arena cuts blocks from pieces of the driver, and no two of them overlap.
        unsafe { self.driver().hand_out(address, bytes) };
        Ok(address)
    }

    /// Requests another piece: the preferred size, else the minimum, else the minimum after returning unused pieces.
    fn add_piece(&self, arena: &mut Arena, bytes: usize) -> Result<()> {
        let [large, least] = arena.piece_sizes(bytes);
        let tries = if self.driver().layout().keep { [large, least, least] } else { [least; 3] };
        for (at, bytes) in tries.into_iter().enumerate() {
            if at == 2 && (arena.is_recording() || !self.free_unused_pieces(arena)) {
                break;
            }
            if let Some(address) = self.driver().allocate_piece(bytes)? {
                arena.add_piece(address, bytes);
                return Ok(());
            }
        }
        let (free_bytes, total_bytes) = self.driver().free_memory()?;
        Err(Error::OutOfMemory {
            device: self.facts().name.clone(),
            requested_bytes: bytes,
            free_bytes: free_bytes + arena.free_bytes(),
            total_bytes,
        })
    }

    /// Frees a block.
    pub(super) fn give_back(&self, address: u64) {
        let mut arena = self.arena();
        let freed = arena.give_back(address);
        self.take_back(&mut arena, freed);
    }

    pub(super) fn take_back(&self, arena: &mut Arena, freed: Vec<(u64, usize)>) {
        for (address, bytes) in freed {
            // SAFETY: the arena reports that nothing uses the block.
            unsafe { self.driver().take_back(address, bytes) };
        }
        if !self.driver().layout().keep && !arena.is_recording() {
            self.free_unused_pieces(arena);
        }
    }

    /// Runs a kernel.
    ///
    /// # Safety
    /// See `Driver::launch`.
    ///
    /// # Errors
    /// If there is no such kernel, the launch is beyond the device's limits, or the device fails.
    pub unsafe fn launch(&self, kernel: &Kernel, launch: &Launch, arguments: &[Argument]) -> Result<()> {
        // SAFETY: the caller's obligations are the same.
        unsafe { self.driver().launch(kernel, launch, arguments) }
    }

    /// Runs `work` and measures the time that its matrix products take on the device.
    ///
    /// # Errors
    /// Those of `work`, or if the device fails; in [`capture`](Self::capture).
    pub fn time_products<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<(R, Duration)> {
        let products = || self.0.products.lock().unwrap_or_else(PoisonError::into_inner);
        *products() = Some(Vec::new());
        let result = work();
        let times = products().take().unwrap_or_default();
        let mut total = 0.0;
        for (start, end) in &times {
            total += f64::from(self.elapsed_ms(start, end)?);
        }
        Ok((result?, Duration::from_secs_f64(total / 1e3)))
    }

    /// Records an event at this point of the stream.
    ///
    /// # Errors
    /// If the device fails; in [`capture`](Self::capture).
    pub fn record(&self) -> Result<Event> {
        self.refuse_in_capture("an event")?;
        self.driver().record()
    }

    /// Milliseconds between two events; waits for the later one.
    ///
    /// # Errors
    /// If the events belong to another device, or the device fails.
    pub fn elapsed_ms(&self, start: &Event, end: &Event) -> Result<f32> {
        self.driver().elapsed_ms(start, end)
    }

    /// Waits for all queued work.
    ///
    /// # Errors
    /// If any of it failed; in [`capture`](Self::capture).
    pub fn synchronize(&self) -> Result<()> {
        self.refuse_in_capture("waiting for the device")?;
        self.driver().synchronize()
    }
}

/// An element type that matrix products accept.
pub trait Factor: DeviceNumber {
    /// The type as a value.
    const NUMBER: ProductNumber;
}

impl Factor for f32 {
    const NUMBER: ProductNumber = ProductNumber::F32;
}
impl Factor for bf16 {
    const NUMBER: ProductNumber = ProductNumber::Bf16;
}
impl Factor for f16 {
    const NUMBER: ProductNumber = ProductNumber::F16;
}

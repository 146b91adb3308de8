//! Devices, safe to use.

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

/// A device that runs kernels. Cloning gives another handle to the same one.
///
/// Its memory is an arena: dropped buffers are reused at once, as all work is done in the order in which it was asked for;
/// a step that asks for the same buffers as the one before gets the same memory, and asks the driver for nothing.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

/// What all handles share.
pub(super) struct Inner {
    driver: Box<dyn Driver>,
    arena: Mutex<Arena>,
    pub(super) stagings: Mutex<Stagings>,
    /// Before and after each matrix product, while they are timed.
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
            // SAFETY: the piece is the driver's, and no handle to anything in it is left.
            unsafe { self.driver.free_piece(address, bytes) };
        }
    }
}

/// Whether a device can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Availability {
    /// As the user names it.
    pub name: String,
    /// What it is, or why it cannot be used.
    pub state: Result<DeviceFacts, String>,
}

/// Every device that runs kernels: the emulator, each GPU, or the reason why there is none.
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

    /// The emulator: the kernels' own sources on the CPU, every access to memory checked.
    ///
    /// # Errors
    /// If the program was built without it.
    pub fn emulated() -> Result<Self> {
        Self::emulated_with_memory(usize::MAX)
    }

    /// The emulator of a device with this much memory, in bytes, or as much as there is address space if that is less.
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

    /// Whether two handles are of the same device.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What the device is and what it allows.
    pub fn facts(&self) -> &DeviceFacts {
        self.driver().facts()
    }

    /// How much memory is used, was used at most, and is taken from the driver.
    pub fn memory(&self) -> MemoryUse {
        self.arena().memory()
    }

    /// Counts the peak of [`memory`](Self::memory) from now on.
    pub fn reset_peak_memory(&self) {
        self.arena().reset_peak();
    }

    /// Gives free memory back to the driver and asks for as much as the peak needs in one piece, so that blocks of any size
    /// fit. Worth doing once, between the first step, which takes memory as it goes, and those that follow.
    ///
    /// # Errors
    /// If the device fails. Where the driver has no such piece, memory is asked for again as it is needed.
    pub fn consolidate_memory(&self) -> Result<()> {
        let mut arena = self.arena();
        if !self.driver().layout().keep {
            return Ok(());
        }
        self.free_unused_pieces(&mut arena);
        let memory = arena.memory();
        let missing = (memory.peak_bytes - memory.used_bytes).saturating_sub(arena.free_bytes());
        // Blocks do not fit without gaps where others of other sizes were.
        let [bytes, _] = arena.wanted_piece(missing + missing / 16);
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
            // SAFETY: the piece is the driver's, and nothing of it is in use.
            unsafe { self.driver().free_piece(address, bytes) };
        }
        !unused.is_empty()
    }

    /// A block of the arena.
    pub(super) fn take(&self, bytes: usize) -> Result<u64> {
        let mut arena = self.arena();
        let address = match arena.take(bytes) {
            Some(address) => address,
            None => {
                self.add_piece(&mut arena, bytes)?;
                arena.take(bytes).ok_or_else(|| Error::Device {
                    device: self.facts().name.clone(),
                    message: format!("a piece of memory for {bytes} bytes does not hold them"),
                })?
            }
        };
        // SAFETY: the arena gives blocks of pieces of the driver's, no two of which overlap.
        unsafe { self.driver().hand_out(address, bytes) };
        Ok(address)
    }

    /// Asks the driver for more: what suits it, else what is needed, else that after giving back what is unused.
    fn add_piece(&self, arena: &mut Arena, bytes: usize) -> Result<()> {
        let [large, least] = arena.wanted_piece(bytes);
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

    /// Gives a block back.
    pub(super) fn give_back(&self, address: u64) {
        let mut arena = self.arena();
        let freed = arena.give_back(address);
        self.take_back(&mut arena, freed);
    }

    pub(super) fn take_back(&self, arena: &mut Arena, freed: Vec<(u64, usize)>) {
        for (address, bytes) in freed {
            // SAFETY: the arena says that the block is nobody's any more.
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

    /// Does `work` and gives the time that its matrix products took on the device.
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

    /// Marks this point in the work.
    ///
    /// # Errors
    /// If the device fails; in [`capture`](Self::capture).
    pub fn record(&self) -> Result<Event> {
        self.refuse_in_capture("the mark of a point in time")?;
        self.driver().record()
    }

    /// Milliseconds between two points, waiting for the later one.
    ///
    /// # Errors
    /// If the events are another device's or the device fails.
    pub fn elapsed_ms(&self, start: &Event, end: &Event) -> Result<f32> {
        self.driver().elapsed_ms(start, end)
    }

    /// Waits for all work.
    ///
    /// # Errors
    /// If any of it failed; in [`capture`](Self::capture).
    pub fn synchronize(&self) -> Result<()> {
        self.refuse_in_capture("waiting for the device")?;
        self.driver().synchronize()
    }
}

/// A number that a matrix product takes.
pub trait Factor: DeviceNumber {
    /// The same, as a value.
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

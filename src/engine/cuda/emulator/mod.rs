//! The emulator: kernels compiled by the C++ compiler and run on the CPU by `kernels/host/runtime.cpp`.
//!
//! Blocks run in parallel on rayon's threads, each with its own worker. A bug in a kernel (a barrier that not all
//! threads reach, a read of uninitialized memory, an out-of-bounds access, a race) is an [`Error::Kernel`] that names
//! the kernel, the thread and the line.

mod pages;
mod product;
mod runtime;

use std::{
    ffi::{CStr, CString, c_uint, c_void},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Instant,
};

use rayon::prelude::*;

use super::driver::{
    Argument, DeviceFacts, Driver, Event, Kernel, Launch, MemoryLayout, Product, Recording, Staging,
};
use crate::error::{Error, Result};
use pages::{PAGE, Pages};
use runtime::{
    KernelDescription, Shape, Worker, describe, emulator_arena_add, emulator_arena_holds,
    emulator_arena_is_written, emulator_arena_mark_written, emulator_arena_remove, emulator_find,
    emulator_run_block, emulator_worker_new, pointer,
};

/// Bytes of emulated memory reserved at once. It is address space; only touched pages use memory.
const PIECE: usize = 64 << 20;
/// Shared memory that every supported architecture offers: the limit of compute capability 8.0.
const SHARED_BYTES: u32 = 163 * 1024;
const MOST_THREADS: u32 = 1024;
const BLOCK_LIMITS: [u32; 3] = [1024, 1024, 64];
const GRID_LIMITS: [u32; 3] = [0x7fff_ffff, 65_535, 65_535];

/// A recorded call.
#[derive(Clone, Debug)]
enum Step {
    HandOut { address: u64, bytes: usize },
    TakeBack { address: u64, bytes: usize },
    Copy { to: u64, from: u64, bytes: usize },
    Clear { to: u64, bytes: usize },
    Launch { kernel: Kernel, launch: Launch, arguments: Vec<Argument> },
    Product(Product),
}

/// The emulated device.
pub(super) struct Emulator {
    facts: DeviceFacts,
    workers: Mutex<Vec<Worker>>,
    /// Reserved bytes of the emulated memory.
    held: AtomicUsize,
    recorded: Mutex<Option<Vec<Step>>>,
}

impl std::fmt::Debug for Emulator {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Emulator").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl Emulator {
    pub(super) fn open(memory_bytes: usize) -> Result<Self> {
        let memory_bytes = memory_bytes.min(Pages::get()?.total * PAGE);
        let facts = DeviceFacts {
            name: "emulated".to_owned(),
            model: "the GPU's kernels on the CPU, every access checked (slow)".to_owned(),
            capability: (8, 0),
            memory_bytes,
            shared_bytes: SHARED_BYTES,
            multiprocessors: u32::try_from(rayon::current_num_threads()).unwrap_or(u32::MAX),
        };
        Ok(Self { facts, workers: Mutex::default(), held: AtomicUsize::new(0), recorded: Mutex::default() })
    }

    fn recorded(&self) -> MutexGuard<'_, Option<Vec<Step>>> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a call if a recording is in progress.
    fn record_step(&self, step: impl FnOnce() -> Step) -> bool {
        self.recorded().as_mut().map(|steps| steps.push(step())).is_some()
    }

    fn worker(&self) -> Result<Worker> {
        let free = self.workers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(worker) = free {
            return Ok(worker);
        }
        // SAFETY: takes no arguments, and its result is checked.
        let worker = unsafe { emulator_worker_new() };
        if worker.is_null() {
            return Err(self.fail("out of memory for the threads of a block".to_owned()));
        }
        Ok(Worker(worker))
    }

    fn give_back(&self, worker: Worker) {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
    }

    fn fail(&self, message: String) -> Error {
        Error::Device { device: self.facts.name.clone(), message }
    }

    /// Rejects launches that a GPU would reject, and arguments that do not match the kernel's signature.
    fn check(
        &self,
        kernel: &KernelDescription,
        launch: &Launch,
        arguments: &[Argument],
    ) -> Result<(), String> {
        let threads: u64 = launch.block.iter().map(|&size| u64::from(size)).product();
        let most = kernel.threads.min(MOST_THREADS);
        if threads > u64::from(most) {
            return Err(format!("a block of {threads} threads: must be from 1 to {most}"));
        }
        for (what, sizes, limits) in
            [("block", launch.block, BLOCK_LIMITS), ("grid", launch.grid, GRID_LIMITS)]
        {
            if sizes.iter().zip(limits).any(|(&size, limit)| size == 0 || size > limit) {
                return Err(format!("a {what} of {sizes:?}: each size must be from 1 to {limits:?}"));
            }
        }
        if launch.shared_bytes > self.facts.shared_bytes {
            return Err(format!(
                "{} bytes of shared memory exceed the limit of {}",
                launch.shared_bytes, self.facts.shared_bytes
            ));
        }
        // SAFETY: the description is a static of the kernel's file, its signature a string.
        let signature = unsafe { CStr::from_ptr(kernel.signature) }.to_bytes();
        let (passing, types) = signature.split_at(signature.len() / 2);
        if passing.len() != arguments.len() {
            return Err(format!("got {} arguments, expected {}", arguments.len(), passing.len()));
        }
        for (at, argument) in arguments.iter().enumerate() {
            let [given, letter] = argument.signature();
            // A writable pointer may also be read; null has any type.
            let is_null =
                matches!(argument, Argument::Read { address: 0, .. } | Argument::Write { address: 0, .. });
            let fits =
                given == passing[at] || (given == b'w' && passing[at] == b'r') || (is_null && given == b'r');
            if !fits || letter != types[at] {
                return Err(format!(
                    "argument {at} is `{}{}`; it takes `{}{}` (kernels/host/emulator.h says what the letters are)",
                    char::from(given),
                    char::from(letter),
                    char::from(passing[at]),
                    char::from(types[at])
                ));
            }
        }
        Ok(())
    }

    /// Checks that a range lies in one allocation; otherwise the copy or product that names it has a bug.
    fn expect_allocated(&self, what: &str, address: u64, bytes: usize) -> Result<()> {
        // SAFETY: only looks the range up.
        if unsafe { emulator_arena_holds(pointer(address), bytes as u64) } != 0 {
            return Ok(());
        }
        Err(self.fail(format!("{what}: {bytes} bytes at {address:#x} are not within one allocation")))
    }
}

impl Driver for Emulator {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn layout(&self) -> MemoryLayout {
        // A page between blocks belongs to none, so that a small overrun never reaches another block.
        MemoryLayout {
            granule: PAGE,
            gap: PAGE,
            piece: PIECE.min(self.facts.memory_bytes / PAGE * PAGE),
            piece_granule: PAGE,
            keep: true,
        }
    }

    fn allocate_piece(&self, bytes: usize) -> Result<Option<u64>> {
        let held = self.held.load(Ordering::Relaxed);
        if held.saturating_add(bytes) > self.facts.memory_bytes {
            return Ok(None);
        }
        let mut pages = Pages::get()?;
        let Some(first) = pages.take(bytes.div_ceil(PAGE)) else { return Ok(None) };
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Ok(Some(pages.base + (first * PAGE) as u64))
    }

    unsafe fn free_piece(&self, address: u64, bytes: usize) {
        let Ok(mut pages) = Pages::get() else { return };
        // SAFETY: the caller passes a piece that nothing uses any more.
        unsafe { emulator_arena_remove(pointer(address), bytes as u64) };
        let first = usize::try_from(address - pages.base).unwrap_or(0) / PAGE;
        pages.put_back(first, bytes.div_ceil(PAGE));
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn free_memory(&self) -> Result<(usize, usize)> {
        let pages = Pages::get()?;
        let left = self.facts.memory_bytes.saturating_sub(self.held.load(Ordering::Relaxed));
        Ok((left.min((pages.total - pages.used) * PAGE), self.facts.memory_bytes))
    }

    unsafe fn hand_out(&self, address: u64, bytes: usize) {
        if !self.record_step(|| Step::HandOut { address, bytes }) {
            // SAFETY: the range lies within a piece and belongs to no other block. If a recording is replayed while its
            // results are kept, the range still belongs to this block, whose contents are then discarded.
            unsafe {
                emulator_arena_remove(pointer(address), bytes as u64);
                emulator_arena_add(pointer(address), bytes as u64);
            }
        }
    }

    unsafe fn take_back(&self, address: u64, bytes: usize) {
        if !self.record_step(|| Step::TakeBack { address, bytes }) {
            // SAFETY: the range belongs to a block that is no longer used.
            unsafe { emulator_arena_remove(pointer(address), bytes as u64) };
        }
    }

    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.expect_allocated("upload", to, bytes.len())?;
        // SAFETY: the destination is allocated; host memory is never part of it.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), pointer(to).cast::<u8>(), bytes.len());
            emulator_arena_mark_written(pointer(to), bytes.len() as u64);
        }
        Ok(())
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.expect_allocated("download", from, bytes.len())?;
        // SAFETY: the source is allocated; host memory is never part of it.
        unsafe {
            if emulator_arena_is_written(pointer(from), bytes.len() as u64) == 0 {
                return Err(self.fail("download: not all of the memory was written".to_owned()));
            }
            std::ptr::copy_nonoverlapping(pointer(from).cast::<u8>(), bytes.as_mut_ptr(), bytes.len());
        }
        Ok(())
    }

    fn staging(&self, _: usize) -> Result<Staging> {
        Ok(Staging(Box::new(())))
    }

    unsafe fn upload_ahead(&self, _: &Staging, to: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: the caller's obligations are the same.
        unsafe { self.upload(to, bytes) }
    }

    fn arrive(&self, _: &Staging) -> Result<()> {
        Ok(())
    }

    fn leave(&self, _: &Staging) -> Result<()> {
        Ok(())
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        if self.record_step(|| Step::Copy { to, from, bytes }) {
            return Ok(());
        }
        self.expect_allocated("copy", to, bytes)?;
        self.expect_allocated("copy", from, bytes)?;
        // SAFETY: both ranges are allocated, and the caller says that they do not overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(pointer(from).cast::<u8>(), pointer(to).cast::<u8>(), bytes);
            emulator_arena_mark_written(pointer(to), bytes as u64);
        }
        Ok(())
    }

    unsafe fn clear(&self, to: u64, bytes: usize) -> Result<()> {
        if self.record_step(|| Step::Clear { to, bytes }) {
            return Ok(());
        }
        self.expect_allocated("clear", to, bytes)?;
        // SAFETY: the range is allocated.
        unsafe {
            std::ptr::write_bytes(pointer(to).cast::<u8>(), 0, bytes);
            emulator_arena_mark_written(pointer(to), bytes as u64);
        }
        Ok(())
    }

    unsafe fn launch(&self, kernel: &Kernel, launch: &Launch, arguments: &[Argument]) -> Result<()> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let refuse = |message: String| Error::Kernel { kernel: kernel.name.clone(), message };
        let name = CString::new(kernel.name.as_str()).map_err(|_| refuse("no such kernel".to_owned()))?;
        // SAFETY: a string; the result is null or a static description.
        let Some(description) = (unsafe { emulator_find(name.as_ptr()).as_ref() }) else {
            return Err(refuse(format!("no such kernel in kernels/{}.cu", kernel.file)));
        };
        self.check(description, launch, arguments).map_err(refuse)?;
        let step = || Step::Launch { kernel: kernel.clone(), launch: *launch, arguments: arguments.to_vec() };
        if self.record_step(step) {
            return Ok(());
        }
        // 0 denotes the host.
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1);
        let shape = Shape {
            grid: launch.grid,
            block: launch.block,
            dynamic_bytes: launch.shared_bytes,
            shared_limit: self.facts.shared_bytes,
            serial,
        };
        let [x, y, z] = launch.grid.map(u64::from);
        let run = |number: u64| -> Option<Error> {
            let block = [number % x, number / x % y, number / (x * y)]
                .map(|index| c_uint::try_from(index).unwrap_or(c_uint::MAX));
            let worker = match self.worker() {
                Ok(worker) => worker,
                Err(error) => return Some(error),
            };
            let values: Vec<*const c_void> = arguments.iter().map(Argument::value).collect();
            // SAFETY: only this thread uses the worker; the values match the kernel's arguments in number and type,
            // which was checked; every access is checked before the kernel makes it.
            let fault = unsafe {
                emulator_run_block(worker.0, description, &raw const shape, values.as_ptr(), &raw const block)
                    .as_ref()
            };
            let error = fault.map(|fault| refuse(describe(fault)));
            self.give_back(worker);
            error
        };
        (0..x * y * z).into_par_iter().find_map_first(run).map_or(Ok(()), Err)
    }

    unsafe fn product(&self, gemm: &Product) -> Result<()> {
        if self.record_step(|| Step::Product(*gemm)) {
            return Ok(());
        }
        self.multiply(gemm)
    }

    fn begin_recording(&self) -> Result<()> {
        *self.recorded() = Some(Vec::new());
        Ok(())
    }

    fn end_recording(&self) -> Result<Recording> {
        Ok(Recording(Box::new(self.recorded().take().unwrap_or_default())))
    }

    unsafe fn replay(&self, recording: &Recording) -> Result<()> {
        let Some(steps) = recording.0.downcast_ref::<Vec<Step>>() else {
            return Err(self.fail("the recording belongs to another device".to_owned()));
        };
        for step in steps {
            // SAFETY: the caller guarantees that each call's obligations still hold.
            unsafe {
                match step {
                    Step::HandOut { address, bytes } => self.hand_out(*address, *bytes),
                    Step::TakeBack { address, bytes } => self.take_back(*address, *bytes),
                    Step::Copy { to, from, bytes } => self.copy(*to, *from, *bytes)?,
                    Step::Clear { to, bytes } => self.clear(*to, *bytes)?,
                    Step::Launch { kernel, launch, arguments } => self.launch(kernel, launch, arguments)?,
                    Step::Product(product) => self.product(product)?,
                }
            }
        }
        Ok(())
    }

    fn record(&self) -> Result<Event> {
        Ok(Event(Box::new(Instant::now())))
    }

    fn elapsed_ms(&self, start: &Event, end: &Event) -> Result<f32> {
        let instant = |event: &Event| event.0.downcast_ref::<Instant>().copied();
        let (Some(start), Some(end)) = (instant(start), instant(end)) else {
            return Err(self.fail("the event belongs to another device".to_owned()));
        };
        Ok(end.saturating_duration_since(start).as_secs_f32() * 1e3)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

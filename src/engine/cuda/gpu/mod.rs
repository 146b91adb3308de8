//! A GPU through the CUDA driver, which is loaded at run time: CUDA is needed neither to build nor to start the
//! program.

mod copy_unit;
mod kernels;
mod refusals;

use std::{
    ffi::{CString, c_int, c_void},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use cudarc::driver::{CudaContext, CudaEvent, CudaGraph, CudaStream, DriverError, result, sys};

use super::{
    driver::{
        Argument, DeviceFacts, Driver, Event, Kernel, Launch, MemoryLayout, Product, Recording, SampleMap,
        SampleRows, Staging,
    },
    gpu_product::Multiplier,
};
use crate::error::{Error, Result};
use kernels::{FATBINS, Function, Loaded};
use refusals::{check_architecture, check_driver, is_sticky, phrase};

/// Memory is requested from the driver in pieces of this many bytes; larger ones are multiples of its mapping
/// granularity.
const PIECE: usize = 64 << 20;
const MAPPED: usize = 2 << 20;
/// Alignment of blocks, so that every load and copy can use its full width.
const GRANULE: usize = 512;

/// One GPU and the stream that runs all its work.
pub(super) struct Gpu {
    facts: DeviceFacts,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// Stream for uploads that overlap with the work.
    copies: Arc<CudaStream>,
    loaded: Mutex<Loaded>,
    multiplier: Mutex<Option<Multiplier>>,
    recording: AtomicBool,
    /// Whether to synchronize after every launch, so that an error is reported by the launch that caused it.
    waits: bool,
    keeps_memory: bool,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Gpu").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // Errors no longer matter while everything is torn down.
        let _ = self.context.bind_to_thread();
        let _ = self.stream.synchronize();
        let _ = self.copies.synchronize();
        if let Some(multiplier) = self.multiplier.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            let workspace = multiplier.workspace();
            drop(multiplier);
            // SAFETY: allocated for the multiplier, which has been dropped.
            let _ = unsafe { result::free_sync(workspace) };
        }
        for module in self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner).modules.values() {
            // SAFETY: loaded by `function`, once, and no kernel runs any more.
            let _ = unsafe { result::module::unload(*module as sys::CUmodule) };
        }
    }
}

/// Pinned host memory, which asynchronous copies need.
struct Pinned {
    context: Arc<CudaContext>,
    host: usize,
    bytes: usize,
    /// Events after the last copy, and after the last work that used it.
    arrived: CudaEvent,
    left: CudaEvent,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
        let _ = self.arrived.synchronize();
        // SAFETY: allocated by `staging`, and the copies from it are done.
        let _ = unsafe { result::free_host(self.host as *mut c_void) };
    }
}

/// A captured graph. The driver requires exclusive access.
struct Recorded(Mutex<CudaGraph>);

// SAFETY: the handles may be used from any thread with the context bound, one at a time, which the mutex ensures.
unsafe impl Send for Recorded {}
// SAFETY: as above.
unsafe impl Sync for Recorded {}

fn missing(device: &str, message: impl Into<String>) -> Error {
    Error::Device { device: device.to_owned(), message: message.into() }
}

impl Gpu {
    /// Number of GPUs.
    ///
    /// # Errors
    /// If there is no driver, it is too old, or it finds no GPU.
    pub(super) fn count() -> Result<usize> {
        // SAFETY: only tries to open the library; without it, every other call panics.
        if !unsafe { sys::is_culib_present() } {
            return Err(missing("cuda", kernels::no_driver()));
        }
        let mut version: c_int = 0;
        // SAFETY: writes one integer, and may be called before anything else.
        unsafe { sys::cuDriverGetVersion(&raw mut version) }
            .result()
            .map_err(|error| missing("cuda", phrase(error)))?;
        check_driver(version).map_err(|message| missing("cuda", message))?;
        let count = CudaContext::device_count().map_err(|error| missing("cuda", phrase(error)))?;
        match usize::try_from(count) {
            Ok(count) if count > 0 => Ok(count),
            _ => Err(missing("cuda", "the driver finds no GPU")),
        }
    }

    pub(super) fn open(ordinal: usize) -> Result<Self> {
        use sys::CUdevice_attribute_enum as Attribute;
        let name = format!("cuda:{ordinal}");
        let count = Self::count()?;
        if ordinal >= count {
            return Err(missing(&name, format!("there are {count} GPUs, counted from 0")));
        }
        if let Err(reason) = FATBINS {
            return Err(Error::KernelsNotBuilt { device: "cuda", reason: reason.to_owned() });
        }
        let fail = |error| missing(&name, phrase(error));
        let context = CudaContext::new(ordinal).map_err(fail)?;
        let attribute = |which| -> Result<u32> {
            Ok(u32::try_from(context.attribute(which).map_err(fail)?).unwrap_or(0))
        };
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        check_architecture(capability).map_err(|message| missing(&name, message))?;
        let facts = DeviceFacts {
            model: context.name().map_err(fail)?,
            capability,
            memory_bytes: context.total_mem().map_err(fail)?,
            shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            name,
        };
        let stream = || context.new_stream().map_err(|error| missing(&facts.name, phrase(error)));
        let (stream, copies) = (stream()?, stream()?);
        let is_set = |name| std::env::var(name).is_ok_and(|value| value == "1");
        Ok(Self {
            context,
            stream,
            copies,
            loaded: Mutex::default(),
            multiplier: Mutex::default(),
            recording: AtomicBool::new(false),
            waits: is_set("ALCHEMIST_SYNC_LAUNCH"),
            keeps_memory: !is_set("ALCHEMIST_PLAIN_ALLOCATIONS"),
            facts,
        })
    }

    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, message: impl Into<String>) -> Error {
        missing(&self.facts.name, message)
    }

    /// Runs `work` with the context bound to this thread. After a sticky error, every call returns it
    /// again.
    fn with<R>(&self, what: fmt::Arguments<'_>, work: impl FnOnce() -> Result<R, DriverError>) -> Result<R> {
        if let Some(reason) = &self.loaded().broken {
            return Err(self.fail(reason.clone()));
        }
        self.context.bind_to_thread().and_then(|()| work()).map_err(|error| {
            let mut message = format!("{what} failed: {}", phrase(error));
            if is_sticky(error) {
                let mut loaded = self.loaded();
                message += &loaded.launches.suspects();
                loaded.broken = Some(message.clone());
            }
            self.fail(message)
        })
    }

    /// The function of a kernel; loads its module on first use.
    fn function(&self, kernel: &Kernel) -> Result<Function> {
        use sys::CUfunction_attribute_enum as Attribute;
        if let Some(&function) = self.loaded().functions.get(&kernel.name) {
            return Ok(function);
        }
        let refuse =
            |message: &str| Error::Kernel { kernel: kernel.name.clone(), message: message.to_owned() };
        let images = FATBINS.map_err(&refuse)?;
        let module = self.loaded().modules.get(kernel.file).copied();
        let module = match module {
            Some(module) => module as sys::CUmodule,
            None => {
                let (_, image) = images
                    .iter()
                    .find(|(file, _)| *file == kernel.file)
                    .ok_or_else(|| refuse("its file is not among the kernels"))?;
                let module = self.with(format_args!("loading kernels/{}.cu", kernel.file), || {
                    // SAFETY: the image is a complete fatbin made by nvcc, and lives as long as the program.
                    unsafe { result::module::load_data(image.0.as_ptr().cast()) }
                })?;
                self.loaded().modules.insert(kernel.file, module as usize);
                module
            }
        };
        let name = CString::new(kernel.name.as_str()).map_err(|_| refuse("its name contains NUL"))?;
        let function = self.with(format_args!("finding the kernel {}", kernel.name), || {
            // SAFETY: the module was loaded above and is unloaded only when the device closes; so is the function.
            unsafe {
                let handle = result::module::get_function(module, name)?;
                let attribute = |which| {
                    let value = result::function::get_function_attribute(handle, which)?;
                    Ok(u32::try_from(value).unwrap_or(0))
                };
                let fixed = attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
                let most_threads = attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
                // More than 48 KiB needs an opt-in per function; each launch then sets its own size.
                let most_dynamic_bytes = self.facts.shared_bytes.saturating_sub(fixed);
                let bytes = i32::try_from(most_dynamic_bytes).unwrap_or(i32::MAX);
                let most = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                result::function::set_function_attribute(handle, most, bytes)?;
                Ok(Function { handle: handle as usize, most_threads, most_dynamic_bytes })
            }
        })?;
        self.loaded().functions.insert(kernel.name.clone(), function);
        Ok(function)
    }

    /// Downcasts a staging.
    fn pinned<'a>(&self, staging: &'a Staging) -> Result<&'a Pinned> {
        staging.0.downcast_ref().ok_or_else(|| self.fail("the staging belongs to another device"))
    }
}

impl Driver for Gpu {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn layout(&self) -> MemoryLayout {
        if self.keeps_memory {
            MemoryLayout { granule: GRANULE, gap: 0, piece: PIECE, piece_granule: MAPPED, keep: true }
        } else {
            MemoryLayout { granule: 1, gap: 0, piece: 1, piece_granule: 1, keep: false }
        }
    }

    fn allocate_piece(&self, bytes: usize) -> Result<Option<u64>> {
        self.with(format_args!("allocating {bytes} bytes"), || {
            // SAFETY: the caller treats the contents as undefined.
            match unsafe { result::malloc_sync(bytes) } {
                Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
                other => other.map(Some),
            }
        })
    }

    unsafe fn free_piece(&self, address: u64, _: usize) {
        // A failure on a broken device is reported by its next use.
        let _ = self.with(format_args!("freeing memory"), || {
            // SAFETY: the caller passes a piece that only work queued earlier uses; the driver waits for it.
            unsafe {
                result::stream::synchronize(self.stream.cu_stream())?;
                result::stream::synchronize(self.copies.cu_stream())?;
                result::free_sync(address)
            }
        });
    }

    fn free_memory(&self) -> Result<(usize, usize)> {
        self.with(format_args!("querying free memory"), result::mem_get_info)
    }

    unsafe fn hand_out(&self, _: u64, _: usize) {}

    unsafe fn take_back(&self, _: u64, _: usize) {}

    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.with(format_args!("copying to the device"), || {
            let stream = self.stream.cu_stream();
            // SAFETY: the caller guarantees that the destination is allocated; `bytes` is kept until the copy is done.
            unsafe {
                result::memcpy_htod_async(to, bytes, stream)?;
                result::stream::synchronize(stream)
            }
        })
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.with(format_args!("copying from the device"), || {
            let stream = self.stream.cu_stream();
            // SAFETY: the caller guarantees that the source is allocated; `bytes` is kept until the copy is done.
            unsafe {
                result::memcpy_dtoh_async(bytes, from, stream)?;
                result::stream::synchronize(stream)
            }
        })
    }

    fn staging(&self, bytes: usize) -> Result<Staging> {
        self.with(format_args!("locking {bytes} bytes of the host's memory"), || {
            let flags = Some(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
            let (arrived, left) = (self.context.new_event(flags)?, self.context.new_event(flags)?);
            // Earlier users of the device memory may still be queued.
            left.record(&self.stream)?;
            // SAFETY: the contents are undefined; they are written before they are copied.
            let host = unsafe { result::malloc_host(bytes, 0) }? as usize;
            Ok(Staging(Box::new(Pinned { context: self.context.clone(), host, bytes, arrived, left })))
        })
    }

    unsafe fn upload_ahead(&self, staging: &Staging, to: u64, bytes: &[u8]) -> Result<()> {
        let pinned = self.pinned(staging)?;
        if bytes.len() > pinned.bytes {
            return Err(self.fail(format!(
                "{} bytes do not fit into a staging buffer of {}",
                bytes.len(),
                pinned.bytes
            )));
        }
        self.with(format_args!("copying to the device ahead"), || {
            // The previous copy must have read the staging before it is overwritten; it was queued a step ago.
            pinned.arrived.synchronize()?;
            // SAFETY: the staging holds that many bytes, nothing reads it now, and the destination is allocated.
            unsafe {
                let host = pinned.host as *mut u8;
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), host, bytes.len());
                self.copies.wait(&pinned.left)?;
                let from = std::slice::from_raw_parts(host.cast_const(), bytes.len());
                result::memcpy_htod_async(to, from, self.copies.cu_stream())?;
            }
            pinned.arrived.record(&self.copies)
        })
    }

    fn arrive(&self, staging: &Staging) -> Result<()> {
        let pinned = self.pinned(staging)?;
        self.with(format_args!("waiting for a copy"), || self.stream.wait(&pinned.arrived))
    }

    fn leave(&self, staging: &Staging) -> Result<()> {
        let pinned = self.pinned(staging)?;
        self.with(format_args!("marking the end of a copy's use"), || pinned.left.record(&self.stream))
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.with(format_args!("copying on the device"), || {
            // SAFETY: the caller guarantees that both ranges are allocated.
            unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
        })
    }

    unsafe fn clear(&self, to: u64, bytes: usize) -> Result<()> {
        self.with(format_args!("clearing memory"), || {
            // SAFETY: the caller guarantees that the range is allocated.
            unsafe { result::memset_d8_async(to, 0, bytes, self.stream.cu_stream()) }
        })
    }

    unsafe fn launch(&self, kernel: &Kernel, launch: &Launch, arguments: &[Argument]) -> Result<()> {
        let function = self.function(kernel)?;
        function.check(launch).map_err(|message| Error::Kernel { kernel: kernel.name.clone(), message })?;
        let mut values: Vec<*mut c_void> =
            arguments.iter().map(|argument| argument.value().cast_mut()).collect();
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        let stream = self.stream.cu_stream();
        self.loaded().launches.add(&kernel.name);
        self.with(format_args!("the launch of {}", kernel.name), || {
            // SAFETY: the caller meets the obligations of a launch; the driver copies the values before it returns.
            unsafe {
                result::launch_kernel(
                    function.handle as sys::CUfunction,
                    (gx, gy, gz),
                    (bx, by, bz),
                    launch.shared_bytes,
                    stream,
                    &mut values,
                )?;
                if self.waits && !self.recording.load(Ordering::Relaxed) {
                    result::stream::synchronize(stream)?;
                }
            }
            Ok(())
        })
    }

    fn sample_map(&self, rows: &SampleRows) -> Result<Option<SampleMap>> {
        self.describe_to_copy_unit(rows)
    }

    unsafe fn product(&self, product: &Product) -> Result<()> {
        self.with(format_args!("a matrix product"), || Ok(()))?;
        let mut multiplier = self.multiplier.lock().unwrap_or_else(PoisonError::into_inner);
        if multiplier.is_none() {
            let bytes = Multiplier::WORKSPACE_BYTES;
            let workspace = self.allocate_piece(bytes)?.ok_or_else(|| Error::OutOfMemory {
                device: self.facts.name.clone(),
                requested_bytes: bytes,
                free_bytes: self.free_memory().map_or(0, |(free, _)| free),
                total_bytes: self.facts.memory_bytes,
            })?;
            *multiplier = Some(Multiplier::open(workspace).map_err(|message| self.fail(message))?);
        }
        let Some(multiplier) = multiplier.as_mut() else { return Ok(()) };
        let [m, n, k] = [product.m, product.n, product.k];
        self.loaded().launches.add(&format!("the product of {m}, {n}, {k}"));
        // SAFETY: the caller guarantees that all matrices are allocated with their sizes; the stream outlives the call.
        unsafe { multiplier.run(product, self.stream.cu_stream()) }.map_err(|message| self.fail(message))?;
        if self.waits && !self.recording.load(Ordering::Relaxed) {
            self.with(format_args!("the product of {m}, {n}, {k}"), || self.stream.synchronize())?;
        }
        Ok(())
    }

    fn begin_recording(&self) -> Result<()> {
        // Relaxed: the capture does not depend on other threads, and kernels may be loaded meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        self.with(format_args!("beginning a recording"), || self.stream.begin_capture(mode))?;
        self.recording.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn end_recording(&self) -> Result<Recording> {
        self.recording.store(false, Ordering::Relaxed);
        let graph = self.with(format_args!("ending a recording"), || {
            self.stream.end_capture(sys::CUgraphInstantiate_flags(0))
        })?;
        let graph = graph.ok_or_else(|| self.fail("the driver recorded nothing"))?;
        Ok(Recording(Box::new(Recorded(Mutex::new(graph)))))
    }

    unsafe fn replay(&self, recording: &Recording) -> Result<()> {
        let Some(Recorded(graph)) = recording.0.downcast_ref() else {
            return Err(self.fail("the recording belongs to another device"));
        };
        self.loaded().launches.add("a recorded graph");
        self.with(format_args!("the launch of a recorded graph"), || {
            graph.lock().unwrap_or_else(PoisonError::into_inner).launch()?;
            if self.waits { self.stream.synchronize() } else { Ok(()) }
        })
    }

    fn record(&self) -> Result<Event> {
        self.with(format_args!("recording an event"), || {
            let event = self.context.new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT))?;
            event.record(&self.stream)?;
            Ok(Event(Box::new(event)))
        })
    }

    fn elapsed_ms(&self, start: &Event, end: &Event) -> Result<f32> {
        let (Some(start), Some(end)) =
            (start.0.downcast_ref::<CudaEvent>(), end.0.downcast_ref::<CudaEvent>())
        else {
            return Err(self.fail("the event belongs to another device"));
        };
        self.with(format_args!("measuring time"), || start.elapsed_ms(end))
    }

    fn synchronize(&self) -> Result<()> {
        self.with(format_args!("waiting for the device"), || self.stream.synchronize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_gpu_is_an_error_that_says_why() {
        let message = Gpu::open(usize::MAX).unwrap_err().to_string();
        // SAFETY: only tries to open the library.
        let expected: &[&str] = if unsafe { sys::is_culib_present() } {
            &["counted from 0", "the driver"]
        } else {
            &["cuda: there is no CUDA driver (libcuda) on this machine"]
        };
        assert!(expected.iter().any(|part| message.contains(part)), "{message}");
    }
}

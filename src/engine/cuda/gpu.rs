//! A GPU through the CUDA driver, loaded when the program runs: nothing of CUDA is needed to build or to start it.

use std::{
    collections::{HashMap, VecDeque},
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
        Argument, DeviceFacts, Driver, Event, Kernel, Launch, MemoryLayout, Product, Recording, Staging,
    },
    gpu_product::Multiplier,
};
use crate::error::{Error, Result};

/// The driver reads images in words.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

/// A kernel file's name and its machine code for all targets.
type Fatbin = (&'static str, &'static Aligned<[u8]>);

/// All of them, or why there is none.
const FATBINS: std::result::Result<&[Fatbin], &str> =
    include!(concat!(env!("OUT_DIR"), "/kernels/fatbins.rs"));

/// What the kernels' toolkit needs of the driver: CUDA 13.0, as `cuDriverGetVersion` counts.
const OLDEST_DRIVER: c_int = 13_000;
/// The oldest architecture that the kernels are compiled for.
const OLDEST_ARCHITECTURE: (u32, u32) = (8, 0);
/// Memory is asked of the driver in pieces of this many bytes, and larger ones in multiples of what it maps at once.
const PIECE: usize = 64 << 20;
const MAPPED: usize = 2 << 20;
/// Blocks start where every load and copy is as wide as it can be.
const GRANULE: usize = 512;
/// Names of launches that are kept for the message of an error that comes later.
const KEPT_LAUNCHES: usize = 8;

/// A kernel's function and what the card allows it.
#[derive(Clone, Copy)]
struct Function {
    handle: usize,
    most_threads: u32,
    most_dynamic_bytes: u32,
}

/// Modules and functions of a context, loaded when first asked for. Handles are addresses that only the driver reads.
#[derive(Default)]
struct Loaded {
    modules: HashMap<&'static str, usize>,
    functions: HashMap<String, Function>,
    /// Why nothing works any more, once the driver has said so: its errors of kernels stay until the process ends.
    broken: Option<String>,
    launches: Launches,
}

/// The last launches, of which one is to blame when the driver reports an error of a kernel.
#[derive(Default)]
struct Launches(VecDeque<String>);

impl Launches {
    fn add(&mut self, name: &str) {
        if self.0.back().is_some_and(|last| last == name) {
            return;
        }
        if self.0.len() == KEPT_LAUNCHES {
            self.0.pop_front();
        }
        self.0.push_back(name.to_owned());
    }

    /// What to add to the message of an error that any of them may have caused.
    fn suspects(&self) -> String {
        match self.0.len() {
            0 => String::new(),
            1 => format!("; the only launch before was {}", self.0[0]),
            _ => format!(
                "; the last launches before were {} (ALCHEMIST_SYNC_LAUNCH=1 finds the one to blame)",
                Vec::from_iter(self.0.iter().map(String::as_str)).join(", ")
            ),
        }
    }
}

/// One GPU and the stream that all its work is put on.
pub(super) struct Gpu {
    facts: DeviceFacts,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// For copies from the host beside the work.
    copies: Arc<CudaStream>,
    loaded: Mutex<Loaded>,
    multiplier: Mutex<Option<Multiplier>>,
    recording: AtomicBool,
    /// Whether every launch is waited for, so that an error is that of the launch which reports it.
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
        // What fails while everything ends changes nothing any more.
        let _ = self.context.bind_to_thread();
        let _ = self.stream.synchronize();
        let _ = self.copies.synchronize();
        if let Some(multiplier) = self.multiplier.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            let workspace = multiplier.workspace();
            drop(multiplier);
            // SAFETY: allocated for the multiplier, which is gone.
            let _ = unsafe { result::free_sync(workspace) };
        }
        for module in self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner).modules.values() {
            // SAFETY: loaded by `function`, once, and nothing runs any more.
            let _ = unsafe { result::module::unload(*module as sys::CUmodule) };
        }
    }
}

/// Host memory that the driver has locked in place, which copies need to go on beside other work.
struct Pinned {
    context: Arc<CudaContext>,
    place: usize,
    bytes: usize,
    /// When the last copy was done, and when the work that used it was.
    arrived: CudaEvent,
    left: CudaEvent,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
        let _ = self.arrived.synchronize();
        // SAFETY: allocated by `staging`, and the copies from it are done.
        let _ = unsafe { result::free_host(self.place as *mut c_void) };
    }
}

/// A recorded graph. The driver wants one thread at a time.
struct Recorded(Mutex<CudaGraph>);

// SAFETY: the handles may be used from any thread with the context bound, one at a time, which the mutex sees to.
unsafe impl Send for Recorded {}
// SAFETY: as above.
unsafe impl Sync for Recorded {}

fn missing(device: &str, message: impl Into<String>) -> Error {
    Error::Device { device: device.to_owned(), message: message.into() }
}

/// What the driver says, as one phrase.
fn phrase(error: DriverError) -> String {
    let text = |found: Result<&std::ffi::CStr, DriverError>| {
        found.map_or_else(|_| "unknown".to_owned(), |text| text.to_string_lossy().into_owned())
    };
    format!("{} ({})", text(error.error_string()), text(error.error_name()))
}

/// Refuses a driver that is older than the kernels' toolkit.
fn check_driver(version: c_int) -> Result<(), String> {
    if version >= OLDEST_DRIVER {
        return Ok(());
    }
    let [has, needs] =
        [version, OLDEST_DRIVER].map(|version| format!("{}.{}", version / 1000, version % 1000 / 10));
    Err(format!("the driver is for CUDA {has}; the kernels need {needs} or newer: update the driver"))
}

/// Refuses a card that the kernels are not compiled for.
fn check_architecture((major, minor): (u32, u32)) -> Result<(), String> {
    if (major, minor) >= OLDEST_ARCHITECTURE {
        return Ok(());
    }
    Err(format!("its architecture is {major}.{minor}; the kernels need 8.0 (A100) or newer"))
}

/// Whether an error leaves the context unusable.
fn is_sticky(DriverError(code): DriverError) -> bool {
    use sys::CUresult as Code;
    matches!(
        code,
        Code::CUDA_ERROR_ILLEGAL_ADDRESS
            | Code::CUDA_ERROR_LAUNCH_TIMEOUT
            | Code::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | Code::CUDA_ERROR_ASSERT
            | Code::CUDA_ERROR_HARDWARE_STACK_ERROR
            | Code::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | Code::CUDA_ERROR_MISALIGNED_ADDRESS
            | Code::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | Code::CUDA_ERROR_INVALID_PC
            | Code::CUDA_ERROR_LAUNCH_FAILED
            | Code::CUDA_ERROR_ECC_UNCORRECTABLE
            | Code::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | Code::CUDA_ERROR_EXTERNAL_DEVICE
            | Code::CUDA_ERROR_UNKNOWN
    )
}

impl Gpu {
    /// How many GPUs there are.
    ///
    /// # Errors
    /// If there is no driver, it is too old, or it finds no GPU.
    pub(super) fn count() -> Result<usize> {
        // SAFETY: only tries to open the library; everything else panics without it.
        if !unsafe { sys::is_culib_present() } {
            return Err(missing("cuda", "there is no CUDA driver (libcuda) on this machine"));
        }
        let mut version: c_int = 0;
        // SAFETY: writes one number, and may be called before anything else.
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

    /// Does something with the context bound to this thread. After an error of a kernel nothing works again, and every call
    /// says so.
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

    /// The function of a kernel, its module loaded if it is the first of it.
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
                    // SAFETY: the image is a whole fatbin made by nvcc, and lives as long as the program.
                    unsafe { result::module::load_data(image.0.as_ptr().cast()) }
                })?;
                self.loaded().modules.insert(kernel.file, module as usize);
                module
            }
        };
        let name = CString::new(kernel.name.as_str()).map_err(|_| refuse("its name is none"))?;
        let function = self.with(format_args!("finding the kernel {}", kernel.name), || {
            // SAFETY: the module was loaded above, and is unloaded at the end only; so is the function.
            unsafe {
                let handle = result::module::get_function(module, name)?;
                let attribute = |which| {
                    let value = result::function::get_function_attribute(handle, which)?;
                    Ok(u32::try_from(value).unwrap_or(0))
                };
                let fixed = attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
                let most_threads = attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
                // A launch gets more than 48 KiB only if it was said before that it may; how much it takes is the launch's.
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

    /// Says what the driver would only call an invalid value.
    fn check(function: &Function, launch: &Launch) -> Result<(), String> {
        let threads: u64 = launch.block.iter().map(|&size| u64::from(size)).product();
        if threads == 0 || threads > u64::from(function.most_threads) {
            return Err(format!(
                "a block of {threads} threads was asked for; {} are the most",
                function.most_threads
            ));
        }
        if launch.shared_bytes > function.most_dynamic_bytes {
            return Err(format!(
                "{} bytes of shared memory were asked for; {} are the most on this card",
                launch.shared_bytes, function.most_dynamic_bytes
            ));
        }
        let [x, y, z] = launch.grid;
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
            return Err(format!("a grid of {x}, {y}, {z} blocks is beyond the card's limits"));
        }
        Ok(())
    }

    /// What a staging holds.
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
            // SAFETY: what the memory holds is undefined, which the caller knows.
            match unsafe { result::malloc_sync(bytes) } {
                Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
                other => other.map(Some),
            }
        })
    }

    unsafe fn free_piece(&self, address: u64, _: usize) {
        // A failure of a broken device is reported by its next use.
        let _ = self.with(format_args!("freeing memory"), || {
            // SAFETY: the caller gives a piece that only work asked for before uses; that is waited for.
            unsafe {
                result::stream::synchronize(self.stream.cu_stream())?;
                result::stream::synchronize(self.copies.cu_stream())?;
                result::free_sync(address)
            }
        });
    }

    fn free_memory(&self) -> Result<(usize, usize)> {
        self.with(format_args!("asking for free memory"), result::mem_get_info)
    }

    unsafe fn hand_out(&self, _: u64, _: usize) {}

    unsafe fn take_back(&self, _: u64, _: usize) {}

    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.with(format_args!("copying to the device"), || {
            let stream = self.stream.cu_stream();
            // SAFETY: the caller says that the destination is allocated; `bytes` is kept until the copy is done.
            unsafe {
                result::memcpy_htod_async(to, bytes, stream)?;
                result::stream::synchronize(stream)
            }
        })
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.with(format_args!("copying from the device"), || {
            let stream = self.stream.cu_stream();
            // SAFETY: the caller says that the source is allocated; `bytes` is kept until the copy is done.
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
            // What used the memory on the device before may still be on its way.
            left.record(&self.stream)?;
            // SAFETY: what the memory holds is undefined; it is written before it is copied.
            let place = unsafe { result::malloc_host(bytes, 0) }? as usize;
            Ok(Staging(Box::new(Pinned { context: self.context.clone(), place, bytes, arrived, left })))
        })
    }

    unsafe fn upload_ahead(&self, staging: &Staging, to: u64, bytes: &[u8]) -> Result<()> {
        let pinned = self.pinned(staging)?;
        if bytes.len() > pinned.bytes {
            return Err(self.fail(format!("{} bytes do not fit a staging of {}", bytes.len(), pinned.bytes)));
        }
        self.with(format_args!("copying to the device ahead"), || {
            // The copy before has read the place when this is done; it was asked for a step ago.
            pinned.arrived.synchronize()?;
            // SAFETY: the place holds that many bytes, nothing reads it now, and the destination is allocated.
            unsafe {
                let place = pinned.place as *mut u8;
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len());
                self.copies.wait(&pinned.left)?;
                let from = std::slice::from_raw_parts(place.cast_const(), bytes.len());
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
            // SAFETY: the caller says that both ranges are allocated.
            unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
        })
    }

    unsafe fn clear(&self, to: u64, bytes: usize) -> Result<()> {
        self.with(format_args!("clearing memory"), || {
            // SAFETY: the caller says that the range is allocated.
            unsafe { result::memset_d8_async(to, 0, bytes, self.stream.cu_stream()) }
        })
    }

    unsafe fn launch(&self, kernel: &Kernel, launch: &Launch, arguments: &[Argument]) -> Result<()> {
        let function = self.function(kernel)?;
        Self::check(&function, launch)
            .map_err(|message| Error::Kernel { kernel: kernel.name.clone(), message })?;
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

    unsafe fn product(&self, product: &Product) -> Result<()> {
        self.with(format_args!("a matrix product"), || Ok(()))?;
        let mut multiplier = self.multiplier.lock().unwrap_or_else(PoisonError::into_inner);
        if multiplier.is_none() {
            let bytes = Multiplier::WORKSPACE_BYTES;
            let workspace = self.allocate_piece(bytes)?.ok_or_else(|| Error::OutOfMemory {
                device: self.facts.name.clone(),
                asked_bytes: bytes,
                free_bytes: self.free_memory().map_or(0, |(free, _)| free),
                total_bytes: self.facts.memory_bytes,
            })?;
            *multiplier = Some(Multiplier::open(workspace).map_err(|message| self.fail(message))?);
        }
        let Some(multiplier) = multiplier.as_mut() else { return Ok(()) };
        let [m, n, k] = [product.m, product.n, product.k];
        self.loaded().launches.add(&format!("the product of {m}, {n}, {k}"));
        // SAFETY: the caller says that all matrices are allocated with their sizes; the stream lives as long as this.
        unsafe { multiplier.run(product, self.stream.cu_stream()) }.map_err(|message| self.fail(message))?;
        if self.waits && !self.recording.load(Ordering::Relaxed) {
            self.with(format_args!("the product of {m}, {n}, {k}"), || self.stream.synchronize())?;
        }
        Ok(())
    }

    fn begin_recording(&self) -> Result<()> {
        // Relaxed: nothing of ours depends on what other threads do, and kernels may be loaded meanwhile.
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
    fn old_drivers_and_cards_are_refused() {
        assert_eq!(check_driver(13_000), Ok(()));
        let message = check_driver(12_080).unwrap_err();
        assert!(message.contains("for CUDA 12.8") && message.contains("need 13.0"), "{message}");
        assert_eq!(check_architecture((8, 0)), Ok(()));
        assert_eq!(check_architecture((12, 0)), Ok(()));
        assert!(check_architecture((7, 5)).unwrap_err().contains("7.5"));
    }

    #[test]
    fn a_card_that_is_not_there_is_an_error_that_says_why() {
        let message = Gpu::open(usize::MAX).unwrap_err().to_string();
        // SAFETY: only tries to open the library.
        let expected: &[&str] = if unsafe { sys::is_culib_present() } {
            &["counted from 0", "the driver"]
        } else {
            &["cuda: there is no CUDA driver (libcuda) on this machine"]
        };
        assert!(expected.iter().any(|part| message.contains(part)), "{message}");
    }

    #[test]
    fn launches_beyond_the_card_are_refused() {
        let function = Function { handle: 0, most_threads: 256, most_dynamic_bytes: 1000 };
        let fine = Launch { grid: [1, 65_535, 1], block: [64, 4, 1], shared_bytes: 1000 };
        assert_eq!(Gpu::check(&function, &fine), Ok(()));
        for (launch, expected) in [
            (Launch { block: [64, 4, 2], ..fine }, "512 threads"),
            (Launch { block: [0, 1, 1], ..fine }, "0 threads"),
            (Launch { shared_bytes: 1001, ..fine }, "1001 bytes of shared memory"),
            (Launch { grid: [1, 65_536, 1], ..fine }, "a grid of 1, 65536, 1"),
            (Launch { grid: [0, 1, 1], ..fine }, "a grid of 0, 1, 1"),
        ] {
            assert!(Gpu::check(&function, &launch).unwrap_err().contains(expected));
        }
    }
}

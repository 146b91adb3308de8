//! A GPU through the CUDA driver, loaded when the program runs: nothing of CUDA is needed to build or to start it.

use std::{
    collections::HashMap,
    ffi::{CString, c_int, c_void},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::{
    driver::{Argument, DeviceFacts, Driver, Event, Kernel, Launch, Product},
    gpu_product::Multiplier,
};
use crate::error::{Error, Result};

/// Each kernel file's machine code for all targets, or why there is none.
const FATBINS: std::result::Result<&[(&str, &[u8])], &str> =
    include!(concat!(env!("OUT_DIR"), "/kernels/fatbins.rs"));

/// What the kernels' toolkit needs of the driver: CUDA 13.0, as `cuDriverGetVersion` counts.
const OLDEST_DRIVER: c_int = 13_000;
/// The oldest architecture that the kernels are compiled for.
const OLDEST_ARCHITECTURE: (u32, u32) = (8, 0);
/// Shared memory that needs no asking, in bytes.
const PLAIN_SHARED_BYTES: u32 = 48 * 1024;

/// Modules and functions of a context, loaded when first asked for. Handles are addresses that only the driver reads.
#[derive(Default)]
struct Loaded {
    modules: HashMap<&'static str, usize>,
    functions: HashMap<String, usize>,
    /// Why nothing works any more, once the driver has said so: its errors of kernels stay until the process ends.
    broken: Option<String>,
    last_launch: String,
}

/// One GPU and the stream that all its work is put on.
pub(super) struct Gpu {
    facts: DeviceFacts,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    loaded: Mutex<Loaded>,
    multiplier: Mutex<Option<Multiplier>>,
    waits: bool,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Gpu").field("facts", &self.facts).finish_non_exhaustive()
    }
}

struct Recorded(cudarc::driver::sys::CUevent);

// SAFETY: an event's handle may be used from any thread with the context bound, which every use here does.
unsafe impl Send for Recorded {}
// SAFETY: as above; the driver locks for itself.
unsafe impl Sync for Recorded {}

impl Drop for Recorded {
    fn drop(&mut self) {
        // SAFETY: made by event::create, and this is the only handle. A failure leaves nothing to be done.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

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
        if version < OLDEST_DRIVER {
            return Err(missing(
                "cuda",
                format!(
                    "the driver is for CUDA {}.{}; the kernels need {}.{} or newer: update the driver",
                    version / 1000,
                    version % 1000 / 10,
                    OLDEST_DRIVER / 1000,
                    OLDEST_DRIVER % 1000 / 10
                ),
            ));
        }
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
        if capability < OLDEST_ARCHITECTURE {
            let (major, minor) = capability;
            return Err(missing(
                &name,
                format!("its architecture is {major}.{minor}; the kernels need 8.0 (A100) or newer"),
            ));
        }
        let facts = DeviceFacts {
            model: format!(
                "{}, architecture {}.{}",
                context.name().map_err(fail)?,
                capability.0,
                capability.1
            ),
            capability,
            memory_bytes: context.total_mem().map_err(fail)?,
            shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            name,
        };
        let stream = context.new_stream().map_err(|error| missing(&facts.name, phrase(error)))?;
        let waits = std::env::var("ALCHEMIST_SYNC_LAUNCH").is_ok_and(|value| value == "1");
        let (loaded, multiplier) = (Mutex::default(), Mutex::default());
        Ok(Self { facts, context, stream, loaded, multiplier, waits })
    }

    fn loaded(&self) -> std::sync::MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the context bound to this thread. An error stays: after one of a kernel nothing works again.
    fn with<R>(&self, what: &str, work: impl FnOnce() -> Result<R, DriverError>) -> Result<R> {
        if let Some(reason) = &self.loaded().broken {
            return Err(missing(&self.facts.name, reason.clone()));
        }
        self.context.bind_to_thread().and_then(|()| work()).map_err(|error| {
            let mut loaded = self.loaded();
            let after = if loaded.last_launch.is_empty() {
                String::new()
            } else {
                format!(
                    "; the last launch before was {} (ALCHEMIST_SYNC_LAUNCH=1 finds the one to blame)",
                    loaded.last_launch
                )
            };
            let message = format!("{what} failed: {}{after}", phrase(error));
            loaded.broken = Some(message.clone());
            missing(&self.facts.name, message)
        })
    }

    /// The function of a kernel, its module loaded if it is the first of it.
    fn function(&self, kernel: &Kernel) -> Result<sys::CUfunction> {
        if let Some(&function) = self.loaded().functions.get(&kernel.name) {
            return Ok(function as sys::CUfunction);
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
                let module = self.with("loading kernels", || {
                    // SAFETY: the image is a whole fatbin made by nvcc.
                    unsafe { result::module::load_data(image.as_ptr().cast()) }
                })?;
                self.loaded().modules.insert(kernel.file, module as usize);
                module
            }
        };
        let name = CString::new(kernel.name.as_str()).map_err(|_| refuse("its name is none"))?;
        let function = self.with(&format!("finding the kernel {}", kernel.name), || {
            // SAFETY: the module was loaded above and is never unloaded.
            unsafe { result::module::get_function(module, name) }
        })?;
        self.loaded().functions.insert(kernel.name.clone(), function as usize);
        Ok(function)
    }
}

impl Driver for Gpu {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.with("allocating", || Ok(()))?;
        let stream = self.stream.cu_stream();
        // SAFETY: the stream lives as long as this.
        match unsafe { result::malloc_async(stream, bytes) } {
            Ok(address) => Ok(address),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free_bytes, total_bytes) =
                    result::mem_get_info().unwrap_or((0, self.facts.memory_bytes));
                Err(Error::OutOfMemory {
                    device: self.facts.name.clone(),
                    asked_bytes: bytes,
                    free_bytes,
                    total_bytes,
                })
            }
            Err(error) => self.with("allocating", || Err(error)),
        }
    }

    unsafe fn free(&self, address: u64, _: usize) {
        // SAFETY: the caller gives an allocation that only work already on this stream uses. A failure of a broken
        // device is reported by its next use.
        let _ =
            self.with("freeing memory", || unsafe { result::free_async(address, self.stream.cu_stream()) });
    }

    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.with("copying to the device", || {
            let stream = self.stream.cu_stream();
            // SAFETY: the caller says that the destination is allocated; `bytes` is kept until the copy is done.
            unsafe {
                result::memcpy_htod_async(to, bytes, stream)?;
                result::stream::synchronize(stream)
            }
        })
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.with("copying from the device", || {
            let stream = self.stream.cu_stream();
            // SAFETY: the caller says that the source is allocated; `bytes` is kept until the copy is done.
            unsafe {
                result::memcpy_dtoh_async(bytes, from, stream)?;
                result::stream::synchronize(stream)
            }
        })
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.with("copying on the device", || {
            // SAFETY: the caller says that both ranges are allocated.
            unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
        })
    }

    unsafe fn clear(&self, to: u64, bytes: usize) -> Result<()> {
        self.with("clearing memory", || {
            // SAFETY: the caller says that the range is allocated.
            unsafe { result::memset_d8_async(to, 0, bytes, self.stream.cu_stream()) }
        })
    }

    unsafe fn launch(&self, kernel: &Kernel, launch: &Launch, arguments: &[Argument]) -> Result<()> {
        let function = self.function(kernel)?;
        let mut values: Vec<*mut c_void> =
            arguments.iter().map(|argument| argument.value().cast_mut()).collect();
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        self.with(&format!("the launch of {}", kernel.name), || {
            if launch.shared_bytes > PLAIN_SHARED_BYTES {
                let bytes = i32::try_from(launch.shared_bytes).unwrap_or(i32::MAX);
                let attribute =
                    sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                // SAFETY: the function was loaded in this context.
                unsafe { result::function::set_function_attribute(function, attribute, bytes) }?;
            }
            // SAFETY: the caller meets the obligations of a launch; the driver copies the values before it returns.
            unsafe {
                result::launch_kernel(
                    function,
                    (gx, gy, gz),
                    (bx, by, bz),
                    launch.shared_bytes,
                    self.stream.cu_stream(),
                    &mut values,
                )?;
                if self.waits { result::stream::synchronize(self.stream.cu_stream()) } else { Ok(()) }
            }
        })?;
        self.loaded().last_launch.clone_from(&kernel.name);
        Ok(())
    }

    unsafe fn product(&self, product: &Product) -> Result<()> {
        self.with("a matrix product", || Ok(()))?;
        let mut multiplier = self.multiplier.lock().unwrap_or_else(PoisonError::into_inner);
        if multiplier.is_none() {
            let workspace = self.allocate(Multiplier::WORKSPACE_BYTES)?;
            *multiplier =
                Some(Multiplier::open(workspace).map_err(|message| missing(&self.facts.name, message))?);
        }
        let Some(multiplier) = multiplier.as_mut() else { return Ok(()) };
        // SAFETY: the caller says that all matrices are allocated with their sizes; the stream lives as long as this.
        unsafe { multiplier.run(product, self.stream.cu_stream()) }
            .map_err(|message| missing(&self.facts.name, message))
    }

    fn record(&self) -> Result<Event> {
        self.with("recording an event", || {
            let event = Recorded(result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)?);
            // SAFETY: both were made in this context.
            unsafe { result::event::record(event.0, self.stream.cu_stream()) }?;
            Ok(Event(Box::new(event)))
        })
    }

    fn elapsed_ms(&self, start: &Event, end: &Event) -> Result<f32> {
        let (Some(start), Some(end)) = (start.0.downcast_ref::<Recorded>(), end.0.downcast_ref::<Recorded>())
        else {
            return Err(missing(&self.facts.name, "the event belongs to another device"));
        };
        self.with("measuring time", || {
            // SAFETY: both events were recorded, and live.
            unsafe {
                result::event::synchronize(end.0)?;
                result::event::elapsed(start.0, end.0)
            }
        })
    }

    fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream lives as long as this.
        self.with("waiting for the device", || unsafe {
            result::stream::synchronize(self.stream.cu_stream())
        })
    }
}

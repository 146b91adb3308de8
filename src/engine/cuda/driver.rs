//! The interface between devices and the backends that run kernels (GPU, emulator).

use std::{any::Any, fmt};

use half::{bf16, f16};

use crate::error::Result;

/// An element type that kernels read and write.
pub trait DeviceNumber: bytemuck::Pod + Default + PartialEq + fmt::Debug + Send + Sync {
    /// The letter that denotes this type in kernel signatures.
    const LETTER: u8;
    /// The suffix of kernel names for this type.
    const SUFFIX: &'static str;
}

macro_rules! device_number {
    ($type:ty, $letter:literal, $suffix:literal) => {
        impl DeviceNumber for $type {
            const LETTER: u8 = $letter;
            const SUFFIX: &'static str = $suffix;
        }
    };
}
device_number!(f32, b'f', "f32");
device_number!(bf16, b'b', "bf16");
device_number!(f16, b'h', "f16");
device_number!(u32, b'u', "u32");
device_number!(i32, b'i', "i32");
device_number!(u64, b'l', "u64");

/// Properties and limits of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Name for `--device`: `cuda:0`, `emulated`.
    pub name: String,
    /// Model name.
    pub model: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Total memory, in bytes.
    pub memory_bytes: usize,
    /// Maximum shared memory per block, in bytes.
    pub shared_bytes: u32,
    /// Multiprocessors.
    pub multiprocessors: u32,
}

/// How memory is divided into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryLayout {
    /// Alignment of blocks, in bytes.
    pub granule: usize,
    /// Bytes left free behind a block.
    pub gap: usize,
    /// Preferred size of an allocation from the driver, in bytes.
    pub piece: usize,
    /// Larger pieces are multiples of this, in bytes.
    pub piece_granule: usize,
    /// Whether free memory is kept; if not, every block is a separate allocation, which memory checkers need.
    pub keep: bool,
}

/// A kernel: the file in `kernels/` (without `.cu`) and its name there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// `layer_norm`
    pub file: &'static str,
    /// `layer_norm_forward_bf16`
    pub name: String,
}

impl Kernel {
    /// The kernel of this exact name.
    pub fn new(file: &'static str, name: &str) -> Self {
        Self { file, name: name.to_owned() }
    }

    /// The variant of a kernel for elements of type `T`.
    pub(crate) fn of<T: DeviceNumber>(file: &'static str, name: &str) -> Self {
        Self { file, name: format!("{name}_{}", T::SUFFIX) }
    }
}

/// Grid and block of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in each dimension.
    pub grid: [u32; 3],
    /// Threads per block in each dimension.
    pub block: [u32; 3],
    /// Dynamic shared memory per block, in bytes.
    pub shared_bytes: u32,
}

impl Launch {
    /// `blocks` blocks of `threads` threads, one-dimensional, without dynamic shared memory.
    pub fn linear(blocks: u32, threads: u32) -> Self {
        Self { grid: [blocks, 1, 1], block: [threads, 1, 1], shared_bytes: 0 }
    }
}

/// A kernel argument. Pointers carry their element type, which the emulator compares with the kernel's signature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// A pointer to const; 0 is null.
    Read {
        /// Device address.
        address: u64,
        /// [`DeviceNumber::LETTER`].
        letter: u8,
    },
    /// A pointer that the kernel writes through; 0 is null.
    Write {
        /// Device address.
        address: u64,
        /// [`DeviceNumber::LETTER`].
        letter: u8,
    },
    /// `uint32_t`
    U32(u32),
    /// `uint64_t`
    U64(u64),
    /// `float`
    F32(f32),
    /// The result of `Driver::sample_map`, passed as `const __grid_constant__ TensorMap`.
    SampleMap(SampleMap),
}

/// Rows of 16-bit values per sample, `[S, T, C]`, of which a kernel copies boxes by TMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SampleRows {
    /// [`ProductNumber::Bf16`] or [`ProductNumber::F16`].
    pub number: ProductNumber,
    /// Device address, a multiple of 16.
    pub address: u64,
    /// `S`, `T` and `C`, a multiple of 8.
    pub sizes: [usize; 3],
    /// Rows and columns of a box; the columns span 128 bytes. Elements past the rows of a sample, or its columns, read
    /// as zero. In shared memory the 16-byte chunks of a row are swizzled by the row's last three bits.
    pub box_sizes: [u32; 2],
}

/// The TMA descriptor of [`SampleRows`].
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleMap(pub(super) [u64; 16]);

impl Argument {
    /// A null pointer to `T`, for an optional argument.
    pub fn null<T: DeviceNumber>() -> Self {
        Self::Read { address: 0, letter: T::LETTER }
    }

    /// The kind of this argument in the emulator's signatures: see `kernels/host/emulator.h`.
    #[cfg(feature = "emulator")]
    pub(crate) fn signature(&self) -> [u8; 2] {
        match self {
            Self::Read { letter, .. } => [b'r', *letter],
            Self::Write { letter, .. } => [b'w', *letter],
            Self::U32(_) => *b"vu",
            Self::U64(_) => *b"vl",
            Self::F32(_) => *b"vf",
            Self::SampleMap(_) => *b"vx",
        }
    }

    /// Pointer to the value, for a launch; valid as long as `self`.
    pub fn value(&self) -> *const std::ffi::c_void {
        match self {
            Self::Read { address, .. } | Self::Write { address, .. } => std::ptr::from_ref(address).cast(),
            Self::U32(value) => std::ptr::from_ref(value).cast(),
            Self::U64(value) => std::ptr::from_ref(value).cast(),
            Self::F32(value) => std::ptr::from_ref(value).cast(),
            Self::SampleMap(value) => std::ptr::from_ref(value).cast(),
        }
    }
}

/// Element types of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProductNumber {
    /// f32, without TF32.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
}

impl ProductNumber {
    /// Size of an element in bytes.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// A matrix as stored, row-major; or the first of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Address of the first element.
    pub address: u64,
    /// Row stride of the stored matrix, in elements.
    pub row: usize,
    /// Stride between matrices of a batch, in elements.
    pub step: usize,
    /// Whether the stored rows are the matrix's columns.
    pub transposed: bool,
}

/// `C[m, n] = alpha · A[m, k] · B[k, n] + beta · C (+ bias[n])`, accumulated in f32; or a batch of them with a shared
/// bias.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// Type of A and B.
    pub inputs: ProductNumber,
    /// Type of C and the bias: that of the inputs, or f32.
    pub output: ProductNumber,
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// The inner size.
    pub k: usize,
    /// Number of products.
    pub batch: usize,
    /// A, stored `[m, k]`, or `[k, m]` if transposed.
    pub a: Stored,
    /// B, stored `[k, n]`, or `[n, k]` if transposed.
    pub b: Stored,
    /// C, never transposed.
    pub c: Stored,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of the previous C; 0 does not read it.
    pub beta: f32,
    /// Address of the bias.
    pub bias: Option<u64>,
}

/// A point in a device's stream, for measuring time. The contents are private to the driver.
pub struct Event(pub(crate) Box<dyn Any + Send + Sync>);

/// Work that was recorded instead of run. The contents are private to the driver.
pub(crate) struct Recording(pub(crate) Box<dyn Any + Send + Sync>);

/// Pinned host memory for overlapped uploads, with the events that order its use. The contents are private to the
/// driver.
pub(crate) struct Staging(pub(crate) Box<dyn Any + Send + Sync>);

macro_rules! opaque {
    ($($type:ident),*) => {$(
        impl fmt::Debug for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(stringify!($type))
            }
        }
    )*};
}
opaque!(Event, Recording, Staging);

/// A backend that runs kernels. All work runs in the order in which it is queued.
///
/// Addresses are raw: [`Device`](super::Device) and [`Buffer`](super::Buffer) are the safe interface to a driver.
///
/// Between [`begin_recording`](Self::begin_recording) and [`end_recording`](Self::end_recording), copies within the
/// device, clears, launches and products are recorded instead of run; other kinds of work are errors.
pub(crate) trait Driver: fmt::Debug + Send + Sync {
    /// Properties and limits of the device.
    fn facts(&self) -> &DeviceFacts;

    /// How memory is divided into blocks.
    fn layout(&self) -> MemoryLayout;

    /// A piece of memory, aligned to the layout's granule; `None` if there is not enough. `bytes` is not 0.
    ///
    /// # Errors
    /// If the device fails.
    fn allocate_piece(&self, bytes: usize) -> Result<Option<u64>>;

    /// Frees a piece, after all work queued earlier.
    ///
    /// # Safety
    /// `address` and `bytes` are those of one [`allocate_piece`](Self::allocate_piece), and nothing uses the memory
    /// from now on.
    unsafe fn free_piece(&self, address: u64, bytes: usize);

    /// Free and total memory, in bytes.
    ///
    /// # Errors
    /// If the device fails.
    fn free_memory(&self) -> Result<(usize, usize)>;

    /// Marks a block of a piece as in use: its contents are undefined until written. Part of a recording.
    ///
    /// # Safety
    /// The bytes lie within a piece, and no block that is handed out overlaps them.
    unsafe fn hand_out(&self, address: u64, bytes: usize);

    /// Marks a block as free. Part of a recording.
    ///
    /// # Safety
    /// It was passed to [`hand_out`](Self::hand_out).
    unsafe fn take_back(&self, address: u64, bytes: usize);

    /// Copies from the host; `bytes` may be reused when it returns.
    ///
    /// # Safety
    /// All of the destination is allocated.
    ///
    /// # Errors
    /// If the device fails.
    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()>;

    /// Copies to the host, after all work queued earlier.
    ///
    /// # Safety
    /// All of the source is allocated.
    ///
    /// # Errors
    /// If the device fails, now or in that work.
    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()>;

    /// Host memory of `bytes` bytes for [`upload_ahead`](Self::upload_ahead).
    ///
    /// # Errors
    /// If the host cannot provide it, or the device fails.
    fn staging(&self, bytes: usize) -> Result<Staging>;

    /// Copies from the host while other work runs; `bytes` may be reused when it returns. The copy waits for the work
    /// queued before the last [`leave`](Self::leave), or before the staging was created; work waits for the copy at
    /// [`arrive`](Self::arrive).
    ///
    /// # Safety
    /// All of the destination is allocated and not used by work queued since then, until `arrive`; `bytes` is no longer
    /// than the staging.
    ///
    /// # Errors
    /// If the device fails.
    unsafe fn upload_ahead(&self, staging: &Staging, to: u64, bytes: &[u8]) -> Result<()>;

    /// Makes work queued from now on wait for the copy.
    ///
    /// # Errors
    /// If the device fails.
    fn arrive(&self, staging: &Staging) -> Result<()>;

    /// Makes the next copy wait for the work queued so far.
    ///
    /// # Errors
    /// If the device fails.
    fn leave(&self, staging: &Staging) -> Result<()>;

    /// Copies within the device.
    ///
    /// # Safety
    /// Source and destination are allocated and do not overlap.
    ///
    /// # Errors
    /// If the device fails.
    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()>;

    /// Sets bytes to zero.
    ///
    /// # Safety
    /// All of them are allocated.
    ///
    /// # Errors
    /// If the device fails.
    unsafe fn clear(&self, to: u64, bytes: usize) -> Result<()>;

    /// Runs a kernel.
    ///
    /// # Safety
    /// The four obligations of a launch, which no compiler checks: the arguments match the kernel in number, type and
    /// order; what the kernel writes is not used elsewhere meanwhile; with these sizes it stays within the allocations
    /// that its pointers refer to; and that memory stays allocated until the work is done.
    ///
    /// # Errors
    /// If there is no such kernel, the launch is beyond the device's limits, or the device fails.
    unsafe fn launch(&self, kernel: &Kernel, launch: &Launch, arguments: &[Argument]) -> Result<()>;

    /// The TMA descriptor with which a kernel copies boxes of rows; `None` on devices without TMA.
    ///
    /// # Errors
    /// If the device fails, or TMA cannot copy such boxes.
    fn sample_map(&self, rows: &SampleRows) -> Result<Option<SampleMap>> {
        let _ = rows;
        Ok(None)
    }

    /// Multiplies matrices.
    ///
    /// # Safety
    /// A, B, C and the bias are allocated with the sizes given, and C overlaps none of the others.
    ///
    /// # Errors
    /// If the device fails.
    unsafe fn product(&self, product: &Product) -> Result<()>;

    /// Starts recording work.
    ///
    /// # Errors
    /// If the device fails.
    fn begin_recording(&self) -> Result<()>;

    /// Ends the recording and returns it.
    ///
    /// # Errors
    /// If something in it cannot be recorded, or the device fails.
    fn end_recording(&self) -> Result<Recording>;

    /// Replays the recorded work.
    ///
    /// # Safety
    /// The obligations of every recorded call still hold.
    ///
    /// # Errors
    /// If the device fails.
    unsafe fn replay(&self, recording: &Recording) -> Result<()>;

    /// Records an event at this point of the stream.
    ///
    /// # Errors
    /// If the device fails.
    fn record(&self) -> Result<Event>;

    /// Milliseconds between two events; waits for the later one.
    ///
    /// # Errors
    /// If the events belong to another driver, or the device fails.
    fn elapsed_ms(&self, start: &Event, end: &Event) -> Result<f32>;

    /// Waits for all queued work.
    ///
    /// # Errors
    /// If any of it failed.
    fn synchronize(&self) -> Result<()>;
}

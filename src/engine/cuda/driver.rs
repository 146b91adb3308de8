//! The seam between what runs kernels and those who launch them.

use std::{any::Any, fmt};

use half::{bf16, f16};

use crate::error::Result;

/// A number that kernels read and write.
pub trait DeviceNumber: bytemuck::Pod + Default + PartialEq + fmt::Debug + Send + Sync {
    /// The letter by which kernels and launches name this type to each other.
    const LETTER: u8;
    /// The ending of a kernel's name for this type.
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

/// What a device is and what it allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// As the user names it: `cuda:0`, `emulated`.
    pub name: String,
    /// What it is.
    pub model: String,
    /// Major and minor number of the architecture.
    pub capability: (u32, u32),
    /// All of its memory, in bytes.
    pub memory_bytes: usize,
    /// The most shared memory that a block may ask for, in bytes.
    pub shared_bytes: u32,
    /// Multiprocessors.
    pub multiprocessors: u32,
}

/// How memory is cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryLayout {
    /// Blocks start on multiples of this, in bytes.
    pub granule: usize,
    /// Bytes left free behind a block.
    pub gap: usize,
    /// What the driver is best asked for at once, in bytes.
    pub piece: usize,
    /// Larger pieces are multiples of this, in bytes.
    pub piece_granule: usize,
    /// Whether free memory is kept; else every block is a piece of its own, which tools that watch the driver need.
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

    /// The variant of a kernel for numbers of type `T`.
    pub(crate) fn of<T: DeviceNumber>(file: &'static str, name: &str) -> Self {
        Self { file, name: format!("{name}_{}", T::SUFFIX) }
    }
}

/// How many blocks of how many threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in each direction.
    pub grid: [u32; 3],
    /// Threads of a block in each direction.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
}

impl Launch {
    /// `blocks` blocks of `threads` threads, in one direction, without dynamic shared memory.
    pub fn linear(blocks: u32, threads: u32) -> Self {
        Self { grid: [blocks, 1, 1], block: [threads, 1, 1], shared_bytes: 0 }
    }
}

/// One argument of a kernel. Pointers carry what they point to, which the emulator compares with the kernel's own list.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// A pointer to const; 0 is null.
    Read {
        /// Where it points.
        address: u64,
        /// [`DeviceNumber::LETTER`].
        letter: u8,
    },
    /// A pointer that the kernel writes through; 0 is null.
    Write {
        /// Where it points.
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
    /// What `Driver::sample_map` made, as `const __grid_constant__ TensorMap`.
    SampleMap(SampleMap),
}

/// Rows of 16-bit numbers for each sample, `[S, T, C]`, of which a kernel copies boxes by the card's own unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SampleRows {
    /// [`ProductNumber::Bf16`] or [`ProductNumber::F16`].
    pub number: ProductNumber,
    /// Where they are, on a multiple of 16 bytes.
    pub address: u64,
    /// `S`, `T` and `C`, a multiple of 8.
    pub sizes: [usize; 3],
    /// Rows and columns of a box, the columns 128 bytes: what is past the rows of a sample, or its columns, is zeros. In
    /// shared memory the 16-byte chunks of a row are exchanged by the row's last three bits.
    pub box_sizes: [u32; 2],
}

/// What the copy unit wants to know of [`SampleRows`].
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleMap(pub(super) [u64; 16]);

impl Argument {
    /// A null pointer to `T`, for what a kernel may do without.
    pub fn null<T: DeviceNumber>() -> Self {
        Self::Read { address: 0, letter: T::LETTER }
    }

    /// How the emulator writes this argument's kind: see `kernels/host/emulator.h`.
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

    /// Where the value lies, for a launch; valid while `self` is.
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

/// The kinds of numbers that a matrix product takes.
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
    /// Bytes of one number.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// A matrix as it is stored, by rows; or the first of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Address of its first number.
    pub address: u64,
    /// Numbers from the beginning of one stored row to that of the next.
    pub row: usize,
    /// Numbers from the beginning of one matrix to that of the next.
    pub step: usize,
    /// Whether the stored rows are the matrix's columns.
    pub transposed: bool,
}

/// `C[m, n] = alpha · A[m, k] · B[k, n] + beta · C (+ bias[n])`, summed in f32; or several such, with one bias for all.
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
    /// How many products.
    pub batch: usize,
    /// A, stored `[m, k]`, or `[k, m]` if transposed.
    pub a: Stored,
    /// B, stored `[k, n]`, or `[n, k]` if transposed.
    pub b: Stored,
    /// C, never transposed.
    pub c: Stored,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of what C held; 0 does not read it.
    pub beta: f32,
    /// Address of the bias.
    pub bias: Option<u64>,
}

/// A point in a device's work, for measuring time. What it holds is the driver's own.
pub struct Event(pub(crate) Box<dyn Any + Send + Sync>);

/// Work that was recorded instead of done. What it holds is the driver's own.
pub(crate) struct Recording(pub(crate) Box<dyn Any + Send + Sync>);

/// Host memory that the device copies from while it works, and what tells when it may be used. The driver's own.
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

/// What runs kernels. All work is done in the order in which it was asked for.
///
/// Addresses are raw: [`Device`](super::Device) and [`Buffer`](super::Buffer) are the safe way to a driver.
///
/// Between [`begin_recording`](Self::begin_recording) and [`end_recording`](Self::end_recording), copies within the device,
/// clears, launches and products are recorded and not done, and the other kinds of work are errors.
pub(crate) trait Driver: fmt::Debug + Send + Sync {
    /// What the device is and what it allows.
    fn facts(&self) -> &DeviceFacts;

    /// How memory is cut into blocks.
    fn layout(&self) -> MemoryLayout;

    /// A piece of memory, aligned to the layout's granule; `None` if there is not enough. `bytes` is not 0.
    ///
    /// # Errors
    /// If the device fails.
    fn allocate_piece(&self, bytes: usize) -> Result<Option<u64>>;

    /// Gives a piece back, after all work asked for before.
    ///
    /// # Safety
    /// `address` and `bytes` are those of one [`allocate_piece`](Self::allocate_piece), and nothing uses the memory from
    /// now on.
    unsafe fn free_piece(&self, address: u64, bytes: usize);

    /// Bytes that could still be allocated, and all there are.
    ///
    /// # Errors
    /// If the device fails.
    fn free_memory(&self) -> Result<(usize, usize)>;

    /// A block of a piece is handed out: until it is written, its contents are undefined. Part of a recording.
    ///
    /// # Safety
    /// The bytes lie within a piece, and no block that is handed out overlaps them.
    unsafe fn hand_out(&self, address: u64, bytes: usize);

    /// A block is used no more. Part of a recording.
    ///
    /// # Safety
    /// It was handed out.
    unsafe fn take_back(&self, address: u64, bytes: usize);

    /// Copies from the host; has read `bytes` when it returns.
    ///
    /// # Safety
    /// All of the destination is allocated.
    ///
    /// # Errors
    /// If the device fails.
    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()>;

    /// Copies to the host, after all work asked for before.
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
    /// If the host grants none, or the device fails.
    fn staging(&self, bytes: usize) -> Result<Staging>;

    /// Copies from the host while other work goes on; has read `bytes` when it returns. The copy waits for the work that
    /// was asked for before the last [`leave`](Self::leave), or before the staging was made; work waits for the copy at
    /// [`arrive`](Self::arrive).
    ///
    /// # Safety
    /// All of the destination is allocated and used by nothing that was asked for since then, until `arrive`; there are no
    /// more bytes than the staging holds.
    ///
    /// # Errors
    /// If the device fails.
    unsafe fn upload_ahead(&self, staging: &Staging, to: u64, bytes: &[u8]) -> Result<()>;

    /// Work that is asked for from now on comes after the copy.
    ///
    /// # Errors
    /// If the device fails.
    fn arrive(&self, staging: &Staging) -> Result<()>;

    /// The next copy comes after the work that was asked for until now.
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
    /// The four obligations of a launch, which no compiler checks: the arguments are those of the kernel in number,
    /// type and order; what the kernel writes is not used elsewhere meanwhile; with these sizes it stays within what its
    /// pointers point to; and that memory is allocated until the work is done.
    ///
    /// # Errors
    /// If there is no such kernel, the launch is beyond the device's limits, or the device fails.
    unsafe fn launch(&self, kernel: &Kernel, launch: &Launch, arguments: &[Argument]) -> Result<()>;

    /// What a kernel needs to copy boxes of rows by the card's own unit; `None` where there is no such unit.
    ///
    /// # Errors
    /// If the device fails, or its unit cannot copy such boxes.
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

    /// Work is recorded from now on.
    ///
    /// # Errors
    /// If the device fails.
    fn begin_recording(&self) -> Result<()>;

    /// Ends the recording and gives it.
    ///
    /// # Errors
    /// If something in it cannot be recorded, or the device fails.
    fn end_recording(&self) -> Result<Recording>;

    /// Does the recorded work.
    ///
    /// # Safety
    /// The obligations of every call in the recording hold, again.
    ///
    /// # Errors
    /// If the device fails.
    unsafe fn replay(&self, recording: &Recording) -> Result<()>;

    /// Marks this point in the work.
    ///
    /// # Errors
    /// If the device fails.
    fn record(&self) -> Result<Event>;

    /// Milliseconds between two points, waiting for the later one.
    ///
    /// # Errors
    /// If the events are another driver's or the device fails.
    fn elapsed_ms(&self, start: &Event, end: &Event) -> Result<f32>;

    /// Waits for all work.
    ///
    /// # Errors
    /// If any of it failed.
    fn synchronize(&self) -> Result<()>;
}

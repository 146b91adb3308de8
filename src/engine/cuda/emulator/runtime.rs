//! Rust declarations for `kernels/host/emulator.h`.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// `emulator::Kernel`
#[repr(C)]
pub(super) struct KernelDescription {
    pub(super) name: *const c_char,
    pub(super) file: *const c_char,
    pub(super) line: c_uint,
    pub(super) threads: c_uint,
    pub(super) signature: *const c_char,
    call: *const c_void,
    next: *const c_void,
}

// SAFETY: a description is not written after the program has started, and all that it points to is constant.
unsafe impl Sync for KernelDescription {}

/// `emulator::Shape`
#[repr(C)]
pub(super) struct Shape {
    pub(super) grid: [c_uint; 3],
    pub(super) block: [c_uint; 3],
    pub(super) dynamic_bytes: c_uint,
    pub(super) shared_limit: c_uint,
    pub(super) serial: c_uint,
}

/// `emulator::Fault`
#[repr(C)]
pub(super) struct Fault {
    pub(super) message: [c_char; 512],
    pub(super) pc: *const c_void,
    pub(super) file: *const c_char,
    pub(super) line: c_uint,
    pub(super) block: [c_uint; 3],
    pub(super) thread: [c_uint; 3],
}

/// `emulator::Worker`
#[repr(C)]
pub(super) struct RawWorker {
    private: [u8; 0],
}

unsafe extern "C" {
    pub(super) fn emulator_arena_open() -> u64;
    pub(super) fn emulator_arena_base() -> *mut c_void;
    pub(super) fn emulator_arena_add(address: *mut c_void, bytes: u64);
    pub(super) fn emulator_arena_remove(address: *mut c_void, bytes: u64);
    pub(super) fn emulator_arena_holds(address: *const c_void, bytes: u64) -> c_int;
    pub(super) fn emulator_arena_mark_written(address: *mut c_void, bytes: u64);
    pub(super) fn emulator_arena_is_written(address: *const c_void, bytes: u64) -> c_int;
    pub(super) fn emulator_find(name: *const c_char) -> *const KernelDescription;
    pub(super) fn emulator_worker_new() -> *mut RawWorker;
    pub(super) fn emulator_worker_free(worker: *mut RawWorker);
    pub(super) fn emulator_run_block(
        worker: *mut RawWorker,
        kernel: *const KernelDescription,
        shape: *const Shape,
        arguments: *const *const c_void,
        block: *const [c_uint; 3],
    ) -> *const Fault;
}

/// Fibers and shared memory of a block; it runs one block at a time.
pub(super) struct Worker(pub(super) *mut RawWorker);

// SAFETY: a worker is plain memory not tied to a thread, and only the thread that owns it uses it.
unsafe impl Send for Worker {}

impl Drop for Worker {
    fn drop(&mut self) {
        // SAFETY: created by emulator_worker_new, and nothing else holds it.
        unsafe { emulator_worker_free(self.0) };
    }
}

/// Converts an address of the emulated memory to a pointer.
pub(super) fn pointer(address: u64) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(usize::MAX))
}

/// Converts a string of the runtime.
///
/// # Safety
/// `text` is null or a NUL-terminated string.
unsafe fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: guaranteed by the caller.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Formats a fault with its thread and source line.
pub(super) fn describe(fault: &Fault) -> String {
    // SAFETY: the runtime terminates the message with NUL, and file names are string literals.
    let (message, file) = unsafe { (text_of(fault.message.as_ptr()), text_of(fault.file)) };
    let mut frames = Vec::new();
    if fault.pc.is_null() {
        frames.push(format!("{file}:{}", fault.line));
    } else {
        // A return address lies after the access, hence -1. Innermost first where functions were inlined.
        backtrace::resolve(fault.pc.wrapping_byte_sub(1).cast_mut(), |symbol| {
            let (Some(file), Some(line)) = (symbol.filename(), symbol.lineno()) else { return };
            let file = file.to_string_lossy();
            if let Some(at) = file.find("kernels/").filter(|_| !file.contains("host/language.h")) {
                frames.push(format!("{}:{line}", &file[at..]));
            }
        });
    }
    let [bx, by, bz] = fault.block;
    let [tx, ty, tz] = fault.thread;
    format!("thread ({tx}, {ty}, {tz}) of block ({bx}, {by}, {bz}) at {}: {message}", frames.join(" in "))
}

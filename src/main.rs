//! The command-line program, a thin wrapper around the library.

use std::process::ExitCode;

/// Activations of a step are freed and allocated again in the next. The system's allocator returns blocks of that size
/// to the system each time, and the page faults of allocating them again take a tenth of the time of a step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    alchemist_engine::cli::main()
}

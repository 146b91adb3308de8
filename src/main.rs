//! The command-line program; everything it does lies in the library.

use std::process::ExitCode;

/// Activations of one step are freed and wanted again at the next. The system's allocator gives blocks of that size back
/// each time, and the page faults of taking them anew cost a tenth of a step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    alchemist_engine::cli::main()
}

//! The command-line program; everything it does lies in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    alchemist_engine::cli::main()
}

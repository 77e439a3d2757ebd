//! The `tidegate` binary: hands the command line to the library and returns its verdict as the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidegate::cli::main()
}

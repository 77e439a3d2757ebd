//! The `tidegate` binary: hands the command line to the library and turns its verdict into an exit code.

fn main() {}

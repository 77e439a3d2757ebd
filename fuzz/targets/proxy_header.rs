//! `cargo fuzz run proxy_header`; built without it, checks the files given.

#![cfg_attr(fuzzing, no_main)]

#[path = "../checks/proxy_header.rs"]
mod check;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    std::env::args_os().skip(1).try_for_each(|path| std::fs::read(path).map(|bytes| check::check(&bytes)))
}

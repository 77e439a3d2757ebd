//! What the other benchmarks of this repository share with this one: processes that end with it, their CPU time, whose
//! listening socket it is, quartiles, tables, and the tidegate of this repository.
//!
//! Knows no peer and no load. The program itself begins in `main.rs`.

pub mod build;
pub mod cpu;
pub mod ports;
pub mod process;
pub mod stats;
pub mod sys;
pub mod table;

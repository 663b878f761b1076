//! Cordon: a type-1 hypervisor for AArch64 that keeps VMs alive through uncorrected memory errors.
//!
//! This library is everything about Cordon that is logic rather than machine: it has no `asm!`,
//! touches no system register and runs unchanged in host tests, under Miri and in the fuzzers.
//! What only a real CPU can do (barriers, TLB invalidation, exception entry) is behind small
//! traits that the image, `src/main.rs` and `src/arch`, implements.
//!
//! ```text
//!   main, arch  ->  vm  ->  ras  ->  devmem, stage2  ->  addr
//!                   platform (what machine is this?)  ->  addr
//! ```
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod addr;
pub mod console;
pub mod deadlines;
pub mod devmem;
pub mod platform;
pub mod ras;
pub mod sort;
pub mod stage2;
pub mod sync;
pub mod vm;

//! The firmware's logic: all of it but instructions, system registers and device registers.
//!
//! The EL3 firmware of QEMU's virt machine that makes every page of memory poisonable, and hands
//! on each consumed page as firmware-first firmware does on a server. `docs/firmware.md` explains
//! it as a whole; the image, `main.rs`, adds the machine. Everything here runs in host tests.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod control;
pub mod device_tree;
pub mod exception;
pub mod fault;
pub mod features;
pub mod gpt;
pub mod layout;
pub mod psci;
pub mod queue;
pub mod record;
pub mod service;
pub mod source;

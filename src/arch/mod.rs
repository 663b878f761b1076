//! The machine itself: instructions, system registers, vectors, devices. The only home of `asm!`
//! and of unsafe code in Cordon.

pub mod aarch64;

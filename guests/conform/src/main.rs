//! Bare-metal guest that asks its machine whether it is the one that the architecture describes.
//!
//! It runs tests of the interrupt controller, the timers, PSCI, the ID registers, exceptions and
//! the state that has to survive exits, at EL1 on 1 to 8 vCPUs, says the result of each in one line
//! (docs/protocols.md, "The conformance guest") and powers off. Nothing in it knows of Cordon: it can
//! be run on QEMU's plain `virt` machine just as well, and what fails there is a mistake in the test.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!(
        "The conformance guest runs at EL1 of an AArch64 machine. Build it with `cargo xtask build`."
    );
    std::process::exit(1);
}

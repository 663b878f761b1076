//! Bare-metal guest that uses device memory and reports what it lost.
//!
//! It runs at EL1 and EL0 on 1 to 64 vCPUs, maps device memory with the largest blocks that fit,
//! fills, checks, executes and hammers it at the word of a console (docs/protocols.md, "The probe
//! guest's console"), survives the aborts that it takes in doing so, and says in numbers what was
//! lost. It runs under Cordon and, for its own tests, on QEMU's plain `virt` machine.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!(
        "The probe guest runs at EL1 of an AArch64 machine. Build it with `cargo xtask build`."
    );
    std::process::exit(1);
}

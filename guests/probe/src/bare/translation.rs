//! This vCPU's translation regime, as far as an attack changes it.
#![expect(unsafe_code, reason = "translation control registers")]

use aarch64_cpu::registers::{ID_AA64MMFR0_EL1, Readable};
use core::arch::asm;

/// The first address that `TTBR1_EL1` translates.
pub(super) const UPPER_HALF: u64 = 0xffff_0000_0000_0000;

/// `TCR_EL1.EPD1`, and a 4 KiB granule in `TG1`.
const EPD1: u64 = 1 << 23;
const TG1_4K: u64 = 0b10 << 30;

/// Bits of the largest address that stage 1 gives out (`ID_AA64MMFR0_EL1.PARange`), at most the 48
/// that a descriptor has.
pub(super) fn ipa_bits() -> u32 {
    match ID_AA64MMFR0_EL1.get() & 0xf {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        _ => 48,
    }
}

/// Runs `action` while `TTBR1_EL1` leads to a level-0 table at `root`.
pub(super) fn with_upper_half<R>(root: u64, action: impl FnOnce() -> R) -> R {
    let tcr: u64;
    // SAFETY: nothing of this guest's is in the upper half, so nothing that Rust knows of is
    // translated anew; afterwards the half is closed again, and forgotten.
    unsafe {
        asm!("mrs {}, tcr_el1", out(reg) tcr, options(nostack));
        asm!(
            "msr ttbr1_el1, {root}",
            "isb",
            "msr tcr_el1, {open}",
            "isb",
            root = in(reg) root,
            open = in(reg) tcr & !EPD1 | TG1_4K,
            options(nostack)
        );
    }
    let result = action();
    // SAFETY: as above.
    unsafe {
        asm!(
            "msr tcr_el1, {tcr}",
            "msr ttbr1_el1, xzr",
            "isb",
            "tlbi vmalle1",
            "dsb nsh",
            "isb",
            tcr = in(reg) tcr,
            options(nostack)
        );
    }
    result
}

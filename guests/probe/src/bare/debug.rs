//! The guest's own debug registers, for attacks: a breakpoint, a watchpoint, a single step.
#![expect(unsafe_code, reason = "debug registers")]

use aarch64_cpu::registers::{ID_AA64PFR0_EL1, Readable};
use core::arch::asm;

/// `MDSCR_EL1.SS`, `.KDE` and `.MDE`: steps, debug exceptions at EL1, break- and watchpoints.
const SS: u64 = 1;
const KDE: u64 = 1 << 13;
const MDE: u64 = 1 << 15;
/// `DBGBCR0_EL1`: enabled, at EL1, for all four bytes.
const BREAK_EL1: u64 = 1 | 0b01 << 1 | 0xf << 5;
/// `DBGWCR0_EL1`: enabled, at EL1, loads and stores, for eight bytes.
const WATCH_EL1: u64 = 1 | 0b01 << 1 | 0b11 << 3 | 0xff << 5;

/// Whether EL0 has AArch32 (`ID_AA64PFR0_EL1.EL0`).
pub(super) fn has_aarch32() -> bool {
    ID_AA64PFR0_EL1.get() & 0xf == 2
}

/// While this lives, debug exceptions may come where PSTATE.D lets them.
pub(super) struct Armed(());

impl Armed {
    fn new(how: u64) -> Self {
        lock(false);
        // SAFETY: what comes of it is caught as any exception of an attempt is; PSTATE.D is set
        // everywhere else.
        unsafe { asm!("msr mdscr_el1, {}", "isb", in(reg) how | KDE, options(nostack)) };
        Self(())
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        // SAFETY: as after a reset.
        unsafe {
            asm!(
                "msr mdscr_el1, xzr",
                "msr dbgbcr0_el1, xzr",
                "msr dbgwcr0_el1, xzr",
                "isb",
                options(nostack)
            );
        }
    }
}

/// The instruction at `address` is stopped at.
pub(super) fn breakpoint(address: u64) -> Armed {
    // SAFETY: it takes effect in `Armed` alone.
    unsafe {
        asm!("msr dbgbvr0_el1, {}", "msr dbgbcr0_el1, {}", "isb",
             in(reg) address, in(reg) BREAK_EL1, options(nostack));
    }
    Armed::new(MDE)
}

/// Accesses to the eight bytes at `address` are stopped at.
pub(super) fn watchpoint(address: u64) -> Armed {
    // SAFETY: it takes effect in `Armed` alone.
    unsafe {
        asm!("msr dbgwvr0_el1, {}", "msr dbgwcr0_el1, {}", "isb",
             in(reg) address, in(reg) WATCH_EL1, options(nostack));
    }
    Armed::new(MDE)
}

/// An exception return with PSTATE.SS executes one instruction.
pub(super) fn single_step() -> Armed {
    Armed::new(SS)
}

/// Sets or clears the OS lock, under which there are no debug exceptions.
pub(super) fn lock(set: bool) {
    // SAFETY: as said.
    unsafe { asm!("msr oslar_el1, {}", "isb", in(reg) u64::from(set), options(nostack)) };
}

//! Single accesses from EL0.
//!
//! [`run`] saves what a function must preserve on the stack, and leaves for EL0 by `eret`. Whatever
//! exception comes back from there (`svc` when the access worked, an abort when it did not) enters
//! at vector 0x400 (0x600 from AArch32), which is [`exit`]: with the same stack pointer, so that it restores what `run`
//! saved and returns in its place. EL0 has neither stack nor data; its code is the few
//! instructions in `.el0_text`, or, for a fetch, the page under test with x30 at an `svc`.
//!
//! SErrors are masked between the writes to ELR and SPSR and the `eret`: their handler would
//! change both.
#![expect(unsafe_code, reason = "entering EL0 and coming back")]

use super::aborts::{self, Abort};
use super::cpu;
use super::target::{CodeVa, Va};
use cordon_probe::syndrome::Class;
use core::arch::naked_asm;

/// The vectors' offsets for synchronous exceptions from EL0, by its execution state.
const VECTOR: u64 = 0x400;
const VECTOR_AARCH32: u64 = 0x600;

/// `SPSR_EL1` for EL0: AArch64, D, I and F masked, SErrors taken.
pub(super) const SPSR_EL0: u64 = 0x2c0;
/// `SPSR_EL1` for EL0 in AArch32, where bit 9 is no mask but big-endian data; and its bit for T32 code.
pub(super) const SPSR_AARCH32: u64 = SPSR_EL0 & !(1 << 9) | 1 << 4;
pub(super) const SPSR_THUMB: u64 = 1 << 5;

/// What came back from EL0.
#[repr(C)]
#[derive(Default)]
struct Exit {
    x0: u64,
    esr: u64,
    far: u64,
    spsr: u64,
    elr: u64,
}

/// Loads 64 bits at EL0.
pub(super) fn load(at: Va) -> Result<u64, Abort> {
    enter(raw_el0_load as *const () as u64, 0, at.get())
}

/// Stores 64 bits at EL0.
pub(super) fn store(at: Va, value: u64) -> Result<(), Abort> {
    enter(raw_el0_store as *const () as u64, value, at.get()).map(drop)
}

/// Calls the code at `at` at EL0 with `argument` in x0 and returns what it leaves there.
pub(super) fn call(at: CodeVa, argument: u64) -> Result<u64, Abort> {
    enter(at.get(), argument, 0)
}

/// Runs EL0 with PSTATE `spsr`, one of the constants above, from `entry` to its first exception;
/// returns x0 and the exception.
pub(super) fn visit(entry: u64, x0: u64, x1: u64, spsr: u64) -> (u64, Abort) {
    let mut exit = Exit::default();
    // SAFETY: EL0 can reach nothing but its own few instructions and memory under test, so nothing
    // that Rust knows of changes. Every way back leads through vector 0x400 or 0x600, hence `exit`.
    unsafe { run(entry, x0, x1, &mut exit, spsr) };
    let abort = Abort {
        esr: exit.esr,
        far: exit.far,
        spsr: exit.spsr,
        vector: if spsr & SPSR_AARCH32 == SPSR_AARCH32 {
            VECTOR_AARCH32
        } else {
            VECTOR
        },
        elr: exit.elr,
        entered: 0,
    };
    (exit.x0, abort)
}

/// Runs EL0 from `entry` to its `svc`; returns x0.
fn enter(entry: u64, x0: u64, x1: u64) -> Result<u64, Abort> {
    let (x0, abort) = visit(entry, x0, x1, SPSR_EL0);
    if abort.syndrome().class() == Class::Svc {
        return Ok(x0);
    }
    aborts::record(cpu::id(), abort);
    Err(abort)
}

#[unsafe(naked)]
unsafe extern "C" fn run(entry: u64, x0: u64, x1: u64, exit: &mut Exit, spsr: u64) {
    naked_asm!(
        "stp x29, x30, [sp, #-112]!",
        "stp x19, x20, [sp, #16]",
        "stp x21, x22, [sp, #32]",
        "stp x23, x24, [sp, #48]",
        "stp x25, x26, [sp, #64]",
        "stp x27, x28, [sp, #80]",
        "mrs x5, daif",
        "stp x3, x5, [sp, #96]",
        "msr daifset, #4",
        "msr elr_el1, x0",
        "msr spsr_el1, x4",
        "mov x0, x1",
        "mov x1, x2",
        "adrp x30, {done}",
        "add x30, x30, :lo12:{done}",
        "eret",
        done = sym raw_el0_done,
    )
}

/// Vectors 0x400 and 0x600: returns from [`run`].
#[unsafe(naked)]
pub(super) unsafe extern "C" fn exit() {
    naked_asm!(
        "ldp x3, x4, [sp, #96]",
        "mrs x5, esr_el1",
        "mrs x6, far_el1",
        "mrs x7, spsr_el1",
        "mrs x8, elr_el1",
        "stp x0, x5, [x3]",
        "stp x6, x7, [x3, #16]",
        "str x8, [x3, #32]",
        "ldp x27, x28, [sp, #80]",
        "ldp x25, x26, [sp, #64]",
        "ldp x23, x24, [sp, #48]",
        "ldp x21, x22, [sp, #32]",
        "ldp x19, x20, [sp, #16]",
        "ldp x29, x30, [sp], #112",
        "msr daif, x4",
        "ret",
    )
}

#[unsafe(naked)]
#[unsafe(link_section = ".el0_text")]
unsafe extern "C" fn raw_el0_load() {
    naked_asm!("ldr x0, [x1]", "svc #0")
}

#[unsafe(naked)]
#[unsafe(link_section = ".el0_text")]
unsafe extern "C" fn raw_el0_store() {
    naked_asm!("str x0, [x1]", "svc #0")
}

#[unsafe(naked)]
#[unsafe(link_section = ".el0_text")]
unsafe extern "C" fn raw_el0_done() {
    naked_asm!("svc #0")
}

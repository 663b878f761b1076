//! The only code that touches memory that may be lost.
//!
//! Each routine is a few instructions of assembly with a *landing pad*. The fix-up table
//! (`.fixups`) pairs every instruction that may abort with its pad; `vectors` records the abort and
//! resumes at the pad, with all registers as they were, and the routine returns "aborted". A fetch
//! from lost memory has no instruction of ours at its ELR; it is found by its return address in
//! x30, which the table lists for the routine that calls into such memory.
//!
//! The routines use no stack while they may abort (but for the call), hold no lock, and clobber
//! only what the C calling convention lets them.
#![expect(
    unsafe_code,
    reason = "single loads, stores and fetches that may abort"
)]

use super::aborts::{self, Abort};
use super::target::{CodeVa, Va};
use super::{cpu, image};
use cordon_probe::{PAGE_SIZE, pattern};
use core::arch::naked_asm;

/// What a routine leaves in x0 and x1.
#[repr(C)]
struct Outcome {
    value: u64,
    aborted: u64,
}

impl Outcome {
    fn into_result(self) -> Result<u64, Abort> {
        if self.aborted == 0 {
            Ok(self.value)
        } else {
            Err(aborts::last(cpu::id()))
        }
    }
}

/// How the check of one page went.
pub(super) struct Check {
    /// Lines that held another value.
    pub(super) wrong: u64,
    /// The abort that ended the check early.
    pub(super) abort: Option<Abort>,
}

/// One entry of the fix-up table: distances from each word to the addresses meant.
macro_rules! fixup {
    ($may_abort:literal, $landing:literal) => {
        concat!(
            ".pushsection .fixups, \"a\"\n",
            ".balign 4\n",
            ".long ",
            $may_abort,
            " - .\n",
            ".long ",
            $landing,
            " - .\n",
            ".popsection\n",
        )
    };
}

pub(super) use fixup;

/// The landing pad for an exception at `elr` with `x30`, if one of the routines caused it.
pub(super) fn landing_pad(elr: u64, x30: u64) -> Option<u64> {
    // A fetch that aborted has its ELR outside the image; what counts is who called.
    let key = if image::text().contains(&elr) {
        elr
    } else {
        x30
    };
    let fixups = image::fixups();
    let entries = (fixups.start..fixups.end).step_by(8);
    entries
        .map(|entry| (follow(entry), follow(entry + 4)))
        .find(|(at, _)| *at == key)
        .map(|e| e.1)
}

/// The address that the 32-bit distance at `at` leads to.
fn follow(at: u64) -> u64 {
    let distance = core::ptr::with_exposed_provenance::<i32>(at as usize);
    // SAFETY: `at` is a word of the fix-up table, which is aligned, constant and always mapped.
    let distance = unsafe { distance.read() };
    at.wrapping_add_signed(i64::from(distance))
}

/// Loads 64 bits.
pub(super) fn load(at: Va) -> Result<u64, Abort> {
    // SAFETY: a `Va` never points into memory that Rust knows of, and the load may abort.
    unsafe { raw_load(at.get()) }.into_result()
}

/// Loads 64 bits. Returns what the physical counter was just before, and the abort, if there was one.
pub(super) fn timed_load(at: Va) -> (u64, Option<Abort>) {
    // SAFETY: as for `load`.
    let outcome = unsafe { raw_timed_load(at.get()) };
    (outcome.value, outcome.into_result().err())
}

/// Stores 64 bits.
pub(super) fn store(at: Va, value: u64) -> Result<(), Abort> {
    // SAFETY: as for `load`.
    unsafe { raw_store(at.get(), value) }
        .into_result()
        .map(drop)
}

/// Calls the code at `at` with `argument` in x0 and returns what it leaves there.
pub(super) fn call(at: CodeVa, argument: u64) -> Result<u64, Abort> {
    // SAFETY: a `CodeVa` leads to a `ret`, which changes no register, or to nothing; a fetch that
    // aborts is resumed at the landing pad.
    unsafe { raw_call(at.get(), argument) }.into_result()
}

/// Writes the pattern of the page of IPA `ipa`, which is mapped at `at`.
pub(super) fn fill_page(at: Va, ipa: u64) -> Result<(), Abort> {
    // SAFETY: as for `load`; a `Va` is followed by the rest of its page.
    unsafe { raw_fill(at.get(), pattern::seed(ipa), pattern::LINE_STEP) }
        .into_result()
        .map(drop)
}

/// Checks the pattern of the page of IPA `ipa`, which is mapped at `at`.
pub(super) fn check_page(at: Va, ipa: u64) -> Check {
    // SAFETY: as for `fill_page`.
    let outcome = unsafe { raw_check(at.get(), pattern::seed(ipa), pattern::LINE_STEP) };
    Check {
        wrong: outcome.value,
        abort: outcome.into_result().err(),
    }
}

/// Fills the page at `at` with `ret` and makes it visible to instruction fetches.
pub(super) fn fill_code(at: Va) -> Result<(), Abort> {
    // SAFETY: as for `fill_page`.
    unsafe { raw_fill_code(at.get()) }.into_result().map(drop)
}

/// `hvc #0` with `registers` in x0 to x3; returns x0 to x3. An error where `hvc` is undefined.
pub(super) fn hvc(registers: [u64; 4]) -> Result<[u64; 4], Abort> {
    let mut registers = registers;
    // SAFETY: the hypervisor changes the registers, of which all that may change (SMCCC 1.0, 2.6)
    // are the caller's to save, and nothing else: none of the guest's memory is offered to it.
    unsafe { raw_hvc(&mut registers) }
        .into_result()
        .map(|_| registers)
}

#[unsafe(naked)]
unsafe extern "C" fn raw_load(at: u64) -> Outcome {
    naked_asm!(
        "1: ldr x0, [x0]",
        "mov x1, #0",
        "ret",
        "2: mov x1, #1",
        "ret",
        fixup!("1b", "2b"),
    )
}

#[unsafe(naked)]
unsafe extern "C" fn raw_store(at: u64, value: u64) -> Outcome {
    naked_asm!(
        "1: str x1, [x0]",
        "mov x1, #0",
        "ret",
        "2: mov x1, #1",
        "ret",
        fixup!("1b", "2b"),
    )
}

#[unsafe(naked)]
unsafe extern "C" fn raw_call(at: u64, argument: u64) -> Outcome {
    naked_asm!(
        "stp x29, x30, [sp, #-16]!",
        "mov x2, x0",
        "mov x0, x1",
        "blr x2",
        // The return address: by it the abort of the fetch is known to be ours.
        "1: ldp x29, x30, [sp], #16",
        "mov x1, #0",
        "ret",
        "2: ldp x29, x30, [sp], #16",
        "mov x1, #1",
        "ret",
        fixup!("1b", "2b"),
    )
}

#[unsafe(naked)]
unsafe extern "C" fn raw_timed_load(at: u64) -> Outcome {
    naked_asm!(
        "mrs x2, cntpct_el0",
        "1: ldr x3, [x0]",
        "mov x0, x2",
        "mov x1, #0",
        "ret",
        "2: mov x0, x2",
        "mov x1, #1",
        "ret",
        fixup!("1b", "2b"),
    )
}

#[unsafe(naked)]
unsafe extern "C" fn raw_fill(at: u64, seed: u64, step: u64) -> Outcome {
    naked_asm!(
        "add x3, x0, {page}",
        "0: eor x4, x1, x1, lsr #32",
        "1: str x4, [x0], {line}",
        "add x1, x1, x2",
        "cmp x0, x3",
        "b.ne 0b",
        "mov x1, #0",
        "ret",
        "2: mov x1, #1",
        "ret",
        fixup!("1b", "2b"),
        page = const PAGE_SIZE,
        line = const pattern::LINE_SIZE,
    )
}

#[unsafe(naked)]
unsafe extern "C" fn raw_check(at: u64, seed: u64, step: u64) -> Outcome {
    naked_asm!(
        "add x3, x0, {page}",
        "mov x4, x0",
        "mov x0, #0",
        "1: ldr x5, [x4], {line}",
        "eor x6, x1, x1, lsr #32",
        "add x1, x1, x2",
        "cmp x5, x6",
        "cinc x0, x0, ne",
        "cmp x4, x3",
        "b.ne 1b",
        "mov x1, #0",
        "ret",
        // x0 is what was wrong before the abort.
        "2: mov x1, #1",
        "ret",
        fixup!("1b", "2b"),
        page = const PAGE_SIZE,
        line = const pattern::LINE_SIZE,
    )
}

#[unsafe(naked)]
unsafe extern "C" fn raw_fill_code(at: u64) -> Outcome {
    naked_asm!(
        "add x3, x0, {page}",
        "mov x4, x0",
        "movz w5, #0x03c0", // ret
        "movk w5, #0xd65f, lsl #16",
        "1: str w5, [x4], #4",
        "cmp x4, x3",
        "b.ne 1b",
        // To the point of unification, by the smallest line there can be (Arm ARM B2.4.4).
        "3: dc cvau, x0",
        "add x0, x0, #16",
        "cmp x0, x3",
        "b.ne 3b",
        "dsb ish",
        "ic ialluis",
        "dsb ish",
        "isb",
        "mov x1, #0",
        "ret",
        "2: mov x1, #1",
        "ret",
        fixup!("1b", "2b"),
        fixup!("3b", "2b"),
        page = const PAGE_SIZE,
    )
}

#[unsafe(naked)]
unsafe extern "C" fn raw_hvc(registers: &mut [u64; 4]) -> Outcome {
    naked_asm!(
        "stp x29, x0, [sp, #-16]!",
        "ldp x2, x3, [x0, #16]",
        "ldp x0, x1, [x0]",
        "1: hvc #0",
        "ldp x29, x9, [sp], #16",
        "stp x0, x1, [x9]",
        "stp x2, x3, [x9, #16]",
        "mov x1, #0",
        "ret",
        "2: ldp x29, x9, [sp], #16",
        "mov x1, #1",
        "ret",
        fixup!("1b", "2b"),
    )
}

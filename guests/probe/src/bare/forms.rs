//! Single instructions of every form, and what they leave.
//!
//! The instructions are assembled from the list that Cordon's own tests decode (build.rs). Each is executed with all
//! registers loaded from a [`Frame`], which gets them back.
#![expect(
    unsafe_code,
    reason = "instructions with all registers, and a control register"
)]

use super::access::fixup;
use super::target::Va;
use core::arch::{asm, global_asm, naked_asm};
use core::mem::offset_of;

/// An instruction of the list.
pub(super) struct Form {
    /// As Cordon's tests know it.
    pub(super) word: u32,
    /// It need not be aligned.
    pub(super) plain: bool,
    /// It uses SP as its base.
    pub(super) stack: bool,
    /// It is plain, and accesses memory from x1 on.
    pub(super) alone: bool,
    /// It is a load-exclusive, of use with its store alone.
    pub(super) lone: bool,
    /// It is a store-exclusive; its load is executed before it.
    pub(super) exclusive: bool,
    /// Bytes of memory, if it is an atomic read-modify-write; else 0.
    pub(super) atomic: u64,
}

include!(concat!(env!("OUT_DIR"), "/forms.rs"));
global_asm!(
    include_str!(concat!(env!("OUT_DIR"), "/forms.s")),
    options(raw)
);

/// The registers that the list's instructions use.
#[repr(C, align(16))]
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Frame {
    /// x0 to x13.
    pub(super) x: [u64; 14],
    /// The stack pointer, of the instructions that use it.
    pub(super) sp: u64,
    aborted: u64,
    /// V0 to V31.
    pub(super) v: [u128; 32],
}

impl Frame {
    pub(super) const fn new(x: [u64; 14], sp: u64, v: [u128; 32]) -> Self {
        Self {
            x,
            sp,
            aborted: 0,
            v,
        }
    }
}

/// The word that was assembled for form number `at`.
pub(super) fn assembled(at: usize) -> u32 {
    let stub = core::ptr::with_exposed_provenance::<u32>(stub(at) as usize + 4);
    // SAFETY: a word of this image's code, which can be read.
    unsafe { stub.read() }
}

// SAFETY: the labels are those of forms.s and of the routine below, and only their addresses are used.
unsafe extern "C" {
    safe static form_stubs: u8;
}

/// Each is what has to come before the instruction, or a NOP; the instruction; a return.
fn stub(at: usize) -> u64 {
    const SIZE: u64 = 16;
    (&raw const form_stubs).addr() as u64 + SIZE * at as u64
}

/// Executes form number `at`. `base` is where its memory is, around which there is none that Rust knows of. True if it
/// aborted.
pub(super) fn execute(at: usize, base: Va, frame: &mut Frame) -> bool {
    let Some(form) = FORMS.get(at) else {
        return false;
    };
    frame.x[1] = base.get();
    frame.sp = base.get();
    // SAFETY: the stub is one instruction and a return; it accesses memory around `base` alone, for that is in
    // x1 and SP and all indices are small; and an abort is resumed at the landing.
    unsafe { raw_form(frame, stub(at), form.stack.into()) };
    frame.aborted != 0
}

/// From now on this vCPU may use SIMD&FP registers (CPACR_EL1.FPEN), which nothing in this guest does otherwise.
pub(super) fn enable_vectors() {
    // SAFETY: the guest's own control register.
    unsafe { asm!("msr cpacr_el1, {}", "isb", in(reg) 0b11_u64 << 20, options(nostack)) };
}

macro_rules! all_vectors {
    ($instruction:literal) => {
        concat!(
            $instruction,
            " q0, q1, [x16], #32\n",
            $instruction,
            " q2, q3, [x16], #32\n",
            $instruction,
            " q4, q5, [x16], #32\n",
            $instruction,
            " q6, q7, [x16], #32\n",
            $instruction,
            " q8, q9, [x16], #32\n",
            $instruction,
            " q10, q11, [x16], #32\n",
            $instruction,
            " q12, q13, [x16], #32\n",
            $instruction,
            " q14, q15, [x16], #32\n",
            $instruction,
            " q16, q17, [x16], #32\n",
            $instruction,
            " q18, q19, [x16], #32\n",
            $instruction,
            " q20, q21, [x16], #32\n",
            $instruction,
            " q22, q23, [x16], #32\n",
            $instruction,
            " q24, q25, [x16], #32\n",
            $instruction,
            " q26, q27, [x16], #32\n",
            $instruction,
            " q28, q29, [x16], #32\n",
            $instruction,
            " q30, q31, [x16], #32\n",
        )
    };
}

macro_rules! all_registers {
    ($instruction:literal) => {
        concat!(
            $instruction,
            " x0, x1, [x19]\n",
            $instruction,
            " x2, x3, [x19, #16]\n",
            $instruction,
            " x4, x5, [x19, #32]\n",
            $instruction,
            " x6, x7, [x19, #48]\n",
            $instruction,
            " x8, x9, [x19, #64]\n",
            $instruction,
            " x10, x11, [x19, #80]\n",
            $instruction,
            " x12, x13, [x19, #96]\n",
        )
    };
}

/// x19: the frame; x21: whether the stack is used; x22: the stack that is this vCPU's.
#[unsafe(naked)]
unsafe extern "C" fn raw_form(frame: *mut Frame, stub: u64, on_stack: u64) {
    naked_asm!(
        ".arch_extension fp",
        ".arch_extension simd",
        "stp x29, x30, [sp, #-64]!",
        "stp x19, x20, [sp, #16]",
        "stp x21, x22, [sp, #32]",
        "str x23, [sp, #48]",
        "mov x19, x0",
        "mov x17, x1",
        "mov x21, x2",
        "mov x22, sp",
        "add x16, x19, #{vectors}",
        all_vectors!("ldp"),
        all_registers!("ldp"),
        "clrex",
        "cbz x21, 1f",
        "ldr x16, [x19, #{stack}]",
        "mov sp, x16",
        "1: blr x17",
        "mov x17, #0",
        "2: mov x16, sp",
        "mov sp, x22",
        "cbz x21, 3f",
        "str x16, [x19, #{stack}]",
        "3: str x17, [x19, #{aborted}]",
        all_registers!("stp"),
        "add x16, x19, #{vectors}",
        all_vectors!("stp"),
        "ldr x23, [sp, #48]",
        "ldp x21, x22, [sp, #32]",
        "ldp x19, x20, [sp, #16]",
        "ldp x29, x30, [sp], #64",
        ".global form_landing",
        "ret",
        "form_landing:",
        "mov x17, #1",
        "b 2b",
        vectors = const offset_of!(Frame, v),
        stack = const offset_of!(Frame, sp),
        aborted = const offset_of!(Frame, aborted),
    )
}

/// Adds 1 to four words from `at` on, `rounds` times each, by different means; returns false if that aborted.
pub(super) fn add_up(at: Va, rounds: u64) -> bool {
    // SAFETY: a `Va` is no memory that Rust knows of; an abort is resumed at the landing.
    unsafe { raw_add_up(at.get(), rounds) == 0 }
}

// By LDADD; by exclusives; by CAS; by CASP, on the lower of two words.
#[unsafe(naked)]
unsafe extern "C" fn raw_add_up(at: u64, rounds: u64) -> u64 {
    naked_asm!(
        ".arch_extension lse",
        "mov x2, #1",
        "add x10, x0, #8",
        "add x11, x0, #16",
        "add x12, x0, #32",
        "0: cbz x1, 9f",
        "1: ldadd x2, x3, [x0]",
        "2: ldaxr x3, [x10]",
        "add x3, x3, #1",
        "3: stlxr w4, x3, [x10]",
        "cbnz w4, 2b",
        "4: ldr x3, [x11]",
        "41: mov x4, x3",
        "add x5, x3, #1",
        "5: casal x4, x5, [x11]",
        "cmp x4, x3",
        "mov x3, x4",
        "b.ne 41b",
        "6: ldp x4, x5, [x12]",
        "7: mov x6, x4",
        "mov x7, x5",
        "add x8, x4, #1",
        "mov x9, x5",
        "8: caspal x6, x7, x8, x9, [x12]",
        "cmp x6, x4",
        "ccmp x7, x5, #0, eq",
        "mov x4, x6",
        "mov x5, x7",
        "b.ne 7b",
        "sub x1, x1, #1",
        "b 0b",
        "9: mov x0, #0",
        "ret",
        "10: mov x0, #1",
        "ret",
        fixup!("1b", "10b"),
        fixup!("2b", "10b"),
        fixup!("3b", "10b"),
        fixup!("4b", "10b"),
        fixup!("5b", "10b"),
        fixup!("6b", "10b"),
        fixup!("8b", "10b"),
    )
}

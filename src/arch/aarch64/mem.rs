//! Copying memory.
//!
//! The compiler's own `memcpy` is made for CPUs that must not access memory unaligned. EL2 may
//! (SCTLR_EL2.A is 0), once its MMU is on and what it copies is Normal memory: [`allow_unaligned`].
#![expect(
    unsafe_code,
    reason = "the symbol that the compiler calls, and a loop in assembly"
)]

use core::arch::naked_asm;
use core::sync::atomic::{AtomicBool, Ordering};

/// The MMU is on.
static UNALIGNED: AtomicBool = AtomicBool::new(false);

/// From now on memory may be accessed unaligned: the MMU is on. Before, RAM is Device memory, where such an
/// access is a fault (Arm ARM B2.7.2).
pub fn allow_unaligned() {
    UNALIGNED.store(true, Ordering::Relaxed);
}

/// Copies `size` bytes, and returns `to`.
///
/// # Safety
///
/// As `core::ptr::copy_nonoverlapping`, for Normal memory.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, size: usize) -> *mut u8 {
    naked_asm!(
        "orr  x4, x0, x1",
        "tst  x4, #7",
        "b.ne 8f",
        "9: mov x3, x0",
        "subs x2, x2, #32",
        "b.lo 2f",
        "1: ldp x4, x5, [x1], #16",
        "ldp  x6, x7, [x1], #16",
        "subs x2, x2, #32",
        "stp  x4, x5, [x3], #16",
        "stp  x6, x7, [x3], #16",
        "b.hs 1b",
        // What is left is x2 + 32, below 32: its lower five bits are those of x2.
        "2: tbz x2, #4, 3f",
        "ldp  x4, x5, [x1], #16",
        "stp  x4, x5, [x3], #16",
        "3: tbz x2, #3, 4f",
        "ldr  x4, [x1], #8",
        "str  x4, [x3], #8",
        "4: tbz x2, #2, 5f",
        "ldr  w4, [x1], #4",
        "str  w4, [x3], #4",
        "5: tbz x2, #1, 6f",
        "ldrh w4, [x1], #2",
        "strh w4, [x3], #2",
        "6: tbz x2, #0, 7f",
        "ldrb w4, [x1]",
        "strb w4, [x3]",
        "7: ret",
        "8: adrp x4, {unaligned}",
        "ldrb w4, [x4, :lo12:{unaligned}]",
        "cbnz w4, 9b",
        "mov  x3, x0",
        "cbz  x2, 7b",
        "10: ldrb w4, [x1], #1",
        "strb w4, [x3], #1",
        "subs x2, x2, #1",
        "b.ne 10b",
        "ret",
        unaligned = sym UNALIGNED,
    )
}

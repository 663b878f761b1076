//! Filling tables, which is much of what a memory error costs: eight words at a time, by vector registers.
//!
//! EL2 is compiled without those, for they are the guest's and live. What is needed of them is put on the stack
//! and given back. Writing V*n* zeroes what Z*n* has above it (Arm ARM, "SVE writeable registers"), so where there is SVE
//! it is all of Z*n* that is kept, as long as ZCR_EL2 lets it be ([`super::guest::open_vectors`]), which is no shorter than what the
//! guest can have of it. Nothing here changes FPSR or predicates.
#![expect(unsafe_code, reason = "vector registers, which Rust does not use here")]

use super::features;
use core::arch::naked_asm;
use core::sync::atomic::AtomicU64;

/// How many words are written between two looks at the counter.
const PORTION: usize = 64;

/// Fills `words`, which nobody else looks at yet, with `first`, `first + stride`, ... What is behind
/// the last multiple of 64 is left to the caller: the number of words that were written is returned.
pub fn fill(words: &[AtomicU64], first: u64, stride: u64) -> usize {
    let portions = words.len() / PORTION;
    let fill = match features::get().sve {
        true => fill_keeping_z,
        false => fill_keeping_v,
    };
    // SAFETY: atomics may be written through a shared reference; the words are inside of the slice; this CPU may use
    // vector registers, SVE's where there is SVE, and finds them as they were.
    unsafe { fill(words.as_ptr(), portions, first, stride) };
    portions * PORTION
}

/// Fills x1 portions from x0 on with x2, x2 + x3, ... by means of v0 to v4, x4 and x5.
macro_rules! fill_portions {
    () => {
        "cbz  x1, 2f
         add  x4, x2, x3
         fmov d0, x2
         mov  v0.d[1], x4
         lsl  x5, x3, #1
         dup  v4.2d, x5
         add  v1.2d, v0.2d, v4.2d
         add  v2.2d, v1.2d, v4.2d
         add  v3.2d, v2.2d, v4.2d
         lsl  x5, x3, #3
         dup  v4.2d, x5
         1:
         .rept 8
         st1  {{v0.2d, v1.2d, v2.2d, v3.2d}}, [x0], #64
         add  v0.2d, v0.2d, v4.2d
         add  v1.2d, v1.2d, v4.2d
         add  v2.2d, v2.2d, v4.2d
         add  v3.2d, v3.2d, v4.2d
         .endr
         subs x1, x1, #1
         b.ne 1b
         2:"
    };
}

#[unsafe(naked)]
unsafe extern "C" fn fill_keeping_v(
    words: *const AtomicU64,
    portions: usize,
    first: u64,
    stride: u64,
) {
    naked_asm!(
        ".arch_extension fp",
        ".arch_extension simd",
        "stp q0, q1, [sp, #-80]!",
        "stp q2, q3, [sp, #32]",
        "str q4, [sp, #64]",
        fill_portions!(),
        "ldr q4, [sp, #64]",
        "ldp q2, q3, [sp, #32]",
        "ldp q0, q1, [sp], #80",
        "ret",
        ".arch_extension nosimd",
        ".arch_extension nofp",
    )
}

/// SVE must be there.
#[unsafe(naked)]
unsafe extern "C" fn fill_keeping_z(
    words: *const AtomicU64,
    portions: usize,
    first: u64,
    stride: u64,
) {
    naked_asm!(
        ".arch_extension fp",
        ".arch_extension simd",
        ".arch_extension sve",
        "addvl sp, sp, #-5",
        "str z0, [sp]",
        "str z1, [sp, #1, mul vl]",
        "str z2, [sp, #2, mul vl]",
        "str z3, [sp, #3, mul vl]",
        "str z4, [sp, #4, mul vl]",
        fill_portions!(),
        "ldr z0, [sp]",
        "ldr z1, [sp, #1, mul vl]",
        "ldr z2, [sp, #2, mul vl]",
        "ldr z3, [sp, #3, mul vl]",
        "ldr z4, [sp, #4, mul vl]",
        "addvl sp, sp, #5",
        "ret",
        ".arch_extension nosve",
        ".arch_extension nosimd",
        ".arch_extension nofp",
    )
}

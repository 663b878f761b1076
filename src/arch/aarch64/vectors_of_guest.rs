//! The guest's SIMD&FP registers. They are live: EL2 itself uses none that it does not give back at once
//! ([`super::fill`]).
//!
//! CPTR_EL2 traps neither them nor SVE where there is SVE (guest.rs); a guest that has its own access trapped
//! (CPACR_EL1) does not get here with one. Writing V*n* zeroes what Z*n* has above it, as the guest's own
//! instruction would (Arm ARM, "SVE writeable registers").
#![expect(unsafe_code, reason = "registers that are named in the instruction")]

use core::arch::global_asm;

// Each is two instructions, in the order of their numbers: x1 is where 16 bytes are.
global_asm!(
    ".arch_extension fp",
    ".arch_extension simd",
    "read_vector:",
    "adr x2, 1f",
    "add x2, x2, x0, lsl #3",
    "br x2",
    "1:",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "str q\\n, [x1]",
    "ret",
    ".endr",
    "write_vector:",
    "adr x2, 1f",
    "add x2, x2, x0, lsl #3",
    "br x2",
    "1:",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "ldr q\\n, [x1]",
    "ret",
    ".endr",
    ".arch_extension nosimd",
    ".arch_extension nofp",
);

unsafe extern "C" {
    fn read_vector(number: u64, to: *mut u128);
    fn write_vector(number: u64, from: *const u128);
}

/// The register's value; `number` counts modulo 32.
pub fn read(number: u8) -> u128 {
    let mut value = 0;
    // SAFETY: one of 32 stores of 16 bytes, into `value`.
    unsafe { read_vector(u64::from(number & 31), &raw mut value) };
    value
}

/// Sets the register; `number` counts modulo 32.
pub fn write(number: u8, value: u128) {
    // SAFETY: one of 32 loads of 16 bytes, from `value`, into a register that is the guest's alone.
    unsafe { write_vector(u64::from(number & 31), &raw const value) };
}

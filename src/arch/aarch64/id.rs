//! This CPU's ID registers by number, for a guest that reads one, and its caches.
#![expect(unsafe_code, reason = "MRS takes the register in its encoding")]

use aarch64_cpu::registers::{ID_AA64MMFR2_EL1, Readable};
use alloc::vec::Vec;
use cordon::vm::caches::{self, Level};
use core::arch::asm;

/// Reads the register op0 = 3, op1 = 0, CRn = 0 with these `CRm` and `op2`. Reserved ones of 1 to 7
/// are zero (Arm ARM D22.3.1), and so is what is outside of that.
pub fn read(crm: u8, op2: u8) -> u64 {
    macro_rules! registers {
        ($($crm:literal)*) => {
            match (crm, op2) {
                $(
                    ($crm, 0) => one!($crm, 0),
                    ($crm, 1) => one!($crm, 1),
                    ($crm, 2) => one!($crm, 2),
                    ($crm, 3) => one!($crm, 3),
                    ($crm, 4) => one!($crm, 4),
                    ($crm, 5) => one!($crm, 5),
                    ($crm, 6) => one!($crm, 6),
                    ($crm, 7) => one!($crm, 7),
                )*
                _ => 0,
            }
        };
    }
    macro_rules! one {
        ($crm:literal, $op2:literal) => {{
            let value: u64;
            // SAFETY: an ID register is there or is zero, and reading it changes nothing.
            unsafe {
                asm!(
                    concat!("mrs {}, s3_0_c0_c", $crm, "_", $op2),
                    out(reg) value,
                    options(nomem, nostack, preserves_flags)
                );
            }
            value
        }};
    }
    registers!(1 2 3 4 5 6 7)
}

/// The caches of the CPU that runs this.
pub fn caches() -> Vec<Level> {
    const MMFR2_CCIDX_SHIFT: u32 = 20;
    let clidr: u64;
    // SAFETY: reads a register that every CPU has; no side effect.
    unsafe { asm!("mrs {}, clidr_el1", out(reg) clidr, options(nomem, nostack, preserves_flags)) };
    let ccidx = ID_AA64MMFR2_EL1.get() >> MMFR2_CCIDX_SHIFT & 0xf != 0;
    caches::read(clidr, ccidx, |selected| {
        let ccsidr: u64;
        // SAFETY: selects a cache that CLIDR_EL1 names and reads its registers. What is selected
        // matters to nobody else: a vCPU that starts later finds CSSELR_EL1 UNKNOWN.
        unsafe {
            asm!(
                "msr csselr_el1, {}",
                "isb",
                "mrs {}, ccsidr_el1",
                in(reg) selected,
                out(reg) ccsidr,
                options(nomem, nostack, preserves_flags)
            );
        }
        ccsidr
    })
}

//! This CPU's ID registers by number, for a guest that reads one.
#![expect(unsafe_code, reason = "MRS takes the register in its encoding")]

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

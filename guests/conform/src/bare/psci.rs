//! SMCCC calls, by either conduit.
#![expect(unsafe_code, reason = "hvc and smc")]

use super::machine;
use cordon_probe::machine::Conduit;
use core::arch::asm;

pub(super) const SUCCESS: i64 = 0;
pub(super) const NOT_SUPPORTED: i64 = -1;
pub(super) const INVALID_PARAMETERS: i64 = -2;
pub(super) const ALREADY_ON: i64 = -4;
pub(super) const ON_PENDING: i64 = -5;
pub(super) const INVALID_ADDRESS: i64 = -9;

pub(super) const SMCCC_VERSION: u64 = 0x8000_0000;
pub(super) const SMCCC_ARCH_FEATURES: u64 = 0x8000_0001;
pub(super) const VERSION: u64 = 0x8400_0000;
pub(super) const CPU_SUSPEND: u64 = 0xc400_0001;
pub(super) const CPU_OFF: u64 = 0x8400_0002;
pub(super) const CPU_ON_32: u64 = 0x8400_0003;
pub(super) const CPU_ON: u64 = 0xc400_0003;
pub(super) const AFFINITY_INFO_32: u64 = 0x8400_0004;
pub(super) const AFFINITY_INFO: u64 = 0xc400_0004;
pub(super) const MIGRATE_INFO_TYPE: u64 = 0x8400_0006;
pub(super) const SYSTEM_OFF: u64 = 0x8400_0008;
pub(super) const SYSTEM_RESET: u64 = 0x8400_0009;
pub(super) const FEATURES: u64 = 0x8400_000a;

macro_rules! conduit {
    ($name:ident, $instruction:literal) => {
        fn $name(x: [u64; 4], keep: &mut [u64; 14]) -> u64 {
            let result;
            // SAFETY: the calls that are made start and stop CPUs of this guest, which is what its
            // tests are about. SMCCC 1.1 allows x0 to x3 to change; x4 to x17 are handed back.
            unsafe {
                asm!(
                    "str x19, [sp, #-16]!",
                    "mov x19, x18",
                    "ldp x4, x5, [x19]",
                    "ldp x6, x7, [x19, #16]",
                    "ldp x8, x9, [x19, #32]",
                    "ldp x10, x11, [x19, #48]",
                    "ldp x12, x13, [x19, #64]",
                    "ldp x14, x15, [x19, #80]",
                    "ldp x16, x17, [x19, #96]",
                    $instruction,
                    "stp x4, x5, [x19]",
                    "stp x6, x7, [x19, #16]",
                    "stp x8, x9, [x19, #32]",
                    "stp x10, x11, [x19, #48]",
                    "stp x12, x13, [x19, #64]",
                    "stp x14, x15, [x19, #80]",
                    "stp x16, x17, [x19, #96]",
                    "ldr x19, [sp], #16",
                    inout("x0") x[0] => result,
                    inout("x1") x[1] => _,
                    inout("x2") x[2] => _,
                    inout("x3") x[3] => _,
                    inout("x18") keep.as_mut_ptr() => _,
                    out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _,
                    out("x10") _, out("x11") _, out("x12") _, out("x13") _, out("x14") _,
                    out("x15") _, out("x16") _, out("x17") _,
                )
            };
            result
        }
    };
}

conduit!(hvc, "hvc #0");
conduit!(smc, "smc #0");

/// A call by `conduit` with these x0 to x3, and x4 to x17 in `keep`, where they are found afterwards.
pub(super) fn call_by(conduit: Conduit, x: [u64; 4], keep: &mut [u64; 14]) -> i64 {
    let result = match conduit {
        Conduit::Hvc => hvc(x, keep),
        Conduit::Smc => smc(x, keep),
    };
    result.cast_signed()
}

/// A call by the machine's conduit.
pub(super) fn call(function: u64, a: u64, b: u64, c: u64) -> i64 {
    call_by(machine().conduit(), [function, a, b, c], &mut [0; 14])
}

/// Starts CPU `number` at `entry`.
pub(super) fn cpu_on(number: usize, entry: u64, context: u64) -> i64 {
    call(CPU_ON, machine().mpidr(number), entry, context)
}

/// Powers the machine off. Returns only if that does not work.
pub(super) fn off() {
    call(SYSTEM_OFF, 0, 0, 0);
}

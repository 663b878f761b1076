//! EL1 and EL0 as a vCPU finds them when it starts.
//!
//! The architecture leaves most registers UNKNOWN out of reset. Here they are zero: a guest must
//! find nothing that EL2, firmware, a boot loader or an earlier life of the vCPU left behind, and
//! nothing of that may act on it, such as a timer, a counter or a pending virtual SError.
//!
//! Breakpoint and watchpoint registers are left alone: MDSCR_EL1 and the OS lock keep them inert
//! until the guest has set them up.
#![expect(
    unsafe_code,
    reason = "system registers, and FP registers that Rust does not use here"
)]

use super::features::Features;
use aarch64_cpu::registers::{HCR_EL2, ReadWriteable, SCTLR_EL1, Writeable};
use core::arch::{asm, naked_asm};

/// SCTLR_EL1 out of reset: MMU and caches off; the bits that are RES1 without their features
/// (Arm ARM D19.2.136).
const SCTLR_EL1_RESET: u64 = 0x30d0_0800;

/// All counters of the PMU, the cycle counter included.
const ALL_COUNTERS: u64 = 0xffff_ffff;
/// PMCR_EL0: P and C zero the counters, E is off.
const PMCR_ZERO_ALL: u64 = 0b110;

/// Writes zero to registers that are there.
macro_rules! zero {
    ($($register:literal),* $(,)?) => {
        // SAFETY: these registers belong to EL1 and EL0, of which nothing runs now; EL2's own
        // code depends on none of them. The caller has seen that they exist.
        unsafe {
            asm!($(concat!("msr ", $register, ", xzr")),*,
                 options(nomem, nostack, preserves_flags))
        }
    };
}

/// Puts this CPU's EL1 and EL0 into the state in which a vCPU starts, general registers aside.
pub fn reset_el1(features: &Features) {
    SCTLR_EL1.set(SCTLR_EL1_RESET);
    zero!(
        "cpacr_el1",
        "tcr_el1",
        "ttbr0_el1",
        "ttbr1_el1",
        "mair_el1",
        "amair_el1",
        "contextidr_el1",
        "vbar_el1",
        "elr_el1",
        "spsr_el1",
        "esr_el1",
        "far_el1",
        "afsr0_el1",
        "afsr1_el1",
        "par_el1",
        "csselr_el1",
        "sp_el0",
        "sp_el1",
        "tpidr_el0",
        "tpidrro_el0",
        "tpidr_el1",
    );
    zero!(
        "cntkctl_el1",
        "cntp_ctl_el0",
        "cntv_ctl_el0",
        "cntp_cval_el0",
        "cntv_cval_el0",
    );
    lock_debug();
    reset_extensions(features);
    HCR_EL2.modify(HCR_EL2::VSE::CLEAR);
    // SAFETY: no FP register holds anything of Cordon's, which is built without them; the
    // CPU's first step (`guest::open_vectors`) has turned off the traps of what `features` has.
    unsafe {
        clear_fp();
        if features.sve {
            clear_sve();
        }
    }
}

/// Debug out of reset: no monitor debug, the OS lock taken (Arm ARM D19.3.26, OSLSR_EL1.OSLK).
fn lock_debug() {
    // SAFETY: EL1's debug state, which EL2 does not use; and the local monitor.
    unsafe {
        asm!("msr mdscr_el1, xzr", "msr oslar_el1, {}", "clrex", in(reg) 1_u64,
             options(nomem, nostack, preserves_flags));
    }
}

fn reset_extensions(features: &Features) {
    if features.ras {
        // DISR_EL1, VSESR_EL2, VDISR_EL2.
        zero!("s3_0_c12_c1_1", "s3_4_c5_c2_3", "s3_4_c12_c1_1");
    }
    if features.pauth {
        // The five keys: APIA, APIB, APDA, APDB, APGA, low and high.
        zero!(
            "s3_0_c2_c1_0",
            "s3_0_c2_c1_1",
            "s3_0_c2_c1_2",
            "s3_0_c2_c1_3",
            "s3_0_c2_c2_0",
            "s3_0_c2_c2_1",
            "s3_0_c2_c2_2",
            "s3_0_c2_c2_3",
            "s3_0_c2_c3_0",
            "s3_0_c2_c3_1",
        );
    }
    if features.mte2 {
        // RGSR_EL1, GCR_EL1, TFSR_EL1, TFSRE0_EL1.
        zero!(
            "s3_0_c1_c0_5",
            "s3_0_c1_c0_6",
            "s3_0_c5_c6_0",
            "s3_0_c5_c6_1"
        );
    }
    if features.scxtnum {
        // SCXTNUM_EL1, SCXTNUM_EL0.
        zero!("s3_0_c13_c0_7", "s3_3_c13_c0_7");
    }
    if features.sve {
        // ZCR_EL1.
        zero!("s3_0_c1_c2_0");
    }
    if features.pmu != 0 {
        reset_pmu();
    }
}

fn reset_pmu() {
    zero!("pmuserenr_el0", "pmccfiltr_el0", "pmselr_el0");
    // SAFETY: the PMU is the guest's, and EL2 counts nothing with it.
    unsafe {
        asm!(
            "msr pmcr_el0, {pmcr}",
            "msr pmcntenclr_el0, {all}",
            "msr pmintenclr_el1, {all}",
            "msr pmovsclr_el0, {all}",
            pmcr = in(reg) PMCR_ZERO_ALL,
            all = in(reg) ALL_COUNTERS,
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// Zeroes V0 to V31, and with them the rest of Z0 to Z31, FPCR and FPSR.
///
/// # Safety
///
/// FP must not be trapped, and hold nothing that anybody needs.
#[unsafe(naked)]
unsafe extern "C" fn clear_fp() {
    naked_asm!(
        ".arch_extension fp",
        ".arch_extension simd",
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "movi v\\n\\().2d, #0",
        ".endr",
        "msr fpcr, xzr",
        "msr fpsr, xzr",
        "ret",
        ".arch_extension nosimd",
        ".arch_extension nofp",
    )
}

/// Zeroes P0 to P15 and FFR.
///
/// # Safety
///
/// SVE must be there, must not be trapped, and hold nothing that anybody needs.
#[unsafe(naked)]
unsafe extern "C" fn clear_sve() {
    naked_asm!(
        ".arch_extension sve",
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "pfalse p\\n\\().b",
        ".endr",
        "wrffr p0.b",
        "ret",
        ".arch_extension nosve",
    )
}

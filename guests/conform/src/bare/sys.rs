//! System registers and barriers, each as a pair of functions.
#![expect(
    unsafe_code,
    reason = "system registers; this guest has the machine to itself, and its tests mean what they write"
)]
#![expect(dead_code, reason = "of some only one direction is used")]

use core::arch::asm;

macro_rules! registers {
    ($($name:ident = $text:literal;)*) => {$(
        #[expect(non_camel_case_types, reason = "the architecture's name")]
        pub(super) struct $name;
        impl $name {
            pub(super) fn read() -> u64 {
                let value;
                // SAFETY: reads a register of EL1.
                unsafe { asm!("isb", concat!("mrs {}, ", $text), out(reg) value, options(nostack)) };
                value
            }
            pub(super) fn write(value: u64) {
                // SAFETY: a register that does not change how Rust code runs.
                unsafe { asm!(concat!("msr ", $text, ", {}"), "isb", in(reg) value, options(nostack)) };
            }
        }
    )*};
}

macro_rules! read_only {
    ($($name:ident = $text:literal;)*) => {$(
        pub(super) fn $name() -> u64 {
            let value;
            // SAFETY: reads a register of EL1.
            unsafe { asm!("isb", concat!("mrs {}, ", $text), out(reg) value, options(nostack)) };
            value
        }
    )*};
}

registers! {
    icc_pmr = "icc_pmr_el1";
    icc_bpr0 = "icc_bpr0_el1";
    icc_bpr1 = "icc_bpr1_el1";
    icc_ctlr = "icc_ctlr_el1";
    icc_sre = "icc_sre_el1";
    icc_igrpen0 = "icc_igrpen0_el1";
    icc_igrpen1 = "icc_igrpen1_el1";
    icc_ap0r0 = "icc_ap0r0_el1";
    icc_ap1r0 = "icc_ap1r0_el1";
    icc_eoir0 = "icc_eoir0_el1";
    icc_eoir1 = "icc_eoir1_el1";
    icc_dir = "icc_dir_el1";
    icc_sgi0r = "icc_sgi0r_el1";
    icc_sgi1r = "icc_sgi1r_el1";
    cntv_ctl = "cntv_ctl_el0";
    cntv_cval = "cntv_cval_el0";
    cntv_tval = "cntv_tval_el0";
    cntp_ctl = "cntp_ctl_el0";
    cntp_cval = "cntp_cval_el0";
    cntp_tval = "cntp_tval_el0";
    cntkctl = "cntkctl_el1";
    csselr = "csselr_el1";
    cpacr = "cpacr_el1";
    daif = "daif";
}

read_only! {
    icc_iar0 = "icc_iar0_el1";
    icc_iar1 = "icc_iar1_el1";
    icc_hppir1 = "icc_hppir1_el1";
    icc_rpr = "icc_rpr_el1";
    isr = "isr_el1";
    cntfrq = "cntfrq_el0";
    cntvct = "cntvct_el0";
    cntpct = "cntpct_el0";
    mpidr = "mpidr_el1";
    midr = "midr_el1";
    ctr = "ctr_el0";
    dczid = "dczid_el0";
    clidr = "clidr_el1";
    ccsidr = "ccsidr_el1";
    tpidr = "tpidr_el1";
    far = "far_el1";
    elr = "elr_el1";
}

/// Waits for an interrupt, taken or not.
pub(super) fn wfi() {
    // SAFETY: waits.
    unsafe { asm!("dsb sy", "wfi", options(nostack)) };
}

/// Waits for an event: a [`wake`], or the event stream's next.
pub(super) fn pause() {
    // SAFETY: waits; `gic::enable_interface` has turned the event stream on.
    unsafe { asm!("wfe", options(nostack)) };
}

/// Ends the [`pause`] of all CPUs; what was written before is visible to them.
pub(super) fn wake() {
    // SAFETY: an event is none but a reason to look again.
    unsafe { asm!("dsb ish", "sev", options(nostack)) };
}

/// All accesses before are done.
pub(super) fn dsb() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", "isb", options(nostack)) };
}

/// From now on IRQs are taken.
pub(super) fn unmask_irq() {
    // SAFETY: the vectors handle them.
    unsafe { asm!("msr daifclr, #2", "isb", options(nostack)) };
}

/// From now on IRQs wait.
pub(super) fn mask_irq() {
    // SAFETY: they wait.
    unsafe { asm!("isb", "msr daifset, #2", options(nostack)) };
}

//! System registers and barriers.
#![expect(
    unsafe_code,
    reason = "system registers and barriers exist in assembly only"
)]

use core::arch::asm;

use cordon_firmware::features::IdRegisters;

/// Reads the system register with this assembler name.
macro_rules! read {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading a system register has no effect on memory. That it exists and may be
        // read at EL3 is said at each function that uses this.
        unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack)) };
        value
    }};
}

/// Writes the system register with this assembler name.
macro_rules! write {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the registers written by this module either govern only levels below EL3, or are
        // written by functions that state what else must hold. No `nomem`: later accesses to
        // memory must not move before it.
        unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack)) };
    }};
}

/// Functions that read one register each.
macro_rules! readers {
    ($($(#[$doc:meta])* $function:ident = $name:literal;)*) => {$(
        $(#[$doc])*
        pub(crate) fn $function() -> u64 {
            read!($name)
        }
    )*};
}

/// Functions that write one register each.
macro_rules! writers {
    ($($(#[$doc:meta])* $function:ident = $name:literal;)*) => {$(
        $(#[$doc])*
        pub(crate) fn $function(value: u64) {
            write!($name, value);
        }
    )*};
}

readers! {
    /// `MPIDR_EL1`.
    mpidr = "mpidr_el1";
    /// `MIDR_EL1`.
    midr = "midr_el1";
    /// `ESR_EL3`.
    esr_el3 = "esr_el3";
    /// `ELR_EL3`.
    elr_el3 = "elr_el3";
    /// `SPSR_EL3`.
    spsr_el3 = "spsr_el3";
    /// `FAR_EL3`.
    far_el3 = "far_el3";
    /// `MFAR_EL3` (FEAT_RME).
    mfar_el3 = "s3_6_c6_c0_5";
    /// `VBAR_EL2`.
    vbar_el2 = "vbar_el2";
    /// `SCTLR_EL2`.
    sctlr_el2 = "sctlr_el2";
    /// `HCR_EL2`.
    hcr_el2 = "hcr_el2";
    /// `GCSCR_EL2` (FEAT_GCS).
    gcscr_el2 = "s3_4_c2_c5_0";
    /// `PMCR_EL0`.
    pmcr_el0 = "pmcr_el0";
    /// `CNTFRQ_EL0`.
    cntfrq = "cntfrq_el0";
}

writers! {
    /// `ELR_EL3`: where the next exception return goes.
    set_elr_el3 = "elr_el3";
    /// `SPSR_EL3`: with which PSTATE.
    set_spsr_el3 = "spsr_el3";
    /// `SCR_EL3`. Takes effect for EL3's own accesses at the next [`isb`].
    set_scr_el3 = "scr_el3";
    /// `CPTR_EL3`.
    set_cptr_el3 = "cptr_el3";
    /// `MDCR_EL3`.
    set_mdcr_el3 = "mdcr_el3";
    /// `ZCR_EL3` (FEAT_SVE).
    set_zcr_el3 = "s3_6_c1_c2_0";
    /// `SMCR_EL3` (FEAT_SME).
    set_smcr_el3 = "s3_6_c1_c2_6";
    /// `MPAM3_EL3` (FEAT_MPAM).
    set_mpam3_el3 = "s3_6_c10_c5_0";
    /// `CNTFRQ_EL0`.
    set_cntfrq = "cntfrq_el0";
    /// `ESR_EL2`.
    set_esr_el2 = "esr_el2";
    /// `FAR_EL2`.
    set_far_el2 = "far_el2";
    /// `ELR_EL2`.
    set_elr_el2 = "elr_el2";
    /// `SPSR_EL2`.
    set_spsr_el2 = "spsr_el2";
    /// `SCTLR_EL2`.
    set_sctlr_el2 = "sctlr_el2";
    /// `HCR_EL2`.
    set_hcr_el2 = "hcr_el2";
    /// `HCRX_EL2` (FEAT_HCX).
    set_hcrx_el2 = "s3_4_c1_c2_2";
    /// `CPTR_EL2`.
    set_cptr_el2 = "cptr_el2";
    /// `MDCR_EL2`.
    set_mdcr_el2 = "mdcr_el2";
    /// `CNTHCTL_EL2`.
    set_cnthctl_el2 = "cnthctl_el2";
    /// `CNTVOFF_EL2`.
    set_cntvoff_el2 = "cntvoff_el2";
    /// `VPIDR_EL2`.
    set_vpidr_el2 = "vpidr_el2";
    /// `VMPIDR_EL2`.
    set_vmpidr_el2 = "vmpidr_el2";
    /// `VTTBR_EL2`.
    set_vttbr_el2 = "vttbr_el2";
    /// `HSTR_EL2`.
    set_hstr_el2 = "hstr_el2";
    /// `ICH_HCR_EL2`.
    set_ich_hcr_el2 = "s3_4_c12_c11_0";
}

/// The ID registers; those the CPU does not have read as zero (Arm ARM D23.3.1).
pub(crate) fn id_registers() -> IdRegisters {
    IdRegisters {
        pfr0: read!("id_aa64pfr0_el1"),
        pfr1: read!("id_aa64pfr1_el1"),
        pfr2: read!("s3_0_c0_c4_2"),
        dfr0: read!("id_aa64dfr0_el1"),
        dfr1: read!("id_aa64dfr1_el1"),
        isar1: read!("id_aa64isar1_el1"),
        isar2: read!("s3_0_c0_c6_2"),
        mmfr0: read!("id_aa64mmfr0_el1"),
        mmfr1: read!("id_aa64mmfr1_el1"),
        mmfr3: read!("s3_0_c0_c7_3"),
    }
}

/// The smallest line of the data caches in bytes.
pub(crate) fn cache_line() -> usize {
    4 << (read!("ctr_el0") >> 16 & 0xf)
}

/// Starts EL3's own timer, the secure physical one: its interrupt comes in `ticks` of the counter.
pub(crate) fn start_own_timer(ticks: u64) {
    write!("cntps_tval_el1", ticks);
    write!("cntps_ctl_el1", 1);
    isb();
}

/// Stops it, so that its line goes down.
pub(crate) fn stop_own_timer() {
    write!("cntps_ctl_el1", 0);
    isb();
}

/// The counter, not speculated ahead of what comes before.
pub(crate) fn counter() -> u64 {
    isb();
    read!("cntpct_el0")
}

/// Sets the base of the granule protection table, then switches the checks on.
///
/// `gptbr` and `gpccr` must describe a table that lets the firmware reach all it uses.
pub(crate) fn enable_gpt(gptbr: u64, gpccr: u64) {
    write!("s3_6_c2_c1_4", gptbr);
    isb();
    write!("s3_6_c2_c1_6", gpccr);
    isb();
    // SAFETY: `TLBI PAALL` and barriers: entries cached before the switch are no longer right.
    unsafe { asm!("sys #6, c8, c7, #4", "dsb sy", "isb", options(nostack)) };
}

/// Waits until all earlier memory accesses are complete.
pub(crate) fn dsb() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack)) };
}

/// Makes earlier changes of system registers effective.
pub(crate) fn isb() {
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack)) };
}

/// Removes all cached GPT entries of all CPUs and waits for that.
pub(crate) fn invalidate_gpt() {
    // SAFETY: `TLBI PAALLOS`, waited for (Arm ARM D8.17.6).
    unsafe {
        asm!(
            "dsb sy",
            "sys #6, c8, c1, #4",
            "dsb sy",
            "isb",
            options(nostack)
        )
    };
}

/// Removes all instructions from all CPUs' instruction caches, for those just loaded.
pub(crate) fn invalidate_instructions() {
    // SAFETY: instruction cache maintenance changes no memory.
    unsafe { asm!("dsb sy", "ic ialluis", "dsb sy", "isb", options(nostack)) };
}

/// Waits for an interrupt to be pending, masked or not.
pub(crate) fn wait_for_interrupt() {
    // SAFETY: a hint; the barrier lets what went before take effect first.
    unsafe { asm!("dsb sy", "wfi", options(nostack)) };
}

/// Wakes all CPUs that wait for an event, after all that was written before.
pub(crate) fn send_event() {
    // SAFETY: a hint.
    unsafe { asm!("dsb sy", "sev", options(nostack)) };
}

/// Lets other CPUs go ahead: an emulator that runs one at a time switches here.
pub(crate) fn relax() {
    // SAFETY: a hint.
    unsafe { asm!("yield", options(nomem, nostack)) };
}

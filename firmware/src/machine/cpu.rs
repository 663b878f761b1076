//! One CPU's registers: what EL3 needs, and the state in which EL2 begins.

use cordon_firmware::exception::{ENTRY_PSTATE, El2Controls, PstateFeatures};
use cordon_firmware::features;
use cordon_firmware::psci::EntryPoint;

use super::{boot, sysreg};

/// 4 KiB granules, 1 GiB per level-0 entry, 44 bits protected; walks inner shareable, write-back;
/// checks on (Arm ARM D24.2.60).
const GPCCR: u64 = 0b11 << 12 | 0b01 << 10 | 0b01 << 8 | 1 << 16 | 0b100;

/// The counter's frequency where reset left none: what QEMU had before it had one of its own.
const FALLBACK_FREQUENCY: u64 = 62_500_000;

/// The number of the calling CPU.
pub(crate) fn number() -> usize {
    // Reset has parked every CPU that has none.
    cordon_firmware::layout::cpu_index(sysreg::mpidr()).unwrap_or(0)
}

/// Switches granule protection checks on with the table at `level0`, and all traps to EL3 off that
/// the firmware has no use for.
pub(crate) fn init(level0: u64) {
    let id = sysreg::id_registers();
    sysreg::enable_gpt(level0 >> 12, GPCCR);
    sysreg::set_scr_el3(features::scr_el3(&id));
    sysreg::set_cptr_el3(features::cptr_el3(&id));
    sysreg::set_mdcr_el3(features::mdcr_el3(&id));
    sysreg::isb();
    if features::has_sve(&id) {
        /// LEN: the longest vectors there are.
        const ZCR: u64 = 0xf;
        sysreg::set_zcr_el3(ZCR);
    }
    if features::has_sme(&id) {
        /// LEN, FA64 and EZT0: no restriction.
        const SMCR: u64 = 0xf | 1 << 31 | 1 << 30;
        sysreg::set_smcr_el3(SMCR);
    }
    if features::has_mpam(&id) {
        /// MPAMEN, with TRAPLOWER, which reset sets, cleared.
        const MPAM3: u64 = 1 << 63;
        sysreg::set_mpam3_el3(MPAM3);
    }
    if sysreg::cntfrq() == 0 {
        sysreg::set_cntfrq(FALLBACK_FREQUENCY);
    }
}

/// Whether granule protection checks exist at all.
pub(crate) fn has_rme() -> bool {
    features::has_rme(&sysreg::id_registers())
}

/// Which bits PSTATE has; the CPUs of the machine are alike.
pub(crate) fn pstate_features() -> PstateFeatures {
    features::pstate_features(&sysreg::id_registers())
}

/// How EL2 would take an exception now.
pub(crate) fn el2_controls() -> El2Controls {
    let features = pstate_features();
    El2Controls {
        hcr: sysreg::hcr_el2(),
        sctlr: sysreg::sctlr_el2(),
        gcscr: if features.gcs { sysreg::gcscr_el2() } else { 0 },
        features,
    }
}

/// Begins at EL2: MMU and caches off, no trap on, as a reset would leave EL2 were it the highest
/// level.
pub(crate) fn enter_el2(entry: EntryPoint) -> ! {
    /// RES1 where their feature is absent, all else off.
    const SCTLR_EL2: u64 = 0x30c5_0830;
    /// EL1 is AArch64.
    const HCR_EL2: u64 = 1 << 31;
    /// RES1 bits without FEAT_VHE's format, TZ and TSM clear.
    const CPTR_EL2: u64 = 0x22ff;
    /// RES1 without FEAT_SME, where it is TSM.
    const CPTR_EL2_NO_SME: u64 = 1 << 12;
    /// EL1PCTEN and EL1PCEN: EL1 has its timer and counter.
    const CNTHCTL_EL2: u64 = 0b11;
    let id = sysreg::id_registers();
    let sme = if features::has_sme(&id) {
        0
    } else {
        CPTR_EL2_NO_SME
    };
    sysreg::set_hcr_el2(HCR_EL2);
    sysreg::isb();
    sysreg::set_sctlr_el2(SCTLR_EL2);
    sysreg::set_cptr_el2(CPTR_EL2 | sme);
    // HPMN: all event counters belong to EL1 (PMCR_EL0.N).
    sysreg::set_mdcr_el2(sysreg::pmcr_el0() >> 11 & 0x1f);
    sysreg::set_hstr_el2(0);
    sysreg::set_cnthctl_el2(CNTHCTL_EL2);
    sysreg::set_cntvoff_el2(0);
    sysreg::set_vpidr_el2(sysreg::midr());
    sysreg::set_vmpidr_el2(sysreg::mpidr());
    sysreg::set_vttbr_el2(0);
    sysreg::set_ich_hcr_el2(0);
    if id.mmfr1 >> 40 & 0xf != 0 {
        sysreg::set_hcrx_el2(0);
    }
    sysreg::set_elr_el3(entry.address);
    sysreg::set_spsr_el3(ENTRY_PSTATE);
    sysreg::dsb();
    sysreg::isb();
    boot::enter(entry.context)
}

//! What EL3 leaves to the normal world: which traps to EL3 are off.
//!
//! Each bit of `SCR_EL3`, `MDCR_EL3` and `CPTR_EL3` that enables something is set exactly where the CPU
//! has the feature, read from its ID registers: the bit is RES0 elsewhere. So EL2 and EL1 use
//! whatever the CPU has without a trap to EL3, which has nothing to say about it.
//!
//! Bit positions and ID fields: Arm ARM D24.2 under each register's name.

use crate::exception::PstateFeatures;

/// The ID registers that are asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct IdRegisters {
    /// `ID_AA64PFR0_EL1`.
    pub pfr0: u64,
    /// `ID_AA64PFR1_EL1`.
    pub pfr1: u64,
    /// `ID_AA64PFR2_EL1`.
    pub pfr2: u64,
    /// `ID_AA64DFR0_EL1`.
    pub dfr0: u64,
    /// `ID_AA64DFR1_EL1`.
    pub dfr1: u64,
    /// `ID_AA64ISAR1_EL1`.
    pub isar1: u64,
    /// `ID_AA64ISAR2_EL1`.
    pub isar2: u64,
    /// `ID_AA64MMFR0_EL1`.
    pub mmfr0: u64,
    /// `ID_AA64MMFR1_EL1`.
    pub mmfr1: u64,
    /// `ID_AA64MMFR3_EL1`.
    pub mmfr3: u64,
}

/// The 4-bit field of an ID register from bit `shift` on.
const fn field(register: u64, shift: u32) -> u64 {
    register >> shift & 0xf
}

/// A bit pattern that goes with a feature.
struct Enable {
    bits: u64,
    present: bool,
}

const fn enable(bit: u32, present: bool) -> Enable {
    Enable {
        bits: 1 << bit,
        present,
    }
}

fn combine(base: u64, enables: &[Enable]) -> u64 {
    enables
        .iter()
        .filter(|enable| enable.present)
        .fold(base, |value, enable| value | enable.bits)
}

/// EL2, EL1 and EL0 are Non-secure.
const SCR_NS: u64 = 1 << 0;
/// Physical FIQs, which are the firmware's own interrupts, come to EL3.
const SCR_FIQ: u64 = 1 << 2;
/// External aborts and SErrors come to EL3: firmware first.
const SCR_EA: u64 = 1 << 3;
/// Bits 5:4.
const SCR_RES1: u64 = 0b11 << 4;
/// HVC is enabled.
const SCR_HCE: u64 = 1 << 8;
/// EL2 is AArch64.
const SCR_RW: u64 = 1 << 10;
/// Granule protection faults come to EL3 (FEAT_RME): the trap this firmware lives by.
const SCR_GPF: u64 = 1 << 48;

/// `SCR_EL3` while the normal world runs. IRQ, SMD, TWI, TWE, TLOR, TERR, TRNDR, TID3 and NSE are 0.
#[must_use]
pub fn scr_el3(id: &IdRegisters) -> u64 {
    let base = SCR_NS | SCR_FIQ | SCR_EA | SCR_RES1 | SCR_HCE | SCR_RW | SCR_GPF;
    let pauth = id.isar1 & 0xff00_0ff0 != 0 || id.isar2 & 0xff00 != 0;
    let ls64 = field(id.isar1, 60);
    let csv2 = field(id.pfr0, 56);
    combine(
        base,
        &[
            enable(16, pauth),                   // APK: pointer authentication keys
            enable(17, pauth),                   // API: its instructions
            enable(21, field(id.pfr0, 28) >= 2), // FIEN: RASv1p1 fault injection registers
            enable(25, csv2 >= 2 || field(id.pfr1, 32) >= 2), // EnSCXT: SCXTNUM_ELx
            enable(26, field(id.pfr1, 8) >= 2),  // ATA: allocation tags
            enable(27, field(id.mmfr0, 56) >= 1), // FGTEn: fine-grained trap registers
            enable(28, field(id.mmfr0, 60) >= 2), // ECVEn: CNTPOFF_EL2
            enable(35, field(id.pfr0, 44) >= 2), // AMVOFFEN: activity monitor offsets
            enable(36, ls64 >= 3),               // EnAS0: ST64BV0
            enable(37, ls64 >= 3),               // ADEn: ACCDATA_EL1
            enable(38, field(id.mmfr1, 40) >= 1), // HXEn: HCRX_EL2
            enable(39, field(id.pfr1, 44) >= 1), // GCSEn: guarded control stacks
            enable(41, field(id.pfr1, 24) >= 1), // EnTP2: TPIDR2_EL0
            enable(42, field(id.pfr1, 48) >= 1), // RCWMASKEn: RCWMASK_EL1, RCWSMASK_EL1
            enable(43, field(id.mmfr3, 0) >= 1), // TCR2En: TCR2_ELx
            enable(44, field(id.mmfr3, 4) >= 1), // SCTLR2En: SCTLR2_ELx
            enable(45, id.mmfr3 & 0xff_ff00 != 0), // PIEn: PIR, POR, either stage
            enable(46, field(id.mmfr3, 24) >= 1), // AIEn: MAIR2, AMAIR2
            enable(47, field(id.mmfr3, 32) >= 1), // D128En: 128-bit registers
            enable(50, field(id.pfr2, 32) >= 1), // EnFPM: FPMR
            enable(53, field(id.pfr1, 60) >= 1), // PFAREn: PFAR_ELx
            enable(59, field(id.mmfr0, 56) >= 2), // FGTEn2: their second set
        ],
    )
}

/// `CPTR_EL3`: TFP, TTA, TAM and TCPAC are 0; SVE and SME, whose traps are inverted, are enabled.
#[must_use]
pub fn cptr_el3(id: &IdRegisters) -> u64 {
    combine(0, &[enable(8, has_sve(id)), enable(12, has_sme(id))])
}

/// `MDCR_EL3`: TDA, TDOSA, TPM, TTRF and TDCC are 0.
#[must_use]
pub fn mdcr_el3(id: &IdRegisters) -> u64 {
    let pmu = field(id.dfr0, 8);
    let pmu_v3p = |version| pmu >= version && pmu != 0xf;
    combine(
        0,
        &[
            // NSPB: the statistical profiling buffer is the normal world's.
            Enable {
                bits: 0b11 << 12,
                present: field(id.dfr0, 32) >= 1,
            },
            // NSTB: the trace buffer too.
            Enable {
                bits: 0b11 << 24,
                present: field(id.dfr0, 44) >= 1,
            },
            // SBRBE: branch records are kept outside EL3 and may be accessed.
            Enable {
                bits: 0b01 << 32,
                present: field(id.dfr0, 52) >= 1,
            },
            enable(7, pmu_v3p(9)),  // EnPM2: PMU registers of version 3.9
            enable(23, pmu_v3p(6)), // SCCD: the cycle counter stops in Secure state and at EL3
            enable(34, pmu_v3p(7)), // MCCD: and where event counters do
            enable(36, field(id.dfr0, 32) >= 3), // EnPMSN: PMSNEVFR_EL1
        ],
    )
}

/// Whether the CPU has FEAT_SVE, and so `ZCR_EL3`.
#[must_use]
pub const fn has_sve(id: &IdRegisters) -> bool {
    field(id.pfr0, 32) >= 1
}

/// Whether the CPU has FEAT_SME, and so `SMCR_EL3`.
#[must_use]
pub const fn has_sme(id: &IdRegisters) -> bool {
    field(id.pfr1, 24) >= 1
}

/// Whether the CPU has FEAT_RME, without which there is no granule protection table.
#[must_use]
pub const fn has_rme(id: &IdRegisters) -> bool {
    field(id.pfr0, 52) >= 1
}

/// Whether the CPU has FEAT_MPAM, and so `MPAM3_EL3`.
#[must_use]
pub const fn has_mpam(id: &IdRegisters) -> bool {
    field(id.pfr0, 40) >= 1 || field(id.pfr1, 16) >= 1
}

/// Which bits PSTATE has.
#[must_use]
pub const fn pstate_features(id: &IdRegisters) -> PstateFeatures {
    PstateFeatures {
        ssbs: field(id.pfr1, 4) >= 1,
        mte: field(id.pfr1, 8) >= 1,
        nmi: field(id.pfr1, 36) >= 1,
        gcs: field(id.pfr1, 44) >= 1,
        ebep: field(id.dfr1, 48) >= 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_without_features_gets_only_what_the_firmware_needs() {
        assert_eq!(scr_el3(&IdRegisters::default()), 0x1_0000_0000_053d);
        assert_eq!(cptr_el3(&IdRegisters::default()), 0);
        assert_eq!(mdcr_el3(&IdRegisters::default()), 0);
    }

    #[test]
    fn each_feature_enables_its_own_bits_and_no_other() {
        let base = scr_el3(&IdRegisters::default());
        let none = IdRegisters::default();
        let cases = [
            (
                IdRegisters {
                    isar1: 1 << 4,
                    ..none
                },
                0b11 << 16,
            ),
            (
                IdRegisters {
                    isar2: 1 << 12,
                    ..none
                },
                0b11 << 16,
            ),
            (
                IdRegisters {
                    pfr0: 2 << 28,
                    ..none
                },
                1 << 21,
            ),
            (
                IdRegisters {
                    mmfr0: 1 << 56,
                    ..none
                },
                1 << 27,
            ),
            (
                IdRegisters {
                    mmfr0: 2 << 56,
                    ..none
                },
                1 << 27 | 1 << 59,
            ),
            (
                IdRegisters {
                    mmfr1: 1 << 40,
                    ..none
                },
                1 << 38,
            ),
            (
                IdRegisters {
                    mmfr3: 0x11,
                    ..none
                },
                0b11 << 43,
            ),
            (
                IdRegisters {
                    pfr1: 1 << 60,
                    ..none
                },
                1 << 53,
            ),
        ];
        for (id, bits) in cases {
            assert_eq!(scr_el3(&id), base | bits, "{id:?}");
        }
    }

    #[test]
    fn an_imp_def_pmu_is_not_a_new_one() {
        let id = IdRegisters {
            dfr0: 0xf << 8,
            ..IdRegisters::default()
        };
        assert_eq!(mdcr_el3(&id), 0);
    }
}

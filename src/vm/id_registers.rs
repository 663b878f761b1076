//! What a guest reads in its ID registers (Arm ARM DDI 0487, D24.2, "ID_AA64*_EL1").
//!
//! `HCR_EL2.TID3` traps the reads; [`visible`] turns what the CPU has into what its guest may have.
//! The table is a list of what is *shown*: a field that is not in it reads as zero, which is "not
//! implemented" for every field whose meaning is not known yet, and a value is shown up to the
//! one that was looked at. A feature is in the table if a guest can use it without EL2 doing
//! anything, or if EL2 has done it:
//!
//! - FP/SIMD and SVE, whose registers are the guest's throughout; pointer authentication (`API`,
//!   `APK`), MTE (`ATA`) and the software context number (`EnSCXT`), enabled in `HCR_EL2`.
//! - FEAT_RAS, first version: virtual SErrors have a syndrome, error records are read as none.
//! - The breakpoints and watchpoints of the debug architecture: a vCPU has its CPU for itself.
//!
//! FEAT_DPB is hidden but works: what a kernel that knows it cleans of lost memory by `DC CVAP`, some
//! machines report as a load, and then that kernel dies of it. By `DC CVAC` it cleans the same.
//!
//! Hidden, among others, and trapped or disabled so that they cannot be used all the same: EL2 and
//! EL3, SME, MPAM, activity monitors, the PMU (there is no interrupt for it), statistical
//! profiling, trace and branch recording, limited ordering regions, LPA2, transactions, and all
//! that wants `HCRX_EL2` or `HFGRTR_EL2` (MOPS, LS64, TCR2, SCTLR2, PIE, POE, GCS, THE, D128).

use crate::ras::esr::SystemRegister;

/// How much of a field's value is shown.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// The CPU's, at most this.
    UpTo(u8),
    /// The same of a signed field, where 0b1111 is "not implemented" and 0 is not.
    SignedUpTo(i8),
    /// Always this.
    Always(u8),
    /// `PARange`: no more than the IPA size.
    IpaSize,
}
use Rule::{Always, IpaSize, SignedUpTo, UpTo};

/// The lowest bit of a field of four, and its rule.
type Field = (u8, Rule);

/// A register of the ID space (op0 = 3, op1 = 0, CRn = 0) by CRm and op2, and what is shown of it.
type Shown = (u8, u8, &'static [Field]);

/// The AArch64 registers. Comments name the fields from the lowest bit up.
static AARCH64: &[Shown] = &[
    (4, 0, ID_AA64PFR0),
    (4, 1, ID_AA64PFR1),
    (4, 4, ID_AA64ZFR0),
    (5, 0, ID_AA64DFR0),
    (6, 0, ID_AA64ISAR0),
    (6, 1, ID_AA64ISAR1),
    (6, 2, ID_AA64ISAR2),
    (7, 0, ID_AA64MMFR0),
    (7, 1, ID_AA64MMFR1),
    (7, 2, ID_AA64MMFR2),
];

const ID_AA64PFR0: &[Field] = &[
    (0, UpTo(2)),        // EL0, AArch32 too
    (4, UpTo(1)),        // EL1, AArch64 only: HCR_EL2.RW
    (16, SignedUpTo(1)), // FP
    (20, SignedUpTo(1)), // AdvSIMD
    (24, UpTo(1)),       // GIC: the system register interface of a GICv3
    (28, UpTo(1)),       // RAS: its first version, v1p1 adds registers for fault injection
    (32, UpTo(1)),       // SVE
    (48, UpTo(1)),       // DIT
    (56, UpTo(3)),       // CSV2: from 2 on there is SCXTNUM_EL1, enabled by HCR_EL2.EnSCXT
    (60, UpTo(1)),       // CSV3
];

const ID_AA64PFR1: &[Field] = &[
    (0, UpTo(1)),        // BT
    (4, UpTo(2)),        // SSBS
    (8, UpTo(3)),        // MTE
    (32, UpTo(1)),       // CSV2_frac: 2 is SCXTNUM_EL1 where CSV2 does not tell of it
    (40, SignedUpTo(0)), // MTE_frac
];

const ID_AA64ZFR0: &[Field] = &[
    (0, UpTo(2)),  // SVEver
    (4, UpTo(2)),  // AES
    (16, UpTo(1)), // BitPerm
    (20, UpTo(2)), // BF16
    (24, UpTo(1)), // B16B16
    (32, UpTo(1)), // SHA3
    (40, UpTo(1)), // SM4
    (44, UpTo(1)), // I8MM
    (52, UpTo(1)), // F32MM
    (56, UpTo(1)), // F64MM
];

const ID_AA64DFR0: &[Field] = &[
    (0, UpTo(10)),     // DebugVer: FEAT_Debugv8p9 selects breakpoints behind MDCR_EL2.EBWE
    (12, UpTo(15)),    // BRPs
    (20, UpTo(15)),    // WRPs
    (28, UpTo(15)),    // CTX_CMPs
    (36, Always(0xf)), // DoubleLock: none
];

const ID_AA64ISAR0: &[Field] = &[
    (4, UpTo(2)),  // AES
    (8, UpTo(1)),  // SHA1
    (12, UpTo(2)), // SHA2
    (16, UpTo(1)), // CRC32
    (20, UpTo(3)), // Atomic
    (28, UpTo(1)), // RDM
    (32, UpTo(1)), // SHA3
    (36, UpTo(1)), // SM3
    (40, UpTo(1)), // SM4
    (44, UpTo(1)), // DP
    (48, UpTo(1)), // FHM
    (52, UpTo(2)), // TS
    (56, UpTo(2)), // TLB
    (60, UpTo(1)), // RNDR
];

const ID_AA64ISAR1: &[Field] = &[
    (4, UpTo(5)),  // APA
    (8, UpTo(5)),  // API
    (12, UpTo(1)), // JSCVT
    (16, UpTo(1)), // FCMA
    (20, UpTo(3)), // LRCPC
    (24, UpTo(1)), // GPA
    (28, UpTo(1)), // GPI
    (32, UpTo(1)), // FRINTTS
    (36, UpTo(1)), // SB
    (40, UpTo(2)), // SPECRES
    (44, UpTo(2)), // BF16
    (48, UpTo(1)), // DGH
    (52, UpTo(1)), // I8MM
    (56, UpTo(1)), // XS
];

const ID_AA64ISAR2: &[Field] = &[
    (0, UpTo(2)),  // WFxT
    (4, UpTo(1)),  // RPRES
    (8, UpTo(1)),  // GPA3
    (12, UpTo(5)), // APA3
    (20, UpTo(1)), // BC
    (24, UpTo(1)), // PAC_frac
    (28, UpTo(1)), // CLRBHB
    (48, UpTo(1)), // RPRFM
    (52, UpTo(1)), // CSSC
];

const ID_AA64MMFR0: &[Field] = &[
    (0, IpaSize),        // PARange
    (4, UpTo(2)),        // ASIDBits
    (8, UpTo(1)),        // BigEnd
    (12, UpTo(1)),       // SNSMem
    (16, UpTo(1)),       // BigEndEL0
    (20, UpTo(1)),       // TGran16, without LPA2
    (24, SignedUpTo(0)), // TGran64
    (28, SignedUpTo(0)), // TGran4, without LPA2
    (60, UpTo(1)),       // ECV: 2 is an offset that is EL2's
];

const ID_AA64MMFR1: &[Field] = &[
    (0, UpTo(2)),  // HAFDBS: 3 is a flag in TCR2_EL1
    (12, UpTo(2)), // HPDS
    (20, UpTo(3)), // PAN
    (24, UpTo(1)), // SpecSEI
    (36, UpTo(3)), // ETS
    (44, UpTo(1)), // AFP
    (48, UpTo(1)), // nTLBPA
    (52, UpTo(1)), // TIDCP1
    (60, UpTo(1)), // ECBHB
];

const ID_AA64MMFR2: &[Field] = &[
    (0, UpTo(1)),  // CnP
    (4, UpTo(1)),  // UAO
    (8, UpTo(1)),  // LSM
    (12, UpTo(1)), // IESB
    (16, UpTo(1)), // VARange
    (20, UpTo(1)), // CCIDX
    (28, UpTo(1)), // ST
    (32, UpTo(1)), // AT
    (36, UpTo(1)), // IDS
    (48, UpTo(1)), // TTL
    (52, UpTo(2)), // BBM
    (60, UpTo(1)), // E0PD
];

/// The AArch32 registers (CRm 1 to 3) are about EL0 only, whose instructions are the CPU's own.
/// What is masked: performance monitors, trace, activity monitors, RAS and virtualization.
static AARCH32_MASKED: &[(u8, u8, u64)] = &[
    (1, 0, 0xfff0_0000), // ID_PFR0: AMU, DIT with it, RAS
    (1, 1, 0x0000_f000), // ID_PFR1: Virtualization
    (1, 2, 0xff0f_f000), // ID_DFR0: TraceFilt, PerfMon, MMapTrc, CopTrc
    (3, 5, 0x0000_00f0), // ID_DFR1: MTPMU
];

/// Whether `register` is in the space that `HCR_EL2.TID3` traps, reserved places included.
pub fn is_id_register(register: SystemRegister) -> bool {
    let SystemRegister {
        op0, op1, crn, crm, ..
    } = register;
    (op0, op1, crn) == (3, 0, 0) && (1..=7).contains(&crm)
}

/// What a guest reads in all of its ID registers.
#[derive(Clone, Debug)]
pub struct IdRegisters([u64; REGISTERS]);

/// CRm 1 to 7, op2 0 to 7.
const REGISTERS: usize = 7 * 8;

impl IdRegisters {
    /// For a guest whose addresses have `ipa_bits` bits, on a CPU that has `host(crm, op2)`.
    pub fn new(host: impl Fn(u8, u8) -> u64, ipa_bits: u32) -> Self {
        let registers = (1..8).flat_map(|crm| (0..8).map(move |op2| (crm, op2)));
        let mut shown = [0; REGISTERS];
        for (value, (crm, op2)) in shown.iter_mut().zip(registers) {
            let register = SystemRegister {
                op0: 3,
                op1: 0,
                crn: 0,
                crm,
                op2,
            };
            *value = visible(register, host(crm, op2), ipa_bits);
        }
        Self(shown)
    }

    /// What `register` reads as; zero where it is none of them.
    #[inline]
    pub fn get(&self, register: SystemRegister) -> u64 {
        if !is_id_register(register) {
            return 0;
        }
        let index = usize::from(register.crm - 1) * 8 + usize::from(register.op2);
        self.0.get(index).copied().unwrap_or(0)
    }
}

/// What a guest reads in `register`, of which its CPU says `host`, where its addresses have
/// `ipa_bits` bits. Zero for a register that is reserved, or not known here.
pub fn visible(register: SystemRegister, host: u64, ipa_bits: u32) -> u64 {
    let (crm, op2) = (register.crm, register.op2);
    if !is_id_register(register) {
        return 0;
    }
    if crm < 4 {
        let masked = AARCH32_MASKED
            .iter()
            .find(|row| (row.0, row.1) == (crm, op2));
        return host & !masked.map_or(0, |(_, _, mask)| *mask);
    }
    let shown = AARCH64.iter().find(|row| (row.0, row.1) == (crm, op2));
    let fields = shown.map_or(&[][..], |(_, _, fields)| *fields);
    fields.iter().fold(0, |value, (low, rule)| {
        let field = (host >> low) & 0xf;
        value | rule.apply(field, ipa_bits) << low
    })
}

impl Rule {
    /// What is shown of the CPU's `field`, four bits.
    fn apply(self, field: u64, ipa_bits: u32) -> u64 {
        match self {
            UpTo(max) => field.min(max.into()),
            SignedUpTo(max) => {
                // Sign-extended from four bits, and back to four.
                let signed = (field << 60).cast_signed() >> 60;
                signed.min(max.into()).cast_unsigned() & 0xf
            }
            Always(value) => value.into(),
            IpaSize => field.min(pa_range(ipa_bits)),
        }
    }
}

/// The largest `PARange` that addresses of so many bits hold (Arm ARM, ID_AA64MMFR0_EL1).
const fn pa_range(bits: u32) -> u64 {
    match bits {
        0..36 => 0,
        36..40 => 1,
        40..42 => 2,
        42..44 => 3,
        44..48 => 4,
        // 52 bits come with LPA2 or 64 KiB pages, and are not shown.
        _ => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn id(crm: u8, op2: u8) -> SystemRegister {
        SystemRegister {
            op0: 3,
            op1: 0,
            crn: 0,
            crm,
            op2,
        }
    }

    /// The field of four bits from bit `low`.
    fn field(value: u64, low: u32) -> u64 {
        (value >> low) & 0xf
    }

    /// Registers as QEMU's `max` has them, which has nearly everything.
    const MAX: [(u8, u8, u64); 5] = [
        (4, 0, 0x1201_1111_2111_0022),
        (4, 1, 0x0000_0001_1112_0321),
        (5, 0, 0x0000_0000_10f0_f61a),
        (7, 0, 0x2100_0212_2012_2126),
        (7, 3, 0x0000_0000_0000_2211),
    ];

    fn max(crm: u8, op2: u8) -> u64 {
        let row = MAX.iter().find(|row| (row.0, row.1) == (crm, op2));
        visible(id(crm, op2), row.unwrap().2, 48)
    }

    #[test]
    fn a_guest_sees_no_exception_level_above_its_own() {
        assert_eq!(field(max(4, 0), 8), 0, "EL2");
        assert_eq!(field(max(4, 0), 12), 0, "EL3");
        assert_eq!(field(max(4, 0), 4), 1, "EL1 in AArch64 only");
        assert_eq!(field(max(4, 0), 0), 2, "EL0 in AArch32 too");
    }

    #[test]
    fn ras_is_shown_in_its_first_version_and_sme_mpam_amu_not_at_all() {
        assert_eq!(field(max(4, 0), 28), 1);
        assert_eq!((field(max(4, 0), 40), field(max(4, 0), 44)), (0, 0));
        assert_eq!(field(max(4, 1), 24), 0);
    }

    #[test]
    fn there_is_no_pmu_and_no_double_lock_but_there_are_breakpoints() {
        let dfr0 = max(5, 0);
        assert_eq!(field(dfr0, 8), 0);
        assert_eq!(field(dfr0, 36), 0xf);
        assert_eq!(field(dfr0, 12), field(0x10f0_f61a, 12));
        assert_eq!(field(dfr0, 0), 10);
    }

    #[test]
    fn addresses_are_no_longer_than_the_stage_2_input() {
        for (bits, range) in [
            (32, 0),
            (36, 1),
            (40, 2),
            (42, 3),
            (44, 4),
            (48, 5),
            (52, 5),
        ] {
            assert_eq!(field(visible(id(7, 0), 6, bits), 0), range);
        }
        assert_eq!(field(visible(id(7, 0), 2, 48), 0), 2, "nor than the CPU's");
    }

    #[test]
    fn a_signed_field_keeps_its_not_implemented() {
        let none = visible(id(4, 0), 0xf << 16 | 0xf << 20, 48);
        assert_eq!((field(none, 16), field(none, 20)), (0xf, 0xf));
        // TGran4: 1 is LPA2, which is hidden; -1 is no 4 KiB pages at all.
        assert_eq!(field(visible(id(7, 0), 1 << 28, 48), 28), 0);
        assert_eq!(field(visible(id(7, 0), 0xf << 28, 48), 28), 0xf);
    }

    #[test]
    fn unknown_and_reserved_registers_are_zero() {
        for (crm, op2) in [(4, 3), (5, 1), (5, 7), (6, 3), (7, 3), (7, 4), (7, 7)] {
            assert_eq!(visible(id(crm, op2), u64::MAX, 48), 0, "{crm} {op2}");
        }
        let elsewhere = SystemRegister { crn: 1, ..id(4, 0) };
        assert!(!is_id_register(elsewhere));
        assert_eq!(visible(elsewhere, u64::MAX, 48), 0);
    }

    #[test]
    fn no_field_is_in_the_table_twice_or_leaves_its_register() {
        for (crm, op2, fields) in AARCH64 {
            let mut seen = 0_u64;
            for (low, _) in *fields {
                assert!(*low <= 60, "{crm} {op2}");
                let mask = 0xf << low;
                assert_eq!(seen & mask, 0, "{crm} {op2} bit {low}");
                seen |= mask;
            }
        }
    }

    #[test]
    fn every_register_is_found_where_it_was_put() {
        let host = |crm: u8, op2: u8| (u64::from(crm) << 8 | u64::from(op2)) * 0x0001_0001_0001;
        let all = IdRegisters::new(host, 48);
        for crm in 1..8 {
            for op2 in 0..8 {
                let shown = visible(id(crm, op2), host(crm, op2), 48);
                assert_eq!(all.get(id(crm, op2)), shown, "{crm} {op2}");
            }
        }
        assert_eq!(all.get(id(1, 0)), host(1, 0) & !0xfff0_0000);
        for elsewhere in [id(0, 0), id(8, 0), SystemRegister { op0: 2, ..id(1, 0) }] {
            assert_eq!(all.get(elsewhere), 0);
        }
    }

    proptest! {
        /// A guest that trusts its ID registers can never be wrong in using what they show.
        #[test]
        fn nothing_is_shown_that_the_cpu_has_not(crm in 4_u8..8, op2 in 0_u8..8, host: u64) {
            let shown = visible(id(crm, op2), host, 48);
            for low in (0..64).step_by(4) {
                let (shown, host) = (field(shown, low), field(host, low));
                let signed = |value: u64| (value << 60).cast_signed() >> 60;
                let double_lock = (crm, op2, low) == (5, 0, 36);
                prop_assert!(shown <= host || signed(shown) <= signed(host) || double_lock);
            }
        }
    }
}

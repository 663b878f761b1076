//! System registers and system instructions by their encoding (Arm ARM C5.1.2), and which of them
//! a guest of Cordon must never get at.

/// A place in the space of MRS, MSR, SYS and SYSL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the names of the encoding are all there is to say"
)]
pub struct Place {
    pub op0: u8,
    pub op1: u8,
    pub crn: u8,
    pub crm: u8,
    pub op2: u8,
}

/// `ret`
pub const RET: u32 = 0xd65f_03c0;
/// `isb`
pub const ISB: u32 = 0xd503_3fdf;

/// How many places there are for one value of op0.
pub const PLACES: u32 = 1 << 14;

impl Place {
    /// The place of this number below [`PLACES`]; further bits are ignored.
    pub const fn new(op0: u8, number: u32) -> Self {
        Self {
            op0: op0 & 3,
            op1: (number >> 11 & 7) as u8,
            crn: (number >> 7 & 0xf) as u8,
            crm: (number >> 3 & 0xf) as u8,
            op2: (number & 7) as u8,
        }
    }

    const fn instruction(self, is_read: bool, register: u8) -> u32 {
        0xd500_0000
            | (is_read as u32) << 21
            | (self.op0 as u32) << 19
            | (self.op1 as u32) << 16
            | (self.crn as u32) << 12
            | (self.crm as u32) << 8
            | (self.op2 as u32) << 5
            | register as u32 & 0x1f
    }

    /// `mrs Xn, <place>`, or `sysl` where op0 is 1.
    pub const fn read(self, register: u8) -> u32 {
        self.instruction(true, register)
    }

    /// `msr <place>, Xn`, or `sys` where op0 is 1.
    pub const fn write(self, register: u8) -> u32 {
        self.instruction(false, register)
    }

    /// Whether this is in the space of feature ID registers, of which a CPU with FEAT_IDST reports an
    /// undefined read as a trapped one (Arm ARM D19.1.3, EC 0x18).
    pub const fn is_identification(self) -> bool {
        matches!(
            (self.op0, self.op1, self.crn, self.crm),
            (3, 0 | 1 | 3, 0, 0..=7)
        )
    }

    /// Whether EL1 has no access by the encoding alone: op1 4 and 5 are EL2's, 6 is EL3's and 7
    /// Secure EL1's (Arm ARM table C5-1).
    pub const fn belongs_above(self) -> bool {
        self.op1 >= 4
    }

    /// Whether this is part of a feature that no guest of Cordon has, because it shows or moves what
    /// is not the guest's: performance and activity monitors, profiling and trace, branch records,
    /// limited ordering, resource partitioning, and what an implementation added.
    pub const fn is_of_missing_feature(self) -> bool {
        let Self {
            op0,
            op1,
            crn,
            crm,
            op2,
        } = self;
        match (op0, op1, crn, crm) {
            // TRC*, BRBE.
            (2, 1, _, _) => true,
            // PMCR_EL0 to PMOVSSET_EL0, event counters and their types.
            (3, 3, 9, 12..=14) | (3, 3, 14, 8..=15) => true,
            // PMINTENSET_EL1, PMINTENCLR_EL1, PMMIR_EL1.
            (3, 0, 9, 14) => true,
            // AMCR_EL0 and the counters.
            (3, 3, 13, 2..=15) => true,
            // PMS*, PMB*, TRB*.
            (3, 0, 9, 8..=11) => true,
            // TRFCR_EL1.
            (3, 0, 1, 2) if op2 == 1 => true,
            // LORSA_EL1 to LORID_EL1; MPAM*.
            (3, 0, 10, 4 | 5) => true,
            // S3_<op1>_C11_*, S3_<op1>_C15_*.
            (3, 0..=3, 11 | 15, _) => true,
            _ => false,
        }
    }

    /// Why another value than its own must not be written here by a guest that wants to go on.
    pub const fn keeps_its_value(self) -> Option<&'static str> {
        let Self {
            op0,
            op1,
            crn,
            crm,
            op2,
        } = self;
        Some(match (op0, op1, crn, crm, op2) {
            (3, 0, 1, 0, 0 | 3) => "SCTLR_EL1, SCTLR2_EL1: the MMU",
            (3, 0, 1, 0, 2) => "CPACR_EL1: what the other instructions under test need",
            (3, 0, 2, 0, _) => "TTBR0_EL1, TTBR1_EL1, TCR_EL1, TCR2_EL1: its address space",
            (3, 0, 2, 5, _) => "GCS",
            (3, 0, 10, 2 | 3, _) => "MAIR_EL1, AMAIR_EL1, PIR: its memory's attributes",
            (3, 0, 12, 0, 0) => "VBAR_EL1: its vectors",
            (3, 0, 13, 0, 4) => "TPIDR_EL1: which vCPU it is",
            (3, 0, 4, 2 | 3, _) => "SPSel, PAN, UAO, ALLINT: PSTATE",
            (3, 3, 4, 2, 1) => "DAIF: PSTATE",
            (2, 0, 0, 2, 2) => "MDSCR_EL1: single steps of the code that restores it",
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Place {
        Place {
            op0,
            op1,
            crn,
            crm,
            op2,
        }
    }

    #[test]
    fn instructions_are_what_the_assembler_makes() {
        // mrs x0, midr_el1; mrs x5, cntvct_el0; msr vbar_el1, x1; tlbi vmalle1; at s1e1r, x1.
        assert_eq!(place(3, 0, 0, 0, 0).read(0), 0xd538_0000);
        assert_eq!(place(3, 3, 14, 0, 2).read(5), 0xd53b_e045);
        assert_eq!(place(3, 0, 12, 0, 0).write(1), 0xd518_c001);
        assert_eq!(place(1, 0, 8, 7, 0).write(31), 0xd508_871f);
        assert_eq!(place(1, 0, 7, 8, 0).write(1), 0xd508_7801);
    }

    #[test]
    fn numbers_name_every_place_once() {
        let mut seen = std::collections::HashSet::new();
        for number in 0..PLACES {
            assert!(seen.insert(Place::new(3, number).read(0)));
        }
        assert_eq!(Place::new(3, PLACES - 1), place(3, 7, 15, 15, 7));
    }

    #[test]
    fn what_is_elsewheres_is_known() {
        assert!(place(3, 4, 1, 1, 0).belongs_above(), "HCR_EL2");
        assert!(!place(3, 0, 1, 0, 0).belongs_above(), "SCTLR_EL1");
        assert!(place(3, 3, 9, 12, 0).is_of_missing_feature(), "PMCR_EL0");
        assert!(!place(3, 3, 13, 0, 2).is_of_missing_feature(), "TPIDR_EL0");
        assert!(!place(3, 3, 14, 0, 2).is_of_missing_feature(), "CNTVCT_EL0");
        assert!(place(3, 0, 13, 0, 4).keeps_its_value().is_some());
        assert!(place(3, 1, 0, 0, 7).is_identification(), "AIDR_EL1");
        assert!(!place(3, 0, 1, 0, 0).is_identification(), "SCTLR_EL1");
        assert_eq!(place(3, 0, 6, 0, 0).keeps_its_value(), None, "FAR_EL1");
    }
}

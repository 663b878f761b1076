//! Entering EL2 as the hardware would when it takes an exception to it.
//!
//! Firmware-first firmware that has finished with an error hands it on by making the exception
//! that the hardware would have taken to EL2, had `SCR_EL3.EA` been 0. The functions here say what
//! `AArch64.TakeException` (Arm ARM J1.1) would do: which vector and which PSTATE. They are given
//! the registers and touch none.

/// `SPSR_ELx.M[3:0]` bits: SP_ELx rather than SP_EL0.
const SPSR_SP: u64 = 1 << 0;
/// AArch32 state.
const SPSR_NRW: u64 = 1 << 4;
/// D, A, I and F.
const SPSR_DAIF: u64 = 0xf << 6;
const SPSR_A: u64 = 1 << 8;
const SPSR_SSBS: u64 = 1 << 12;
const SPSR_ALLINT: u64 = 1 << 13;
const SPSR_PAN: u64 = 1 << 22;
/// DIT where the exception came from AArch64.
const SPSR_DIT: u64 = 1 << 24;
/// DIT where it came from AArch32.
const SPSR_DIT_AARCH32: u64 = 1 << 21;
const SPSR_TCO: u64 = 1 << 25;
const SPSR_NZCV: u64 = 0xf << 28;
const SPSR_PM: u64 = 1 << 32;
const SPSR_EXLOCK: u64 = 1 << 34;
/// EL2, its own stack pointer.
const MODE_EL2H: u64 = 0b1001;

const SCTLR_SPAN: u64 = 1 << 23;
const SCTLR_DSSBS: u64 = 1 << 44;
const SCTLR_SPINTMASK: u64 = 1 << 62;
const HCR_AMO: u64 = 1 << 5;
const HCR_TGE: u64 = 1 << 27;
const HCR_RW: u64 = 1 << 31;
const HCR_E2H: u64 = 1 << 34;
const GCSCR_EXLOCKEN: u64 = 1 << 6;

/// The state of the normal world at EL1 and EL2, PSTATE: EL2h with D, A, I and F masked. A CPU
/// enters with it, and an exception masks the same bits.
pub const ENTRY_PSTATE: u64 = SPSR_DAIF | MODE_EL2H;

/// Which bits of PSTATE the CPU has; the others are RES0 in an SPSR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PstateFeatures {
    /// FEAT_SSBS.
    pub ssbs: bool,
    /// FEAT_MTE: PSTATE.TCO.
    pub mte: bool,
    /// FEAT_NMI: PSTATE.ALLINT.
    pub nmi: bool,
    /// FEAT_GCS: PSTATE.EXLOCK.
    pub gcs: bool,
    /// FEAT_EBEP: PSTATE.PM.
    pub ebep: bool,
}

/// The registers that decide how EL2 takes an exception.
#[derive(Clone, Copy, Debug, Default)]
pub struct El2Controls {
    /// `HCR_EL2`.
    pub hcr: u64,
    /// `SCTLR_EL2`.
    pub sctlr: u64,
    /// `GCSCR_EL2`, 0 without FEAT_GCS.
    pub gcscr: u64,
    /// What PSTATE has.
    pub features: PstateFeatures,
}

impl El2Controls {
    /// EL0 is a level of the EL2 host (`ELIsInHost(EL0)`).
    const fn hosts_el0(self) -> bool {
        self.hcr & (HCR_E2H | HCR_TGE) == HCR_E2H | HCR_TGE
    }
}

/// The kind of exception: which of the four vectors of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A synchronous exception.
    Synchronous,
    /// An SError exception.
    SError,
}

/// The exception level that a `SPSR_ELx` value says the exception came from, 0 to 3.
#[must_use]
pub const fn source_el(spsr: u64) -> u8 {
    const MODE_USER: u64 = 0;
    if spsr & SPSR_NRW == 0 {
        (spsr >> 2 & 3) as u8
    } else if spsr & 0xf == MODE_USER {
        0
    } else if spsr & 0xf == 0b1010 {
        2
    } else {
        1
    }
}

/// Whether EL2 would take a physical SError now: not if it is running with PSTATE.A set, and for
/// lower levels as `HCR_EL2.AMO` or TGE routes it (Arm ARM `PhysicalSErrorTarget`).
#[must_use]
pub const fn takes_serror(spsr: u64, controls: El2Controls) -> bool {
    let routed = controls.hcr & (HCR_AMO | HCR_TGE) != 0;
    if source_el(spsr) == 2 {
        spsr & SPSR_A == 0 && routed
    } else {
        routed
    }
}

/// Offset from `VBAR_EL2` of the vector for an exception from the state in `spsr`.
#[must_use]
pub const fn vector_offset(kind: Kind, spsr: u64, controls: El2Controls) -> u64 {
    let group = if source_el(spsr) == 2 {
        if spsr & SPSR_SP != 0 { 0x200 } else { 0x000 }
    } else {
        // Not the state of the source decides, but that of the next level below EL2.
        let lower_is_aarch32 = if source_el(spsr) == 0 && controls.hosts_el0() {
            spsr & SPSR_NRW != 0
        } else {
            controls.hcr & HCR_RW == 0 && controls.hcr & HCR_TGE == 0
        };
        if lower_is_aarch32 { 0x600 } else { 0x400 }
    };
    match kind {
        Kind::Synchronous => group,
        Kind::SError => group + 0x180,
    }
}

/// PSTATE, as an SPSR, with which EL2 runs its vector.
///
/// Kept are NZCV and DIT, PAN unless EL2 asks otherwise. UAO, BTYPE, SS, IL, PPEND and PACM
/// become 0.
#[must_use]
pub const fn pstate(spsr: u64, controls: El2Controls) -> u64 {
    let El2Controls {
        sctlr,
        gcscr,
        features,
        ..
    } = controls;
    let mut new = MODE_EL2H | SPSR_DAIF | spsr & (SPSR_NZCV | SPSR_PAN);
    let dit = if spsr & SPSR_NRW == 0 {
        SPSR_DIT
    } else {
        SPSR_DIT_AARCH32
    };
    if spsr & dit != 0 {
        new |= SPSR_DIT;
    }
    // PAN is set only where EL0's permissions are checked at EL2 and SPAN does not forbid it.
    if controls.hosts_el0() && sctlr & SCTLR_SPAN == 0 {
        new |= SPSR_PAN;
    }
    if features.ssbs && sctlr & SCTLR_DSSBS != 0 {
        new |= SPSR_SSBS;
    }
    if features.mte {
        new |= SPSR_TCO;
    }
    if features.nmi && sctlr & SCTLR_SPINTMASK == 0 {
        new |= SPSR_ALLINT;
    }
    if features.ebep {
        new |= SPSR_PM;
    }
    if features.gcs && source_el(spsr) == 2 && gcscr & GCSCR_EXLOCKEN != 0 {
        new |= SPSR_EXLOCK;
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    const EL0: u64 = 0b0000;
    const EL1H: u64 = 0b0101;
    const EL2T: u64 = 0b1000;
    const EL2H: u64 = 0b1001;

    fn hcr(hcr: u64) -> El2Controls {
        El2Controls {
            hcr,
            ..El2Controls::default()
        }
    }

    #[test]
    fn the_vector_follows_from_level_stack_and_width() {
        let guest = hcr(HCR_RW);
        let sync = |spsr, controls| vector_offset(Kind::Synchronous, spsr, controls);
        assert_eq!(sync(EL2T, guest), 0x000);
        assert_eq!(sync(EL2H, guest), 0x200);
        assert_eq!(sync(EL1H, guest), 0x400);
        assert_eq!(sync(EL0, guest), 0x400);
        assert_eq!(
            sync(SPSR_NRW, guest),
            0x400,
            "AArch32 EL0 below AArch64 EL1"
        );
        assert_eq!(sync(SPSR_NRW | 3, hcr(0)), 0x600, "AArch32 EL1");
        assert_eq!(
            sync(SPSR_NRW, hcr(HCR_E2H | HCR_TGE)),
            0x600,
            "AArch32 EL0 of the host"
        );
        assert_eq!(sync(EL0, hcr(HCR_E2H | HCR_TGE)), 0x400);
        assert_eq!(vector_offset(Kind::SError, EL2H, guest), 0x380);
        assert_eq!(vector_offset(Kind::SError, EL1H, guest), 0x580);
    }

    #[test]
    fn an_serror_waits_where_el2_masks_it_or_does_not_want_it() {
        let wants = hcr(HCR_AMO | HCR_RW);
        assert!(
            takes_serror(EL1H | SPSR_DAIF, wants),
            "AMO beats the guest's mask"
        );
        assert!(takes_serror(EL2H, wants));
        assert!(!takes_serror(EL2H | SPSR_A, wants));
        assert!(!takes_serror(EL1H, hcr(HCR_RW)));
    }

    #[test]
    fn interrupts_are_masked_and_flags_kept() {
        assert_eq!(
            pstate(EL1H | SPSR_NZCV, hcr(0)),
            EL2H | SPSR_DAIF | SPSR_NZCV
        );
    }

    #[test]
    fn single_step_illegal_state_btype_and_uao_are_cleared() {
        let cleared = 1 << 21 | 1 << 20 | 0b11 << 10 | 1 << 23;
        assert_eq!(pstate(EL2H | cleared, hcr(0)), EL2H | SPSR_DAIF);
    }

    #[test]
    fn pan_is_kept_and_set_only_for_a_host_that_does_not_span() {
        let span = El2Controls {
            sctlr: SCTLR_SPAN,
            ..hcr(HCR_E2H | HCR_TGE)
        };
        assert_eq!(pstate(EL2H, hcr(HCR_E2H | HCR_TGE)) & SPSR_PAN, SPSR_PAN);
        assert_eq!(pstate(EL2H, span) & SPSR_PAN, 0);
        assert_eq!(pstate(EL2H, hcr(HCR_E2H)) & SPSR_PAN, 0);
        assert_eq!(pstate(EL2H | SPSR_PAN, span) & SPSR_PAN, SPSR_PAN);
    }

    #[test]
    fn dit_moves_to_its_aarch64_place() {
        assert_eq!(
            pstate(SPSR_NRW | SPSR_DIT_AARCH32, hcr(0)) & SPSR_DIT,
            SPSR_DIT
        );
        assert_eq!(
            pstate(EL1H | SPSR_DIT_AARCH32, hcr(0)) & SPSR_DIT,
            0,
            "that is SS"
        );
    }

    #[test]
    fn bits_of_absent_features_stay_zero() {
        let all = PstateFeatures {
            ssbs: true,
            mte: true,
            nmi: true,
            gcs: true,
            ebep: true,
        };
        let controls = El2Controls {
            sctlr: SCTLR_DSSBS,
            gcscr: GCSCR_EXLOCKEN,
            ..hcr(0)
        };
        assert_eq!(pstate(EL2H, controls), EL2H | SPSR_DAIF);
        let with_all = pstate(
            EL2H,
            El2Controls {
                features: all,
                ..controls
            },
        );
        let expected = SPSR_SSBS | SPSR_TCO | SPSR_ALLINT | SPSR_PM | SPSR_EXLOCK;
        assert_eq!(with_all, EL2H | SPSR_DAIF | expected);
        let masked = El2Controls {
            sctlr: SCTLR_SPINTMASK,
            features: all,
            ..hcr(0)
        };
        assert_eq!(pstate(EL1H, masked) & (SPSR_ALLINT | SPSR_EXLOCK), 0);
    }
}

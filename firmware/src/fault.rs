//! What a granule protection fault says, and how the same access would be reported by hardware
//! that found an uncorrectable error in the page.
//!
//! Pure functions from syndrome bits to syndrome bits; no register is touched here.

use cordon::addr::Pa;
use cordon::ras::esr::AsyncErrorType;

/// `ESR_ELx.EC`: instruction abort from a lower exception level; from the same one it is one more.
pub const EC_INSTRUCTION_ABORT_LOWER: u64 = 0x20;
/// `ESR_ELx.EC`: data abort from a lower exception level; from the same one it is one more.
pub const EC_DATA_ABORT_LOWER: u64 = 0x24;
/// `ESR_EL3.EC`: granule protection check exception.
pub const EC_GPC: u64 = 0x1e;
/// `ESR_ELx.EC`: SError.
pub const EC_SERROR: u64 = 0x2f;
/// `ESR_EL3.EC`: SMC from AArch64.
pub const EC_SMC64: u64 = 0x17;
/// `ESR_ELx.IL`: a 32-bit instruction, or no instruction at all.
pub const ESR_IL: u64 = 1 << 25;

/// The exception class of a syndrome.
#[must_use]
pub const fn exception_class(esr: u64) -> u64 {
    esr >> 26 & 0x3f
}

/// ISS bits that a GPC exception and an abort have in common (Arm ARM D24.2.40, the encodings "GPC
/// exception" and "Data Abort"): WnR, S1PTW, CM. VNCR has its own place, but the same in both.
const ISS_WNR: u64 = 1 << 6;
const ISS_S1PTW: u64 = 1 << 7;
const ISS_CM: u64 = 1 << 8;
const ISS_VNCR: u64 = 1 << 13;
/// GPC exception only: the walk was one of stage 2.
const ISS_S2PTW: u64 = 1 << 21;
/// GPC exception only: an instruction fetch.
const ISS_IND: u64 = 1 << 20;

/// xFSC of a granule protection fault that was not on a translation table walk.
const XFSC_GPF: u64 = 0x28;
/// xFSC of one on a walk, at level -2 (FEAT_D128), -1, 0 to 3.
const XFSC_GPF_ON_WALK: core::ops::RangeInclusive<u64> = 0x22..=0x27;
/// xFSC of a synchronous external abort that was not on a walk.
const XFSC_SEA: u64 = 0x10;
/// How far below its GPF the code for a synchronous external abort on a walk of that level is:
/// 0x13 is level -1, 0x14 to 0x17 are levels 0 to 3.
const XFSC_GPF_TO_SEA_ON_WALK: u64 = 0x10;
const XFSC_SEA_ON_WALK_LEVEL_3: u64 = 0x17;

/// What kind of access met the poison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read,
    /// A store, or an atomic counted as one.
    Write,
    /// An instruction fetch.
    Fetch,
    /// A read of a translation table.
    Walk,
}

impl Access {
    /// Its name in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Fetch => "fetch",
            Self::Walk => "walk",
        }
    }
}

/// A granule protection fault: an access to a poisoned page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GranuleFault {
    /// The page. `MFAR_EL3` has no bits below it (Arm ARM D24.2.122).
    pub page: Pa,
    /// What kind of access it was.
    pub access: Access,
    iss: u64,
    fetch: bool,
}

/// A GPC exception that is not a granule protection fault: the table itself is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokenTable;

impl GranuleFault {
    /// Decodes `ESR_EL3` of a GPC exception and `MFAR_EL3`.
    ///
    /// # Errors
    /// [`BrokenTable`] where GPCSC names a fault of the granule protection table, not of the
    /// access, or xFSC is none that goes with a granule protection fault.
    pub fn decode(esr: u64, mfar: u64) -> Result<Self, BrokenTable> {
        const GPCSC_GPF: u64 = 0b00_1100;
        const MFAR_FPA: u64 = 0x00ff_ffff_ffff_f000;
        let gpcsc = esr >> 14 & 0x3f;
        // Bit 0 is the level of the table that gave the answer.
        if gpcsc & !1 != GPCSC_GPF {
            return Err(BrokenTable);
        }
        let xfsc = esr & 0x3f;
        let fetch = esr & ISS_IND != 0;
        let (access, xfsc) = if xfsc == XFSC_GPF {
            let access = match (fetch, esr & ISS_WNR != 0) {
                (true, _) => Access::Fetch,
                (false, true) => Access::Write,
                (false, false) => Access::Read,
            };
            (access, XFSC_SEA)
        } else if XFSC_GPF_ON_WALK.contains(&xfsc) {
            let sea = if is_guest_table(esr) {
                XFSC_SEA_ON_WALK_LEVEL_3
            } else {
                xfsc - XFSC_GPF_TO_SEA_ON_WALK
            };
            (Access::Walk, sea)
        } else {
            return Err(BrokenTable);
        };
        // An instruction abort has neither WnR nor CM nor VNCR.
        let common = if fetch {
            0
        } else {
            ISS_WNR | ISS_CM | ISS_VNCR
        };
        let s1ptw = if is_guest_table(esr) {
            0
        } else {
            esr & ISS_S1PTW
        };
        Ok(Self {
            page: Pa::new(mfar & MFAR_FPA),
            access,
            iss: esr & common | s1ptw | xfsc,
            fetch,
        })
    }

    /// `ESR_EL2` of the synchronous external abort: SET = 0b00 (recoverable), FnV = 0, as the FAR is
    /// valid, EA = 0, ISV = 0.
    #[must_use]
    pub const fn sea_syndrome(self, from_el2: bool) -> u64 {
        let lower = if self.fetch {
            EC_INSTRUCTION_ABORT_LOWER
        } else {
            EC_DATA_ABORT_LOWER
        };
        let class = lower + from_el2 as u64;
        class << 26 | ESR_IL | self.iss
    }

    /// `ESR_EL2` of the SError: AET as `kind` says, DFSC = 0x11 (Arm ARM D24.2.40, "SError").
    #[must_use]
    pub fn serror_syndrome(self, kind: AsyncErrorType) -> u64 {
        const DFSC_ASYNC: u64 = 0x11;
        EC_SERROR << 26 | ESR_IL | u64::from(kind.raw()) << 10 | DFSC_ASYNC
    }
}

/// Whether a fault on a walk, as QEMU tells it, is that of a guest's stage-1 table.
///
/// Hardware that finds the page of such a table bad reports the level of the stage-1 walk, with
/// S1PTW and S2PTW clear, since no stage-2 walk failed (Arm ARM `AArch64.S1Walk`). QEMU (11.1) sets
/// both, as for a fault of the stage-2 walk for a stage-1 walk, and gives a level that is neither
/// stage's. The guest's level is lost then, so the abort says 3, the level of all but few tables.
///
/// A page of stage-2 tables that is met in a stage-1 walk looks the same. It is the hypervisor's, which
/// sees that from the record's address.
const fn is_guest_table(esr: u64) -> bool {
    const BOTH: u64 = ISS_S1PTW | ISS_S2PTW;
    esr & BOTH == BOTH
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpc(bits: u64) -> u64 {
        EC_GPC << 26 | ESR_IL | 0b00_1101 << 14 | bits
    }

    fn decode(bits: u64) -> GranuleFault {
        GranuleFault::decode(gpc(bits), 0x8000_0080_1234_5678).unwrap()
    }

    #[test]
    fn the_page_comes_from_mfar_without_its_space_bits() {
        assert_eq!(decode(0x28).page, Pa::new(0x80_1234_5000));
    }

    #[test]
    fn a_load_of_a_guest_becomes_a_data_abort_from_below() {
        let fault = decode(0x28);
        assert_eq!(fault.access, Access::Read);
        assert_eq!(fault.sea_syndrome(false), 0x9200_0010);
        assert_eq!(fault.sea_syndrome(true), 0x9600_0010);
    }

    #[test]
    fn a_store_keeps_wnr() {
        let fault = decode(0x28 | 1 << 6);
        assert_eq!(fault.access, Access::Write);
        assert_eq!(fault.sea_syndrome(true), 0x9600_0050);
    }

    #[test]
    fn cache_maintenance_keeps_cm() {
        assert_eq!(
            decode(0x28 | 1 << 6 | 1 << 8).sea_syndrome(false),
            0x9200_0150
        );
    }

    #[test]
    fn a_fetch_becomes_an_instruction_abort() {
        let fault = decode(0x28 | 1 << 20);
        assert_eq!(fault.access, Access::Fetch);
        assert_eq!(fault.sea_syndrome(false), 0x8200_0010);
        assert_eq!(fault.sea_syndrome(true), 0x8600_0010);
    }

    #[test]
    fn each_level_of_a_walk_becomes_its_own_code() {
        for (gpf, sea) in [
            (0x22, 0x12),
            (0x23, 0x13),
            (0x24, 0x14),
            (0x25, 0x15),
            (0x27, 0x17),
        ] {
            let fault = decode(gpf);
            assert_eq!(fault.access, Access::Walk);
            assert_eq!(fault.sea_syndrome(false), 0x9200_0000 | sea);
        }
        assert_eq!(
            decode(0x24 | 1 << 7).sea_syndrome(false),
            0x9200_0094,
            "S1PTW is kept"
        );
        assert_eq!(decode(0x26 | 1 << 20).sea_syndrome(false), 0x8200_0016);
        assert_eq!(decode(0x26 | 1 << 20).access, Access::Walk);
    }

    #[test]
    fn a_guests_table_is_reported_as_one_of_its_level_3_whatever_level_is_given() {
        let both = ISS_S1PTW | ISS_S2PTW;
        for gpf in [0x24, 0x25, 0x27] {
            let fault = decode(gpf | both);
            assert_eq!(fault.access, Access::Walk);
            assert_eq!(fault.sea_syndrome(false), 0x9200_0017, "S1PTW is clear");
        }
        assert_eq!(
            decode(0x25 | both | ISS_IND).sea_syndrome(false),
            0x8200_0017
        );
    }

    #[test]
    fn a_stage_2_table_of_an_access_keeps_its_level() {
        assert_eq!(decode(0x25 | ISS_S2PTW).sea_syndrome(false), 0x9200_0015);
    }

    #[test]
    fn a_fault_of_the_table_itself_is_told_apart() {
        for gpcsc in [0b00_0000, 0b00_0100, 0b00_0101, 0b01_0100] {
            let esr = EC_GPC << 26 | ESR_IL | gpcsc << 14 | 0x28;
            assert_eq!(GranuleFault::decode(esr, 0), Err(BrokenTable));
        }
        assert_eq!(GranuleFault::decode(gpc(0x10), 0), Err(BrokenTable));
    }

    #[test]
    fn an_serror_says_what_it_is_and_is_not_imp_def() {
        for (kind, esr) in [
            (AsyncErrorType::Recoverable, 0xbe00_0c11),
            (AsyncErrorType::Restartable, 0xbe00_0811),
            (AsyncErrorType::Unrecoverable, 0xbe00_0411),
            (AsyncErrorType::Uncontainable, 0xbe00_0011),
        ] {
            assert_eq!(decode(0x28).serror_syndrome(kind), esr);
        }
    }
}

//! Instruction and Data Aborts.

use core::fmt;

use super::{bit, bits, byte, class};
use crate::addr::{Ipa, PAGE_SHIFT, PAGE_SIZE};

/// An access to memory that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    /// Who made the access.
    pub origin: Origin,
    /// What was wrong.
    pub fault: Fault,
    /// What was tried.
    pub access: Access,
    /// The access was that of a stage-1 table walk, and failed at stage 2 (`S1PTW`).
    pub stage1_walk: bool,
    /// The access was cache maintenance or address translation (`CM`).
    pub cache_maintenance: bool,
    /// External abort type, for whoever knows the CPU (`EA`).
    pub ea: bool,
    /// What the CPU knows about its own state, if the abort is external (`SET`). Reads as
    /// [`SyncErrorType::Recoverable`] on a CPU without FEAT_RAS.
    pub error_type: Option<SyncErrorType>,
    /// `PFAR_EL2` is valid (FEAT_PFAR).
    pub pfar_valid: bool,
    /// The access, in a form that can be emulated (`ISV`).
    pub mmio: Option<Mmio>,
    far_not_valid: bool,
    /// [`Fault::walk_error`], which is asked for time and again.
    walk_error: Option<Level>,
}

/// Where an exception was taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A guest, at EL1 or EL0.
    LowerLevel,
    /// Cordon, at EL2.
    SameLevel,
}

/// The kind of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load, or cache maintenance that counts as one.
    Read,
    /// A store (`WnR`).
    Write,
    /// An instruction fetch.
    Fetch,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Fetch => "fetch",
        })
    }
}

/// A level of a translation table, -1 to 3 (-2 with FEAT_D128).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(i8);

impl Level {
    /// The level whose tables map single pages.
    pub const LAST: Self = Self(3);

    /// The level `raw`, or `None` if there is none such.
    pub const fn new(raw: i8) -> Option<Self> {
        if raw >= -2 && raw <= 3 {
            Some(Self(raw))
        } else {
            None
        }
    }

    /// The number.
    pub const fn get(self) -> i8 {
        self.0
    }

    /// From the two lowest bits of a fault status code.
    const fn from_code(code: u8) -> Self {
        Self((code & 0b11).cast_signed())
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What was wrong with an access: `DFSC` or `IFSC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An address is larger than the tables or the CPU allow.
    AddressSize(Level),
    /// No translation.
    Translation(Level),
    /// The access flag is 0.
    AccessFlag(Level),
    /// The translation forbids the access.
    Permission(Level),
    /// The memory system refused the access itself.
    External,
    /// The memory system refused a table walk's access to the table of this level.
    ExternalOnWalk(Level),
    /// The data of the access was found corrupt (CPUs without FEAT_RAS).
    Parity,
    /// The data of a table of this level was found corrupt (CPUs without FEAT_RAS).
    ParityOnWalk(Level),
    /// FEAT_RME: the granule belongs to another world; on a walk, with the level.
    GranuleProtection(Option<Level>),
    /// FEAT_MTE: the tags differ.
    TagCheck,
    /// Misaligned.
    Alignment,
    /// Two TLB entries for one address: break-before-make was not followed, or
    /// FEAT_BBM level 2 makes use of its right.
    TlbConflict,
    /// FEAT_HAFDBS: the walker could not update a descriptor.
    UnsupportedUpdate,
    /// Exclusive or atomic access to memory that has none.
    UnsupportedExclusive,
    /// Any other code.
    Other(u8),
}

/// `DFSC` or `IFSC`.
fn status(esr: u64) -> u8 {
    byte(esr, 5, 0)
}

impl Fault {
    /// The fault with this translation fault's syndrome, level 0 to 3.
    #[inline]
    pub(super) fn translation(esr: u64) -> Self {
        Self::Translation(Level::from_code(status(esr)))
    }

    /// The fault with this syndrome.
    #[inline]
    pub(super) fn of(esr: u64) -> Self {
        Self::decode(status(esr))
    }

    fn decode(code: u8) -> Self {
        const MINUS_1: Level = Level(-1);
        const MINUS_2: Level = Level(-2);
        let level = Level::from_code(code);
        match code {
            0x00..=0x03 => Self::AddressSize(level),
            0x04..=0x07 => Self::Translation(level),
            0x08..=0x0b => Self::AccessFlag(level),
            0x0c..=0x0f => Self::Permission(level),
            0x10 => Self::External,
            0x11 => Self::TagCheck,
            0x12 => Self::ExternalOnWalk(MINUS_2),
            0x13 => Self::ExternalOnWalk(MINUS_1),
            0x14..=0x17 => Self::ExternalOnWalk(level),
            0x18 => Self::Parity,
            0x1b => Self::ParityOnWalk(MINUS_1),
            0x1c..=0x1f => Self::ParityOnWalk(level),
            0x21 => Self::Alignment,
            0x22 => Self::GranuleProtection(Some(MINUS_2)),
            0x23 => Self::GranuleProtection(Some(MINUS_1)),
            0x24..=0x27 => Self::GranuleProtection(Some(level)),
            0x28 => Self::GranuleProtection(None),
            0x29 => Self::AddressSize(MINUS_1),
            0x2a => Self::Translation(MINUS_2),
            0x2b => Self::Translation(MINUS_1),
            0x2c => Self::AddressSize(MINUS_2),
            0x30 => Self::TlbConflict,
            0x31 => Self::UnsupportedUpdate,
            0x35 => Self::UnsupportedExclusive,
            code => Self::Other(code),
        }
    }

    /// Whether the memory system, rather than a translation table, refused: the abort tells of an
    /// error. Parity counts, being how a CPU without FEAT_RAS says it.
    pub const fn is_external(self) -> bool {
        matches!(
            self,
            Self::External | Self::ExternalOnWalk(_) | Self::Parity | Self::ParityOnWalk(_)
        )
    }

    /// The level of the table whose walk met an error.
    pub const fn walk_error(self) -> Option<Level> {
        match self {
            Self::ExternalOnWalk(level) | Self::ParityOnWalk(level) => Some(level),
            _ => None,
        }
    }

    /// Whether the access is mapped, but not allowed.
    pub const fn is_permission(self) -> bool {
        matches!(self, Self::Permission(_))
    }

    /// Whether the hole made by containment looks like this.
    pub const fn is_translation(self) -> bool {
        matches!(self, Self::Translation(_))
    }
}

/// `SET`, Synchronous Error Type (FEAT_RAS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncErrorType {
    /// UER: the instruction can be executed again if software mends the cause.
    Recoverable,
    /// UC: the error may have gone anywhere.
    Uncontainable,
    /// UEO: the instruction can be executed again.
    Restartable,
    /// The reserved value.
    Reserved,
}

impl SyncErrorType {
    const fn from_raw(raw: u64) -> Self {
        match raw {
            0b00 => Self::Recoverable,
            0b10 => Self::Uncontainable,
            0b11 => Self::Restartable,
            _ => Self::Reserved,
        }
    }

    /// The encoding, two bits.
    pub const fn raw(self) -> u8 {
        match self {
            Self::Recoverable => 0b00,
            Self::Reserved => 0b01,
            Self::Uncontainable => 0b10,
            Self::Restartable => 0b11,
        }
    }
}

/// A load or store of one general-purpose register, as the CPU describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mmio {
    /// Bytes accessed: 1, 2, 4 or 8.
    pub size: u8,
    /// A load that sign-extends.
    pub sign_extend: bool,
    /// The register, 31 being XZR.
    pub register: u8,
    /// It is used as X, rather than W.
    pub wide: bool,
    /// A store.
    pub write: bool,
}

impl Mmio {
    #[inline]
    pub(super) fn decode(esr: u64) -> Option<Self> {
        bit(esr, 24).then(|| Self {
            size: 1 << byte(esr, 23, 22),
            sign_extend: bit(esr, 21),
            register: byte(esr, 20, 16),
            wide: bit(esr, 15),
            write: bit(esr, 6),
        })
    }

    /// What the register holds after a load that read `data`, of which only the lowest `size` bytes
    /// count.
    pub fn loaded(&self, data: u64) -> u64 {
        let unused = u64::BITS - 8 * u32::from(self.size.clamp(1, 8));
        let high = data << unused;
        let extended = if self.sign_extend {
            (high.cast_signed() >> unused).cast_unsigned()
        } else {
            high >> unused
        };
        // A load to W clears the upper half of X.
        if self.wide {
            extended
        } else {
            extended & u64::from(u32::MAX)
        }
    }

    /// What a store writes from a register that holds `register`.
    pub fn stored(&self, register: u64) -> u64 {
        let unused = u64::BITS - 8 * u32::from(self.size.clamp(1, 8));
        (register << unused) >> unused
    }
}

impl Abort {
    #[inline]
    pub(super) fn instruction(esr: u64, origin: Origin) -> Self {
        Self::common(esr, origin, Access::Fetch, Fault::of(esr))
    }

    #[inline]
    pub(super) fn data(esr: u64, origin: Origin) -> Self {
        Self::data_with(esr, origin, Fault::of(esr))
    }

    #[inline]
    fn data_with(esr: u64, origin: Origin, fault: Fault) -> Self {
        let access = if bit(esr, 6) {
            Access::Write
        } else {
            Access::Read
        };
        let lower = origin == Origin::LowerLevel;
        let mmio = Mmio::decode(esr).filter(|_| lower);
        Self {
            cache_maintenance: bit(esr, 8),
            mmio,
            // Bit 14 is PFV only where ISV is 0; otherwise it is AR.
            pfar_valid: bit(esr, 14) && !bit(esr, 24),
            ..Self::common(esr, origin, access, fault)
        }
    }

    /// A guest's abort, of the two classes alone that these have.
    #[inline]
    pub(super) fn of_guest(esr: u64, fault: Fault) -> Self {
        match bits(esr, 31, 26) {
            class::INSTRUCTION_ABORT_LOWER => {
                Self::common(esr, Origin::LowerLevel, Access::Fetch, fault)
            }
            _ => Self::data_with(esr, Origin::LowerLevel, fault),
        }
    }

    /// The fields that Instruction and Data Aborts have in the same place.
    #[inline]
    fn common(esr: u64, origin: Origin, access: Access, fault: Fault) -> Self {
        let error_type = fault
            .is_external()
            .then(|| SyncErrorType::from_raw(bits(esr, 12, 11)));
        Self {
            origin,
            fault,
            access,
            stage1_walk: bit(esr, 7),
            cache_maintenance: false,
            ea: bit(esr, 9),
            error_type,
            pfar_valid: bit(esr, 14),
            mmio: None,
            // FnV is RES0 for everything but this one code.
            far_not_valid: fault == Fault::External && bit(esr, 10),
            walk_error: fault.walk_error(),
        }
    }

    /// The level of the table whose walk met an error.
    #[inline]
    pub const fn walk_error(&self) -> Option<Level> {
        self.walk_error
    }

    /// The virtual address of the access, `far` being `FAR_EL2`, if the CPU gave one.
    pub const fn far(&self, far: u64) -> Option<u64> {
        if self.far_not_valid { None } else { Some(far) }
    }

    /// The page of the guest's address space that was accessed, `hpfar` being `HPFAR_EL2`, if the
    /// CPU gave one.
    ///
    /// It does for stage-2 translation, access-flag and address-size faults, and for a permission fault
    /// too if the access was that of a stage-1 walk (Arm ARM, pseudocode `IPAValid`). Never for an
    /// external abort. A guest's translation fault that reaches EL2 is one of stage 2, as long as
    /// `HCR_EL2.TGE` is 0.
    #[inline]
    pub fn ipa_page(&self, hpfar: u64) -> Option<Ipa> {
        let valid = match self.fault {
            Fault::Translation(_) | Fault::AccessFlag(_) | Fault::AddressSize(_) => true,
            Fault::Permission(_) => self.stage1_walk,
            _ => false,
        };
        // FIPA, bits 47 to 4, is the address from bit 12 on.
        (valid && self.origin == Origin::LowerLevel)
            .then(|| Ipa::new(bits(hpfar, 47, 4) << PAGE_SHIFT))
    }

    /// The guest's address of the access to the byte. Only the page is known for a stage-1 walk, whose
    /// own address stands nowhere: then `None`, and [`Self::ipa_page`] is what there is.
    #[inline]
    pub fn ipa(&self, hpfar: u64, far: u64) -> Option<Ipa> {
        let page = self.ipa_page(hpfar).filter(|_| !self.stage1_walk)?;
        let offset = self.far(far)? & (PAGE_SIZE - 1);
        Some(Ipa::new(page.get() | offset))
    }
}

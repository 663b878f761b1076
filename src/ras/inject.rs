//! Giving a guest an exception, as the CPU would.
//!
//! Four pure functions, one for each thing that exception entry does (Arm ARM DDI 0487 D1.3, pseudocode
//! `AArch64.TakeException`): which mode is left ([`Mode::of`]), where the vector is
//! ([`vector`]), what the syndrome says ([`ExternalAbort::syndrome`]), and what becomes of PSTATE
//! ([`entry_pstate`]). [`external_abort`] and [`undefined`] put them together.
//!
//! The target is always EL1, which Cordon runs in AArch64 (`HCR_EL2.RW` = 1); EL0 may be AArch32.
//!
//! Before a synchronous external abort is injected, its record must be where the guest looks for
//! it, or be announced by other means; that order is the caller's.

use super::esr::{
    Abort, Access, AsyncErrorType, CLASS_SHIFT, Fault, IL, Level, SyncErrorType, class,
};

#[cfg(test)]
mod tests;

bitflags::bitflags! {
    /// What the vCPU has, as its guest sees it. What is hidden from the guest must not be in here:
    /// its PSTATE bits stay 0. So each is named by its bit of PSTATE, and taking an exception is a matter of masks.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Features: u64 {
        /// FEAT_PAN.
        const PAN = pstate::PAN;
        /// FEAT_DIT.
        const DIT = pstate::DIT;
        /// FEAT_SSBS.
        const SSBS = pstate::SSBS;
        /// FEAT_MTE2.
        const MTE = pstate::TCO;
        /// FEAT_NMI.
        const NMI = pstate::ALLINT;
        /// FEAT_RAS, which has none.
        const RAS = 1 << 0;
        /// FEAT_EBEP.
        const EBEP = pstate::PM;
        /// FEAT_GCS.
        const GCS = pstate::EXLOCK;
    }
}

/// The vCPU at the moment of the trap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestState {
    /// `ELR_EL2`: the instruction that trapped.
    pub pc: u64,
    /// `SPSR_EL2`.
    pub pstate: u64,
    /// `VBAR_EL1`.
    pub vbar: u64,
    /// `SCTLR_EL1`.
    pub sctlr: u64,
    /// `SCTLR2_EL1.EASE`, if the guest has FEAT_DoubleFault2; else false.
    pub ease: bool,
    /// `GCSCR_EL1.EXLOCKEN`, if the guest has FEAT_GCS; else false.
    pub exlocken: bool,
    /// What the vCPU has.
    pub features: Features,
}

/// What to write to the vCPU's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injected {
    /// `ELR_EL2`: where the guest goes on.
    pub pc: u64,
    /// `SPSR_EL2`.
    pub pstate: u64,
    /// `ESR_EL1`.
    pub esr_el1: u64,
    /// `FAR_EL1`, unless the exception doesn't touch it.
    pub far_el1: Option<u64>,
    /// `ELR_EL1`.
    pub elr_el1: u64,
    /// `SPSR_EL1`.
    pub spsr_el1: u64,
}

/// The guest is in a mode that EL1 doesn't take exceptions from. `SPSR_EL2` holds what Cordon put
/// there or what the CPU saved, so this is an error of Cordon's, or of a debugger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadMode(pub u64);

impl core::fmt::Display for BadMode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "bad-mode:{:#x}", self.0)
    }
}

impl core::error::Error for BadMode {}

/// PSTATE as `SPSR_ELx` stores it (Arm ARM C5.2, `SPSR_EL1`, "An exception taken from AArch64 state").
pub mod pstate {
    /// `M[3:0]` of EL1 with its own stack pointer.
    pub const EL1H: u64 = 0b0101;
    /// `M[3:0]` of EL1 with `SP_EL0`.
    pub const EL1T: u64 = 0b0100;
    /// `M[3:0]` of EL0.
    pub const EL0T: u64 = 0b0000;
    /// `M[4]`: AArch32.
    pub const AARCH32: u64 = 1 << 4;
    /// FIQ mask.
    pub const F: u64 = 1 << 6;
    /// IRQ mask.
    pub const I: u64 = 1 << 7;
    /// SError mask.
    pub const A: u64 = 1 << 8;
    /// Debug mask.
    pub const D: u64 = 1 << 9;
    /// Speculative store bypass is safe.
    pub const SSBS: u64 = 1 << 12;
    /// All interrupts are masked (FEAT_NMI).
    pub const ALLINT: u64 = 1 << 13;
    /// `M[3:2]`: the exception level.
    pub const MODE_EL: u64 = 0b11 << 2;
    /// Data is in big-endian order, in AArch32.
    pub const AARCH32_E: u64 = 1 << 9;
    /// LDTR and STTR are like any other access (FEAT_UAO).
    pub const UAO: u64 = 1 << 23;
    /// Privileged access never.
    pub const PAN: u64 = 1 << 22;
    /// Data-independent timing.
    pub const DIT: u64 = 1 << 24;
    /// Tag check override.
    pub const TCO: u64 = 1 << 25;
    /// Condition flags.
    pub const NZCV: u64 = 0xf << 28;
    /// Profiling exception mask (FEAT_EBEP).
    pub const PM: u64 = 1 << 32;
    /// Exception return is locked (FEAT_GCS).
    pub const EXLOCK: u64 = 1 << 34;
}

/// Bits of `SCTLR_EL1`.
pub mod sctlr {
    /// Set privileged access never; 1 leaves PAN alone at exception entry.
    pub const SPAN: u64 = 1 << 23;
    /// Data of EL0 is in big-endian order.
    pub const E0E: u64 = 1 << 24;
    /// Data of EL1 is in big-endian order, and so are tables.
    pub const EE: u64 = 1 << 25;
    /// What becomes of a tag that does not match, at EL0 and at EL1; 0: nothing (FEAT_MTE2).
    pub const TCF0: u64 = 0b11 << 38;
    /// At EL1.
    pub const TCF: u64 = 0b11 << 40;
    /// The value of PSTATE.SSBS at exception entry.
    pub const DSSBS: u64 = 1 << 44;
    /// 1 leaves interrupts unmasked by ALLINT at exception entry (FEAT_NMI).
    pub const SPINTMASK: u64 = 1 << 62;
}

/// What the guest was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// EL0, AArch64.
    El0,
    /// EL0, AArch32.
    El0Aarch32,
    /// EL1 with `SP_EL0`.
    El1t,
    /// EL1 with its own stack pointer.
    El1h,
}

impl Mode {
    /// The mode that `pstate`, in the layout of `SPSR_EL2`, tells of.
    ///
    /// # Errors
    ///
    /// [`BadMode`]: a privileged AArch32 mode, EL2 or EL3.
    pub const fn of(pstate: u64) -> Result<Self, BadMode> {
        const AARCH32_USER: u64 = pstate::AARCH32;
        match pstate & 0x1f {
            pstate::EL0T => Ok(Self::El0),
            pstate::EL1T => Ok(Self::El1t),
            pstate::EL1H => Ok(Self::El1h),
            AARCH32_USER => Ok(Self::El0Aarch32),
            mode => Err(BadMode(mode)),
        }
    }

    const fn is_el0(self) -> bool {
        matches!(self, Self::El0 | Self::El0Aarch32)
    }

    /// Offset of the group of four vectors (Arm ARM D1.3.1.5, "Exception vectors").
    const fn vector_group(self) -> u64 {
        match self {
            Self::El1t => 0x000,
            Self::El1h => 0x200,
            Self::El0 => 0x400,
            Self::El0Aarch32 => 0x600,
        }
    }
}

/// Size of a vector.
const VECTOR_SIZE: u64 = 0x80;

/// From the synchronous vector of a group to its SError vector.
const SERROR_OFFSET: u64 = 0x180;

/// The address of the vector for a synchronous exception from `mode`. `external`: the exception is a
/// synchronous external abort, which `SCTLR2_EL1.EASE` sends to the SError vector (FEAT_DoubleFault2).
pub const fn vector(guest: &GuestState, mode: Mode, external: bool) -> u64 {
    // VBAR_EL1[10:0] is RES0.
    let base = guest.vbar & !0x7ff;
    let group = base.wrapping_add(mode.vector_group());
    if external && guest.ease {
        group.wrapping_add(SERROR_OFFSET)
    } else {
        group
    }
}

/// PSTATE in the handler. Each bit as `AArch64.TakeException` has it:
///
/// | bit | is | why |
/// |---|---|---|
/// | M | EL1h | the target level, with its own stack pointer |
/// | DAIF | 1111 | |
/// | NZCV, DIT | kept | exception entry doesn't write them |
/// | PAN | 1 if `SCTLR_EL1.SPAN` = 0, else kept | |
/// | SSBS | `SCTLR_EL1.DSSBS` | |
/// | TCO | 1 | the handler can't know whether its stack is tagged |
/// | ALLINT | not `SCTLR_EL1.SPINTMASK` | |
/// | PM | 1 | |
/// | EXLOCK | `GCSCR_EL1.EXLOCKEN` from EL1, 0 from EL0 | rule RWTXBY |
/// | UAO, SS, IL, BTYPE, PPEND, nRW | 0 | |
///
/// NZCV, DIT and PAN stand in the same places of an `SPSR` that was saved from AArch32.
#[inline(always)]
pub const fn entry_pstate(guest: &GuestState, mode: Mode) -> u64 {
    use pstate::{A, ALLINT, D, DIT, EL1H, EXLOCK, F, I, NZCV, PAN, PM, SSBS, TCO};
    let has = guest.features.bits();
    let kept = guest.pstate & (NZCV | has & (DIT | PAN));
    let mut set = TCO | PM;
    if guest.sctlr & sctlr::SPAN == 0 {
        set |= PAN;
    }
    if guest.sctlr & sctlr::DSSBS != 0 {
        set |= SSBS;
    }
    if guest.sctlr & sctlr::SPINTMASK == 0 {
        set |= ALLINT;
    }
    if guest.exlocken && !mode.is_el0() {
        set |= EXLOCK;
    }
    EL1H | D | A | I | F | kept | has & set
}

/// A synchronous external abort to be told to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExternalAbort {
    /// What was tried.
    pub access: Access,
    /// The guest's own table of this level couldn't be read; `None` if it was the access itself.
    pub walk: Option<Level>,
    /// The virtual address, if it is known.
    pub far: Option<u64>,
    /// The access was cache maintenance or address translation.
    pub cache_maintenance: bool,
    /// External abort type, as the CPU gave it.
    pub ea: bool,
    /// Synchronous error type; told to guests with FEAT_RAS.
    pub error_type: Option<SyncErrorType>,
}

impl ExternalAbort {
    /// The abort that a guest gets in place of `trap`, an abort from a lower level: either an external
    /// abort itself or the fault of touching a hole. `far_el2` is `FAR_EL2`.
    ///
    /// A hole that is touched by a stage-1 walk tells nothing of the level of that walk.
    /// `remembered_level` is the level at which the page was first consumed as a table, if it was; the
    /// last level, being that of all but few tables, stands in for what nobody knows.
    #[inline]
    pub fn from_trap(trap: &Abort, far_el2: u64, remembered_level: Option<Level>) -> Self {
        let unknown = || remembered_level.unwrap_or(Level::LAST);
        let walk = if trap.stage1_walk {
            Some(unknown())
        } else {
            trap.walk_error()
        };
        Self {
            access: trap.access,
            walk,
            far: trap.far(far_el2),
            cache_maintenance: trap.cache_maintenance,
            ea: trap.ea,
            error_type: trap.error_type,
        }
    }

    /// `ESR_EL1` for this abort, taken from `mode` (Arm ARM, `ESR_EL1`, ISS encoding for an exception
    /// from a Data Abort, and from an Instruction Abort).
    ///
    /// ISV is 0, so that bits 23 to 14 are 0; so is S1PTW, for a guest has no stage 2 of its own. IL is 1,
    /// as it is for every Instruction Abort and every Data Abort with ISV = 0.
    #[inline(always)]
    pub fn syndrome(&self, mode: Mode, features: Features) -> u64 {
        const FNV: u64 = 1 << 10;
        const EA: u64 = 1 << 9;
        let set = self
            .error_type
            .filter(|_| features.contains(Features::RAS))
            .map_or(0, |set| u64::from(set.raw()) << 11);
        let fnv = if self.far.is_none() { FNV } else { 0 };
        let ea = if self.ea { EA } else { 0 };
        (self.class(mode) << CLASS_SHIFT) | IL | set | fnv | ea | self.data_bits() | self.status()
    }

    fn class(&self, mode: Mode) -> u64 {
        match (self.access, mode.is_el0()) {
            (Access::Fetch, true) => class::INSTRUCTION_ABORT_LOWER,
            (Access::Fetch, false) => class::INSTRUCTION_ABORT_SAME,
            (_, true) => class::DATA_ABORT_LOWER,
            (_, false) => class::DATA_ABORT_SAME,
        }
    }

    /// CM and WnR, which Instruction Aborts don't have. Cache maintenance counts as a write,
    /// says the description of WnR.
    fn data_bits(&self) -> u64 {
        const CM: u64 = 1 << 8;
        const WNR: u64 = 1 << 6;
        match self.access {
            Access::Fetch => 0,
            _ if self.cache_maintenance => CM | WNR,
            Access::Write => WNR,
            Access::Read => 0,
        }
    }

    /// The fault status code. FnV exists for 0x10 alone: without an address, an error in a table is told
    /// as one of the access.
    fn status(&self) -> u64 {
        const EXTERNAL: u64 = 0x10;
        const EXTERNAL_ON_WALK: i8 = 0x14;
        self.walk
            .filter(|_| self.far.is_some())
            .and_then(|level| EXTERNAL_ON_WALK.checked_add(level.get()))
            .and_then(|code| u64::try_from(code).ok())
            .unwrap_or(EXTERNAL)
    }
}

/// The state of a guest that takes `abort` at the instruction it was about to execute.
///
/// # Errors
///
/// [`BadMode`].
#[inline(always)]
pub fn external_abort(guest: &GuestState, abort: &ExternalAbort) -> Result<Injected, BadMode> {
    let mode = Mode::of(guest.pstate)?;
    Ok(Injected {
        pc: vector(guest, mode, true),
        pstate: entry_pstate(guest, mode),
        esr_el1: abort.syndrome(mode, guest.features),
        // UNKNOWN with FnV; 0 rather than what was there before.
        far_el1: Some(abort.far.unwrap_or(0)),
        elr_el1: guest.pc,
        spsr_el1: guest.pstate,
    })
}

/// Why memory of a type does not take an access that the guest's own tables let pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Device memory takes aligned accesses alone.
    Alignment,
    /// The memory takes no exclusive or atomic access of this kind.
    UnsupportedExclusive,
}

impl Refusal {
    /// The one that `fault` tells of.
    pub const fn of(fault: Fault) -> Option<Self> {
        match fault {
            Fault::Alignment => Some(Self::Alignment),
            Fault::UnsupportedExclusive => Some(Self::UnsupportedExclusive),
            _ => None,
        }
    }

    /// `DFSC`, which the guest is told as if its own stage 1 gave the type: it knows of no stage 2.
    pub const fn status(self) -> u8 {
        match self {
            Self::Alignment => 0x21,
            Self::UnsupportedExclusive => 0x35,
        }
    }
}

/// The state of a guest that takes a Data Abort of its own stage 1 at the instruction it was about to execute:
/// at `far`, with `status` as its fault status code. IL is 1, as ISV is 0.
///
/// # Errors
///
/// [`BadMode`].
pub fn stage1_fault(
    guest: &GuestState,
    far: u64,
    write: bool,
    status: u8,
) -> Result<Injected, BadMode> {
    let abort = ExternalAbort {
        access: if write { Access::Write } else { Access::Read },
        walk: None,
        far: Some(far),
        cache_maintenance: false,
        ea: false,
        error_type: None,
    };
    let mode = Mode::of(guest.pstate)?;
    let iss = abort.data_bits() | u64::from(status & 0x3f);
    Ok(Injected {
        pc: vector(guest, mode, false),
        esr_el1: abort.class(mode) << CLASS_SHIFT | IL | iss,
        ..external_abort(guest, &abort)?
    })
}

/// The state of a guest whose current instruction is undefined (class 0, no syndrome, IL = 1).
///
/// # Errors
///
/// [`BadMode`].
pub fn undefined(guest: &GuestState) -> Result<Injected, BadMode> {
    let mode = Mode::of(guest.pstate)?;
    Ok(Injected {
        pc: vector(guest, mode, false),
        pstate: entry_pstate(guest, mode),
        esr_el1: (class::UNKNOWN << CLASS_SHIFT) | IL,
        far_el1: None,
        elr_el1: guest.pc,
        spsr_el1: guest.pstate,
    })
}

/// Whether the guest was executing the very vector that an external abort would take it to: the handler
/// itself is lost, and injecting would go on for ever.
#[inline]
pub fn handler_is_lost(guest: &GuestState) -> bool {
    Mode::of(guest.pstate).is_ok_and(|mode| {
        !mode.is_el0() && guest.pc.wrapping_sub(vector(guest, mode, true)) < VECTOR_SIZE
    })
}

/// `VSESR_EL2` for a virtual SError of type `error_type` (FEAT_RAS): `AET`, and the `DFSC` that says that
/// `AET` is valid.
pub fn virtual_serror(error_type: AsyncErrorType) -> u64 {
    const ASYNCHRONOUS: u64 = 0x11;
    (u64::from(error_type.raw()) << 10) | ASYNCHRONOUS
}

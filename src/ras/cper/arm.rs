//! ARM processor sections (UEFI 2.10 N.2.4.4).
//!
//! A section is a head, error information of 32 bytes each, register contexts of any size, and the
//! vendor's bytes. All lengths are checked against each other when the section is parsed, so that
//! walking it afterwards cannot fail. Kernels have crashed over sections that are too short for what
//! they claim to hold.

use core::fmt;
use core::mem::size_of;

use super::wire;
use super::{CperError, What, valid};
use crate::addr::Pa;

/// What an ARM processor section says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArmProcessor<'a> {
    /// The processor's `MPIDR_EL1`.
    pub mpidr: Option<u64>,
    /// The affinity level up to which processors share the failing part, 0 to 3.
    pub affinity_level: Option<u8>,
    /// Its `MIDR_EL1`.
    pub midr: u64,
    /// Whether it is running.
    pub running: Option<bool>,
    /// If it is not: its PSCI state.
    pub psci_state: Option<u32>,
    infos: &'a [u8],
    contexts: &'a [u8],
    /// The vendor's bytes.
    pub vendor: &'a [u8],
}

/// Validation bits of the section.
pub(super) const MPIDR: u32 = 0;
pub(super) const AFFINITY_LEVEL: u32 = 1;
pub(super) const RUNNING_STATE: u32 = 2;
const VENDOR: u32 = 3;

/// `Running State` bit 0.
pub(super) const RUNNING: u32 = 1 << 0;

impl<'a> ArmProcessor<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, CperError> {
        let (head, _) = wire::prefix::<wire::ArmProcessor>(bytes, What::ArmProcessor)?;
        let claimed = usize::try_from(head.section_length.get()).unwrap_or(usize::MAX);
        let section = bytes.get(..claimed).ok_or(CperError::Truncated {
            what: What::ArmProcessor,
            need: claimed,
            have: bytes.len(),
        })?;
        let body = section
            .get(size_of::<wire::ArmProcessor>()..)
            .ok_or(CperError::BadLength {
                what: What::ArmProcessor,
                length: claimed,
            })?;
        let (infos, rest) = split(body, head.error_info_count.get(), info_size)?;
        let (contexts, vendor) = split(rest, head.context_count.get(), context_size)?;
        let v = u64::from(head.validation.get());
        let running = valid(v, RUNNING_STATE, head.running_state.get() & RUNNING != 0);
        Ok(Self {
            mpidr: valid(v, MPIDR, head.mpidr.get()),
            affinity_level: valid(v, AFFINITY_LEVEL, head.affinity_level),
            midr: head.midr.get(),
            running,
            psci_state: (running == Some(false)).then_some(head.psci_state.get()),
            infos,
            contexts,
            vendor: valid(v, VENDOR, vendor).unwrap_or(&[]),
        })
    }

    /// The errors.
    pub fn errors(&self) -> ErrorInfos<'a> {
        ErrorInfos { rest: self.infos }
    }

    /// The register contexts.
    pub fn contexts(&self) -> ArmContexts<'a> {
        ArmContexts {
            rest: self.contexts,
        }
    }
}

/// Splits `count` structures off `bytes`, the size of each being told by `size_of_first`.
fn split(
    bytes: &[u8],
    count: u16,
    size_of_first: fn(&[u8]) -> Result<usize, CperError>,
) -> Result<(&[u8], &[u8]), CperError> {
    let mut rest = bytes;
    for _ in 0..count {
        let size = size_of_first(rest)?;
        // The size has been checked against `rest`, and is not 0.
        rest = rest.get(size..).unwrap_or(&[]);
    }
    let taken = bytes.len() - rest.len();
    Ok(bytes.split_at(taken))
}

/// The size of the error information at the start of `bytes`, at least 32.
fn info_size(bytes: &[u8]) -> Result<usize, CperError> {
    let what = What::ArmErrorInfo;
    let (info, _) = wire::prefix::<wire::ArmErrorInfo>(bytes, what)?;
    let length = usize::from(info.length);
    if length < size_of::<wire::ArmErrorInfo>() {
        return Err(CperError::BadLength { what, length });
    }
    within(bytes, what, length)
}

/// The size of the context at the start of `bytes`, with its head.
fn context_size(bytes: &[u8]) -> Result<usize, CperError> {
    let what = What::ArmContext;
    let (head, _) = wire::prefix::<wire::ArmContext>(bytes, what)?;
    let array = usize::try_from(head.array_size.get()).unwrap_or(usize::MAX);
    within(
        bytes,
        what,
        array.saturating_add(size_of::<wire::ArmContext>()),
    )
}

fn within(bytes: &[u8], what: What, need: usize) -> Result<usize, CperError> {
    if need > bytes.len() {
        let have = bytes.len();
        return Err(CperError::Truncated { what, need, have });
    }
    Ok(need)
}

/// The errors of a section, in order.
#[derive(Clone, Debug)]
pub struct ErrorInfos<'a> {
    rest: &'a [u8],
}

impl Iterator for ErrorInfos<'_> {
    type Item = ErrorInfo;

    fn next(&mut self) -> Option<ErrorInfo> {
        // Nothing in here fails: the section was walked when it was parsed.
        let size = info_size(self.rest).ok()?;
        let (info, _) = wire::prefix::<wire::ArmErrorInfo>(self.rest, What::ArmErrorInfo).ok()?;
        self.rest = self.rest.get(size..)?;
        Some(ErrorInfo::from_wire(&info))
    }
}

/// One error of an ARM processor section (UEFI 2.10 N.2.4.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorInfo {
    /// What failed. A set: an error can belong to the cache and to the bus.
    pub kind: ErrorKind,
    /// How many errors this stands for: 0 is one, 1 is many, more is their number.
    pub multiple: Option<u16>,
    /// Flags.
    pub flags: Option<ErrorFlags>,
    /// Details, whose layout depends on `kind` (UEFI 2.10 N.2.4.4.1.1 ff).
    pub details: Option<u64>,
    /// The virtual address of the access.
    pub virtual_address: Option<u64>,
    /// The physical address of the access.
    pub physical_address: Option<Pa>,
}

/// Validation bits of one error.
pub(super) mod info_bit {
    pub(in super::super) const MULTIPLE: u32 = 0;
    pub(in super::super) const FLAGS: u32 = 1;
    pub(in super::super) const DETAILS: u32 = 2;
    pub(in super::super) const VIRTUAL_ADDRESS: u32 = 3;
    pub(in super::super) const PHYSICAL_ADDRESS: u32 = 4;
}

impl ErrorInfo {
    fn from_wire(wire: &wire::ArmErrorInfo) -> Self {
        use info_bit::{DETAILS, FLAGS, MULTIPLE, PHYSICAL_ADDRESS, VIRTUAL_ADDRESS};
        let v = u64::from(wire.validation.get());
        Self {
            kind: ErrorKind::from_bits_retain(wire.kind),
            multiple: valid(v, MULTIPLE, wire.multiple.get()),
            flags: valid(v, FLAGS, ErrorFlags::from_bits_retain(wire.flags)),
            details: valid(v, DETAILS, wire.error_information.get()),
            virtual_address: valid(v, VIRTUAL_ADDRESS, wire.virtual_address.get()),
            physical_address: valid(v, PHYSICAL_ADDRESS, Pa::new(wire.physical_address.get())),
        }
    }

    /// The page of memory that is lost by this error: that of a cache error with a physical
    /// address. An error of the TLB or of the core loses no memory, and what a bus error
    /// means for memory is not said.
    pub fn poisoned_page(&self) -> Option<Pa> {
        let address = self.physical_address?;
        self.kind
            .contains(ErrorKind::CACHE)
            .then_some(address.page())
    }
}

bitflags::bitflags! {
    /// The part of a processor that failed. A bitmap since UEFI 2.9A; records of older firmware, which
    /// counted 0 to 3, cannot be told apart and are read as bitmaps too.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ErrorKind: u8 {
        /// Cache.
        const CACHE = 1 << 1;
        /// TLB.
        const TLB = 1 << 2;
        /// Bus.
        const BUS = 1 << 3;
        /// Anything else in the core.
        const MICROARCHITECTURE = 1 << 4;
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [(ErrorKind, &str); 4] = [
            (ErrorKind::CACHE, "cache"),
            (ErrorKind::TLB, "tlb"),
            (ErrorKind::BUS, "bus"),
            (ErrorKind::MICROARCHITECTURE, "microarchitecture"),
        ];
        let mut separator = "";
        for (_, name) in NAMES.iter().filter(|(kind, _)| self.contains(*kind)) {
            write!(f, "{separator}{name}")?;
            separator = "+";
        }
        let unnamed = self.difference(Self::all()).bits();
        if unnamed != 0 || self.is_empty() {
            write!(f, "{separator}reserved-{unnamed:#x}")?;
        }
        Ok(())
    }
}

bitflags::bitflags! {
    /// Where an error stands in a series.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ErrorFlags: u8 {
        /// The first that was captured.
        const FIRST = 1 << 0;
        /// The last that was captured.
        const LAST = 1 << 1;
        /// It has spread beyond the processor.
        const PROPAGATED = 1 << 2;
        /// There were more than could be recorded.
        const OVERFLOW = 1 << 3;
    }
}

/// The register contexts of a section, in order.
#[derive(Clone, Debug)]
pub struct ArmContexts<'a> {
    rest: &'a [u8],
}

/// Registers at the time of the error (UEFI 2.10 N.2.4.4.2), not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArmContext<'a> {
    /// Which registers: 4 is the general-purpose ones, 5 to 7 those of EL1 to EL3.
    pub kind: u16,
    /// Their values.
    pub registers: &'a [u8],
}

impl<'a> Iterator for ArmContexts<'a> {
    type Item = ArmContext<'a>;

    fn next(&mut self) -> Option<ArmContext<'a>> {
        let size = context_size(self.rest).ok()?;
        let (context, rest) = self.rest.split_at_checked(size)?;
        let (head, registers) = wire::prefix::<wire::ArmContext>(context, What::ArmContext).ok()?;
        self.rest = rest;
        Some(ArmContext {
            kind: head.kind.get(),
            registers,
        })
    }
}

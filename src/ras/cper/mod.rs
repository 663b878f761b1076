//! Common Platform Error Records, as firmware hands them to system software: a Generic Error Status
//! Block (ACPI 6.5 section 18.3.2.7) that holds sections of UEFI 2.10 Appendix N.
//!
//! Reading: [`StatusBlock::parse`] checks the frame, [`StatusBlock::sections`] yields one
//! [`Section`] or one [`CperError`] at a time. A section that is wrong inside costs only itself; a
//! frame that is wrong ends the walk, for nobody knows where the next section would begin. Nothing
//! in here allocates or panics, whatever the bytes are; it is fuzzed (`fuzz/`, target `cper`).
//!
//! Writing: [`BlockWriter`] makes blocks from the same typed values that reading yields.
//!
//! Showing: [`Section::line`] is one line of `key=value`, [`Section::report`] is for people.
//!
//! The bytes must be private to the caller before they are parsed: firmware, or another CPU, may
//! rewrite the original at any time. [`crate::ras::ghes`] sees to that.

mod arm;
mod block;
mod display;
mod guid;
mod memory;
mod pcie;
mod timestamp;
mod wire;
mod write;

#[cfg(test)]
mod tests;

use core::fmt;

pub use arm::{
    ArmContext, ArmContexts, ArmProcessor, ErrorFlags, ErrorInfo, ErrorInfos, ErrorKind,
};
pub use block::{
    BlockStatus, Body, FruText, Gist, HEADER_SIZE, Losses, Section, SectionFlags, Sections,
    StatusBlock,
};
pub use display::{Line, Report};
pub use guid::Guid;
pub use memory::{Memory, MemoryErrorType, MemoryFormat, RangeError};
pub use pcie::{Pcie, PcieDevice};
pub use timestamp::Timestamp;
pub use write::{ArmRecord, BlockWriter, SectionHead, WriteError};

/// Section types (UEFI 2.10 N.2.2, "Section Type").
pub mod section_type {
    use super::Guid;

    /// Platform Memory Error Section, UEFI 2.10 N.2.5.
    pub const MEMORY: Guid = Guid::new(
        0xa5bc_1114,
        0x6f64,
        0x4ede,
        [0xb8, 0x63, 0x3e, 0x83, 0xed, 0x7c, 0x83, 0xb1],
    );
    /// Platform Memory Error Section 2, UEFI 2.10 N.2.6.
    pub const MEMORY2: Guid = Guid::new(
        0x61ec_04fc,
        0x48e6,
        0xd813,
        [0x25, 0xc9, 0x8d, 0xaa, 0x44, 0x75, 0x0b, 0x12],
    );
    /// ARM Processor Error Section, UEFI 2.10 N.2.4.4.
    pub const ARM_PROCESSOR: Guid = Guid::new(
        0xe19e_3d16,
        0xbc11,
        0x11e4,
        [0x9c, 0xaa, 0xc2, 0x05, 0x1d, 0x5d, 0x46, 0xb0],
    );
    /// PCI Express Error Section, UEFI 2.10 N.2.7.
    pub const PCIE: Guid = Guid::new(
        0xd995_e954,
        0xbbc1,
        0x430f,
        [0xad, 0x91, 0xb4, 0x4d, 0xcb, 0x3c, 0x6f, 0x35],
    );
}

/// How bad an error is, for the whole block or for one section (ACPI 6.5 18.3.2.7, "Error
/// Severity"). Ordered from harmless to fatal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Nothing was wrong; the record is information.
    Informational,
    /// Hardware repaired the data. Nothing is lost, but more may follow.
    Corrected,
    /// Data is lost, the machine is not: contain it and go on.
    Recoverable,
    /// The error could not be contained.
    Fatal,
}

impl Severity {
    /// The severity that `raw` encodes, or `None` for a reserved value.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::Recoverable),
            1 => Some(Self::Fatal),
            2 => Some(Self::Corrected),
            3 => Some(Self::Informational),
            _ => None,
        }
    }

    /// The encoding in a record.
    pub const fn raw(self) -> u32 {
        match self {
            Self::Recoverable => 0,
            Self::Fatal => 1,
            Self::Corrected => 2,
            Self::Informational => 3,
        }
    }

    /// Whether data is lost.
    pub const fn is_uncorrected(self) -> bool {
        matches!(self, Self::Recoverable | Self::Fatal)
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Informational => "informational",
            Self::Corrected => "corrected",
            Self::Recoverable => "recoverable",
            Self::Fatal => "fatal",
        })
    }
}

/// The part of a record that an error speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Generic Error Status Block.
    StatusBlock,
    /// The raw data of a Generic Error Status Block.
    RawData,
    /// Generic Error Data Entry: the head of a section.
    DataEntry,
    /// What follows that head.
    Body,
    /// Platform Memory Error Section.
    Memory,
    /// Platform Memory Error Section 2.
    Memory2,
    /// ARM Processor Error Section.
    ArmProcessor,
    /// Error information in an ARM Processor Error Section.
    ArmErrorInfo,
    /// Register context in an ARM Processor Error Section.
    ArmContext,
    /// PCI Express Error Section.
    Pcie,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::StatusBlock => "status-block",
            Self::RawData => "raw-data",
            Self::DataEntry => "data-entry",
            Self::Body => "body",
            Self::Memory => "memory",
            Self::Memory2 => "memory2",
            Self::ArmProcessor => "arm-processor",
            Self::ArmErrorInfo => "arm-error-info",
            Self::ArmContext => "arm-context",
            Self::Pcie => "pcie",
        })
    }
}

/// Why bytes are not the record that they claim to be. `Display` has no blanks, so that it can be
/// the value of a `why=` key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CperError {
    /// `what` takes `need` bytes, of which only `have` are inside the enclosing thing.
    Truncated {
        /// The part that does not fit.
        what: What,
        /// Its size in bytes.
        need: usize,
        /// Bytes there are.
        have: usize,
    },
    /// `what` has a length of `length` bytes, which no version of it has.
    BadLength {
        /// The part that is wrong.
        what: What,
        /// Its claimed length in bytes.
        length: usize,
    },
    /// The severity of `what` is a reserved value.
    BadSeverity {
        /// The block or a section.
        what: What,
        /// The value found.
        raw: u32,
    },
    /// The raw data lies over the headers or the sections of its block.
    RawDataOverlaps {
        /// Where it claims to begin, in bytes from the start of the block.
        offset: usize,
    },
}

impl fmt::Display for CperError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { what, need, have } => {
                write!(f, "truncated:{what}:need-{need}:have-{have}")
            }
            Self::BadLength { what, length } => write!(f, "bad-length:{what}:{length}"),
            Self::BadSeverity { what, raw } => write!(f, "bad-severity:{what}:{raw:#x}"),
            Self::RawDataOverlaps { offset } => write!(f, "raw-data-overlaps:{offset:#x}"),
        }
    }
}

impl core::error::Error for CperError {}

/// `value` where bit `bit` of the record's validation bits says that it is filled in.
#[inline]
fn valid<T>(validation: u64, bit: u32, value: T) -> Option<T> {
    (validation & (1 << bit) != 0).then_some(value)
}

//! The Hardware Error Source Table (ACPI 6.5 section 18.3.2): where firmware reports errors.
//!
//! Cordon needs the generic sources, GHES and GHESv2. The sources of other architectures and of PCI
//! Express are walked over, for which the length of every type is needed: an entry doesn't tell it.
//! A type that nobody knows therefore ends the walk, with an error; what came before it stays good.
//!
//! The table is firmware's word. A source whose addresses Cordon cannot use is an error of its own
//! and the walk goes on behind it.

use core::fmt;
use core::mem::size_of;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

mod generic;
#[cfg(test)]
mod tests;

pub use generic::{GenericSource, Notification, ReadAck};
use generic::{WireAck, WireGhes};

/// ACPI 6.5 Table 5.4 (System Description Table Header), then 18.3.2 (HEST).
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireHeader {
    signature: [u8; 4],
    length: U32,
    revision: u8,
    checksum: u8,
    oem: [u8; 26],
    source_count: U32,
}
const _: () = assert!(size_of::<WireHeader>() == 40);

/// Why a table, or a source in it, cannot be used. `Display` has no blanks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HestError {
    /// The bytes begin with another signature.
    NotHest,
    /// The table claims more bytes than there are, or fewer than its head has.
    BadLength {
        /// The length it claims.
        claimed: u32,
        /// Bytes there are.
        have: usize,
    },
    /// The bytes don't add up to 0.
    BadChecksum,
    /// The table ends in the middle of source number `index`, or before it.
    SourceTruncated {
        /// Counted from 0.
        index: u32,
    },
    /// A type whose length is unknown; the sources behind it cannot be found.
    UnknownType {
        /// Counted from 0.
        index: u32,
        /// The type.
        kind: u16,
    },
    /// The generic source `id` has an address that Cordon cannot use.
    BadAddress {
        /// The source.
        id: u16,
        /// Which of its addresses.
        register: Register,
        /// What is wrong with it.
        why: AddressError,
    },
    /// The generic source `id` has a block too short for the head of a record.
    BlockTooShort {
        /// The source.
        id: u16,
        /// Its length in bytes.
        length: u32,
    },
}

/// The registers of a generic source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Error Status Address: holds the address of the block.
    Status,
    /// Read Ack: where system software says that it has taken the record.
    ReadAck,
}

/// What is wrong with a Generic Address Structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// It is 0.
    Zero,
    /// It is not in system memory but in this address space.
    NotMemory(u8),
    /// It is not accessed as 64 bits: the access size code, 3 being 32 bits.
    AccessSize(u8),
    /// These bits, offset and width, are not what the register must have.
    Bits {
        /// Bit offset.
        offset: u8,
        /// Bit width.
        width: u8,
    },
    /// Not a multiple of 8, so that an access would not be atomic.
    Unaligned,
}

impl fmt::Display for HestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotHest => f.write_str("not-hest"),
            Self::BadLength { claimed, have } => write!(f, "bad-length:{claimed}:have-{have}"),
            Self::BadChecksum => f.write_str("bad-checksum"),
            Self::SourceTruncated { index } => write!(f, "source-truncated:{index}"),
            Self::UnknownType { index, kind } => write!(f, "unknown-type:{index}:{kind}"),
            Self::BadAddress { id, register, why } => {
                let register = match register {
                    Register::Status => "status",
                    Register::ReadAck => "read-ack",
                };
                write!(f, "bad-address:{id}:{register}:{why}")
            }
            Self::BlockTooShort { id, length } => write!(f, "block-too-short:{id}:{length}"),
        }
    }
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero => f.write_str("zero"),
            Self::NotMemory(space) => write!(f, "space-{space}"),
            Self::AccessSize(size) => write!(f, "access-size-{size}"),
            Self::Bits { offset, width } => write!(f, "bits-{offset}-{width}"),
            Self::Unaligned => f.write_str("unaligned"),
        }
    }
}

impl core::error::Error for HestError {}

/// A HEST whose head has been checked.
#[derive(Clone, Copy, Debug)]
pub struct Hest<'a> {
    sources: &'a [u8],
    count: u32,
}

impl<'a> Hest<'a> {
    /// Checks signature, length and checksum of the table at the start of `bytes`.
    ///
    /// # Errors
    ///
    /// [`HestError::NotHest`], [`HestError::BadLength`], [`HestError::BadChecksum`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, HestError> {
        let bad_length = |claimed| HestError::BadLength {
            claimed,
            have: bytes.len(),
        };
        let (header, _) = WireHeader::read_from_prefix(bytes).map_err(|_| bad_length(0))?;
        if header.signature != *b"HEST" {
            return Err(HestError::NotHest);
        }
        let claimed = header.length.get();
        let table = usize::try_from(claimed)
            .ok()
            .and_then(|length| bytes.get(..length))
            .ok_or(bad_length(claimed))?;
        let sources = table
            .get(size_of::<WireHeader>()..)
            .ok_or(bad_length(claimed))?;
        if table
            .iter()
            .fold(0, |sum: u8, &byte| sum.wrapping_add(byte))
            != 0
        {
            return Err(HestError::BadChecksum);
        }
        Ok(Self {
            sources,
            count: header.source_count.get(),
        })
    }

    /// The sources, in order.
    pub fn sources(&self) -> Sources<'a> {
        Sources {
            rest: self.sources,
            index: 0,
            count: self.count,
        }
    }
}

/// The sources of a table, in order. Ends after an error that leaves the next source unfindable.
#[derive(Clone, Debug)]
pub struct Sources<'a> {
    rest: &'a [u8],
    index: u32,
    count: u32,
}

impl Iterator for Sources<'_> {
    type Item = Result<Source, HestError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.index >= self.count {
            return None;
        }
        let index = self.index;
        let bytes = self.rest;
        match entry_length(bytes, index) {
            Ok(length) => {
                self.index = index.saturating_add(1);
                self.rest = bytes.get(length..).unwrap_or(&[]);
                Some(Source::decode(bytes, index))
            }
            Err(error) => {
                self.index = self.count;
                Some(Err(error))
            }
        }
    }
}

/// The length of the source at the start of `bytes`, which is no more than `bytes` has.
fn entry_length(bytes: &[u8], index: u32) -> Result<usize, HestError> {
    const BANK: usize = 28;
    let truncated = HestError::SourceTruncated { index };
    let (kind, _) = read::<U16>(bytes, index)?;
    let banks = |offset: usize| bytes.get(offset).copied().map(usize::from).ok_or(truncated);
    // ACPI 6.5 18.3.2.1 to 18.3.2.10; the machine-check types end in a list of banks.
    let length = match kind.get() {
        0 => 40 + BANK * banks(32)?,
        1 | 11 => 48 + BANK * banks(44)?,
        2 => 20,
        6 => 48,
        7 => 44,
        8 => 56,
        GHES => size_of::<WireGhes>(),
        GHES_V2 => size_of::<WireGhes>() + size_of::<WireAck>(),
        kind => return Err(HestError::UnknownType { index, kind }),
    };
    if length > bytes.len() {
        return Err(truncated);
    }
    Ok(length)
}

/// The `T` at the start of source number `index`, and what follows it.
fn read<T: FromBytes + KnownLayout + Immutable>(
    bytes: &[u8],
    index: u32,
) -> Result<(T, &[u8]), HestError> {
    T::read_from_prefix(bytes).map_err(|_| HestError::SourceTruncated { index })
}

const GHES: u16 = 9;
const GHES_V2: u16 = 10;

/// An error source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A generic source, version 1 or 2.
    Generic(GenericSource),
    /// Any other, by its type.
    Other(u16),
}

impl Source {
    fn decode(bytes: &[u8], index: u32) -> Result<Self, HestError> {
        let (kind, _) = read::<U16>(bytes, index)?;
        let kind = kind.get();
        if kind != GHES && kind != GHES_V2 {
            return Ok(Self::Other(kind));
        }
        let (ghes, rest) = read::<WireGhes>(bytes, index)?;
        let read_ack = if kind == GHES_V2 {
            let (ack, _) = read::<WireAck>(rest, index)?;
            Some(ReadAck::decode(ghes.id.get(), &ack)?)
        } else {
            None
        };
        GenericSource::decode(&ghes, read_ack).map(Self::Generic)
    }
}

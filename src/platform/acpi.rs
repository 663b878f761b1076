//! ACPI tables: where HEST is, and what MADT says about CPUs and interrupt controller.
//!
//! The `acpi` crate reads tables through references into physical memory and believes what it
//! finds there: it maps as many bytes as a table says it has, steps through MADT by each entry's
//! own length and makes a reference of the entry's full type whatever that length was. So two
//! steps lead to it:
//!
//! 1. [`CheckedTables::new`], here and safe, reads bytes through [`PhysicalBytes`] and proves that
//!    RSDP, XSDT, every table's header and all of MADT and HEST are what the crate relies on:
//!    mapped, long enough, summing to zero, MADT's entries filling it exactly, with
//!    [`MADT_SLACK`] more mapped bytes behind it than it has.
//! 2. Only with that value the image calls the crate's one `unsafe` door,
//!    `AcpiTables::from_rsdp(handler, tables.rsdp())`, with a handler over the same memory, and
//!    gives the result to [`Madt::read`].
//!
//! HEST has no reader in the crate (and an `AcpiTable` of our own would need `unsafe`), so its
//! bytes come from [`CheckedTables::hest`].
//!
//! Sections are of the ACPI Specification 6.5.

mod madt;

use core::fmt;

use crate::addr::{Pa, PaRange};
pub use madt::Madt;

/// Most tables that an XSDT may list.
pub const MAX_TABLES: usize = 256;

/// Largest MADT or HEST in bytes.
pub const MAX_TABLE_SIZE: u32 = 1 << 20;

/// How many bytes behind MADT must be mapped: what the crate's largest entry type, a GICC of
/// revision 6, may reach beyond an older and shorter one at the very end.
pub const MADT_SLACK: usize = size_of::<acpi::madt::GiccEntry>();

const RSDP_SIZE: usize = 36;
const RSDP_V1_SIZE: usize = 20;
const HEADER_SIZE: usize = 36;
const MADT_HEADER_SIZE: usize = 44;

/// Where the FADT has the address of the DSDT (5.2.9): of 32 bits, and of 64, which counts if it is there.
const FADT_DSDT: usize = 40;
const FADT_X_DSDT: usize = 140;

/// Physical memory that may be read: RAM that firmware keeps its tables in.
pub trait PhysicalBytes {
    /// The `len` bytes from `start`, or `None` where they are not all mapped, ordinary memory.
    fn bytes(&self, start: Pa, len: usize) -> Option<&[u8]>;
}

/// Which structure an error is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 4]);

impl Signature {
    /// Root System Description Pointer; its first four of eight letters.
    pub const RSDP: Self = Self(*b"RSD ");
    /// Extended System Description Table.
    pub const XSDT: Self = Self(*b"XSDT");
    /// Multiple APIC Description Table.
    pub const MADT: Self = Self(*b"APIC");
    /// Hardware Error Source Table.
    pub const HEST: Self = Self(*b"HEST");
    /// Fixed ACPI Description Table.
    pub const FADT: Self = Self(*b"FACP");
    /// Differentiated System Description Table.
    pub const DSDT: Self = Self(*b"DSDT");
    /// Generic Timer Description Table.
    pub const GTDT: Self = Self(*b"GTDT");
    /// Serial Port Console Redirection table.
    pub const SPCR: Self = Self(*b"SPCR");
    /// PCI Express memory-mapped configuration space base address description table.
    pub const MCFG: Self = Self(*b"MCFG");

    /// Whether `table` begins with it.
    pub fn is_of(self, table: &[u8]) -> bool {
        table.starts_with(&self.0)
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Firmware wrote these bytes, so they may be anything; a value must stay one, and not empty.
        let shown = |byte: u8| byte.is_ascii_graphic() && byte != b'=';
        self.0
            .iter()
            .filter(|byte| **byte != b' ')
            .map(|byte| if shown(*byte) { char::from(*byte) } else { '?' })
            .try_for_each(|letter| write!(f, "{letter}"))?;
        if self.0 == *b"    " {
            f.write_str("?")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({self})")
    }
}

/// Why the tables are not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// The table, or the part of it that is named first, is not in readable memory.
    NotMapped {
        /// The table, as far as known.
        table: Signature,
        /// Where it should be.
        at: Pa,
    },
    /// The signature is not the one expected there.
    BadSignature {
        /// What was expected.
        table: Signature,
    },
    /// ACPI 1.0, which has no XSDT.
    TooOld,
    /// Shorter than its own header, longer than is believed, or not a whole number of entries.
    BadLength {
        /// The table.
        table: Signature,
        /// The length that it says it has, in bytes.
        length: u32,
    },
    /// The bytes do not sum to zero.
    BadChecksum {
        /// The table.
        table: Signature,
    },
    /// An OEM field of the header is not UTF-8, which the reader asks for.
    BadOemId {
        /// The table.
        table: Signature,
    },
    /// More than [`MAX_TABLES`].
    TooManyTables,
    /// An entry of MADT is shorter than its type or leaves the table.
    BadMadtEntry {
        /// Its offset in the table.
        at: usize,
    },
    /// A CPU's MPIDR has bits that are no affinity.
    BadMpidr {
        /// The value found.
        value: u64,
    },
    /// A region of redistributors is empty or wraps around.
    BadRedistributors {
        /// Where it begins.
        start: Pa,
    },
    /// MADT is not there, although the tables are.
    NoMadt,
}

impl fmt::Display for AcpiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMapped { table, at } => write!(f, "why=not-mapped table={table} pa={at}"),
            Self::BadSignature { table } => write!(f, "why=bad-signature table={table}"),
            Self::TooOld => f.write_str("why=too-old"),
            Self::BadLength { table, length } => {
                write!(f, "why=bad-length table={table} length={length}")
            }
            Self::BadChecksum { table } => write!(f, "why=bad-checksum table={table}"),
            Self::BadOemId { table } => write!(f, "why=bad-oem-id table={table}"),
            Self::TooManyTables => f.write_str("why=too-many-tables"),
            Self::BadMadtEntry { at } => write!(f, "why=bad-madt-entry at={at:#x}"),
            Self::BadMpidr { value } => write!(f, "why=bad-mpidr value={value:#x}"),
            Self::BadRedistributors { start } => write!(f, "why=bad-redistributors pa={start}"),
            Self::NoMadt => f.write_str("why=no-madt"),
        }
    }
}

impl core::error::Error for AcpiError {}

/// Tables that the `acpi` crate may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckedTables {
    rsdp: Pa,
    tables: usize,
    madt: Option<PaRange>,
    hest: Option<PaRange>,
    /// The first of each of [`Self::READ_LATER`].
    others: [Option<Pa>; 4],
}

impl CheckedTables {
    /// Tables that are looked for, and checked when somebody reads them.
    const READ_LATER: [Signature; 4] = [
        Signature::FADT,
        Signature::GTDT,
        Signature::SPCR,
        Signature::MCFG,
    ];

    /// Checks everything that can be reached from the RSDP at `rsdp`.
    ///
    /// # Errors
    /// The first thing found wrong, as [`AcpiError`].
    pub fn new(memory: &dyn PhysicalBytes, rsdp: Pa) -> Result<Self, AcpiError> {
        let xsdt_at = check_rsdp(memory, rsdp)?;
        let xsdt = read_table(memory, xsdt_at, Signature::XSDT, MAX_XSDT_SIZE)?;
        let entries = xsdt.get(HEADER_SIZE..).unwrap_or_default();
        let (entries, rest) = entries.as_chunks::<8>();
        if !rest.is_empty() {
            let length = u32::try_from(xsdt.len()).unwrap_or(u32::MAX);
            return Err(AcpiError::BadLength {
                table: Signature::XSDT,
                length,
            });
        }
        let mut checked = Self {
            rsdp,
            tables: entries.len(),
            madt: None,
            hest: None,
            others: [None; 4],
        };
        for entry in entries {
            checked.check_table(memory, Pa::new(u64::from_le_bytes(*entry)))?;
        }
        Ok(checked)
    }

    /// Where the RSDP is.
    pub fn rsdp(&self) -> Pa {
        self.rsdp
    }

    /// How many tables the XSDT lists.
    pub fn len(&self) -> usize {
        self.tables
    }

    /// Whether the XSDT lists nothing.
    pub fn is_empty(&self) -> bool {
        self.tables == 0
    }

    /// Where the Hardware Error Source Table is. Its length and checksum are right; what its
    /// entries say is for their reader to judge.
    pub fn hest(&self) -> Option<PaRange> {
        self.hest
    }

    /// Where the MADT is.
    pub fn madt(&self) -> Option<PaRange> {
        self.madt
    }

    /// The bytes of the first FADT, GTDT, SPCR or MCFG, whose length and checksum are right; `None` where there is
    /// none, or for another signature.
    ///
    /// # Errors
    /// What is wrong with it, as [`AcpiError`].
    pub fn table<'m>(
        &self,
        memory: &'m dyn PhysicalBytes,
        signature: Signature,
    ) -> Result<Option<&'m [u8]>, AcpiError> {
        let known = Self::READ_LATER.iter().zip(self.others);
        let mut found = known.filter(|(known, _)| **known == signature);
        let at = found.next().and_then(|(_, at)| at);
        at.map(|at| read_table(memory, at, signature, MAX_TABLE_SIZE))
            .transpose()
    }

    /// The bytes of the DSDT, to which the FADT points (5.2.9); `None` where there is no FADT. Length and
    /// checksum of both are right.
    ///
    /// # Errors
    /// What is wrong with either, as [`AcpiError`].
    pub fn dsdt<'m>(&self, memory: &'m dyn PhysicalBytes) -> Result<Option<&'m [u8]>, AcpiError> {
        let Some(fadt) = self.table(memory, Signature::FADT)? else {
            return Ok(None);
        };
        let at = match u64_at(fadt, FADT_X_DSDT) {
            0 => u64::from(u32_at(fadt, FADT_DSDT)),
            at => at,
        };
        read_table(memory, Pa::new(at), Signature::DSDT, MAX_TABLE_SIZE).map(Some)
    }

    /// Checks one table of the list. Of a kind that nobody reads, only the header matters: the
    /// crate looks at the signature and passes on. The first MADT and the first HEST count.
    fn check_table(&mut self, memory: &dyn PhysicalBytes, at: Pa) -> Result<(), AcpiError> {
        let (signature, length) = read_header(memory, at)?;
        for (known, place) in Self::READ_LATER.iter().zip(&mut self.others) {
            if *known == signature {
                *place = place.or(Some(at));
            }
        }
        if signature != Signature::MADT && signature != Signature::HEST {
            return Ok(());
        }
        let table = read_table(memory, at, signature, MAX_TABLE_SIZE)?;
        let range = PaRange::new(at, u64::from(length));
        if signature == Signature::HEST {
            self.hest = self.hest.or(range);
            return Ok(());
        }
        check_madt(table)?;
        let not_mapped = AcpiError::NotMapped {
            table: signature,
            at,
        };
        let with_slack = table.len().checked_add(MADT_SLACK).ok_or(not_mapped)?;
        memory.bytes(at, with_slack).ok_or(not_mapped)?;
        self.madt = self.madt.or(range);
        Ok(())
    }
}

/// The longest XSDT: a header and [`MAX_TABLES`] addresses.
const MAX_XSDT_SIZE: u32 = (HEADER_SIZE + 8 * MAX_TABLES) as u32;

/// Checks the RSDP (5.2.5.3) and returns where the XSDT is.
fn check_rsdp(memory: &dyn PhysicalBytes, at: Pa) -> Result<Pa, AcpiError> {
    let table = Signature::RSDP;
    let rsdp = memory
        .bytes(at, RSDP_SIZE)
        .ok_or(AcpiError::NotMapped { table, at })?;
    if !rsdp.starts_with(b"RSD PTR ") {
        return Err(AcpiError::BadSignature { table });
    }
    if rsdp.get(15).is_none_or(|revision| *revision < 2) {
        return Err(AcpiError::TooOld);
    }
    // The crate sums as many bytes as this says, in a structure that has 36.
    let length = u32_at(rsdp, 20);
    if usize::try_from(length) != Ok(RSDP_SIZE) {
        return Err(AcpiError::BadLength { table, length });
    }
    if sum(rsdp) != 0 || sum(rsdp.get(..RSDP_V1_SIZE).unwrap_or_default()) != 0 {
        return Err(AcpiError::BadChecksum { table });
    }
    check_text(rsdp.get(9..15), table)?;
    Ok(Pa::new(u64_at(rsdp, 24)))
}

/// Signature and length of the table at `at` (5.2.6), which has at least its header.
fn read_header(memory: &dyn PhysicalBytes, at: Pa) -> Result<(Signature, u32), AcpiError> {
    let unknown = Signature(*b"????");
    let not_mapped = AcpiError::NotMapped { table: unknown, at };
    let header = memory.bytes(at, HEADER_SIZE).ok_or(not_mapped)?;
    let table = Signature(*header.first_chunk().ok_or(not_mapped)?);
    let length = u32_at(header, 4);
    if usize::try_from(length).is_ok_and(|length| length < HEADER_SIZE) {
        return Err(AcpiError::BadLength { table, length });
    }
    Ok((table, length))
}

/// All bytes of the table at `at`, which is a `table` of at most `max` bytes and sums to zero.
fn read_table(
    memory: &dyn PhysicalBytes,
    at: Pa,
    table: Signature,
    max: u32,
) -> Result<&[u8], AcpiError> {
    let (signature, length) = read_header(memory, at)?;
    if signature != table {
        return Err(AcpiError::BadSignature { table });
    }
    if length > max {
        return Err(if table == Signature::XSDT {
            AcpiError::TooManyTables
        } else {
            AcpiError::BadLength { table, length }
        });
    }
    let len = usize::try_from(length).map_err(|_| AcpiError::BadLength { table, length })?;
    let bytes = memory
        .bytes(at, len)
        .ok_or(AcpiError::NotMapped { table, at })?;
    if sum(bytes) != 0 {
        return Err(AcpiError::BadChecksum { table });
    }
    check_text(bytes.get(10..16), table)?;
    check_text(bytes.get(16..24), table)?;
    Ok(bytes)
}

/// MADT (5.2.12): a header of 44 bytes, then entries of a type, a length and the rest, which fill
/// the table exactly. Those that [`Madt`] reads have all the fields that it reads.
fn check_madt(madt: &[u8]) -> Result<(), AcpiError> {
    let length = u32::try_from(madt.len()).unwrap_or(u32::MAX);
    let too_short = AcpiError::BadLength {
        table: Signature::MADT,
        length,
    };
    let mut entries = madt.get(MADT_HEADER_SIZE..).ok_or(too_short)?;
    while !entries.is_empty() {
        let at = madt.len() - entries.len();
        let len = entries.get(1).map(|len| usize::from(*len));
        let least = match entries.first() {
            Some(0xb) => GICC_SIZE,
            Some(0xc) => GICD_SIZE,
            Some(0xe) => GICR_SIZE,
            _ => 2,
        };
        let rest = len
            .filter(|len| *len >= least)
            .and_then(|len| entries.get(len..));
        entries = rest.ok_or(AcpiError::BadMadtEntry { at })?;
    }
    Ok(())
}

/// Length in bytes of the oldest GICC (ACPI 5.1: it ends with the MPIDR), of GICD and of GICR.
const GICC_SIZE: usize = 76;
const GICD_SIZE: usize = 24;
const GICR_SIZE: usize = 16;

fn check_text(text: Option<&[u8]>, table: Signature) -> Result<(), AcpiError> {
    let text = text.unwrap_or_default();
    core::str::from_utf8(text)
        .map(|_| ())
        .map_err(|_| AcpiError::BadOemId { table })
}

fn sum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

/// The little-endian word at `at`, or 0 outside of `bytes`.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let chunk = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    chunk.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let chunk = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    chunk.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests;

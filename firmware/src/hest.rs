//! Finds, in the ACPI tables that QEMU built, where a consumed memory error is to be reported.
//!
//! That is the generic hardware error source, version 2, that is notified by a synchronous external
//! abort (ACPI 6.5 section 18.3.2.8). The way there is RSDP, XSDT, HEST, then the source's error
//! status address, which holds the address of the status block.
//!
//! The tables are read once, before the normal world runs.

use cordon::addr::{Pa, PaRange};

/// Reads the memory that the tables lie in.
pub trait Memory {
    /// Fills `out` from `from` on, or returns `None` where that is not all memory the firmware
    /// can reach.
    fn read(&self, from: Pa, out: &mut [u8]) -> Option<()>;
}

/// Where records for consumed errors go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeaSource {
    /// The error status block.
    pub block: PaRange,
    /// The read-ack register, in memory.
    pub ack: Pa,
    /// The bits by which the reader says that it has read: set by it, cleared by the writer.
    pub ack_mask: u64,
}

/// Why there is no such source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// A table lies where no memory is, or is shorter than what it must hold.
    Unreadable,
    /// The RSDP's or a table's signature or checksum is wrong.
    BadTable,
    /// There is no HEST: the machine was started without `ras=on`.
    NoHest,
    /// A source of an unknown type comes before one that is notified by SEA; its length is
    /// unknown.
    UnknownSource,
    /// No source is notified by SEA.
    NoSeaSource,
    /// Its registers are not in memory, or its status block has no address.
    Unsupported,
}

impl Error {
    /// Its name in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::BadTable => "bad-table",
            Self::NoHest => "no-hest",
            Self::UnknownSource => "unknown-source",
            Self::NoSeaSource => "no-sea-source",
            Self::Unsupported => "unsupported",
        }
    }
}

const TABLE_HEADER: u64 = 36;
/// QEMU's tables are a few KiB; more entries or sources are not to be believed.
const MAX_ENTRIES: u64 = 256;

/// Follows the tables from the RSDP.
///
/// # Errors
/// [`Error`].
pub fn find_sea_source(memory: &impl Memory, rsdp: Pa) -> Result<SeaSource, Error> {
    let reader = Reader { memory };
    let mut signature = [0; 8];
    reader.bytes(rsdp, 0, &mut signature)?;
    if signature != *b"RSD PTR " || reader.sum(rsdp, 36)? != 0 {
        return Err(Error::BadTable);
    }
    let xsdt = Pa::new(reader.u64(rsdp, 24)?);
    let length = reader.table(xsdt, *b"XSDT")?;
    for entry in 0..(length.saturating_sub(TABLE_HEADER) / 8).min(MAX_ENTRIES) {
        let table = Pa::new(reader.u64(xsdt, TABLE_HEADER + 8 * entry)?);
        let mut signature = [0; 4];
        reader.bytes(table, 0, &mut signature)?;
        if signature == *b"HEST" {
            return find_in_hest(&reader, table);
        }
    }
    Err(Error::NoHest)
}

fn find_in_hest<M: Memory>(reader: &Reader<'_, M>, hest: Pa) -> Result<SeaSource, Error> {
    const GHES_V2: u16 = 10;
    const NOTIFY_SEA: u8 = 8;
    let length = reader.table(hest, *b"HEST")?;
    let sources = u64::from(reader.u32(hest, TABLE_HEADER)?).min(MAX_ENTRIES);
    let mut at = TABLE_HEADER + 4;
    for _ in 0..sources {
        let kind = reader.u16(hest, at)?;
        let size = source_size(reader, hest, at, kind)?;
        if at + size > length {
            return Err(Error::Unreadable);
        }
        let enabled = reader.u8(hest, at + 7)? != 0;
        if kind == GHES_V2 && enabled && reader.u8(hest, at + 32)? == NOTIFY_SEA {
            return parse_source(reader, hest, at);
        }
        at += size;
    }
    Err(Error::NoSeaSource)
}

/// The size of a source structure (ACPI 6.5 section 18.3.2).
fn source_size<M: Memory>(
    reader: &Reader<'_, M>,
    hest: Pa,
    at: u64,
    kind: u16,
) -> Result<u64, Error> {
    let banks = |offset| {
        reader
            .u8(hest, at + offset)
            .map(|banks| 28 * u64::from(banks))
    };
    match kind {
        0 => Ok(40 + banks(32)?),
        1 | 11 => Ok(48 + banks(44)?),
        2 => Ok(20),
        6 => Ok(48),
        7 => Ok(44),
        8 => Ok(56),
        9 => Ok(64),
        10 => Ok(92),
        _ => Err(Error::UnknownSource),
    }
}

fn parse_source<M: Memory>(reader: &Reader<'_, M>, hest: Pa, at: u64) -> Result<SeaSource, Error> {
    let status_address = reader.memory_gas(hest, at + 20)?;
    let ack = reader.memory_gas(hest, at + 64)?;
    let block_length = u64::from(reader.u32(hest, at + 60)?);
    let ack_mask = reader.u64(hest, at + 84)?;
    let block = reader.u64(status_address, 0)?;
    if block == 0 || ack_mask == 0 {
        return Err(Error::Unsupported);
    }
    let block = PaRange::new(Pa::new(block), block_length).ok_or(Error::Unsupported)?;
    Ok(SeaSource {
        block,
        ack,
        ack_mask,
    })
}

/// Little-endian fields of tables.
struct Reader<'a, M> {
    memory: &'a M,
}

impl<M: Memory> Reader<'_, M> {
    fn bytes(&self, table: Pa, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        let at = table.checked_add(offset).ok_or(Error::Unreadable)?;
        self.memory.read(at, out).ok_or(Error::Unreadable)
    }

    fn array<const N: usize>(&self, table: Pa, offset: u64) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.bytes(table, offset, &mut bytes)?;
        Ok(bytes)
    }

    fn u8(&self, table: Pa, offset: u64) -> Result<u8, Error> {
        self.array(table, offset).map(|[byte]| byte)
    }

    fn u16(&self, table: Pa, offset: u64) -> Result<u16, Error> {
        self.array(table, offset).map(u16::from_le_bytes)
    }

    fn u32(&self, table: Pa, offset: u64) -> Result<u32, Error> {
        self.array(table, offset).map(u32::from_le_bytes)
    }

    fn u64(&self, table: Pa, offset: u64) -> Result<u64, Error> {
        self.array(table, offset).map(u64::from_le_bytes)
    }

    /// The address of a register whose generic address structure says that it is 64 bits of
    /// memory (ACPI 6.5 table 5.1).
    fn memory_gas(&self, table: Pa, offset: u64) -> Result<Pa, Error> {
        const SYSTEM_MEMORY: u8 = 0;
        let [space, width, bit_offset, _] = self.array(table, offset)?;
        let address = self.u64(table, offset + 4)?;
        if space != SYSTEM_MEMORY || width != 64 || bit_offset != 0 || address % 8 != 0 {
            return Err(Error::Unsupported);
        }
        Ok(Pa::new(address))
    }

    /// Checks a table's signature and checksum and returns its length.
    fn table(&self, table: Pa, signature: [u8; 4]) -> Result<u64, Error> {
        const LONGEST: u32 = 0x10_0000;
        let length = self.u32(table, 4)?;
        if self.array(table, 0)? != signature
            || u64::from(length) < TABLE_HEADER
            || length > LONGEST
            || self.sum(table, u64::from(length))? != 0
        {
            return Err(Error::BadTable);
        }
        Ok(u64::from(length))
    }

    fn sum(&self, table: Pa, length: u64) -> Result<u8, Error> {
        (0..length).try_fold(0u8, |sum, offset| {
            Ok(sum.wrapping_add(self.u8(table, offset)?))
        })
    }
}

#[cfg(test)]
mod tests;

//! Where memory errors are to be reported: consumed ones by the generic hardware error source of HEST
//! that is notified by a synchronous external abort, others by one that is notified by an interrupt or
//! polled, if there is one (ACPI 6.5 sections 18.3.2.7 to 18.3.2.9). QEMU's own second source, which is
//! notified by its event device, is QEMU's to fill.
//!
//! The library checks and reads the tables. What is added here is the way from the source to its
//! block: the error status address holds the block's address. All of it is followed once, before the
//! normal world runs, so that nothing which the normal world writes later sends the firmware
//! anywhere else.

use core::fmt;

use cordon::addr::{Pa, PaRange};
use cordon::platform::acpi::{AcpiError, CheckedTables, PhysicalBytes};
use cordon::ras::hest::{GenericSource, Hest, HestError, Notification, ReadAck, Source};

use crate::record::RECORD_SIZE;

/// INTIDs of the GIC's shared interrupts that QEMU's virt machine has.
const SHARED_INTERRUPTS: core::ops::Range<u32> = 32..288;

/// Where records go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordSource {
    /// The error status block, at a multiple of 8 and with room for a record.
    pub block: PaRange,
    /// How the reader says that the block is the firmware's again. Version 1 of the source has no such
    /// thing: there it is Block Status, which the reader clears.
    pub ack: Option<Ack>,
}

/// Where errors go that nobody has consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportSource {
    /// The block.
    pub records: RecordSource,
    /// The shared interrupt of the GIC that tells the reader; without one, the reader looks by itself.
    pub interrupt: Option<u32>,
}

/// The read-ack register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Its 8 bytes, in memory at a multiple of 8.
    pub register: PaRange,
    /// The bits that the reader sets and the writer clears, at least one.
    pub bits: u64,
}

/// Why there is no such source. `Display` is `why=...`, with more keys where there is more to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The tables are not to be believed.
    Tables(AcpiError),
    /// There is no HEST: the machine was started without `ras=on`.
    NoHest,
    /// HEST is wrong, or a source in it which may have been the one.
    Hest(HestError),
    /// No source is notified by SEA.
    NoSeaSource,
    /// Its block or a register is not in memory that the firmware reaches, or is not aligned.
    Unreachable,
    /// Its block has no room for a record.
    BlockTooShort,
    /// The reader acknowledges with no bit at all.
    NoAckBit,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tables(error) => error.fmt(f),
            Self::NoHest => f.write_str("why=no-hest"),
            Self::Hest(error) => write!(f, "why={error}"),
            Self::NoSeaSource => f.write_str("why=no-sea-source"),
            Self::Unreachable => f.write_str("why=unreachable"),
            Self::BlockTooShort => f.write_str("why=block-too-short"),
            Self::NoAckBit => f.write_str("why=no-ack-bit"),
        }
    }
}

impl core::error::Error for Error {}

/// Follows the tables from the RSDP to the first enabled source that is notified by SEA.
///
/// # Errors
/// [`Error`].
pub fn find_sea_source(memory: &impl PhysicalBytes, rsdp: Pa) -> Result<RecordSource, Error> {
    let is_sea = |source: &GenericSource| source.notification == Notification::Sea;
    let source = find(memory, rsdp, is_sea)?;
    RecordSource::new(memory, &source.ok_or(Error::NoSeaSource)?)
}

/// Follows the tables from the RSDP to the first enabled source that is notified by an interrupt which
/// the firmware can raise, or polled. `None` where there is none, as on QEMU's machines.
///
/// # Errors
/// [`Error`].
pub fn find_report_source(
    memory: &impl PhysicalBytes,
    rsdp: Pa,
) -> Result<Option<ReportSource>, Error> {
    let found = find(memory, rsdp, |source| interrupt(source).is_some());
    let source = match found {
        // Why there is no source at all, whoever looks for the other one says.
        Err(_) | Ok(None) => return Ok(None),
        Ok(Some(source)) => source,
    };
    Ok(Some(ReportSource {
        records: RecordSource::new(memory, &source)?,
        interrupt: interrupt(&source).flatten(),
    }))
}

/// By which shared interrupt `source` is notified, `Some(None)` if it is polled; `None` where it is
/// notified by something else.
fn interrupt(source: &GenericSource) -> Option<Option<u32>> {
    match source.notification {
        Notification::Gsiv { gsiv } | Notification::ExternalInterrupt { gsiv } => {
            SHARED_INTERRUPTS.contains(&gsiv).then_some(Some(gsiv))
        }
        Notification::Polled { .. } => Some(None),
        _ => None,
    }
}

/// The first enabled source that is `wanted`. A source that makes no sense is an error only where there is
/// no other.
fn find(
    memory: &impl PhysicalBytes,
    rsdp: Pa,
    wanted: impl Fn(&GenericSource) -> bool,
) -> Result<Option<GenericSource>, Error> {
    let tables = CheckedTables::new(memory, rsdp).map_err(Error::Tables)?;
    let hest = bytes(memory, tables.hest().ok_or(Error::NoHest)?)?;
    let mut otherwise = Ok(None);
    for source in Hest::parse(hest).map_err(Error::Hest)?.sources() {
        match source {
            Ok(Source::Generic(source)) if source.enabled && wanted(&source) => {
                return Ok(Some(source));
            }
            Ok(_) => {}
            Err(error) => otherwise = Err(Error::Hest(error)),
        }
    }
    otherwise
}

impl RecordSource {
    fn new(memory: &impl PhysicalBytes, source: &GenericSource) -> Result<Self, Error> {
        let (_, pointer) = word(memory, source.status_address)?;
        let start = Pa::new(pointer);
        let block = PaRange::new(start, u64::from(source.block_length))
            .filter(|_| start.is_aligned(8))
            .ok_or(Error::Unreachable)?;
        bytes(memory, block)?;
        if block.size() < RECORD_SIZE as u64 {
            return Err(Error::BlockTooShort);
        }
        let ack = source.read_ack.map(|ack| Ack::new(memory, &ack));
        Ok(Self {
            block,
            ack: ack.transpose()?,
        })
    }
}

impl Ack {
    fn new(memory: &impl PhysicalBytes, ack: &ReadAck) -> Result<Self, Error> {
        let (register, _) = word(memory, ack.address)?;
        // What the reader writes over a register of zeros is what it sets.
        let bits = ack.acknowledge(0);
        if bits == 0 {
            return Err(Error::NoAckBit);
        }
        Ok(Self { register, bits })
    }
}

fn bytes(memory: &impl PhysicalBytes, range: PaRange) -> Result<&[u8], Error> {
    usize::try_from(range.size())
        .ok()
        .and_then(|length| memory.bytes(range.start(), length))
        .ok_or(Error::Unreachable)
}

/// The register of 64 bits at `at`, which the reader of HEST has found aligned, and its value.
fn word(memory: &impl PhysicalBytes, at: Pa) -> Result<(PaRange, u64), Error> {
    let range = PaRange::new(at, 8).ok_or(Error::Unreachable)?;
    let value = bytes(memory, range)?
        .first_chunk()
        .ok_or(Error::Unreachable)?;
    Ok((range, u64::from_le_bytes(*value)))
}

#[cfg(test)]
mod tests;

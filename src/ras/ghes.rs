//! Taking a record from a generic hardware error source (ACPI 6.5 sections 18.3.2.7, 18.3.2.8).
//!
//! Two parties share the memory, and this is the order in which they use it:
//!
//! ```text
//! firmware                              system software, here
//! ------------------------------------  -------------------------------------------
//! waits for read-ack (version 2 only)
//! writes the block, Block Status last
//! notifies                              reads the pointer, then the block's head
//!                                       copies the block to private memory
//!                                       writes 0 to Block Status
//!                                       sets read-ack: the block is firmware's again
//! ```
//!
//! Everything is copied once and judged in the copy, so that a rewrite in between can spoil a record
//! but not a bound that has been checked. A block that makes no sense is released all the same:
//! otherwise one bad record would silence its source for ever.
//!
//! One source is read by one CPU at a time; the caller holds the lock that makes it so.

use core::fmt;

use super::cper::{BlockStatus, CperError, HEADER_SIZE, StatusBlock};
use super::hest::GenericSource;
use crate::addr::Pa;

#[cfg(test)]
mod tests;

/// Memory that firmware and Cordon share, by physical address.
///
/// An implementation decides which addresses it lets through; a pointer that firmware wrote is passed
/// here unchecked. Accesses take effect in the order of the calls, as firmware sees them.
pub trait PhysMemory {
    /// Fills `to` from `from` on.
    ///
    /// # Errors
    ///
    /// [`MemoryError`]; what `to` then holds is unspecified.
    fn read(&mut self, from: Pa, to: &mut [u8]) -> Result<(), MemoryError>;

    /// Writes all of `from`.
    ///
    /// # Errors
    ///
    /// [`MemoryError`].
    fn write(&mut self, to: Pa, from: &[u8]) -> Result<(), MemoryError>;

    /// Reads a little-endian word of 64 bits in one access. `from` is a multiple of 8.
    ///
    /// # Errors
    ///
    /// [`MemoryError`].
    fn read_u64(&mut self, from: Pa) -> Result<u64, MemoryError>;

    /// Writes a little-endian word of 64 bits in one access. `to` is a multiple of 8.
    ///
    /// # Errors
    ///
    /// [`MemoryError`].
    fn write_u64(&mut self, to: Pa, value: u64) -> Result<(), MemoryError>;
}

/// Why memory was not accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryError {
    /// There is no memory at the address, or none that may be accessed for this.
    NotMapped(Pa),
    /// The memory at the address has gone bad itself.
    Poisoned(Pa),
}

impl MemoryError {
    /// Whether memory has gone bad, and Cordon has met it.
    pub const fn is_poison(&self) -> bool {
        matches!(self, Self::Poisoned(_))
    }
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMapped(pa) => write!(f, "not-mapped:{pa}"),
            Self::Poisoned(pa) => write!(f, "poisoned:{pa}"),
        }
    }
}

impl core::error::Error for MemoryError {}

/// Why no record came out of a source that seemed to have one. `Display` has no blanks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GhesError {
    /// The register that holds the block's address cannot be read.
    Pointer(MemoryError),
    /// The block cannot be read.
    Block(MemoryError),
    /// The block claims more than its source's length, or the caller's buffer, allows.
    TooLong {
        /// Bytes claimed.
        claimed: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The block is no record.
    Malformed(CperError),
}

impl fmt::Display for GhesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pointer(error) => write!(f, "pointer:{error}"),
            Self::Block(error) => write!(f, "block:{error}"),
            Self::TooLong { claimed, limit } => write!(f, "too-long:{claimed}:limit-{limit}"),
            Self::Malformed(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for GhesError {}

/// A record, in the caller's buffer.
#[derive(Clone, Copy, Debug)]
pub struct Record<'b> {
    /// What it says.
    pub block: StatusBlock<'b>,
    /// Whether the block could be handed back to firmware. If not, the source will stay silent; the
    /// record is good anyhow.
    pub released: Result<(), MemoryError>,
}

/// Reads the records of one source.
#[derive(Clone, Copy, Debug)]
pub struct Ghes {
    source: GenericSource,
}

impl Ghes {
    /// The reader of `source`.
    pub const fn new(source: GenericSource) -> Self {
        Self { source }
    }

    /// What is read.
    pub const fn source(&self) -> &GenericSource {
        &self.source
    }

    /// Takes the record that firmware has left, if there is one, into `buffer` and releases the block.
    ///
    /// # Errors
    ///
    /// [`GhesError`]. Except where the pointer could not be read or the block is poison, the block has
    /// been released, or the attempt was made.
    pub fn take<'b>(
        &self,
        memory: &mut impl PhysMemory,
        buffer: &'b mut [u8],
    ) -> Result<Option<Record<'b>>, GhesError> {
        let pointer = memory
            .read_u64(self.source.status_address)
            .map_err(GhesError::Pointer)?;
        if pointer == 0 {
            return Ok(None);
        }
        let block = Pa::new(pointer);
        let copied = match self.copy(memory, block, buffer) {
            Ok(0) => return Ok(None),
            // Clearing it would be consuming it once more.
            Err(GhesError::Block(why)) if why.is_poison() => return Err(GhesError::Block(why)),
            other => other,
        };
        let released = self.release(memory, block);
        let bytes: &'b [u8] = buffer;
        let bytes = bytes.get(..copied?).unwrap_or(&[]);
        let block = StatusBlock::parse(bytes).map_err(GhesError::Malformed)?;
        Ok(Some(Record { block, released }))
    }

    /// Copies the block to `buffer` and returns its size, 0 if there is no record in it.
    fn copy(
        &self,
        memory: &mut impl PhysMemory,
        block: Pa,
        buffer: &mut [u8],
    ) -> Result<usize, GhesError> {
        let limit = usize::try_from(self.source.block_length)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let (head, tail) =
            buffer
                .split_first_chunk_mut::<HEADER_SIZE>()
                .ok_or(GhesError::TooLong {
                    claimed: HEADER_SIZE,
                    limit,
                })?;
        memory.read(block, head).map_err(GhesError::Block)?;
        if block_status(head).is_empty() {
            return Ok(0);
        }
        let claimed = StatusBlock::claimed_size(head);
        if claimed > limit {
            return Err(GhesError::TooLong { claimed, limit });
        }
        // The head is not read again: what was checked is what is parsed.
        let rest = claimed.saturating_sub(HEADER_SIZE);
        if rest == 0 {
            return Ok(claimed);
        }
        if let (Some(to), Some(from)) = (tail.get_mut(..rest), offset(block, HEADER_SIZE)) {
            memory.read(from, to).map_err(GhesError::Block)?;
            return Ok(claimed);
        }
        Err(GhesError::Block(MemoryError::NotMapped(block)))
    }

    /// Hands the block back: first empty, then acknowledged. The acknowledgement is made even if the
    /// first step fails, for it is what firmware waits for.
    fn release(&self, memory: &mut impl PhysMemory, block: Pa) -> Result<(), MemoryError> {
        let cleared = memory.write(block, &0u32.to_le_bytes());
        if let Some(ack) = &self.source.read_ack {
            let old = memory.read_u64(ack.address)?;
            memory.write_u64(ack.address, ack.acknowledge(old))?;
        }
        cleared
    }
}

fn block_status(head: &[u8; HEADER_SIZE]) -> BlockStatus {
    let [a, b, c, d, ..] = *head;
    BlockStatus::new(u32::from_le_bytes([a, b, c, d]))
}

fn offset(block: Pa, bytes: usize) -> Option<Pa> {
    block.checked_add(u64::try_from(bytes).ok()?)
}

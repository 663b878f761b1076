//! A device tree blob that has been checked from end to end before anything reads it.
//!
//! The blob comes from firmware or from a file, and the `fdt` crate that reads it trusts it: it
//! slices by the blob's own lengths, asserts the order of tokens, recurses as deep as the nodes go
//! and expects names to be text. [`CheckedFdt::new`] is the gate. It proves, by one pass over the
//! blob and before the crate sees a byte of it, everything the crate relies on:
//!
//! - the header's blocks lie inside the blob, and the memory reservation block ends inside it;
//! - the structure block is one root node with an empty name, tokens nest, properties come before
//!   child nodes, and `FDT_END` follows the root;
//! - nodes are at most [`MAX_DEPTH`] deep (the crate recurses, and keeps 64 levels in an array);
//! - names are NUL-terminated printable ASCII, properties' values lie inside the block, and
//!   `#address-cells` and `#size-cells` are one cell.
//!
//! `FDT_NOP` is refused, since the crate asserts when it meets one between properties: [`without_nops`]
//! makes a blob without any. The crate's look-up by path is kept out of reach too: it resolves a missing path through `/aliases` without
//! end when an alias names itself. What is left, [`CheckedFdt::root`] and iteration, cannot panic.
//!
//! The format is chapter 5 of the Devicetree Specification 0.4.

mod nops;

use core::fmt;

use fdt::Fdt;
use fdt::node::FdtNode;

use crate::addr::{Pa, PaRange};
pub use nops::without_nops;

/// Largest blob that is read, in bytes: what Linux allows a boot loader to pass (`booting.rst`).
pub const MAX_SIZE: usize = 2 << 20;

/// Deepest nesting that is read, the root included. Real trees need about eight.
pub const MAX_DEPTH: usize = 32;

/// Longest name of a node or property in bytes. The specification says 31 for each part; real
/// trees overstep it, but a bound keeps the check linear.
const MAX_NAME: usize = 255;

const MAGIC: u32 = 0xd00d_feed;
const HEADER_SIZE: usize = 40;
const VERSION: u32 = 17;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// Why a blob is no device tree. `at` is an offset into the blob, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdtError {
    /// Shorter than a header, or than its own `totalsize`.
    Truncated,
    /// The first word is not `0xd00dfeed`.
    BadMagic,
    /// `totalsize` is more than [`MAX_SIZE`].
    TooBig,
    /// Not readable as version 17.
    BadVersion,
    /// A block leaves the blob, or is not aligned as the specification asks.
    BadBlock,
    /// The memory reservation block has no end, or an entry of it wraps around.
    BadReservation,
    /// A token that is unknown or that may not come here.
    BadToken {
        /// Where the token is.
        at: usize,
    },
    /// `FDT_NOP`, which the reader cannot pass.
    Nop {
        /// Where the token is.
        at: usize,
    },
    /// The structure block ends inside a node.
    Unfinished,
    /// Deeper than [`MAX_DEPTH`].
    TooDeep {
        /// Where the node begins.
        at: usize,
    },
    /// A name of a node or property is not NUL-terminated printable ASCII of at most 255 bytes.
    BadName {
        /// Where the name, or the property that has it, is.
        at: usize,
    },
    /// A property's value leaves the structure block.
    BadValue {
        /// Where the property is.
        at: usize,
    },
    /// `#address-cells` or `#size-cells` is not one cell.
    BadCells {
        /// Where the property is.
        at: usize,
    },
}

impl fmt::Display for FdtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (why, at) = match *self {
            Self::Truncated => ("truncated", None),
            Self::BadMagic => ("bad-magic", None),
            Self::TooBig => ("too-big", None),
            Self::BadVersion => ("bad-version", None),
            Self::BadBlock => ("bad-block", None),
            Self::BadReservation => ("bad-reservation", None),
            Self::BadToken { at } => ("bad-token", Some(at)),
            Self::Nop { at } => ("nop", Some(at)),
            Self::Unfinished => ("unfinished", None),
            Self::TooDeep { at } => ("too-deep", Some(at)),
            Self::BadName { at } => ("bad-name", Some(at)),
            Self::BadValue { at } => ("bad-value", Some(at)),
            Self::BadCells { at } => ("bad-cells", Some(at)),
        };
        write!(f, "why={why}")?;
        at.map_or(Ok(()), |at| write!(f, " at={at:#x}"))
    }
}

impl core::error::Error for FdtError {}

/// A device tree blob in which everything that its reader relies on has been checked.
#[derive(Clone, Copy)]
pub struct CheckedFdt<'a> {
    fdt: Fdt<'a>,
    size: usize,
}

impl<'a> CheckedFdt<'a> {
    /// The blob's `totalsize` in bytes, read from its first [`HEADER_LEN`](Self::HEADER_LEN)
    /// bytes: how much must be mapped before [`new`](Self::new) can look at all of it.
    ///
    /// # Errors
    /// [`FdtError::Truncated`], [`FdtError::BadMagic`], [`FdtError::TooBig`].
    pub fn total_size(header: &[u8]) -> Result<usize, FdtError> {
        if header.len() < HEADER_SIZE {
            return Err(FdtError::Truncated);
        }
        if word(header, 0) != Some(MAGIC) {
            return Err(FdtError::BadMagic);
        }
        match offset(header, 4)? {
            size if size > MAX_SIZE => Err(FdtError::TooBig),
            size if size < HEADER_SIZE => Err(FdtError::Truncated),
            size => Ok(size),
        }
    }

    /// How many bytes [`total_size`](Self::total_size) needs.
    pub const HEADER_LEN: usize = HEADER_SIZE;

    /// Checks `blob`, which may be longer than the tree in it.
    ///
    /// # Errors
    /// The first thing found wrong, as [`FdtError`].
    pub fn new(blob: &'a [u8]) -> Result<Self, FdtError> {
        let size = Self::total_size(blob)?;
        let blob = blob.get(..size).ok_or(FdtError::Truncated)?;
        let version = word(blob, 20).ok_or(FdtError::Truncated)?;
        let last_compatible = word(blob, 24).ok_or(FdtError::Truncated)?;
        if version < VERSION || last_compatible > VERSION {
            return Err(FdtError::BadVersion);
        }
        check_reservations(blob, offset(blob, 16)?)?;
        let structure = block(blob, offset(blob, 8)?, offset(blob, 36)?)?;
        let strings = block(blob, offset(blob, 12)?, offset(blob, 32)?)?;
        let start = offset(blob, 8)?;
        if !start.is_multiple_of(4) {
            return Err(FdtError::BadBlock);
        }
        Structure {
            bytes: structure,
            strings,
            start,
            pos: 0,
        }
        .check()?;
        // Cannot fail any more: the crate looks at the magic and the total size, both checked.
        let fdt = Fdt::new(blob).map_err(|_| FdtError::Truncated)?;
        Ok(Self { fdt, size })
    }

    /// Size of the blob in bytes, by its header.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The root node. A checked blob has one; the `Option` spares a path that could panic.
    pub fn root(&self) -> Option<FdtNode<'_, 'a>> {
        self.fdt.all_nodes().next()
    }

    /// The non-empty entries of the memory reservation block.
    pub fn reservations(&self) -> impl Iterator<Item = PaRange> + '_ {
        self.fdt.memory_reservations().filter_map(|entry| {
            PaRange::new(Pa::new(entry.address().addr() as u64), entry.size() as u64)
        })
    }
}

impl fmt::Debug for CheckedFdt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckedFdt")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// The big-endian word at `at`.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*bytes))
}

/// The header field at `at`, an offset or size in bytes.
fn offset(blob: &[u8], at: usize) -> Result<usize, FdtError> {
    let word = word(blob, at).ok_or(FdtError::Truncated)?;
    usize::try_from(word).map_err(|_| FdtError::TooBig)
}

fn block(blob: &[u8], start: usize, size: usize) -> Result<&[u8], FdtError> {
    let end = start.checked_add(size).ok_or(FdtError::BadBlock)?;
    blob.get(start..end).ok_or(FdtError::BadBlock)
}

/// Walks the memory reservation block to its terminator, a pair of zeros.
fn check_reservations(blob: &[u8], start: usize) -> Result<(), FdtError> {
    if !start.is_multiple_of(8) {
        return Err(FdtError::BadBlock);
    }
    let entries = blob.get(start..).ok_or(FdtError::BadBlock)?;
    for entry in entries.chunks_exact(16) {
        let (address, size) = entry.split_at(8);
        let address = address
            .first_chunk()
            .map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let size = size
            .first_chunk()
            .map_or(0, |bytes| u64::from_be_bytes(*bytes));
        if address == 0 && size == 0 {
            return Ok(());
        }
        if size != 0 && PaRange::new(Pa::new(address), size).is_none() {
            return Err(FdtError::BadReservation);
        }
    }
    Err(FdtError::BadReservation)
}

/// The structure block while it is checked.
struct Structure<'a> {
    bytes: &'a [u8],
    strings: &'a [u8],
    /// Offset of the block in the blob, for the errors.
    start: usize,
    pos: usize,
}

impl Structure<'_> {
    fn check(&mut self) -> Result<(), FdtError> {
        let mut depth = 0_usize;
        // Whether a property may come: between a node's name and its first child or end.
        let mut in_properties = false;
        loop {
            let at = self.start + self.pos;
            match self.next()? {
                BEGIN_NODE if depth >= MAX_DEPTH => return Err(FdtError::TooDeep { at }),
                BEGIN_NODE => {
                    self.node_name(depth == 0)?;
                    depth += 1;
                    in_properties = true;
                }
                PROP if in_properties => self.property(at)?,
                END_NODE if depth > 0 => {
                    depth -= 1;
                    in_properties = false;
                    if depth == 0 {
                        break;
                    }
                }
                NOP => return Err(FdtError::Nop { at }),
                _ => return Err(FdtError::BadToken { at }),
            }
        }
        let at = self.start + self.pos;
        if self.next()? == END {
            Ok(())
        } else {
            Err(FdtError::BadToken { at })
        }
    }

    fn next(&mut self) -> Result<u32, FdtError> {
        let token = word(self.bytes, self.pos).ok_or(FdtError::Unfinished)?;
        self.pos += 4;
        Ok(token)
    }

    /// Passes `len` bytes and the padding to the next word.
    fn skip(&mut self, len: usize) -> Option<()> {
        let end = self.pos.checked_add(len)?.checked_next_multiple_of(4)?;
        self.bytes.get(self.pos..end)?;
        self.pos = end;
        Some(())
    }

    fn node_name(&mut self, is_root: bool) -> Result<(), FdtError> {
        let at = self.start + self.pos;
        let name = name_at(self.bytes, self.pos).ok_or(FdtError::BadName { at })?;
        // Only the root's name is empty; the reader finds the root by that.
        if name.is_empty() != is_root {
            return Err(FdtError::BadName { at });
        }
        self.skip(name.len() + 1).ok_or(FdtError::Unfinished)
    }

    fn property(&mut self, at: usize) -> Result<(), FdtError> {
        let len = self.next()?;
        let name = self.next()?;
        let len = usize::try_from(len).map_err(|_| FdtError::BadValue { at })?;
        let name = usize::try_from(name).map_err(|_| FdtError::BadName { at })?;
        let name = name_at(self.strings, name).ok_or(FdtError::BadName { at })?;
        if name.is_empty() {
            return Err(FdtError::BadName { at });
        }
        if matches!(name, b"#address-cells" | b"#size-cells") && len != 4 {
            return Err(FdtError::BadCells { at });
        }
        self.skip(len).ok_or(FdtError::BadValue { at })
    }
}

/// The NUL-terminated printable ASCII name at `at`, without its NUL.
fn name_at(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let bytes = bytes.get(at..)?;
    let window = bytes.get(..=MAX_NAME).unwrap_or(bytes);
    let name = window.get(..window.iter().position(|&byte| byte == 0)?)?;
    name.iter().all(u8::is_ascii_graphic).then_some(name)
}

#[cfg(test)]
mod tests;

//! Stage-1 translation tables: 4 KiB granule, 48-bit addresses, levels 0 to 3 (Arm ARM D8.3).
//!
//! [`map`] only ever turns invalid entries into valid ones, and what is mapped stays as it is: no
//! break-before-make is needed, and a range may be mapped over a part that has finer rights
//! already (RAM over the image). The one table that is replaced live belongs to the `table`
//! command, which breaks it first. The environment is a trait, so that the host can test this.

use crate::PAGE_SIZE;

/// Entries of a table.
pub const ENTRIES: usize = 512;

/// `MAIR_EL1`: attribute 0 is Device-nGnRE, attribute 1 Normal, write-back, allocating.
pub const MAIR: u64 = 0xff04;

const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 1 << 1;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const LAST_LEVEL: u32 = 3;

/// The rights and kind of a mapping, as the attribute bits of a block or page descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes(u64);

impl Attributes {
    const ATTR_NORMAL: u64 = 1 << 2;
    const EL0: u64 = 1 << 6;
    const READ_ONLY: u64 = 1 << 7;
    const INNER_SHAREABLE: u64 = 0b11 << 8;
    const ACCESSED: u64 = 1 << 10;
    const PXN: u64 = 1 << 53;
    const UXN: u64 = 1 << 54;
    const NORMAL: u64 = Self::ATTR_NORMAL | Self::INNER_SHAREABLE | Self::ACCESSED;

    /// EL1 reads and writes.
    pub const EL1_DATA: Self = Self(Self::NORMAL | Self::PXN | Self::UXN);
    /// EL1 reads.
    pub const EL1_CONSTANT: Self = Self(Self::NORMAL | Self::READ_ONLY | Self::PXN | Self::UXN);
    /// EL1 reads and executes.
    pub const EL1_CODE: Self = Self(Self::NORMAL | Self::READ_ONLY | Self::UXN);
    /// EL0 and EL1 read and write.
    pub const EL0_DATA: Self = Self(Self::NORMAL | Self::EL0 | Self::PXN | Self::UXN);
    /// EL0 reads and executes, EL1 reads.
    pub const EL0_CODE: Self = Self(Self::NORMAL | Self::EL0 | Self::READ_ONLY | Self::PXN);
    /// Registers of a device, for EL0 and EL1.
    pub const EL0_DEVICE: Self = Self(Self::ACCESSED | Self::EL0 | Self::PXN | Self::UXN);
    /// Registers of a device, for EL1.
    pub const DEVICE: Self = Self(Self::ACCESSED | Self::PXN | Self::UXN);
}

/// Where tables live, and where new ones come from.
pub trait Tables {
    /// A new, zeroed table's address; `None` when there is no memory left.
    fn new_table(&mut self) -> Option<u64>;
    /// Reads a descriptor.
    fn read(&self, table: u64, index: usize) -> u64;
    /// Writes a descriptor. A walker on any CPU may see it at once.
    fn write(&mut self, table: u64, index: usize, descriptor: u64);
}

/// There was no memory for a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfTables;

/// Where a descriptor is: in which table, at which index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Address of the table.
    pub table: u64,
    /// Index of the descriptor.
    pub index: usize,
}

/// A piece of address space to be mapped. All three are multiples of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First virtual address.
    pub va: u64,
    /// What it translates to.
    pub pa: u64,
    /// Size in bytes.
    pub size: u64,
}

/// The descriptor that points to a next-level table.
pub const fn table_descriptor(table: u64) -> u64 {
    table & ADDRESS | TABLE_OR_PAGE | VALID
}

/// The descriptor of a block of level 1 or 2.
pub const fn block_descriptor(pa: u64, attributes: Attributes) -> u64 {
    page_descriptor(pa, attributes) & !TABLE_OR_PAGE
}

/// The descriptor of a page.
pub const fn page_descriptor(pa: u64, attributes: Attributes) -> u64 {
    pa & ADDRESS | attributes.0 | TABLE_OR_PAGE | VALID
}

const fn leaf_size(level: u32) -> u64 {
    PAGE_SIZE << (9 * (LAST_LEVEL - level))
}

const fn index(va: u64, level: u32) -> usize {
    (va / leaf_size(level)) as usize % ENTRIES
}

const fn is_table(descriptor: u64, level: u32) -> bool {
    level < LAST_LEVEL && descriptor & (TABLE_OR_PAGE | VALID) == TABLE_OR_PAGE | VALID
}

/// Maps `piece` below `root` with the largest blocks that fit. What is mapped already is skipped.
pub fn map(
    tables: &mut impl Tables,
    root: u64,
    mut piece: Piece,
    attributes: Attributes,
) -> Result<(), OutOfTables> {
    while piece.size > 0 {
        let leaf = map_one(tables, root, piece, attributes)?;
        let done = (leaf - piece.va % leaf).min(piece.size);
        piece = Piece {
            va: piece.va + done,
            pa: piece.pa + done,
            size: piece.size - done,
        };
    }
    Ok(())
}

/// Maps one leaf at the start of `piece`, or finds one there. Returns its size.
fn map_one(
    tables: &mut impl Tables,
    root: u64,
    piece: Piece,
    attributes: Attributes,
) -> Result<u64, OutOfTables> {
    let mut table = root;
    for level in 0..=LAST_LEVEL {
        let slot = index(piece.va, level);
        let descriptor = tables.read(table, slot);
        if is_table(descriptor, level) {
            table = descriptor & ADDRESS;
        } else if descriptor & VALID != 0 {
            return Ok(leaf_size(level));
        } else if let Some(leaf) = leaf_descriptor(piece, level, attributes) {
            tables.write(table, slot, leaf);
            return Ok(leaf_size(level));
        } else {
            let next = tables.new_table().ok_or(OutOfTables)?;
            tables.write(table, slot, table_descriptor(next));
            table = next;
        }
    }
    // Level 3 always has or gets a leaf.
    Ok(PAGE_SIZE)
}

/// The leaf for the start of `piece` at `level`, if one of that size may be used.
fn leaf_descriptor(piece: Piece, level: u32, attributes: Attributes) -> Option<u64> {
    let size = leaf_size(level);
    match level {
        0 => None,
        LAST_LEVEL => Some(page_descriptor(piece.pa, attributes)),
        _ if (piece.va | piece.pa).is_multiple_of(size) && piece.size >= size => {
            Some(page_descriptor(piece.pa, attributes) & !TABLE_OR_PAGE)
        }
        _ => None,
    }
}

/// The descriptor for `va` at `level`, where there are tables down to there.
pub fn slot(tables: &impl Tables, root: u64, va: u64, level: u32) -> Option<Slot> {
    let mut table = root;
    for upper in 0..level {
        let descriptor = tables.read(table, index(va, upper));
        if !is_table(descriptor, upper) {
            return None;
        }
        table = descriptor & ADDRESS;
    }
    Some(Slot {
        table,
        index: index(va, level),
    })
}

#[cfg(test)]
mod tests;

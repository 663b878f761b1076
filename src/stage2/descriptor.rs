//! Descriptors: the 64-bit words of a table, and the one place that reads and writes their bits.
//!
//! A word is parsed into an [`Entry`] once; after that nothing can fail. An invalid descriptor
//! means nothing to hardware beyond its bit 0 (Arm ARM D8.3, "Invalid descriptors"), so Cordon
//! keeps there *why* it is invalid, in bits [58:55] (those that stay with software in a valid
//! descriptor, too), and, where something was mapped before, the leaf as it was. A hole thus knows
//! the page it hides and what it takes to give it back.

use super::attrs::{Attrs, Encoding, PERMISSIONS};
use super::granule::{Granule, Level};
use crate::addr::{Pa, PaRange};

const VALID: u64 = 1;
/// Bit 1: a table or a page when set, a block when clear.
const TABLE_OR_PAGE: u64 = 1 << 1;
const TYPE_MASK: u64 = VALID | TABLE_OR_PAGE;
/// Output and next-level addresses: bits [47:12], of which those below the granule are 0. The four above them
/// that FEAT_LPA and FEAT_LPA2 have elsewhere are 0.
const ADDRESS_MASK: u64 = 0x0000_ffff_ffff_f000;

/// Bit 52 of a valid leaf: it is one of a group that a CPU may cache as one. It is about how leaves are
/// cached and not about what they say, so it is no part of a [`Leaf`].
pub(super) const CONTIGUOUS: u64 = 1 << 52;

/// Bit 16 of a block, nT (FEAT_BBM level 1): no CPU caches it in a way that a table in its place could conflict
/// with. It stands there while the two are exchanged, and never when the map is read.
pub(super) const NOT_CACHED: u64 = 1 << 16;

const WHY_SHIFT: u32 = 55;
const WHY_MASK: u64 = 0xf << WHY_SHIFT;
const WHY_POISONED: u64 = 1;
const WHY_PARKED: u64 = 2;

/// In a table descriptor, whose bits [58:51] are ignored by hardware: the table stands for a block
/// that was split. Its frame is the reserve's, and it may become that block again.
const SPLIT: u64 = 1 << WHY_SHIFT;

/// A leaf: a block or a page, at a level that its holder knows. The bits of its descriptor, address
/// and attributes, without those that tell its type: one word, which is copied and compared a lot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaf(u64);

/// Why a descriptor is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invalid {
    /// Nothing was ever mapped here.
    NeverMapped,
    /// A hole: the memory behind this leaf, or part of it, is poisoned.
    Poisoned(Leaf),
    /// Taken out for a time. Break-before-make leaves this between break and make; and a block that
    /// was dropped is this until somebody asks for a page of it.
    Parked(Leaf),
    /// A word that Cordon never writes: the table is damaged.
    Unknown(u64),
}

/// What a descriptor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A table of the level below.
    Table(Pa, Level),
    /// Memory: a page at level 3, a block at the others.
    Leaf(Leaf),
    /// A translation fault, and the reason.
    Invalid(Invalid),
}

impl Entry {
    /// Parses the word `raw` of a table of `level`.
    // Always inlined, so that a walk, which is after tables, does not pay for leaves.
    #[inline(always)]
    pub(super) fn parse(raw: u64, level: Level, granule: Granule) -> Self {
        match table_of(raw, level) {
            Some((table, below)) => Self::Table(table, below),
            None => match parse_end(raw, level, granule) {
                Ok(leaf) => Self::Leaf(leaf),
                Err(why) => Self::Invalid(why),
            },
        }
    }
}

/// Parses a word that is no table.
fn parse_end(raw: u64, level: Level, granule: Granule) -> Result<Leaf, Invalid> {
    if raw == 0 {
        return Err(Invalid::NeverMapped);
    }
    let unknown = Invalid::Unknown(raw);
    if raw & VALID == 0 {
        let was = Leaf::parse(raw & !WHY_MASK, level, granule).ok_or(unknown)?;
        return Err(match (raw & WHY_MASK) >> WHY_SHIFT {
            WHY_POISONED => Invalid::Poisoned(was),
            WHY_PARKED => Invalid::Parked(was),
            _ => unknown,
        });
    }
    if raw & TYPE_MASK != Leaf::kind(level) {
        return Err(unknown);
    }
    Leaf::parse(raw & !CONTIGUOUS, level, granule).ok_or(unknown)
}

/// The page that was behind the word `raw` of level 3, if that is a hole: [`Entry::parse`] for who wants to know no
/// more.
#[inline]
pub(super) fn poisoned_page(raw: u64, granule: Granule) -> Option<Leaf> {
    let hole = raw & (VALID | WHY_MASK) == WHY_POISONED << WHY_SHIFT;
    let page = Leaf::parse(raw & !WHY_MASK, Level::L3, granule);
    page.filter(|_| hole)
}

impl Invalid {
    /// The word for it at `level`.
    pub(super) const fn encode(self, level: Level) -> u64 {
        match self {
            Self::NeverMapped => 0,
            Self::Poisoned(leaf) => leaf.encode(level) & !VALID | WHY_POISONED << WHY_SHIFT,
            Self::Parked(leaf) => leaf.encode(level) & !VALID | WHY_PARKED << WHY_SHIFT,
            Self::Unknown(raw) => raw,
        }
    }
}

impl Leaf {
    /// A leaf that maps to `pa`, which must be aligned to the leaf's size.
    pub(super) const fn new(pa: Pa, attrs: Attrs, how: Encoding) -> Self {
        Self(pa.get() & ADDRESS_MASK | attrs.encode(how))
    }

    /// The leaf in `raw`, whatever its type bits, or `None` for bits that Cordon does not write.
    fn parse(raw: u64, level: Level, granule: Granule) -> Option<Self> {
        let leaf = Self(raw & !TYPE_MASK);
        let own = granule.has_leaves(level)
            && leaf.pa().is_aligned(granule.span(level))
            && Attrs::are_valid(leaf.0 & !ADDRESS_MASK, granule.is_lpa2());
        own.then_some(leaf)
    }

    /// Where it maps to.
    pub(super) const fn pa(self) -> Pa {
        Pa::new(self.0 & ADDRESS_MASK)
    }

    /// With what attributes.
    pub(super) const fn attrs(self) -> Attrs {
        Attrs::decode(self.0)
    }

    /// The memory that it maps at `level`. It ends below 2^48, so that it is a range.
    pub(super) const fn range(self, level: Level, granule: Granule) -> PaRange {
        PaRange::of_block(self.pa(), granule.shift(level))
    }

    /// The same memory with other attributes.
    pub(super) const fn with_attrs(self, attrs: Attrs, how: Encoding) -> Self {
        Self::new(self.pa(), attrs, how)
    }

    /// Other memory with the same attributes. `pa` must be aligned to the leaf's size.
    pub(super) const fn with_pa(self, pa: Pa) -> Self {
        Self(self.0 & !ADDRESS_MASK | pa.get() & ADDRESS_MASK)
    }

    /// Whether the two say the same but for permissions. Such a change needs no break before it is
    /// made (Arm ARM D8.16 lists what does).
    pub(super) const fn differs_in_permissions(self, other: Self) -> bool {
        (self.0 ^ other.0) & !PERMISSIONS == 0
    }

    /// The valid word for it at `level`. Consecutive leaves of one level differ by the level's
    /// span, and by nothing else.
    pub(super) const fn encode(self, level: Level) -> u64 {
        self.0 | Self::kind(level)
    }

    /// The part of this leaf that holds the byte at `offset` from its start, when it is cut into
    /// leaves of `size`, a power of two and a page at least.
    pub(super) const fn part(self, offset: u64, size: u64) -> Self {
        Self(self.0 | (offset & !(size - 1)))
    }

    /// The type bits of a leaf at `level`.
    const fn kind(level: Level) -> u64 {
        match level {
            Level::L3 => VALID | TABLE_OR_PAGE,
            _ => VALID,
        }
    }
}

/// The word that points to `table`. The hierarchical attribute bits [63:59] have no meaning in
/// stage 2.
pub(super) const fn table_word(table: Pa) -> u64 {
    table.get() & ADDRESS_MASK | TABLE_OR_PAGE | VALID
}

/// The word that points to a table that stands for a block.
pub(super) const fn split_word(table: Pa) -> u64 {
    table_word(table) | SPLIT
}

/// Whether `raw` is a leaf that a CPU may have cached as one with its group.
pub(super) const fn is_contiguous(raw: u64) -> bool {
    raw & (CONTIGUOUS | VALID) == CONTIGUOUS | VALID
}

/// The word of a leaf, in a group or not, when it is taken out for a time.
pub(super) const fn parked(raw: u64) -> u64 {
    raw & !(VALID | CONTIGUOUS) | WHY_PARKED << WHY_SHIFT
}

/// What [`parked`] was made of, alone; any other word as it is.
pub(super) const fn unparked(raw: u64) -> u64 {
    if raw & (VALID | WHY_MASK) == WHY_PARKED << WHY_SHIFT {
        raw & !WHY_MASK | VALID
    } else {
        raw
    }
}

/// Whether `raw`, which points to a table, was made by [`split_word`].
pub(super) const fn is_split(raw: u64) -> bool {
    raw & SPLIT != 0
}

/// The table that `raw`, of a table of `level`, points to, if it does, and that table's level.
pub(super) const fn table_of(raw: u64, level: Level) -> Option<(Pa, Level)> {
    match (level.below(), pointed_to(raw)) {
        (Some(below), Some(table)) => Some((table, below)),
        _ => None,
    }
}

/// The table that `raw`, of a table above level 3, points to, if it does.
pub(super) const fn pointed_to(raw: u64) -> Option<Pa> {
    if raw & TYPE_MASK == TABLE_OR_PAGE | VALID {
        Some(Pa::new(raw & ADDRESS_MASK))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::attrs::{self, tests::PLAIN};
    use super::*;

    const G: Granule = Granule::K4;

    fn leaf_at(level: Level) -> Leaf {
        Leaf::new(Pa::new(5 * G.span(level)), Attrs::RAM, PLAIN)
    }

    #[test]
    fn leaves_survive_their_descriptor_at_every_level_that_has_them() {
        for attrs in attrs::tests::all() {
            for level in [Level::L1, Level::L2, Level::L3] {
                let pa = Pa::new(5 * G.span(level));
                let leaf = Leaf::new(pa, attrs, PLAIN);
                assert_eq!((leaf.pa(), leaf.attrs()), (pa, attrs));
                let raw = leaf.encode(level);
                assert_eq!(raw & 0b11, if level == Level::L3 { 0b11 } else { 0b01 });
                assert_eq!(Entry::parse(raw, level, G), Entry::Leaf(leaf));
            }
        }
    }

    #[test]
    fn an_invalid_descriptor_tells_why_and_what_was_there() {
        for level in [Level::L1, Level::L2, Level::L3] {
            let leaf = leaf_at(level);
            for why in [Invalid::Poisoned(leaf), Invalid::Parked(leaf)] {
                let raw = why.encode(level);
                assert_eq!(raw & 1, 0, "hardware must not see a valid descriptor");
                assert_eq!(Entry::parse(raw, level, G), Entry::Invalid(why));
            }
        }
        assert_eq!(
            Entry::parse(0, Level::L2, G),
            Entry::Invalid(Invalid::NeverMapped)
        );
    }

    #[test]
    fn a_hole_of_a_page_is_the_same_by_either_way() {
        let page = leaf_at(Level::L3);
        for why in [Invalid::Poisoned(page), Invalid::Parked(page)] {
            for raw in [why.encode(Level::L3), why.encode(Level::L3) | CONTIGUOUS] {
                let parsed = match Entry::parse(raw, Level::L3, G) {
                    Entry::Invalid(Invalid::Poisoned(page)) => Some(page),
                    _ => None,
                };
                assert_eq!(poisoned_page(raw, G), parsed, "{raw:#x}");
            }
        }
        for raw in [0, page.encode(Level::L3), 7 << WHY_SHIFT, u64::MAX] {
            assert_eq!(poisoned_page(raw, G), None, "{raw:#x}");
        }
    }

    #[test]
    fn a_table_is_one_only_above_level_3() {
        let raw = table_word(Pa::new(0x8000_1000));
        assert_eq!(raw, 0x8000_1003);
        assert_eq!(
            Entry::parse(raw, Level::L1, G),
            Entry::Table(Pa::new(0x8000_1000), Level::L2)
        );
        assert_eq!(table_of(raw, Level::L3), None);
    }

    #[test]
    fn words_that_are_never_written_are_named_damage() {
        let block = leaf_at(Level::L1).encode(Level::L1);
        for (raw, level) in [
            (block, Level::L0), // no 512 GiB blocks without FEAT_LPA2
            (leaf_at(Level::L3).encode(Level::L2), Level::L3), // reserved: 0b01 at level 3
            (block | 0x1000, Level::L1), // not aligned to its size
            (block & !(1 << 10), Level::L1), // Access flag clear
            (0x1000, Level::L3), // invalid, not 0, but no reason given
            (7 << WHY_SHIFT, Level::L3), // no such reason
        ] {
            assert_eq!(
                Entry::parse(raw, level, G),
                Entry::Invalid(Invalid::Unknown(raw)),
                "{raw:#x} at {level:?}"
            );
        }
    }

    #[test]
    fn there_are_blocks_of_512g_in_the_format_of_lpa2_alone_and_what_is_in_another_is_damage() {
        let lpa2 = Granule::K4Lpa2;
        let how = Encoding {
            lpa2: true,
            ..PLAIN
        };
        for level in Level::ALL {
            let pa = Pa::new(5 * G.span(level));
            let leaf = Leaf::new(pa, Attrs::RAM, how);
            let raw = leaf.encode(level);
            assert_eq!(raw & 0x3ff, if level == Level::L3 { 0xff } else { 0xfd });
            assert_eq!(Entry::parse(raw, level, lpa2), Entry::Leaf(leaf));
            for why in [Invalid::Poisoned(leaf), Invalid::Parked(leaf)] {
                let word = why.encode(level);
                assert_eq!(Entry::parse(word, level, lpa2), Entry::Invalid(why));
            }
            let unknown = |raw| Entry::Invalid(Invalid::Unknown(raw));
            assert_eq!(Entry::parse(raw, level, G), unknown(raw));
            let other = leaf_at(level).encode(level);
            assert_eq!(Entry::parse(other, level, lpa2), unknown(other));
        }
    }

    #[test]
    fn a_leaf_of_a_group_is_the_same_leaf_and_is_alone_when_it_was_taken_out() {
        for level in [Level::L1, Level::L2, Level::L3] {
            let leaf = leaf_at(level);
            let raw = leaf.encode(level) | CONTIGUOUS;
            assert_eq!(Entry::parse(raw, level, G), Entry::Leaf(leaf));
            assert!(is_contiguous(raw) && !is_contiguous(leaf.encode(level)));
            assert_eq!(parked(raw), Invalid::Parked(leaf).encode(level));
            assert_eq!(unparked(parked(raw)), leaf.encode(level));
            let hole = Invalid::Poisoned(leaf).encode(level);
            assert_eq!((unparked(hole), unparked(0)), (hole, 0));
            // No hole is ever one of a group.
            let marked = hole | CONTIGUOUS;
            assert_eq!(
                Entry::parse(marked, level, G),
                Entry::Invalid(Invalid::Unknown(marked))
            );
        }
    }

    #[test]
    fn a_part_of_a_leaf_maps_its_own_slice() {
        let leaf = leaf_at(Level::L1);
        let page = leaf.part(0x1234_5678, 4096);
        assert_eq!(page.pa().get(), leaf.pa().get() + 0x1234_5000);
        assert_eq!(page.attrs(), leaf.attrs());
    }
}

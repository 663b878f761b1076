//! The geometry of a translation table: how many bits each level resolves, and which levels may
//! hold a block.
//!
//! Everything that depends on the translation granule is here: tables are slices of
//! [`Granule::entries`] words everywhere else, never arrays of a fixed length. What goes bad, and what
//! is repaired, is a page of 4 KiB whatever the granule: with a larger one, the smallest hole is as large
//! as its page.

use crate::addr::{Ipa, Pa};

/// A level of the translation table. Level 3 maps pages; lower numbers are nearer the root.
// A word, so that there is no gap behind it in a `Place`: those are copied byte by byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u64)]
pub enum Level {
    /// Level 0: 512 GiB blocks with the 4K granule and FEAT_LPA2, tables only otherwise.
    L0 = 0,
    /// Level 1: 1 GiB blocks with the 4K granule, 64 GiB ones with 16K and FEAT_LPA2, tables only otherwise.
    L1 = 1,
    /// Level 2: blocks of 2 MiB, 32 MiB or 512 MiB.
    L2 = 2,
    /// Level 3: pages.
    L3 = 3,
}

impl Level {
    /// All levels, from the root down.
    pub const ALL: [Self; 4] = [Self::L0, Self::L1, Self::L2, Self::L3];

    /// The number the architecture gives this level, 0 to 3. It is also the low half of the TTL
    /// hint of TLBI instructions (FEAT_TTL).
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// This level and those below it.
    pub(super) fn and_below(self) -> impl Iterator<Item = Self> {
        let from = Self::ALL.get(self as usize..).unwrap_or_default();
        from.iter().copied()
    }

    /// The level that a table entry of this one points to; level 3 has none.
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::L0 => Some(Self::L1),
            Self::L1 => Some(Self::L2),
            Self::L2 => Some(Self::L3),
            Self::L3 => None,
        }
    }
}

/// A translation granule: the size of a page and of a table (Arm ARM D8.2, "Translation granules"), and in which
/// of its formats descriptors are. Walks ask it all the time, so its number says what they ask for: log2 of the size
/// in bits \[4:0\], the format in bit 5, and the lowest-numbered level that has blocks in bits \[7:6\].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Granule {
    /// 4 KiB pages, 512 entries to a table; blocks of 2 MiB and 1 GiB.
    #[default]
    K4 = 1 << TOP_SHIFT | 12,
    /// 16 KiB pages, 2048 entries to a table; blocks of 32 MiB.
    K16 = 2 << TOP_SHIFT | 14,
    /// 64 KiB pages, 8192 entries to a table; blocks of 512 MiB.
    K64 = 2 << TOP_SHIFT | 16,
    /// [`Self::K4`] in the format of FEAT_LPA2 (`VTCR_EL2.DS`): blocks of 512 GiB as well.
    K4Lpa2 = 0 << TOP_SHIFT | LPA2 | 12,
    /// [`Self::K16`] in that format: blocks of 64 GiB as well.
    K16Lpa2 = 1 << TOP_SHIFT | LPA2 | 14,
}

/// Log2 of the size of a page.
const SHIFT_MASK: u8 = 0x1f;
/// Descriptors are in the format of FEAT_LPA2.
const LPA2: u8 = 1 << 5;
/// Where the level is.
const TOP_SHIFT: u32 = 6;

impl Granule {
    /// Those that a VM may be described with, the smallest first.
    pub const ALL: [Self; 3] = [Self::K4, Self::K16, Self::K64];

    /// The same in the format of FEAT_LPA2, if the architecture has it there. (What FEAT_LPA is to the 64K granule
    /// is not used.)
    pub const fn lpa2(self) -> Option<Self> {
        match self {
            Self::K4 | Self::K4Lpa2 => Some(Self::K4Lpa2),
            Self::K16 | Self::K16Lpa2 => Some(Self::K16Lpa2),
            Self::K64 => None,
        }
    }

    /// Whether descriptors are in the format of FEAT_LPA2.
    pub const fn is_lpa2(self) -> bool {
        self as u8 & LPA2 != 0
    }

    /// By its name in descriptions of VMs.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }

    /// Its name in descriptions of VMs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::K4 | Self::K4Lpa2 => "4K",
            Self::K16 | Self::K16Lpa2 => "16K",
            Self::K64 => "64K",
        }
    }

    /// log2 of the size of a page, which is also the size of a table.
    pub const fn page_shift(self) -> u32 {
        (self as u8 & SHIFT_MASK) as u32
    }

    /// Size in bytes of a page and of a table.
    pub const fn page_size(self) -> u64 {
        1 << self.page_shift()
    }

    /// How many address bits a full table resolves. An entry takes 8 bytes.
    pub const fn index_bits(self) -> u32 {
        self.page_shift() - 3
    }

    /// Entries in a table.
    pub const fn entries(self) -> usize {
        1 << self.index_bits()
    }

    /// log2 of [`Self::span`].
    pub const fn shift(self, level: Level) -> u32 {
        self.page_shift() + self.index_bits() * (Level::L3.number() - level.number())
    }

    /// How many bytes of IPA space one entry of `level` covers.
    pub const fn span(self, level: Level) -> u64 {
        1 << self.shift(level)
    }

    /// How many bytes of IPA space a whole table of `level` covers.
    pub const fn table_span(self, level: Level) -> u64 {
        1 << (self.shift(level) + self.index_bits())
    }

    /// Whether an entry of `level` can map memory itself, as a block or as a page (Arm ARM D8.3,
    /// "Block descriptor and Page descriptor formats").
    pub const fn has_leaves(self, level: Level) -> bool {
        level as u8 >= self as u8 >> TOP_SHIFT
    }

    /// The lowest-numbered level that has blocks.
    pub const fn top_leaf_level(self) -> Level {
        match self as u8 >> TOP_SHIFT {
            0 => Level::L0,
            1 => Level::L1,
            _ => Level::L2,
        }
    }

    /// Whether memory of `size` bytes from `pa`, mapped from `ipa`, fills a block of the largest that there are.
    pub(super) const fn has_large_block(self, ipa: Ipa, pa: Pa, size: u64) -> bool {
        let block = self.span(self.top_leaf_level());
        let before = ipa.get().wrapping_neg() & (block - 1);
        (ipa.get() ^ pa.get()) & (block - 1) == 0 && size.saturating_sub(before) >= block
    }

    /// How many neighbouring entries of `level`, the first a multiple of that, a CPU may cache as one where
    /// all of them say so (Arm ARM D8.7, "The Contiguous bit"); 1 where there are no leaves, or none but those of
    /// FEAT_LPA2, which has no groups of them.
    pub const fn group(self, level: Level) -> usize {
        // Log2 of it for each level, a byte each.
        let shifts: u32 = match self.page_shift() {
            12 => 0x0404_0400,
            14 => 0x0705_0000,
            _ => 0x0505_0000,
        };
        1 << (shifts >> (8 * level.number()) & 0xff)
    }

    /// Sizes in bytes of blocks and of groups that a CPU may cache as one, the largest first: what the
    /// difference between the IPA and the PA of memory is best a multiple of.
    pub const fn blocks(self) -> &'static [u64] {
        match self {
            Self::K4Lpa2 => &[512 << 30, 16 << 30, 1 << 30, 32 << 20, 2 << 20],
            Self::K4 => &[16 << 30, 1 << 30, 32 << 20, 2 << 20],
            Self::K16Lpa2 => &[64 << 30, 1 << 30, 32 << 20],
            Self::K16 => &[1 << 30, 32 << 20],
            Self::K64 => &[512 << 20],
        }
    }

    /// Which entry of a table of `level` translates `ipa`, in `0..entries()`.
    pub const fn index(self, ipa: Ipa, level: Level) -> usize {
        (ipa.get() >> self.shift(level)) as usize & (self.entries() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granules_have_the_sizes_of_the_architecture() {
        for (granule, entries, spans, leaves) in [
            (
                Granule::K4,
                512,
                [1 << 39, 1 << 30, 2 << 20, 4 << 10],
                [false, true, true, true],
            ),
            (
                Granule::K16,
                2048,
                [1 << 47, 1 << 36, 32 << 20, 16 << 10],
                [false, false, true, true],
            ),
            (
                Granule::K64,
                8192,
                [1 << 55, 1 << 42, 512 << 20, 64 << 10],
                [false, false, true, true],
            ),
            (
                Granule::K4Lpa2,
                512,
                [512 << 30, 1 << 30, 2 << 20, 4 << 10],
                [true, true, true, true],
            ),
            (
                Granule::K16Lpa2,
                2048,
                [1 << 47, 64 << 30, 32 << 20, 16 << 10],
                [false, true, true, true],
            ),
        ] {
            assert_eq!(granule.entries(), entries);
            assert_eq!(Level::ALL.map(|level| granule.span(level)), spans);
            assert_eq!(Level::ALL.map(|level| granule.has_leaves(level)), leaves);
            let named = Granule::from_name(granule.name()).unwrap();
            assert_eq!(named.page_size(), granule.page_size());
            assert_eq!(named == granule, Granule::ALL.contains(&granule));
            assert_eq!(granule.is_lpa2(), named.lpa2() == Some(granule));
        }
        assert_eq!(Granule::from_name("8K"), None);
    }

    #[test]
    fn groups_have_the_sizes_of_the_architecture() {
        let sizes = |granule: Granule| {
            Level::ALL.map(|level| granule.span(level) * granule.group(level) as u64)
        };
        let (k, m, g) = (1 << 10, 1 << 20, 1 << 30);
        assert_eq!(sizes(Granule::K4), [1 << 39, 16 * g, 32 * m, 64 * k]);
        assert_eq!(sizes(Granule::K16), [1 << 47, 1 << 36, g, 2 * m]);
        assert_eq!(sizes(Granule::K64), [1 << 55, 1 << 42, 16 * g, 2 * m]);
        assert_eq!(sizes(Granule::K4Lpa2), sizes(Granule::K4));
        assert_eq!(sizes(Granule::K16Lpa2), sizes(Granule::K16));
    }

    #[test]
    fn memory_has_a_large_block_if_it_fills_one_and_is_as_far_into_one_in_both_spaces() {
        let t = 512 << 30;
        let has = |ipa, pa, size| Granule::K4Lpa2.has_large_block(Ipa::new(ipa), Pa::new(pa), size);
        assert!(has(t, 3 * t, t));
        assert!(!has(t, 3 * t, t - 4096));
        assert!(!has(t, 3 * t + 4096, 4 * t), "not congruent");
        assert!(has(t - 4096, 2 * t - 4096, t + 4096), "after a page");
        assert!(!has(t + 4096, 2 * t + 4096, 2 * t - 8192), "between two");
        assert!(has(u64::MAX - t + 1, 0, t), "the last");
        assert!(!has(0, 0, 0));
    }

    #[test]
    fn an_index_takes_as_many_bits_a_level_as_a_table_has() {
        let ipa = Ipa::new((3 << 39) | (5 << 30) | (7 << 21) | (11 << 12) | 0xabc);
        assert_eq!(
            Level::ALL.map(|level| Granule::K4.index(ipa, level)),
            [3, 5, 7, 11]
        );
        let ipa = Ipa::new((1 << 47) | (5 << 36) | (7 << 25) | (11 << 14) | 0x3abc);
        assert_eq!(
            Level::ALL.map(|level| Granule::K16.index(ipa, level)),
            [1, 5, 7, 11]
        );
        let ipa = Ipa::new((5 << 42) | (7 << 29) | (11 << 16) | 0xfabc);
        assert_eq!(
            Level::ALL.map(|level| Granule::K64.index(ipa, level)),
            [0, 5, 7, 11]
        );
    }
}

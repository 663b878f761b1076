//! The geometry of a translation table: how many bits each level resolves, and which levels may
//! hold a block.
//!
//! Everything that depends on the translation granule is here: tables are slices of
//! [`Granule::entries`] words everywhere else, never arrays of a fixed length. What goes bad, and what
//! is repaired, is a page of 4 KiB whatever the granule: with a larger one, the smallest hole is as large
//! as its page.

use crate::addr::Ipa;

/// A level of the translation table. Level 3 maps pages; lower numbers are nearer the root.
// A word, so that there is no gap behind it in a `Place`: those are copied byte by byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u64)]
pub enum Level {
    /// Level 0: tables only (without FEAT_LPA2).
    L0 = 0,
    /// Level 1: 1 GiB blocks with the 4K granule, tables only with the others.
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

/// A translation granule: the size of a page and of a table (Arm ARM D8.2, "Translation granules").
/// Its number is log2 of that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Granule {
    /// 4 KiB pages, 512 entries to a table; blocks of 2 MiB and 1 GiB.
    #[default]
    K4 = 12,
    /// 16 KiB pages, 2048 entries to a table; blocks of 32 MiB.
    K16 = 14,
    /// 64 KiB pages, 8192 entries to a table; blocks of 512 MiB.
    K64 = 16,
}

impl Granule {
    /// All of them, the smallest first.
    pub const ALL: [Self; 3] = [Self::K4, Self::K16, Self::K64];

    /// By its name in descriptions of VMs.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }

    /// Its name in descriptions of VMs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::K4 => "4K",
            Self::K16 => "16K",
            Self::K64 => "64K",
        }
    }

    /// log2 of the size of a page, which is also the size of a table.
    pub const fn page_shift(self) -> u32 {
        self as u32
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
        level.number() >= self.top_leaf_level().number()
    }

    /// The lowest-numbered level that has blocks.
    pub const fn top_leaf_level(self) -> Level {
        match self {
            Self::K4 => Level::L1,
            Self::K16 | Self::K64 => Level::L2,
        }
    }

    /// How many neighbouring entries of `level`, the first a multiple of that, a CPU may cache as one where
    /// all of them say so (Arm ARM D8.7, "The Contiguous bit"); 1 where there are no leaves.
    pub const fn group(self, level: Level) -> usize {
        match (self, level) {
            _ if !self.has_leaves(level) => 1,
            (Self::K4, _) => 16,
            (Self::K16, Level::L3) => 128,
            _ => 32,
        }
    }

    /// Sizes in bytes of blocks and of groups that a CPU may cache as one, the largest first: what the
    /// difference between the IPA and the PA of memory is best a multiple of.
    pub const fn blocks(self) -> &'static [u64] {
        match self {
            Self::K4 => &[1 << 30, 32 << 20, 2 << 20],
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
        ] {
            assert_eq!(granule.entries(), entries);
            assert_eq!(Level::ALL.map(|level| granule.span(level)), spans);
            assert_eq!(Level::ALL.map(|level| granule.has_leaves(level)), leaves);
            assert_eq!(Granule::from_name(granule.name()), Some(granule));
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

//! The geometry of a translation table: how many bits each level resolves, and which levels may
//! hold a block.
//!
//! Everything that depends on the translation granule is here. Other granules (16K with 32M
//! blocks, 64K with 512M blocks) are further variants of [`Granule`]: tables are slices of
//! [`Granule::entries`] words everywhere else, never arrays of a fixed length.

use crate::addr::Ipa;

/// A level of the translation table. Level 3 maps pages; lower numbers are nearer the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// Level 0: tables only (4K granule without FEAT_LPA2).
    L0 = 0,
    /// Level 1: 1 GiB blocks with the 4K granule.
    L1 = 1,
    /// Level 2: 2 MiB blocks with the 4K granule.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granule {
    /// 4 KiB pages, 512 entries to a table; blocks of 2 MiB and 1 GiB.
    K4,
}

impl Granule {
    /// log2 of the size of a page, which is also the size of a table.
    pub const fn page_shift(self) -> u32 {
        match self {
            Self::K4 => 12,
        }
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
        match self {
            Self::K4 => !matches!(level, Level::L0),
        }
    }

    /// The lowest-numbered level that has blocks.
    pub const fn top_leaf_level(self) -> Level {
        match self {
            Self::K4 => Level::L1,
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
    fn the_4k_granule_has_the_sizes_of_the_architecture() {
        let g = Granule::K4;
        assert_eq!(g.entries(), 512);
        assert_eq!(
            Level::ALL.map(|level| g.span(level)),
            [1 << 39, 1 << 30, 2 << 20, 4096]
        );
        assert_eq!(
            Level::ALL.map(|level| g.has_leaves(level)),
            [false, true, true, true]
        );
    }

    #[test]
    fn an_index_takes_nine_bits_a_level() {
        let ipa = Ipa::new((3 << 39) | (5 << 30) | (7 << 21) | (11 << 12) | 0xabc);
        assert_eq!(
            Level::ALL.map(|level| Granule::K4.index(ipa, level)),
            [3, 5, 7, 11]
        );
    }
}

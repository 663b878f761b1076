//! The CPUs' caches, as a guest's device tree describes them.
//!
//! A guest can read CLIDR_EL1 and CCSIDR_EL1 by itself, but Linux believes that its device tree knows the
//! hierarchy better, and complains where it says nothing. Who shares a cache is in no register: each
//! vCPU has a node of its own for every level.

use alloc::vec::Vec;

/// Most levels that CLIDR_EL1 can name.
const LEVELS: u32 = 7;

/// Size and shape of one cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a line.
    pub line: u32,
    /// Associativity.
    pub ways: u32,
    /// Number of sets.
    pub sets: u32,
}

impl Geometry {
    /// Reads CCSIDR_EL1, which has wider fields with FEAT_CCIDX (Arm ARM D19.2.27).
    pub const fn decode(ccsidr: u64, ccidx: bool) -> Self {
        let (ways, sets) = if ccidx {
            (ccsidr >> 3 & 0x1f_ffff, ccsidr >> 32 & 0xff_ffff)
        } else {
            (ccsidr >> 3 & 0x3ff, ccsidr >> 13 & 0x7fff)
        };
        Self {
            line: 1 << ((ccsidr & 0b111) + 4),
            ways: ways as u32 + 1,
            sets: sets as u32 + 1,
        }
    }

    /// Bytes; `None` for what no cache has.
    pub fn size(self) -> Option<u32> {
        self.line.checked_mul(self.ways)?.checked_mul(self.sets)
    }
}

/// One level of caches of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// One for instructions, one for data, where it has them.
    Split {
        /// For instructions.
        instruction: Option<Geometry>,
        /// For data.
        data: Option<Geometry>,
    },
    /// One for both.
    Unified(Geometry),
}

/// Reads CLIDR_EL1 (Arm ARM D19.2.29), with `ccsidr` giving CCSIDR_EL1 for a value of CSSELR_EL1.
/// The first element is level 1.
pub fn read(clidr: u64, ccidx: bool, mut ccsidr: impl FnMut(u64) -> u64) -> Vec<Level> {
    /// CSSELR_EL1.InD.
    const INSTRUCTION: u64 = 1;
    let mut levels = Vec::new();
    for level in 0..LEVELS {
        let mut geometry = |ind: u64| {
            let selected = u64::from(level) << 1 | ind;
            Geometry::decode(ccsidr(selected), ccidx)
        };
        levels.push(match clidr >> (3 * level) & 0b111 {
            1 => Level::Split {
                instruction: Some(geometry(INSTRUCTION)),
                data: None,
            },
            2 => Level::Split {
                instruction: None,
                data: Some(geometry(0)),
            },
            3 => Level::Split {
                instruction: Some(geometry(INSTRUCTION)),
                data: Some(geometry(0)),
            },
            4 => Level::Unified(geometry(0)),
            // None, and none behind it.
            _ => break,
        });
    }
    levels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cortex_a57s_caches_are_read_as_its_manual_has_them() {
        // CLIDR_EL1 and, by CSSELR_EL1, CCSIDR_EL1 of the Cortex-A57 r1p0 (TRM 4.3.21 and 4.3.22): 48 KiB
        // for instructions, 32 KiB for data, 2 MiB for both.
        let ccsidr = |selected| match selected {
            0 => 0x701f_e00a,
            1 => 0x201f_e012,
            2 => 0x70ff_e07a,
            _ => unreachable!("level {selected}"),
        };
        let levels = read(0x0a20_0023, false, ccsidr);
        let [Level::Split { instruction, data }, Level::Unified(second)] = levels[..] else {
            unreachable!("{levels:?}")
        };
        let sizes = [instruction.unwrap(), data.unwrap(), second].map(Geometry::size);
        assert_eq!(sizes, [Some(48 << 10), Some(32 << 10), Some(2 << 20)]);
        assert_eq!((second.line, second.ways, second.sets), (64, 16, 2048));
    }

    #[test]
    fn with_ccidx_the_fields_are_wider() {
        let geometry = Geometry::decode(0x1ff << 32 | 0xff << 3 | 0b010, true);
        assert_eq!(
            (geometry.line, geometry.ways, geometry.sets),
            (64, 256, 512)
        );
        let most = Geometry::decode(u64::MAX, true);
        assert_eq!(most.size(), None);
    }

    #[test]
    fn what_is_behind_a_level_without_caches_is_not_there() {
        assert_eq!(read(0b100_000_011, false, |_| 0).len(), 1);
        assert_eq!(read(0, false, |_| 0), []);
        assert_eq!(read(u64::MAX, false, |_| 0), []);
    }
}

//! A small machine for the tables: frames that can run out, and a reader of tables that knows the
//! architecture and nothing of the code under test.

use crate::addr::{Ipa, Pa};
use crate::stage2::{FrameSource, TableMemory};
use core::cell::{Cell, RefCell};
use core::sync::atomic::{AtomicU64, Ordering};
use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec::Vec;

/// Where the frames of the machine begin. Not aligned to 16 tables, so that alignment is the
/// source's own work.
const BASE: u64 = 0x4000_3000;

/// Memory for tables. Frames hold rubbish until someone writes to them, as real ones do.
pub(super) struct Memory {
    frames: Vec<Box<[AtomicU64]>>,
    lost: Cell<Option<Pa>>,
}

impl Memory {
    pub(super) fn new(frames: usize) -> Self {
        let frame = || (0..512).map(|_| AtomicU64::new(0xdead_beef_dead_b003));
        Self {
            frames: (0..frames).map(|_| frame().collect()).collect(),
            lost: Cell::new(None),
        }
    }

    /// From now on, the frame cannot be reached.
    pub(super) fn lose(&self, frame: Pa) {
        self.lost.set(Some(frame));
    }
}

impl TableMemory for Memory {
    fn table(&self, frame: Pa) -> Option<&[AtomicU64]> {
        if self.lost.get() == Some(frame) {
            return None;
        }
        let offset = frame.get().checked_sub(BASE)?;
        assert_eq!(offset % 4096, 0, "a table is aligned");
        self.frames
            .get(usize::try_from(offset / 4096).ok()?)
            .map(|words| &words[..])
    }
}

/// Gives out the frames of a [`Memory`], and knows which are out.
pub(super) struct Frames {
    /// By frame number within the machine: whether it is out, and how many it came with.
    out: RefCell<BTreeMap<u64, usize>>,
    total: usize,
    limit: usize,
}

impl Frames {
    pub(super) fn new(total: usize) -> Self {
        Self {
            out: RefCell::default(),
            total,
            limit: total,
        }
    }

    /// Frames that are out.
    pub(super) fn used(&self) -> usize {
        self.out.borrow().values().sum()
    }

    /// From now on, only `more` frames can be had.
    pub(super) fn limit(&mut self, more: usize) {
        self.limit = self.used() + more;
    }

    fn is_free(&self, at: u64) -> bool {
        self.out
            .borrow()
            .range(..=at)
            .next_back()
            .is_none_or(|(first, count)| first + *count as u64 <= at)
    }
}

impl FrameSource for Frames {
    fn take(&mut self, count: usize) -> Option<Pa> {
        let size = 4096 * count as u64;
        if self.used() + count > self.limit {
            return None;
        }
        let first = (0..self.total as u64).find(|first| {
            let end = first + count as u64;
            (BASE + first * 4096).is_multiple_of(size)
                && end <= self.total as u64
                && (*first..end).all(|at| self.is_free(at))
        })?;
        self.out.borrow_mut().insert(first, count);
        Some(Pa::new(BASE + first * 4096))
    }

    fn give_back(&mut self, first: Pa, count: usize) {
        let at = (first.get() - BASE) / 4096;
        assert_eq!(
            self.out.borrow_mut().remove(&at),
            Some(count),
            "{first} was not out like this"
        );
    }
}

/// A leaf as hardware sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HwLeaf {
    pub(super) ipa: u64,
    pub(super) size: u64,
    pub(super) pa: u64,
    /// Everything in the descriptor but address and type.
    pub(super) bits: u64,
    pub(super) level: u32,
}

impl HwLeaf {
    pub(super) fn end(&self) -> u64 {
        self.ipa + self.size
    }

    pub(super) fn contains(&self, ipa: u64) -> bool {
        self.ipa <= ipa && ipa < self.end()
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.ipa < other.end() && other.ipa < self.end()
    }

    /// Whether both send what they have in common to the same place in the same way.
    pub(super) fn agrees_with(&self, other: &Self) -> bool {
        self.pa.wrapping_sub(self.ipa) == other.pa.wrapping_sub(other.ipa)
            && self.bits == other.bits
    }

    /// Whether nothing but S2AP and XN tells them apart.
    pub(super) fn differs_in_permissions(&self, other: &Self) -> bool {
        const PERMISSIONS: u64 = 0b11 << 6 | 0b11 << 53;
        let bits = self.bits & !PERMISSIONS;
        Self { bits, ..*self }
            == Self {
                bits: other.bits & !PERMISSIONS,
                ..*other
            }
    }
}

/// A table as hardware sees it, and caches it on its way to a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HwTable {
    pub(super) ipa: u64,
    pub(super) level: u32,
    pub(super) frame: u64,
}

impl HwTable {
    pub(super) fn contains(&self, ipa: u64) -> bool {
        self.ipa <= ipa && ipa - self.ipa < 1 << (shift(self.level) + 9)
    }

    /// What a CPU translates that remembers this table, whatever the tables above it say now.
    pub(super) fn leaves(&self, memory: &Memory) -> Vec<HwLeaf> {
        let mut seen = Seen::default();
        read_table(memory, self.frame, self.level, self.ipa, &mut seen);
        seen.leaves
    }
}

/// What a CPU finds in tables, in order of IPA.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) leaves: Vec<HwLeaf>,
    /// All tables but the root.
    pub(super) tables: Vec<HwTable>,
}

/// What a CPU with these registers would translate. Written from the Arm ARM's
/// pseudocode (AArch64.S2Walk) for the 4K granule: it shares no code with what it checks.
pub(super) fn hardware(memory: &Memory, vttbr: u64, vtcr: u64) -> Seen {
    let ipa_bits = 64 - (vtcr & 0x3f);
    let level = match vtcr >> 6 & 0b11 {
        0b00 => 2,
        0b01 => 1,
        0b10 => 0,
        sl0 => panic!("SL0 {sl0} is reserved"),
    };
    assert_eq!(vtcr >> 14 & 0b11, 0b00, "TG0 must be 4K");
    let reach = shift(level) + 9;
    let tables = 1 << ipa_bits.saturating_sub(u64::from(reach));
    assert!(tables <= 16, "at most 16 tables are concatenated");
    let root = vttbr & 0x0000_ffff_ffff_fffe;
    assert!(
        root.is_multiple_of(4096 * tables),
        "a root is aligned to all of it"
    );
    let mut seen = Seen::default();
    for at in 0..tables {
        read_table(memory, root + 4096 * at, level, at << reach, &mut seen);
    }
    seen.leaves.retain(|leaf| leaf.ipa >> ipa_bits == 0);
    seen.tables.sort();
    seen
}

fn shift(level: u32) -> u32 {
    12 + 9 * (3 - level)
}

fn read_table(memory: &Memory, table: u64, level: u32, base: u64, seen: &mut Seen) {
    // A walk that meets a lost table gets an abort, which nobody caches.
    let Some(words) = memory.table(Pa::new(table)) else {
        return assert_eq!(memory.lost.get(), Some(Pa::new(table)));
    };
    for (at, word) in (0_u64..).zip(words) {
        let raw = word.load(Ordering::Acquire);
        let ipa = base + (at << shift(level));
        let address = raw & 0x0000_ffff_ffff_f000;
        match (raw & 0b11, level) {
            (0b00 | 0b10, _) => {}
            (0b11, 0..=2) => {
                let (level, frame) = (level + 1, address);
                seen.tables.push(HwTable { ipa, level, frame });
                read_table(memory, address, level, ipa, seen);
            }
            (0b11, 3) | (0b01, 1 | 2) => {
                let size = 1 << shift(level);
                assert!(address.is_multiple_of(size), "bits below a block are RES0");
                assert!(raw & 1 << 10 != 0, "the Access flag is set");
                seen.leaves.push(HwLeaf {
                    ipa,
                    size,
                    pa: address,
                    bits: raw & !(0x0000_ffff_ffff_f000 | 0b11),
                    level,
                });
            }
            _ => panic!("{raw:#x} is reserved at level {level}"),
        }
    }
}

/// Where hardware would send one IPA.
pub(super) fn translate(leaves: &[HwLeaf], ipa: Ipa) -> Option<HwLeaf> {
    leaves.iter().find(|leaf| leaf.contains(ipa.get())).copied()
}

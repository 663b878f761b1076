//! A small machine for the tables: frames that can run out, and a reader of tables that knows the
//! architecture and nothing of the code under test.

use crate::addr::{Ipa, Pa};
use crate::stage2::{FrameSource, Granule, TableMemory};
use core::cell::{Cell, RefCell};
use core::sync::atomic::{AtomicU64, Ordering};
use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec::Vec;

/// Where the frames of the machine begin. Not aligned to 16 tables, so that alignment is the
/// source's own work.
const fn base(size: u64) -> u64 {
    0x4000_0000 + 3 * size
}

/// Memory for tables. Frames hold rubbish until someone writes to them, as real ones do.
pub(super) struct Memory {
    frames: Vec<Box<[AtomicU64]>>,
    /// Bytes of a frame.
    size: u64,
    lost: Cell<Option<Pa>>,
}

impl Memory {
    /// For tables of 4 KiB.
    pub(super) fn new(frames: usize) -> Self {
        Self::of(Granule::K4, frames)
    }

    pub(super) fn of(granule: Granule, frames: usize) -> Self {
        let size = granule.page_size();
        let frame = || (0..size / 8).map(|_| AtomicU64::new(0xdead_beef_dead_b003));
        Self {
            frames: (0..frames).map(|_| frame().collect()).collect(),
            size,
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
        let offset = frame.get().checked_sub(base(self.size))?;
        assert_eq!(offset % self.size, 0, "a table is aligned");
        self.frames
            .get(usize::try_from(offset / self.size).ok()?)
            .map(|words| &words[..])
    }
}

/// Gives out the frames of a [`Memory`], and knows which are out.
pub(super) struct Frames {
    /// By frame number within the machine: whether it is out, and how many it came with.
    out: RefCell<BTreeMap<u64, usize>>,
    /// Bytes of a frame.
    size: u64,
    total: usize,
    limit: usize,
}

impl Frames {
    /// For tables of 4 KiB.
    pub(super) fn new(total: usize) -> Self {
        Self::of(Granule::K4, total)
    }

    pub(super) fn of(granule: Granule, total: usize) -> Self {
        Self {
            out: RefCell::default(),
            size: granule.page_size(),
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
        let size = self.size * count as u64;
        if self.used() + count > self.limit {
            return None;
        }
        let first = (0..self.total as u64).find(|first| {
            let end = first + count as u64;
            (base(self.size) + first * self.size).is_multiple_of(size)
                && end <= self.total as u64
                && (*first..end).all(|at| self.is_free(at))
        })?;
        self.out.borrow_mut().insert(first, count);
        Some(Pa::new(base(self.size) + first * self.size))
    }

    fn give_back(&mut self, first: Pa, count: usize) {
        let at = (first.get() - base(self.size)) / self.size;
        assert_eq!(
            self.out.borrow_mut().remove(&at),
            Some(count),
            "{first} was not out like this"
        );
    }
}

/// Bit 52 of a block or page.
const CONTIGUOUS: u64 = 1 << 52;

/// Bit 16 of a block: nT.
const NOT_CACHED: u64 = 1 << 16;

/// A leaf as hardware sees it, or a group of them that it takes for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HwLeaf {
    pub(super) ipa: u64,
    pub(super) size: u64,
    pub(super) pa: u64,
    /// Everything in the descriptor but address and type; where it does not say how memory is shared, with what
    /// the registers say.
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
            && self.attributes() == other.attributes()
    }

    /// Its bits, but for Contiguous and nT, which are about size.
    pub(super) fn attributes(&self) -> u64 {
        self.bits & !(CONTIGUOUS | NOT_CACHED)
    }

    /// Whether a CPU that caches it anyhow does so without a conflict (FEAT_BBM).
    pub(super) fn is_not_cached(&self) -> bool {
        self.bits & NOT_CACHED != 0
    }

    pub(super) fn is_contiguous(&self) -> bool {
        self.bits & CONTIGUOUS != 0
    }

    /// Whether both come from one contiguous group.
    pub(super) fn is_of_one_group_with(&self, other: &Self) -> bool {
        let grouped = self.is_contiguous() && other.is_contiguous();
        grouped && self.level == other.level && self.agrees_with(other)
    }

    /// What a CPU may take the whole group for that this leaf says it is one of (Arm ARM D8.7.1, "The
    /// Contiguous bit"), with pages of `1 << page` bytes.
    fn group(&self, page: u32) -> Option<Self> {
        let entries = match (page, self.level) {
            _ if !self.is_contiguous() => return None,
            (12, 1..=3) => 16,
            (14, 3) => 128,
            (14 | 16, 2) | (16, 3) => 32,
            other => panic!("no groups at {other:?}"),
        };
        let size = self.size * entries;
        let into = self.ipa % size;
        let pa = self.pa.checked_sub(into).filter(|pa| pa % size == 0);
        Some(Self {
            ipa: self.ipa - into,
            size,
            pa: pa.expect("a group is aligned in PA as it is in IPA"),
            ..*self
        })
    }

    /// Whether nothing but S2AP and XN tells them apart, and nT, which may change in place as well.
    pub(super) fn differs_in_permissions(&self, other: &Self) -> bool {
        const PERMISSIONS: u64 = 0b11 << 6 | 0b11 << 53;
        let bits = self.bits & !(PERMISSIONS | NOT_CACHED);
        Self { bits, ..*self }
            == Self {
                bits: other.bits & !(PERMISSIONS | NOT_CACHED),
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
    /// log2 of the bytes that it translates.
    reach: u32,
    format: Format,
}

/// What VTCR_EL2 says of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Format {
    /// log2 of the size of a page.
    page: u32,
    /// DS: FEAT_LPA2.
    ds: bool,
}

impl Format {
    /// Where a leaf or table of this format is.
    fn address(self, raw: u64) -> u64 {
        let low = raw & 0x0000_ffff_ffff_f000;
        if self.ds {
            // Bits [49:48] as they are, [9:8] as [51:50].
            low | raw & 3 << 48 | (raw >> 8 & 3) << 50
        } else {
            low
        }
    }

    /// The bits of a leaf that are neither address nor type.
    fn attributes(self, raw: u64) -> u64 {
        let bits = raw & !(0x0000_ffff_ffff_f000 | 0b11);
        if !self.ds {
            return bits;
        }
        let bits = bits & !(3 << 48 | 3 << 8);
        // VTCR_EL2.SH0, Inner Shareable, is for Write-Back memory; all other is Outer Shareable.
        let is_write_back = matches!(raw >> 2 & 0xf, 0b1111 | 0b0110);
        bits | if is_write_back { 0b11 << 8 } else { 0b10 << 8 }
    }

    /// The least level that has blocks.
    fn first_block(self) -> u32 {
        match (self.page, self.ds) {
            (12, true) => 0,
            (12, false) | (14, true) => 1,
            _ => 2,
        }
    }
}

impl HwTable {
    pub(super) fn contains(&self, ipa: u64) -> bool {
        self.ipa <= ipa && ipa - self.ipa < 1 << self.reach
    }

    /// What a CPU translates that remembers this table, whatever the tables above it say now.
    pub(super) fn leaves(&self, memory: &Memory) -> Vec<HwLeaf> {
        let mut seen = Seen::default();
        let table = (self.frame, self.level, self.ipa);
        read_table(memory, self.format, table, &mut seen);
        seen.cacheable(self.format.page)
    }
}

/// What a CPU finds in tables, in order of IPA.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) leaves: Vec<HwLeaf>,
    /// All that it may cache: the leaves, and the groups that they make.
    pub(super) cacheable: Vec<HwLeaf>,
    /// All tables but the root.
    pub(super) tables: Vec<HwTable>,
}

impl Seen {
    /// The leaves, and the groups that they make.
    fn cacheable(&self, page: u32) -> Vec<HwLeaf> {
        let mut all = self.leaves.clone();
        let grouped = self.leaves.iter().filter_map(|leaf| leaf.group(page));
        for group in grouped {
            if all.last() != Some(&group) {
                all.push(group);
            }
        }
        if all.len() != self.leaves.len() {
            all.sort();
            all.dedup();
        }
        all
    }
}

/// What a CPU with these registers would translate. Written from the Arm ARM's
/// pseudocode (AArch64.S2Walk): it shares no code with what it checks.
pub(super) fn hardware(memory: &Memory, vttbr: u64, vtcr: u64) -> Seen {
    let ipa_bits = 64 - (vtcr & 0x3f);
    let page = match vtcr >> 14 & 0b11 {
        0b00 => 12,
        0b01 => 16,
        0b10 => 14,
        tg0 => panic!("TG0 {tg0} is reserved"),
    };
    assert_eq!(memory.size, 1 << page, "TG0 is of the size of the tables");
    assert_eq!(vtcr >> 12 & 0b11, 0b11, "SH0 is Inner Shareable");
    let ds = vtcr >> 32 & 1 == 1;
    assert!(page != 16 || !ds, "DS is reserved with 64K");
    let format = Format { page, ds };
    let level = match (page, vtcr >> 6 & 0b11) {
        (12, 0b00) => 2,
        (12, 0b01) => 1,
        (12, 0b10) => 0,
        (14 | 16, sl0 @ 0b00..=0b10) => 3 - u32::try_from(sl0).unwrap(),
        (_, sl0) => panic!("SL0 {sl0} is reserved"),
    };
    let reach = shift(page, level) + page - 3;
    let tables = 1 << ipa_bits.saturating_sub(u64::from(reach));
    assert!(tables <= 16, "at most 16 tables are concatenated");
    let root = vttbr & 0x0000_ffff_ffff_fffe;
    assert!(
        root.is_multiple_of(tables << page),
        "a root is aligned to all of it"
    );
    let mut seen = Seen::default();
    for at in 0..tables {
        let table = (root + (at << page), level, at << reach);
        read_table(memory, format, table, &mut seen);
    }
    seen.leaves.retain(|leaf| leaf.ipa >> ipa_bits == 0);
    seen.cacheable = seen.cacheable(page);
    seen.tables.sort();
    seen
}

/// log2 of what an entry of `level` translates, with pages of `1 << page` bytes.
fn shift(page: u32, level: u32) -> u32 {
    page + (page - 3) * (3 - level)
}

fn read_table(
    memory: &Memory,
    format: Format,
    (table, level, base): (u64, u32, u64),
    seen: &mut Seen,
) {
    let page = format.page;
    // A walk that meets a lost table gets an abort, which nobody caches.
    let Some(words) = memory.table(Pa::new(table)) else {
        return assert_eq!(memory.lost.get(), Some(Pa::new(table)));
    };
    for (at, word) in (0_u64..).zip(words) {
        let raw = word.load(Ordering::Acquire);
        let ipa = base + (at << shift(page, level));
        let address = format.address(raw);
        match (raw & 0b11, level) {
            (0b00 | 0b10, _) => {}
            (0b11, 0..=2) => {
                let (reach, level, frame) = (shift(page, level), level + 1, address);
                seen.tables.push(HwTable {
                    ipa,
                    level,
                    frame,
                    reach,
                    format,
                });
                read_table(memory, format, (address, level, ipa), seen);
            }
            (0b11, 3) | (0b01, 0..=2) if level >= format.first_block() => {
                let size = 1 << shift(page, level);
                let flags = if level < 3 { NOT_CACHED } else { 0 };
                let address = address & !flags;
                assert!(address.is_multiple_of(size), "bits below a block are RES0");
                assert!(raw & 1 << 10 != 0, "the Access flag is set");
                seen.leaves.push(HwLeaf {
                    ipa,
                    size,
                    pa: address,
                    bits: format.attributes(raw) | raw & flags,
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

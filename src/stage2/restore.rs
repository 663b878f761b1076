//! Giving memory back: what is good of a leaf that was taken out, as exactly as the reserve allows.
//!
//! All of it goes from invalid to valid, or to another invalid word, which takes a barrier and no TLB
//! maintenance (Arm ARM D8.16).

use super::bbm::{link, mark};
use super::descriptor::{CONTIGUOUS, Invalid, Leaf, split_word};
use super::env::{TableMemory, Tlb};
use super::granule::{Granule, Level};
use super::reserve::Reserve;
use super::table::fill;
use super::walk::Damage;
use super::{Parts, Stage2};
use crate::addr::{Ipa, Pa, PaRange};
use core::sync::atomic::Ordering;

/// Which memory must not be mapped.
pub trait KnownBad {
    /// The lowest bad page that shares a byte with `range`.
    fn first_in(&self, range: PaRange) -> Option<Pa>;
}

impl<F: Fn(PaRange) -> Option<Pa>> KnownBad for F {
    fn first_in(&self, range: PaRange) -> Option<Pa> {
        self(range)
    }
}

/// What [`Stage2::reopen`] brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reopened {
    /// Size in bytes of the leaf that is there now.
    pub size: u64,
    /// Whether it is a hole.
    pub poisoned: bool,
    /// Tables taken from the reserve.
    pub tables: usize,
    /// Tables left in it.
    pub reserve_left: usize,
}

impl<M: TableMemory, T: Tlb> Stage2<M, T> {
    /// Brings back what is good around `ipa` in a block that [`Self::drop_block`] took out: the largest
    /// block that holds `ipa` and nothing bad, or the page, as a hole if it is bad itself. The rest
    /// stays dropped. `None` where nothing is dropped.
    ///
    /// With the reserve spent, all of the block becomes one hole.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn reopen(&mut self, ipa: Ipa, bad: &impl KnownBad) -> Result<Option<Reopened>, Damage> {
        let mut parts = self.parts();
        let Some(slot) = parts.tree.descend(ipa)? else {
            return Ok(None);
        };
        let Err(Invalid::Parked(leaf)) = slot.leaf else {
            return Ok(None);
        };
        let mut restorer = parts.restorer(bad);
        let (word, level) = restorer.on_demand(leaf, slot.level, ipa);
        let (tables, coarse) = (restorer.tables, restorer.coarse);
        link(slot.word, word);
        parts.surgeon.tlb.publish();
        *parts.coarse += coarse;
        let poisoned = matches!(parts.tree.descend(ipa)?, Some(slot) if slot.leaf.is_err());
        Ok(Some(Reopened {
            size: parts.config.granule().span(level),
            poisoned,
            tables,
            reserve_left: parts.reserve.len(),
        }))
    }
}

/// Makes words for leaves that were taken out.
pub(super) struct Restorer<'a, 'm, M, B> {
    pub(super) granule: Granule,
    /// Whether leaves are marked as groups.
    pub(super) contiguous: bool,
    pub(super) memory: &'m M,
    pub(super) reserve: &'a mut Reserve,
    pub(super) bad: &'a B,
    /// Tables taken from the reserve.
    pub(super) tables: usize,
    /// Bytes that had to be left out.
    pub(super) lost: u64,
    /// Holes among them that are larger than a page.
    pub(super) coarse: usize,
}

impl<M: TableMemory, B: KnownBad> Restorer<'_, '_, M, B> {
    /// A word of `level` that maps all of `leaf` that is good.
    pub(super) fn word(&mut self, leaf: Leaf, level: Level) -> u64 {
        match self.bad.first_in(leaf.range(level, self.granule)) {
            None => leaf.encode(level),
            Some(first) => self
                .around(leaf, level, first)
                .unwrap_or_else(|| self.hole(leaf, level)),
        }
    }

    /// A table for `leaf`, whose first bad page is at `first`; `None` where none can be had.
    fn around(&mut self, leaf: Leaf, level: Level, first: Pa) -> Option<u64> {
        let below = level.below()?;
        let (frame, words) = self.reserve.take(self.granule, self.memory)?;
        self.tables += 1;
        let span = self.granule.span(below);
        let bit = if self.contiguous { CONTIGUOUS } else { 0 };
        fill(words, leaf.encode(below) | bit, span);
        let group = self.granule.group(below);
        let range = leaf.range(level, self.granule);
        let mut next = Some(first);
        while let Some(offset) = next.and_then(|pa| pa.checked_offset_from(range.start())) {
            let index = offset >> self.granule.shift(below);
            // A `bad` that names memory outside of what it was asked for ends the loop here.
            let at = usize::try_from(index).unwrap_or(usize::MAX);
            let Some(word) = words.get(at) else {
                break;
            };
            let start = at & !(group - 1);
            mark(words.get(start..start + group).unwrap_or_default(), false);
            let part = leaf.part(offset, span);
            link(word, self.word(part, below));
            let left = range.size() - (index + 1) * span;
            let rest = part.pa().checked_add(span);
            next = rest
                .and_then(|rest| PaRange::new(rest, left))
                .and_then(|rest| self.bad.first_in(rest));
        }
        Some(split_word(frame))
    }

    /// A word of `level` that maps the largest good part of a dropped `leaf` that holds `ipa`, and
    /// leaves the rest dropped; the level of that part.
    fn on_demand(&mut self, leaf: Leaf, level: Level, ipa: Ipa) -> (u64, Level) {
        let range = leaf.range(level, self.granule);
        if self.bad.first_in(range).is_none() {
            return (leaf.encode(level), level);
        }
        let Some(below) = level.below() else {
            return (self.hole(leaf, level), level);
        };
        let table = self.reserve.take(self.granule, self.memory);
        let entry = table.and_then(|(frame, words)| {
            let word = words.get(self.granule.index(ipa, below))?;
            Some((frame, words, word))
        });
        let Some((frame, words, word)) = entry else {
            return (self.hole(leaf, level), level);
        };
        self.tables += 1;
        let span = self.granule.span(below);
        fill(words, Invalid::Parked(leaf).encode(below), span);
        let part = leaf.part(ipa.get() & (range.size() - 1), span);
        let (value, end) = self.on_demand(part, below, ipa);
        link(word, value);
        (split_word(frame), end)
    }

    fn hole(&mut self, leaf: Leaf, level: Level) -> u64 {
        self.lost += self.granule.span(level);
        self.coarse += usize::from(level != Level::L3);
        Invalid::Poisoned(leaf).encode(level)
    }
}

impl<M: TableMemory, T: Tlb> Parts<'_, M, T> {
    /// Brings back all that is good of the hole in `slot`. Returns how many bytes stay lost.
    pub(super) fn restore(
        &mut self,
        word: &core::sync::atomic::AtomicU64,
        (leaf, level): (Leaf, Level),
        bad: &impl KnownBad,
    ) -> u64 {
        let mut restorer = self.restorer(bad);
        let value = restorer.word(leaf, level);
        let (lost, coarse) = (restorer.lost, restorer.coarse);
        if value != word.load(Ordering::Relaxed) {
            link(word, value);
            self.surgeon.tlb.publish();
        }
        // It was one itself.
        *self.coarse = (*self.coarse + coarse).saturating_sub(usize::from(level != Level::L3));
        lost
    }
}

//! The granule protection table as a poison switch (Arm ARM D9, FEAT_RME).
//!
//! The table says for each granule of physical memory in which physical address spaces it may be
//! accessed. Here it knows two answers: *any*, and *none*, which is what poison is: every access
//! from any exception level below EL3 takes a granule protection fault to EL3.
//!
//! Level 0 has one entry for each GiB. A GiB without poison is one block entry and costs nothing.
//! The first poison in it takes a level-1 table from a fixed pool, and the last heal gives it
//! back. Level 1 holds sixteen 4-bit GPIs to a word, one for each 4 KiB granule.
//!
//! **Ownership.** One [`Gpt`] owns both levels and sits under the firmware's one lock; the walks of
//! all CPUs read the tables without it. So every word is written whole, and a level-1 table is
//! filled before it is linked. A table that is given back may still be in a walk cache until the
//! TLB invalidation at the end of the same call has completed on all CPUs (a DSB waits for that,
//! Arm ARM D8.17); nobody can take the table before, because the caller holds the lock until then.
//!
//! **A change is all or nothing**: the tables it needs are counted before the first is taken.

use core::sync::atomic::{AtomicU64, Ordering};

use cordon::addr::{PAGE_SHIFT, PAGE_SIZE, Pa, PaRange, Pfn};

use crate::layout::OWN;

/// Size of the protected address space in bits: `GPCCR_EL3.PPS` = 0b100. Beyond it the normal world
/// may access everything, and nothing can be poisoned.
pub const PPS_BITS: u32 = 44;
/// Bits of the address that one level-0 entry covers: `GPCCR_EL3.L0GPTSZ` = 0b0000, 1 GiB.
const L0_SHIFT: u32 = 30;
/// GPIs in a word.
const GPIS: u64 = 16;
/// log2 of the memory that a level-1 word covers.
const WORD_SHIFT: u32 = PAGE_SHIFT + 4;
/// Words in a table: at either level 16384 by the choice of sizes above.
const WORDS: usize = 1 << (L0_SHIFT - WORD_SHIFT);
const _: () = assert!(WORDS == 1 << (PPS_BITS - L0_SHIFT));

/// Size of a table in bytes, and the alignment it needs: level 0 that of its size, level 1 too.
pub const TABLE_SIZE: usize = WORDS * 8;

/// A word of level 1 with all sixteen granules accessible from anywhere: GPI 0b1111.
const ALL_ANY: u64 = u64::MAX;
/// A level-0 block entry: bits 3:0 = 1, the GPI (any) in bits 7:4.
const BLOCK_ANY: u64 = 0xf << 4 | 1;
/// The low bits of a level-0 table entry.
const TABLE: u64 = 3;

/// One table of either level.
#[repr(C, align(131072))]
#[derive(Debug)]
pub struct Table([AtomicU64; WORDS]);
const _: () = assert!(size_of::<Table>() == TABLE_SIZE && align_of::<Table>() == TABLE_SIZE);

impl Table {
    /// A table of zeros: no granule may be accessed. To be filled before the hardware sees it.
    #[expect(
        clippy::new_without_default,
        reason = "a default of 128 KiB by value is a trap"
    )]
    #[must_use]
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; WORDS])
    }

    /// Its physical address: the firmware's memory is mapped one to one.
    #[must_use]
    pub fn address(&self) -> u64 {
        core::ptr::from_ref(self).addr() as u64
    }

    fn fill(&self, value: u64) {
        for word in &self.0 {
            word.store(value, Ordering::Relaxed);
        }
    }

    fn word(&self, index: u64) -> Option<&AtomicU64> {
        self.0.get(usize::try_from(index).ok()?)
    }
}

/// What the CPU must do so that all CPUs see a changed table.
pub trait Tlb {
    /// Makes earlier writes to tables visible to walks before later ones.
    fn publish(&mut self);

    /// Removes all cached GPT entries of all CPUs and waits until that is done.
    fn invalidate(&mut self);
}

/// Why a span cannot change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Beyond the protected address space, or the firmware's own.
    NotMemory,
    /// No pages.
    Empty,
    /// The pool has not enough tables.
    NoTable,
}

/// Pages that may be poisoned: within the protected space, not the firmware's own, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(PaRange);

impl Span {
    /// The `pages` pages from the one that holds `pa`.
    ///
    /// # Errors
    /// [`Refusal::Empty`], [`Refusal::NotMemory`].
    pub fn new(pa: u64, pages: u64) -> Result<Self, Refusal> {
        if pages == 0 {
            return Err(Refusal::Empty);
        }
        let size = pages.checked_mul(PAGE_SIZE).ok_or(Refusal::NotMemory)?;
        let range = PaRange::new(Pa::new(pa).page(), size).ok_or(Refusal::NotMemory)?;
        if range.last().get() >> PPS_BITS != 0 || range.overlaps(OWN) {
            return Err(Refusal::NotMemory);
        }
        Ok(Self(range))
    }

    /// Its pages.
    pub fn pages(self) -> impl Iterator<Item = Pa> {
        self.0.pfns().map(|pfn| Pfn::new(pfn).pa())
    }

    fn gibs(self) -> core::ops::RangeInclusive<u64> {
        self.0.start().get() >> L0_SHIFT..=self.0.last().get() >> L0_SHIFT
    }

    /// The level-1 words of GiB `gib` that the span touches, each with the bits of its GPIs.
    fn words(self, gib: u64) -> impl Iterator<Item = (u64, u64)> {
        let (first, last) = (
            self.0.start().get() >> PAGE_SHIFT,
            self.0.last().get() >> PAGE_SHIFT,
        );
        let per_gib = 1u64 << (L0_SHIFT - PAGE_SHIFT);
        let first = first.max(gib * per_gib);
        let last = last.min(gib * per_gib + (per_gib - 1));
        (first / GPIS..=last / GPIS).map(move |word| {
            let low = first.max(word * GPIS) % GPIS;
            let high = last.min(word * GPIS + (GPIS - 1)) % GPIS;
            let mask = (u64::MAX >> (4 * (GPIS - 1 - high))) & (u64::MAX << (4 * low));
            (word % WORDS as u64, mask)
        })
    }
}

/// Who uses a table of the pool.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Poisoned granules in it.
    bad: u32,
    /// Whether it is linked.
    used: bool,
}

/// The two levels and the pool.
#[derive(Debug)]
pub struct Gpt<'a, const N: usize> {
    level0: &'a Table,
    pool: &'a [Table; N],
    slots: [Slot; N],
    poisoned: u64,
}

impl<'a, const N: usize> Gpt<'a, N> {
    /// Fills level 0 so that all memory may be accessed. The hardware may use it afterwards.
    pub fn new(level0: &'a Table, pool: &'a [Table; N]) -> Self {
        level0.fill(BLOCK_ANY);
        Self {
            level0,
            pool,
            slots: [Slot {
                bad: 0,
                used: false,
            }; N],
            poisoned: 0,
        }
    }

    /// How many pages are poisoned.
    #[must_use]
    pub const fn poisoned(&self) -> u64 {
        self.poisoned
    }

    /// How many tables the pool has left.
    #[must_use]
    pub fn tables_free(&self) -> usize {
        self.slots.iter().filter(|slot| !slot.used).count()
    }

    /// Makes the pages inaccessible. Returns how many were accessible before.
    ///
    /// # Errors
    /// [`Refusal::NoTable`]; nothing has changed then.
    pub fn poison(&mut self, span: Span, tlb: &mut impl Tlb) -> Result<u64, Refusal> {
        let missing = span
            .gibs()
            .filter(|&gib| self.slot_of(gib).is_none())
            .count();
        if missing > self.tables_free() {
            return Err(Refusal::NoTable);
        }
        let mut changed = 0;
        for gib in span.gibs() {
            let slot = self
                .slot_of(gib)
                .or_else(|| self.link(gib, tlb))
                .ok_or(Refusal::NoTable)?;
            changed += self.change(slot, span.words(gib), |word, mask| word & !mask);
        }
        self.poisoned += changed;
        tlb.publish();
        tlb.invalidate();
        Ok(changed)
    }

    /// Makes the pages accessible again. Returns how many were not.
    pub fn heal(&mut self, span: Span, tlb: &mut impl Tlb) -> u64 {
        let mut changed = 0;
        for gib in span.gibs() {
            if let Some(slot) = self.slot_of(gib) {
                changed += self.change(slot, span.words(gib), |word, mask| word | mask);
                self.unlink_if_healed(gib, slot);
            }
        }
        self.poisoned -= changed;
        tlb.publish();
        tlb.invalidate();
        changed
    }

    /// Whether any page of `range` is poisoned.
    #[must_use]
    pub fn is_poisoned(&self, range: PaRange) -> bool {
        if range.last().get() >> PPS_BITS != 0 {
            return false;
        }
        let span = Span(range);
        span.gibs().any(|gib| {
            let table = self.slot_of(gib).and_then(|slot| self.pool.get(slot));
            table.is_some_and(|table| {
                span.words(gib).any(|(index, mask)| {
                    let word = table
                        .word(index)
                        .map_or(ALL_ANY, |w| w.load(Ordering::Relaxed));
                    word & mask != mask
                })
            })
        })
    }

    /// Applies `edit` to the words and returns how many GPIs changed.
    fn change(
        &mut self,
        slot: usize,
        words: impl Iterator<Item = (u64, u64)>,
        edit: impl Fn(u64, u64) -> u64,
    ) -> u64 {
        let (Some(table), Some(state)) = (self.pool.get(slot), self.slots.get_mut(slot)) else {
            return 0;
        };
        let mut changed = 0;
        for (index, mask) in words {
            let Some(word) = table.word(index) else {
                continue;
            };
            let old = word.load(Ordering::Relaxed);
            let new = edit(old, mask);
            word.store(new, Ordering::Relaxed);
            // A GPI here is all ones or all zeros, so each changed one changes four bits.
            changed += u64::from((old ^ new).count_ones() / 4);
            state.bad = state.bad + (old & !new).count_ones() / 4 - (new & !old).count_ones() / 4;
        }
        changed
    }

    /// The pool's table for GiB `gib`, if it has one.
    fn slot_of(&self, gib: u64) -> Option<usize> {
        let entry = self.level0.word(gib)?.load(Ordering::Relaxed);
        if entry & 0xf != TABLE {
            return None;
        }
        let offset = (entry & !0xfff).checked_sub(self.pool.first()?.address())?;
        usize::try_from(offset)
            .ok()
            .map(|offset| offset / TABLE_SIZE)
    }

    fn link(&mut self, gib: u64, tlb: &mut impl Tlb) -> Option<usize> {
        let index = self.slots.iter().position(|slot| !slot.used)?;
        let (slot, table) = (self.slots.get_mut(index)?, self.pool.get(index)?);
        *slot = Slot { bad: 0, used: true };
        table.fill(ALL_ANY);
        tlb.publish();
        self.level0
            .word(gib)?
            .store(table.address() | TABLE, Ordering::Release);
        Some(index)
    }

    fn unlink_if_healed(&mut self, gib: u64, index: usize) {
        let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.bad == 0) else {
            return;
        };
        if let Some(entry) = self.level0.word(gib) {
            entry.store(BLOCK_ANY, Ordering::Release);
            slot.used = false;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;

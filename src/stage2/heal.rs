//! Healing: memory that is in order again is mapped again, and what was split becomes a block again.
//!
//! Only a table that stands for a block, because a split made it, is ever merged; so nothing grows
//! beyond what [`Stage2::map`] made of it. It is merged when its entries are once more one run
//! of leaves, contiguous and with the same attributes, and nothing in it is bad. What was dropped
//! and is good counts as mapped. Its frames return to the reserve, when no CPU can walk
//! them any more; and with frames there, holes larger than a page shrink to what is really bad.
//!
//! Leaves that continue each other are marked again as what CPUs may cache as one, whoever made them.

use super::bbm::{Place, Surgeon, link};
use super::descriptor::{Entry, Invalid, Leaf, is_split, table_of};
use super::env::{TableMemory, Tlb};
use super::granule::{Granule, Level};
use super::reserve::Reserve;
use super::restore::KnownBad;
use super::walk::{Below, Damage, Run, Visitor};
use super::{Parts, Stage2};
use crate::addr::{Ipa, PAGE_SHIFT, PAGE_SIZE, Pa, PaRange};
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

/// What a page's return brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mended {
    /// The page.
    pub ipa: Ipa,
    /// Size in bytes of the leaf that maps it now.
    pub block: u64,
    /// Tables that went back to the reserve.
    pub tables: usize,
    /// Bytes, beside the page, that had been lost to a large granule or a spent reserve and are mapped
    /// again.
    pub regained: u64,
    /// Tables in the reserve now.
    pub reserve_left: usize,
}

/// What [`Stage2::mend`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum MendOutcome {
    /// The page is mapped.
    Mended(Mended),
    /// It was no hole. It is mapped, or will be when somebody asks for it: what was dropped is mapped
    /// again as soon as all of its block is good.
    NoHole,
    /// The memory behind it is known to be bad: nothing has changed.
    StillBad,
    /// It is good, but in a hole with others that are not, and that cannot be made smaller: because of the
    /// granule, or while the reserve is spent. It returns when they are good, or frames are back.
    Waiting {
        /// Size in bytes of the hole.
        size: u64,
    },
    /// Nothing was ever mapped there.
    NotMapped,
}

impl<M: TableMemory, T: Tlb> Stage2<M, T> {
    /// Maps the page of 4 KiB that holds `ipa` again, where it is a hole and `bad` does not know its memory
    /// any more, and heals what can be healed. With a larger granule it comes back together with its
    /// neighbours, when the last of them is good.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn mend(&mut self, ipa: Ipa, bad: &impl KnownBad) -> Result<MendOutcome, Damage> {
        let granule = self.config.granule();
        let ipa = ipa.page();
        let mut parts = self.parts();
        let Some(slot) = parts.tree.descend(ipa)? else {
            return Ok(MendOutcome::NotMapped);
        };
        let size = granule.span(slot.level);
        let is_good = |leaf: Leaf| bad.first_in(leaf.range(slot.level, granule)).is_none();
        let leaf = match slot.leaf {
            Err(Invalid::Poisoned(leaf)) => leaf,
            Err(Invalid::Parked(leaf)) if is_good(leaf) => {
                link(slot.word, leaf.encode(slot.level));
                parts.surgeon.tlb.publish();
                parts.heal_and_refine(page(ipa, granule), bad)?;
                return Ok(MendOutcome::NoHole);
            }
            Ok(_) | Err(Invalid::Parked(_)) => return Ok(MendOutcome::NoHole),
            Err(_) => return Ok(MendOutcome::NotMapped),
        };
        let own = leaf.part(ipa.get() & (size - 1), PAGE_SIZE).pa();
        if bad.first_in(PaRange::of_block(own, PAGE_SHIFT)).is_some() {
            return Ok(MendOutcome::StillBad);
        }
        let before = parts.reserve.len();
        let mut regained = size - parts.restore(slot.word, (leaf, slot.level), bad);
        let used = before.saturating_sub(parts.reserve.len());
        let mut tables = parts.heal(page(ipa, granule), bad)?;
        let (more, freed) = parts.refine(bad)?;
        regained += more;
        tables += freed;
        let reserve_left = parts.reserve.len();
        Ok(match parts.tree.descend(ipa)? {
            Some(slot) if slot.leaf.is_ok() => MendOutcome::Mended(Mended {
                ipa,
                block: granule.span(slot.level),
                tables: tables.saturating_sub(used),
                regained: regained.saturating_sub(PAGE_SIZE),
                reserve_left,
            }),
            _ => MendOutcome::Waiting { size },
        })
    }

    /// Holes larger than a page, of which good memory is a part.
    pub const fn coarse_holes(&self) -> usize {
        self.coarse
    }

    /// Makes holes larger than a page as small as the reserve allows. Returns how many bytes are mapped
    /// again. [`Self::mend`] does so by itself.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn refine(&mut self, bad: &impl KnownBad) -> Result<u64, Damage> {
        Ok(self.parts().refine(bad)?.0)
    }
}

/// The page of the tables that holds `ipa`.
fn page(ipa: Ipa, granule: Granule) -> Range<u64> {
    let start = ipa.align_down(granule.page_size()).get();
    start..start.saturating_add(granule.page_size())
}

impl<M: TableMemory, T: Tlb> Parts<'_, M, T> {
    /// Merges all tables on the way to `range`, and below, that have become whole, and has CPUs cache as one
    /// what can be. Returns how many frames the reserve got.
    pub(super) fn heal(&mut self, range: Range<u64>, bad: &impl KnownBad) -> Result<usize, Damage> {
        let before = self.reserve.len();
        let mut healer = Healer {
            granule: self.config.granule(),
            memory: self.memory,
            reserve: self.reserve,
            surgeon: &self.surgeon,
            bad,
        };
        self.tree.walk(range.clone(), &mut healer)?;
        if self.config.contiguous() {
            let mut grouper = Grouper {
                granule: self.config.granule(),
                surgeon: &self.surgeon,
            };
            self.tree.walk(range, &mut grouper)?;
        }
        Ok(self.reserve.len().saturating_sub(before))
    }

    /// [`Self::heal`], and what its frames are good for.
    pub(super) fn heal_and_refine(
        &mut self,
        range: Range<u64>,
        bad: &impl KnownBad,
    ) -> Result<(), Damage> {
        self.heal(range, bad)?;
        self.refine(bad)?;
        Ok(())
    }

    /// Shrinks coarse holes, heals, and goes on as long as that brings frames for more. Each round
    /// maps memory again, so there are not many. Bytes that are mapped again, and frames that the
    /// healing brought.
    fn refine(&mut self, bad: &impl KnownBad) -> Result<(u64, usize), Damage> {
        let (mut regained, mut freed) = (0, 0);
        while *self.coarse > 0 {
            let tree = self.tree;
            let mut refiner = Refiner {
                parts: self,
                bad,
                regained: 0,
            };
            tree.walk(0..u64::MAX, &mut refiner)?;
            let round = refiner.regained;
            if round == 0 {
                break;
            }
            regained += round;
            freed += self.heal(0..u64::MAX, bad)?;
        }
        Ok((regained, freed))
    }
}

/// Merges what has become whole.
struct Healer<'a, M, T, B> {
    granule: Granule,
    memory: &'a M,
    reserve: &'a mut Reserve,
    surgeon: &'a Surgeon<'a, T>,
    bad: &'a B,
}

impl<M: TableMemory, T: Tlb, B: KnownBad> Visitor for Healer<'_, M, T, B> {
    type Stop = Damage;

    fn run(&mut self, run: &Run<'_>) -> Result<Below, Damage> {
        let mut below = Below::Skip;
        for word in run.words {
            let raw = word.load(Ordering::Relaxed);
            let Some((table, level)) = table_of(raw, run.level) else {
                continue;
            };
            below = Below::Visit;
            let Some(leaf) = self.whole(raw, run.level) else {
                continue;
            };
            if self
                .bad
                .first_in(leaf.range(run.level, self.granule))
                .is_some()
            {
                continue;
            }
            self.surgeon.merge(&Place {
                word,
                level: run.level,
                leaf,
                group: None,
            });
            self.recycle(table, level);
        }
        Ok(below)
    }
}

impl<M: TableMemory, T, B> Healer<'_, M, T, B> {
    /// The block that the table in entry `raw` of a table of `level` has become.
    fn whole(&self, raw: u64, level: Level) -> Option<Leaf> {
        let (table, below) = table_of(raw, level).filter(|_| is_split(raw))?;
        let words = self.memory.table(table)?;
        let first = self.leaf_of(words.first()?, below)?;
        let span = self.granule.span(below);
        let run = (0_u64..).zip(words).skip(1);
        let mut rest = run.map(|(at, word)| (first.part(at * span, span), word));
        let aligned = first.pa().is_aligned(self.granule.span(level));
        let whole =
            aligned && rest.all(|(expected, word)| self.leaf_of(word, below) == Some(expected));
        whole.then_some(first)
    }

    /// The leaf that `word` is, or could be.
    fn leaf_of(&self, word: &AtomicU64, level: Level) -> Option<Leaf> {
        let raw = word.load(Ordering::Relaxed);
        match Entry::parse(raw, level, self.granule) {
            Entry::Leaf(leaf) | Entry::Invalid(Invalid::Parked(leaf)) => Some(leaf),
            Entry::Table(..) => self.whole(raw, level),
            Entry::Invalid(_) => None,
        }
    }

    /// Gives the frames of a table that has been left, and of those below it, to the reserve. All of
    /// them came from there.
    fn recycle(&mut self, table: Pa, level: Level) {
        for word in self.memory.table(table).into_iter().flatten() {
            if let Some((next, below)) = table_of(word.load(Ordering::Relaxed), level) {
                self.recycle(next, below);
            }
        }
        self.reserve.put(table);
    }
}

/// Marks leaves that continue each other as what CPUs may cache as one. That is always right, whoever made
/// them: it changes nothing but how they are cached.
struct Grouper<'a, T> {
    granule: Granule,
    surgeon: &'a Surgeon<'a, T>,
}

impl<T: Tlb> Visitor for Grouper<'_, T> {
    type Stop = Damage;

    fn run(&mut self, run: &Run<'_>) -> Result<Below, Damage> {
        for group in run.groups() {
            if !group.is_marked() && is_one_run(group.words, group.level, self.granule) {
                self.surgeon.regroup(&group, true);
            }
        }
        Ok(Below::Visit)
    }
}

/// Whether entries of `level`, unmarked and as many as a group has, are leaves that continue each other, the
/// first of them aligned to all.
pub(super) fn is_one_run(words: &[AtomicU64], level: Level, granule: Granule) -> bool {
    let Some(first) = words.first().map(|word| word.load(Ordering::Relaxed)) else {
        return false;
    };
    let span = granule.span(level);
    let Entry::Leaf(leaf) = Entry::parse(first, level, granule) else {
        return false;
    };
    let mut expected = (first..).step_by(span as usize);
    leaf.pa().is_aligned(span * words.len() as u64)
        && words
            .iter()
            .all(|word| expected.next() == Some(word.load(Ordering::Relaxed)))
}

/// Shrinks holes that are larger than a page.
struct Refiner<'a, 'm, M, T, B> {
    parts: &'a mut Parts<'m, M, T>,
    bad: &'a B,
    regained: u64,
}

impl<M: TableMemory, T: Tlb, B: KnownBad> Visitor for Refiner<'_, '_, M, T, B> {
    type Stop = Damage;

    fn run(&mut self, run: &Run<'_>) -> Result<Below, Damage> {
        let granule = self.parts.config.granule();
        if run.level == Level::L3 {
            return Ok(Below::Skip);
        }
        for word in run.words {
            let raw = word.load(Ordering::Relaxed);
            if let Entry::Invalid(Invalid::Poisoned(leaf)) = Entry::parse(raw, run.level, granule) {
                let lost = self.parts.restore(word, (leaf, run.level), self.bad);
                self.regained += run.span().saturating_sub(lost);
            }
        }
        Ok(Below::Visit)
    }
}

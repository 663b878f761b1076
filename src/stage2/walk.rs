//! The one walker. Everything that looks at more than one entry is a small [`Visitor`] of it.
//!
//! The walker goes by *runs*, not by leaves: it hands a visitor all entries of one table that the
//! range touches, at once, so that a visitor can write a thousand blocks in a tight loop. After the
//! visitor has seen (and perhaps changed) a run, the walker goes through it in order: it descends
//! into the tables, and shows the visitor the other entries one by one, for those that need all of
//! a map in order of IPA.

use super::bbm::{Group, Place};
use super::config::Config;
use super::descriptor::{Entry, Invalid, Leaf, is_contiguous, pointed_to};
use super::env::TableMemory;
use super::granule::{Granule, Level};
use crate::addr::{Ipa, Pa};
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

/// A table that cannot be reached, or has too few entries, or an entry that Cordon never writes: the
/// tree is not what Cordon built. There is no way to go on with this VM's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The frame that holds the table, or should.
    pub table: Pa,
    /// The level of the table.
    pub level: Level,
    /// An IPA that was to be translated by it.
    pub ipa: Ipa,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = self.level.number();
        write!(
            f,
            "damaged-table-{}-level-{level}-ipa-{}",
            self.table, self.ipa
        )
    }
}

/// Neighbouring entries of one table.
pub(super) struct Run<'m> {
    pub(super) level: Level,
    /// First IPA that the first entry translates. It may lie before the range of the walk.
    pub(super) base: Ipa,
    pub(super) words: &'m [AtomicU64],
    /// All of the table, and which of its entries is the first of the run.
    table: &'m [AtomicU64],
    first: usize,
    granule: Granule,
}

impl<'m> Run<'m> {
    /// Bytes that one entry covers.
    pub(super) const fn span(&self) -> u64 {
        self.granule.span(self.level)
    }

    /// Each entry, with the first IPA that it translates.
    pub(super) fn slots(&self) -> impl Iterator<Item = (u64, &'m AtomicU64)> + use<'m> {
        let (base, shift) = (self.base.get(), self.granule.shift(self.level));
        (0_u64..)
            .zip(self.words)
            .map(move |(at, word)| (base + (at << shift), word))
    }

    /// How many entries of the run come before the first whole group.
    pub(super) const fn before_groups(&self) -> usize {
        self.first.wrapping_neg() & (self.granule.group(self.level) - 1)
    }

    /// The groups that entries of the run are in, each as a whole.
    pub(super) fn groups(&self) -> impl Iterator<Item = Group<'m>> + use<'m> {
        let (size, span) = (self.granule.group(self.level), self.span());
        let (level, into) = (self.level, self.first & (size - 1));
        let base = self.base.get() - into as u64 * span;
        let end = (self.first + self.words.len()).next_multiple_of(size);
        let words = self.table.get(self.first - into..end).unwrap_or_default();
        let groups = (0_u64..)
            .zip(words.chunks_exact(size))
            .map(move |(at, words)| Group {
                words,
                level,
                base: Ipa::new(base + at * span * size as u64),
                span,
            });
        groups.filter(move |_| size > 1)
    }
}

/// Whether a walk goes on below a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Below {
    /// Into each table that an entry of the run points to.
    Visit,
    /// Nothing there, or nothing of interest.
    Skip,
}

/// An entry that is no table.
pub(super) struct Found {
    pub(super) ipa: Ipa,
    pub(super) level: Level,
    /// Bytes that it covers.
    pub(super) span: u64,
    /// The leaf there, or why there is none.
    pub(super) leaf: Result<Leaf, Invalid>,
    /// Whether it is one of a group that CPUs may cache as one.
    pub(super) contiguous: bool,
}

/// What a walk is for.
pub(super) trait Visitor {
    /// Why the walk ends early.
    type Stop: From<Damage>;

    /// Sees a run before anything in it or below it.
    fn run(&mut self, run: &Run<'_>) -> Result<Below, Self::Stop>;

    /// Sees an entry that is no table, in its turn.
    fn entry(&mut self, _at: &Found) -> Result<(), Self::Stop> {
        Ok(())
    }

    /// Sees the frame of a table for the last time, after what is below it. Root tables are not
    /// among them.
    fn leave(&mut self, _table: Pa) {}
}

/// Where the path to an IPA ends.
pub(super) struct Slot<'m> {
    pub(super) word: &'m AtomicU64,
    pub(super) level: Level,
    /// First IPA that the entry translates.
    pub(super) base: Ipa,
    /// The leaf there, or why there is none, which is never that the entry is unknown.
    pub(super) leaf: Result<Leaf, Invalid>,
    /// All of the table.
    table: &'m [AtomicU64],
}

impl<'m> Slot<'m> {
    /// The place of `leaf`, which is this slot's.
    pub(super) fn place(&self, leaf: Leaf, granule: Granule) -> Place<'m> {
        Place {
            word: self.word,
            level: self.level,
            leaf,
            group: self.group(granule),
        }
    }

    /// All entries of the group that the leaf is one of, if it is.
    fn group(&self, granule: Granule) -> Option<&'m [AtomicU64]> {
        if !is_contiguous(self.word.load(Ordering::Relaxed)) {
            return None;
        }
        let size = granule.group(self.level);
        let first = granule.index(self.base, self.level) & !(size - 1);
        self.table.get(first..first + size)
    }
}

impl Slot<'_> {
    /// The memory behind `ipa`, which the entry translates, or did while it was valid.
    pub(super) fn memory_of(&self, ipa: Ipa, granule: Granule) -> Option<Pa> {
        match self.leaf {
            Ok(leaf) | Err(Invalid::Poisoned(leaf) | Invalid::Parked(leaf)) => {
                let offset = ipa.get() & (granule.span(self.level) - 1);
                Some(Pa::new(leaf.pa().get() | offset))
            }
            Err(Invalid::NeverMapped | Invalid::Unknown(_)) => None,
        }
    }
}

/// The tables of a VM, for reading and for storing words, not for owning them.
pub(super) struct Tree<'m, M> {
    memory: &'m M,
    config: &'m Config,
    root: Pa,
}

impl<M> Clone for Tree<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Tree<'_, M> {}

impl<'m, M: TableMemory> Tree<'m, M> {
    pub(super) const fn new(memory: &'m M, config: &'m Config, root: Pa) -> Self {
        Self {
            memory,
            config,
            root,
        }
    }

    /// Follows the path to `ipa`; `None` where that is outside the IPA space.
    pub(super) fn descend(&self, ipa: Ipa) -> Result<Option<Slot<'m>>, Damage> {
        if !self.config.has_ipa(ipa) {
            return Ok(None);
        }
        let granule = self.config.granule();
        let mut shift = granule.shift(self.config.start_level());
        let mut table = self.root_table(ipa.get() >> (shift + granule.index_bits()));
        // At level 3 there is no table to go on to.
        for level in self.config.start_level().and_below() {
            let damage = Damage { table, level, ipa };
            let at = (ipa.get() >> shift) as usize & (granule.entries() - 1);
            let words = self.memory.table(table).ok_or(damage)?;
            let word = words.get(at).ok_or(damage)?;
            let leaf = match Entry::parse(word.load(Ordering::Relaxed), level, granule) {
                Entry::Table(next, _) => {
                    table = next;
                    shift -= granule.index_bits();
                    continue;
                }
                Entry::Leaf(leaf) => Ok(leaf),
                Entry::Invalid(Invalid::Unknown(_)) => return Err(damage),
                Entry::Invalid(why) => Err(why),
            };
            let base = ipa.align_down(1 << shift);
            return Ok(Some(Slot {
                word,
                level,
                base,
                leaf,
                table: words,
            }));
        }
        Ok(None)
    }

    /// The entry of level 3 that the path to `ipa` ends at, if it goes so far: [`Self::descend`] for who wants to know
    /// no more.
    #[inline]
    pub(super) fn page(&self, ipa: Ipa) -> Option<&'m AtomicU64> {
        if !self.config.has_ipa(ipa) {
            return None;
        }
        let granule = self.config.granule();
        let mut shift = granule.shift(self.config.start_level());
        let mut table = self.root_table(ipa.get() >> (shift + granule.index_bits()));
        loop {
            let at = (ipa.get() >> shift) as usize & (granule.entries() - 1);
            let word = self.memory.table(table)?.get(at)?;
            // Each turn is one level further down.
            if shift <= granule.page_shift() {
                return Some(word);
            }
            table = pointed_to(word.load(Ordering::Relaxed))?;
            shift -= granule.index_bits();
        }
    }

    /// Walks the entries that translate `range`, in order of IPA, a table before what is below it.
    /// What of `range` lies outside the IPA space is left out.
    pub(super) fn walk<V: Visitor>(
        &self,
        range: Range<u64>,
        visitor: &mut V,
    ) -> Result<(), V::Stop> {
        let range = range.start..range.end.min(1 << self.config.ipa_bits());
        if range.is_empty() {
            return Ok(());
        }
        let level = self.config.start_level();
        let shift = table_shift(self.config.granule(), level);
        let mut at = range.start >> shift;
        while at << shift < range.end {
            self.walk_table(self.root_table(at), level, at << shift, &range, visitor)?;
            at += 1;
        }
        Ok(())
    }

    /// The entries that translate `range`, which lies in the IPA space and is not empty, if they are of one root
    /// table.
    pub(super) fn root_run(&self, range: &Range<u64>) -> Result<Option<Run<'m>>, Damage> {
        let level = self.config.start_level();
        let shift = table_shift(self.config.granule(), level);
        let at = range.start >> shift;
        if (range.end - 1) >> shift != at {
            return Ok(None);
        }
        self.run_of(self.root_table(at), level, at << shift, range)
            .map(Some)
    }

    /// The first of the root tables.
    pub(super) const fn root(&self) -> Pa {
        self.root
    }

    /// The frame of the `at`th of the concatenated root tables.
    fn root_table(&self, at: u64) -> Pa {
        Pa::new(self.root.get() + at * self.config.granule().page_size())
    }

    /// Walks one table, whose first entry translates `base`. The recursion is bounded by the number
    /// of levels, whatever the tables say: [`Entry::parse`] goes down one each time.
    fn walk_table<V: Visitor>(
        &self,
        table: Pa,
        level: Level,
        base: u64,
        range: &Range<u64>,
        visitor: &mut V,
    ) -> Result<(), V::Stop> {
        let run = self.run_of(table, level, base, range)?;
        if visitor.run(&run)? == Below::Skip {
            return Ok(());
        }
        for (ipa, word) in run.slots() {
            let raw = word.load(Ordering::Relaxed);
            let found = |leaf| Found {
                ipa: Ipa::new(ipa),
                level,
                span: run.span(),
                leaf,
                contiguous: is_contiguous(raw),
            };
            match Entry::parse(raw, level, run.granule) {
                Entry::Table(next, below) => {
                    self.walk_table(next, below, ipa, range, visitor)?;
                    visitor.leave(next);
                }
                Entry::Leaf(leaf) => visitor.entry(&found(Ok(leaf)))?,
                Entry::Invalid(why) => visitor.entry(&found(Err(why)))?,
            }
        }
        Ok(())
    }

    /// The entries of a table that translate some of `range`.
    #[inline]
    fn run_of(
        &self,
        table: Pa,
        level: Level,
        base: u64,
        range: &Range<u64>,
    ) -> Result<Run<'m>, Damage> {
        let granule = self.config.granule();
        let shift = granule.shift(level);
        let last = base + (granule.table_span(level) - 1);
        let first = (range.start.max(base) - base) >> shift;
        let end = (((range.end - 1).min(last) - base) >> shift) + 1;
        let damage = Damage {
            table,
            level,
            ipa: Ipa::new(base),
        };
        let table = self.memory.table(table).ok_or(damage)?;
        let words = table.get(first as usize..end as usize).ok_or(damage)?;
        Ok(Run {
            level,
            base: Ipa::new(base + (first << shift)),
            words,
            table,
            first: first as usize,
            granule,
        })
    }
}

/// The frames of the concatenated root tables, of which `root` is the first.
pub(super) fn root_tables_of(config: &Config, root: Pa) -> impl Iterator<Item = Pa> + use<> {
    let size = config.granule().page_size();
    let tables = (0_u64..).take(config.root_tables());
    tables.map(move |at| Pa::new(root.get() + at * size))
}

/// log2 of the bytes that a whole table covers.
const fn table_shift(granule: Granule, level: Level) -> u32 {
    granule.shift(level) + granule.index_bits()
}

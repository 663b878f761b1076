//! A table that went bad itself: built anew from what it stood for.
//!
//! Mappings are declarative: the owner of the map knows what it asked for, as a [`Territory`], and a
//! [`KnownBad`] says which memory must be left out. So nothing has to be read from the table that was
//! lost, which is as well, for reading it would consume its poison.
//!
//! The tables below a lost one are intact, but nothing points to them any more. Those that splits had
//! made are known as the reserve's and return to it; those that [`Stage2::map`] had made are leaked.

use super::bbm::{link, mark};
use super::descriptor::{Leaf, is_split, table_of, table_word};
use super::env::{TableMemory, Tlb};
use super::granule::Level;
use super::heal::is_one_run;
use super::restore::KnownBad;
use super::table::clear;
use super::walk::{Below, Damage, Run, Visitor, root_tables_of};
use super::{Attrs, Parts, Stage2};
use crate::addr::{Ipa, Pa};
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

/// A part of what a map was asked to be: as [`Stage2::map`] was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First IPA.
    pub ipa: Ipa,
    /// First PA.
    pub pa: Pa,
    /// Bytes. The piece does not wrap around.
    pub size: u64,
    /// With what attributes.
    pub attrs: Attrs,
}

/// What a map was asked to be.
pub trait Territory {
    /// Of the pieces that do not end at or before `ipa`, the one that begins first.
    fn piece_from(&self, ipa: Ipa) -> Option<Piece>;
}

impl<F: Fn(Ipa) -> Option<Piece>> Territory for F {
    fn piece_from(&self, ipa: Ipa) -> Option<Piece> {
        self(ipa)
    }
}

/// What became of a frame that went bad. It is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebuilt {
    /// It was not in use.
    Unused,
    /// There is another table in its place.
    Table {
        /// The level of the table.
        level: Level,
        /// The first IPA that it translates.
        ipa: Ipa,
        /// Tables left in the reserve.
        reserve_left: usize,
    },
}

/// Why a table was not rebuilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RebuildError {
    /// It is no table of this map.
    NotMine,
    /// It is the root, or part of it, which the CPUs know by address.
    Root,
    /// The reserve is spent. **Part of the map is gone**: the VM has to stop.
    OutOfFrames,
    /// Another table is damaged. **Part of the map is gone**: the VM has to stop.
    Damaged(Damage),
}

impl From<Damage> for RebuildError {
    fn from(damage: Damage) -> Self {
        Self::Damaged(damage)
    }
}

impl fmt::Display for RebuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMine => f.write_str("no-such-table"),
            Self::Root => f.write_str("root-table-lost"),
            Self::OutOfFrames => f.write_str("out-of-table-frames"),
            Self::Damaged(damage) => damage.fmt(f),
        }
    }
}

/// Where a table is referred to.
struct Reference<'m> {
    word: &'m AtomicU64,
    /// The level of the table that `word` points to.
    level: Level,
    /// The first IPA that it translates.
    ipa: Ipa,
}

impl<M: TableMemory, T: Tlb> Stage2<M, T> {
    /// Replaces the table in the frame `lost`, which cannot be read any more, by one that is built from
    /// `territory` without what is `bad`. The VM may be running: what faults meanwhile waits for
    /// the lock, and finds [`Lookup::Mapped`](super::Lookup::Mapped) then.
    ///
    /// Pages that had been replaced are as `territory` says afterwards.
    ///
    /// # Errors
    /// See [`RebuildError`].
    pub fn rebuild(
        &mut self,
        lost: Pa,
        territory: &impl Territory,
        bad: &impl KnownBad,
    ) -> Result<Rebuilt, RebuildError> {
        if self.reserve.retire_unused(lost) {
            return Ok(Rebuilt::Unused);
        }
        if root_tables_of(&self.config, self.root).any(|root| root == lost) {
            return Err(RebuildError::Root);
        }
        let mut parts = self.parts();
        let reference = parts.find(lost)?.ok_or(RebuildError::NotMine)?;
        let (level, ipa) = (reference.level, reference.ipa);
        let split = is_split(reference.word.load(Ordering::Relaxed));

        reference.word.store(0, Ordering::Relaxed);
        parts.surgeon.forget_table();
        parts.reserve.retire(lost);
        parts.reclaim()?;
        *parts.coarse = parts.count_coarse()?;
        let frame = parts.build(level, ipa, territory, bad)?;
        let word = if split {
            super::descriptor::split_word(frame)
        } else {
            table_word(frame)
        };
        link(reference.word, word);
        parts.surgeon.tlb.publish();
        Ok(Rebuilt::Table {
            level,
            ipa,
            reserve_left: parts.reserve.len(),
        })
    }
}

impl<'m, M: TableMemory, T: Tlb> Parts<'m, M, T> {
    /// Who refers to the table in `lost`, without a look into it.
    fn find(&self, lost: Pa) -> Result<Option<Reference<'m>>, Damage> {
        let level = self.config.start_level();
        let granule = self.config.granule();
        for (root, base) in root_tables_of(self.config, self.tree.root())
            .zip((0..).step_by(1 << (granule.shift(level) + granule.index_bits())))
        {
            if let Some(found) = self.find_below(root, (level, base), lost)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn find_below(
        &self,
        table: Pa,
        (level, base): (Level, u64),
        lost: Pa,
    ) -> Result<Option<Reference<'m>>, Damage> {
        let span = self.config.granule().span(level);
        let ipa = Ipa::new(base);
        let words = self
            .memory
            .table(table)
            .ok_or(Damage { table, level, ipa })?;
        for (word, base) in words.iter().zip((base..).step_by(span as usize)) {
            let Some((next, below)) = table_of(word.load(Ordering::Relaxed), level) else {
                continue;
            };
            if next == lost {
                return Ok(Some(Reference {
                    word,
                    level: below,
                    ipa: Ipa::new(base),
                }));
            }
            if below == Level::L3 {
                continue; // No tables in there.
            }
            let found = self.find_below(next, (below, base), lost)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Gives the reserve back what nothing refers to any more.
    fn reclaim(&mut self) -> Result<(), Damage> {
        self.reserve.begin_reclaim();
        let mut marker = Marker {
            reserve: self.reserve,
        };
        self.tree.walk(0..u64::MAX, &mut marker)?;
        self.reserve.end_reclaim();
        Ok(())
    }

    fn count_coarse(&self) -> Result<usize, Damage> {
        let mut coarse = super::census::CoarseHoles(0);
        self.tree.walk(0..u64::MAX, &mut coarse)?;
        Ok(coarse.0)
    }

    /// A table of `level` whose first entry translates `base`. It is not linked yet.
    fn build(
        &mut self,
        level: Level,
        base: Ipa,
        territory: &impl Territory,
        bad: &impl KnownBad,
    ) -> Result<Pa, RebuildError> {
        let granule = self.config.granule();
        let (frame, words) = self
            .reserve
            .take(granule, self.memory)
            .ok_or(RebuildError::OutOfFrames)?;
        clear(words);
        let span = granule.span(level);
        for (word, ipa) in words.iter().zip((base.get()..).step_by(span as usize)) {
            let ipa = Ipa::new(ipa);
            let Some(piece) = territory.piece_from(ipa) else {
                break;
            };
            let value = self.entry(level, ipa, &piece, territory, bad)?;
            link(word, value);
        }
        let size = granule.group(level);
        let groups = words.chunks_exact(size).filter(|_| size > 1);
        for group in groups.filter(|_| self.config.contiguous()) {
            if is_one_run(group, level, granule) {
                mark(group, true);
            }
        }
        Ok(frame)
    }

    /// The word for the entry of `level` at `ipa`, in or before which `piece` begins, or else behind.
    fn entry(
        &mut self,
        level: Level,
        ipa: Ipa,
        piece: &Piece,
        territory: &impl Territory,
        bad: &impl KnownBad,
    ) -> Result<u64, RebuildError> {
        let granule = self.config.granule();
        let span = granule.span(level);
        if piece.ipa.get() >= ipa.get() + span {
            return Ok(0);
        }
        let covered = ipa.checked_offset_from(piece.ipa).and_then(|offset| {
            let pa = piece.pa.checked_add(offset)?;
            let fits = granule.has_leaves(level) && pa.is_aligned(span);
            (fits && piece.size - offset >= span).then_some(pa)
        });
        match (covered, level.below()) {
            (Some(pa), _) => {
                let leaf = Leaf::new(pa, piece.attrs, self.config.encoding());
                let mut restorer = self.restorer(bad);
                let word = restorer.word(leaf, level);
                let coarse = restorer.coarse;
                *self.coarse += coarse;
                Ok(word)
            }
            (None, Some(below)) => Ok(table_word(self.build(below, ipa, territory, bad)?)),
            // Less than a page of a piece: there is no such piece.
            (None, None) => Ok(0),
        }
    }
}

/// Marks the frames that are in use.
struct Marker<'a> {
    reserve: &'a mut super::reserve::Reserve,
}

impl Visitor for Marker<'_> {
    type Stop = Damage;

    fn run(&mut self, _: &Run<'_>) -> Result<Below, Damage> {
        Ok(Below::Visit)
    }

    fn leave(&mut self, table: Pa) {
        self.reserve.mark(table);
    }
}

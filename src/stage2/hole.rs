//! Making a hole: the one thing that must always work.
//!
//! Only the path to the page is split: a block becomes a table of the next smaller leaves, one of
//! those a table again, and so on. A hole in a 1 GiB block takes two tables and leaves 511 blocks
//! of 2 MiB and 511 pages. The tables come from the reserve. When it cannot pay for the whole path,
//! the path ends early, and the smallest unit it reached is unmapped instead: containment comes
//! before capacity, and the outcome says what it cost.
//!
//! The subtree is built while nobody can see it, then [`bbm`](super::bbm) exchanges the block
//! for it.

use super::Stage2;
use super::bbm::{Place, Subtree, Surgeon};
use super::config::Config;
use super::descriptor::{Invalid, table_word};
use super::env::{TableMemory, Tlb};
use super::granule::Granule;
use super::reserve::Reserve;
use super::walk::{Damage, Slot, Tree};
use crate::addr::{Ipa, Pa};
use core::sync::atomic::Ordering;

/// A hole that was made, and what it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// First IPA that no longer translates.
    pub ipa: Ipa,
    /// The physical memory that was behind it.
    pub pa: Pa,
    /// Bytes that no longer translate.
    pub size: u64,
    /// Size in bytes of the leaf that mapped the page before.
    pub block: u64,
    /// Tables taken from the reserve.
    pub tables: usize,
    /// Tables left in the reserve.
    pub reserve_left: usize,
}

/// What [`Stage2::make_hole`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum HoleOutcome {
    /// Exactly the page is gone.
    Made(Hole),
    /// The page is gone, **and good memory around it**, because the reserve is spent.
    /// [`Hole::size`] says how much.
    Coarse(Hole),
    /// The page was in a hole already; nothing has changed. An earlier coarse hole counts.
    AlreadyPoisoned {
        /// First IPA of the leaf that was taken out.
        ipa: Ipa,
        /// Its size in bytes.
        size: u64,
    },
    /// Nothing is mapped there, so there is nothing to contain.
    NotMapped,
}

impl<M: TableMemory, T: Tlb> Stage2<M, T> {
    /// Takes the page that holds `ipa` out of the VM's map. When it has returned, no CPU can reach
    /// the page by this IPA, not even by what it had cached. (Another IPA may map the same memory:
    /// the registry knows.)
    ///
    /// Nothing is allocated, and doing it again changes nothing.
    ///
    /// # Errors
    /// [`Damage`], when the path to the page is damaged; nothing has changed. What the VM's CPUs
    /// reach is unknown then, and the VM has to stop.
    pub fn make_hole(&mut self, ipa: Ipa) -> Result<HoleOutcome, Damage> {
        let granule = self.config.granule();
        let ipa = ipa.align_down(granule.page_size());
        let tree = Tree::new(&self.memory, self.config, self.root);
        let place = match place_of(tree.descend(ipa)?, granule) {
            Ok(place) => place,
            Err(outcome) => return Ok(outcome),
        };
        let surgeon = Surgeon {
            tlb: &self.tlb,
            vmid: self.vmid,
            strategy: self.config.strategy(),
        };
        let mut builder = Builder {
            memory: &self.memory,
            reserve: &mut self.reserve,
            config: &self.config,
            ipa,
            tables: 0,
        };

        let subtree = builder.split(&place);
        let tables = builder.tables;
        let lost = match &subtree {
            Some(subtree) => {
                surgeon.exchange(&place, subtree, ipa);
                &subtree.hole
            }
            None => {
                surgeon.poison(&place, ipa);
                &place
            }
        };
        Ok(self.report(lost, ipa, granule.span(place.level), tables))
    }

    fn report(&self, lost: &Place<'_>, ipa: Ipa, block: u64, tables: usize) -> HoleOutcome {
        let granule = self.config.granule();
        let size = granule.span(lost.level);
        let hole = Hole {
            ipa: ipa.align_down(size),
            pa: lost.leaf.pa(),
            size,
            block,
            tables,
            reserve_left: self.reserve.len(),
        };
        if size == granule.page_size() {
            HoleOutcome::Made(hole)
        } else {
            HoleOutcome::Coarse(hole)
        }
    }
}

/// The leaf in `slot`, or what to say where there is none.
fn place_of(slot: Option<Slot<'_>>, granule: Granule) -> Result<Place<'_>, HoleOutcome> {
    let slot = slot.ok_or(HoleOutcome::NotMapped)?;
    match slot.leaf {
        Ok(leaf) => Ok(Place {
            word: slot.word,
            level: slot.level,
            leaf,
        }),
        Err(Invalid::Poisoned(_)) => Err(HoleOutcome::AlreadyPoisoned {
            ipa: slot.base,
            size: granule.span(slot.level),
        }),
        Err(_) => Err(HoleOutcome::NotMapped),
    }
}

/// Builds the subtree for a split.
struct Builder<'a, 'm, M> {
    memory: &'m M,
    reserve: &'a mut Reserve,
    config: &'a Config,
    ipa: Ipa,
    tables: usize,
}

impl<'m, M: TableMemory> Builder<'_, 'm, M> {
    /// Splits the leaf at `place` along the path to the page, as far down as the reserve goes;
    /// `None` when that is nowhere, or when the leaf is a page already.
    fn split(&mut self, place: &Place<'_>) -> Option<Subtree<'m>> {
        let (top, mut hole) = self.split_once(place)?;
        while let Some((table, part)) = self.split_once(&hole) {
            hole.word.store(table_word(table), Ordering::Relaxed);
            hole = part;
        }
        Some(Subtree { top, hole })
    }

    /// Makes a table that maps what the leaf at `place` maps, with leaves one level smaller. Its
    /// frame, and the one of its leaves that maps the page.
    fn split_once(&mut self, place: &Place<'_>) -> Option<(Pa, Place<'m>)> {
        let granule = self.config.granule();
        let level = place.level.below()?;
        let (frame, words) = self.reserve.take(granule, self.memory)?;
        self.tables += 1;
        let first = place.leaf.encode(level);
        self.memory.fill(words, first, granule.span(level));
        let offset = self.ipa.get() & (granule.span(place.level) - 1);
        let part = Place {
            word: words.get(granule.index(self.ipa, level))?,
            level,
            leaf: place.leaf.part(offset, granule.span(level)),
        };
        Some((frame, part))
    }
}

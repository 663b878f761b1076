//! Making a hole: the one thing that must always work.
//!
//! Only the path to the page is [`split`](super::split). A hole in a 1 GiB block takes two tables and
//! leaves 511 blocks of 2 MiB and 511 pages; in one of 512 GiB, a third, and 511 of 1 GiB. The tables come from the reserve. When it cannot pay for the whole path,
//! the path ends early, and the smallest unit it reached is unmapped instead: containment comes
//! before capacity, and the outcome says what it cost.
//!
//! The subtree is built while nobody can see it, then [`bbm`](super::bbm) exchanges the block
//! for it.

use super::bbm::{Change, Place};
use super::descriptor::Invalid;
use super::env::{TableMemory, Tlb};
use super::granule::{Granule, Level};
use super::walk::{Damage, Slot};
use super::{Parts, Stage2};
use crate::addr::{Ipa, Pa};

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

impl Hole {
    /// The page that was behind the one that holds `ipa`, which lies in the hole.
    pub const fn behind(&self, ipa: Ipa) -> Pa {
        Pa::new(self.pa.get() | ipa.page().get() & (self.size - 1))
    }
}

/// A page that somebody has heard to be bad before the map's lock was taken, and that is asked about again when
/// it is: another frame may be behind the IPA by then, and the page may have been repaired.
#[derive(Clone, Copy)]
pub struct Suspect<'a> {
    /// The page of 4 KiB.
    pub frame: Pa,
    /// Whether it must be out of this map still. Asked under the map's lock.
    pub is_bad: &'a dyn Fn() -> bool,
}

impl Suspect<'_> {
    /// Why nothing is to be done about it at `page`, which `slot` is about.
    fn excuse(&self, slot: Option<&Slot<'_>>, page: Ipa, granule: Granule) -> Option<HoleOutcome> {
        let memory = slot.and_then(|slot| slot.memory_of(page, granule));
        if memory.is_some_and(|memory| memory != self.frame.page()) {
            return Some(HoleOutcome::NotMapped);
        }
        (!(self.is_bad)()).then_some(HoleOutcome::InOrder)
    }
}

/// What [`Stage2::make_hole`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum HoleOutcome {
    /// Exactly the page is gone: that of the granule, so with a larger one good memory may be as well.
    Made(Hole),
    /// The page is gone, **and all that is mapped with it**, because the reserve is spent.
    /// [`Hole::size`] says how much.
    Coarse(Hole),
    /// The page was in a hole already; nothing has changed. An earlier coarse hole counts.
    AlreadyPoisoned {
        /// First IPA of the leaf that was taken out.
        ipa: Ipa,
        /// Its size in bytes.
        size: u64,
    },
    /// The whole block is gone for now, for [`Stage2::reopen`] to bring back around the page.
    Dropped(Hole),
    /// The page was in a dropped block already; nothing has changed.
    AlreadyDropped {
        /// First IPA of the leaf that was taken out.
        ipa: Ipa,
        /// Its size in bytes.
        size: u64,
    },
    /// Nothing is mapped there, so there is nothing to contain.
    NotMapped,
    /// The [`Suspect`] is not bad any more; nothing has changed.
    InOrder,
}

impl<M: TableMemory, T: Tlb> Stage2<M, T> {
    /// Takes the page of the granule that holds `ipa` out of the VM's map. When it has returned, no CPU can reach
    /// the page by this IPA, not even by what it had cached. (Another IPA may map the same memory:
    /// the registry knows.)
    ///
    /// Nothing is allocated, and doing it again changes nothing.
    ///
    /// # Errors
    /// [`Damage`], when the path to the page is damaged; nothing has changed. What the VM's CPUs
    /// reach is unknown then, and the VM has to stop.
    pub fn make_hole(&mut self, ipa: Ipa) -> Result<HoleOutcome, Damage> {
        self.hole_for(ipa, None)
    }

    /// The same if it is `suspect` that is behind `ipa`, mapped or not, and is bad still.
    ///
    /// # Errors
    /// As for [`Self::make_hole`].
    pub fn make_hole_of(&mut self, ipa: Ipa, suspect: Suspect<'_>) -> Result<HoleOutcome, Damage> {
        self.hole_for(ipa, Some(suspect))
    }

    fn hole_for(&mut self, ipa: Ipa, suspect: Option<Suspect<'_>>) -> Result<HoleOutcome, Damage> {
        let mut parts = self.parts();
        let (place, ipa) = match parts.to_cut(ipa, suspect)? {
            Ok(found) => found,
            Err(outcome) => return Ok(outcome),
        };
        let mut builder = parts.builder(ipa);
        let subtree = builder.split(&place, Level::L3);
        let tables = builder.tables;
        let lost = match &subtree {
            Some(subtree) => {
                parts.surgeon.exchange(&place, subtree, Change::Poison, ipa);
                &subtree.part
            }
            None => {
                parts.surgeon.change(&place, Change::Poison, ipa);
                &place
            }
        };
        *parts.coarse += usize::from(lost.level != Level::L3);
        let granule = parts.config.granule();
        let cost = (granule.span(place.level), tables, parts.reserve.len());
        Ok(report(granule, lost, ipa, cost))
    }

    /// Takes the whole block that holds `ipa` out of the VM's map, to be brought back piece by piece by
    /// [`Self::reopen`]; a single page becomes a hole. It costs one invalidation and no table. When
    /// it has returned, no CPU can reach the page by this IPA.
    ///
    /// # Errors
    /// As for [`Self::make_hole`].
    pub fn drop_block(&mut self, ipa: Ipa) -> Result<HoleOutcome, Damage> {
        self.drop_for(ipa, None)
    }

    /// The same if it is `suspect` that is behind `ipa`, mapped or not, and is bad still.
    ///
    /// # Errors
    /// As for [`Self::make_hole`].
    pub fn drop_block_of(&mut self, ipa: Ipa, suspect: Suspect<'_>) -> Result<HoleOutcome, Damage> {
        self.drop_for(ipa, Some(suspect))
    }

    fn drop_for(&mut self, ipa: Ipa, suspect: Option<Suspect<'_>>) -> Result<HoleOutcome, Damage> {
        let parts = self.parts();
        let (place, ipa) = match parts.to_cut(ipa, suspect)? {
            Ok(found) => found,
            Err(outcome) => return Ok(outcome),
        };
        let granule = parts.config.granule();
        let cost = (granule.span(place.level), 0, parts.reserve.len());
        if place.level == Level::L3 {
            parts.surgeon.change(&place, Change::Poison, ipa);
            return Ok(report(granule, &place, ipa, cost));
        }
        parts.surgeon.park(&place, ipa);
        Ok(HoleOutcome::Dropped(hole(granule, &place, ipa, cost)))
    }
}

/// The leaf that a hole is to be made in, and the page of the granule that is to go; or why there is nothing to do.
type ToCut<'m> = Result<(Place<'m>, Ipa), HoleOutcome>;

impl<'m, M: TableMemory, T> Parts<'m, M, T> {
    fn to_cut(&self, ipa: Ipa, suspect: Option<Suspect<'_>>) -> Result<ToCut<'m>, Damage> {
        let granule = self.config.granule();
        let slot = self.tree.descend(ipa)?;
        let excuse = suspect.and_then(|it| it.excuse(slot.as_ref(), ipa.page(), granule));
        Ok(match excuse {
            Some(outcome) => Err(outcome),
            None => place_of(slot, granule).map(|it| (it, ipa.align_down(granule.page_size()))),
        })
    }
}

/// What a hole took: size of the leaf before, tables, frames left.
type Cost = (u64, usize, usize);

fn hole(granule: Granule, lost: &Place<'_>, ipa: Ipa, cost: Cost) -> Hole {
    let size = granule.span(lost.level);
    let (block, tables, reserve_left) = cost;
    Hole {
        ipa: ipa.align_down(size),
        pa: lost.leaf.pa(),
        size,
        block,
        tables,
        reserve_left,
    }
}

fn report(granule: Granule, lost: &Place<'_>, ipa: Ipa, cost: Cost) -> HoleOutcome {
    let hole = hole(granule, lost, ipa, cost);
    if lost.level == Level::L3 {
        HoleOutcome::Made(hole)
    } else {
        HoleOutcome::Coarse(hole)
    }
}

/// The leaf in `slot`, or what to say where there is none.
fn place_of(slot: Option<Slot<'_>>, granule: Granule) -> Result<Place<'_>, HoleOutcome> {
    let slot = slot.ok_or(HoleOutcome::NotMapped)?;
    match slot.leaf {
        Ok(leaf) => Ok(slot.place(leaf, granule)),
        Err(Invalid::Poisoned(_)) => Err(HoleOutcome::AlreadyPoisoned {
            ipa: slot.base,
            size: granule.span(slot.level),
        }),
        Err(Invalid::Parked(_)) => Err(HoleOutcome::AlreadyDropped {
            ipa: slot.base,
            size: granule.span(slot.level),
        }),
        Err(_) => Err(HoleOutcome::NotMapped),
    }
}

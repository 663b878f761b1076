//! Making a hole: the one thing that must always work.
//!
//! Only the path to the page is [`split`](super::split). A hole in a 1 GiB block takes two tables and
//! leaves 511 blocks of 2 MiB and 511 pages. The tables come from the reserve. When it cannot pay for the whole path,
//! the path ends early, and the smallest unit it reached is unmapped instead: containment comes
//! before capacity, and the outcome says what it cost.
//!
//! The subtree is built while nobody can see it, then [`bbm`](super::bbm) exchanges the block
//! for it.

use super::Stage2;
use super::bbm::{Change, Place};
use super::descriptor::Invalid;
use super::env::{TableMemory, Tlb};
use super::granule::{Granule, Level};
use super::walk::{Damage, Slot};
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
        self.make_hole_where(ipa, |_| true)
    }

    /// The same if the page of 4 KiB at `frame` is behind it, mapped or not: whoever has looked for the page before the
    /// map's lock was taken asks again so. [`HoleOutcome::NotMapped`] if another is.
    ///
    /// # Errors
    /// As for [`Self::make_hole`].
    pub fn make_hole_of(&mut self, ipa: Ipa, frame: Pa) -> Result<HoleOutcome, Damage> {
        self.make_hole_where(ipa, |pa| pa == frame.page())
    }

    fn make_hole_where(
        &mut self,
        ipa: Ipa,
        is_meant: impl Fn(Pa) -> bool,
    ) -> Result<HoleOutcome, Damage> {
        let granule = self.config.granule();
        let (page, ipa) = (ipa.page(), ipa.align_down(granule.page_size()));
        let mut parts = self.parts();
        let slot = parts.tree.descend(ipa)?;
        let slot = slot.filter(|slot| slot.memory_of(page, granule).is_none_or(is_meant));
        let place = match place_of(slot, granule) {
            Ok(place) => place,
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
        let reserve_left = parts.reserve.len();
        let block = granule.span(place.level);
        Ok(report(granule, lost, ipa, (block, tables, reserve_left)))
    }

    /// Takes the whole block that holds `ipa` out of the VM's map, to be brought back piece by piece by
    /// [`Self::reopen`]; a single page becomes a hole. It costs one invalidation and no table. When
    /// it has returned, no CPU can reach the page by this IPA.
    ///
    /// # Errors
    /// As for [`Self::make_hole`].
    pub fn drop_block(&mut self, ipa: Ipa) -> Result<HoleOutcome, Damage> {
        let granule = self.config.granule();
        let ipa = ipa.align_down(granule.page_size());
        let parts = self.parts();
        let place = match place_of(parts.tree.descend(ipa)?, granule) {
            Ok(place) => place,
            Err(outcome) => return Ok(outcome),
        };
        let block = granule.span(place.level);
        let cost = (block, 0, parts.reserve.len());
        if place.level == Level::L3 {
            parts.surgeon.change(&place, Change::Poison, ipa);
            return Ok(report(granule, &place, ipa, cost));
        }
        parts.surgeon.park(&place, ipa);
        Ok(HoleOutcome::Dropped(hole(granule, &place, ipa, cost)))
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

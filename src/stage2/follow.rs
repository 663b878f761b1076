//! Lookups that stay true.
//!
//! Where an IPA leads is true as long as nobody changes the map, which is as long as its lock is held. A
//! value that was looked up and outlives the lock is a guess: the page may be a hole by then, or another
//! frame may be behind the IPA. So whoever looks up in order to act does both under one [`Followed`], which
//! owns the lock's guard (or the exclusive borrow): the borrow checker lets nobody change the map in between,
//! and nobody forget to end it. (Linux has a pair of calls for this, `follow_pfnmap_start` and `_end`,
//! and a comment that asks not to use the PFN after the second.)

use super::env::{TableMemory, Tlb};
use super::restore::{KnownBad, Reopened};
use super::walk::Damage;
use super::{Lookup, Stage2};
use crate::addr::{Ipa, Pa};
use core::ops::DerefMut;

/// Where an IPA leads, as long as this lives. `G` is what keeps the map: a lock's guard, or `&mut`.
#[must_use]
pub struct Followed<G> {
    map: G,
    ipa: Ipa,
    found: Lookup,
}

impl<M, T, G> Followed<G>
where
    M: TableMemory,
    T: Tlb,
    G: DerefMut<Target = Stage2<M, T>>,
{
    /// Looks `ipa` up in `map`, and keeps the map.
    ///
    /// # Errors
    /// [`Damage`]; the map is let go.
    pub fn new(map: G, ipa: Ipa) -> Result<Self, Damage> {
        let found = map.lookup(ipa)?;
        Ok(Self { map, ipa, found })
    }

    /// What is there. The value is a guess once this is gone.
    pub const fn lookup(&self) -> Lookup {
        self.found
    }

    /// The memory behind the IPA, mapped or not.
    pub const fn memory(&self) -> Option<Pa> {
        match self.found {
            Lookup::Mapped { pa, .. } | Lookup::Poisoned { pa, .. } | Lookup::Parked { pa, .. } => {
                Some(pa)
            }
            Lookup::Unmapped => None,
        }
    }

    /// [`Stage2::reopen`] at this IPA.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn reopen(mut self, bad: &impl KnownBad) -> Result<Option<Reopened>, Damage> {
        self.map.reopen(self.ipa, bad)
    }
}

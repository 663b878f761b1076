//! Break-before-make, stated once.
//!
//! While CPUs walk a table, an entry may go from invalid to valid, or from valid to invalid, with
//! plain stores; the second needs TLB maintenance before anyone may rely on it. From one valid
//! descriptor to another with a different output address, attributes or *size*, it has to go
//! through an invalid one, and through TLB maintenance while it is invalid, or CPUs may hold both
//! at once and use either, or a mixture (Arm ARM D8.16, "Using break-before-make when updating
//! translation table entries").
//!
//! FEAT_BBM relaxes this for size alone. That gives two ways to exchange a block for a table that
//! maps the same memory but for a hole; [`Strategy`] names them, and this file is the only one
//! that performs them. In both, the table is complete before it can be seen, and nothing here can
//! fail or wait for anything but the TLB.

use super::descriptor::{Invalid, Leaf, table_word};
use super::env::Tlb;
use super::granule::Level;
use crate::addr::{Ipa, Pa, Vmid};
use core::sync::atomic::{AtomicU64, Ordering};

/// How a live block is exchanged for a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Break, invalidate, make: `ID_AA64MMFR2_EL1.BBM` 0 and 1. All of the block is unmapped for as
    /// long as the invalidation takes; a CPU that faults on it meanwhile finds a
    /// [`Lookup::Mapped`](super::Lookup::Mapped) once it has the VM's lock, and retries.
    ///
    /// (Level 1 would let the block stay with its nT bit set. Implementations may then use it
    /// without caching it, or fault, so it gains little for an exchange as rare as this.)
    BreakFirst,
    /// Swap, invalidate, then break the one page: level 2 and above. Everything but the page stays
    /// mapped throughout. At level 2, a CPU that holds the block and a page of it at once may take
    /// a TLB conflict abort; [`Stage2::resolve_conflict`](super::Stage2::resolve_conflict) is the
    /// answer to that.
    SwapThenBreak,
}

impl Strategy {
    /// Whether a live block and the table that maps the same memory with the same attributes may
    /// replace each other directly, by `ID_AA64MMFR2_EL1.BBM`.
    pub const fn for_bbm_level(level: u64) -> Self {
        match level {
            0 | 1 => Self::BreakFirst,
            _ => Self::SwapThenBreak,
        }
    }
}

/// A leaf in its place.
pub(super) struct Place<'m> {
    pub(super) word: &'m AtomicU64,
    pub(super) level: Level,
    pub(super) leaf: Leaf,
}

/// A table for a block, not linked yet. It maps what the block maps, all of it.
pub(super) struct Subtree<'m> {
    /// Frame of its topmost table.
    pub(super) top: Pa,
    /// The leaf in it that is to become a hole.
    pub(super) hole: Place<'m>,
}

/// Makes changes to the live tables of one VM.
pub(super) struct Surgeon<'a, T> {
    pub(super) tlb: &'a T,
    pub(super) vmid: Vmid,
    pub(super) strategy: Strategy,
}

impl<T: Tlb> Surgeon<'_, T> {
    /// Exchanges the block at `place` for `subtree` with its hole poisoned. `ipa` lies in the
    /// hole. Afterwards no CPU can reach the poisoned memory through this table.
    pub(super) fn exchange(&self, place: &Place<'_>, subtree: &Subtree<'_>, ipa: Ipa) {
        match self.strategy {
            Strategy::BreakFirst => self.break_first(place, subtree, ipa),
            Strategy::SwapThenBreak => self.swap_then_break(place, subtree, ipa),
        }
    }

    fn break_first(&self, place: &Place<'_>, subtree: &Subtree<'_>, ipa: Ipa) {
        store(&subtree.hole, Invalid::Poisoned(subtree.hole.leaf));
        store(place, Invalid::Parked(place.leaf));
        self.invalidate_leaf(place.level, ipa);
        link(place.word, subtree.top);
        self.tlb.publish();
    }

    fn swap_then_break(&self, place: &Place<'_>, subtree: &Subtree<'_>, ipa: Ipa) {
        link(place.word, subtree.top);
        self.tlb.publish();
        // No level hint: the change is from a leaf to a table. Combined entries of the block agree
        // with the table and may wait for the invalidation below.
        self.tlb.invalidate_ipa(self.vmid, ipa, None);
        self.poison(&subtree.hole, ipa);
    }

    /// Turns the leaf at `place` into a hole as it is. Afterwards no CPU can reach its memory
    /// through this table.
    pub(super) fn poison(&self, place: &Place<'_>, ipa: Ipa) {
        store(place, Invalid::Poisoned(place.leaf));
        self.invalidate_leaf(place.level, ipa);
    }

    /// Removes a leaf that has just been made invalid from all TLBs.
    fn invalidate_leaf(&self, level: Level, ipa: Ipa) {
        self.tlb.publish();
        self.tlb.invalidate_ipa(self.vmid, ipa, Some(level));
        // A TLB may hold stages 1 and 2 combined, by VA; those do not go by IPA.
        self.tlb.invalidate_vm(self.vmid);
    }
}

fn store(place: &Place<'_>, why: Invalid) {
    let raw = why.encode(place.level);
    place.word.store(raw, Ordering::Relaxed);
}

/// Release: a walk that sees the table also sees what is in it.
fn link(word: &AtomicU64, table: Pa) {
    word.store(table_word(table), Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bbm_level_2_and_above_may_swap_directly() {
        assert_eq!(
            [0, 1, 2, 3].map(Strategy::for_bbm_level),
            [
                Strategy::BreakFirst,
                Strategy::BreakFirst,
                Strategy::SwapThenBreak,
                Strategy::SwapThenBreak
            ]
        );
    }
}

//! Break-before-make, stated once.
//!
//! While CPUs walk a table, an entry may go from invalid to valid, or from valid to invalid, with
//! plain stores; the second needs TLB maintenance before anyone may rely on it. From one valid
//! descriptor to another with a different output address, attributes or *size*, it has to go
//! through an invalid one, and through TLB maintenance while it is invalid, or CPUs may hold both
//! at once and use either, or a mixture (Arm ARM D8.16, "Using break-before-make when updating
//! translation table entries").
//!
//! Permissions are not among these: they may be changed in place, before the invalidation.
//!
//! The same is true of the Contiguous bit, which is about size as well: of a group that says so, a CPU may
//! have cached all leaves as one, and a change of one of them is a change of that. So before anything is
//! changed in a [`Group`], it is a group no more.
//!
//! FEAT_BBM relaxes this for size alone. That gives three ways to exchange a block for a table that
//! maps the same memory but for one part, and back; [`Strategy`] names them, and this file is the
//! only one that performs them. In all of them, the table is complete before it can be seen, and nothing
//! here can fail or wait for anything but the TLB.

use super::descriptor::{
    CONTIGUOUS, Invalid, Leaf, NOT_CACHED, is_contiguous, parked, split_word, unparked,
};
use super::env::Tlb;
use super::granule::{Granule, Level};
use super::table::SMALLEST_GROUP;
use crate::addr::{Ipa, Pa, Vmid};
use core::sync::atomic::{AtomicU64, Ordering};

/// How a live block is exchanged for a table, or a table for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Break, invalidate, make: `ID_AA64MMFR2_EL1.BBM` 0. All of the block is unmapped for as
    /// long as the invalidation takes; a CPU that faults on it meanwhile finds a
    /// [`Lookup::Mapped`](super::Lookup::Mapped) once it has the VM's lock, and retries.
    ///
    /// A group is broken likewise, all of it.
    BreakFirst,
    /// Mark, invalidate, then as below: level 1. A block that is marked, by its nT bit, is cached by no CPU in
    /// a way that the table could conflict with, so each may take the place of the other. A CPU may also
    /// refuse to use such a block; the fault that it takes is one of those above. No CPU takes a
    /// conflict abort. Groups have no such mark: those are broken.
    MarkThenSwap,
    /// Swap, invalidate, then change the one part: level 2 and above. Everything else stays
    /// mapped throughout. At level 2, a CPU that holds the block and a page of it at once may take
    /// a TLB conflict abort; [`Stage2::resolve_conflict`](super::Stage2::resolve_conflict) is the
    /// answer to that.
    SwapThenBreak,
}

impl Strategy {
    /// How a live block and the table that maps the same memory with the same attributes may
    /// replace each other, by `ID_AA64MMFR2_EL1.BBM`.
    pub const fn for_bbm_level(level: u64) -> Self {
        match level {
            0 => Self::BreakFirst,
            1 => Self::MarkThenSwap,
            _ => Self::SwapThenBreak,
        }
    }

    /// The least level that allows it.
    pub const fn bbm_level(self) -> u64 {
        match self {
            Self::BreakFirst => 0,
            Self::MarkThenSwap => 1,
            Self::SwapThenBreak => 2,
        }
    }
}

/// A leaf in its place.
#[derive(Clone, Copy)]
pub(super) struct Place<'m> {
    pub(super) word: &'m AtomicU64,
    pub(super) level: Level,
    pub(super) leaf: Leaf,
    /// All entries of the group that it is one of.
    pub(super) group: Option<&'m [AtomicU64]>,
}

/// Neighbouring entries that CPUs may cache as one while all of them have the Contiguous bit. Either all have
/// it, and are leaves that continue each other, or none has.
#[derive(Clone, Copy)]
pub(super) struct Group<'m> {
    pub(super) words: &'m [AtomicU64],
    pub(super) level: Level,
    /// The first IPA that the first entry translates.
    pub(super) base: Ipa,
    /// Bytes that an entry covers.
    pub(super) span: u64,
}

impl Group<'_> {
    /// Whether the entries are marked as what may be cached as one.
    pub(super) fn is_marked(&self) -> bool {
        let first = self.words.first();
        first.is_some_and(|first| is_contiguous(first.load(Ordering::Relaxed)))
    }

    fn change(&self, to: impl Fn(u64) -> u64) {
        for word in self.words {
            word.store(to(word.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
    }
}

/// Marks entries that are a group, or the opposite; what is no leaf any more was unmarked before.
pub(super) fn mark(words: &[AtomicU64], together: bool) {
    let bit = if together { CONTIGUOUS } else { 0 };
    let put = |word: &AtomicU64| {
        let raw = word.load(Ordering::Relaxed);
        word.store(raw & !CONTIGUOUS | bit, Ordering::Relaxed);
    };
    let (portions, rest) = words.as_chunks::<SMALLEST_GROUP>();
    for portion in portions {
        portion.iter().for_each(put);
    }
    rest.iter().for_each(put);
}

/// A table for a block, not linked yet. It maps what the block maps, all of it.
pub(super) struct Subtree<'m> {
    /// Frame of its topmost table.
    pub(super) top: Pa,
    /// The leaf in it that is to change.
    pub(super) part: Place<'m>,
}

/// What a leaf is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// What it was.
    Nothing,
    /// A hole.
    Poison,
    /// Another leaf of its level.
    Leaf(Leaf),
}

impl Change {
    /// The word at `place` after the change.
    fn word(self, place: &Place<'_>) -> u64 {
        match self {
            Self::Nothing => place.leaf.encode(place.level),
            Self::Poison => Invalid::Poisoned(place.leaf).encode(place.level),
            Self::Leaf(leaf) => leaf.encode(place.level),
        }
    }
}

/// Makes changes to the live tables of one VM.
pub(super) struct Surgeon<'a, T> {
    pub(super) tlb: &'a T,
    pub(super) vmid: Vmid,
    pub(super) granule: Granule,
    pub(super) strategy: Strategy,
}

impl<T: Tlb> Surgeon<'_, T> {
    /// Exchanges the block at `place` for `subtree` with its part changed. `ipa` lies in that part.
    /// Afterwards no CPU can use the part as it was through this table.
    pub(super) fn exchange(
        &self,
        place: &Place<'_>,
        subtree: &Subtree<'_>,
        change: Change,
        ipa: Ipa,
    ) {
        if self.must_break(place) {
            let word = change.word(&subtree.part);
            subtree.part.word.store(word, Ordering::Relaxed);
            self.park(place, ipa);
            link(place.word, split_word(subtree.top));
            self.tlb.publish();
            return;
        }
        if self.strategy == Strategy::MarkThenSwap {
            let marked = place.leaf.encode(place.level) | NOT_CACHED;
            place.word.store(marked, Ordering::Relaxed);
            self.invalidate_leaf(place.level, ipa);
        }
        if let Some(words) = place.group {
            mark(words, false);
            link(place.word, split_word(subtree.top));
            self.invalidate_group(&self.group_of(words, place.level, ipa));
        } else {
            link(place.word, split_word(subtree.top));
            self.tlb.publish();
            // No level hint: the change is from a leaf to a table. Combined entries of the block
            // agree with the table, and while nothing but a hole comes, they may wait for the
            // invalidation below. They must not meet a leaf that says something else.
            self.tlb.invalidate_ipa(self.vmid, ipa, None);
            if change != Change::Poison {
                self.tlb.invalidate_vm(self.vmid);
            }
        }
        self.change(&subtree.part, change, ipa);
    }

    /// Whether the leaf at `place` has to be absent before a table can be there.
    fn must_break(&self, place: &Place<'_>) -> bool {
        match self.strategy {
            Strategy::BreakFirst => true,
            Strategy::MarkThenSwap => place.group.is_some(),
            Strategy::SwapThenBreak => false,
        }
    }

    /// Changes the leaf at `place` as it is. Afterwards no CPU can use it as it was through this
    /// table. A change that needs it makes the leaf absent for as long as the invalidation takes.
    pub(super) fn change(&self, place: &Place<'_>, change: Change, ipa: Ipa) {
        match change {
            Change::Nothing => {}
            Change::Leaf(leaf)
                if !leaf.differs_in_permissions(place.leaf) || place.group.is_some() =>
            {
                self.park(place, ipa);
                place.word.store(change.word(place), Ordering::Relaxed);
                self.tlb.publish();
            }
            Change::Leaf(_) | Change::Poison => self.put(place, change.word(place), ipa),
        }
    }

    /// Takes the leaf at `place` out, to be put back later. Afterwards no CPU can reach its memory
    /// through this table.
    pub(super) fn park(&self, place: &Place<'_>, ipa: Ipa) {
        self.put(place, Invalid::Parked(place.leaf).encode(place.level), ipa);
    }

    /// Puts `word`, which needs no break before it is there, in the place of a leaf, and has its group be none
    /// any more. But with [`Strategy::SwapThenBreak`], all of that is absent for as long as the invalidation takes.
    fn put(&self, place: &Place<'_>, word: u64, ipa: Ipa) {
        match place.group {
            Some(words) if self.must_break(place) => {
                let group = self.group_of(words, place.level, ipa);
                group.change(parked);
                place.word.store(word, Ordering::Relaxed);
                self.invalidate_group(&group);
                for other in words {
                    if !core::ptr::eq(other, place.word) {
                        let raw = other.load(Ordering::Relaxed);
                        other.store(unparked(raw), Ordering::Relaxed);
                    }
                }
                self.tlb.publish();
            }
            Some(words) => {
                mark(words, false);
                place.word.store(word, Ordering::Relaxed);
                self.invalidate_group(&self.group_of(words, place.level, ipa));
            }
            None => {
                place.word.store(word, Ordering::Relaxed);
                self.invalidate_leaf(place.level, ipa);
            }
        }
    }

    /// The group that `words`, of `level`, are, and that `ipa` lies in.
    fn group_of<'m>(&self, words: &'m [AtomicU64], level: Level, ipa: Ipa) -> Group<'m> {
        let span = self.granule.span(level);
        Group {
            words,
            level,
            base: ipa.align_down(span * words.len() as u64),
            span,
        }
    }

    /// Has the leaves of a group cached as one from now on, or each by itself.
    pub(super) fn regroup(&self, group: &Group<'_>, together: bool) {
        match self.strategy {
            Strategy::BreakFirst | Strategy::MarkThenSwap => {
                group.change(parked);
                self.invalidate_group(group);
                let bit = if together { CONTIGUOUS } else { 0 };
                group.change(|raw| unparked(raw) | bit);
                self.tlb.publish();
            }
            Strategy::SwapThenBreak => {
                mark(group.words, together);
                self.invalidate_group(group);
            }
        }
    }

    /// Removes the leaves of a group, by themselves and as one, from all TLBs. All of them: a CPU that has cached one
    /// by itself, or a few, as part of a group must not hold that when it changes later, as part of none.
    fn invalidate_group(&self, group: &Group<'_>) {
        let leaves = (group.words.len(), group.span);
        self.tlb.publish();
        self.tlb
            .invalidate_leaves(self.vmid, group.base, leaves, group.level);
        self.tlb.invalidate_vm(self.vmid);
    }

    /// Exchanges the table at `place` for the block there, which maps what all of the table maps.
    /// Afterwards no CPU walks the table.
    pub(super) fn merge(&self, place: &Place<'_>) {
        let block = place.leaf.encode(place.level);
        let meanwhile = match self.strategy {
            Strategy::BreakFirst => Some(Invalid::Parked(place.leaf).encode(place.level)),
            Strategy::MarkThenSwap => Some(block | NOT_CACHED),
            Strategy::SwapThenBreak => None,
        };
        place
            .word
            .store(meanwhile.unwrap_or(block), Ordering::Relaxed);
        self.forget_table();
        if meanwhile.is_some() {
            place.word.store(block, Ordering::Relaxed);
            self.tlb.publish();
        }
    }

    /// Removes a table that has just been left, and everything below it, from all TLBs. By IPA that
    /// would be one invalidation for each of its leaves, any of which may be cached alone.
    pub(super) fn forget_table(&self) {
        self.tlb.publish();
        self.tlb.invalidate_vm_all(self.vmid);
    }

    /// Removes a leaf that has just been made invalid, or given other permissions, from all TLBs.
    pub(super) fn invalidate_leaf(&self, level: Level, ipa: Ipa) {
        self.tlb.publish();
        self.tlb.invalidate_ipa(self.vmid, ipa, Some(level));
        // A TLB may hold stages 1 and 2 combined, by VA; those do not go by IPA.
        self.tlb.invalidate_vm(self.vmid);
    }
}

/// Release: a walk that sees the table also sees what is in it.
pub(super) fn link(word: &AtomicU64, table: u64) {
    word.store(table, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bbm_level_2_and_above_may_swap_directly() {
        let strategies = [0, 1, 2, 3].map(Strategy::for_bbm_level);
        assert_eq!(
            strategies,
            [
                Strategy::BreakFirst,
                Strategy::MarkThenSwap,
                Strategy::SwapThenBreak,
                Strategy::SwapThenBreak
            ]
        );
        assert_eq!(strategies.map(Strategy::bbm_level), [0, 1, 2, 2]);
    }
}

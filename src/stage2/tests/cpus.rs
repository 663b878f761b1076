//! CPUs that cache whatever they may, as early and for as long as they may.
//!
//! [`Cpus`] is a TLB that looks at the tables whenever it is spoken to. It assumes that some CPU has
//! cached every translation that was ever visible and has not been invalidated since, in both kinds
//! of entry that the architecture knows: stage 2 alone, and stages 1 and 2 combined; and every table
//! on the way, which it goes on walking whatever becomes of the frame. Of a contiguous group that means
//! each leaf by itself, and all of them as one, as soon as one of them can be seen. It fails the test as soon as
//! one of those contradicts the tables in a way that break-before-make forbids.
//!
//! Two delays are part of it. A store that was not published may be invisible to a walk, so an
//! invalidation before the publication achieves nothing: the old translation is cached again. And a
//! combined entry may be made from a cached stage-2 entry, so those have to go first.

use super::machine::{HwLeaf, HwTable, Memory, Seen, hardware, translate};
use crate::addr::{Ipa, Vmid};
use crate::stage2::{Level, Tlb};
use core::cell::RefCell;
use std::vec::Vec;

/// What [`Cpus`] was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Publish,
    InvalidateIpa(u64, Option<Level>),
    InvalidateLeaves(u64, usize, Level),
    InvalidateVm,
    InvalidateVmAll,
}

/// One request, and what the tables said of the watched IPAs at that moment: the sizes of the
/// leaves that mapped them.
pub(super) type Step = (Asked, Vec<Option<u64>>);

#[derive(Default)]
struct State {
    vttbr: u64,
    vtcr: u64,
    /// The level of FEAT_BBM.
    bbm: u64,
    published: Vec<HwLeaf>,
    published_tables: Vec<HwTable>,
    /// What was visible the last time, and is cached and checked.
    seen: Vec<HwLeaf>,
    /// Cached entries of each kind, in order and without duplicates.
    stage2: Vec<HwLeaf>,
    combined: Vec<HwLeaf>,
    tables: Vec<HwTable>,
    watched: Vec<Ipa>,
    steps: Vec<Step>,
}

pub(super) struct Cpus<'m> {
    memory: &'m Memory,
    vmid: Vmid,
    state: RefCell<Option<State>>,
}

impl<'m> Cpus<'m> {
    /// CPUs that run nothing yet.
    pub(super) fn new(memory: &'m Memory, vmid: Vmid) -> Self {
        Self {
            memory,
            vmid,
            state: RefCell::new(None),
        }
    }

    /// The VM runs from now on, with these registers.
    pub(super) fn run(&self, vttbr: u64, vtcr: u64, bbm: u64) {
        let mut state = State {
            vttbr,
            vtcr,
            bbm,
            ..State::default()
        };
        let now = state.read(self.memory);
        (state.published, state.published_tables) = (now.cacheable, now.tables);
        *self.state.borrow_mut() = Some(state);
        self.look();
    }

    /// Records steps from now on, with what becomes of `watched`.
    pub(super) fn watch(&self, watched: &[Ipa]) {
        self.with(|state| {
            state.watched = watched.to_vec();
            state.steps.clear();
        });
    }

    pub(super) fn steps(&self) -> Vec<Step> {
        self.with(|state| state.steps.clone())
    }

    /// Caches everything that is visible now, and checks it against what is cached.
    pub(super) fn look(&self) {
        self.with(|state| {
            state.look(self.memory);
        });
    }

    /// What hardware translates now. All stores must have been published.
    pub(super) fn settled(&self) -> Vec<HwLeaf> {
        self.with(|state| {
            let now = state.look(self.memory);
            assert_eq!(
                now.cacheable, state.published,
                "a store was never published"
            );
            now.leaves
        })
    }

    /// That nothing is cached that the tables do not say, but for the size of leaves.
    pub(super) fn nothing_is_stale(&self) {
        self.with(|state| {
            let now = state.look(self.memory);
            assert_eq!(state.tables, now.tables, "a table that was left is cached");
            for old in state.stage2.iter().chain(&state.combined) {
                let from = now.leaves.partition_point(|new| new.end() <= old.ipa);
                let same = now.leaves[from..]
                    .iter()
                    .take_while(|new| new.ipa < old.end());
                let covered: u64 = same
                    .inspect(|new| assert!(old.agrees_with(new), "{old:x?} against {new:x?}"))
                    .map(|new| new.end().min(old.end()) - new.ipa.max(old.ipa))
                    .sum();
                assert_eq!(covered, old.size, "{old:x?} is cached");
            }
        });
    }

    /// Whether a CPU may still reach memory through `ipa`, as of the last request.
    pub(super) fn may_reach(&self, ipa: Ipa) -> bool {
        self.with(|state| {
            let hit = |leaf: &HwLeaf| leaf.contains(ipa.get());
            state.stage2.iter().any(hit) || state.combined.iter().any(hit)
        })
    }

    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(self.state.borrow_mut().as_mut().expect("the VM runs"))
    }

    fn asked(&self, asked: Asked, f: impl FnOnce(&mut State, &Seen)) {
        if self.state.borrow().is_none() {
            return; // Nobody walks the tables yet.
        }
        self.with(|state| {
            let now = state.look(self.memory);
            let seen = |ipa: &Ipa| translate(&now.leaves, *ipa).map(|leaf| leaf.size);
            let seen = state.watched.iter().map(seen).collect();
            state.steps.push((asked, seen));
            f(state, &now);
        });
    }
}

impl State {
    fn read(&self, memory: &Memory) -> Seen {
        hardware(memory, self.vttbr, self.vtcr)
    }

    /// Caches and checks what can be seen now: by a walk from the root, and by one that goes on from a
    /// table that was left.
    fn look(&mut self, memory: &Memory) -> Seen {
        let now = self.read(memory);
        let left = |table: &&HwTable| now.tables.binary_search(table).is_err();
        let left = self.tables.iter().filter(left);
        let mut visible: Vec<HwLeaf> = left.flat_map(|table| table.leaves(memory)).collect();
        add(&mut visible, &now.cacheable);
        if self.seen != visible {
            let marked = visible.iter().any(HwLeaf::is_not_cached);
            assert!(self.bbm > 0 || !marked, "nT is RES0");
            self.check(&visible);
            add(&mut self.stage2, &visible);
            add(&mut self.combined, &visible);
            if visible.iter().any(HwLeaf::is_contiguous) {
                // What is visible at once has to agree, too: all of a group, or none of it.
                self.check(&visible);
            }
            self.seen = visible;
        }
        add(&mut self.tables, &now.tables);
        now
    }

    /// CPUs fill their TLBs again, from what a walk may see (published or not), and from what other
    /// entries say.
    fn refill(&mut self, now: &Seen) {
        add(&mut self.stage2, &now.cacheable);
        add(&mut self.tables, &now.tables);
        if self.published != now.cacheable {
            add(&mut self.stage2, &self.published);
            add(&mut self.tables, &self.published_tables);
            self.seen.clear(); // The next look has to check again.
        }
        add(&mut self.combined, &self.stage2);
    }

    fn check(&self, now: &[HwLeaf]) {
        for (kind, cached) in [("stage 2", &self.stage2), ("combined", &self.combined)] {
            let mut at = 0; // Both lists are in order of IPA.
            for old in cached {
                while now.get(at).is_some_and(|new| new.end() <= old.ipa) {
                    at += 1;
                }
                for new in now[at..].iter().take_while(|new| new.ipa < old.end()) {
                    assert!(
                        self.may_coexist(old, new),
                        "{kind}: {old:x?} against {new:x?}"
                    );
                }
            }
        }
    }

    fn may_coexist(&self, old: &HwLeaf, new: &HwLeaf) -> bool {
        old == new
            || !old.overlaps(new)
            || old.is_of_one_group_with(new)
            || old.differs_in_permissions(new)
            || old.agrees_with(new) && self.may_differ_in_size(old, new)
    }

    /// Whether block and table may be exchanged as they are: at level 2, and at level 1 if the block is marked.
    fn may_differ_in_size(&self, old: &HwLeaf, new: &HwLeaf) -> bool {
        let block = if old.size < new.size { new } else { old };
        match self.bbm {
            0 => false,
            1 => block.is_not_cached() || old.size == new.size && new.is_not_cached(),
            _ => true,
        }
    }
}

/// Adds to a set that is kept as a sorted list. Sets of a thousand entries that differ in a few are
/// the rule here, and Miri should get through them, too.
fn add<T: Copy + Ord>(set: &mut Vec<T>, more: &[T]) {
    if set != more {
        set.extend(more);
        set.sort();
        set.dedup();
    }
}

impl Tlb for Cpus<'_> {
    fn publish(&self) {
        self.asked(Asked::Publish, |state, now| {
            state.published.clone_from(&now.cacheable);
            state.published_tables.clone_from(&now.tables);
        });
    }

    fn invalidate_ipa(&self, vmid: Vmid, ipa: Ipa, leaf: Option<Level>) {
        assert_eq!(vmid, self.vmid);
        self.asked(Asked::InvalidateIpa(ipa.get(), leaf), |state, now| {
            state.stage2.retain(|old| {
                let named = leaf.is_none_or(|leaf| leaf.number() == old.level);
                !(named && old.contains(ipa.get()))
            });
            if leaf.is_none() {
                state.tables.retain(|old| !old.contains(ipa.get()));
            }
            state.refill(now);
        });
    }

    fn invalidate_leaves(&self, vmid: Vmid, first: Ipa, (count, size): (usize, u64), level: Level) {
        assert_eq!(vmid, self.vmid);
        let asked = Asked::InvalidateLeaves(first.get(), count, level);
        let range = first.get()..first.get() + count as u64 * size;
        self.asked(asked, |state, now| {
            // Those of the level that one of the addresses at its distance from the first is in.
            let named = |old: &HwLeaf| {
                let from = old.ipa.max(range.start).next_multiple_of(size);
                old.level == level.number() && from < old.end().min(range.end)
            };
            state.stage2.retain(|old| !named(old));
            state.refill(now);
        });
    }

    fn invalidate_vm(&self, vmid: Vmid) {
        assert_eq!(vmid, self.vmid);
        self.asked(Asked::InvalidateVm, |state, now| {
            state.combined.clear();
            state.refill(now);
        });
    }

    fn invalidate_vm_all(&self, vmid: Vmid) {
        assert_eq!(vmid, self.vmid);
        self.asked(Asked::InvalidateVmAll, |state, now| {
            state.stage2.clear();
            state.combined.clear();
            state.tables.clear();
            state.refill(now);
        });
    }
}

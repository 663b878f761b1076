//! The poison set: which pages of the machine are bad.
//!
//! A red-black tree by frame number, so that the question asked most, "is anything bad in this
//! gigabyte?", takes a handful of steps. All nodes are reserved at boot, in one slice that the set
//! borrows for good: a memory error is the worst moment to be out of memory. When the slice is used
//! up the answer is [`Insert::Full`], and the caller must then contain the page without the set, and
//! say so.
//!
//! # What is good again, and for whom
//!
//! A page that several VMs share is made good by one of them. The others have not asked for it, and
//! must not find other contents where they have lost theirs: from each of them it stays
//! *withheld*, which takes a node for each. Nodes are kept by owner and frame number in one tree,
//! [`EVERYBODY`] being the owner of those that are bad; so what one VM must not have mapped is found
//! by two searches, whatever has been repaired for others.
//!
//! # The cost
//!
//! A node takes 64 bytes. Every operation takes O(log n) steps in the number of nodes in use; an
//! iterator takes O(log n) to begin and O(1) on average for each page that it gives.
//!
//! The set lives behind one spin lock, which is taken after that of a region and before that of a
//! stage-2 table. What a node counts may be changed through a shared reference, under the same lock.
//! Synchronous aborts of EL2 itself must not take it.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicI8, AtomicU32, AtomicU64, Ordering::Relaxed};

use intrusive_collections::{
    Bound, KeyAdapter, RBTree, RBTreeAtomicLink, SinglyLinkedList, SinglyLinkedListAtomicLink,
    intrusive_adapter,
};

use super::esr::Level;
use crate::addr::{Pa, PaRange, Pfn, Vmid};

#[cfg(test)]
mod tests;

/// What is known of one bad page. Also the unit of which the set's memory is made.
///
/// The fields are atomics for `Sync` alone: the lock around the set orders them.
#[derive(Debug)]
pub struct PoisonedPage {
    tree: RBTreeAtomicLink,
    free: SinglyLinkedListAtomicLink,
    key: AtomicU64,
    sequence: AtomicU64,
    consumers: AtomicU64,
    /// 32 bits, so that a node is a line of a cache.
    touches: AtomicU32,
    acknowledged: AtomicBool,
    walk_level: AtomicI8,
}

/// On a machine of 64 bits.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<PoisonedPage>() == 64);

intrusive_adapter!(ByPfn<'a> = &'a PoisonedPage: PoisonedPage { tree => RBTreeAtomicLink });
intrusive_adapter!(Free<'a> = &'a PoisonedPage: PoisonedPage { free => SinglyLinkedListAtomicLink });

impl<'k> KeyAdapter<'k> for ByPfn<'_> {
    type Key = u64;

    fn get_key(&self, page: &'k PoisonedPage) -> u64 {
        #[cfg(test)]
        steps::count();
        page.key.load(Relaxed)
    }
}

/// How many nodes searches look at: what tests of the cost count.
#[cfg(test)]
pub(crate) mod steps {
    use core::cell::Cell;

    std::thread_local! {
        static STEPS: Cell<u64> = const { Cell::new(0) };
    }

    pub(super) fn count() {
        STEPS.set(STEPS.get() + 1);
    }

    /// Nodes that this thread has looked at until now.
    pub(crate) fn taken() -> u64 {
        STEPS.get()
    }
}

/// Bits of a frame number. The owner is above them.
const PFN_BITS: u32 = 52;
const PFN_MASK: u64 = (1 << PFN_BITS) - 1;

/// The owner of pages that are bad, whoever maps them. VMIDs count from 1.
const EVERYBODY: u64 = 0;

/// What `owner` must not have of the frame with number `pfn`.
const fn key(owner: u64, pfn: u64) -> u64 {
    owner << PFN_BITS | pfn & PFN_MASK
}

fn owner(vm: Vmid) -> u64 {
    vm.get().into()
}

/// A node is what a poisoned page costs.
const _: () = assert!(size_of::<PoisonedPage>() == 64);

/// Stored in place of a level where there is none.
const NO_LEVEL: i8 = i8::MIN;

impl PoisonedPage {
    /// A node that is not in use.
    pub const fn new() -> Self {
        Self {
            tree: RBTreeAtomicLink::new(),
            free: SinglyLinkedListAtomicLink::new(),
            key: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
            consumers: AtomicU64::new(0),
            touches: AtomicU32::new(0),
            acknowledged: AtomicBool::new(false),
            walk_level: AtomicI8::new(NO_LEVEL),
        }
    }

    /// The page.
    pub fn pfn(&self) -> Pfn {
        Pfn::new(self.key.load(Relaxed) & PFN_MASK)
    }

    /// The sequence number of the error by which the page became known.
    pub fn sequence(&self) -> u64 {
        self.sequence.load(Relaxed)
    }

    /// How often the page was accessed since it was contained. It goes no further than 2^32 - 1.
    pub fn touches(&self) -> u64 {
        self.touches.load(Relaxed).into()
    }

    /// Counts an access and returns how many there have been.
    pub fn touch(&self) -> u64 {
        let touches = self.touches.load(Relaxed).saturating_add(1);
        self.touches.store(touches, Relaxed);
        touches.into()
    }

    /// The CPUs whose guests have consumed the page, as bits by [`cpu_bit`].
    pub fn consumers(&self) -> u64 {
        self.consumers.load(Relaxed)
    }

    /// Remembers that the guest of physical CPU number `cpu` has consumed the page, and returns who had
    /// before.
    pub fn consume(&self, cpu: usize) -> u64 {
        let before = self.consumers();
        self.consumers.store(before | cpu_bit(cpu), Relaxed);
        before
    }

    /// Whether its owner knows that it is lost, and has said so.
    pub fn is_acknowledged(&self) -> bool {
        self.acknowledged.load(Relaxed)
    }

    /// Its owner says that it knows. Whether it had not said so before.
    pub fn acknowledge(&self) -> bool {
        let news = !self.is_acknowledged();
        self.acknowledged.store(true, Relaxed);
        news
    }

    /// What is known of it now.
    pub fn snapshot(&self) -> BadPage {
        BadPage {
            pa: self.pfn().pa(),
            sequence: self.sequence(),
            touches: self.touches(),
            consumers: self.consumers(),
            acknowledged: self.is_acknowledged(),
            walk_level: self.walk_level(),
        }
    }

    /// The level of the guest's own table that the page was when it was first consumed by a table walk.
    pub fn walk_level(&self) -> Option<Level> {
        Level::new(self.walk_level.load(Relaxed))
    }

    /// Remembers that the page was consumed as a table of this level. The CPU tells it with the
    /// external abort and with no later fault on the hole. The first answer stays.
    pub fn remember_walk_level(&self, level: Level) {
        if self.walk_level().is_none() {
            self.walk_level.store(level.get(), Relaxed);
        }
    }
}

impl Default for PoisonedPage {
    fn default() -> Self {
        Self::new()
    }
}

/// The bit of a physical CPU in [`PoisonedPage::consumers`]. CPUs beyond the 64th share bits with the
/// first, which may make a first consumption look like a repeated one.
pub const fn cpu_bit(cpu: usize) -> u64 {
    1 << (cpu % 64)
}

/// What was known of a bad page at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPage {
    /// Where it begins.
    pub pa: Pa,
    /// The sequence number of the error by which it became known.
    pub sequence: u64,
    /// How often it was accessed since it was contained.
    pub touches: u64,
    /// Whose guests have consumed it, as [`PoisonedPage::consumers`] has it.
    pub consumers: u64,
    /// Its owner has said that it knows.
    pub acknowledged: bool,
    /// The level of stage-1 table that it was first consumed as, if it was one.
    pub walk_level: Option<Level>,
}

/// What became of a page that was reported bad.
#[derive(Clone, Copy, Debug)]
#[must_use = "a page that the set has no room for must be dealt with otherwise"]
pub enum Insert<'s> {
    /// It is in the set now.
    New(&'s PoisonedPage),
    /// It was in the set before, unchanged.
    Known(&'s PoisonedPage),
    /// It is not in the set and all nodes are in use.
    Full,
}

/// What the set says of a page that a VM may or may not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is in order.
    Good,
    /// The VM must not have it: it is bad, or withheld.
    Lost,
    /// It is not in the set, which is full: it may be bad all the same.
    Unknown,
}

/// What was known of a page that is bad no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The sequence number of the error by which it had become known.
    pub sequence: u64,
    /// How often it was accessed meanwhile.
    pub touches: u64,
}

/// The bad pages of the machine.
pub struct PoisonSet<'a> {
    pages: RBTree<ByPfn<'a>>,
    /// Nodes that have never been in the tree, whatever is in them.
    fresh: &'a mut [PoisonedPage],
    /// Nodes that were, and are free again.
    free: SinglyLinkedList<Free<'a>>,
    len: usize,
    withheld: usize,
    capacity: usize,
}

impl<'a> PoisonSet<'a> {
    /// An empty set that can hold as many pages as `nodes` has elements. It owns them as long as they
    /// live; what they held before is gone.
    pub fn new(nodes: &'a mut [PoisonedPage]) -> Self {
        Self {
            pages: RBTree::new(ByPfn::new()),
            free: SinglyLinkedList::new(Free::new()),
            len: 0,
            withheld: 0,
            capacity: nodes.len(),
            fresh: nodes,
        }
    }

    /// A node that is not in use.
    fn unused(&mut self) -> Option<&'a PoisonedPage> {
        self.free.pop_front().or_else(|| {
            let node = core::mem::take(&mut self.fresh).split_first_mut();
            let (node, rest) = node?;
            self.fresh = rest;
            *node = PoisonedPage::new();
            Some(node)
        })
    }

    /// How many pages are bad.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no page is bad.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many pages the set can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many pages are withheld, each from one VM.
    pub fn withheld(&self) -> usize {
        self.withheld
    }

    /// How many more pages can be bad, or withheld from one VM.
    pub fn room(&self) -> usize {
        self.capacity.saturating_sub(self.len + self.withheld)
    }

    /// Marks `pfn` as bad, by the error with number `sequence`.
    pub fn insert(&mut self, pfn: Pfn, sequence: u64) -> Insert<'_> {
        let key = key(EVERYBODY, pfn.get());
        if let Some(page) = self.pages.find(&key).clone_pointer() {
            return Insert::Known(page);
        }
        match self.add(key, sequence) {
            Some(page) => {
                self.len += 1;
                Insert::New(page)
            }
            None => Insert::Full,
        }
    }

    /// A new node with this key, of which there is none.
    fn add(&mut self, key: u64, sequence: u64) -> Option<&'a PoisonedPage> {
        let page = self.unused()?;
        page.key.store(key, Relaxed);
        page.sequence.store(sequence, Relaxed);
        page.touches.store(0, Relaxed);
        page.consumers.store(0, Relaxed);
        page.acknowledged.store(false, Relaxed);
        page.walk_level.store(NO_LEVEL, Relaxed);
        self.pages.insert(page);
        Some(page)
    }

    /// What is known of `pfn`, if it is bad.
    pub fn get(&self, pfn: Pfn) -> Option<&PoisonedPage> {
        self.pages.find(&key(EVERYBODY, pfn.get())).get()
    }

    /// What is known of `pfn`, if `vm` must not have it: because it is bad, or withheld from it.
    #[inline]
    pub fn get_for(&self, vm: Vmid, pfn: Pfn) -> Option<&PoisonedPage> {
        let withheld = || self.pages.find(&key(owner(vm), pfn.get())).get();
        self.get(pfn).or_else(withheld)
    }

    /// Whether `vm` may have `pfn`.
    pub fn standing(&self, vm: Vmid, pfn: Pfn) -> Standing {
        match self.get_for(vm, pfn) {
            Some(_) => Standing::Lost,
            None if self.room() == 0 => Standing::Unknown,
            None => Standing::Good,
        }
    }

    /// Whether `pfn` is bad.
    pub fn contains(&self, pfn: Pfn) -> bool {
        self.get(pfn).is_some()
    }

    /// The lowest bad page that shares a byte with `range`.
    pub fn first_in(&self, range: PaRange) -> Option<&PoisonedPage> {
        self.first_of(EVERYBODY, range)
    }

    /// The lowest page that shares a byte with `range` and that `vm` must not have. Of one that is bad
    /// and was withheld before, what is known of the former.
    pub fn first_for(&self, vm: Vmid, range: PaRange) -> Option<&PoisonedPage> {
        let bad = self.first_of(EVERYBODY, range);
        if self.withheld == 0 {
            return bad;
        }
        let withheld = self.first_of(owner(vm), range);
        // Of two equal ones, the first.
        [bad, withheld]
            .into_iter()
            .flatten()
            .min_by_key(|page| page.pfn())
    }

    fn first_of(&self, owner: u64, range: PaRange) -> Option<&PoisonedPage> {
        let pfns = range.pfns();
        let first = key(owner, pfns.start);
        let page = self.pages.lower_bound(Bound::Included(&first)).get()?;
        let last = key(owner, pfns.end.saturating_sub(1));
        (page.key.load(Relaxed) <= last).then_some(page)
    }

    /// The bad pages that share a byte with `range`, in order.
    pub fn iter_in(&self, range: PaRange) -> impl Iterator<Item = &PoisonedPage> {
        let pfns = range.pfns();
        let (first, last) = (
            key(EVERYBODY, pfns.start),
            key(EVERYBODY, pfns.end.saturating_sub(1)),
        );
        self.pages
            .range(Bound::Included(&first), Bound::Included(&last))
    }

    /// All bad pages, in order.
    pub fn iter(&self) -> impl Iterator<Item = &PoisonedPage> {
        let last = key(EVERYBODY, PFN_MASK);
        self.pages.range(Bound::Unbounded, Bound::Included(&last))
    }

    /// Forgets that `pfn` is bad: it was repaired. `None` if it was not.
    pub fn remove(&mut self, pfn: Pfn) -> Option<Removed> {
        let removed = self.take(key(EVERYBODY, pfn.get()))?;
        self.len = self.len.saturating_sub(1);
        Some(removed)
    }

    /// Forgets that `pfn` is bad, but keeps it from each of `others`, who had it as well and have not
    /// asked for it. `None` if it was not bad, or if there is no room for so many: nothing has changed
    /// then.
    pub fn remove_but_for(
        &mut self,
        pfn: Pfn,
        others: impl Iterator<Item = Vmid> + Clone,
    ) -> Option<Removed> {
        let known = |vm: &Vmid| self.pages.find(&key(owner(*vm), pfn.get())).get().is_some();
        let needed = others.clone().filter(|vm| !known(vm)).count();
        // The node of the page itself can be used again.
        if needed > self.room() + 1 {
            return None;
        }
        let removed = self.remove(pfn)?;
        for vm in others {
            let key = key(owner(vm), pfn.get());
            if self.pages.find(&key).is_null() && self.add(key, removed.sequence).is_some() {
                self.withheld += 1;
            }
        }
        Some(removed)
    }

    /// `vm` asks for `pfn`, which may be withheld from it: it is not, from now on. `None` if it was not.
    pub fn give_back(&mut self, vm: Vmid, pfn: Pfn) -> Option<Removed> {
        let removed = self.take(key(owner(vm), pfn.get()))?;
        self.withheld = self.withheld.saturating_sub(1);
        Some(removed)
    }

    fn take(&mut self, key: u64) -> Option<Removed> {
        let page = self.pages.find_mut(&key).remove()?;
        let removed = Removed {
            sequence: page.sequence(),
            touches: page.touches(),
        };
        self.free.push_front(page);
        Some(removed)
    }
}

impl fmt::Debug for PoisonSet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.iter().map(|page| page.pfn().pa()))
            .finish()
    }
}

//! The poison set: which pages of the machine are bad.
//!
//! A red-black tree by frame number, so that the question asked most, "is anything bad in this
//! gigabyte?", takes a handful of steps. All nodes are reserved at boot, in one slice that the set
//! borrows for good: a memory error is the worst moment to be out of memory. When the slice is used
//! up the answer is [`Insert::Full`], and the caller must then contain the page without the set, and
//! say so.
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
use crate::addr::{Pa, PaRange, Pfn};

#[cfg(test)]
mod tests;

/// What is known of one bad page. Also the unit of which the set's memory is made.
///
/// The fields are atomics for `Sync` alone: the lock around the set orders them.
#[derive(Debug)]
pub struct PoisonedPage {
    tree: RBTreeAtomicLink,
    free: SinglyLinkedListAtomicLink,
    pfn: AtomicU64,
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
        page.pfn.load(Relaxed)
    }
}

/// Stored in place of a level where there is none.
const NO_LEVEL: i8 = i8::MIN;

impl PoisonedPage {
    /// A node that is not in use.
    pub const fn new() -> Self {
        Self {
            tree: RBTreeAtomicLink::new(),
            free: SinglyLinkedListAtomicLink::new(),
            pfn: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
            consumers: AtomicU64::new(0),
            touches: AtomicU32::new(0),
            acknowledged: AtomicBool::new(false),
            walk_level: AtomicI8::new(NO_LEVEL),
        }
    }

    /// The page.
    pub fn pfn(&self) -> Pfn {
        Pfn::new(self.pfn.load(Relaxed))
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
            capacity: nodes.len(),
            fresh: nodes,
        }
    }

    /// A node that is not in use.
    fn take(&mut self) -> Option<&'a PoisonedPage> {
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

    /// Marks `pfn` as bad, by the error with number `sequence`.
    pub fn insert(&mut self, pfn: Pfn, sequence: u64) -> Insert<'_> {
        if let Some(page) = self.pages.find(&pfn.get()).clone_pointer() {
            return Insert::Known(page);
        }
        let Some(page) = self.take() else {
            return Insert::Full;
        };
        page.pfn.store(pfn.get(), Relaxed);
        page.sequence.store(sequence, Relaxed);
        page.touches.store(0, Relaxed);
        page.consumers.store(0, Relaxed);
        page.acknowledged.store(false, Relaxed);
        page.walk_level.store(NO_LEVEL, Relaxed);
        self.pages.insert(page);
        self.len = self.len.saturating_add(1);
        Insert::New(page)
    }

    /// What is known of `pfn`, if it is bad.
    pub fn get(&self, pfn: Pfn) -> Option<&PoisonedPage> {
        self.pages.find(&pfn.get()).get()
    }

    /// Whether `pfn` is bad.
    pub fn contains(&self, pfn: Pfn) -> bool {
        self.get(pfn).is_some()
    }

    /// The lowest bad page that shares a byte with `range`.
    pub fn first_in(&self, range: PaRange) -> Option<&PoisonedPage> {
        self.iter_in(range).next()
    }

    /// The bad pages that share a byte with `range`, in order.
    pub fn iter_in(&self, range: PaRange) -> impl Iterator<Item = &PoisonedPage> {
        let pfns = range.pfns();
        self.pages
            .range(Bound::Included(&pfns.start), Bound::Excluded(&pfns.end))
    }

    /// All bad pages, in order.
    pub fn iter(&self) -> impl Iterator<Item = &PoisonedPage> {
        self.pages.iter()
    }

    /// Forgets that `pfn` is bad: it was repaired. `None` if it was not.
    pub fn remove(&mut self, pfn: Pfn) -> Option<Removed> {
        let page = self.pages.find_mut(&pfn.get()).remove()?;
        let removed = Removed {
            sequence: page.sequence(),
            touches: page.touches(),
        };
        self.free.push_front(page);
        self.len = self.len.saturating_sub(1);
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

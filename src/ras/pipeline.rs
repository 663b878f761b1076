//! The one path of a memory error: learned of, contained, told, counted.
//!
//! ```text
//!   SEA or SError from a guest --+
//!                                +--> collect: take every record firmware has left
//!   (nobody: polled, GED)      --+         |
//!                                          v
//!                             ErrorEvent per section --> Containment::page, for each page
//!                                          |
//!            consumer known                v
//!     resolve: which of its pages? --> the caller tells the guest
//! ```
//!
//! Two CPUs may consume at once, and firmware has one block for both. So nobody assumes that the
//! record it finds is about its own access: whoever holds the sources' lock takes all there is and
//! contains it, and then each CPU resolves its own access by looking whether the page it touched
//! is a hole by now. Of several records, one that is about memory of the consumer's own VM is the one
//! that may be about its access.
//!
//! Locks, in the order in which they are taken: `sources`, `poison`, a VM's stage 2, the console.
//! `poison` is never held while a stage 2 is. `filter` is a leaf, and held for one decision.

use super::contain::{AddressSpaces, Containment};
use super::cper::{Body, Section, SectionFlags, Severity, StatusBlock};
use super::esr::Level;
use super::event::{Announcer, Consumer, ErrorEvent, Origin, Stage};
use super::filter::Filter;
use super::ghes::{Ghes, PhysMemory};
use super::poison::{BadPage, PoisonSet};
use crate::addr::{PAGE_SIZE, Pa, PaRange, Pfn};
use crate::devmem::DevMem;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Mutex;

mod inject;
mod memory;
#[cfg(test)]
pub(crate) mod tests;

pub use inject::Injection;
pub use memory::{Consumption, LostPage};

/// Longest record that is read, in bytes: a page, more than any source here offers.
const MAX_RECORD: usize = 4096;

/// Most pages that one section can make Cordon contain: 128 MiB. The rest is said to be left.
const MAX_PAGES: u64 = 1 << 15;

/// How many may subscribe to what happens to errors.
pub const SUBSCRIBERS: usize = 8;

/// Who took an exception, or looked: the part of an event that is known before any record is read.
#[derive(Clone, Copy, Debug)]
pub struct Occasion {
    /// How an error was learned of.
    pub origin: Origin,
    /// The physical CPU.
    pub cpu: usize,
    /// Who consumed it.
    pub consumer: Option<Consumer>,
}

impl Occasion {
    /// The event that this is, about `range`.
    pub const fn event(
        &self,
        sequence: u64,
        severity: Severity,
        range: Option<PaRange>,
    ) -> ErrorEvent {
        ErrorEvent {
            sequence,
            range,
            severity,
            origin: self.origin,
            cpu: self.cpu,
            consumer: self.consumer,
        }
    }
}

/// What came out of the records.
#[derive(Clone, Copy, Debug, Default)]
pub struct Collected {
    /// Records that were read.
    pub records: u32,
    /// The page of the first uncorrected error, whosever it is.
    pub page: Option<Pa>,
    /// The page of the first uncorrected error in memory that the consumer's VM maps.
    pub own: Option<Pa>,
    /// An uncorrected error is in memory that no region holds: Cordon's, if anyone's.
    pub unclaimed: bool,
    /// Firmware says that an error could not be contained by hardware.
    pub fatal: bool,
}

/// The sources of records, and what they are read with.
#[derive(Debug)]
pub struct Sources<S> {
    memory: S,
    list: Vec<Ghes>,
    buffer: Vec<u8>,
}

impl<S: PhysMemory> Sources<S> {
    /// These sources, whose blocks are in `memory`. Allocates all that reading them needs.
    pub fn new(memory: S, list: Vec<Ghes>) -> Self {
        Self {
            memory,
            list,
            buffer: alloc::vec![0; MAX_RECORD],
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// Everything that knows about memory errors.
pub struct Ras<'s, S> {
    /// Who maps what. Read only, once VMs run.
    pub devmem: DevMem<'s>,
    /// Counts what happens, in this one place, and tells who wants to know.
    pub announcer: Announcer<SUBSCRIBERS>,
    /// Decides which errors are acted on.
    pub filter: Mutex<Filter>,
    poison: Mutex<PoisonSet<'s>>,
    sources: Mutex<Sources<S>>,
    /// Firmware leaves records here.
    has_records: bool,
    sequence: AtomicU64,
}

impl<'s, S: PhysMemory> Ras<'s, S> {
    /// A pipeline in which nothing has happened yet.
    pub fn new(devmem: DevMem<'s>, poison: PoisonSet<'s>, sources: Sources<S>) -> Self {
        Self {
            devmem,
            announcer: Announcer::new(),
            filter: Mutex::new(Filter::new()),
            poison: Mutex::new(poison),
            has_records: !sources.is_empty(),
            sources: Mutex::new(sources),
            sequence: AtomicU64::new(1),
        }
    }

    /// Whether firmware leaves records of errors.
    pub const fn has_records(&self) -> bool {
        self.has_records
    }

    /// The number of the next event.
    pub fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes every record that firmware has left and contains what it tells of.
    pub fn collect<V: AddressSpaces>(&self, occasion: &Occasion, spaces: &V) -> Collected {
        let mut sources = self.sources.lock();
        let Sources {
            memory,
            list,
            buffer,
        } = &mut *sources;
        let mut collected = Collected::default();
        for source in list.iter() {
            match source.take(memory, buffer) {
                Ok(None) => {}
                Ok(Some(record)) => {
                    collected.records += 1;
                    if let Err(error) = record.released {
                        log::error!("event=error what=ghes why=not-released:{error}");
                    }
                    self.record(&record.block, occasion, spaces, &mut collected);
                }
                Err(error) => log::error!("event=error what=cper why={error}"),
            }
        }
        collected
    }

    fn record<V: AddressSpaces>(
        &self,
        block: &StatusBlock<'_>,
        occasion: &Occasion,
        spaces: &V,
        collected: &mut Collected,
    ) {
        collected.fatal |= block.severity() == Severity::Fatal;
        if block.sections().next().is_none() {
            log::error!("event=error what=cper why=no-sections");
        }
        for section in block.sections() {
            match section {
                Ok(section) => self.section(&section, occasion, spaces, collected),
                Err(error) => log::error!("event=error what=cper why={error}"),
            }
        }
    }

    fn section<V: AddressSpaces>(
        &self,
        section: &Section<'_>,
        occasion: &Occasion,
        spaces: &V,
        collected: &mut Collected,
    ) {
        let mut ranges = poisoned_ranges(section).peekable();
        let event = occasion.event(
            self.next_sequence(),
            section.severity,
            ranges.peek().copied(),
        );
        self.announcer.announce(&event, Stage::Detected);
        log::info!(target: "ras", "event=detected {event}{} {}", VmName(&event, spaces), section.line());
        if section.severity == Severity::Corrected
            && let Some(range) = ranges.peek()
            && self.corrected(&event, *range)
        {
            let threshold = section.flags.contains(SectionFlags::THRESHOLD_EXCEEDED);
            for page in self.devmem.mappings_of(range.start().page()) {
                spaces.corrected(page.vm, page.ipa, threshold);
            }
        }
        for range in ranges.filter(|_| section.severity.is_uncorrected()) {
            let event = ErrorEvent {
                range: Some(range),
                ..event
            };
            let page = range.start().page();
            collected.unclaimed |= !self.contain(&event, range, spaces);
            collected.page = collected.page.or(Some(page));
            let own = Some(page).filter(|page| self.is_of_consumer(*page, occasion));
            collected.own = collected.own.or(own);
        }
    }

    /// Whether the VM that consumed the error maps `page`.
    fn is_of_consumer(&self, page: Pa, occasion: &Occasion) -> bool {
        let Some(Consumer::Vcpu { vm, .. }) = occasion.consumer else {
            return false;
        };
        self.devmem.mappings_of(page).any(|mapped| mapped.vm == vm)
    }

    /// Contains every page of `range`, on behalf of `event`; whether any of it is somebody's.
    pub fn contain<V: AddressSpaces>(
        &self,
        event: &ErrorEvent,
        range: PaRange,
        spaces: &V,
    ) -> bool {
        let containment = Containment {
            devmem: &self.devmem,
            poison: &self.poison,
            announcer: &self.announcer,
            spaces,
            event,
        };
        let pages = range.pfns();
        let limit = pages.end.min(pages.start + MAX_PAGES);
        if limit < pages.end {
            self.announcer.announce(event, Stage::Overflow);
            let left = (pages.end - limit) * PAGE_SIZE;
            log::error!(target: "ras", "event=overflow what=pages seq={} left={left:#x}", event.sequence);
        }
        let (mut claimed, mut dropped) = (false, Dropped::default());
        // Every page has to be looked at, whatever the one before it was.
        for page in (pages.start..limit).map(|pfn| Pfn::new(pfn).pa()) {
            claimed |= if self.drops(event, page, &mut dropped) {
                self.devmem.find(page).is_some()
            } else {
                containment.page(page)
            };
        }
        self.say_dropped(event, &dropped);
        claimed
    }

    /// Nothing is lost to a corrected error: it is counted, by what kind it is, unless a filter has it.
    /// Whether it counts.
    fn corrected(&self, event: &ErrorEvent, range: PaRange) -> bool {
        let mut dropped = Dropped::default();
        let counts = !self.drops(event, range.start().page(), &mut dropped);
        self.say_dropped(event, &dropped);
        counts
    }

    fn drops(&self, event: &ErrorEvent, page: Pa, dropped: &mut Dropped) -> bool {
        let rule = self.filter.lock().drops(event, page, &self.devmem);
        if let Some(rule) = rule {
            dropped.first.get_or_insert((page, rule));
            dropped.pages += 1;
        }
        rule.is_some()
    }

    /// One line for all pages that a filter kept from being contained.
    fn say_dropped(&self, event: &ErrorEvent, dropped: &Dropped) {
        let Some((page, rule)) = dropped.first else {
            return;
        };
        let pages = dropped.pages;
        self.announcer.announce(event, Stage::Filtered { pages });
        let (seq, via) = (event.sequence, event.origin);
        log::info!(target: "ras", "event=filtered seq={seq} via={via} pa={page} pages={pages} rule={rule}");
    }

    /// Counts an access to the page that holds `pa`, which is a hole. Returns how many there have
    /// been, and the level of stage-1 table that the page was first consumed as, if it was one.
    pub fn touched(&self, pa: Pa) -> (u64, Option<Level>) {
        let poison = self.poison.lock();
        let page = poison.get(pa.pfn());
        page.map_or((0, None), |page| (page.touch(), page.walk_level()))
    }

    /// The first bad page at `pa` or behind it. The lock is not kept: whoever asks for one after the
    /// other lets errors be dealt with in between.
    pub fn next_bad(&self, pa: Pa) -> Option<BadPage> {
        let poison = self.poison.lock();
        // A range that reaches the end of the address space has no size.
        let size = (u64::MAX - pa.get()).max(1);
        let page = poison.first_in(PaRange::new(pa, size)?)?;
        Some(page.snapshot())
    }

    /// How many pages are bad, and how many the poison set can hold.
    pub fn poison_set_fill(&self) -> (usize, usize) {
        let poison = self.poison.lock();
        (poison.len(), poison.capacity())
    }

    /// Remembers that the page that holds `pa` was consumed as a stage-1 table of this level.
    pub fn remember_walk(&self, pa: Pa, level: Level) {
        if let Some(page) = self.poison.lock().get(pa.pfn()) {
            page.remember_walk_level(level);
        }
    }
}

/// What a filter kept from being contained.
#[derive(Default)]
struct Dropped {
    pages: u64,
    /// The first page, and the rule that dropped it.
    first: Option<(Pa, usize)>,
}

/// The memory that a section says is bad. A processor section may tell of several errors, not all of
/// which lose memory.
fn poisoned_ranges(section: &Section<'_>) -> impl Iterator<Item = PaRange> {
    let (memory, processor) = match &section.body {
        Body::Memory(memory) => {
            let range = memory
                .poisoned()
                .inspect_err(|error| log::error!("event=error what=cper why={error}"));
            (range.ok(), None)
        }
        Body::ArmProcessor(arm) => (None, Some(arm.errors())),
        _ => (None, None),
    };
    let pages = processor
        .into_iter()
        .flatten()
        .filter_map(|error| PaRange::new(error.poisoned_page()?, PAGE_SIZE));
    memory.into_iter().chain(pages)
}

/// ` vm=NAME` where a guest consumed the error.
struct VmName<'a, V>(&'a ErrorEvent, &'a V);

impl<V: AddressSpaces> fmt::Display for VmName<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.consumer {
            Some(Consumer::Vcpu { vm, .. }) => write!(f, " vm={}", self.1.name(vm)),
            _ => Ok(()),
        }
    }
}

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
//! `poison` is never held while a stage 2 is.

use super::contain::{AddressSpaces, Containment};
use super::cper::{Body, Section, Severity, StatusBlock};
use super::esr::Level;
use super::event::{Announcer, Consumer, ErrorEvent, Origin, Stage};
use super::ghes::{Ghes, PhysMemory};
use super::journal::{Journal, Line, Note};
use super::poison::PoisonSet;
use crate::addr::{PAGE_SIZE, Pa, PaRange, Pfn};
use crate::devmem::DevMem;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Mutex;

#[cfg(test)]
pub(crate) mod tests;

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
    /// What happened and was not said yet.
    pub journal: Journal,
    poison: Mutex<PoisonSet<'s>>,
    sources: Mutex<Sources<S>>,
    sequence: AtomicU64,
}

impl<'s, S: PhysMemory> Ras<'s, S> {
    /// A pipeline in which nothing has happened yet.
    pub fn new(devmem: DevMem<'s>, poison: PoisonSet<'s>, sources: Sources<S>) -> Self {
        Self {
            devmem,
            announcer: Announcer::new(),
            journal: Journal::new(),
            poison: Mutex::new(poison),
            sources: Mutex::new(sources),
            sequence: AtomicU64::new(1),
        }
    }

    /// Has something said: later if that is possible, or at once.
    pub fn say<V: AddressSpaces>(&self, note: &Note, spaces: &V) {
        say(&self.journal, note, None, spaces);
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
        if block.is_empty() {
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
        say(&self.journal, &Note::Detected(event), Some(section), spaces);
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
            journal: &self.journal,
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
        // Every page has to be looked at, whatever the one before it was.
        let claimed = (pages.start..limit).filter(|pfn| containment.page(Pfn::new(*pfn).pa()));
        claimed.count() > 0
    }

    /// Counts an access to the page that holds `pa`, which is a hole. Returns how many there have
    /// been, and the level of stage-1 table that the page was first consumed as, if it was one.
    pub fn touched(&self, pa: Pa) -> (u64, Option<Level>) {
        let poison = self.poison.lock();
        let page = poison.get(pa.pfn());
        page.map_or((0, None), |page| (page.touch(), page.walk_level()))
    }

    /// Remembers that the page that holds `pa` was consumed as a stage-1 table of this level.
    pub fn remember_walk(&self, pa: Pa, level: Level) {
        if let Some(page) = self.poison.lock().get(pa.pfn()) {
            page.remember_walk_level(level);
        }
    }
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

/// Has something said, with the section of a record that it is about: later if that is possible, or
/// at once, behind what waits.
pub(super) fn say<V: AddressSpaces>(
    journal: &Journal,
    note: &Note,
    section: Option<&Section<'_>>,
    spaces: &V,
) {
    if log::max_level() >= note.level() && !journal.note(note, section) {
        let line = Line {
            note,
            section,
            spaces,
        };
        log::log!(target: "ras", note.level(), "{line}");
    }
}

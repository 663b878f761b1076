//! The one path of a memory error: learned of, contained, told, counted.
//!
//! ```text
//!   SEA or SError from a guest --+
//!                                +--> collect: take every record firmware has left
//!   an interrupt, a timer      --+         |
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
//! Locks, in the order in which they are taken: `sources`, a VM's stage 2, `poison`, the console.
//! `poison` may be taken while a stage 2 is held, but not the other way round; `filter` and those of
//! [`Mender`] are leaves, and held for one decision, but for [`Mender`]'s own, which repairs take first.

use super::contain::{AddressSpaces, Contained, Containment};
use super::cper::{Gist, RangeError, SectionFlags, Severity, StatusBlock};
use super::esr::Level;
use super::event::{Announcer, Consumer, ErrorEvent, Origin, Stage};
use super::filter::Filter;
use super::ghes::PhysMemory;
use super::journal::{Journal, Line, Note};
use super::poison::{BadPage, PoisonSet};
use super::repair::Mender;
use crate::addr::{Ipa, PAGE_SIZE, Pa, PaRange, Pfn};
use crate::devmem::DevMem;
use crate::stage2::Rebuilt;
use crate::sync::Mutex;
use core::sync::atomic::{AtomicU64, Ordering};

pub use super::sources::Sources;

mod inject;
mod memory;
#[cfg(test)]
pub(crate) mod tests;

pub use inject::Injection;
pub use memory::{Consumption, LostPage, Touch, Toucher};

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

/// What came out of the records. All but `fatal` is about the occasion's own, those of sources that are
/// notified by an exception: what others tell was not consumed by whoever happens to read it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Collected {
    /// Records that were read.
    pub records: u32,
    /// The page of the first uncorrected error, whosever it is.
    pub page: Option<Pa>,
    /// The page of the first uncorrected error in memory that the consumer's VM maps.
    pub own: Option<Pa>,
    /// Where that VM has it, if it is a hole there now.
    pub hole: Option<Ipa>,
    /// That VM has it as before: it was repaired before it could be cut out.
    pub is_repaired: bool,
    /// An uncorrected error is in memory that no region holds: Cordon's, if anyone's.
    pub unclaimed: bool,
    /// An uncorrected error was in a table of Cordon's, which has another in its place now.
    pub rebuilt: bool,
    /// Firmware says that an error could not be contained by hardware.
    pub fatal: bool,
    /// The source of `fatal`, where it is none that is notified by an exception.
    pub fatal_source: Option<u16>,
}

/// Everything that knows about memory errors.
pub struct Ras<'s, S> {
    /// Who maps what. Read only, once VMs run.
    pub devmem: DevMem<'s>,
    /// Counts what happens, in this one place, and tells who wants to know.
    pub announcer: Announcer<SUBSCRIBERS>,
    /// Decides which errors are acted on.
    pub filter: Mutex<Filter>,
    /// What happened and was not said yet.
    pub journal: Journal,
    /// Repairs and moves pages.
    pub mender: Mender,
    pub(super) poison: Mutex<PoisonSet<'s>>,
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
            journal: Journal::new(),
            mender: Mender::new(),
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

    /// Has something said: later if that is possible, or at once.
    pub fn say<V: AddressSpaces>(&self, note: &Note, spaces: &V) {
        self.say_made(|| *note, spaces);
    }

    /// The same of the note that `make` makes, for those that a guest waits for: see [`Journal::note`].
    #[inline(always)]
    pub fn say_made<V: AddressSpaces>(&self, make: impl Fn() -> Note, spaces: &V) {
        say(&self.journal, make, &[], spaces);
    }

    /// The poison set itself, for tests.
    #[cfg(all(test, feature = "model"))]
    pub(crate) fn with_poison<R>(&self, action: impl FnOnce(&mut PoisonSet<'_>) -> R) -> R
    where
        S: PhysMemory,
    {
        action(&mut self.poison.lock())
    }

    /// The number of the next event.
    pub fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes every record that firmware has left and contains what it tells of, on the occasion of an
    /// exception.
    pub fn collect<V: AddressSpaces>(&self, occasion: &Occasion, spaces: &V) -> Collected {
        self.take_all(occasion, true, spaces)
    }

    /// Takes and contains what sources tell that are not notified by an exception: the consumer of
    /// what the others have is on its way, and looks for itself.
    pub fn collect_unconsumed<V: AddressSpaces>(&self, cpu: usize, spaces: &V) -> Collected {
        let nobody = Occasion {
            origin: Origin::Sea,
            cpu,
            consumer: None,
        };
        self.take_all(&nobody, false, spaces)
    }

    fn take_all<V: AddressSpaces>(
        &self,
        occasion: &Occasion,
        consumed: bool,
        spaces: &V,
    ) -> Collected {
        let mut sources = self.sources.lock();
        let mut collected = Collected::default();
        let mut lost = self.pass(&mut sources, occasion, consumed, spaces, &mut collected);
        // A source that was lost made Cordon a consumer, of which firmware has left a record. Each pass
        // but the last loses one.
        while lost {
            let own = Occasion {
                origin: Origin::Sea,
                consumer: Some(Consumer::Hypervisor),
                ..*occasion
            };
            let mut of_loss = Collected::default();
            lost = self.pass(&mut sources, &own, true, spaces, &mut of_loss);
            collected.fatal |= of_loss.fatal;
        }
        collected
    }

    /// Reads every source once; those notified by an exception only if `consumed`. Whether one was lost.
    fn pass<V: AddressSpaces>(
        &self,
        sources: &mut Sources<S>,
        occasion: &Occasion,
        consumed: bool,
        spaces: &V,
        collected: &mut Collected,
    ) -> bool {
        let Sources {
            memory,
            list,
            buffer,
        } = sources;
        let mut lost = false;
        for source in list.iter_mut().filter(|source| source.is_usable()) {
            let asynchronous = source.watch.is_asynchronous();
            if !asynchronous && !consumed {
                continue;
            }
            match source.ghes.take(memory, buffer) {
                Ok(None) => {}
                Ok(Some(record)) => {
                    if let Err(error) = record.released {
                        log::error!("event=error what=ghes why=not-released:{error}");
                    }
                    if asynchronous {
                        let occasion = Occasion {
                            origin: Origin::Ghes(source.ghes.source().id),
                            consumer: None,
                            ..*occasion
                        };
                        let mut apart = Collected::default();
                        self.record(&record.block, &occasion, spaces, &mut apart);
                        if apart.fatal {
                            collected.fatal = true;
                            collected.fatal_source = Some(source.ghes.source().id);
                        }
                    } else {
                        collected.records += 1;
                        self.record(&record.block, occasion, spaces, collected);
                    }
                }
                Err(error) => lost |= source.failed(&error),
            }
        }
        lost
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
        for gist in block.gists() {
            match gist {
                Ok(gist) => self.section(gist, occasion, spaces, collected),
                Err(error) => log::error!("event=error what=cper why={error}"),
            }
        }
    }

    fn section<V: AddressSpaces>(
        &self,
        gist: Gist<'_>,
        occasion: &Occasion,
        spaces: &V,
        collected: &mut Collected,
    ) {
        let (severity, bytes) = (gist.severity, gist.bytes());
        let exceeded = gist.flags.contains(SectionFlags::THRESHOLD_EXCEEDED);
        let mut losses = gist.losses.filter_map(believed);
        let first = losses.next();
        let sequence = self.next_sequence();
        // Made where it is wanted: one that lies in memory would be copied to the note, and back and forth.
        let event = |range| occasion.event(sequence, severity, range);
        self.announcer.announce(&event(first), Stage::Detected);
        if severity == Severity::Corrected {
            self.tell_corrected(&event(first), exceeded, spaces);
        }
        say(
            &self.journal,
            || Note::Detected(event(first)),
            bytes,
            spaces,
        );
        if !severity.is_uncorrected() {
            return;
        }
        let mut next = first;
        while let Some(range) = next {
            self.lose(&event(next), range, spaces, collected);
            next = losses.next();
        }
    }

    /// What is bad by the word of a record goes.
    fn lose<V: AddressSpaces>(
        &self,
        event: &ErrorEvent,
        range: PaRange,
        spaces: &V,
        collected: &mut Collected,
    ) {
        let page = range.start().page();
        if self.rebuild(event, range, spaces) {
            collected.rebuilt = true;
            return;
        }
        let contained = self.contain(event, range, spaces);
        collected.unclaimed |= contained.is_none();
        collected.page = collected.page.or(Some(page));
        if let Some(contained) = contained.filter(|it| it.is_of_consumer)
            && collected.own.is_none()
        {
            collected.own = Some(page);
            collected.hole = contained.hole;
            collected.is_repaired = contained.is_repaired;
        }
    }

    /// Contains every page of `range`, on behalf of `event`. `None` if none of it is anybody's; else what it has
    /// come to with the first.
    pub fn contain<V: AddressSpaces>(
        &self,
        event: &ErrorEvent,
        range: PaRange,
        spaces: &V,
    ) -> Option<Contained> {
        let containment = Containment {
            devmem: &self.devmem,
            poison: &self.poison,
            mender: &self.mender,
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
        let (mut first, mut claimed) = (None, false);
        let mut dropped = Dropped::default();
        // Every page has to be looked at, whatever the one before it was.
        for pfn in pages.start..limit {
            let page = Pfn::new(pfn).pa();
            let contained = if self.drops(event, page, &mut dropped) {
                self.let_be(event, page)
            } else {
                containment.page(page)
            };
            claimed |= contained.is_some();
            if pfn == pages.start {
                first = contained;
            }
        }
        self.say_dropped(event, &dropped);
        claimed.then(|| first.unwrap_or_default())
    }

    /// What containing a page comes to that a filter keeps as it is.
    #[cold]
    fn let_be(&self, event: &ErrorEvent, page: Pa) -> Option<Contained> {
        self.devmem.find(page)?;
        let mut users = self.users_of(page);
        Some(Contained {
            is_of_consumer: users.any(|user| event.consumer_vm() == Some(user.vm)),
            ..Contained::default()
        })
    }

    /// Nothing is lost to a corrected error: it is counted, by what kind it is, and told to the guests that have
    /// the memory if they are to know. With `exceeded`, firmware says that there were too many.
    fn tell_corrected<V: AddressSpaces>(&self, event: &ErrorEvent, exceeded: bool, spaces: &V) {
        let Some(range) = event.range else {
            self.announcer.announce(event, Stage::Corrected);
            return;
        };
        if let Some(threshold) = self.corrected(event, range, exceeded) {
            for page in self.users_of(range.start().page()) {
                spaces.corrected(page.vm, page.ipa, threshold);
            }
        }
    }

    /// Counts a corrected error, unless a filter has it. Whether its guests are to be told, and if so whether
    /// there were too many.
    fn corrected(&self, event: &ErrorEvent, range: PaRange, exceeded: bool) -> Option<bool> {
        self.announcer.announce(event, Stage::Corrected);
        let page = range.start();
        let mut dropped = Dropped::default();
        let counts = !self.drops(event, page.page(), &mut dropped);
        self.say_dropped(event, &dropped);
        counts.then(|| self.note_corrected(page, exceeded, event.sequence))?
    }

    /// If `range` is a table of some VM's map, builds another in its place.
    #[inline]
    fn rebuild<V: AddressSpaces>(&self, event: &ErrorEvent, range: PaRange, spaces: &V) -> bool {
        // What is in a region is no table.
        self.devmem.find(range.start()).is_none() && self.rebuild_table(event, range, spaces)
    }

    #[cold]
    fn rebuild_table<V: AddressSpaces>(
        &self,
        event: &ErrorEvent,
        range: PaRange,
        spaces: &V,
    ) -> bool {
        let (table, seq) = (range.start().page(), event.sequence);
        if range.pfns().count() != 1 {
            return false;
        }
        let Some((vm, rebuilt)) = spaces.rebuild(table) else {
            return false;
        };
        // Nobody is to be given this frame, whatever else becomes of it.
        let _ = self.poison.lock().insert(table.pfn(), seq);
        self.announcer
            .announce(event, Stage::Contained { pages: 1 });
        let vm = spaces.name(vm);
        match rebuilt {
            Rebuilt::Unused => {
                log::info!(target: "ras", "event=rebuilt seq={seq} pa={table} vm={vm} level=none");
            }
            Rebuilt::Table {
                level,
                ipa,
                reserve_left,
            } => {
                let level = level.number();
                log::info!(target: "ras", "event=rebuilt seq={seq} pa={table} vm={vm} level={level} ipa={ipa} reserve={reserve_left}");
            }
        }
        true
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
    #[inline]
    fn say_dropped(&self, event: &ErrorEvent, dropped: &Dropped) {
        if let Some(first) = dropped.first {
            self.say_some_dropped(event, first, dropped.pages);
        }
    }

    #[cold]
    fn say_some_dropped(&self, event: &ErrorEvent, (page, rule): (Pa, usize), pages: u64) {
        self.announcer.announce(event, Stage::Filtered { pages });
        let (seq, via) = (event.sequence, event.origin);
        log::info!(target: "ras", "event=filtered seq={seq} via={via} pa={page} pages={pages} rule={rule}");
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

/// A range that is bad, if the record names one that is to be believed.
fn believed(range: Result<PaRange, RangeError>) -> Option<PaRange> {
    range
        .inspect_err(|error| log::error!("event=error what=cper why={error}"))
        .ok()
}

/// Has something said, with the section of a record that it is about, if it is: later if that is possible, or
/// at once, behind what waits.
#[inline(always)]
pub(super) fn say<V: AddressSpaces>(
    journal: &Journal,
    make: impl Fn() -> Note,
    section: &[u8],
    spaces: &V,
) {
    if log::max_level() < make().level() {
        return;
    }
    let at = spaces.counter();
    if !journal.note(&make, at, section) {
        say_at_once(&make(), at, section, spaces);
    }
}

#[cold]
fn say_at_once<V: AddressSpaces>(note: &Note, at: u64, section: &[u8], spaces: &V) {
    for note in note.before().iter().chain([note]) {
        let line = Line {
            note,
            at,
            section,
            spaces,
        };
        log::log!(target: "ras", note.level(), "{line}");
    }
}

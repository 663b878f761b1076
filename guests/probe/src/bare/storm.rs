//! A storm: what all vCPUs do in the background while their memory goes bad under them.
//!
//! Each vCPU goes over all of device memory in an order of its own, one word a page. A page that gives an
//! abort enters the guest's book, and is left alone. When a vCPU has met a few, it asks the hypervisor to
//! repair a range by chance around the last one, from one page to a GiB, until nothing there is bad: so
//! two vCPUs repair and consume in the same place at once. One page in 64 is written to at its first visit and
//! checked ever after; the others must stay as they were.
//!
//! An audit goes over every page once while nothing else is done, and holds the book that comes of it
//! against what the hypervisor says is bad.

use super::guest::{self, Guest};
use super::report::{self, report};
use super::smp::{self, Job};
use super::target::Target;
use super::{access, cpu, ram};
use cordon_probe::PAGE_SIZE;
use cordon_probe::attack::random::Random;
use cordon_probe::book::Book;
use cordon_probe::layout::Alias;
use cordon_probe::pattern;
use cordon_probe::share::{Strided, share};
use cordon_probe::tally::Tally;
use core::ops::Range;
use core::sync::atomic::{
    AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use spin::Once;

/// Pages that are touched between two looks at anything else.
const STEP: usize = 64;
/// Pages that a vCPU loses before it asks for repair.
const PATIENCE: u64 = 8;
/// Sizes of ranges that are asked for, as powers of two of pages. The largest is the most that a call takes.
const EXTENTS: [u32; 5] = [0, 4, 9, 15, 18];
/// Pages that the guest has back between two lines that say so.
const NEWS: u64 = 100;

/// Most pages that one call is about.
const MOST: u64 = 1 << 18;

const QUERY: u64 = 0xc600_0002;
const REPAIR: u64 = 0xc600_0004;
/// Nothing is bad there (docs/protocols.md).
const NOT_BAD: u64 = (-6_i64).cast_unsigned();

static BOOK: Once<Option<Book<'static>>> = Once::new();
static ACTIVE: AtomicBool = AtomicBool::new(false);
static NUMBER: AtomicU64 = AtomicU64::new(0);
static SEED: AtomicU64 = AtomicU64::new(0);
static COUNTS: Counts = Counts {
    touched: AtomicU64::new(0),
    aborts: AtomicU64::new(0),
    wrong: AtomicU64::new(0),
    repaired: AtomicU64::new(0),
    left: AtomicU64::new(0),
    refused: AtomicU64::new(0),
};

/// Since boot.
struct Counts {
    touched: AtomicU64,
    aborts: AtomicU64,
    wrong: AtomicU64,
    repaired: AtomicU64,
    left: AtomicU64,
    refused: AtomicU64,
}

fn book() -> Option<&'static Book<'static>> {
    let new = || {
        let pages = guest::get().pages.device_len();
        ram::take_words(Book::words_for(pages)).map(Book::new)
    };
    BOOK.call_once(new).as_ref()
}

/// One vCPU's part.
pub(super) struct Stormer {
    number: u64,
    random: Random,
    walk: Strided,
    lost: u64,
    told: u64,
}

impl Stormer {
    pub(super) fn new() -> Self {
        Self {
            number: 0,
            random: Random::new(0),
            walk: Strided::new(0..0, 0),
            lost: 0,
            told: 0,
        }
    }

    /// Touches a few pages. False if there is nothing to do.
    pub(super) fn step(&mut self) -> bool {
        if !ACTIVE.load(Acquire) {
            return false;
        }
        let Some(book) = book() else {
            return false;
        };
        let guest = guest::get();
        self.take_up(guest);
        for _ in 0..STEP {
            let Some(page) = self.walk.next() else {
                return false;
            };
            if book.has_lost(page) {
                continue;
            }
            COUNTS.touched.fetch_add(1, Relaxed);
            if touch(guest, book, page) == Touched::Lost {
                self.lost += 1;
                if self.lost.is_multiple_of(PATIENCE) {
                    self.ask(guest, book, page);
                }
            }
        }
        true
    }

    fn take_up(&mut self, guest: &Guest) {
        let number = NUMBER.load(Acquire);
        if number != self.number {
            let vcpu = cpu::id() as u64;
            self.number = number;
            self.random = Random::new(SEED.load(Relaxed) ^ vcpu << 32 ^ number);
            self.walk = Strided::new(0..guest.pages.device_len(), self.random.number() >> 1);
        }
    }

    /// Asks for what is bad around `page`, more or less of it.
    fn ask(&mut self, guest: &Guest, book: &Book<'_>, page: u64) {
        let extent = self.random.choose(&EXTENTS).unwrap_or(0);
        if let Some(pages) = guest.pages.around(page, 1 << extent) {
            repair(guest, book, &pages);
        }
        let repaired = COUNTS.repaired.load(Relaxed);
        if cpu::id() == 0 && repaired >= self.told + NEWS {
            self.told = repaired;
            let touched = COUNTS.touched.load(Relaxed);
            report!("event=storming touched={touched} repaired={repaired}");
        }
    }
}

/// What came of a touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Touched {
    /// The page holds what it should.
    Right,
    /// It holds something else.
    Wrong,
    /// It gave an abort, and is in the book now.
    Lost,
}

fn touch(guest: &Guest, book: &Book<'_>, page: u64) -> Touched {
    let Some(target) = Target::of_page(page) else {
        return Touched::Right;
    };
    let at = target.va(Alias::El1Data);
    let value = pattern::value(target.ipa());
    let outcome = if Book::is_chosen(page) && !book.has_written(page) {
        access::store(at, value).map(|()| {
            book.wrote(page);
            true
        })
    } else {
        let expected = if book.has_written(page) { value } else { 0 };
        access::load(at).map(|found| found == expected)
    };
    match outcome {
        Ok(true) => Touched::Right,
        Ok(false) => {
            COUNTS.wrong.fetch_add(1, Relaxed);
            report::wrong(guest, page, 1);
            Touched::Wrong
        }
        Err(abort) => {
            COUNTS.aborts.fetch_add(1, Relaxed);
            book.lose(page);
            report::check(guest, page, abort);
            Touched::Lost
        }
    }
}

/// Has all that is bad in `pages` repaired.
fn repair(guest: &Guest, book: &Book<'_>, pages: &Range<u64>) {
    let Some(ipa) = guest.pages.ipa(pages.start) else {
        return;
    };
    let count = pages.end - pages.start;
    loop {
        match access::hvc([REPAIR, ipa, count, 0]) {
            Ok([0, repaired, left, _]) => {
                COUNTS.repaired.fetch_add(repaired, Relaxed);
                COUNTS.left.fetch_add(left, Relaxed);
                if repaired == 0 || left > 0 {
                    return;
                }
            }
            Ok([NOT_BAD, ..]) => return book.regain(pages),
            _ => {
                COUNTS.refused.fetch_add(1, Relaxed);
                return;
            }
        }
    }
}

/// `storm SEED`; how many vCPUs take part.
pub(super) fn start(seed: u64) -> Option<usize> {
    stop();
    book()?;
    SEED.store(seed, Relaxed);
    NUMBER.fetch_add(1, Release);
    ACTIVE.store(true, Release);
    cpu::wake_others();
    Some(guest::get().vcpus())
}

/// The storm ends, if there is one.
pub(super) fn stop() {
    ACTIVE.store(false, Release);
    smp::run_everywhere(Job::Rendezvous);
}

/// `calm`: the storm ends; what it has counted since boot.
pub(super) fn calm() {
    stop();
    let count = |counter: &AtomicU64| counter.load(Relaxed);
    report!(
        "event=calm touched={} aborts={} wrong={} repaired={} left={} refused={}",
        count(&COUNTS.touched),
        count(&COUNTS.aborts),
        count(&COUNTS.wrong),
        count(&COUNTS.repaired),
        count(&COUNTS.left),
        count(&COUNTS.refused)
    );
}

/// `audit`: what is lost by the guest's own book, made anew, and by the hypervisor's.
pub(super) fn audit() {
    stop();
    let Some(book) = book() else {
        return report!("event=error what=out-of-memory");
    };
    let sum = smp::run_everywhere(Job::Audit);
    let guest = guest::get();
    let known: u64 = guest
        .pages
        .device_regions()
        .iter()
        .map(|region| bad_in(region.ipa, region.pages))
        .sum();
    let lost = book.lost().filter_map(|page| guest.pages.ipa(page));
    let denied = lost.filter(|ipa| bad_in(*ipa, 1) != 1).count();
    report!(
        "event=audit pages={} lost={} known={known} denied={denied} wrong={}",
        sum.pages,
        sum.lost,
        sum.wrong
    );
}

/// This vCPU's part of it.
pub(super) fn audit_share() -> Tally {
    let (guest, mut tally) = (guest::get(), Tally::default());
    let Some(book) = book() else {
        return tally;
    };
    for page in share(guest.pages.device_len(), guest.vcpus(), cpu::id()) {
        let touched = touch(guest, book, page);
        tally.pages += 1;
        tally.lost += u64::from(touched == Touched::Lost);
        tally.wrong += u64::from(touched == Touched::Wrong);
        if touched != Touched::Lost {
            book.regain_one(page);
        }
    }
    tally
}

/// How many pages from `ipa` on are bad, as the hypervisor has it.
fn bad_in(ipa: u64, pages: u64) -> u64 {
    let parts = (0..pages).step_by(MOST as usize);
    let bad = parts.map(|part| {
        let answer = access::hvc([QUERY, ipa + part * PAGE_SIZE, MOST.min(pages - part), 0]);
        match answer {
            Ok([0, bad, ..]) => bad,
            _ => 0,
        }
    });
    bad.sum()
}

/// `mend`: all that is bad is asked back.
pub(super) fn mend() {
    stop();
    let Some(book) = book() else {
        return report!("event=error what=out-of-memory");
    };
    let guest = guest::get();
    let mut first = 0;
    for region in guest.pages.device_regions() {
        for part in (0..region.pages).step_by(MOST as usize) {
            let end = region.pages.min(part + MOST);
            repair(guest, book, &(first + part..first + end));
        }
        first += region.pages;
    }
    let count = |counter: &AtomicU64| counter.load(Relaxed);
    report!(
        "event=mend repaired={} left={} refused={}",
        count(&COUNTS.repaired),
        count(&COUNTS.left),
        count(&COUNTS.refused)
    );
}

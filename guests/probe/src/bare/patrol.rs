//! The patrol: what vCPUs do in the background, for ever, when they are told to.
//!
//! Each vCPU checks pages of its own share of device memory, in an order of its own that jumps from
//! block to block. It is done in steps of one page; between steps a vCPU looks for something more
//! important, so a job (`fill`, `sweep`, `hammer`) just makes the patrol pause. A page whose abort
//! this vCPU has reported is not touched again until a `fill` or `sweep` got through it (see
//! `Ledger`), so that a patrol reports what it runs into and does not loop on it.

use super::guest::Guest;
use super::smp::{self, Job};
use super::target::Target;
use super::{access, cpu, guest, report};
use cordon_probe::layout::Alias;
use cordon_probe::pattern::LINES_PER_PAGE;
use cordon_probe::share::{Strided, share};
use cordon_probe::tally::Tally;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

static ACTIVE: AtomicBool = AtomicBool::new(false);
/// Counts patrols, so that each begins anew on every vCPU.
static NUMBER: AtomicU64 = AtomicU64::new(0);
static BEGUN: AtomicUsize = AtomicUsize::new(0);
static LINES: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

/// One vCPU's part in the patrol.
pub(super) struct Patroller {
    number: u64,
    walk: Strided,
}

impl Patroller {
    pub(super) fn new() -> Self {
        Self {
            number: 0,
            walk: Strided::new(0..0, 0),
        }
    }

    /// Checks one page. False if there is nothing to do, so that the vCPU may wait.
    pub(super) fn step(&mut self) -> bool {
        if !ACTIVE.load(Ordering::Acquire) {
            return false;
        }
        let guest = guest::get();
        let is_new = self.take_up(guest);
        let page = self.walk.next();
        if let Some(page) = page
            && !guest.ledger.is_known(cpu::id(), page)
        {
            check(guest, page);
        }
        if is_new {
            BEGUN.fetch_add(1, Ordering::Release);
            cpu::wake_others();
        }
        page.is_some()
    }

    /// Takes up its share of a patrol that is new; true if it is.
    fn take_up(&mut self, guest: &Guest) -> bool {
        let number = NUMBER.load(Ordering::Acquire);
        if number == self.number {
            return false;
        }
        let vcpu = cpu::id();
        self.number = number;
        self.walk = Strided::new(
            share(guest.pages.device_len(), guest.vcpus(), vcpu),
            vcpu as u64,
        );
        true
    }
}

fn check(guest: &Guest, page: u64) {
    let Some(target) = Target::of_page(page) else {
        return;
    };
    let check = access::check_page(target.va(Alias::El1Data), target.ipa());
    if let Some(abort) = check.abort {
        report::unasked(guest, page, abort);
    } else {
        LINES.fetch_add(LINES_PER_PAGE, Ordering::Relaxed);
    }
    if check.wrong > 0 {
        WRONG.fetch_add(check.wrong, Ordering::Relaxed);
        report::wrong(guest, page, check.wrong);
    }
}

/// Begins a patrol; returns how many vCPUs take part, once each has been through
/// its first page.
pub(super) fn start(own: &mut Patroller) -> usize {
    stop();
    let guest = guest::get();
    BEGUN.store(0, Ordering::Relaxed);
    LINES.store(0, Ordering::Relaxed);
    WRONG.store(0, Ordering::Relaxed);
    NUMBER.fetch_add(1, Ordering::Release);
    ACTIVE.store(true, Ordering::Release);
    cpu::wake_others();
    own.step();
    while BEGUN.load(Ordering::Acquire) < guest.vcpus() {
        cpu::wait();
    }
    guest.vcpus()
}

/// Ends the patrol; returns how many lines were checked and how many of them were wrong.
pub(super) fn stop() -> Tally {
    ACTIVE.store(false, Ordering::Release);
    smp::run_everywhere(Job::Rendezvous);
    Tally {
        accesses: LINES.swap(0, Ordering::Relaxed),
        wrong: WRONG.swap(0, Ordering::Relaxed),
        ..Tally::default()
    }
}

//! `fill`, `sweep`, `lost`, `fill-code`, `ram` and `bad`: device memory as a whole.

use super::refuse;
use super::touch::result;
use crate::bare::report::{self, report};
use crate::bare::smp::{self, Job};
use crate::bare::target::Target;
use crate::bare::{access, cpu, guest};
use cordon_probe::PAGE_SIZE;
use cordon_probe::layout::Alias;
use cordon_probe::share::share;
use cordon_probe::tally::Tally;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

/// Whether a `fill` has been done since boot.
static FILLED: AtomicBool = AtomicBool::new(false);

/// Whether device memory holds the pattern.
pub(super) fn is_filled() -> bool {
    FILLED.load(Ordering::Relaxed)
}

/// The pages of device memory that are this vCPU's to fill and sweep.
fn own_share() -> Range<u64> {
    let guest = guest::get();
    share(guest.pages.device_len(), guest.vcpus(), cpu::id())
}

/// `fill`: `pages` were filled; those with an abort are `lost`.
pub(super) fn fill() {
    let begin = cpu::microseconds();
    let sum = smp::run_everywhere(Job::Fill);
    let us = cpu::microseconds() - begin;
    FILLED.store(true, Ordering::Relaxed);
    report!("event=fill pages={} lost={} us={us}", sum.pages, sum.lost);
}

/// This vCPU's part of `fill`.
pub(in crate::bare) fn fill_share() -> Tally {
    let guest = guest::get();
    let mut tally = Tally::default();
    for page in own_share() {
        let Some(target) = Target::of_page(page) else {
            break;
        };
        match access::fill_page(target.va(Alias::El1Data), target.ipa()) {
            Ok(()) => {
                tally.pages += 1;
                target.set_code(false);
                guest.ledger.forget(page);
            }
            Err(abort) => {
                tally.lost += 1;
                report::unasked(guest, page, abort);
            }
        }
    }
    tally
}

/// `sweep`: every line of every page once.
pub(super) fn sweep() {
    let begin = cpu::microseconds();
    let sum = smp::run_everywhere(Job::Sweep);
    let us = cpu::microseconds() - begin;
    report!(
        "event=sweep pages={} lost={} wrong={} us={us}",
        sum.pages,
        sum.lost,
        sum.wrong
    );
}

/// This vCPU's part of `sweep`. A page is left at its first abort.
pub(in crate::bare) fn sweep_share() -> Tally {
    let guest = guest::get();
    let mut tally = Tally::default();
    for page in own_share() {
        let Some(target) = Target::of_page(page) else {
            break;
        };
        let check = access::check_page(target.va(Alias::El1Data), target.ipa());
        tally.pages += 1;
        tally.wrong += check.wrong;
        report::wrong(guest, page, check.wrong);
        match check.abort {
            None => guest.ledger.forget(page),
            Some(abort) => {
                tally.lost += 1;
                guest.ledger.lose(page);
                report::check(guest, page, abort);
            }
        }
    }
    tally
}

/// `lost`: every page that aborted since boot.
pub(super) fn lost() {
    let guest = guest::get();
    let mut pages = 0_u64;
    for ipa in guest.ledger.lost().filter_map(|page| guest.pages.ipa(page)) {
        report!("event=lost ipa={ipa:#x}");
        pages += 1;
    }
    report!("event=lost-end pages={pages}");
}

/// `fill-code A`: the page becomes 1024 times `ret`.
pub(super) fn fill_code(ipa: u64) {
    let Some(target) = Target::at(ipa, PAGE_SIZE) else {
        return refuse("bad-address");
    };
    let ipa = target.ipa();
    match access::fill_code(target.va(Alias::El1Data)) {
        Ok(()) => {
            target.set_code(true);
            report!("event=fill-code ipa={ipa:#x}");
        }
        Err(abort) => {
            if let Some(page) = target.page() {
                guest::get().ledger.lose(page);
            }
            let result = result(&abort);
            report!(
                "event=fill-code ipa={ipa:#x} result={result} esr={:#x}",
                abort.esr
            );
        }
    }
}

/// `ram`: where the buffer is.
pub(super) fn ram() {
    let buffer = guest::get().buffer;
    report!("event=ram ipa={:#x} pages={}", buffer.ipa, buffer.pages);
}

/// `bad`: what the device tree called bad when the guest started.
pub(super) fn bad() {
    let guest = guest::get();
    let mut ranges = 0_u64;
    for bad in guest.bad() {
        report!("event=bad ipa={:#x} pages={}", bad.ipa, bad.pages);
        ranges += 1;
    }
    report!("event=bad-end ranges={ranges}");
}

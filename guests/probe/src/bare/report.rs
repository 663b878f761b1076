//! Lines that are printed unasked, and the last one.

use super::aborts::{self, Abort};
use super::guest::Guest;
use super::{console, cpu, psci};
use cordon_probe::{PAGE_SIZE, layout};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Prints one `guest: ` line.
macro_rules! report {
    ($($line:tt)*) => {
        $crate::bare::console::print(format_args!($($line)*))
    };
}
pub(super) use report;

/// How many pages with wrong values are named since boot; all are counted.
const WRONG_NAMED: u64 = 16;

static WRONG: AtomicU64 = AtomicU64::new(0);

/// This vCPU took an abort on page `page` that nobody asked for: says so the first time.
pub(super) fn unasked(guest: &Guest, page: u64, abort: Abort) {
    let vcpu = cpu::id();
    if guest.ledger.discover(vcpu, page) {
        report!(
            "event=sea vcpu={vcpu} esr={:#x} far={:#x} el={} count={}",
            abort.esr,
            abort.far,
            abort.level(),
            aborts::count(vcpu)
        );
    }
    check(guest, page, abort);
}

/// Says if an abort on page `page` is not what losing that page looks like: another kind of fault,
/// or the address of another page.
pub(super) fn check(guest: &Guest, page: u64, abort: Abort) {
    let Some(ipa) = guest.pages.ipa(page) else {
        return;
    };
    let syndrome = abort.syndrome();
    let blamed = syndrome.fault_address(abort.far).and_then(layout::ipa);
    let what = if !syndrome.is_external_abort() {
        "not-external"
    } else if blamed.is_some_and(|blamed| blamed / PAGE_SIZE != ipa / PAGE_SIZE) {
        "wrong-far"
    } else {
        return;
    };
    report!(
        "event=error what={what} ipa={ipa:#x} esr={:#x} far={:#x}",
        abort.esr,
        abort.far
    );
}

/// `lines` lines of page `page` held another value. The first few pages are named.
pub(super) fn wrong(guest: &Guest, page: u64, lines: u64) {
    if lines == 0 || WRONG.fetch_add(1, Relaxed) >= WRONG_NAMED {
        return;
    }
    if let Some(ipa) = guest.pages.ipa(page) {
        report!("event=wrong ipa={ipa:#x} lines={lines}");
    }
}

/// Prints the last line, and powers off.
pub(super) fn fatal(what: fmt::Arguments<'_>) -> ! {
    static DYING: AtomicBool = AtomicBool::new(false);
    if !DYING.swap(true, Relaxed) {
        console::print_by_force(format_args!("event=panic vcpu={} {what}", cpu::id()));
    }
    psci::off();
    cpu::halt()
}

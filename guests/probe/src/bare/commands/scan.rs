//! `scan`: many single loads, far apart. For memory that is too large to be swept.

use super::refuse;
use crate::bare::report::report;
use crate::bare::target::Target;
use crate::bare::{access, cpu, guest};
use cordon_probe::layout::Alias;

/// Loads `loads` words, each `step` bytes behind the one before, the first at `from`. Pages that abort are
/// remembered as lost.
pub(super) fn scan(from: u64, loads: u64, step: u64) {
    let begin = cpu::microseconds();
    let (mut done, mut lost, mut faults) = (0_u64, 0_u64, 0_u64);
    let mut next = Some(from);
    while done < loads
        && let Some(ipa) = next
    {
        let Some(target) = Target::at(ipa, 8) else {
            return refuse("bad-address");
        };
        if let Err(abort) = access::load(target.va(Alias::El1Data)) {
            if !abort.syndrome().is_external_abort() {
                faults += 1;
            } else {
                lost += 1;
                if let Some(page) = target.page() {
                    guest::get().ledger.lose(page);
                }
            }
        }
        done += 1;
        next = ipa.checked_add(step);
    }
    let us = cpu::microseconds() - begin;
    report!("event=scan ipa={from:#x} loads={done} lost={lost} faults={faults} us={us}");
}

//! Memory errors as the operator deals with them: made, made good, and written down.

use super::{Done, Refused};
use crate::addr::{Ipa, PAGE_SIZE, Pa};
use crate::ras::pipeline::Injection;
use crate::ras::repair::How;
use crate::vm::hypercall::{MAX_RANGE, Pages};
use crate::vm::hypervisor::{Hypervisor, Platform, Vm};
use crate::vm::injection::Target;

/// Most ranges that one `poison export` shows.
pub const EXPORTED: usize = 64;

impl<P: Platform> Hypervisor<P> {
    pub(super) fn inject_for_operator(&self, target: Target, pages: u64, kind: Injection) -> Done {
        let cpu = self.platform.cpu();
        let range = self
            .inject(cpu, target, pages, kind)
            .map_err(Refused::NotInjected)?;
        self.offline_due(cpu);
        let (pa, pages) = (range.start(), range.size() / PAGE_SIZE);
        self.tell_ras(format_args!(
            "event=injected pa={pa} pages={pages} kind={kind}"
        ));
        Ok(())
    }

    /// A part of what is bad in a long range, as a guest's call does: it is the operator's to ask again.
    pub(super) fn repair_for_operator(&self, vm: &Vm<P>, ipa: Ipa, pages: u64, how: How) -> Done {
        let wanted = Pages::new(ipa.page().get(), pages, MAX_RANGE).ok_or(Refused::BadRange)?;
        let done = self
            .repair_range(vm.vmid, wanted, how, self.platform.cpu())
            .map_err(Refused::NotRepaired)?;
        let (name, ipa) = (&vm.name, wanted.range().start());
        self.tell_ras(format_args!(
            "event=range-repaired vm={name} ipa={ipa} how={how} pages={} left={}",
            done.pages, done.left
        ));
        Ok(())
    }

    /// What is bad, by ranges, as `poison.txt` of a bundle wants them. A range that grows while it is
    /// looked at is shown as it was. The last line says where to go on.
    pub(super) fn export_poison(&self, from: Pa) {
        let (mut next, mut ranges, mut pages) = (self.ras.next_bad(from.page()), 0, 0);
        while ranges < EXPORTED
            && let Some(first) = next
        {
            let mut run = 1;
            let mut end = first.pa.checked_add(PAGE_SIZE);
            next = end.and_then(|pa| self.ras.next_bad(pa));
            while let Some(bad) = next.filter(|bad| Some(bad.pa) == end) {
                run += 1;
                end = bad.pa.checked_add(PAGE_SIZE);
                next = end.and_then(|pa| self.ras.next_bad(pa));
            }
            self.tell_ras(format_args!("event=bad-range pa={} pages={run}", first.pa));
            ranges += 1;
            pages += run;
        }
        match next {
            Some(bad) => self.tell_ras(format_args!(
                "event=exported ranges={ranges} pages={pages} next={}",
                bad.pa
            )),
            None => self.tell_ras(format_args!(
                "event=exported ranges={ranges} pages={pages} next=none"
            )),
        }
    }
}

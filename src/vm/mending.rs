//! Giving VMs back what they have lost: what repairs, moves and policies do to their maps, and who may
//! ask for it.

use super::cpu::GuestCpu;
use super::exit::{Exit, Next};
use super::hypercall::Pages;
use super::hypervisor::{Hypervisor, Platform, Space, StopReason, Vm};
use crate::addr::{Ipa, PAGE_SIZE, Pa, PaRange, Vmid};
use crate::devmem::Policy;
use crate::ras::contain::{AddressSpaces, BlockSize};
use crate::ras::esr::{Abort, Access as Attempted};
use crate::ras::event::Origin;
use crate::ras::pipeline::Occasion;
use crate::ras::repair::{How, Mendable, RepairError};
use crate::stage2::{
    Access, Attrs, Damage, Followed, MendOutcome, Piece, ProtectError, RebuildError, Rebuilt,
    ReplaceError,
};
use core::ops::DerefMut;

/// Most pages that one call tries to repair: it keeps a CPU from its guest.
pub const MAX_REPAIRED: u64 = 64;

/// What became of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangeRepaired {
    /// Pages that were repaired.
    pub pages: u64,
    /// Bad pages for which that was tried in vain.
    pub left: u64,
}

impl<P: Platform> Mendable for Hypervisor<P> {
    fn mend(&self, vm: Vmid, ipa: Ipa) -> Option<Result<MendOutcome, Damage>> {
        let vm = self.vm(vm).filter(|vm| vm.has_future())?;
        let bad = |range| self.ras.first_lost_to(vm.vmid, range);
        Some(vm.stage2.lock().mend(ipa, &bad))
    }

    fn replace(
        &self,
        vm: Vmid,
        ipa: Ipa,
        frame: Pa,
        attrs: Attrs,
    ) -> Option<Result<u64, ReplaceError>> {
        let vm = self.vm(vm).filter(|vm| vm.has_future())?;
        let bad = |range| self.ras.first_lost_to(vm.vmid, range);
        let attrs = Self::narrowed(vm, ipa, attrs);
        Some(vm.stage2.lock().replace(ipa, frame, Some(attrs), &bad))
    }

    fn smallest_page(&self, vm: Vmid) -> u64 {
        self.vm(vm).map_or(PAGE_SIZE, |vm| {
            vm.stage2.lock().config().granule().page_size()
        })
    }

    fn protect(&self, vm: Vmid, ipa: Ipa, attrs: Attrs) -> Option<Result<(), ProtectError>> {
        let vm = self.vm(vm).filter(|vm| vm.has_future())?;
        let bad = |range| self.ras.first_lost_to(vm.vmid, range);
        let attrs = Self::narrowed(vm, ipa, attrs);
        Some(vm.stage2.lock().protect(ipa, PAGE_SIZE, attrs, &bad))
    }
}

impl<P: Platform> Hypervisor<P> {
    /// Repairs what is bad in `pages` of `vm`, on its behalf and on physical CPU number `cpu`, but not
    /// more than [`MAX_REPAIRED`] of it. What others share stays lost to them (`ras::repair::shared`).
    ///
    /// # Errors
    /// The first [`RepairError`], where no page was repaired; [`RepairError::NotPoisoned`] where none is
    /// bad any more.
    pub fn repair_range(
        &self,
        vm: Vmid,
        pages: Pages,
        how: How,
        cpu: usize,
    ) -> Result<RangeRepaired, RepairError> {
        let (first, last) = (pages.range().start(), pages.range().last());
        let mut done = RangeRepaired::default();
        let mut why = RepairError::NotPoisoned;
        for lost in self.ras.lost_pages_in(vm, first, last) {
            if done.pages + done.left == MAX_REPAIRED {
                break;
            }
            let page = (lost.page.pa, how);
            match (self.ras).repair_for(Some(vm), page, cpu, self, &self.platform) {
                Ok(_) => done.pages += 1,
                // Somebody else has been quicker.
                Err(RepairError::NotPoisoned) => {}
                Err(error) => {
                    if done.left == 0 {
                        why = error;
                    }
                    done.left += 1;
                }
            }
        }
        if done.pages == 0 { Err(why) } else { Ok(done) }
    }

    /// Moves what corrected errors have made due, on physical CPU number `cpu`. Whoever collects records
    /// or injects errors calls this afterwards, with no lock held.
    #[inline]
    pub fn offline_due(&self, cpu: usize) {
        self.ras.offline_due(cpu, self, &self.platform);
    }

    /// Changes what is done when a page goes bad of the memory that `vm` has at `ipa`, from now on, and
    /// does it to those that are bad already and were kept: to [`MAX_REPAIRED`] of them at once, and to
    /// each of the others when it is next consumed. What is cut out stays so. Whether there is memory.
    pub fn set_policy(&self, vm: Vmid, ipa: Ipa, policy: Policy, cpu: usize) -> bool {
        let Some((mapping, before)) = self.ras.devmem.set_policy(vm, ipa, policy) else {
            return false;
        };
        let name = self.name(vm);
        log::info!(target: "ras", "event=policy vm={name} ipa={} policy={policy}", mapping.ipa);
        if policy == Policy::Keep || before != Policy::Keep {
            return true;
        }
        let occasion = Occasion {
            origin: Origin::Repair,
            cpu,
            consumer: None,
        };
        let kept = self.ras.bad_in(mapping.range);
        for page in kept.take(MAX_REPAIRED as usize) {
            if let Some(range) = PaRange::new(page.pa, PAGE_SIZE) {
                let severity = crate::ras::cper::Severity::Recoverable;
                let event = occasion.event(page.sequence, severity, Some(range));
                self.ras.contain(&event, range, self);
            }
        }
        true
    }

    /// See [`AddressSpaces::rebuild`].
    pub(super) fn rebuild_table(&self, vm: &Vm<P>, table: Pa) -> Option<(Vmid, Rebuilt)> {
        let bad = |range| self.ras.first_lost_to(vm.vmid, range);
        let territory = |ipa| self.piece_from(vm, ipa);
        let rebuilt = vm.stage2.lock().rebuild(table, &territory, &bad);
        match rebuilt {
            Ok(rebuilt) => {
                self.restore_moved(vm);
                Some((vm.vmid, rebuilt))
            }
            Err(RebuildError::NotMine | RebuildError::Root) => None,
            Err(error) => {
                log::error!("event=error what=stage2 vm={} why={error}", vm.name);
                self.stop(vm, StopReason::Killed);
                None
            }
        }
    }

    /// What the VM was given at `ipa` or behind it, as far as that has the same attributes.
    fn piece_from(&self, vm: &Vm<P>, ipa: Ipa) -> Option<Piece> {
        let mapping = self.ras.devmem.mappings_from(vm.vmid, ipa).next()?;
        let start = mapping.ipa.max(ipa.page());
        let protections = vm.protections.lock();
        let edge = protections.edge_behind(start);
        let end = mapping.ipa.checked_add(mapping.range.size());
        let end = [edge, end].into_iter().flatten().min()?;
        Some(Piece {
            ipa: start,
            pa: mapping.pa_of(start)?,
            size: end.checked_offset_from(start)?,
            attrs: protections.narrowed(start, mapping.attrs),
        })
    }

    /// Puts the spares back into a map that was rebuilt from what the registry says.
    fn restore_moved(&self, vm: &Vm<P>) {
        let mut next = self.ras.moved_from(Pa::new(0));
        while let Some((home, frame)) = next {
            for mapped in self.ras.devmem.mappings_of(home) {
                if mapped.vm == vm.vmid {
                    let _ =
                        Mendable::replace(self, vm.vmid, mapped.ipa, frame, mapped.mapping.attrs);
                }
            }
            next = home
                .checked_add(PAGE_SIZE)
                .and_then(|from| self.ras.moved_from(from));
        }
    }
}

impl<P: Platform, C: GuestCpu> Exit<'_, P, C> {
    /// The guest wants something of a block that was dropped.
    pub(super) fn reopen(
        &mut self,
        ipa: Ipa,
        place: Followed<impl DerefMut<Target = Space<P>>>,
    ) -> Next {
        let (ras, vm) = (&self.hypervisor.ras, self.vm.vmid);
        let bad = |range| ras.first_lost_to(vm, range);
        let reopened = place.reopen(&bad);
        match reopened {
            Ok(Some(it)) if it.tables > 0 || it.poisoned => {
                let (vm, block) = (&self.vm.name, BlockSize(it.size));
                let hole = u8::from(it.poisoned);
                log::info!(target: "ras", "event=refaulted vm={vm} ipa={ipa} block={block} hole={hole} tables={} reserve={}", it.tables, it.reserve_left);
            }
            Ok(_) => {}
            Err(damage) => {
                log::error!("event=error what=stage2 vm={} why={damage}", self.vm.name);
                return self.stop(StopReason::Killed);
            }
        }
        // If it was for the bad page, the access comes back with a hole in its way.
        Next::Resume
    }

    /// Whether an access that was not permitted is to be tried again: because it is by now, or because
    /// the page is being moved, and will be soon.
    pub(super) fn may_retry(&self, abort: &Abort, pa: Pa, attrs: Attrs) -> bool {
        let writable = attrs.access == Access::ReadWrite;
        let permitted = match abort.access {
            Attempted::Fetch => attrs.execute,
            Attempted::Write => writable,
            // All that is mapped can be read. A walk may write to its table, to mark what it has used.
            Attempted::Read => abort.stage1_walk && writable,
        };
        let busy = || self.hypervisor.ras.mender.is_busy(pa);
        abort.fault.is_permission() && (permitted || busy())
    }
}

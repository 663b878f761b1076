//! The VMs' maps, as containment has them.

use super::error_device::Report;
use super::hypervisor::{Hypervisor, Platform, StopReason};
use crate::addr::{Ipa, Pa, Vmid};
use crate::ras::contain::AddressSpaces;
use crate::ras::cper::Severity;
use crate::ras::event::{Consumer, ErrorEvent};
use crate::stage2::{Damage, HoleOutcome, Rebuilt, Suspect};
use core::fmt;

impl<P: Platform> AddressSpaces for Hypervisor<P> {
    /// Keeps off the map of a VM that is stopped, for the same reason as [`Hypervisor::stop`].
    fn make_hole(
        &self,
        vm: Vmid,
        ipa: Ipa,
        suspect: Suspect<'_>,
    ) -> Option<Result<HoleOutcome, Damage>> {
        let vm = self.vm(vm).filter(|vm| !vm.is_stopped())?;
        Some(vm.stage2.lock().make_hole_of(ipa, suspect))
    }

    fn drop_block(
        &self,
        vm: Vmid,
        ipa: Ipa,
        suspect: Suspect<'_>,
    ) -> Option<Result<HoleOutcome, Damage>> {
        let vm = self.vm(vm).filter(|vm| !vm.is_stopped())?;
        Some(vm.stage2.lock().drop_block_of(ipa, suspect))
    }

    fn counter(&self) -> u64 {
        self.platform.counter()
    }

    fn rebuild(&self, table: Pa) -> Option<(Vmid, Rebuilt)> {
        let running = self.vms().iter().filter(|vm| !vm.is_stopped());
        running
            .into_iter()
            .find_map(|vm| self.rebuild_table(vm, table))
    }

    fn name(&self, vm: Vmid) -> &str {
        self.vm(vm).map_or("?", |vm| &vm.name)
    }

    /// A guest with ACPI is told, unless it is the one that met the error: then its own abort says
    /// more (`memory_error`).
    fn lost(&self, vmid: Vmid, ipa: Ipa, event: &ErrorEvent) {
        let consumes = matches!(event.consumer, Some(Consumer::Vcpu { vm, .. }) if vm == vmid);
        if let Some(vm) = self.vm(vmid).filter(|_| !consumes) {
            self.report(vm, Report::lost(ipa.page()));
        }
    }

    /// A guest with ACPI is told of those, too: where there are too many, it moves what is in the page.
    fn corrected(&self, vmid: Vmid, ipa: Ipa, threshold: bool) {
        if let Some(vm) = self.vm(vmid).filter(|vm| !vm.is_stopped()) {
            let severity = Severity::Corrected;
            let ipa = ipa.page();
            self.report(
                vm,
                Report {
                    ipa,
                    severity,
                    threshold,
                },
            );
        }
    }

    fn give_up(&self, vmid: Vmid, why: &dyn fmt::Display) -> bool {
        self.vm(vmid).is_some_and(|vm| {
            log::error!("event=error what=stage2 vm={} why={why}", vm.name);
            self.stop(vm, StopReason::Killed)
        })
    }
}

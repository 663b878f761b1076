//! Parts of a VM's memory are made read-only, not executable or of a weaker type, and given back: by the guest
//! for itself, and by the operator.
//!
//! The same code that makes holes splits blocks for this and makes them whole again. A hole in the range stays
//! one, and has the new attributes when it is mended; a block of which a part is protected does not heal before
//! the protection goes.
//!
//! # What a guest gets that does what it may not
//!
//! A synchronous external abort (DFSC 0x10), at the address and with the direction of its access, and no word
//! of a memory error: it is what a bus answers to a write that nothing takes. The architecture gives a
//! stage-2 permission fault to EL2 alone, and has no syndrome for EL1 that would mean it. Other hypervisors
//! do the same (Xen injects a data abort; KVM hands the write to its user space, as to a device).
//!
//! # Who waits for whom
//!
//! Changes are made one after the other, and not while a page is repaired or moved, for these change
//! attributes as well: under [`Mender::alone`](crate::ras::repair::Mender::alone), before any other lock.

use super::cpu::GuestCpu;
use super::exit::Exit;
use super::hypercall::{Pages, status};
use super::hypervisor::{Hypervisor, Platform, StopReason, Vm};
use crate::addr::Ipa;
use crate::devmem::{By, Narrowing};
use crate::stage2::{Access, Attrs, Damage, ProtectError};
use core::fmt;

/// Most pages that one call protects: 128 MiB. For another memory type each of them may take an
/// invalidation of its own.
pub const MAX_PAGES: u64 = 1 << 15;

/// Why a range is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The VM does not have all of it, or not any more.
    NotMemory,
    /// The VM's tables are of a larger granule, and an end of the range is inside of a page of it.
    Unaligned,
    /// There are too many ranges.
    TooMany,
    /// The range ends in a hole larger than a page, or no table is left to split a block.
    NoRoom,
    /// The VM's tables are damaged. It has been stopped.
    Damaged(Damage),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMemory => f.write_str("not-memory"),
            Self::Unaligned => f.write_str("larger-granule"),
            Self::TooMany => f.write_str("too-many-ranges"),
            Self::NoRoom => f.write_str("out-of-table-frames"),
            Self::Damaged(damage) => damage.fmt(f),
        }
    }
}

impl core::error::Error for Refused {}

impl<P: Platform> Hypervisor<P> {
    /// Takes `narrowing` from `pages` of `vm` on behalf of `by`, in the place of what `by` took there before.
    /// When it has returned, no CPU does what is not permitted any more.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn protect_range(
        &self,
        vm: &Vm<P>,
        pages: Pages,
        narrowing: Narrowing,
        by: By,
    ) -> Result<(), Refused> {
        let ends = (pages.range().start(), pages.range().last());
        if !vm.has_future() || !self.has_all(vm, ends) {
            return Err(Refused::NotMemory);
        }
        let page = vm.stage2.lock().config().granule().page_size();
        if (ends.0.get() | pages.range().size()) & (page - 1) != 0 {
            return Err(Refused::Unaligned);
        }
        let alone = self.ras.mender.alone();
        let set = vm.protections.lock().set(by, ends, narrowing);
        set.map_err(|_| Refused::TooMany)?;
        let done = self.show_protections(vm, ends);
        if done.is_err() {
            vm.protections.lock().undo(by);
            // What was not split was not changed; what was is as it was before.
            let _ = self.show_protections(vm, ends);
        }
        drop(alone);
        match done {
            Ok(()) => {
                self.say_protected(vm, pages, by);
                Ok(())
            }
            Err(ProtectError::Damaged(damage)) => {
                log::error!("event=error what=stage2 vm={} why={damage}", vm.name);
                self.stop(vm, StopReason::Killed);
                Err(Refused::Damaged(damage))
            }
            Err(_) => Err(Refused::NoRoom),
        }
    }

    /// The VM is about to begin anew: what its guest protected is forgotten. What the operator did stays.
    pub(super) fn forget_protections(&self, vm: &Vm<P>) {
        let alone = self.ras.mender.alone();
        loop {
            let mut protections = vm.protections.lock();
            let Some(ends) = protections.first(By::Guest) else {
                break;
            };
            // A range less needs no more room.
            if protections.set(By::Guest, ends, Narrowing::NONE).is_err() {
                break;
            }
            drop(protections);
            if let Err(error) = self.show_protections(vm, ends) {
                let (name, at) = (&vm.name, ends.0);
                log::error!("event=error what=stage2 vm={name} why={error} ipa={at}");
            }
        }
        drop(alone);
    }

    /// The attributes that `vm` has at `ipa`, of which it was given `given`.
    pub(super) fn narrowed(vm: &Vm<P>, ipa: Ipa, given: Attrs) -> Attrs {
        vm.protections.lock().narrowed(ipa, given)
    }

    /// Whether all from the first to the last of these addresses was given to the VM.
    fn has_all(&self, vm: &Vm<P>, (first, last): (Ipa, Ipa)) -> bool {
        let mut next = Some(first);
        while let Some(at) = next.filter(|at| *at <= last) {
            let Some(mapping) = self.ras.devmem.mapping_at(vm.vmid, at) else {
                return false;
            };
            next = mapping.ipa.checked_add(mapping.range.size());
        }
        true
    }

    /// Has the tables show what is protected from the first to the last of these addresses.
    fn show_protections(&self, vm: &Vm<P>, (first, last): (Ipa, Ipa)) -> Result<(), ProtectError> {
        let bad = |range| self.ras.first_lost_to(vm.vmid, range);
        let mut at = first;
        while at <= last
            && let Some(mapping) = self.ras.devmem.mapping_at(vm.vmid, at)
        {
            let protections = vm.protections.lock();
            let attrs = protections.narrowed(at, mapping.attrs);
            let edge = protections.edge_behind(at);
            drop(protections);
            let ends = [
                last.checked_add(1),
                mapping.ipa.checked_add(mapping.range.size()),
                edge,
            ];
            let Some(end) = ends.into_iter().flatten().min() else {
                break;
            };
            let size = end.checked_offset_from(at).unwrap_or(0);
            vm.stage2.lock().protect(at, size, attrs, &bad)?;
            at = end;
        }
        Ok(())
    }

    fn say_protected(&self, vm: &Vm<P>, pages: Pages, by: By) {
        let (name, ipa, size) = (&vm.name, pages.range().start(), pages.range().size());
        let Some(mapping) = self.ras.devmem.mapping_at(vm.vmid, ipa) else {
            return;
        };
        let attrs = Self::narrowed(vm, ipa, mapping.attrs);
        let access = match attrs.access {
            Access::ReadOnly => "read-only",
            Access::ReadWrite => "read-write",
        };
        let memory = attrs.memory;
        let execute = if attrs.execute { "yes" } else { "no" };
        let reserve = vm.stage2.lock().reserve_left();
        log::info!(
            "event=protected vm={name} ipa={ipa} size={size:#x} by={by} access={access} execute={execute} memory={memory} reserve={reserve}"
        );
    }
}

impl<P: Platform, C: GuestCpu> Exit<'_, P, C> {
    /// The guest's own call. Returns x0.
    pub(super) fn protect(&self, pages: Pages, narrowing: Narrowing) -> i64 {
        let protected = self
            .hypervisor
            .protect_range(self.vm, pages, narrowing, By::Guest);
        match protected {
            Ok(()) => 0,
            Err(Refused::NotMemory | Refused::Damaged(_)) => status::NOT_MEMORY,
            Err(Refused::Unaligned) => status::INVALID,
            Err(Refused::TooMany | Refused::NoRoom) => status::NO_ROOM,
        }
    }
}

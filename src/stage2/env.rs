//! What the tables need from the machine, as traits: memory, the TLB, and a source of frames.
//!
//! The image implements them with instructions; tests implement them with a machine that records
//! every step and fails when a CPU could have seen a forbidden one.

use super::granule::Level;
use crate::addr::{Ipa, Pa, Vmid};
use core::sync::atomic::AtomicU64;

/// Reaches the frames that hold tables.
///
/// Tables are ordinary memory of EL2: Normal Write-Back, Inner Shareable, as `VTCR_EL2` says of
/// the walks, so that stores need a barrier but no cache maintenance to be seen by a walk.
pub trait TableMemory {
    /// The words of the table in the frame at `frame`, exactly [`Granule::entries`] of them, or
    /// `None` when there is no such frame. The same frame always gives the same words.
    ///
    /// [`Granule::entries`]: super::Granule::entries
    fn table(&self, frame: Pa) -> Option<&[AtomicU64]>;

    /// Fills a table that no CPU can see yet with `first`, `first + stride`, ... This is nearly all of
    /// the work of making a hole in a block, so an implementation may know a faster way.
    fn fill(&self, words: &[AtomicU64], first: u64, stride: u64) {
        super::table::fill(words, first, stride);
    }
}

/// Barriers and TLB maintenance, on behalf of all CPUs of the Inner Shareable domain.
///
/// The operations act on the VM whose VMID is given, whichever VM is current on this CPU: where an
/// instruction works on `VTTBR_EL2.VMID`, the implementation installs that VMID for the
/// instruction and puts the old one back. (With `HCR_EL2.TGE` clear; an ISB in between.)
pub trait Tlb {
    /// All earlier stores to tables are visible to every later table walk of every CPU when this
    /// returns: `DSB ISHST`.
    fn publish(&self);

    /// No CPU uses a stage-2 entry for `ipa` that it cached before the call: `TLBI IPAS2E1IS`,
    /// then `DSB ISH`. An entry for a block goes when any address in it is named.
    ///
    /// With `leaf`, only entries cached from leaves of that level have to go, and the
    /// implementation may say so to hardware (FEAT_TTL) or ignore it; without, those of all levels,
    /// tables included. What was cached of stages 1 and 2 *combined* stays: see
    /// [`Self::invalidate_vm`].
    fn invalidate_ipa(&self, vmid: Vmid, ipa: Ipa, leaf: Option<Level>);

    /// [`Self::invalidate_ipa`] for each of the `count` leaves of `level`, of `size` bytes each, from `first`
    /// on, completed once.
    fn invalidate_leaves(&self, vmid: Vmid, first: Ipa, (count, size): (usize, u64), level: Level) {
        for ipa in (first.get()..).step_by(size as usize).take(count) {
            self.invalidate_ipa(vmid, Ipa::new(ipa), Some(level));
        }
    }

    /// No CPU uses anything of stage 1, alone or combined with stage 2, that it cached for the VM
    /// before the call: `TLBI VMALLE1IS`, `DSB ISH`, `ISB`.
    ///
    /// It comes after [`Self::invalidate_ipa`]: until that has completed, a CPU may still
    /// combine with the old stage-2 entry (Arm ARM D8.17, "TLB maintenance instructions").
    fn invalidate_vm(&self, vmid: Vmid);

    /// No CPU uses anything of either stage that it cached for the VM before the call:
    /// `TLBI VMALLS12E1IS`, `DSB ISH`, `ISB`. It ends a TLB conflict (fault status 0x30).
    fn invalidate_vm_all(&self, vmid: Vmid);
}

/// Gives out frames for tables while a VM is built.
pub trait FrameSource {
    /// `count` adjacent frames of [`Granule::page_size`] bytes each, aligned to all of them
    /// together, for the caller alone; or `None`. `count` is a power of two, 1 to 16. What is in
    /// the frames does not matter.
    ///
    /// [`Granule::page_size`]: super::Granule::page_size
    fn take(&mut self, count: usize) -> Option<Pa>;

    /// Takes back the `count` frames from `first`, which one [`Self::take`] gave and nobody uses
    /// any more.
    fn give_back(&mut self, first: Pa, count: usize);
}

impl<M: TableMemory + ?Sized> TableMemory for &M {
    fn table(&self, frame: Pa) -> Option<&[AtomicU64]> {
        (**self).table(frame)
    }

    fn fill(&self, words: &[AtomicU64], first: u64, stride: u64) {
        (**self).fill(words, first, stride);
    }
}

impl<T: Tlb + ?Sized> Tlb for &T {
    fn publish(&self) {
        (**self).publish();
    }

    fn invalidate_ipa(&self, vmid: Vmid, ipa: Ipa, leaf: Option<Level>) {
        (**self).invalidate_ipa(vmid, ipa, leaf);
    }

    fn invalidate_leaves(&self, vmid: Vmid, first: Ipa, leaves: (usize, u64), level: Level) {
        (**self).invalidate_leaves(vmid, first, leaves, level);
    }

    fn invalidate_vm(&self, vmid: Vmid) {
        (**self).invalidate_vm(vmid);
    }

    fn invalidate_vm_all(&self, vmid: Vmid) {
        (**self).invalidate_vm_all(vmid);
    }
}

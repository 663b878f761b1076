//! Containment: one bad page is cut out of every address space that has it.
//!
//! What that means, each mapping's [`Policy`] says; a hole, mostly. The order is fixed: the page enters the poison set first, so that a CPU which meets the hole
//! while it is being made finds out why it is there; then each mapping that the registry knows
//! loses the page. No step allocates and none can fail for want of memory: a full poison set costs
//! bookkeeping, a spent table reserve costs good memory around the page (and both say so), but
//! the page is out of reach, or repaired, when [`Containment::page`] returns, also when another CPU was first and is
//! still at it.

use super::event::{Announcer, ErrorEvent, Stage};
use super::journal::{Journal, Note};
use super::poison::{Insert, PoisonSet};
use super::repair::Mender;
use crate::addr::{Ipa, PAGE_SIZE, Pa, Vmid};
use crate::devmem::{DevMem, MappedPage, MappingsOf, Policy, Region};
use crate::stage2::{Damage, Hole, HoleOutcome, Rebuilt, Suspect};
use crate::sync::Mutex;
use core::fmt;

#[cfg(test)]
mod tests;

/// The VMs' address spaces, by VMID. Implemented by whoever owns the VMs.
pub trait AddressSpaces {
    /// Takes the page at `ipa` out of the VM's map, if that is `suspect` still; `None` if there is no such
    /// VM, or it runs no more.
    fn make_hole(
        &self,
        vm: Vmid,
        ipa: Ipa,
        suspect: Suspect<'_>,
    ) -> Option<Result<HoleOutcome, Damage>>;

    /// Drops the whole block that maps the page at `ipa`; as for [`Self::make_hole`] otherwise.
    fn drop_block(
        &self,
        vm: Vmid,
        ipa: Ipa,
        suspect: Suspect<'_>,
    ) -> Option<Result<HoleOutcome, Damage>>;

    /// If the frame at `table` is one of a VM's tables, or set aside for them, does without it from now on.
    /// `None` if it is not, or that cannot be: a VM that cannot go on then has been given up.
    fn rebuild(&self, table: Pa) -> Option<(Vmid, Rebuilt)>;

    /// The VM's name, for people.
    fn name(&self, vm: Vmid) -> &str;

    /// The machine's counter (CNTPCT_EL0), for when something happened.
    fn counter(&self) -> u64;

    /// The VM has lost the page at `ipa`, and its map shows it. Called once for each page that it loses.
    fn lost(&self, vm: Vmid, ipa: Ipa, event: &ErrorEvent);

    /// An error in the page at `ipa` was corrected: nothing is lost. `threshold` says that there are more of
    /// them than there should be.
    fn corrected(&self, vm: Vmid, ipa: Ipa, threshold: bool) {
        let _ = (vm, ipa, threshold);
    }

    /// Stops a VM whose map can no longer be trusted. Whether it ran until now.
    fn give_up(&self, vm: Vmid, why: &dyn fmt::Display) -> bool;
}

/// What the poison set said of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// It is new, and entered.
    New,
    /// It was there.
    Known,
    /// It is not there, and cannot be entered.
    NoRoom,
}

/// What became of one mapping of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// The page is out of it now.
    Made,
    /// The page was out of it before.
    Held,
    /// The page stays, by the mapping's policy.
    Kept,
    /// The page stays: it was repaired before this CPU came to it.
    Repaired,
    /// There is no such mapping any more, or nobody who could use it.
    Absent,
}

/// What containing a page has come to, as far as its consumer is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contained {
    /// The consumer's VM has the page.
    pub is_of_consumer: bool,
    /// There it is a hole now, or was one.
    pub hole: Option<Ipa>,
    /// There it stays: it was repaired before it could be cut out.
    pub is_repaired: bool,
}

impl Contained {
    fn note(&mut self, mapped: &MappedPage<'_>, cut: Cut, event: &ErrorEvent) {
        if event.consumer_vm() != Some(mapped.vm) {
            return;
        }
        self.is_of_consumer = true;
        if matches!(cut, Cut::Made | Cut::Held) {
            self.hole = Some(mapped.ipa);
        }
        self.is_repaired |= cut == Cut::Repaired;
    }
}

/// What containment works on.
pub(super) struct Containment<'a, 's, V, const N: usize> {
    /// Who maps what.
    pub(super) devmem: &'a DevMem<'s>,
    /// Which pages are bad.
    pub(super) poison: &'a Mutex<PoisonSet<'s>>,
    /// Which frames stand in for others.
    pub(super) mender: &'a Mender,
    /// Counts and tells.
    pub(super) announcer: &'a Announcer<N>,
    /// The address spaces.
    pub(super) spaces: &'a V,
    /// Where what happened is noted.
    pub(super) journal: &'a Journal,
    /// The error that is being contained.
    pub(super) event: &'a ErrorEvent,
}

impl<V: AddressSpaces, const N: usize> Containment<'_, '_, V, N> {
    /// Contains the page that holds `pa`. `None` if it is nobody's.
    pub(super) fn page(&self, pa: Pa) -> Option<Contained> {
        let (page, seq) = (pa.page(), self.event.sequence);
        // Memory that is nobody's as well: it may become somebody's, who must not get this page.
        let entry = self.enter(page);
        let Some(region) = self.devmem.find(page) else {
            self.announce(Stage::Unclaimed);
            log::warn!(target: "ras", "event=unclaimed seq={seq} pa={page}");
            return None;
        };
        // A known page as well: the CPU that entered it may not have come to all of its mappings
        // yet, and nobody may be told of a hole that is not there.
        let (mut made, mut held) = (false, false);
        let mut contained = Contained::default();
        for mapped in self.users_of(page, region) {
            let cut = self.cut(page, &mapped, entry);
            made |= cut == Cut::Made;
            held |= matches!(cut, Cut::Held | Cut::Kept);
            contained.note(&mapped, cut, self.event);
        }
        // What a full set cannot tell, the mappings can.
        let known = match entry {
            Entry::New => false,
            Entry::Known => true,
            Entry::NoRoom => held && !made,
        };
        if known {
            self.announce(Stage::Known);
            self.say(|| Note::Known { seq, pa: page });
        } else {
            self.announce(Stage::Contained { pages: 1 });
            region.notify_failure(page);
        }
        Some(contained)
    }

    /// Who has the page at `page`, which is in `region`: a spare stands in for another.
    fn users_of<'r>(&'r self, page: Pa, region: &'r Region<'_>) -> MappingsOf<'r> {
        let mut spares = self.mender.spares.lock();
        spares.retire(page);
        match spares.home_of(page) {
            Some(home) if home == page => region.mappings_of(page),
            Some(home) => self.devmem.mappings_of(home),
            None => MappingsOf::NONE,
        }
    }

    fn enter(&self, page: Pa) -> Entry {
        let mut poison = self.poison.lock();
        match poison.insert(page.pfn(), self.event.sequence) {
            Insert::New(_) => Entry::New,
            Insert::Known(_) => Entry::Known,
            Insert::Full => {
                drop(poison);
                self.announce(Stage::Overflow);
                log::error!(target: "ras", "event=overflow what=poison-set pa={page}");
                Entry::NoRoom
            }
        }
    }

    /// A repair may forget the page between its entry into the set and this, and mend a map in which there is
    /// nothing to be mended yet. So the set is asked once more, under the map's lock: whichever of the two comes to
    /// that last finds what the other has done.
    fn cut(&self, page: Pa, mapped: &MappedPage<'_>, entry: Entry) -> Cut {
        let (vm, ipa, seq) = (mapped.vm, mapped.ipa, self.event.sequence);
        // A full set cannot tell.
        let is_known = || self.poison.lock().get_for(vm, page.pfn()).is_some();
        let suspect = Suspect {
            frame: page,
            is_bad: &|| entry == Entry::NoRoom || is_known(),
        };
        let name = || self.spaces.name(vm);
        let outcome = match mapped.policy {
            Policy::Isolate => self.spaces.make_hole(vm, ipa, suspect),
            Policy::Refault => self.spaces.drop_block(vm, ipa, suspect),
            Policy::Keep => {
                log::info!(target: "ras", "event=kept seq={seq} pa={page} vm={} ipa={ipa}", name());
                return Cut::Kept;
            }
        };
        match outcome {
            Some(Ok(HoleOutcome::Made(hole))) => {
                self.report(vm, ipa, &hole);
                self.spaces.lost(vm, ipa, self.event);
                Cut::Made
            }
            Some(Ok(HoleOutcome::Coarse(hole))) => {
                self.announce(Stage::Overflow);
                let innocent = hole.size.saturating_sub(PAGE_SIZE);
                log::error!(target: "ras", "event=overflow what=table-reserve vm={} ipa={} lost={:#x} innocent={innocent:#x}", name(), hole.ipa, hole.size);
                self.report(vm, ipa, &hole);
                self.spaces.lost(vm, ipa, self.event);
                Cut::Made
            }
            Some(Ok(HoleOutcome::Dropped(hole))) => {
                let block = BlockSize(hole.size);
                log::info!(target: "ras", "event=dropped seq={seq} pa={page} vm={} ipa={ipa} block={block}", name());
                Cut::Made
            }
            Some(Ok(HoleOutcome::AlreadyPoisoned { .. } | HoleOutcome::AlreadyDropped { .. })) => {
                Cut::Held
            }
            Some(Ok(HoleOutcome::InOrder)) => Cut::Repaired,
            Some(Ok(HoleOutcome::NotMapped)) | None => {
                log::warn!(target: "ras", "event=unmapped seq={seq} pa={page} vm={} ipa={ipa}", name());
                Cut::Absent
            }
            Some(Err(damage)) => {
                if self.spaces.give_up(vm, &damage) {
                    self.announce(Stage::VmStopped);
                }
                Cut::Absent
            }
        }
    }

    fn report(&self, vm: Vmid, ipa: Ipa, hole: &Hole) {
        self.say(|| Note::contained(self.event.sequence, vm, ipa, hole));
    }

    fn say(&self, make: impl Fn() -> Note) {
        super::pipeline::say(self.journal, make, &[], self.spaces);
    }

    fn announce(&self, stage: Stage) {
        self.announcer.announce(self.event, stage);
    }
}

/// A block's size as the events write it: `1g`, `2m`, `4k`.
pub struct BlockSize(pub u64);

impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, 'g'), (20, 'm'), (10, 'k')] {
            if self.0 >> shift != 0 {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

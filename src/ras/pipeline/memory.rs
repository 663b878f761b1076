//! The memory of poison: what is bad, whatever became of who used it.
//!
//! A page stays in the set when its VM is reset or ends, when it is nobody's, and when the region around
//! it goes. So whoever gets the memory later gets it with the hole in place.

use super::{Occasion, Origin, Ras, Severity, Stage};
use crate::addr::{Ipa, PAGE_SIZE, Pa, PaRange, Pfn, Vmid};
use crate::devmem::{Mapping, Region, RegionId};
use crate::ras::contain::AddressSpaces;
use crate::ras::esr::Level;
use crate::ras::ghes::PhysMemory;
use crate::ras::poison::{BadPage, cpu_bit};
use crate::stage2::{HoleOutcome, Suspect};

/// A bad page as one VM has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostPage {
    /// Where the VM has it.
    pub ipa: Ipa,
    /// What is known of it.
    pub page: BadPage,
}

impl<'s, S: PhysMemory> Ras<'s, S> {
    /// The bad pages in `range`, in order. The set is locked for each step and free in between, so that
    /// the caller may do with a page what it wants; one that comes or goes meanwhile may be missed.
    pub fn bad_in(&self, range: PaRange) -> impl Iterator<Item = BadPage> + '_ {
        let mut next = Some(range);
        core::iter::from_fn(move || {
            let left = next?;
            let found = self
                .poison
                .lock()
                .first_in(left)
                .map(|page| page.snapshot());
            next = found.and_then(|page| behind(left, page.pa));
            found
        })
    }

    /// All bad pages of the machine.
    pub fn all_bad_pages(&self) -> impl Iterator<Item = BadPage> + '_ {
        let all = PaRange::new(Pa::new(0), u64::MAX);
        all.into_iter().flat_map(|all| self.bad_in(all))
    }

    /// The pages in `range` that `vm` must not have mapped, in order: those that are bad, and those that are
    /// withheld from it. As for [`Self::bad_in`] otherwise.
    pub fn lost_in(&self, vm: Vmid, range: PaRange) -> impl Iterator<Item = BadPage> + '_ {
        let mut next = Some(range);
        core::iter::from_fn(move || {
            let left = next?;
            let found = self
                .poison
                .lock()
                .first_for(vm, left)
                .map(|page| page.snapshot());
            next = found.and_then(|page| behind(left, page.pa));
            found
        })
    }

    /// All pages that `vm` has lost, mapping by mapping, in order in each.
    pub fn lost_pages_of(&self, vm: Vmid) -> impl Iterator<Item = LostPage> + '_ {
        self.lost_pages_in(vm, Ipa::new(0), Ipa::new(u64::MAX))
    }

    /// The same for those from `first` to `last`, without a look at any others.
    pub fn lost_pages_in(
        &self,
        vm: Vmid,
        first: Ipa,
        last: Ipa,
    ) -> impl Iterator<Item = LostPage> + '_ {
        let mappings = self.devmem.mappings_from(vm, first);
        let mappings = mappings.take_while(move |mapping| mapping.ipa <= last);
        let parts = mappings.filter_map(move |mapping| mapping.between(first, last));
        parts.flat_map(|part| {
            // What was bad and is replaced has been given back.
            let own = self
                .lost_in(part.vm, part.range)
                .filter(|page| self.frame_of(page.pa) == page.pa);
            let own = own.filter_map(move |page| {
                let ipa = part.ipa_of(page.pa)?;
                Some(LostPage { ipa, page })
            });
            own.chain(self.lost_spares_of(part))
        })
    }

    /// Of the pages of `mapping` that live in spares, those whose spare is bad.
    fn lost_spares_of(&self, mapping: Mapping) -> impl Iterator<Item = LostPage> + '_ {
        let mut next = Some(mapping.range.start());
        core::iter::from_fn(move || {
            loop {
                let (home, frame) = self.moved_from(next?)?;
                next = home.checked_add(PAGE_SIZE);
                let ipa = mapping.ipa_of(home)?;
                if let Some(page) = self.lost_to(mapping.vm, frame) {
                    return Some(LostPage { ipa, page });
                }
            }
        })
    }

    /// Takes over pages that were bad before Cordon started, and cuts them out of every map there is.
    /// Returns how many pages are in the set that were not.
    pub fn import<V: AddressSpaces>(
        &self,
        ranges: impl Iterator<Item = PaRange>,
        cpu: usize,
        spaces: &V,
    ) -> u64 {
        let occasion = Occasion {
            origin: Origin::Imported,
            cpu,
            consumer: None,
        };
        let before = self.poison.lock().len();
        for range in ranges {
            let event = occasion.event(self.next_sequence(), Severity::Recoverable, Some(range));
            self.announcer.announce(&event, Stage::Detected);
            self.contain(&event, range, spaces);
        }
        (self.poison.lock().len() - before) as u64
    }

    /// Cuts what is known to be bad out of a mapping that was registered after it went bad. Returns how
    /// many holes were made.
    pub fn cut_known<V: AddressSpaces>(&self, mapping: &Mapping, spaces: &V) -> u64 {
        let mut holes = 0;
        for page in self.lost_in(mapping.vm, mapping.range) {
            let Some(ipa) = mapping.ipa_of(page.pa) else {
                continue;
            };
            let suspect = Suspect {
                frame: page.pa,
                is_bad: &|| self.lost_to(mapping.vm, page.pa).is_some(),
            };
            match spaces.make_hole(mapping.vm, ipa, suspect) {
                Some(Ok(HoleOutcome::Made(_) | HoleOutcome::Coarse(_))) => holes += 1,
                Some(Err(damage)) => {
                    spaces.give_up(mapping.vm, &damage);
                }
                _ => {}
            }
        }
        holes
    }

    /// Forgets a region with its mappings and the filter rules that name it. What is bad in it stays
    /// bad. No VM may still map it.
    pub fn remove_region(&mut self, id: RegionId) -> Option<Region<'s>> {
        let region = self.devmem.unregister(id)?;
        self.filter.lock().forget_region(id);
        Some(region)
    }

    /// `vm`, who has the page that holds `pa`, says that it knows. Whether that is news.
    pub fn acknowledge(&self, vm: Vmid, pa: Pa) -> bool {
        let poison = self.poison.lock();
        let page = poison.get_for(vm, pa.pfn());
        page.is_some_and(|page| page.acknowledge())
    }

    /// Counts an access by `who` to the page that holds `pa`, which is a hole.
    #[inline(always)]
    pub fn touched(&self, who: Toucher, pa: Pa) -> Touch {
        let poison = self.poison.lock();
        let page = poison.get_for(who.vm, pa.pfn());
        let (count, walk_level) = page.map_or((0, None), |page| (page.touch(), page.walk_level()));
        let before = page.map(|page| page.consume(who.cpu));
        drop(poison);
        Touch {
            count,
            walk_level,
            consumption: self.consumption(who, before),
        }
    }

    /// Remembers that `who` has consumed the page that holds `pa`.
    pub fn consumed(&self, who: Toucher, pa: Pa) -> Consumption {
        let poison = self.poison.lock();
        let page = poison.get_for(who.vm, pa.pfn());
        let before = page.map(|page| page.consume(who.cpu));
        drop(poison);
        self.consumption(who, before)
    }

    /// What it is for `who` to consume a page that `before`, as bits, had consumed.
    fn consumption(&self, who: Toucher, before: Option<u64>) -> Consumption {
        let Some(before) = before else {
            return Consumption::Unknown;
        };
        if before & who.siblings == 0 {
            self.announcer.counters().count_distinct(who.vm);
        }
        if before & cpu_bit(who.cpu) == 0 {
            Consumption::First
        } else {
            Consumption::Repeated
        }
    }
}

/// A guest that accesses a page.
#[derive(Clone, Copy, Debug)]
pub struct Toucher {
    /// Its VM.
    pub vm: Vmid,
    /// The physical CPU that it runs on.
    pub cpu: usize,
    /// The CPUs of its VM, as bits.
    pub siblings: u64,
}

/// An access to a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// How many there have been, with this one; 0 for a page that the set had no room for.
    pub count: u64,
    /// The level of stage-1 table that the page was first consumed as, if it was one.
    pub walk_level: Option<Level>,
    /// Whether it was the first of its vCPU.
    pub consumption: Consumption,
}

/// Whether a vCPU has consumed a page before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consumption {
    /// It has not.
    First,
    /// It has.
    Repeated,
    /// The set had no room for the page.
    Unknown,
}

/// What is left of `range` behind the page at `page`.
fn behind(range: PaRange, page: Pa) -> Option<PaRange> {
    let start = Pfn::new(page.pfn().get()).pa().checked_add(PAGE_SIZE)?;
    let size = range.last().checked_offset_from(start)?.checked_add(1)?;
    PaRange::new(start, size)
}

//! Memory by physical address: what it is, whose it is, and which VMs reach it where.
//!
//! A memory error is reported for a PA. For ordinary memory an operating system finds its users
//! through a `struct page`; device memory (accelerator HBM, CXL, PCIe BARs) has nothing of the kind.
//! [`DevMem`] is what it has here: regions that do not overlap, and in each of them the mappings
//! that VMs have of it, so that containment finds all of them from one PA. Guest RAM is registered
//! in the same way and takes the same path.
//!
//! # Who locks
//!
//! Nobody. The registry is filled through `&mut` while the machine boots and VMs are built, and is
//! only read afterwards: no lookup allocates, waits or changes anything, so the path that handles an
//! error may use it from any CPU in any state. A region can go, through `&mut` as well. What changes later (which pages are poisoned, what a
//! map looks like) is kept elsewhere.
//!
//! # Why sorted vectors
//!
//! Regions and mappings are added in boot order and hardly ever removed. A binary search over one array
//! touches fewer cache lines than any tree would, keeps working when the heap does not, and has no
//! pointers to go wrong. There are three: regions by PA, each region's mappings by PA, and all mappings
//! by VM and IPA. So every lookup takes O(log n) steps in the number of regions and mappings, and one
//! more for each mapping of the page, however large the regions are; registering, at boot, takes O(n).

mod policy;
mod protection;
mod region;
#[cfg(test)]
mod tests;

pub use policy::Policy;
pub use protection::{By, MAX_RANGES, Narrowing, Protections, TooMany};
use region::Entry;
pub use region::{FailureSink, Kind, Mapping, Region, RegionId};

use crate::addr::{Ipa, PAGE_SIZE, Pa, PaRange, Vmid};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// Why a region or a mapping was not registered. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterError {
    /// Start or size is not a multiple of [`PAGE_SIZE`].
    Unaligned,
    /// The range shares memory with this region, the lowest of those.
    Overlap(RegionId),
    /// There is no region with this id.
    UnknownRegion(RegionId),
    /// The mapping reaches beyond its region.
    OutsideRegion(RegionId),
    /// IPA and PA differ in their offset within this many bytes, so that blocks as large as the
    /// region deserves could not be used.
    Incongruent(u64),
    /// The range of IPAs wraps around the address space.
    IpaWraps,
    /// The VM has something at this IPA already, the first in the range of which that is true.
    IpaTaken(Ipa),
    /// No more regions can be told apart.
    TooManyRegions,
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unaligned => f.write_str("unaligned-range"),
            Self::Overlap(id) => write!(f, "overlaps-region-{id}"),
            Self::UnknownRegion(id) => write!(f, "unknown-region-{id}"),
            Self::OutsideRegion(id) => write!(f, "outside-region-{id}"),
            Self::Incongruent(size) => write!(f, "ipa-and-pa-differ-modulo-{size:#x}"),
            Self::IpaWraps => f.write_str("ipa-wraps"),
            Self::IpaTaken(ipa) => write!(f, "ipa-taken-{ipa}"),
            Self::TooManyRegions => f.write_str("too-many-regions"),
        }
    }
}

/// A page of memory as one VM sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedPage<'a> {
    /// The VM.
    pub vm: Vmid,
    /// The page's address in that VM.
    pub ipa: Ipa,
    /// The mapping it belongs to.
    pub mapping: &'a Mapping,
    /// What is done when a page of that goes bad.
    pub policy: Policy,
}

/// Everyone who maps a page.
#[derive(Clone, Debug)]
pub struct MappingsOf<'a> {
    page: Pa,
    candidates: &'a [Entry],
}

impl<'a> MappingsOf<'a> {
    /// Nobody.
    pub(crate) const NONE: Self = Self {
        page: Pa::new(0),
        candidates: &[],
    };

    /// Those among `candidates` who map the page at `page`.
    const fn new(page: Pa, candidates: &'a [Entry]) -> Self {
        Self { page, candidates }
    }
}

impl<'a> Iterator for MappingsOf<'a> {
    type Item = MappedPage<'a>;

    #[inline]
    fn next(&mut self) -> Option<MappedPage<'a>> {
        loop {
            let (entry, rest) = self.candidates.split_first()?;
            self.candidates = rest;
            if let Some(ipa) = entry.mapping.ipa_of(self.page) {
                return Some(MappedPage {
                    vm: entry.mapping.vm,
                    ipa,
                    mapping: &entry.mapping,
                    policy: entry.policy.get(),
                });
            }
        }
    }
}

/// The registry. `'s` is how long the failure callbacks live: `'static` in the image.
#[derive(Debug, Default)]
pub struct DevMem<'s> {
    /// By start address; no two overlap.
    regions: Vec<Region<'s>>,
    /// All mappings by VM and IPA. Those of one VM do not overlap.
    by_ipa: Vec<Mapping>,
    /// Regions that were ever registered: an id does not come again.
    registered: u16,
}

impl<'s> DevMem<'s> {
    /// A registry of nothing.
    pub const fn new() -> Self {
        Self {
            regions: Vec::new(),
            by_ipa: Vec::new(),
            registered: 0,
        }
    }

    /// Registers a region. Ids count up from 0 in order of registration. Allocates.
    ///
    /// # Errors
    /// [`RegisterError::Unaligned`], [`RegisterError::Overlap`], [`RegisterError::TooManyRegions`].
    /// (That the range is not empty and does not wrap is [`PaRange`]'s promise.)
    pub fn register(
        &mut self,
        kind: Kind,
        range: PaRange,
        owner: &str,
        sink: Option<&'s (dyn FailureSink + Sync)>,
    ) -> Result<RegionId, RegisterError> {
        if !is_whole_pages(range) {
            return Err(RegisterError::Unaligned);
        }
        // All regions before `at` end below the range; the first of the others is the only one
        // that has to be looked at.
        let at = self.first_not_below(range.start());
        if let Some(other) = self.regions.get(at)
            && other.range().overlaps(range)
        {
            return Err(RegisterError::Overlap(other.id()));
        }
        let next = self.registered.checked_add(1);
        let next = next.ok_or(RegisterError::TooManyRegions)?;
        let id = RegionId::new(self.registered);
        self.registered = next;
        let region = Region::new(id, kind, range, String::from(owner), sink);
        self.regions.insert(at, region);
        Ok(id)
    }

    /// Forgets a region and its mappings, which it returns: no VM may map it any more.
    pub fn unregister(&mut self, id: RegionId) -> Option<Region<'s>> {
        let at = self.regions.iter().position(|region| region.id() == id)?;
        let region = self.regions.remove(at);
        // A mapping lies in its region as a whole.
        self.by_ipa
            .retain(|it| !region.range().contains(it.range.start()));
        Some(region)
    }

    /// Registers that a VM maps part of a region. Any number of VMs, and of IPAs in one VM, may map
    /// the same memory. Allocates.
    ///
    /// # Errors
    /// All of [`RegisterError`] but `Overlap` and `TooManyRegions`.
    pub fn add_mapping(&mut self, id: RegionId, mapping: Mapping) -> Result<(), RegisterError> {
        let at = self
            .regions
            .iter()
            .position(|region| region.id() == id)
            .ok_or(RegisterError::UnknownRegion(id))?;
        self.check_ipa(&mapping)?;
        let region = self.regions.get_mut(at);
        region
            .ok_or(RegisterError::UnknownRegion(id))?
            .add(mapping)?;
        let at = self.views_before(mapping.vm, mapping.ipa);
        self.by_ipa.insert(at, mapping);
        Ok(())
    }

    /// The region that holds `pa`. O(log n) in the number of regions.
    pub fn find(&self, pa: Pa) -> Option<&Region<'s>> {
        self.regions
            .get(self.first_not_below(pa))
            .filter(|region| region.range().contains(pa))
    }

    /// The region called `id`.
    pub fn region(&self, id: RegionId) -> Option<&Region<'s>> {
        self.regions.iter().find(|region| region.id() == id)
    }

    /// All regions, in order of PA.
    pub fn regions(&self) -> impl Iterator<Item = &Region<'s>> {
        self.regions.iter()
    }

    /// Everyone who maps the page that holds `pa`, in order of the PAs where their mappings begin. Nothing
    /// is allocated.
    pub fn mappings_of(&self, pa: Pa) -> MappingsOf<'_> {
        self.find(pa)
            .map_or(MappingsOf::NONE, |region| region.mappings_of(pa))
    }

    /// Changes what is done from now on when a page of the mapping goes bad that the VM has at `ipa`.
    /// Returns the mapping, and what was done before; `None` where there is none.
    pub fn set_policy(&self, vm: Vmid, ipa: Ipa, policy: Policy) -> Option<(&Mapping, Policy)> {
        let wanted = self.mapping_at(vm, ipa)?;
        let region = self.find(wanted.range.start())?;
        let mut all = region.policies_at(wanted.range.start());
        let (mapping, cell) = all.find(|(mapping, _)| *mapping == wanted)?;
        let before = cell.get();
        cell.set(policy);
        Some((mapping, before))
    }

    /// The PA behind an IPA, and its region, by what has been registered: unlike the VM's stage-2
    /// tables this does not know of holes.
    pub fn resolve(&self, vm: Vmid, ipa: Ipa) -> Option<(Pa, &Region<'s>)> {
        let pa = self.mapping_at(vm, ipa)?.pa_of(ipa)?;
        Some((pa, self.find(pa)?))
    }

    /// What `vm` was given at `ipa`.
    pub fn mapping_at(&self, vm: Vmid, ipa: Ipa) -> Option<&Mapping> {
        let next = self.mappings_from(vm, ipa).next();
        next.filter(|mapping| mapping.pa_of(ipa).is_some())
    }

    /// What `vm` was given at `ipa` and behind it, in order of IPA. O(log n) to begin.
    pub fn mappings_from(&self, vm: Vmid, ipa: Ipa) -> impl Iterator<Item = &Mapping> {
        let before = self.views_before(vm, ipa);
        // The one that begins before `ipa` may reach it; those before that one do not.
        let from = before.saturating_sub(1);
        let views = self.by_ipa.get(from..).unwrap_or_default().iter();
        views
            .skip_while(move |it| (it.vm, it.last_ipa().unwrap_or(Ipa::new(u64::MAX))) < (vm, ipa))
            .take_while(move |it| it.vm == vm)
    }

    /// All that `vm` was given, in order of IPA.
    pub fn mappings_by(&self, vm: Vmid) -> impl Iterator<Item = &Mapping> {
        self.mappings_from(vm, Ipa::new(0))
    }

    /// How many mappings come before what `vm` has, or could have, from `ipa` on.
    fn views_before(&self, vm: Vmid, ipa: Ipa) -> usize {
        self.by_ipa
            .partition_point(|it| (it.vm, it.ipa) < (vm, ipa))
    }

    /// Tells the owner of the region that holds `pa` that this page has failed, if it asked to
    /// know, and returns the region. The callback gets the start of the page.
    pub fn notify_failure(&self, pa: Pa) -> Option<&Region<'s>> {
        let region = self.find(pa)?;
        region.notify_failure(pa);
        Some(region)
    }

    /// Index of the first region that ends at or after `pa`.
    fn first_not_below(&self, pa: Pa) -> usize {
        self.regions
            .partition_point(|region| region.range().last() < pa)
    }

    /// That the VM has nothing else where `mapping` is to be.
    fn check_ipa(&self, mapping: &Mapping) -> Result<(), RegisterError> {
        let last = mapping.last_ipa().ok_or(RegisterError::IpaWraps)?;
        let taken = self.mappings_from(mapping.vm, mapping.ipa).next();
        match taken.map(|other| other.ipa.max(mapping.ipa)) {
            Some(ipa) if ipa <= last => Err(RegisterError::IpaTaken(ipa)),
            _ => Ok(()),
        }
    }
}

/// Whether memory can be isolated page by page up to the very ends of `range`.
fn is_whole_pages(range: PaRange) -> bool {
    range.start().is_aligned(PAGE_SIZE) && range.size().is_multiple_of(PAGE_SIZE)
}

//! A region of physical memory, and the mappings of it.

use super::MappingsOf;
use super::policy::{Policy, PolicyCell};
use super::{RegisterError, is_whole_pages};
use crate::addr::{Ipa, PAGE_SIZE, Pa, PaRange, Vmid};
use crate::stage2::Attrs;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// What a region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// RAM that VMs run in.
    Ram,
    /// A reserved range of RAM that stands in for device memory.
    Reserved,
    /// The memory behind a PCIe BAR.
    Bar,
    /// RAM that takes the place of other pages.
    Spare,
}

impl Kind {
    /// IPA and PA of a mapping must agree in their offset within this many bytes. For device memory
    /// that is the largest block; for RAM, which has its place in the machine by what is free there,
    /// 2 MiB.
    pub const fn congruence(self) -> u64 {
        match self {
            Self::Ram => 2 << 20,
            Self::Spare => PAGE_SIZE,
            Self::Reserved | Self::Bar => 1 << 30,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ram => "ram",
            Self::Reserved => "reserved",
            Self::Bar => "bar",
            Self::Spare => "spare",
        })
    }
}

/// Names a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(u16);

impl RegionId {
    pub(super) const fn new(raw: u16) -> Self {
        Self(raw)
    }

    /// The number that reports show.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The owner of a region, who wants to know of failures in it: the driver that manages the memory.
pub trait FailureSink {
    /// The page of `region` that starts at `page` has failed. Called on the CPU that handles the
    /// error: it must not wait, must not allocate, and must not touch the page.
    fn memory_failure(&self, region: &Region<'_>, page: Pa);
}

/// A VM's view of part of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Who maps it.
    pub vm: Vmid,
    /// Where it begins for the VM.
    pub ipa: Ipa,
    /// The memory.
    pub range: PaRange,
    /// With what attributes.
    pub attrs: Attrs,
}

impl Mapping {
    /// Where the VM finds `pa`.
    pub fn ipa_of(&self, pa: Pa) -> Option<Ipa> {
        let offset = self
            .range
            .contains(pa)
            .then(|| pa.checked_offset_from(self.range.start()))??;
        self.ipa.checked_add(offset)
    }

    /// What is behind `ipa`.
    pub fn pa_of(&self, ipa: Ipa) -> Option<Pa> {
        let offset = ipa.checked_offset_from(self.ipa)?;
        let pa = self.range.start().checked_add(offset)?;
        self.range.contains(pa).then_some(pa)
    }

    /// The part of it that the VM has from the page of `first` to that of `last`.
    pub fn between(&self, first: Ipa, last: Ipa) -> Option<Self> {
        let end = self.last_ipa()?.min(last);
        let ipa = self.ipa.max(first.page());
        let size = end.page().checked_offset_from(ipa)?;
        let range = PaRange::new(self.pa_of(ipa)?, size.checked_add(PAGE_SIZE)?)?;
        Some(Self {
            ipa,
            range,
            ..*self
        })
    }

    /// Its last IPA, or `None` where that is outside the address space.
    pub(super) fn last_ipa(&self) -> Option<Ipa> {
        self.ipa.checked_add(self.range.size() - 1)
    }

    /// Whether it can be mapped page by page, with the blocks that `kind` deserves.
    fn check(&self, kind: Kind) -> Result<(), RegisterError> {
        if !is_whole_pages(self.range) || !self.ipa.is_aligned(PAGE_SIZE) {
            return Err(RegisterError::Unaligned);
        }
        let difference = Ipa::new(self.ipa.get() ^ self.range.start().get());
        if !difference.is_aligned(kind.congruence()) {
            return Err(RegisterError::Incongruent(kind.congruence()));
        }
        Ok(())
    }
}

/// A region of physical memory.
pub struct Region<'s> {
    id: RegionId,
    kind: Kind,
    range: PaRange,
    owner: String,
    sink: Option<&'s (dyn FailureSink + Sync)>,
    /// By PA, those that begin at one address in order of registration.
    mappings: Vec<Entry>,
}

/// A mapping in the list of its region.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) mapping: Mapping,
    pub(super) policy: PolicyCell,
    /// The last PA of this mapping or of one before it, whichever is higher: what reaches an address is
    /// behind all entries that do not get there.
    reach: Pa,
}

impl<'s> Region<'s> {
    pub(super) fn new(
        id: RegionId,
        kind: Kind,
        range: PaRange,
        owner: String,
        sink: Option<&'s (dyn FailureSink + Sync)>,
    ) -> Self {
        Self {
            id,
            kind,
            range,
            owner,
            sink,
            mappings: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, mapping: Mapping) -> Result<(), RegisterError> {
        if !self.range.contains_range(mapping.range) {
            return Err(RegisterError::OutsideRegion(self.id));
        }
        mapping.check(self.kind)?;
        let start = mapping.range.start();
        let at = self
            .mappings
            .partition_point(|it| it.mapping.range.start() <= start);
        let entry = Entry {
            mapping,
            policy: PolicyCell::default(),
            reach: mapping.range.last(),
        };
        self.mappings.insert(at, entry);
        let mut reach = Pa::new(0);
        for it in &mut self.mappings {
            reach = reach.max(it.mapping.range.last());
            it.reach = reach;
        }
        Ok(())
    }

    /// Its name.
    pub const fn id(&self) -> RegionId {
        self.id
    }

    /// What it is.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it is. Start and size are multiples of [`PAGE_SIZE`].
    pub const fn range(&self) -> PaRange {
        self.range
    }

    /// Who it belongs to, for reports.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Who maps it, in order of PA.
    pub fn mappings(&self) -> impl Iterator<Item = &Mapping> {
        self.mappings.iter().map(|it| &it.mapping)
    }

    /// Those that may hold `pa`, which are all that do and such that begin between them, each with what is
    /// done when a page of it goes bad. O(log n) to begin.
    pub(super) fn entries_at(&self, pa: Pa) -> &[Entry] {
        let begins = |it: &Entry| it.mapping.range.start() <= pa;
        let first = self.mappings.partition_point(|it| it.reach < pa);
        let end = self.mappings.partition_point(begins);
        self.mappings.get(first..end).unwrap_or_default()
    }

    /// The same as pairs.
    pub(super) fn policies_at(&self, pa: Pa) -> impl Iterator<Item = (&Mapping, &PolicyCell)> {
        let entries = self.entries_at(pa).iter();
        entries.map(|it| (&it.mapping, &it.policy))
    }

    /// What is done when a page of `mapping` goes bad.
    pub fn policy_of(&self, mapping: &Mapping) -> Policy {
        let start = mapping.range.start();
        let mut own = (self.policies_at(start)).filter(|(other, _)| *other == mapping);
        own.next()
            .map_or(Policy::default(), |(_, policy)| policy.get())
    }

    /// Everyone who maps the page that holds `pa`, which lies in the region.
    pub fn mappings_of(&self, pa: Pa) -> MappingsOf<'_> {
        MappingsOf::new(pa.page(), self.entries_at(pa.page()))
    }

    /// Tells its owner that the page that holds `pa` has failed, if it asked to know.
    pub fn notify_failure(&self, pa: Pa) {
        if let Some(sink) = self.sink() {
            sink.memory_failure(self, pa.page());
        }
    }

    pub(super) const fn sink(&self) -> Option<&'s (dyn FailureSink + Sync)> {
        self.sink
    }
}

impl fmt::Debug for Region<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("range", &self.range)
            .field("owner", &self.owner)
            .field("mappings", &self.mappings)
            .finish_non_exhaustive()
    }
}

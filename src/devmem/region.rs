//! A region of physical memory, and the mappings of it.

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
    mappings: Vec<(Mapping, PolicyCell)>,
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
        self.mappings.push((mapping, PolicyCell::default()));
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

    /// Who maps it, in order of registration.
    pub fn mappings(&self) -> impl Iterator<Item = &Mapping> {
        self.mappings.iter().map(|(mapping, _)| mapping)
    }

    /// The same, each with what is done when a page of it goes bad.
    pub(super) fn policies(&self) -> impl Iterator<Item = (&Mapping, &PolicyCell)> {
        self.mappings
            .iter()
            .map(|(mapping, policy)| (mapping, policy))
    }

    /// What is done when a page of `mapping` goes bad.
    pub fn policy_of(&self, mapping: &Mapping) -> Policy {
        let mut own = self.policies().filter(|(other, _)| *other == mapping);
        own.next()
            .map_or(Policy::default(), |(_, policy)| policy.get())
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

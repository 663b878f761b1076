//! Which memory the access goes to: the pages of its first and its last byte, if the guest has them, they are good, and
//! nobody is moving them; and as what the guest has them.

use super::extent::{Extent, Kind};
use super::obstacle::{Byte, Obstacle, Why};
use super::pages::Caching;
use crate::addr::{Ipa, PAGE_SIZE, Pa};
use crate::ras::inject::{self, GuestState, pstate, sctlr};
use crate::ras::poison::Standing;
use crate::stage2::{Access as Permission, Attrs, Lookup, MemoryType};
use crate::vm::cpu::{GuestCpu, Rights, Stage1};
use crate::vm::exit::Exit;
use crate::vm::hypervisor::{Hypervisor, Platform};
use crate::vm::virtual_machine::Space;

/// A page that an access may go to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Good {
    pub(super) ipa: Ipa,
    pub(super) frame: Pa,
    pub(super) caching: Caching,
}

/// Bits of an address above those that are translated, if the guest ignores its top byte.
pub(super) const TAG_BITS: u32 = 8;

pub(super) const fn page_of(va: u64) -> u64 {
    va / PAGE_SIZE
}

impl<P: Platform, C: GuestCpu> Exit<'_, P, C> {
    /// The pages of the first and the last byte, of which `here` is one.
    pub(super) fn both(
        &self,
        map: &Space<P>,
        extent: &Extent,
        (far, here): (u64, Good),
        unprivileged: bool,
    ) -> Result<(Good, Option<Good>), Obstacle> {
        let last = extent.at.wrapping_add(extent.length - 1);
        let write = extent.kind != Kind::Read;
        // The syndrome told only that it would have failed to read.
        if extent.kind == Kind::Update {
            self.frame(map, far, here.ipa, true)?;
        }
        if page_of(extent.at) == page_of(last) {
            return Ok((here, None));
        }
        let other = |va| {
            let rights = match unprivileged || self.cpu.exception_level() == 0 {
                true => Rights::El0 { write },
                false => Rights::El1 { write },
            };
            let stage1 = self
                .cpu
                .translate_for(va, rights)
                .map_err(|denied| denied.at(va))?;
            self.good(map, va, (stage1.ipa, Some(stage1)), write)
        };
        // FAR may be without the tag that the address has.
        if (page_of(far) ^ page_of(extent.at)) << TAG_BITS == 0 {
            let second = last & !(PAGE_SIZE - 1);
            Ok((here, Some(other(second)?)))
        } else {
            Ok((other(extent.at)?, Some(here)))
        }
    }

    /// The page of `va`, which is at `ipa`, if the guest has it and it is in order. `stage1` is what stage 1
    /// says of it, if it was asked.
    pub(super) fn good(
        &self,
        map: &Space<P>,
        va: u64,
        (ipa, stage1): (Ipa, Option<Stage1>),
        write: bool,
    ) -> Result<Good, Obstacle> {
        let found = self.frame(map, va, ipa, write)?;
        self.good_at(map, va, (ipa, stage1), found)
    }

    pub(super) fn good_at(
        &self,
        map: &Space<P>,
        va: u64,
        (ipa, stage1): (Ipa, Option<Stage1>),
        (frame, attrs): (Pa, Attrs),
    ) -> Result<Good, Obstacle> {
        let caching = self.caching(map, va, (ipa, stage1), attrs)?;
        Ok(Good {
            ipa,
            frame,
            caching,
        })
    }

    /// The frame behind `ipa`, and as what the VM has it, if it is in order.
    pub(super) fn frame(
        &self,
        map: &Space<P>,
        va: u64,
        ipa: Ipa,
        write: bool,
    ) -> Result<(Pa, Attrs), Obstacle> {
        let ras = &self.hypervisor.ras;
        let (frame, attrs) = match map.lookup(ipa).map_err(Obstacle::Damaged)? {
            Lookup::Mapped { pa, attrs, .. } => (pa.page(), attrs),
            Lookup::Poisoned { pa, size, attrs } => {
                // By the registry, which knows what a hole does not: that a spare stands in for the page.
                let frame = ras.frame_of(pa.page());
                let lost = || {
                    let pa = Pa::new(frame.get() | pa.get() & (PAGE_SIZE - 1));
                    Obstacle::Lost(Byte { va, ipa, pa })
                };
                if size <= PAGE_SIZE {
                    return Err(lost());
                }
                match ras.standing(self.vm.vmid, frame) {
                    Standing::Good => {}
                    Standing::Lost => return Err(lost()),
                    Standing::Unknown => return Err(Obstacle::Refused(Why::Unknown)),
                }
                (frame, Hypervisor::<P>::narrowed(self.vm, ipa, attrs))
            }
            Lookup::Parked { .. } => return Err(Obstacle::Parked(ipa)),
            Lookup::Unmapped => return Err(Obstacle::Nobody(va)),
        };
        if ras.mender.is_busy(frame) {
            return Err(Obstacle::Again);
        }
        if write && attrs.access != Permission::ReadWrite {
            return Err(Obstacle::Nobody(va));
        }
        Ok((frame, attrs))
    }

    /// How the guest accesses memory that stage 2 gives it with these attributes: of both stages, the stronger type
    /// counts (Arm ARM D8, "Combining stage 1 and stage 2 memory type attributes").
    fn caching(
        &self,
        map: &Space<P>,
        va: u64,
        (ipa, stage1): (Ipa, Option<Stage1>),
        attrs: Attrs,
    ) -> Result<Caching, Obstacle> {
        let is_cached = match attrs.memory {
            MemoryType::DeviceNGnRE => return Ok(Caching::Device),
            MemoryType::NormalNc => false,
            MemoryType::NormalWb => true,
        };
        let checks_tags = is_cached && checks_tags(&self.cpu.state());
        let forced = is_cached && map.config().fwb();
        if forced && !checks_tags {
            return Ok(Caching::WriteBack);
        }
        let stage1 = match stage1 {
            Some(stage1) => stage1,
            None => {
                let found = self.cpu.translate_for(va, Rights::Fetch);
                found.map_err(|_| Obstacle::Refused(Why::Stage1))?
            }
        };
        if stage1.ipa.page() != ipa.page() {
            // The guest has changed its map since.
            return Err(Obstacle::Again);
        }
        if checks_tags && stage1.is_tagged() {
            return Err(Obstacle::Refused(Why::Tags));
        }
        Ok(if forced || is_cached && stage1.is_write_back() {
            Caching::WriteBack
        } else if stage1.is_device() {
            Caching::Device
        } else {
            Caching::NonCacheable
        })
    }
}

/// Whether the guest has the tags of addresses checked.
fn checks_tags(state: &GuestState) -> bool {
    let el0 = state.pstate & pstate::MODE_EL == 0;
    let mode = if el0 { sctlr::TCF0 } else { sctlr::TCF };
    let has_tags = state.features.contains(inject::Features::MTE);
    has_tags && state.sctlr & mode != 0 && state.pstate & pstate::TCO == 0
}

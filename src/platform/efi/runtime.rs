//! What stays of the firmware when boot services have ended (UEFI 2.10, section 8): its runtime services, of which
//! Cordon calls one, at the very end.

use alloc::vec::Vec;

use super::Memory;
use crate::addr::{PAGE_SIZE, Pa, PaRange};

/// How a region is to be mapped for the firmware (2.3.6.2, and table 7-6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuntimeKind {
    /// Memory that it executes, and writes: what is code in it and what is data is only known where there is
    /// a memory attributes table.
    Code,
    /// Memory that it reads and writes.
    Data,
    /// Registers of devices.
    Registers,
}

/// A region that the firmware wants mapped while one of its services runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuntimeRegion {
    /// Whole pages.
    pub range: PaRange,
    /// As what.
    pub kind: RuntimeKind,
}

/// ResetSystem (8.5.1), by which a machine ends whose PSCI does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetService {
    /// The function.
    pub entry: Pa,
    /// What it wants mapped, nothing twice.
    pub regions: Vec<RuntimeRegion>,
}

impl ResetService {
    /// The service at `entry`, or `None` where that is no code of the firmware's.
    pub(super) fn new(entry: Pa, memory: &Memory) -> Option<Self> {
        let mut regions = memory.runtime.clone();
        regions.sort_by_key(|region| region.range.start());
        let overlap = |pair: &[RuntimeRegion; 2]| {
            let [one, other] = pair;
            one.range.overlaps(other.range)
        };
        // What is described twice would be mapped in two ways. Such a map is not believed.
        if regions.array_windows().any(overlap) {
            return None;
        }
        let instruction = PaRange::new(entry, 4).filter(|_| entry.is_aligned(4))?;
        let is_its = |region: &RuntimeRegion| {
            region.kind == RuntimeKind::Code && region.range.contains_range(instruction)
        };
        regions
            .iter()
            .any(is_its)
            .then_some(Self { entry, regions })
    }

    /// What is to be mapped of `range`, the registers of a device, beside the regions: nothing where they have
    /// its page.
    pub fn beside(&self, range: PaRange) -> Option<PaRange> {
        let page = PaRange::new(range.start().page(), PAGE_SIZE)?;
        let has = |region: &RuntimeRegion| region.range.overlaps(page);
        (!self.regions.iter().any(has)).then_some(page)
    }
}

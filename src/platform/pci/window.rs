//! Where BARs go: a host bridge's window, filled one BAR at a time.

use alloc::vec::Vec;

use super::MIN_DEVICE_MEMORY;
use crate::addr::{Pa, PaRange};
use crate::platform::machine::PciWindow;
use crate::platform::memory::GIB;

/// A host bridge's window while BARs are placed in it. Addresses inside are PCI addresses.
pub(super) struct Window {
    window: Option<PciWindow>,
    /// What is taken, sorted.
    taken: Vec<PaRange>,
}

impl Window {
    pub(super) fn new(window: Option<PciWindow>) -> Self {
        Self {
            window,
            taken: Vec::new(),
        }
    }

    /// The PCI address and CPU range of a new place for `size` bytes, a power of two: for memory
    /// at a multiple of a gigabyte where that fits, so that it suits 1 GiB blocks, and always at
    /// a multiple of `size`, as a BAR must be.
    pub(super) fn place(&mut self, size: u64) -> Option<(u64, PaRange)> {
        let preferred = if size >= MIN_DEVICE_MEMORY {
            size.max(GIB)
        } else {
            size
        };
        let address = self
            .find(size, preferred)
            .or_else(|| self.find(size, size))?;
        let range = self.claim(address, size)?;
        Some((address, range))
    }

    /// Claims the place that firmware gave a BAR. Address 0 is what a BAR has that nobody placed.
    pub(super) fn keep(&mut self, address: u64, size: u64) -> Option<PaRange> {
        if address == 0 || !address.is_multiple_of(size) {
            return None;
        }
        self.claim(address, size)
    }

    /// The lowest free PCI address for `size` bytes that is a multiple of `align`, and, where that
    /// is more than a BAR needs, seen by the CPU at a multiple of it too.
    fn find(&self, size: u64, align: u64) -> Option<u64> {
        let window = self.window?;
        let shift = window.cpu.start().get().wrapping_sub(window.pci);
        if align > size && !shift.is_multiple_of(align) {
            return None;
        }
        // Never address 0, which means that nobody placed the BAR.
        let mut address = window.pci.max(1).checked_next_multiple_of(align)?;
        for taken in &self.taken {
            if PaRange::new(Pa::new(address), size)?.overlaps(*taken) {
                address = taken
                    .last()
                    .get()
                    .checked_add(1)?
                    .checked_next_multiple_of(align)?;
            }
        }
        self.seen_by_cpu(address, size).map(|_| address)
    }

    /// Where the CPU sees `size` bytes at PCI address `address`, if that is inside the window.
    fn seen_by_cpu(&self, address: u64, size: u64) -> Option<PaRange> {
        let window = self.window?;
        let offset = address.checked_sub(window.pci)?;
        let cpu = PaRange::new(window.cpu.start().checked_add(offset)?, size)?;
        window.cpu.contains_range(cpu).then_some(cpu)
    }

    /// Marks `size` bytes at PCI address `address` as taken and says where the CPU sees them.
    fn claim(&mut self, address: u64, size: u64) -> Option<PaRange> {
        let place = PaRange::new(Pa::new(address), size)?;
        let cpu = self.seen_by_cpu(address, size)?;
        if self.taken.iter().any(|other| other.overlaps(place)) {
            return None;
        }
        let index = self
            .taken
            .partition_point(|other| other.start() < place.start());
        self.taken.insert(index, place);
        Some(cpu)
    }
}

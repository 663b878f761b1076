//! Raw access to device registers and shared memory, for drivers whose logic is in the library.
#![expect(unsafe_code, reason = "volatile access to mapped registers")]

use super::fixup::{self, Poisoned};
use super::mmu;
use cordon::addr::{PAGE_SIZE, Pa, PaRange};
use cordon::platform::machine::PcieHost;
use cordon::platform::page_set::PageSet;
use cordon::platform::pci::{Bdf, ConfigSpace};
use cordon::ras::ghes::{MemoryError, PhysMemory};
use core::ptr::{read_volatile, write_volatile};

/// A PCIe host bridge's configuration space, mapped (ECAM: PCI Express Base 6.0, 7.2.2).
#[derive(Debug)]
pub struct Ecam {
    registers: PaRange,
    first_bus: u8,
}

impl Ecam {
    /// Bytes of configuration space on one bus.
    const BUS_SIZE: u64 = 1 << 20;

    /// Maps the first bus of `host`, which is all that Cordon looks at.
    ///
    /// # Errors
    ///
    /// If EL2's map does not reach it.
    pub fn map(host: &PcieHost) -> Result<Self, mmu::Error> {
        let size = host.ecam.size().min(Self::BUS_SIZE);
        let registers = PaRange::new(host.ecam.start(), size).ok_or(mmu::Error::NotReady)?;
        mmu::map_device(registers)?;
        Ok(Self {
            registers,
            first_bus: *host.buses.start(),
        })
    }

    fn register(&self, function: Bdf, offset: u16) -> Option<*mut u32> {
        let offset = function.ecam_offset(self.first_bus)? + u64::from(offset & 0xffc);
        let pa = self.registers.start().checked_add(offset)?;
        self.registers.contains(pa).then_some(pa.get() as *mut u32)
    }
}

impl ConfigSpace for Ecam {
    fn read32(&mut self, function: Bdf, offset: u16) -> u32 {
        match self.register(function, offset) {
            // SAFETY: aligned, inside the mapped configuration space; reading it has no side
            // effect that Rust could notice.
            Some(register) => unsafe { read_volatile(register) },
            None => u32::MAX,
        }
    }

    fn write32(&mut self, function: Bdf, offset: u16, value: u32) {
        if let Some(register) = self.register(function, offset) {
            // SAFETY: as above. A function's BARs are moved before anybody is given them. The
            // read makes the write, which may be posted, arrive.
            unsafe {
                write_volatile(register, value);
                read_volatile(register);
            }
        }
    }
}

/// The register in which ACPI's generic event device says what happened. Reading it makes it forget.
#[derive(Clone, Copy, Debug)]
pub struct EventRegister(Pa);

impl EventRegister {
    /// Maps the page of the register at `at`, a multiple of 4.
    ///
    /// # Errors
    ///
    /// If EL2's map does not reach it, or it is in use otherwise.
    pub fn map(at: Pa) -> Result<Self, mmu::Error> {
        let page = PaRange::new(at.page(), PAGE_SIZE).ok_or(mmu::Error::NotReady)?;
        mmu::map_device(page)?;
        Ok(Self(at))
    }

    /// What happened since the last call.
    pub fn take(self) -> u32 {
        // SAFETY: mapped as device memory for good, and aligned (`platform::aml`); that the device forgets
        // is what is wanted.
        unsafe { read_volatile(self.0.get() as *const u32) }
    }
}

/// Memory that firmware and Cordon share: the error status blocks and what belongs to them.
#[derive(Debug, Default)]
pub struct SharedMemory {
    pages: PageSet,
}

impl SharedMemory {
    /// Maps `range` as part of it, for good. It may lie in pages that are part of it already.
    ///
    /// # Errors
    ///
    /// If EL2's map does not reach it, or it is in use otherwise.
    pub fn share(&mut self, range: PaRange) -> Result<(), mmu::Error> {
        for gap in self.pages.missing(range) {
            let mapped = mmu::map_shared(gap)?;
            self.pages.insert(mapped);
        }
        Ok(())
    }

    /// All pages of it.
    pub fn pages(&self) -> impl Iterator<Item = PaRange> + '_ {
        self.pages.ranges()
    }

    fn check(&self, start: Pa, size: usize) -> Result<u64, MemoryError> {
        let range = PaRange::new(start, size as u64).ok_or(MemoryError::NotMapped(start))?;
        match self.pages.contains(range) {
            true => Ok(start.get()),
            false => Err(MemoryError::NotMapped(start)),
        }
    }

    fn check_u64(&self, at: Pa) -> Result<*mut u64, MemoryError> {
        match at.is_aligned(8) {
            true => Ok(self.check(at, 8)? as *mut u64),
            false => Err(MemoryError::NotMapped(at)),
        }
    }
}

impl PhysMemory for SharedMemory {
    fn read(&mut self, from: Pa, to: &mut [u8]) -> Result<(), MemoryError> {
        let start = self.check(from, to.len())?;
        // SAFETY: inside a range that is mapped for good and that Rust has no object in.
        unsafe { fixup::copy_raw(to.as_mut_ptr(), start as *const u8, to.len()) }
            .map_err(|error| poisoned(error, from))
    }

    fn write(&mut self, to: Pa, from: &[u8]) -> Result<(), MemoryError> {
        let start = self.check(to, from.len())?;
        // SAFETY: as above.
        unsafe { fixup::copy_raw(start as *mut u8, from.as_ptr(), from.len()) }
            .map_err(|error| poisoned(error, to))
    }

    fn read_u64(&mut self, from: Pa) -> Result<u64, MemoryError> {
        let word = self.check_u64(from)?;
        // SAFETY: as above, and aligned.
        let value = unsafe { fixup::read_u64(word) }.map_err(|error| poisoned(error, from))?;
        // What is read afterwards was written before the word was (firmware's side is a release).
        aarch64_cpu::asm::barrier::dmb(aarch64_cpu::asm::barrier::SY);
        Ok(value)
    }

    fn write_u64(&mut self, to: Pa, value: u64) -> Result<(), MemoryError> {
        let word = self.check_u64(to)?;
        // Firmware must find everything before this word done when it sees it.
        aarch64_cpu::asm::barrier::dmb(aarch64_cpu::asm::barrier::SY);
        // SAFETY: as above, and aligned.
        unsafe { fixup::write_u64(word, value) }.map_err(|error| poisoned(error, to))
    }
}

/// EL2 met poison at `at` or behind it.
fn poisoned(error: Poisoned, at: Pa) -> MemoryError {
    MemoryError::Poisoned(error.pa.unwrap_or(at))
}

//! What machine this is: the DTB, and behind it PCI.

use crate::arch::aarch64::mmio::Ecam;
use crate::arch::aarch64::mmu::{self, Window};
use alloc::vec::Vec;
use cordon::addr::{PAGE_SIZE, Pa, PaRange};
use cordon::platform::fdt::{CheckedFdt, FdtError, without_nops};
use cordon::platform::machine::{HostUart, Machine, MachineError};
use cordon::platform::pci::{self, DeviceBar};
use core::fmt;

/// Why there is no machine to speak of.
#[derive(Debug)]
pub enum Error {
    /// There is none.
    NoTree,
    /// The memory of the DTB cannot be mapped.
    Map(mmu::Error),
    /// The blob is damaged.
    Fdt(FdtError),
    /// The blob is in order, what it says is not. Its UART may be, nevertheless.
    Machine(MachineError, Option<HostUart>),
}

impl Error {
    /// Where it can be said.
    pub fn console(&self) -> Option<HostUart> {
        match self {
            Self::Machine(_, console) => *console,
            Self::NoTree | Self::Map(_) | Self::Fdt(_) => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTree => f.write_str("why=none"),
            Self::Map(error) => write!(f, "why={error}"),
            Self::Fdt(error) => error.fmt(f),
            Self::Machine(error, _) => error.fmt(f),
        }
    }
}

impl From<mmu::Error> for Error {
    fn from(error: mmu::Error) -> Self {
        Self::Map(error)
    }
}

/// Reads the DTB at `dtb`.
///
/// # Errors
///
/// As [`Error`] says.
pub fn read(dtb: Pa) -> Result<Machine, Error> {
    with_tree(dtb, |fdt| Machine::from_fdt(fdt, dtb))
}

/// What `read` makes of the tree at `dtb`.
///
/// # Errors
///
/// As [`Error`] says.
pub fn with_tree<T>(
    dtb: Pa,
    read: impl FnOnce(&CheckedFdt<'_>) -> Result<T, MachineError>,
) -> Result<T, Error> {
    // What a loader that has none leaves in x0.
    if dtb == Pa::new(0) {
        return Err(Error::NoTree);
    }
    let head = memory(dtb, PAGE_SIZE)?;
    let size = CheckedFdt::total_size(&head).map_err(Error::Fdt)?;
    drop(head);
    let blob = memory(dtb, size as u64)?;
    let closed_up = without_nops(&blob).map_err(Error::Fdt)?;
    let fdt = CheckedFdt::new(closed_up.as_deref().unwrap_or(&blob)).map_err(Error::Fdt)?;
    read(&fdt).map_err(|error| Error::Machine(error, Machine::console(&fdt)))
}

/// A window on `size` bytes of RAM that a boot loader left for Cordon.
fn memory(start: Pa, size: u64) -> Result<Window, mmu::Error> {
    let range = PaRange::new(start, size).ok_or(mmu::Error::NotReady)?;
    boot_memory(range)
}

/// A window on RAM while nothing else runs.
pub fn boot_memory(range: PaRange) -> Result<Window, mmu::Error> {
    Window::open_at_boot(range)
}

/// Device memory behind PCI BARs, placed and switched on.
pub fn find_bars(machine: &Machine) -> Vec<DeviceBar> {
    let Some(host) = &machine.pcie else {
        return Vec::new();
    };
    let mut config = match Ecam::map(host) {
        Ok(config) => config,
        Err(error) => {
            log::error!("event=error what=pci why={error}");
            return Vec::new();
        }
    };
    let found = pci::find_device_memory(&mut config, host);
    for error in &found.errors {
        log::error!("event=error what=pci {error}");
    }
    found.bars
}

//! What a guest with ACPI is told of its machine, instead of a device tree.
//!
//! ```text
//!   place       where in RAM the pieces go
//!   tables      XSDT, FADT, MADT, GTDT, SPCR
//!   dsdt        the devices: CPUs, UART, where error interrupts arrive
//!   errors      HEST and EINJ: how errors are reported to the guest, and by it
//!   nvdimm      NFIT: persistent memory
//!   efi         EFI system table and memory map, which Linux wants before it believes in ACPI
//!   stub        the device tree that leads to the EFI system table
//! ```
//!
//! There are no EFI services: the runtime services table is absent and `EFI_RT_PROPERTIES_TABLE` says so
//! (UEFI 2.10, 4.6), so a kernel needs no further argument. All of it is generated when the
//! VM starts, from its description and from what its memory has lost by then: what is bad is
//! `EfiUnusableMemory`, never RAM.

mod dsdt;
mod efi;
pub(super) mod errors;
mod nvdimm;
pub mod place;
mod stub;
mod tables;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::fmt;

use super::boot::{Contents, Image};
use super::config::{Appearance, Given, IpaRange, VmConfig};
use alloc::string::String;
use place::Places;

/// INTID of the interrupt by which errors that nobody consumed are announced: SPI 9, as on QEMU's `virt`
/// machine.
pub const ERROR_INTERRUPT: u16 = 41;

/// Who made the tables.
const OEM_ID: [u8; 6] = *b"CORDON";
const OEM_TABLE_ID: [u8; 8] = *b"CORDON  ";
const OEM_REVISION: u32 = 1;

/// Why the description was not made.
#[derive(Debug, PartialEq, Eq)]
pub enum GuestAcpiError {
    /// A piece is larger than its place.
    TooBig {
        /// Which one.
        what: &'static str,
        /// Its size in bytes.
        size: usize,
    },
    /// There is no good memory for it.
    NoMemory,
    /// The stub tree's writer refused a name or value.
    Writer(vm_fdt::Error),
}

impl fmt::Display for GuestAcpiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooBig { what, size } => write!(f, "why=too-big piece={what} size={size:#x}"),
            Self::NoMemory => f.write_str("why=no-good-memory-for-tables"),
            // The writer's texts have blanks; its variants are names.
            Self::Writer(error) => write!(f, "why=dtb-refused error={error:?}"),
        }
    }
}

impl core::error::Error for GuestAcpiError {}

impl From<vm_fdt::Error> for GuestAcpiError {
    fn from(error: vm_fdt::Error) -> Self {
        Self::Writer(error)
    }
}

/// What is described: a VM whose guest has ACPI.
#[derive(Clone, Debug)]
pub struct Machine {
    vcpus: u32,
    ram: IpaRange,
    bootargs: Option<String>,
    initrd: Option<IpaRange>,
    /// Where in RAM the description goes.
    area: IpaRange,
    /// Memory for a special purpose, which is nobody's RAM.
    special: Vec<IpaRange>,
    /// Persistent memory.
    persistent: Vec<IpaRange>,
    /// Devices of the machine that it is given.
    devices: Vec<Given>,
}

impl Machine {
    /// The one that `vm` describes, with the devices that it was given.
    pub fn new(vm: &VmConfig<'_>, devices: &[Given]) -> Self {
        let shown_as = |appearance| {
            let shown = vm.device_memory.iter();
            let shown = shown.filter(move |memory| memory.appearance == appearance);
            shown.map(|memory| memory.ipa).collect()
        };
        Self {
            vcpus: vm.vcpus,
            ram: vm.ram,
            bootargs: vm.bootargs.map(Into::into),
            initrd: vm.layout.initrd,
            area: vm.layout.dtb,
            special: shown_as(Appearance::Dax),
            persistent: shown_as(Appearance::Pmem),
            devices: devices.to_vec(),
        }
    }

    /// The files that describe it to a guest whose memory has lost `lost` (ascending, whole pages). The
    /// first one is the stub device tree.
    ///
    /// # Errors
    /// [`GuestAcpiError`] where a piece does not fit into its place.
    pub fn describe(&self, lost: &[IpaRange]) -> Result<[Image; 3], GuestAcpiError> {
        let places = Places::within(self.area, lost).ok_or(GuestAcpiError::NoMemory)?;
        let tables = tables::build(self, &places);
        let efi = efi::build(self, &places, lost);
        let stub = stub::build(self, &places, efi.map_size)?;
        Ok([
            image("dtb", places.stub, stub)?,
            image("efi", places.efi, efi.bytes)?,
            image("tables", places.tables, tables)?,
        ])
    }
}

fn image(what: &'static str, place: IpaRange, bytes: Vec<u8>) -> Result<Image, GuestAcpiError> {
    let size = bytes.len();
    if size as u64 > place.size() {
        return Err(GuestAcpiError::TooBig { what, size });
    }
    Ok(Image {
        place,
        contents: Contents::Bytes(bytes),
    })
}

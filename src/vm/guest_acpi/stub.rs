//! The device tree of a guest with ACPI: nothing but the way to the EFI system table (Linux
//! `Documentation/arch/arm/uefi.rst`). With a memory node in it, Linux would not look at ACPI.

use alloc::vec::Vec;

use vm_fdt::FdtWriter;

use super::Machine;
use super::efi::{DESCRIPTOR_SIZE, DESCRIPTOR_VERSION, MAP};
use super::place::Places;

/// Secure boot is known to be off. Debian's kernels ignore EFI where nothing is said of it.
const SECURE_BOOT_DISABLED: u32 = 2;

pub(super) fn build(
    vm: &Machine,
    places: &Places,
    map_size: u32,
) -> Result<Vec<u8>, vm_fdt::Error> {
    let mut dt = FdtWriter::new()?;
    let root = dt.begin_node("")?;
    dt.property_u32("#address-cells", 2)?;
    dt.property_u32("#size-cells", 2)?;
    let chosen = dt.begin_node("chosen")?;
    if let Some(bootargs) = &vm.bootargs {
        dt.property_string("bootargs", bootargs)?;
    }
    if let Some(initrd) = vm.initrd {
        dt.property_u64("linux,initrd-start", initrd.start().get())?;
        let end = initrd.last().get().saturating_add(1);
        dt.property_u64("linux,initrd-end", end)?;
    }
    let efi = places.efi.start().get();
    dt.property_u64("linux,uefi-system-table", efi)?;
    dt.property_u64("linux,uefi-mmap-start", efi.saturating_add(MAP))?;
    dt.property_u32("linux,uefi-mmap-size", map_size)?;
    dt.property_u32("linux,uefi-mmap-desc-size", DESCRIPTOR_SIZE)?;
    dt.property_u32("linux,uefi-mmap-desc-ver", DESCRIPTOR_VERSION)?;
    dt.property_u32("linux,uefi-secure-boot", SECURE_BOOT_DISABLED)?;
    dt.end_node(chosen)?;
    dt.end_node(root)?;
    dt.finish()
}

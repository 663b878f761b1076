//! Lets the `acpi` crate see tables that have been checked, through windows that are open.
#![expect(unsafe_code, reason = "the crate reads tables through raw pointers")]

use acpi::{AcpiHandler, AcpiTables, PhysicalMapping};
use cordon::platform::acpi::{AcpiError, CheckedTables};
use core::ptr::NonNull;

/// Physical memory as EL2 sees it at boot: where a window is open, at its own address.
#[derive(Clone, Copy, Debug)]
pub struct BootTables;

impl BootTables {
    /// The crate's view of `tables`, whose memory the open windows of `_memory` hold.
    ///
    /// # Errors
    ///
    /// What the crate refuses although it was checked.
    pub fn open<M>(tables: &CheckedTables, _memory: &M) -> Result<AcpiTables<Self>, AcpiError> {
        let rsdp = tables.rsdp().get() as usize;
        // SAFETY: `CheckedTables` proves that a valid RSDP is there, and that every table the
        // crate will reach from it lies in memory that the windows of `_memory` keep mapped.
        unsafe { AcpiTables::from_rsdp(Self, rsdp) }.map_err(|_| AcpiError::NoMadt)
    }
}

impl AcpiHandler for BootTables {
    unsafe fn map_physical_region<T>(
        &self,
        physical_address: usize,
        size: usize,
    ) -> PhysicalMapping<Self, T> {
        let pointer = NonNull::new(physical_address as *mut T).unwrap_or(NonNull::dangling());
        // SAFETY: the map is the identity, and the region is mapped: see `open`. No table is at
        // address 0, which `CheckedTables` would not have found mapped.
        unsafe { PhysicalMapping::new(physical_address, pointer, size, size, *self) }
    }

    fn unmap_physical_region<T>(_region: &PhysicalMapping<Self, T>) {}
}

//! The Multiple APIC Description Table: CPUs and interrupt controller.

use alloc::vec::Vec;

use acpi::madt::MadtEntry;
use acpi::{AcpiHandler, AcpiTables};

use super::AcpiError;
use crate::addr::{Pa, PaRange};
use crate::platform::machine::Mpidr;

/// What the MADT says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Madt {
    /// The CPUs that are enabled, in the table's order.
    pub cpus: Vec<Mpidr>,
    /// The GIC distributor.
    pub distributor: Option<Pa>,
    /// What the distributor says that it is: 3 for a GICv3, 4 for a GICv4, 0 if it says nothing.
    pub version: u8,
    /// The regions that hold the redistributors.
    pub redistributors: Vec<PaRange>,
    /// Where the redistributors of single CPUs are, for which there may be no region.
    pub own_redistributors: Vec<Pa>,
    /// INTID of the maintenance interrupt of the CPUs' virtual interfaces, where all have the same.
    pub maintenance: Option<u32>,
}

impl Madt {
    /// Reads the MADT. `tables` were made from the RSDP of a [`CheckedTables`], which is what
    /// makes iteration over its entries sound and free of panics.
    ///
    /// # Errors
    /// [`AcpiError::NoMadt`], [`AcpiError::BadMpidr`], [`AcpiError::BadRedistributors`].
    pub fn read<H: AcpiHandler>(tables: &AcpiTables<H>) -> Result<Self, AcpiError> {
        let madt = tables
            .find_table::<acpi::madt::Madt>()
            .map_err(|_| AcpiError::NoMadt)?;
        let mut found = Self::default();
        for entry in madt.get().entries() {
            found.add(&entry)?;
        }
        Ok(found)
    }

    fn add(&mut self, entry: &MadtEntry<'_>) -> Result<(), AcpiError> {
        match entry {
            // 5.2.12.14: flags bit 0 is "enabled".
            MadtEntry::Gicc(gicc) if gicc.flags & 1 != 0 => {
                let value = gicc.mpidr;
                let interrupt = Some(gicc.vgic_maintenance_interrupt);
                self.maintenance = match self.cpus.is_empty() {
                    true => interrupt,
                    false => self.maintenance.filter(|_| self.maintenance == interrupt),
                };
                self.cpus
                    .push(Mpidr::new(value).ok_or(AcpiError::BadMpidr { value })?);
                if gicc.gicr_base_address != 0 {
                    self.own_redistributors
                        .push(Pa::new(gicc.gicr_base_address));
                }
            }
            MadtEntry::Gicd(gicd) => {
                self.distributor = Some(Pa::new(gicd.physical_base_address));
                self.version = gicd.gic_version;
            }
            MadtEntry::GicRedistributor(gicr) => {
                let start = Pa::new(gicr.discovery_range_base_address);
                let range = PaRange::new(start, u64::from(gicr.discovery_range_length));
                self.redistributors
                    .push(range.ok_or(AcpiError::BadRedistributors { start })?);
            }
            _ => {}
        }
        Ok(())
    }
}

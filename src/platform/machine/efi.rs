//! The machine, as UEFI leaves it: its memory map, and what describes the rest.

use super::{Description, Machine, MachineError, PcieHost, Reserved, ReservedBy};
use crate::addr::{Pa, PaRange};
use crate::platform::efi::Memory;
use crate::platform::fdt::CheckedFdt;
use alloc::string::String;

impl Machine {
    /// The machine of `memory`, by its device tree, if it has one, or else by ACPI. The device tree decides, as
    /// it does for Linux; [`Description::differences`] says what it says differently.
    ///
    /// # Errors
    /// [`MachineError`], where neither is there, or there is no RAM or CPU.
    #[inline(never)] // As `Description::read`.
    pub fn from_efi(
        memory: &Memory,
        fdt: Option<(&CheckedFdt<'_>, Pa)>,
        acpi: Option<&Description>,
    ) -> Result<Self, MachineError> {
        let mut machine = match (fdt, acpi) {
            (Some((fdt, at)), _) => {
                let mut machine = Self::from_fdt(fdt, at)?;
                // UEFI has placed BARs by whatever described the machine to it.
                machine.pcie = machine.pcie.map(|host| PcieHost {
                    placed: true,
                    ..host
                });
                machine
            }
            (None, Some(acpi)) => Self::from_acpi(acpi)?,
            (None, None) => return Err(MachineError::Undescribed),
        };
        // A tree's own memory is what there was before the firmware took its part.
        machine.ram.clone_from(&memory.ram);
        machine.reserved.extend(memory.reserved.iter().cloned());
        if machine.ram.is_empty() {
            return Err(MachineError::NoRam);
        }
        Ok(machine)
    }

    /// With what the application has found: the words that Cordon is started with, and the bundle.
    #[must_use]
    pub fn started_with(mut self, bootargs: String, bundle: Option<PaRange>) -> Self {
        self.bootargs = Some(bootargs).filter(|line| !line.is_empty());
        self.initrd = bundle;
        self.reserved.extend(bundle.map(|range| Reserved {
            range,
            by: ReservedBy::Initrd,
        }));
        self
    }

    fn from_acpi(acpi: &Description) -> Result<Self, MachineError> {
        let mut seen = acpi.cpus.clone();
        seen.sort_unstable();
        if let Some([mpidr, _]) = seen.array_windows().find(|[one, other]| one == other) {
            return Err(MachineError::DuplicateCpu { mpidr: *mpidr });
        }
        if acpi.cpus.is_empty() {
            return Err(MachineError::NoCpus);
        }
        Ok(Self {
            cpus: acpi.cpus.clone(),
            psci: acpi.psci,
            uart: acpi.uart.map(|uart| uart.registers),
            uart_kind: acpi.uart.map(|uart| uart.kind),
            uart_interrupt: acpi.uart_interrupt,
            gic: acpi.gic.clone(),
            other_gic: acpi.other_gic,
            timer: acpi.timer,
            pcie: acpi.pcie.clone(),
            ..Self::default()
        })
    }
}

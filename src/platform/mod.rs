//! Finding out about the machine: FDT, ACPI, UEFI, PCI, fw_cfg and the boot bundle.
//!
//! Everything read here was written by somebody else: firmware, a boot loader, a person with a
//! text editor. Each module turns bytes into typed values once, at the edge, and names what it
//! refuses. Errors display as the end of a `cordon: event=error what=...` line: `why=NAME` and the
//! keys that say where. All of it runs at boot, on one CPU, with a heap; but for `sgi`,
//! nothing here is called once VMs run.

pub mod acpi;
pub mod aml;
pub mod bundle;
pub mod cmdline;
pub mod dt;
pub mod efi;
pub mod fdt;
pub mod fw_cfg;
pub mod image;
pub mod machine;
pub mod memory;
pub mod page_set;
pub mod pci;
pub mod sgi;
pub mod table_loader;
pub mod uart;

/// What the modules' tests of damaged input share.
#[cfg(test)]
pub(crate) use fuzzing::{damage, fuzz_config};

#[cfg(test)]
mod fuzzing;

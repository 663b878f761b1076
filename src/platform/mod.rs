//! Finding out about the machine: FDT, ACPI, PCI, fw_cfg and the boot bundle.

pub mod fw_cfg;
pub mod table_loader;

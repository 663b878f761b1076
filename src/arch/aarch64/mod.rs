//! AArch64, at EL2, without VHE (`HCR_EL2.E2H` = 0).
//!
//! Interrupts and SErrors stay masked while EL2 runs: an exit is handled to its end, and a CPU
//! with nothing to do waits in WFI, which a masked interrupt ends too (Arm ARM D1.6.2).

pub mod acpi_map;
pub mod boot;
pub mod cpu;
pub mod crash;
pub mod device;
pub mod efi;
pub mod elsewhere;
pub mod fault;
pub mod features;
mod fill;
pub mod fixup;
pub mod fw_cfg;
pub mod gic;
pub mod guest;
pub mod heap;
pub mod id;
pub mod image_header;
pub mod layout;
pub mod load;
pub mod mem;
pub mod mmio;
pub mod mmu;
pub mod page_slot;
pub mod power;
pub mod reset;
pub mod reset_service;
pub mod smc;
pub mod spi;
pub mod tables;
pub mod timer;
pub mod tlb;
pub mod uart;
pub mod vectors;
mod vectors_of_guest;
pub mod vgic;

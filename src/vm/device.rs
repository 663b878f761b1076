//! Devices of the machine that belong to a VM.
//!
//! A guest drives such a device itself: its registers are in the guest's map, its interrupts are wired
//! to the guest's interrupt controller ([`super::vgic`]). Cordon does but one thing with it: when the
//! VM does not run, the device is put into its reset state, so that it neither writes into memory that is
//! being loaded nor interrupts anybody. So only devices of kinds that it can do that to are given away.
//!
//! Such a device may read and write all of the machine's memory by DMA: there is no SMMU before it
//! (docs/threat-model.md).

use crate::addr::PaRange;

/// What a device is, for those who must put it into its reset state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A virtio device behind registers in memory (Virtio 1.3, 4.2).
    VirtioMmio,
}

impl DeviceKind {
    /// The kind that `compatible` names, if Cordon knows it.
    pub fn from_compatible(compatible: &str) -> Option<Self> {
        match compatible {
            "virtio,mmio" => Some(Self::VirtioMmio),
            _ => None,
        }
    }

    /// Its name where ACPI describes it: `_HID`.
    pub const fn acpi_name(self) -> &'static str {
        match self {
            // Linux's `drivers/virtio/virtio_mmio.c`, and QEMU's tables.
            Self::VirtioMmio => "LNRO0005",
        }
    }
}

/// A device of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// What it is.
    pub kind: DeviceKind,
    /// Its registers.
    pub registers: PaRange,
}

//! PCI Express sections (UEFI 2.10 N.2.7): which device, and what its error registers say.

use core::fmt;

use super::wire;
use super::{CperError, What, valid};

/// What a PCI Express section says. A field is present where the record says that it is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pcie {
    /// Device/Port Type, as in the PCI Express Capabilities register.
    pub port_type: Option<u32>,
    /// Version of the PCI Express specification, major and minor, binary-coded decimal.
    pub version: Option<(u8, u8)>,
    /// The Command register.
    pub command: Option<u16>,
    /// The Status register.
    pub status: Option<u16>,
    /// The device.
    pub device: Option<PcieDevice>,
    /// Its serial number.
    pub serial_number: Option<u64>,
    /// AER: Uncorrectable Error Status.
    pub uncorrectable: Option<u32>,
    /// AER: Correctable Error Status.
    pub correctable: Option<u32>,
}

/// A device and where it sits. Displays as `segment:bus:device.function`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcieDevice {
    /// Vendor ID.
    pub vendor_id: u16,
    /// Device ID.
    pub device_id: u16,
    /// Class code, 24 bits.
    pub class_code: u32,
    /// Segment group.
    pub segment: u16,
    /// Bus; of a bridge the primary one.
    pub bus: u8,
    /// Of a bridge the secondary bus.
    pub secondary_bus: u8,
    /// Device number.
    pub device: u8,
    /// Function number.
    pub function: u8,
    /// Slot, 13 bits.
    pub slot: u16,
}

mod bit {
    pub(super) const PORT_TYPE: u32 = 0;
    pub(super) const VERSION: u32 = 1;
    pub(super) const COMMAND_STATUS: u32 = 2;
    pub(super) const DEVICE_ID: u32 = 3;
    pub(super) const SERIAL_NUMBER: u32 = 4;
    pub(super) const AER: u32 = 7;
}

impl Pcie {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, CperError> {
        let (wire, _) = wire::prefix::<wire::Pcie>(bytes, What::Pcie)?;
        let v = wire.validation.get();
        Ok(Self {
            port_type: valid(v, bit::PORT_TYPE, wire.port_type.get()),
            version: valid(v, bit::VERSION, (wire.version_major, wire.version_minor)),
            command: valid(v, bit::COMMAND_STATUS, wire.command.get()),
            status: valid(v, bit::COMMAND_STATUS, wire.status.get()),
            device: valid(v, bit::DEVICE_ID, PcieDevice::from_wire(&wire)),
            serial_number: valid(v, bit::SERIAL_NUMBER, wire.serial_number.get()),
            uncorrectable: valid(v, bit::AER, wire.aer_uncorrectable.get()),
            correctable: valid(v, bit::AER, wire.aer_correctable.get()),
        })
    }
}

impl PcieDevice {
    fn from_wire(wire: &wire::Pcie) -> Self {
        let [low, middle, high] = wire.class_code;
        Self {
            vendor_id: wire.vendor_id.get(),
            device_id: wire.device_id.get(),
            class_code: u32::from_le_bytes([low, middle, high, 0]),
            segment: wire.segment.get(),
            bus: wire.bus,
            secondary_bus: wire.secondary_bus,
            device: wire.device,
            function: wire.function,
            slot: wire.slot.get() >> 3,
        }
    }
}

impl fmt::Display for PcieDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{:x}",
            self.segment, self.bus, self.device, self.function
        )
    }
}

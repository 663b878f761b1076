//! Generic hardware error sources (ACPI 6.5 sections 18.3.2.7 to 18.3.2.9): where the block is, how
//! firmware notifies, how it wants to be answered.

use core::fmt;
use core::mem::size_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{AddressError, HestError, Register};
use crate::addr::Pa;
use crate::ras::cper::HEADER_SIZE as STATUS_BLOCK_HEADER_SIZE;

/// ACPI 6.5 Table 5.1, Generic Address Structure.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireAddress {
    space: u8,
    bit_width: u8,
    bit_offset: u8,
    access_size: u8,
    address: U64,
}
const _: () = assert!(size_of::<WireAddress>() == 12);

/// ACPI 6.5 18.3.2.9, Hardware Error Notification.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireNotification {
    kind: u8,
    length: u8,
    configuration_write_enable: U16,
    poll_interval: U32,
    vector: U32,
    thresholds: [u8; 16],
}
const _: () = assert!(size_of::<WireNotification>() == 28);

/// ACPI 6.5 18.3.2.7, Generic Hardware Error Source.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct WireGhes {
    kind: U16,
    pub(super) id: U16,
    related: U16,
    flags: u8,
    enabled: u8,
    records: U32,
    max_sections: U32,
    max_raw_data: U32,
    status_address: WireAddress,
    notification: WireNotification,
    block_length: U32,
}
const _: () = assert!(size_of::<WireGhes>() == 64);

/// ACPI 6.5 18.3.2.8, what Generic Hardware Error Source version 2 adds.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct WireAck {
    register: WireAddress,
    preserve: U64,
    write: U64,
}
const _: () = assert!(size_of::<WireGhes>() + size_of::<WireAck>() == 92);

/// A generic hardware error source: firmware writes a record to memory and then notifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenericSource {
    /// Identifies the source in the table.
    pub id: u16,
    /// The source whose reports this one takes over.
    pub related: Option<u16>,
    /// Whether firmware uses it.
    pub enabled: bool,
    /// Where the address of the block stands; see [`super::ghes`].
    pub status_address: Pa,
    /// The size in bytes of the largest block, at least 20.
    pub block_length: u32,
    /// How firmware notifies.
    pub notification: Notification,
    /// How to tell firmware that the record was taken; only version 2 has it.
    pub read_ack: Option<ReadAck>,
}

impl GenericSource {
    pub(super) fn decode(wire: &WireGhes, read_ack: Option<ReadAck>) -> Result<Self, HestError> {
        let id = wire.id.get();
        let bad_address = |why| HestError::BadAddress {
            id,
            register: Register::Status,
            why,
        };
        let length = wire.block_length.get();
        if usize::try_from(length).is_ok_and(|length| length < STATUS_BLOCK_HEADER_SIZE) {
            return Err(HestError::BlockTooShort { id, length });
        }
        let status = &wire.status_address;
        let status_address = status.in_memory().map_err(bad_address)?;
        if (status.bit_offset, status.bit_width) != (0, 64) {
            return Err(bad_address(status.bits_error()));
        }
        Ok(Self {
            id,
            // ACPI 6.5 18.3.2.7, "Related Source Id": 0xFFFF is "no other source".
            related: Some(wire.related.get()).filter(|&related| related != 0xffff),
            enabled: wire.enabled != 0,
            status_address,
            block_length: length,
            notification: Notification::decode(&wire.notification),
            read_ack,
        })
    }
}

impl WireAddress {
    /// The address, if it is one that a 64-bit load from system memory can read.
    fn in_memory(&self) -> Result<Pa, AddressError> {
        const SYSTEM_MEMORY: u8 = 0;
        const UNDEFINED: u8 = 0;
        const QWORD: u8 = 4;
        let address = self.address.get();
        if self.space != SYSTEM_MEMORY {
            Err(AddressError::NotMemory(self.space))
        } else if self.access_size != UNDEFINED && self.access_size != QWORD {
            Err(AddressError::AccessSize(self.access_size))
        } else if address == 0 {
            Err(AddressError::Zero)
        } else if !address.is_multiple_of(8) {
            Err(AddressError::Unaligned)
        } else {
            Ok(Pa::new(address))
        }
    }

    fn bits_error(&self) -> AddressError {
        AddressError::Bits {
            offset: self.bit_offset,
            width: self.bit_width,
        }
    }
}

/// The acknowledgement of a GHESv2: a field of a 64-bit register, some bits of which must be kept and
/// some written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadAck {
    /// Where the register is.
    pub address: Pa,
    preserve: u64,
    write: u64,
}

impl ReadAck {
    pub(super) fn decode(id: u16, wire: &WireAck) -> Result<Self, HestError> {
        let bad_address = |why| HestError::BadAddress {
            id,
            register: Register::ReadAck,
            why,
        };
        let register = &wire.register;
        let address = register.in_memory().map_err(bad_address)?;
        Self::new(
            address,
            (register.bit_offset, register.bit_width),
            wire.preserve.get(),
            wire.write.get(),
        )
        .ok_or(bad_address(register.bits_error()))
    }

    /// The register at `address`, where a field of `width` bits from bit `offset` on is
    /// acknowledged by keeping its bits in `preserve` and setting those in `write`. `None` if there is
    /// no such field in 64 bits.
    pub fn new(address: Pa, (offset, width): (u8, u8), preserve: u64, write: u64) -> Option<Self> {
        if width == 0 || u32::from(offset) + u32::from(width) > u64::BITS {
            return None;
        }
        let field = u64::MAX >> (u64::BITS - u32::from(width));
        Some(Self {
            address,
            // Bits outside the field are not ours: kept, whatever the mask says.
            preserve: ((preserve & field) << offset) | !(field << offset),
            write: (write & field) << offset,
        })
    }

    /// What to write to the register that now reads `old` (ACPI 6.5 18.3.2.8).
    pub const fn acknowledge(&self, old: u64) -> u64 {
        (old & self.preserve) | self.write
    }
}

/// How firmware makes known that there is a record (ACPI 6.5 18.3.2.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notification {
    /// Not at all: look every `interval_ms` milliseconds.
    Polled {
        /// Milliseconds.
        interval_ms: u32,
    },
    /// An interrupt, by its GSIV.
    ExternalInterrupt {
        /// The interrupt.
        gsiv: u32,
    },
    /// A local interrupt.
    LocalInterrupt,
    /// The ACPI system control interrupt.
    Sci,
    /// A non-maskable interrupt.
    Nmi,
    /// Corrected machine check interrupt.
    Cmci,
    /// Machine check exception.
    Mce,
    /// An event of the generic event device.
    Gpio,
    /// A synchronous external abort on the CPU that consumed the error.
    Sea,
    /// An SError interrupt.
    Sei,
    /// An interrupt, by its GSIV.
    Gsiv {
        /// The interrupt.
        gsiv: u32,
    },
    /// A software-delegated exception.
    Sdei {
        /// The SDEI event.
        event: u32,
    },
    /// A type that is not defined.
    Unknown(u8),
}

impl Notification {
    fn decode(wire: &WireNotification) -> Self {
        let vector = wire.vector.get();
        match wire.kind {
            0 => Self::Polled {
                interval_ms: wire.poll_interval.get(),
            },
            1 => Self::ExternalInterrupt { gsiv: vector },
            2 => Self::LocalInterrupt,
            3 => Self::Sci,
            4 => Self::Nmi,
            5 => Self::Cmci,
            6 => Self::Mce,
            7 => Self::Gpio,
            8 => Self::Sea,
            9 => Self::Sei,
            10 => Self::Gsiv { gsiv: vector },
            11 => Self::Sdei { event: vector },
            kind => Self::Unknown(kind),
        }
    }
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Polled { interval_ms } => write!(f, "polled-{interval_ms}ms"),
            Self::ExternalInterrupt { gsiv } => write!(f, "interrupt-{gsiv}"),
            Self::LocalInterrupt => f.write_str("local-interrupt"),
            Self::Sci => f.write_str("sci"),
            Self::Nmi => f.write_str("nmi"),
            Self::Cmci => f.write_str("cmci"),
            Self::Mce => f.write_str("mce"),
            Self::Gpio => f.write_str("gpio"),
            Self::Sea => f.write_str("sea"),
            Self::Sei => f.write_str("sei"),
            Self::Gsiv { gsiv } => write!(f, "gsiv-{gsiv}"),
            Self::Sdei { event } => write!(f, "sdei-{event:#x}"),
            Self::Unknown(kind) => write!(f, "unknown-{kind}"),
        }
    }
}

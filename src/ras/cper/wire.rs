//! The records as they lie in memory: unaligned, little-endian, nothing checked. Private to `cper`;
//! what leaves the module is a typed view.

use core::mem::size_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{CperError, Guid, What};

/// ACPI 6.5 18.3.2.7.1, table "Generic Error Status Block".
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct StatusBlockHeader {
    pub(super) block_status: U32,
    pub(super) raw_data_offset: U32,
    pub(super) raw_data_length: U32,
    pub(super) data_length: U32,
    pub(super) severity: U32,
}
const _: () = assert!(size_of::<StatusBlockHeader>() == 20);

/// ACPI 6.5 18.3.2.7.1, table "Generic Error Data Entry", up to where revision 3.0 adds a timestamp.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct DataEntryHeader {
    pub(super) section_type: Guid,
    pub(super) severity: U32,
    pub(super) revision: U16,
    pub(super) validation: u8,
    pub(super) flags: u8,
    pub(super) data_length: U32,
    pub(super) fru_id: Guid,
    pub(super) fru_text: [u8; 20],
}
const _: () = assert!(size_of::<DataEntryHeader>() == 64);

/// The first revision of a Generic Error Data Entry with a timestamp (ACPI 6.5 18.3.2.7.1).
pub(super) const REVISION_WITH_TIMESTAMP: u16 = 0x300;

/// What both kinds of memory section begin with, and what says which memory is bad.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct MemoryHead {
    pub(super) validation: U64,
    pub(super) error_status: U64,
    pub(super) physical_address: U64,
    pub(super) physical_address_mask: U64,
}
const _: () = assert!(size_of::<MemoryHead>() == 32);

/// UEFI 2.10 N.2.5, table "Memory Error Record", as it was before UEFI 2.3: 73 bytes. The later form
/// only adds to it.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct MemoryShort {
    pub(super) validation: U64,
    pub(super) error_status: U64,
    pub(super) physical_address: U64,
    pub(super) physical_address_mask: U64,
    pub(super) node: U16,
    pub(super) card: U16,
    pub(super) module: U16,
    pub(super) bank: U16,
    pub(super) device: U16,
    pub(super) row: U16,
    pub(super) column: U16,
    pub(super) bit_position: U16,
    pub(super) requestor_id: U64,
    pub(super) responder_id: U64,
    pub(super) target_id: U64,
    pub(super) error_type: u8,
}
const _: () = assert!(size_of::<MemoryShort>() == 73);

/// What UEFI 2.3 added to [`MemoryShort`].
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct MemoryExtension {
    pub(super) extended: u8,
    pub(super) rank: U16,
    pub(super) card_handle: U16,
    pub(super) module_handle: U16,
}
const _: () = assert!(size_of::<MemoryShort>() + size_of::<MemoryExtension>() == 80);

/// UEFI 2.10 N.2.6, table "Memory Error Record 2".
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Memory2 {
    pub(super) validation: U64,
    pub(super) error_status: U64,
    pub(super) physical_address: U64,
    pub(super) physical_address_mask: U64,
    pub(super) node: U16,
    pub(super) card: U16,
    pub(super) module: U16,
    pub(super) bank: U16,
    pub(super) device: U32,
    pub(super) row: U32,
    pub(super) column: U32,
    pub(super) rank: U32,
    pub(super) bit_position: U32,
    pub(super) chip_id: u8,
    pub(super) error_type: u8,
    pub(super) status: u8,
    pub(super) reserved: u8,
    pub(super) requestor_id: U64,
    pub(super) responder_id: U64,
    pub(super) target_id: U64,
    pub(super) card_handle: U32,
    pub(super) module_handle: U32,
}
const _: () = assert!(size_of::<Memory2>() == 96);

/// UEFI 2.10 N.2.4.4, table "ARM Processor Error Section".
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ArmProcessor {
    pub(super) validation: U32,
    pub(super) error_info_count: U16,
    pub(super) context_count: U16,
    pub(super) section_length: U32,
    pub(super) affinity_level: u8,
    pub(super) reserved: [u8; 3],
    pub(super) mpidr: U64,
    pub(super) midr: U64,
    pub(super) running_state: U32,
    pub(super) psci_state: U32,
}
const _: () = assert!(size_of::<ArmProcessor>() == 40);

/// UEFI 2.10 N.2.4.4.1, table "ARM Processor Error Information Structure".
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ArmErrorInfo {
    pub(super) version: u8,
    pub(super) length: u8,
    pub(super) validation: U16,
    pub(super) kind: u8,
    pub(super) multiple: U16,
    pub(super) flags: u8,
    pub(super) error_information: U64,
    pub(super) virtual_address: U64,
    pub(super) physical_address: U64,
}
const _: () = assert!(size_of::<ArmErrorInfo>() == 32);

/// UEFI 2.10 N.2.4.4.2, table "ARM Processor Error Context Information Header Structure"; the
/// register array follows.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ArmContext {
    pub(super) version: U16,
    pub(super) kind: U16,
    pub(super) array_size: U32,
}
const _: () = assert!(size_of::<ArmContext>() == 8);

/// UEFI 2.10 N.2.7, table "PCI Express Error Record".
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Pcie {
    pub(super) validation: U64,
    pub(super) port_type: U32,
    pub(super) version_minor: u8,
    pub(super) version_major: u8,
    pub(super) version_reserved: [u8; 2],
    pub(super) command: U16,
    pub(super) status: U16,
    pub(super) reserved: U32,
    pub(super) vendor_id: U16,
    pub(super) device_id: U16,
    pub(super) class_code: [u8; 3],
    pub(super) function: u8,
    pub(super) device: u8,
    pub(super) segment: U16,
    pub(super) bus: u8,
    pub(super) secondary_bus: u8,
    pub(super) slot: U16,
    pub(super) device_reserved: u8,
    pub(super) serial_number: U64,
    pub(super) bridge_control_status: U32,
    pub(super) capability: [u8; 60],
    /// PCIe Base Specification 7.8.4: header, then uncorrectable status, mask, severity, then
    /// correctable status.
    pub(super) aer_header: U32,
    pub(super) aer_uncorrectable: U32,
    pub(super) aer_uncorrectable_mask: U32,
    pub(super) aer_uncorrectable_severity: U32,
    pub(super) aer_correctable: U32,
    pub(super) aer_rest: [u8; 76],
}
const _: () = assert!(size_of::<Pcie>() == 208);

/// The `T` at the start of `bytes`, and what follows it. It is copied as a whole to where it is aligned: EL2 is compiled
/// for a CPU that must not access memory unaligned, where it lies each of its fields would be read byte by byte.
#[inline]
pub(super) fn prefix<T: FromBytes + IntoBytes>(
    bytes: &[u8],
    what: What,
) -> Result<(T, &[u8]), CperError> {
    let (from, rest) = bytes
        .split_at_checked(size_of::<T>())
        .ok_or(CperError::Truncated {
            what,
            need: size_of::<T>(),
            have: bytes.len(),
        })?;
    Ok((whole(from), rest))
}

/// The `T` at the start of `bytes`, or zeros where these are too few.
#[inline]
pub(super) fn whole<T: FromBytes + IntoBytes>(bytes: &[u8]) -> T {
    let mut value = T::new_zeroed();
    copy(value.as_mut_bytes(), bytes);
    value
}

/// Never inlined: a compiler that sees how long it is, and what of it is used, makes loads of single bytes of it.
#[inline(never)]
fn copy(to: &mut [u8], from: &[u8]) {
    if let Some(from) = from.get(..to.len()) {
        to.copy_from_slice(from);
    }
}

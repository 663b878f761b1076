//! Persistent memory (ACPI 6.5, 5.2.26 and 9.19): a range of the address space each, without an interface
//! to anything behind it.

use alloc::vec::Vec;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::Machine;
use super::tables::table;

/// System Physical Address Range Structure (table 5.132), without the location cookie, which its flags say
/// is not there.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Range {
    kind: U16,
    length: U16,
    index: U16,
    flags: U16,
    reserved: U32,
    proximity: U32,
    guid: [u8; 16],
    start: U64,
    size: U64,
    attributes: U64,
}
const _: () = assert!(size_of::<Range>() == 56);

/// Byte-addressable persistent memory, 66f0d379-b4f3-4074-ac43-0d3318b78cdb (table 5.133).
const PERSISTENT_MEMORY: [u8; 16] = [
    0x79, 0xd3, 0xf0, 0x66, 0xf3, 0xb4, 0x74, 0x40, 0xac, 0x43, 0x0d, 0x33, 0x18, 0xb7, 0x8c, 0xdb,
];

/// NVDIMM Firmware Interface Table; `None` where there is no persistent memory.
pub(super) fn nfit(machine: &Machine) -> Option<Vec<u8>> {
    const REVISION: u8 = 1;
    /// EFI_MEMORY_WB and EFI_MEMORY_NV.
    const ATTRIBUTES: u64 = 1 << 3 | 1 << 15;
    if machine.persistent.is_empty() {
        return None;
    }
    let mut nfit = table(*b"NFIT", REVISION);
    nfit.append_slice(&0_u32.to_le_bytes());
    for (index, range) in (1_u16..).zip(&machine.persistent) {
        let range = Range {
            kind: 0.into(),
            length: (size_of::<Range>() as u16).into(),
            index: index.into(),
            flags: 0.into(),
            reserved: 0.into(),
            proximity: 0.into(),
            guid: PERSISTENT_MEMORY,
            start: range.start().get().into(),
            size: range.size().into(),
            attributes: ATTRIBUTES.into(),
        };
        nfit.append_slice(range.as_bytes());
    }
    Some(nfit.as_slice().to_vec())
}

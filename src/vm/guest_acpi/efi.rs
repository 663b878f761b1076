//! What firmware would have left: the EFI system table and the memory map (UEFI 2.10, chapters 4 and
//! 7.2). Linux reads ACPI tables on Arm only where EFI has told it what memory is what.

use alloc::vec::Vec;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::Machine;
use super::place::Places;
use crate::addr::{Ipa, PAGE_SIZE};
use crate::vm::config::IpaRange;

/// Offsets in [`Places::efi`].
const CONFIGURATION: u64 = 0x100;
const RUNTIME_PROPERTIES: u64 = 0x180;
const VENDOR: u64 = 0x1c0;
/// Where the memory map begins.
pub(super) const MAP: u64 = 0x400;

/// Bytes of one descriptor.
pub(super) const DESCRIPTOR_SIZE: u32 = 40;
/// The descriptors' version (7.2.3, EFI_MEMORY_DESCRIPTOR_VERSION).
pub(super) const DESCRIPTOR_VERSION: u32 = 1;

/// A GUID as its fields lie in memory.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Guid(U32, U16, U16, [u8; 8]);

impl Guid {
    /// EFI_ACPI_20_TABLE_GUID (4.6).
    const fn acpi() -> Self {
        let node = [0xbc, 0x22, 0x00, 0x80, 0xc7, 0x3c, 0x88, 0x81];
        Self(
            U32::new(0x8868_e871),
            U16::new(0xe4f1),
            U16::new(0x11d3),
            node,
        )
    }

    /// EFI_RT_PROPERTIES_TABLE_GUID (4.6).
    const fn runtime_properties() -> Self {
        let node = [0x84, 0x2e, 0x93, 0x1d, 0x21, 0xc3, 0x8a, 0xe9];
        Self(
            U32::new(0xeb66_918a),
            U16::new(0x7eef),
            U16::new(0x402a),
            node,
        )
    }
}

/// EFI_SYSTEM_TABLE (4.3.1).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct SystemTable {
    signature: U64,
    revision: U32,
    header_size: U32,
    crc: U32,
    reserved: U32,
    vendor: U64,
    vendor_revision: U32,
    padding: U32,
    consoles: [U64; 6],
    runtime_services: U64,
    boot_services: U64,
    table_count: U64,
    tables: U64,
}
const _: () = assert!(size_of::<SystemTable>() == 120);

/// EFI_CONFIGURATION_TABLE (4.6).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Configuration {
    guid: Guid,
    table: U64,
}
const _: () = assert!(size_of::<Configuration>() == 24);

/// EFI_RT_PROPERTIES_TABLE (4.6.2): its version, its length, and the runtime services there are.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct RuntimeProperties {
    version: U16,
    length: U16,
    supported: U32,
}

/// EFI_MEMORY_DESCRIPTOR (7.2.3).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Descriptor {
    kind: U32,
    padding: U32,
    start: U64,
    virtual_start: U64,
    pages: U64,
    attributes: U64,
}
const _: () = assert!(size_of::<Descriptor>() == DESCRIPTOR_SIZE as usize);

/// EFI_MEMORY_TYPE (7.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    /// EfiConventionalMemory.
    Conventional = 7,
    /// EfiUnusableMemory: errors have been found in it.
    Unusable = 8,
    /// EfiACPIReclaimMemory.
    AcpiReclaim = 9,
    /// EfiACPIMemoryNVS: firmware and system both use it for good.
    AcpiNvs = 10,
}

/// EFI_MEMORY_WB.
const WRITE_BACK: u64 = 1 << 3;
/// EFI_MEMORY_SP: memory for a special purpose, not to be used as RAM.
const SPECIAL_PURPOSE: u64 = 1 << 18;

/// All of it, and how much of it is the memory map.
pub(super) struct Efi {
    pub(super) bytes: Vec<u8>,
    pub(super) map_size: u32,
}

pub(super) fn build(vm: &Machine, places: &Places, lost: &[IpaRange]) -> Efi {
    let at = |offset: u64| places.efi.start().get().wrapping_add(offset).into();
    let tables = [
        Configuration {
            guid: Guid::acpi(),
            table: places.rsdp().get().into(),
        },
        Configuration {
            guid: Guid::runtime_properties(),
            table: at(RUNTIME_PROPERTIES),
        },
    ];
    let system = SystemTable {
        signature: u64::from_le_bytes(*b"IBI SYST").into(),
        revision: (2 << 16 | 100).into(),
        header_size: (size_of::<SystemTable>() as u32).into(),
        crc: 0.into(),
        reserved: 0.into(),
        vendor: at(VENDOR),
        vendor_revision: 1.into(),
        padding: 0.into(),
        consoles: [0.into(); 6],
        runtime_services: 0.into(),
        boot_services: 0.into(),
        table_count: (tables.len() as u64).into(),
        tables: at(CONFIGURATION),
    };
    let properties = RuntimeProperties {
        version: 1.into(),
        length: (size_of::<RuntimeProperties>() as u16).into(),
        supported: 0.into(),
    };
    let vendor = "Cordon\0".encode_utf16().map(U16::new);
    let mut bytes = Vec::new();
    put(&mut bytes, 0, system.as_bytes());
    put(&mut bytes, CONFIGURATION, tables.as_bytes());
    put(&mut bytes, RUNTIME_PROPERTIES, properties.as_bytes());
    put(&mut bytes, VENDOR, vendor.collect::<Vec<_>>().as_bytes());
    let map = memory_map(vm, places, lost);
    put(&mut bytes, MAP, map.as_bytes());
    Efi {
        // One descriptor for each lost page at most, checked as part of the whole.
        map_size: u32::try_from(map.as_bytes().len()).unwrap_or(u32::MAX),
        bytes,
    }
}

/// Appends `piece` at `offset`, behind what is there.
fn put(bytes: &mut Vec<u8>, offset: u64, piece: &[u8]) {
    bytes.resize(offset as usize, 0);
    bytes.extend_from_slice(piece);
}

/// RAM, what of it is not to be used, and special-purpose memory. Ascending, without overlaps.
fn memory_map(vm: &Machine, places: &Places, lost: &[IpaRange]) -> Vec<Descriptor> {
    let mut reserved: Vec<(IpaRange, Kind)> = [
        (places.efi, Kind::AcpiReclaim),
        (places.tables, Kind::AcpiReclaim),
    ]
    .into();
    // What is described already is not described a second time: the kernel has to do without it.
    let apart = |range: &&IpaRange| !reserved.iter().any(|(other, _)| other.overlaps(**range));
    let unusable: Vec<IpaRange> = lost.iter().filter(apart).copied().collect();
    reserved.extend(unusable.into_iter().map(|range| (range, Kind::Unusable)));
    let mut map = pieces(vm.ram, WRITE_BACK, reserved.clone());
    let errors = places.errors;
    map.extend(descriptor(
        errors.start(),
        end_of(errors),
        Kind::AcpiNvs,
        WRITE_BACK,
    ));
    for special in &vm.special {
        map.extend(pieces(
            *special,
            WRITE_BACK | SPECIAL_PURPOSE,
            reserved.clone(),
        ));
    }
    crate::sort::sort_by_key(&mut map, |descriptor| descriptor.start.get());
    map
}

/// `whole` as conventional memory, but for what is `reserved` in it.
fn pieces(
    whole: IpaRange,
    attributes: u64,
    mut reserved: Vec<(IpaRange, Kind)>,
) -> Vec<Descriptor> {
    reserved.retain(|(range, _)| whole.contains_range(*range));
    crate::sort::sort_by_key(&mut reserved, |(range, _)| range.start());
    let mut pieces = Vec::with_capacity(2 * reserved.len() + 1);
    let mut at = whole.start();
    for (range, kind) in reserved {
        pieces.extend(descriptor(
            at,
            range.start(),
            Kind::Conventional,
            attributes,
        ));
        let end = end_of(range);
        pieces.extend(descriptor(at.max(range.start()), end, kind, WRITE_BACK));
        at = at.max(end);
    }
    pieces.extend(descriptor(
        at,
        end_of(whole),
        Kind::Conventional,
        attributes,
    ));
    pieces
}

/// The first address behind `range`, which ends below the IPA size.
fn end_of(range: IpaRange) -> Ipa {
    Ipa::new(range.last().get().wrapping_add(1))
}

/// `None` where there is nothing between `start` and `end`.
fn descriptor(start: Ipa, end: Ipa, kind: Kind, attributes: u64) -> Option<Descriptor> {
    let size = end
        .get()
        .checked_sub(start.get())
        .filter(|size| *size > 0)?;
    Some(Descriptor {
        kind: (kind as u32).into(),
        padding: 0.into(),
        start: start.get().into(),
        virtual_start: 0.into(),
        pages: (size / PAGE_SIZE).into(),
        attributes: attributes.into(),
    })
}

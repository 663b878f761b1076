//! The tables with a fixed form (ACPI 6.5, chapter 5.2).

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::madt::{GicVersion, Gicd, Gicr};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::{GenericAddress, Sdt};
use acpi_tables::xsdt::XSDT;
use alloc::vec::Vec;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::place::Places;
use super::{Machine, OEM_ID, OEM_REVISION, OEM_TABLE_ID, dsdt, errors, nvdimm};
use crate::addr::Ipa;
use crate::vm::config::{DISTRIBUTOR, REDISTRIBUTORS, UART, UART_INTERRUPT};
use crate::vm::guest_dt::vcpu_mpidr;
use crate::vm::vgic;

/// Bytes of every table's header.
const HEADER: u32 = 36;
/// Tables begin at multiples of this.
const ALIGN: usize = 64;

/// All tables, as they lie in memory from the start of [`Places::tables`] on.
pub(super) fn build(vm: &Machine, places: &Places) -> Vec<u8> {
    let mut area = Area::new(places.tables.start());
    area.reserve(Rsdp::len());
    let dsdt = area.put(&dsdt::build(vm));
    let mut tables = alloc::vec![
        area.put(&fadt(dsdt)),
        area.put(&madt(vm.vcpus)),
        area.put(&gtdt()),
        area.put(&spcr()),
        area.put(&errors::hest()),
        area.put(&errors::einj(places)),
    ];
    tables.extend(nvdimm::nfit(vm).map(|nfit| area.put(&nfit)));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in tables {
        xsdt.add_entry(table.get());
    }
    let xsdt = area.put(&bytes(&xsdt));
    area.fill_reserved(&bytes(&Rsdp::new(OEM_ID, xsdt.get())));
    area.bytes
}

/// An empty table.
pub(super) fn table(signature: [u8; 4], revision: u8) -> Sdt {
    Sdt::new(
        signature,
        HEADER,
        revision,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    )
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Memory that is filled with one table after the other.
struct Area {
    start: Ipa,
    bytes: Vec<u8>,
}

impl Area {
    const fn new(start: Ipa) -> Self {
        Self {
            start,
            bytes: Vec::new(),
        }
    }

    fn reserve(&mut self, size: usize) {
        self.bytes.resize(size, 0);
    }

    /// Fills what was reserved at the start.
    fn fill_reserved(&mut self, first: &[u8]) {
        for (to, from) in self.bytes.iter_mut().zip(first) {
            *to = *from;
        }
    }

    fn put(&mut self, table: &[u8]) -> Ipa {
        let offset = self.bytes.len().next_multiple_of(ALIGN);
        self.bytes.resize(offset, 0);
        self.bytes.extend_from_slice(table);
        // The area's place is below the IPA size, and its size is checked when it is complete.
        Ipa::new(self.start.get().wrapping_add(offset as u64))
    }
}

/// Fixed ACPI Description Table (5.2.9): hardware-reduced, PSCI by HVC.
fn fadt(dsdt: Ipa) -> Vec<u8> {
    /// ARM boot architecture flags (table 5.11): PSCI_COMPLIANT, PSCI_USE_HVC.
    const PSCI_BY_HVC: u16 = 0b11;
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .flag(Flags::HwReducedAcpi)
        .dsdt_64(dsdt.get());
    fadt.arm_boot_arch = PSCI_BY_HVC.into();
    bytes(&fadt.finalize())
}

/// GIC CPU interface (table 5.37), as of ACPI 6.3: the longest form that all kernels know.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Gicc {
    kind: u8,
    length: u8,
    reserved: U16,
    cpu_interface: U32,
    uid: U32,
    flags: U32,
    parking_version: U32,
    performance_interrupt: U32,
    parked_address: U64,
    base: U64,
    gicv: U64,
    gich: U64,
    maintenance_interrupt: U32,
    redistributor: U64,
    mpidr: U64,
    efficiency_class: u8,
    reserved_2: u8,
    statistical_profiling_interrupt: U16,
}
const _: () = assert!(size_of::<Gicc>() == 80);

/// Multiple APIC Description Table (5.2.12).
fn madt(vcpus: u32) -> Vec<u8> {
    const REVISION: u8 = 5;
    const GICC: u8 = 0xb;
    const ENABLED: u32 = 1;
    let mut madt = table(*b"APIC", REVISION);
    // Local interrupt controller address and flags, which Arm does not use.
    madt.append_slice(&[0; 8]);
    let (distributor, _) = DISTRIBUTOR;
    let gicd = Gicd::new(0, distributor.get(), GicVersion::GICv3);
    madt.append_slice(&bytes(&gicd));
    for index in 0..vcpus {
        let mut gicc = <Gicc as zerocopy::FromZeros>::new_zeroed();
        gicc.kind = GICC;
        gicc.length = size_of::<Gicc>() as u8;
        gicc.cpu_interface = index.into();
        gicc.uid = index.into();
        gicc.flags = ENABLED.into();
        gicc.mpidr = vcpu_mpidr(index).get().into();
        madt.append_slice(gicc.as_bytes());
    }
    let (redistributors, _) = REDISTRIBUTORS;
    let size = vgic::REDISTRIBUTOR_SIZE * u64::from(vcpus);
    let gicr = Gicr::new(
        redistributors.get(),
        u32::try_from(size).unwrap_or(u32::MAX),
    );
    madt.append_slice(&bytes(&gicr));
    madt.as_slice().to_vec()
}

/// Generic Timer Description Table (5.2.25, table 5.74), revision 3.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Gtdt {
    counter_control: U64,
    reserved: U32,
    secure_el1: [U32; 2],
    physical_el1: [U32; 2],
    virtual_el1: [U32; 2],
    el2: [U32; 2],
    counter_read: U64,
    platform_timers: U32,
    platform_timer_offset: U32,
    virtual_el2: [U32; 2],
}
const _: () = assert!(size_of::<Gtdt>() + HEADER as usize == 104);

/// The guest has neither a secure timer nor one of EL2, but Linux maps their interrupts all the same
/// and complains of number 0.
fn gtdt() -> Vec<u8> {
    const REVISION: u8 = 3;
    /// No memory-mapped counter.
    const NONE: u64 = u64::MAX;
    /// Flags (table 5.75): level-triggered, active high; bit 2: it goes on in all power states.
    const ALWAYS_ON: u32 = 1 << 2;
    const SECURE: u16 = 29;
    const EL2: u16 = 26;
    let timer = |intid: u16, flags: u32| [U32::from(u32::from(intid)), U32::from(flags)];
    let gtdt = Gtdt {
        counter_control: NONE.into(),
        reserved: 0.into(),
        secure_el1: timer(SECURE, 0),
        physical_el1: timer(vgic::PHYSICAL_TIMER, ALWAYS_ON),
        virtual_el1: timer(vgic::VIRTUAL_TIMER, ALWAYS_ON),
        el2: timer(EL2, 0),
        counter_read: NONE.into(),
        platform_timers: 0.into(),
        platform_timer_offset: 0.into(),
        virtual_el2: timer(0, 0),
    };
    let mut table = table(*b"GTDT", REVISION);
    table.append_slice(gtdt.as_bytes());
    table.as_slice().to_vec()
}

/// Serial Port Console Redirection Table, revision 2 (as published by Microsoft, "SPCR Table").
#[derive(IntoBytes, Immutable)]
#[repr(C, packed)]
struct Spcr {
    interface: u8,
    reserved: [u8; 3],
    base: Gas,
    interrupt_kind: u8,
    irq: u8,
    gsi: U32,
    baud: u8,
    parity: u8,
    stop_bits: u8,
    flow_control: u8,
    terminal: u8,
    language: u8,
    pci_device: U16,
    pci_vendor: U16,
    pci_bus: u8,
    pci_slot: u8,
    pci_function: u8,
    pci_flags: U32,
    pci_segment: u8,
    reserved_2: U32,
}
const _: () = assert!(size_of::<Spcr>() + HEADER as usize == 80);

fn spcr() -> Vec<u8> {
    const REVISION: u8 = 2;
    const PL011: u8 = 3;
    const GIC: u8 = 1 << 3;
    const NO_PCI_DEVICE: u16 = 0xffff;
    let spcr = Spcr {
        interface: PL011,
        reserved: [0; 3],
        base: Gas::u32(UART.0),
        interrupt_kind: GIC,
        irq: 0,
        gsi: u32::from(UART_INTERRUPT).into(),
        // As set by firmware, so that the kernel leaves it alone.
        baud: 0,
        parity: 0,
        stop_bits: 1,
        flow_control: 0,
        terminal: 3,
        language: 0,
        pci_device: NO_PCI_DEVICE.into(),
        pci_vendor: NO_PCI_DEVICE.into(),
        pci_bus: 0,
        pci_slot: 0,
        pci_function: 0,
        pci_flags: 0.into(),
        pci_segment: 0,
        reserved_2: 0.into(),
    };
    let mut table = table(*b"SPCR", REVISION);
    table.append_slice(spcr.as_bytes());
    table.as_slice().to_vec()
}

/// A register in memory (Generic Address Structure, 5.2.3.2).
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C, packed)]
pub(super) struct Gas {
    space: u8,
    width: u8,
    offset: u8,
    access: u8,
    address: U64,
}
const _: () = assert!(size_of::<Gas>() == 12);

impl Gas {
    /// One of 64 bits.
    pub(super) fn u64(at: Ipa) -> Self {
        GenericAddress::mmio_address::<u64>(at.get()).into()
    }

    /// One of 32 bits.
    pub(super) fn u32(at: Ipa) -> Self {
        GenericAddress::mmio_address::<u32>(at.get()).into()
    }
}

impl From<GenericAddress> for Gas {
    fn from(gas: GenericAddress) -> Self {
        Self {
            space: gas.address_space_id,
            width: gas.register_bit_width,
            offset: gas.register_bit_offset,
            access: gas.access_size,
            address: gas.address.into(),
        }
    }
}

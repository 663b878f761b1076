//! The namespace (ACPI 6.5, chapters 5.3 and 6): a processor device for each vCPU, the UART, the two
//! devices through which Linux hears of errors that nobody consumed, and what of the machine is the VM's.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, Interrupt, Memory32Fixed, Method, Name,
    Notify, Path, ResourceTemplate, Scope,
};
use alloc::format;
use alloc::vec::Vec;

use super::tables::table;
use super::{ERROR_INTERRUPT, Machine};
use crate::vm::config::{Given, UART, UART_INTERRUPT};

/// `Notify` value for an error (5.6.6, "Hardware Error Notification").
const HARDWARE_ERROR: u8 = 0x80;

/// The table with its header.
pub(super) fn build(vm: &Machine) -> Vec<u8> {
    const REVISION: u8 = 2;
    let mut body = Vec::new();
    for index in 0..vm.vcpus {
        body.extend(processor(index));
    }
    body.extend(uart());
    body.extend(error_events());
    if !vm.persistent.is_empty() {
        body.extend(nvdimm_root());
    }
    for (index, given) in (0_u32..).zip(&vm.devices) {
        body.extend(machine_device(index, given));
    }
    let mut dsdt = table(*b"DSDT", REVISION);
    dsdt.append_slice(&Scope::raw(Path::new("\\_SB_"), body));
    dsdt.as_slice().to_vec()
}

fn device(name: &str, children: Vec<&dyn Aml>) -> Vec<u8> {
    let mut bytes = Vec::new();
    Device::new(Path::new(name), children).to_aml_bytes(&mut bytes);
    bytes
}

/// 8.4: a device for each entry of the MADT, tied to it by its UID.
fn processor(index: u32) -> Vec<u8> {
    let hid = Name::new("_HID".into(), &"ACPI0007");
    let uid = Name::new("_UID".into(), &index);
    device(&format!("C{index:03X}"), [&hid as &dyn Aml, &uid].into())
}

fn uart() -> Vec<u8> {
    let (base, size) = UART;
    // Both are constants that fit.
    let registers = Memory32Fixed::new(true, base.get() as u32, size as u32);
    let interrupt = Interrupt::new(true, false, false, false, UART_INTERRUPT.into());
    let resources = ResourceTemplate::new([&registers as &dyn Aml, &interrupt].into());
    let hid = Name::new("_HID".into(), &"ARMH0011");
    let uid = Name::new("_UID".into(), &0_u8);
    let crs = Name::new("_CRS".into(), &resources);
    device("COM0", [&hid as &dyn Aml, &uid, &crs].into())
}

/// A device of the machine, at its own addresses, with the interrupts that it has for this VM. Its DMA
/// is coherent or not as the machine says (6.2.17, `_CCA`): Linux does none on Arm where nothing is said.
fn machine_device(index: u32, given: &Given) -> Vec<u8> {
    // Devices without a kind are given to nobody.
    let Some(kind) = given.kind() else {
        return Vec::new();
    };
    let registers: Vec<AddressSpace<u64>> = (given.host.registers.iter())
        .map(|range| {
            let (first, last) = (range.start().get(), range.last().get());
            AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None)
        })
        .collect();
    let interrupts: Vec<Interrupt> = (given.wires.iter())
        .zip(&given.host.interrupts)
        .map(|(wire, interrupt)| {
            Interrupt::new(true, interrupt.edge, false, false, wire.virtual_.into())
        })
        .collect();
    let registers = registers.iter().map(|it| it as &dyn Aml);
    let interrupts = interrupts.iter().map(|it| it as &dyn Aml);
    let resources = ResourceTemplate::new(registers.chain(interrupts).collect());
    let hid = Name::new("_HID".into(), &kind.acpi_name());
    let uid = Name::new("_UID".into(), &index);
    let coherent = Name::new("_CCA".into(), &u8::from(given.host.coherent));
    let crs = Name::new("_CRS".into(), &resources);
    let children = [&hid as &dyn Aml, &uid, &coherent, &crs];
    device(&format!("D{index:03X}"), children.into())
}

/// 9.19.2: the device that stands for the NFIT.
fn nvdimm_root() -> Vec<u8> {
    let hid = Name::new("_HID".into(), &"ACPI0012");
    device("NVDR", [&hid as &dyn Aml].into())
}

/// The Generic Event Device (5.6.9), whose one interrupt says that the error device (18.3.2.7.2) has
/// something to say.
fn error_events() -> Vec<u8> {
    let hid = Name::new("_HID".into(), &"ACPI0013");
    let uid = Name::new("_UID".into(), &0_u8);
    let interrupt = Interrupt::new(true, true, false, false, ERROR_INTERRUPT.into());
    let resources = ResourceTemplate::new([&interrupt as &dyn Aml].into());
    let crs = Name::new("_CRS".into(), &resources);
    let target = Path::new("\\_SB_.ERRD");
    let notify = Notify::new(&target, &HARDWARE_ERROR);
    let event = Method::new("_EVT".into(), 1, true, [&notify as &dyn Aml].into());
    let mut both = device("GED_", [&hid as &dyn Aml, &uid, &crs, &event].into());

    let hid = EISAName::new("PNP0C33");
    let hid = Name::new("_HID".into(), &hid);
    both.extend(device("ERRD", [&hid as &dyn Aml, &uid].into()));
    both
}

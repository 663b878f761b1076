use super::super::tests::{LIMITS, Node, Tree, read as read_bundle};
use super::*;
use crate::platform::fdt::CheckedFdt;
use crate::platform::machine::HostInterrupt;
use alloc::format;
use alloc::string::ToString;
use std::vec;

const SLOT: u64 = 0x0a00_0000;

fn range(start: u64, size: u64) -> PaRange {
    PaRange::new(Pa::new(start), size).unwrap()
}

/// Four transports in a page, two in the next, a real-time clock beside the last of them, and a UART.
fn machine() -> Machine {
    let transport = |number: u64| {
        let start = SLOT + 0x200 * number;
        HostDevice {
            path: format!("/virtio_mmio@{start:x}"),
            compatible: vec!["virtio,mmio".to_string()],
            registers: vec![range(start, 0x200)],
            interrupts: vec![HostInterrupt {
                intid: 48 + number as u16,
                edge: true,
            }],
            coherent: true,
        }
    };
    let mut devices: Vec<HostDevice> = [0, 1, 2, 3, 8, 16].map(transport).into();
    devices.push(HostDevice {
        path: "/rtc@a002800".to_string(),
        compatible: vec!["arm,pl031".to_string()],
        registers: vec![range(SLOT + 0x2800, 0x1000)],
        interrupts: Vec::new(),
        coherent: false,
    });
    Machine {
        ram: vec![range(0x4000_0000, 1 << 30)],
        uart: Some(range(0x0900_0000, 0x1000)),
        uart_interrupt: Some(33),
        devices,
        ..Machine::default()
    }
}

/// The description of a VM with these devices.
fn tree(devices: &[(&'static str, u64)]) -> Tree {
    let mut tree = Tree::full();
    let vm = tree.vm();
    vm.properties.retain(|(name, _)| *name != "ram-base");
    vm.set("identity", b"");
    let names = ["device@0", "device@1", "device@2"];
    for (name, (compatible, address)) in names.into_iter().zip(devices) {
        let compatible = format!("{compatible}\0");
        let properties: [(&str, &[u8]); 3] = [
            ("compatible", compatible.as_bytes()),
            ("address", &address.to_be_bytes()),
            ("dma", b"unconfined\0"),
        ];
        vm.children.push(Node::new(name, &properties));
    }
    tree
}

fn refused(change: impl FnOnce(&mut Tree)) -> ConfigError {
    let mut tree = tree(&[("virtio,mmio", SLOT)]);
    change(&mut tree);
    read_bundle(&tree.bundle()).unwrap_err()
}

/// What a VM with these devices gets, its RAM being at `ram`.
fn give_at(ram: u64, asked: &[(&'static str, u64)]) -> Result<Grant, ConfigError> {
    let (bundle, machine) = (tree(asked).bundle(), machine());
    let mut vm = read_bundle(&bundle).unwrap().remove(0);
    vm.place_ram(range(ram, vm.ram.size()), LIMITS)?;
    Devices::new(&machine, LIMITS).give(&vm)
}

fn why(asked: &[(&'static str, u64)]) -> Why {
    give_at(0x4800_0000, asked).unwrap_err().why
}

#[test]
fn a_device_needs_the_word_and_a_vm_whose_addresses_are_the_machines() {
    let error = refused(|tree| tree.vm().children[1].set("dma", b"confined\0"));
    assert_eq!(
        (error.node.as_str(), error.why),
        ("/vm@0/device@0", Why::DmaNotAllowed)
    );
    let error = refused(|tree| tree.vm().children[1].properties.truncate(2));
    assert_eq!(
        error.to_string(),
        "why=dma-not-allowed vm=probe node=/vm@0/device@0 property=dma"
    );
    let error = refused(|tree| {
        tree.vm().properties.retain(|(name, _)| *name != "identity");
        tree.set("ram-base", &0x4000_0000_u64.to_be_bytes());
    });
    assert_eq!(error.why, Why::NeedsIdentity);
    let error = refused(|tree| tree.set("ram-base", &0x4000_0000_u64.to_be_bytes()));
    assert_eq!(
        (error.property.as_deref(), error.why),
        (Some("ram-base"), Why::Unknown)
    );
    let error = refused(|tree| tree.set("identity", &[0; 4]));
    assert_eq!(error.why, Why::BadValue);
    let error = refused(|tree| tree.vm().children[1].set("interrupt", b"7\0"));
    assert_eq!(error.why, Why::Unknown);
}

#[test]
fn identity_moves_everything_to_where_ram_is() {
    let bundle = tree(&[]).bundle();
    let mut vm = read_bundle(&bundle).unwrap().remove(0);
    let size = vm.ram.size();
    vm.place_ram(range(0x1_4800_0000, size), LIMITS).unwrap();
    assert_eq!(
        vm.ram,
        IpaRange::new(Ipa::new(0x1_4800_0000), size).unwrap()
    );
    assert_eq!(vm.layout.kernel.start(), Ipa::new(0x1_4808_0000));
    assert!(vm.ram.contains_range(vm.layout.dtb) && vm.ram.contains_range(vm.layout.kernel));
    assert!(
        vm.layout
            .initrd
            .is_some_and(|initrd| vm.ram.contains_range(initrd))
    );
    for (start, expected) in [
        (0x10_0020_0000, "why=overlap with=device-memory"),
        (0x0800_0000, "why=overlap with=gicd"),
        (0xff_fe00_0000, "why=beyond-ipa bits=40"),
    ] {
        let error = vm.place_ram(range(start, size), LIMITS).unwrap_err();
        assert_eq!(error.why.to_string(), expected);
    }
}

#[test]
fn what_is_given_is_mapped_by_pages_wired_and_put_to_rest_whole() {
    let asked = [
        ("virtio,mmio", SLOT + 0x200),
        ("virtio,mmio", SLOT + 0x1000),
    ];
    let grant = give_at(0x4800_0000, &asked).unwrap();
    assert_eq!(
        grant.pages,
        [range(SLOT, 0x1000), range(SLOT + 0x1000, 0x1000)]
    );
    let wires: Vec<Wire> = grant
        .devices
        .iter()
        .flat_map(|it| it.wires.clone())
        .collect();
    let expected = [(48, 49), (49, 56)].map(|(virtual_, physical)| Wire { virtual_, physical });
    assert_eq!(wires, expected);
    // All that its pages hold is the VM's to drive, so all of it is reset.
    assert_eq!(grant.all.len(), 5);
}

#[test]
fn what_cannot_be_had_is_refused_by_name() {
    let uart = Why::DeviceInUse { by: "uart" };
    assert_eq!(why(&[("arm,pl011", 0x0900_0000)]), uart);
    assert_eq!(
        why(&[("virtio,mmio", 0x4000_0000)]),
        Why::DeviceInUse { by: "ram" }
    );
    assert_eq!(why(&[("virtio,mmio", SLOT + 0x100)]), Why::NoSuchDevice);
    assert_eq!(why(&[("virtio,pci", SLOT)]), Why::NoSuchDevice);
    assert_eq!(why(&[("arm,pl031", SLOT + 0x2800)]), Why::UnsupportedDevice);
    let with = "/rtc@a002800".to_string();
    assert_eq!(
        why(&[("virtio,mmio", SLOT + 0x2000)]),
        Why::PageShared { with }
    );
    let twice = [("virtio,mmio", SLOT), ("virtio,mmio", SLOT)];
    assert_eq!(why(&twice), Why::InterruptTaken { intid: 48 });
    let error = give_at(SLOT & !0x1f_ffff, &[("virtio,mmio", SLOT)]).unwrap_err();
    assert_eq!(error.why.to_string(), "why=overlap with=ram");
}

#[test]
fn a_page_is_one_vms() {
    let (bundle, machine) = (tree(&[("virtio,mmio", SLOT)]).bundle(), machine());
    let mut first = read_bundle(&bundle).unwrap().remove(0);
    first
        .place_ram(range(0x4800_0000, first.ram.size()), LIMITS)
        .unwrap();
    let second_bundle = tree(&[("virtio,mmio", SLOT + 0x200)]).bundle();
    let mut second = read_bundle(&second_bundle).unwrap().remove(0);
    second
        .place_ram(range(0x5000_0000, second.ram.size()), LIMITS)
        .unwrap();
    second.label = "other";
    let mut devices = Devices::new(&machine, LIMITS);
    devices.give(&first).unwrap();
    let error = devices.give(&second).unwrap_err();
    assert_eq!(
        error.why,
        Why::PageTaken {
            vm: "probe".to_string()
        }
    );
}

#[test]
fn a_device_whose_interrupt_cannot_be_forwarded_is_not_given() {
    let bundle = tree(&[("virtio,mmio", SLOT)]).bundle();
    let mut vm = read_bundle(&bundle).unwrap().remove(0);
    vm.place_ram(range(0x4800_0000, vm.ram.size()), LIMITS)
        .unwrap();
    let mut machine = machine();
    machine.devices[0].interrupts[0].intid = 33;
    let error = Devices::new(&machine, LIMITS).give(&vm).unwrap_err();
    assert_eq!(error.why, Why::InterruptTaken { intid: 33 });
    machine.devices[0].interrupts.clear();
    let error = Devices::new(&machine, LIMITS).give(&vm).unwrap_err();
    assert_eq!(error.why, Why::NoInterrupt);
    let many = (0..81).map(|n| HostInterrupt {
        intid: 200 + n,
        edge: false,
    });
    machine.devices[0].interrupts = many.collect();
    let error = Devices::new(&machine, LIMITS).give(&vm).unwrap_err();
    assert_eq!(error.why, Why::TooMany { max: 80 });
}

#[test]
fn the_guest_finds_its_device_where_the_machine_has_it() {
    let bundle = tree(&[("virtio,mmio", SLOT + 0x1000)]).bundle();
    let machine = machine();
    let mut vm = read_bundle(&bundle).unwrap().remove(0);
    vm.place_ram(range(0x4800_0000, vm.ram.size()), LIMITS)
        .unwrap();
    let grant = Devices::new(&machine, LIMITS).give(&vm).unwrap();
    let surroundings = crate::vm::guest_dt::Surroundings {
        devices: &grant.devices,
        caches: &[],
    };
    let blob = crate::vm::guest_dt::build(&vm, surroundings).unwrap();
    let fdt = CheckedFdt::new(&blob).unwrap();
    let guest = Machine::from_fdt(&fdt, Pa::new(vm.layout.dtb.start().get())).unwrap();
    assert_eq!(guest.ram, [range(0x4800_0000, vm.ram.size())]);
    let device = guest.device_at(Pa::new(SLOT + 0x1000)).unwrap();
    let expected = HostDevice {
        interrupts: vec![HostInterrupt {
            intid: 48,
            edge: true,
        }],
        ..grant.devices[0].host.clone()
    };
    assert_eq!(*device, expected);
}

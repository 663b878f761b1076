//! The walk over QEMU's own table, over tables with everything in them, and over broken ones.

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::addr::PaRange;
use crate::platform::machine::PciWindow;

/// The DSDT of QEMU 11.1.3's `virt` with `ras=on`.
const QEMU: &[u8] = include_bytes!("../testdata/qemu-virt-dsdt.bin");

fn table(terms: &[u8]) -> Vec<u8> {
    let mut table = b"DSDT".to_vec();
    table.resize(HEADER_SIZE, 0);
    table.extend(terms);
    table
}

/// `terms` in a package with a length of two bytes.
fn package(terms: &[u8]) -> Vec<u8> {
    let length = u16::try_from(terms.len() + 2).unwrap();
    let mut package = Vec::new();
    package.push(0x40 | u8::try_from(length & 0xf).unwrap());
    package.push(u8::try_from(length >> 4).unwrap());
    package.extend(terms);
    package
}

fn device(terms: &[u8]) -> Vec<u8> {
    [&[0x5b, 0x82][..], &package(&[b"GED_", terms].concat())].concat()
}

const HID: &[u8] = b"\x08_HID\x0dACPI0013\0";
/// Interrupt 41, level-sensitive.
const CRS: &[u8] = b"\x08_CRS\x11\x0e\x0a\x0b\x89\x06\x00\x01\x01\x29\0\0\0\x79\0";
const REGION: &[u8] = b"\x5b\x80EREG\0\x0c\0\0\x08\x09\x0a\x04";

fn found(terms: &[u8]) -> Found {
    find_event_device(&table(terms))
}

#[test]
fn qemus_own_device_is_found_with_its_edge_triggered_interrupt_and_register() {
    let found = find_event_device(QEMU);
    let device = EventDevice {
        interrupt: 41,
        edge: true,
        selector: Some(Pa::new(0x0908_0000)),
    };
    assert_eq!(found.device, Some(device));
    assert_eq!(found.incomplete, None);
}

#[test]
fn qemus_own_host_bridge_forwards_what_its_device_tree_says() {
    let window = |cpu, size| {
        let cpu = PaRange::new(Pa::new(cpu), size).unwrap();
        Some(PciWindow {
            cpu,
            pci: cpu.start().get(),
        })
    };
    let windows = find_pci_windows(QEMU);
    assert_eq!(windows.window32, window(0x1000_0000, 0x2eff_0000));
    assert_eq!(windows.window64, window(0x80_0000_0000, 0x80_0000_0000));
}

/// Granularity, first, last, offset and length, as a DWORD or QWORD descriptor of memory has them.
fn address_space(tag: u8, numbers: [u64; 5]) -> Vec<u8> {
    let size = if tag == 0x87 { 4 } else { 8 };
    let numbers = numbers
        .iter()
        .flat_map(|number| number.to_le_bytes()[..size].to_vec());
    let body: Vec<u8> = [0, 0x0c, 0x03].into_iter().chain(numbers).collect();
    [&[tag, body.len() as u8, 0][..], &body].concat()
}

#[test]
fn windows_are_the_first_whole_ones_of_their_kind_on_the_bus() {
    let template = [
        // I/O, a bus number, memory whose length is another, or wraps: none of Cordon's.
        [&[0x87, 23, 0, 1][..], &[0; 22]].concat(),
        address_space(0x8a, [0, 0x1000, 0x1fff, 0, 0x2000]),
        address_space(0x8a, [0, u64::MAX - 0xfff, u64::MAX, 0x1000, 0x1000]),
        // A QWORD may describe what is low, and the CPU may see it elsewhere.
        address_space(
            0x8a,
            [0, 0x8000_0000, 0x8fff_ffff, 0x10_0000_0000, 0x1000_0000],
        ),
        address_space(0x87, [0, 0x4000_0000, 0x4fff_ffff, 0, 0x1000_0000]),
        address_space(0x8a, [0, 0x1_0000_0000, 0x1_ffff_ffff, 0, 0x1_0000_0000]),
        vec![0x79, 0],
    ];
    let found = resources::windows(&template.concat());
    let window = |cpu, size, pci| {
        let cpu = PaRange::new(Pa::new(cpu), size).unwrap();
        Some(PciWindow { cpu, pci })
    };
    assert_eq!(
        found.window32,
        window(0x10_8000_0000, 0x1000_0000, 0x8000_0000)
    );
    assert_eq!(
        found.window64,
        window(0x1_0000_0000, 0x1_0000_0000, 0x1_0000_0000)
    );
}

#[test]
fn all_declarations_are_stepped_over_on_the_way() {
    let scope = [
        &[0x10][..],
        &package(&[&b"\\_SB_"[..], &device(&[HID, CRS].concat())].concat()),
    ];
    let terms = [
        b"\x06AAAABBBB".to_vec(),
        b"\x15\\/\x03AAAABBBBCCCC\x06\x00".to_vec(),
        b"\x08^NUM0\x0e\x01\x02\x03\x04\x05\x06\x07\x08".to_vec(),
        b"\x08PKG0\x12\x05\x02\x0a\x01\x01".to_vec(),
        b"\x5b\x01MTX0\x00\x5b\x02EVT0".to_vec(),
        [b"\x14".to_vec(), package(b"METH\x00\xde\xad")].concat(),
        [b"\xa0".to_vec(), package(b"\xde\xad\xbe\xef")].concat(),
        [b"\x5b\x81".to_vec(), package(b"EREG\x13ESEL\x20")].concat(),
        scope.concat(),
    ];
    let found = found(&terms.concat());
    let device = EventDevice {
        interrupt: 41,
        edge: false,
        selector: None,
    };
    assert_eq!((found.device, found.incomplete), (Some(device), None));
}

#[test]
fn a_device_with_another_name_or_without_an_interrupt_is_none() {
    let other = device(&[b"\x08_HID\x0dACPI0007\0", CRS].concat());
    assert_eq!(found(&other), Found::default());
    assert_eq!(found(&device(HID)), Found::default());
    let no_interrupt = b"\x08_CRS\x11\x05\x0a\x02\x79\0";
    assert_eq!(
        found(&device(&[HID, no_interrupt].concat())),
        Found::default()
    );
    // A neighbour's resources are not its own.
    let apart = [device(HID), device(CRS)].concat();
    assert_eq!(found(&apart), Found::default());
}

#[test]
fn only_a_register_in_memory_is_one() {
    let selector = |region: &[u8]| {
        let device = found(&device(&[HID, CRS, region].concat())).device;
        device.unwrap().selector
    };
    assert_eq!(selector(REGION), Some(Pa::new(0x0908_0000)));
    let with = |at: usize, byte: u8| {
        let mut region = REGION.to_vec();
        region[at] = byte;
        region
    };
    assert_eq!(selector(&with(6, 1)), None, "I/O space");
    assert_eq!(selector(&with(8, 2)), None, "unaligned");
    assert_eq!(selector(&with(13, 3)), None, "too short");
}

#[test]
fn what_is_broken_ends_its_scope_and_is_named() {
    let broken = [&[0x10][..], &package(b"\\_SB_\xde\xad")].concat();
    let terms = [broken, device(&[HID, CRS].concat())].concat();
    let found_ = found(&terms);
    assert!(found_.device.is_some());
    assert_eq!(found_.incomplete, Some(AmlError::UnknownTerm(0xde)));
    assert_eq!(found(b"\x10\x3f_SB_").incomplete, Some(AmlError::Truncated));
    assert_eq!(found(b"\x10\x00").incomplete, Some(AmlError::Truncated));
    assert_eq!(
        find_event_device(b"SSDT").incomplete,
        Some(AmlError::NotDsdt)
    );
}

#[test]
fn nesting_is_followed_as_deep_as_is_good() {
    let nested = |depth: u32| {
        let inner = device(&[HID, CRS].concat());
        (0..depth).fold(inner, |inner, _| {
            [&[0x10][..], &package(&[b"SCOP", &inner[..]].concat())].concat()
        })
    };
    assert!(found(&nested(MAX_DEPTH - 1)).device.is_some());
    let too_deep = found(&nested(MAX_DEPTH + 1));
    assert_eq!(
        (too_deep.device, too_deep.incomplete),
        (None, Some(AmlError::TooDeep))
    );
}

#[test]
fn only_an_error_alone_goes_without_saying() {
    assert!(!PlatformEvents::new(0).has_unknown());
    assert!(!PlatformEvents::new(0x20).has_unknown());
    assert!(PlatformEvents::new(0x22).has_unknown());
    let shown = std::string::ToString::to_string(&PlatformEvents::new(0x22));
    assert_eq!(shown, "selector=0x22 power_button=yes error=yes");
}

proptest! {
    #[test]
    fn no_bytes_bring_it_down(terms in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = found(&terms);
    }

    #[test]
    fn nor_does_any_change_to_a_good_table(at in 36usize..QEMU.len(), byte: u8) {
        let mut table = QEMU.to_vec();
        table[at] = byte;
        let _ = find_event_device(&table);
    }
}

use super::*;
use crate::addr::{Ipa, PAGE_SIZE, Pa, PaRange};
use crate::platform::acpi::{CheckedTables, PhysicalBytes};
use crate::platform::dt;
use crate::platform::fdt::CheckedFdt;
use crate::platform::machine::{HostDevice, HostInterrupt};
use crate::ras::hest::{Hest, Notification, Source};
use crate::vm::bad_memory;
use crate::vm::config::ERROR_DEVICE;
use crate::vm::config::tests::{Tree, read};
use crate::vm::vgic::Wire;
use proptest::prelude::*;

/// The guest's RAM as the files leave it.
struct Ram(Vec<Image>);

impl Ram {
    fn bytes(&self, at: u64, size: usize) -> &[u8] {
        let image = self.0.iter().find(|image| {
            let place = image.place;
            (place.start().get()..=place.last().get()).contains(&at)
        });
        let image = image.expect("a file is there");
        let Contents::Bytes(bytes) = &image.contents else {
            unreachable!("generated files are bytes");
        };
        let offset = (at - image.place.start().get()) as usize;
        &bytes[offset..offset + size]
    }

    fn u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes(at, 8).try_into().unwrap())
    }

    fn u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.bytes(at, 4).try_into().unwrap())
    }

    /// The table with this signature that the XSDT lists.
    fn table(&self, rsdp: u64, signature: &[u8; 4]) -> &[u8] {
        let xsdt = self.u64(rsdp + 24);
        let size = u64::from(self.u32(xsdt + 4));
        let mut entries = (36..size).step_by(8).map(|offset| self.u64(xsdt + offset));
        let table = entries.find(|at| self.bytes(*at, 4) == signature).unwrap();
        self.bytes(table, self.u32(table + 4) as usize)
    }
}

impl PhysicalBytes for Ram {
    fn bytes(&self, start: Pa, len: usize) -> Option<&[u8]> {
        Some(Ram::bytes(self, start.get(), len))
    }
}

fn described(vcpus: u32, lost: &[IpaRange]) -> Ram {
    let mut tree = Tree::full();
    tree.set("vcpus", &vcpus.to_be_bytes());
    let bundle = tree.bundle();
    let machine = Machine::new(&read(&bundle).unwrap()[0], &[]);
    let lost = bad_memory::runs(lost.iter().copied());
    Ram(machine.describe(&lost).unwrap().into())
}

fn chosen(ram: &Ram) -> Vec<u8> {
    match &ram.0[0].contents {
        Contents::Bytes(bytes) => bytes.clone(),
        Contents::Memory(_) => unreachable!("the stub is generated"),
    }
}

/// As a kernel finds it: from the stub tree to the system table, to the RSDP.
fn rsdp(ram: &Ram) -> u64 {
    let stub = chosen(ram);
    let fdt = CheckedFdt::new(&stub).unwrap();
    let chosen = dt::child(fdt.root().unwrap(), "chosen").unwrap();
    let efi = dt::value(chosen, "linux,uefi-system-table").unwrap();
    let efi = u64::from_be_bytes(efi.try_into().unwrap());
    assert_eq!(ram.bytes(efi, 8), b"IBI SYST");
    let (count, tables) = (ram.u64(efi + 104), ram.u64(efi + 112));
    let acpi: [u8; 16] = [
        0x71, 0xe8, 0x68, 0x88, 0xf1, 0xe4, 0xd3, 0x11, 0xbc, 0x22, 0x00, 0x80, 0xc7, 0x3c, 0x88,
        0x81,
    ];
    let mut entries = (0..count).map(|index| tables + 24 * index);
    let entry = entries.find(|at| ram.bytes(*at, 16) == acpi).unwrap();
    ram.u64(entry + 16)
}

#[test]
fn a_kernel_finds_tables_that_are_whole() {
    let ram = described(3, &[]);
    let rsdp = rsdp(&ram);
    // Checks every table's checksum and length, from the RSDP on.
    let tables = CheckedTables::new(&ram, Pa::new(rsdp)).unwrap();
    assert_eq!(tables.len(), 6);
    let dsdt = {
        let fadt = ram.table(rsdp, b"FACP");
        u64::from_le_bytes(fadt[140..148].try_into().unwrap())
    };
    let size = ram.u32(dsdt + 4) as usize;
    let sum = ram
        .bytes(dsdt, size)
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    assert_eq!((ram.bytes(dsdt, 4), sum), (&b"DSDT"[..], 0));
    // Hardware-reduced, PSCI by HVC.
    let fadt = ram.table(rsdp, b"FACP");
    assert_eq!(fadt[112..116], (1_u32 << 20).to_le_bytes());
    assert_eq!(fadt[129..131], [3, 0]);
}

#[test]
fn every_vcpu_has_its_entry_and_its_device() {
    let ram = described(18, &[]);
    let rsdp = rsdp(&ram);
    let madt = ram.table(rsdp, b"APIC");
    let mut at = 44;
    let mut mpidrs = Vec::new();
    let mut kinds = Vec::new();
    while at < madt.len() {
        let (kind, length) = (madt[at], usize::from(madt[at + 1]));
        if kind == 0xb {
            mpidrs.push(u64::from_le_bytes(
                madt[at + 68..at + 76].try_into().unwrap(),
            ));
        }
        kinds.push(kind);
        at += length;
    }
    assert_eq!(at, madt.len());
    assert_eq!(mpidrs[..2], [0, 1]);
    assert_eq!(mpidrs[15..], [15, 0x100, 0x101]);
    assert_eq!((kinds[0], kinds.last()), (0xc, Some(&0xe)));
    let fadt = ram.table(rsdp, b"FACP");
    let dsdt = u64::from_le_bytes(fadt[140..148].try_into().unwrap());
    let dsdt = ram.bytes(dsdt, ram.u32(dsdt + 4) as usize);
    let devices = dsdt
        .windows(8)
        .filter(|window| *window == b"ACPI0007")
        .count();
    assert_eq!(devices, 18);
}

#[test]
fn our_own_reader_finds_both_error_sources() {
    let ram = described(2, &[]);
    let hest = Hest::parse(ram.table(rsdp(&ram), b"HEST")).unwrap();
    let sources: Vec<_> = hest.sources().map(Result::unwrap).collect();
    let [Source::Generic(consumed), Source::Generic(found)] = &sources[..] else {
        unreachable!("two generic sources, not {sources:?}");
    };
    assert_eq!((consumed.id, found.id), (0, 1));
    assert!(matches!(consumed.notification, Notification::Sea));
    assert!(consumed.enabled && found.enabled);
    let (base, size) = ERROR_DEVICE;
    for source in [consumed, found] {
        let inside = |at: Pa| (base.get()..base.get() + size).contains(&at.get());
        assert!(inside(source.status_address));
        assert!(inside(source.read_ack.unwrap().address));
    }
    assert_ne!(consumed.status_address, found.status_address);
}

/// The EFI memory map: type, first and last address.
fn memory_map(ram: &Ram) -> Vec<(u32, u64, u64)> {
    let stub = chosen(ram);
    let fdt = CheckedFdt::new(&stub).unwrap();
    let chosen = dt::child(fdt.root().unwrap(), "chosen").unwrap();
    let number = |name| dt::value(chosen, name).unwrap();
    let start = u64::from_be_bytes(number("linux,uefi-mmap-start").try_into().unwrap());
    let size = u32::from_be_bytes(number("linux,uefi-mmap-size").try_into().unwrap());
    (0..u64::from(size) / 40)
        .map(|index| start + 40 * index)
        .map(|at| {
            let (first, pages) = (ram.u64(at + 8), ram.u64(at + 24));
            (ram.u32(at), first, first + pages * PAGE_SIZE - 1)
        })
        .collect()
}

const RAM: (u64, u64) = (0x4000_0000, 0x4400_0000);

proptest! {
    #[test]
    fn the_memory_map_is_all_of_ram_and_what_is_lost_is_never_usable(
        // Not in the last 1.5 MiB, so that there is always room for the description.
        pages in proptest::collection::vec(0_u64..0x3e80, 0..40),
    ) {
        let lost: Vec<IpaRange> = pages
            .iter()
            .map(|page| IpaRange::new(Ipa::new(RAM.0 + page * PAGE_SIZE), PAGE_SIZE).unwrap())
            .collect();
        let ram = described(1, &lost);
        let map = memory_map(&ram);
        let inside: Vec<_> = map.iter().filter(|piece| (RAM.0..RAM.1).contains(&piece.1)).collect();
        let mut next = RAM.0;
        for (_, first, last) in &inside {
            prop_assert_eq!(*first, next);
            next = last + 1;
        }
        prop_assert_eq!(next, RAM.1);
        for page in &lost {
            let at = page.start().get();
            let piece = inside.iter().find(|piece| (piece.1..=piece.2).contains(&at)).unwrap();
            prop_assert_ne!(piece.0, efi::Kind::Conventional as u32);
        }
    }
}

#[test]
fn the_description_keeps_off_what_is_lost() {
    let usual = described(1, &[]);
    let lost: Vec<IpaRange> = (usual.0.iter())
        .map(|image| IpaRange::new(image.place.start(), PAGE_SIZE).unwrap())
        .collect();
    let moved = described(1, &lost);
    for (image, lost) in moved.0.iter().zip(&lost) {
        assert!(!image.place.overlaps(*lost));
    }
    assert_eq!(
        CheckedTables::new(&moved, Pa::new(rsdp(&moved)))
            .unwrap()
            .len(),
        6
    );
    // Nothing is left of the place where it goes.
    let (start, _) = (usual.0[0].place.start(), ());
    let all = IpaRange::new(start, 2 << 20).unwrap();
    let bundle = Tree::full().bundle();
    let machine = Machine::new(&read(&bundle).unwrap()[0], &[]);
    assert_eq!(
        machine.describe(&[all]).unwrap_err(),
        GuestAcpiError::NoMemory
    );
}

/// As ACPI 6.5 has the descriptors (6.4.3.5.1, QWord Address Space; 6.4.3.6, Extended Interrupt).
#[test]
fn a_device_of_the_machine_is_where_it_is_with_the_interrupt_that_it_has_here() {
    let (start, size) = (0x80_0a00_0600_u64, 0x200);
    let given = |coherent, edge| Given {
        host: HostDevice {
            path: "/virtio_mmio@800a000600".into(),
            compatible: ["virtio,mmio".into()].into(),
            registers: [PaRange::new(Pa::new(start), size).unwrap()].into(),
            interrupts: [HostInterrupt { intid: 51, edge }].into(),
            coherent,
        },
        wires: [Wire {
            virtual_: 48,
            physical: 51,
        }]
        .into(),
    };
    let bundle = Tree::full().bundle();
    let vm = &read(&bundle).unwrap()[0];
    let machine = Machine::new(vm, &[given(true, true), given(false, false)]);
    let ram = Ram(machine.describe(&[]).unwrap().into());
    let fadt = ram.table(rsdp(&ram), b"FACP");
    let dsdt = u64::from_le_bytes(fadt[140..148].try_into().unwrap());
    let dsdt = ram.bytes(dsdt, ram.u32(dsdt + 4) as usize);
    let count = |piece: &[u8]| dsdt.windows(piece.len()).filter(|it| *it == piece).count();

    let mut memory: Vec<u8> = [0x8a, 43, 0, 0, 0xc, 1].into();
    for field in [0, start, start + size - 1, 0, size] {
        memory.extend(field.to_le_bytes());
    }
    assert_eq!(count(&memory), 2);
    for (name, coherent, flags) in [("D000", 1, 3), ("D001", 0, 1)] {
        assert_eq!(count(name.as_bytes()), 1);
        // Name (_CCA, One) or Name (_CCA, Zero).
        assert_eq!(count(&[b"\x08_CCA", &[coherent][..]].concat()), 1);
        let interrupt = [0x89, 6, 0, flags, 1, 48, 0, 0, 0];
        assert_eq!(count(&interrupt), 1);
    }
    assert_eq!(count(b"\x08_HID\x0dLNRO0005\0"), 2);
}

#[test]
fn a_description_that_does_not_fit_is_refused() {
    let bundle = Tree::full().bundle();
    let mut vm = read(&bundle).unwrap()[0].clone();
    let long = "x".repeat(2 << 20);
    vm.bootargs = Some(&long);
    assert!(matches!(
        Machine::new(&vm, &[]).describe(&[]),
        Err(GuestAcpiError::TooBig { what: "dtb", .. })
    ));
}

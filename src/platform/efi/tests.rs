//! A firmware that does what it should, and one that does not.

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

use super::*;
use crate::platform::{damage, fuzz_config};

/// A firmware that plays a part.
#[derive(Default)]
struct Fake {
    initrd: Option<u64>,
    /// Files on the volume, and what they say of their length.
    files: Vec<(&'static str, u64)>,
    /// How much of a file comes in one read, and what is there of it at all.
    piece: u64,
    there: u64,
    /// Keys that will be stale.
    stale: usize,
    /// The map grows by so many bytes each time.
    grows: u64,
    refuses: Option<Status>,
    allocated: u64,
    maps: usize,
    keys: Vec<usize>,
    /// Calls that a firmware whose boot services are ending does not serve any more.
    late: usize,
}

const MAP: u64 = 4800;

struct FakeFile {
    size: u64,
    piece: u64,
    left: u64,
}

impl File for FakeFile {
    fn size(&mut self) -> Result<u64, Status> {
        Ok(self.size)
    }

    fn read(&mut self, to: PaRange) -> Result<u64, Status> {
        let read = self.left.min(self.piece).min(to.size());
        self.left -= read;
        Ok(read)
    }
}

impl Firmware for Fake {
    type File = FakeFile;

    fn initrd(&mut self) -> Result<Option<u64>, Status> {
        Ok(self.initrd)
    }

    fn load_initrd(&mut self, to: PaRange) -> Result<(), Status> {
        assert_eq!(Some(to.size()), self.initrd);
        Ok(())
    }

    fn open(&mut self, path: &str) -> Result<Option<FakeFile>, Status> {
        let found = self.files.iter().find(|(name, _)| *name == path);
        Ok(found.map(|(_, size)| FakeFile {
            size: *size,
            piece: self.piece,
            left: self.there.min(*size),
        }))
    }

    fn allocate(&mut self, pages: u64) -> Result<PaRange, Status> {
        if !self.keys.is_empty() {
            self.late += 1;
        }
        let start = 0x1000_0000 + self.allocated * PAGE;
        self.allocated += pages;
        if pages > 1 << 22 {
            return Err(Status::OUT_OF_RESOURCES);
        }
        PaRange::new(Pa::new(start), pages * PAGE).ok_or(Status::OUT_OF_RESOURCES)
    }

    fn memory_map(&mut self, to: Option<PaRange>) -> Result<MapInfo, (Status, MapInfo)> {
        let info = MapInfo {
            size: MAP + self.maps as u64 * self.grows,
            descriptor_size: 48,
            key: 100 + self.maps,
        };
        self.maps += 1;
        if to.is_none_or(|to| to.size() < info.size) {
            return Err((Status::BUFFER_TOO_SMALL, info));
        }
        Ok(info)
    }

    fn exit(&mut self, key: usize) -> Result<(), Status> {
        self.keys.push(key);
        if let Some(status) = self.refuses {
            return Err(status);
        }
        if self.keys.len() <= self.stale {
            return Err(Status::INVALID_PARAMETER);
        }
        Ok(())
    }
}

fn volume(files: &[(&'static str, u64)]) -> Fake {
    Fake {
        files: files.to_vec(),
        piece: 1000,
        there: u64::MAX,
        ..Fake::default()
    }
}

#[test]
fn what_a_loader_hands_over_comes_before_what_is_on_the_volume() {
    let mut firmware = volume(&[("\\cordon.bundle", 5000)]);
    assert_eq!(load_bundle(&mut firmware).unwrap().size(), 5000);
    firmware.initrd = Some(7);
    assert_eq!(load_bundle(&mut firmware).unwrap().size(), 7);
    let mut beside = volume(&[("\\EFI\\cordon\\cordon.bundle", 9)]);
    assert_eq!(load_bundle(&mut beside).unwrap().size(), 9);
}

#[test]
fn no_bundle_and_no_whole_bundle_are_named() {
    let why = |firmware: &mut Fake| load_bundle(firmware).unwrap_err();
    let none = why(&mut volume(&[]));
    assert_eq!(
        (none.to_string(), none.status()),
        ("what=bundle why=none".into(), Status::NOT_FOUND)
    );
    let mut short = volume(&[("\\cordon.bundle", 5000)]);
    short.there = 4999;
    let short = why(&mut short);
    assert_eq!(short.status(), Status::LOAD_ERROR);
    assert!(
        short
            .to_string()
            .contains("why=not-readable file=\\cordon.bundle")
    );
    let long = why(&mut volume(&[("\\cordon.bundle", u64::MAX)]));
    assert!(matches!(long, EfiError::TooLong { size: u64::MAX, .. }));
    let mut initrd = Fake {
        initrd: Some(u64::MAX),
        ..Fake::default()
    };
    assert!(matches!(
        why(&mut initrd),
        EfiError::TooLong { name: "initrd", .. }
    ));
    // Empty is not absent, and is no bundle either: its reader says so.
    assert_eq!(
        load_bundle(&mut volume(&[("\\cordon.bundle", 0)]))
            .unwrap()
            .size(),
        1
    );
}

#[test]
fn boot_services_are_left_with_the_newest_key_and_nothing_is_called_late() {
    for stale in [0, 1, 7] {
        let mut firmware = Fake {
            stale,
            grows: 48,
            ..Fake::default()
        };
        let exited = exit(&mut firmware).unwrap();
        assert_eq!(exited.descriptor_size, 48);
        assert_eq!(exited.map.size(), MAP + 48 * (stale as u64 + 1));
        assert_eq!(
            firmware.keys,
            Vec::from_iter((1..=stale + 1).map(|at| 100 + at))
        );
        assert_eq!(firmware.late, 0);
    }
}

#[test]
fn a_firmware_that_cannot_be_left_is_given_up() {
    let mut stale = Fake {
        stale: usize::MAX,
        ..Fake::default()
    };
    assert_eq!(
        exit(&mut stale),
        Err(EfiError::Exit(Status::INVALID_PARAMETER))
    );
    assert!(stale.keys.len() < 20);
    let mut refuses = Fake {
        refuses: Some(Status::UNSUPPORTED),
        ..Fake::default()
    };
    assert_eq!(exit(&mut refuses), Err(EfiError::Exit(Status::UNSUPPORTED)));
    assert_eq!(refuses.keys.len(), 1);
    // A map that outgrows its room.
    let mut grows = Fake {
        stale: 8,
        grows: PAGE,
        ..Fake::default()
    };
    assert_eq!(
        exit(&mut grows),
        Err(EfiError::Exit(Status::BUFFER_TOO_SMALL))
    );
}

fn ucs2(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[test]
fn words_come_from_the_file_then_from_the_loader_without_the_programs_name() {
    let line = |options: &str, file: &str| command_line(&ucs2(options), file.as_bytes());
    assert_eq!(line("", ""), "");
    assert_eq!(
        line("fs0:\\EFI\\BOOT\\BOOTAA64.EFI bbm=0\0rest", ""),
        "bbm=0"
    );
    assert_eq!(
        line("bbm=0 x.efi", " loglevel=info\r\nspares=1M\n"),
        "loglevel=info spares=1M bbm=0 x.efi"
    );
    assert_eq!(line("BOOT_IMAGE=/cordon.img bbm=0", ""), "bbm=0");
    // No text: what a boot manager marks its own entries with.
    assert_eq!(
        command_line(&[0x4e, 0xac, 0x08, 0x81, 0x11, 0x9f], b"bbm=0"),
        "bbm=0"
    );
    assert_eq!(command_line(&ucs2("bbm=0")[..9], b""), "");
    assert_eq!(command_line(&[], &[0xff, b' ', b'a']), "");
}

#[test]
fn configuration_tables_are_known_by_their_guids() {
    let mut tables = Tables::default();
    tables.add(&[0; 16], Pa::new(1));
    tables.add(&ACPI_20, Pa::new(0));
    assert_eq!(tables, Tables::default());
    tables.add(&ACPI_20, Pa::new(0x1000));
    tables.add(&ACPI_20, Pa::new(0x2000));
    tables.add(&DTB, Pa::new(0x3000));
    assert_eq!(
        (tables.rsdp, tables.dtb),
        (Some(Pa::new(0x1000)), Some(Pa::new(0x3000)))
    );
    let guid = |text: &[u8; 16]| uefi_order(text);
    assert_eq!(guid(&ACPI_20), "8868e871-e4f1-11d3-bc22-0080c73c8881");
    assert_eq!(guid(&DTB), "b1b621d5-f19c-41a5-830b-d9152c69aae0");
}

/// A GUID as the specification writes it.
fn uefi_order(bytes: &[u8; 16]) -> String {
    let hex = |at: &[usize]| -> String {
        at.iter()
            .map(|at| alloc::format!("{:02x}", bytes[*at]))
            .collect()
    };
    [
        hex(&[3, 2, 1, 0]),
        hex(&[5, 4]),
        hex(&[7, 6]),
        hex(&[8, 9]),
        hex(&[10, 11, 12, 13, 14, 15]),
    ]
    .join("-")
}

#[test]
fn the_handover_is_read_as_it_was_written() {
    let range = |start, size| PaRange::new(Pa::new(start), size).unwrap();
    let tables = Tables {
        rsdp: Some(Pa::new(0x5000)),
        dtb: None,
    };
    let handover = Handover::new(range(0x1000, 5), None)
        .with_tables(tables)
        .with_reset(Pa::new(0x7000))
        .with_map(Exited {
            map: range(0x3000, 96),
            descriptor_size: 48,
        });
    let read = Handover::read_from_bytes(handover.as_bytes()).unwrap();
    assert_eq!(read.bundle(), Some(range(0x1000, 5)));
    assert_eq!(read.reset(), Some(Pa::new(0x7000)));
    assert_eq!(Handover::default().reset(), None);
    assert_eq!((read.tables(), read.cmdline()), (tables, None));
    assert_eq!(read.map(), Some((range(0x3000, 96), 48)));
}

fn descriptor(kind: u32, start: u64, pages: u64, attributes: u64) -> Vec<u8> {
    let mut bytes = vec![0xee; 48];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&start.to_le_bytes());
    bytes[24..32].copy_from_slice(&pages.to_le_bytes());
    bytes[32..40].copy_from_slice(&attributes.to_le_bytes());
    bytes
}

const WB: u64 = 0xf;

#[test]
fn ram_is_what_can_be_cached_and_firmware_keeps_its_own() {
    let map = [
        descriptor(7, 0x4010_0000, 0x10, WB),
        descriptor(3, 0x4000_0000, 0x100, WB),
        descriptor(6, 0x4011_0000, 1, WB | 1 << 63),
        descriptor(10, 0x4011_1000, 1, WB),
        descriptor(9, 0x4011_2000, 2, WB),
        descriptor(7, 0x5000_0000, 1, WB | 1 << 18),
        // Reserved, found bad, registers, persistent, not cacheable, nothing.
        descriptor(0, 0x6000_0000, 1, WB),
        descriptor(8, 0x6100_0000, 1, WB),
        descriptor(11, 0x6200_0000, 1, 1 | 1 << 63),
        descriptor(14, 0x6300_0000, 1, WB),
        descriptor(7, 0x6400_0000, 1, 1),
        descriptor(7, 0x6500_0000, 0, WB),
    ];
    let memory = Memory::read(&map.concat(), 48).unwrap();
    let runtime: Vec<RuntimeKind> = memory.runtime.iter().map(|it| it.kind).collect();
    assert_eq!(runtime, [RuntimeKind::Data, RuntimeKind::Registers]);
    let ranges = |ranges: &[PaRange]| -> Vec<(u64, u64)> {
        ranges
            .iter()
            .map(|range| (range.start().get(), range.size()))
            .collect()
    };
    assert_eq!(
        ranges(&memory.ram),
        [(0x4000_0000, 0x11_4000), (0x5000_0000, 0x1000)]
    );
    assert_eq!(ranges(&memory.tables), [(0x4011_0000, 0x4000)]);
    let kept: Vec<String> = memory.reserved.iter().map(|it| it.by.to_string()).collect();
    assert_eq!(
        kept,
        [
            "runtime-data",
            "acpi-nvs",
            "acpi-reclaim",
            "special-purpose"
        ]
    );
    let range = |start, size| PaRange::new(Pa::new(start), size).unwrap();
    assert!(memory.contains(range(0x4010_f000, 0x2000)));
    assert!(!memory.contains(range(0x4011_3fff, 2)));
}

#[test]
fn the_reset_service_is_believed_where_the_map_has_code() {
    let runtime = |kind, start, pages| descriptor(kind, start, pages, WB | 1 << 63);
    let map = [
        runtime(5, 0x5000_0000, 0x10),
        runtime(6, 0x4000_0000, 0x10),
        descriptor(11, 0x0901_0000, 1, 1 | 1 << 63),
        descriptor(5, 0x6000_0000, 1, WB),
    ];
    let memory = Memory::read(&map.concat(), 48).unwrap();
    let service = memory.reset_service(Pa::new(0x5000_0100)).unwrap();
    assert_eq!(service.entry, Pa::new(0x5000_0100));
    let starts: Vec<u64> = (service.regions.iter())
        .map(|it| it.range.start().get())
        .collect();
    assert_eq!(starts, [0x0901_0000, 0x4000_0000, 0x5000_0000]);
    let range = |start, size| PaRange::new(Pa::new(start), size).unwrap();
    assert_eq!(service.beside(range(0x0901_0010, 4)), None);
    assert_eq!(
        service.beside(range(0x0900_0010, 0x9000)),
        Some(range(0x0900_0000, 0x1000))
    );
    // Data, registers, code without a promise, beyond, not aligned, across the end.
    for entry in [
        0x4000_0000,
        0x0901_0000,
        0x6000_0000,
        0x5001_0000,
        0x5000_0102,
        0x5000_fffe,
    ] {
        assert_eq!(memory.reset_service(Pa::new(entry)), None, "{entry:#x}");
    }
    let twice = [map.concat(), runtime(6, 0x5000_f000, 2)].concat();
    let twice = Memory::read(&twice, 48).unwrap();
    assert_eq!(twice.reset_service(Pa::new(0x5000_0000)), None);
}

#[test]
fn a_map_that_makes_no_sense_is_refused_whole() {
    let good = descriptor(7, 0x4000_0000, 1, WB);
    let refused = |map: &[u8], size| Memory::read(map, size).unwrap_err();
    assert!(matches!(refused(&good, 0), MapError::BadSize { .. }));
    assert!(matches!(refused(&good, 39), MapError::BadSize { .. }));
    assert!(matches!(refused(&good[..47], 48), MapError::BadSize { .. }));
    assert!(matches!(
        refused(&vec![0; 48 * 5000], 48),
        MapError::BadSize { .. }
    ));
    let bad = |start, pages| {
        let map = [good.clone(), descriptor(7, start, pages, WB)].concat();
        assert_eq!(refused(&map, 48), MapError::BadDescriptor { index: 1 });
    };
    bad(0x4000_0800, 1);
    bad(0x4000_0000, u64::MAX);
    bad(u64::MAX - 0xfff, 2);
    assert_eq!(Memory::read(&[], 48).unwrap(), Memory::default());
}

proptest! {
    #![proptest_config(fuzz_config())]

    /// Whatever firmware says: RAM is sorted and apart, and what is kept lies in it.
    #[test]
    fn a_damaged_map_is_refused_or_still_makes_sense(damage in damage(192)) {
        let mut map = [
            descriptor(7, 0x4000_0000, 0x100, WB),
            descriptor(6, 0x4010_0000, 0x10, WB | 1 << 63),
            descriptor(9, 0x4011_0000, 0x10, WB),
            descriptor(7, 0x4012_0000, 0x100, WB),
        ].concat();
        damage.apply(&mut map);
        if let Ok(memory) = Memory::read(&map, 48) {
            for [one, other] in memory.ram.array_windows() {
                prop_assert!(one.last() < other.start());
            }
            for kept in &memory.reserved {
                prop_assert!(memory.contains(kept.range));
            }
        }
    }
}

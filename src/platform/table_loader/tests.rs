//! Sound scripts do what QEMU means by them; unsound ones are refused by name, never by a panic.

use std::collections::BTreeMap;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const BASE: u64 = 0x4400_0000;
const ROOM: usize = 0x1_0000;

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Refused;

struct Machine {
    files: BTreeMap<String, Vec<u8>>,
    memory: Vec<u8>,
    used: usize,
}

impl Machine {
    fn new(files: &[(&str, &[u8])]) -> Self {
        Self {
            files: files
                .iter()
                .map(|(n, c)| ((*n).to_string(), c.to_vec()))
                .collect(),
            memory: vec![0xee; ROOM],
            used: 0,
        }
    }

    fn at(&self, pa: Pa, len: usize) -> &[u8] {
        let start = usize::try_from(pa.get() - BASE).unwrap();
        &self.memory[start..start + len]
    }
}

impl Host for Machine {
    type Error = Refused;

    fn file_size(&mut self, name: &str) -> Result<Option<u32>, Refused> {
        Ok(self
            .files
            .get(name)
            .map(|file| u32::try_from(file.len()).unwrap()))
    }

    fn load_file(&mut self, name: &str, target: Pa) -> Result<(), Refused> {
        let file = self.files.get(name).cloned().ok_or(Refused)?;
        self.write(target, &file);
        Ok(())
    }

    fn store_file(&mut self, name: &str, offset: u32, bytes: &[u8]) -> Result<(), Refused> {
        let file = self.files.get_mut(name).ok_or(Refused)?;
        let offset = offset as usize;
        let end = offset.checked_add(bytes.len()).ok_or(Refused)?;
        file.get_mut(offset..end)
            .ok_or(Refused)?
            .copy_from_slice(bytes);
        Ok(())
    }

    fn allocate(&mut self, size: u32, align: u32, _: Zone) -> Option<Pa> {
        let start = self.used.next_multiple_of(align as usize);
        let end = start
            .checked_add(size as usize)
            .filter(|&end| end <= ROOM)?;
        self.used = end;
        Some(Pa::new(BASE + start as u64))
    }

    fn read(&mut self, from: Pa, out: &mut [u8]) {
        out.copy_from_slice(self.at(from, out.len()));
    }

    fn write(&mut self, to: Pa, bytes: &[u8]) {
        let start = usize::try_from(to.get() - BASE).unwrap();
        self.memory[start..start + bytes.len()].copy_from_slice(bytes);
    }
}

fn command(number: u32, fields: &[&[u8]]) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    for field in fields {
        bytes.extend(*field);
    }
    bytes.resize(COMMAND_SIZE, 0);
    bytes
}

fn name(text: &str) -> [u8; FILE_NAME_SIZE] {
    let mut field = [0; FILE_NAME_SIZE];
    field[..text.len()].copy_from_slice(text.as_bytes());
    field
}

fn allocate(file: &str, align: u32) -> Vec<u8> {
    command(1, &[&name(file), &align.to_le_bytes(), &[1]])
}

fn add_pointer(in_file: &str, to_file: &str, offset: u32, width: u8) -> Vec<u8> {
    command(
        2,
        &[
            &name(in_file),
            &name(to_file),
            &offset.to_le_bytes(),
            &[width],
        ],
    )
}

fn add_checksum(file: &str, offset: u32, start: u32, length: u32) -> Vec<u8> {
    let numbers = [offset, start, length].map(u32::to_le_bytes).concat();
    command(3, &[&name(file), &numbers])
}

fn write_pointer(in_file: &str, offset: u32, to_file: &str, to_offset: u32, width: u8) -> Vec<u8> {
    let offsets = [offset, to_offset].map(u32::to_le_bytes).concat();
    command(4, &[&name(in_file), &name(to_file), &offsets, &[width]])
}

fn why(commands: &[Vec<u8>]) -> Why<Refused> {
    let mut machine = Machine::new(&[
        ("a", &[0; 64]),
        ("b", &[0; 16]),
        ("empty", &[]),
        ("back", &[0; 8]),
    ]);
    let error = run(&commands.concat(), &mut machine).unwrap_err();
    assert_eq!(
        error.command,
        commands.len() - 1,
        "the last command is the bad one"
    );
    error.why
}

#[test]
fn a_script_links_the_rsdp_to_its_table() {
    let mut tables = vec![0; 100];
    tables[36] = 7;
    let mut rsdp = b"RSD PTR ".to_vec();
    rsdp.resize(36, 0);
    rsdp[24] = 36;
    let mut machine = Machine::new(&[
        ("etc/acpi/tables", &tables),
        (RSDP_FILE, &rsdp),
        ("back", &[0; 8]),
    ]);
    let script = [
        allocate(RSDP_FILE, 16),
        allocate("etc/acpi/tables", 64),
        add_pointer(RSDP_FILE, "etc/acpi/tables", 24, 8),
        add_checksum(RSDP_FILE, 32, 0, 36),
        write_pointer("back", 0, "etc/acpi/tables", 36, 8),
    ];
    let loaded = run(&script.concat(), &mut machine).unwrap();

    let table = loaded.blob("etc/acpi/tables").unwrap().range().start();
    assert!(table.is_aligned(64));
    let rsdp = machine.at(loaded.rsdp().unwrap(), 36).to_vec();
    assert_eq!(rsdp[24..32], (table.get() + 36).to_le_bytes());
    assert_eq!(
        rsdp.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)),
        0
    );
    assert_eq!(machine.files["back"], (table.get() + 36).to_le_bytes());
}

#[test]
fn a_checksum_over_many_chunks_makes_them_sum_to_zero() {
    let mut machine = Machine::new(&[("a", &[0xa7; 333])]);
    let loaded = run(
        &[allocate("a", 1), add_checksum("a", 9, 0, 333)].concat(),
        &mut machine,
    );
    let range = loaded.unwrap().blob("a").unwrap().range();
    let sum = machine
        .at(range.start(), 333)
        .iter()
        .fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    assert_eq!(sum, 0);
}

#[test]
fn a_script_that_ends_in_a_command_is_truncated() {
    let mut script = allocate("a", 1);
    script.extend([2, 0, 0]);
    let error = run(&script, &mut Machine::new(&[("a", &[1])])).unwrap_err();
    assert_eq!(
        error,
        Error {
            command: 1,
            why: Why::Truncated
        }
    );
}

#[test]
fn what_is_no_command_is_refused() {
    assert_eq!(why(&[command(5, &[])]), Why::UnknownCommand(5));
    assert_eq!(why(&[command(0, &[])]), Why::UnknownCommand(0));
}

#[test]
fn what_is_no_name_is_refused() {
    assert_eq!(
        why(&[command(1, &[&[b'x'; 56], &[1, 0, 0, 0, 1]])]),
        Why::BadName
    );
    assert_eq!(why(&[allocate("", 1)]), Why::BadName);
}

#[test]
fn allocate_refuses_what_cannot_be_placed() {
    assert_eq!(why(&[allocate("a", 0)]), Why::BadAlignment(0));
    assert_eq!(why(&[allocate("a", 24)]), Why::BadAlignment(24));
    let zone_3 = command(1, &[&name("a"), &1u32.to_le_bytes(), &[3]]);
    assert_eq!(why(&[zone_3]), Why::UnknownZone(3));
    assert_eq!(why(&[allocate("c", 1)]), Why::NoSuchFile);
    assert_eq!(why(&[allocate("empty", 1)]), Why::EmptyFile);
    assert_eq!(
        why(&[allocate("a", 1), allocate("a", 1)]),
        Why::AllocatedTwice
    );
    assert_eq!(
        why(&[allocate("b", 1), allocate("a", 0x8000_0000)]),
        Why::NoMemory
    );
}

#[test]
fn the_number_of_files_is_bounded() {
    let names: Vec<String> = (0..=MAX_BLOBS).map(|n| std::format!("file{n}")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &[0u8][..])).collect();
    let script: Vec<u8> = names.iter().flat_map(|n| allocate(n, 1)).collect();
    let error = run(&script, &mut Machine::new(&files)).unwrap_err();
    assert_eq!(
        error,
        Error {
            command: MAX_BLOBS,
            why: Why::TooManyFiles
        }
    );
}

#[test]
fn pointers_must_lie_and_point_inside_placed_files() {
    let placed = [allocate("a", 1), allocate("b", 1)].concat();
    let after = |bad| why(&[placed[..128].to_vec(), placed[128..].to_vec(), bad]);
    assert_eq!(
        why(&[allocate("a", 1), add_pointer("a", "b", 0, 8)]),
        Why::NotAllocated
    );
    assert_eq!(
        why(&[allocate("b", 1), add_pointer("a", "b", 0, 8)]),
        Why::NotAllocated
    );
    assert_eq!(after(add_pointer("a", "b", 0, 3)), Why::BadPointerSize(3));
    assert_eq!(after(add_pointer("a", "b", 0, 16)), Why::BadPointerSize(16));
    assert_eq!(after(add_pointer("a", "b", 0, 2)), Why::PointerTooNarrow(2));
    assert_eq!(
        after(add_pointer("a", "b", 57, 8)),
        Why::OutOfBounds {
            offset: 57,
            length: 8,
            size: 64
        }
    );
    assert_eq!(
        after(add_pointer("a", "b", u32::MAX, 8)),
        Why::OutOfBounds {
            offset: u32::MAX,
            length: 8,
            size: 64
        }
    );
}

#[test]
fn a_pointer_past_its_target_is_refused() {
    for raw in [16u64, u64::MAX, 1 << 32] {
        let mut machine = Machine::new(&[("a", &raw.to_le_bytes()), ("b", &[0; 16])]);
        let script = [
            allocate("a", 1),
            allocate("b", 1),
            add_pointer("a", "b", 0, 8),
        ]
        .concat();
        let why = run(&script, &mut machine).unwrap_err().why;
        assert!(
            matches!(
                why,
                Why::OutOfBounds {
                    length: 1,
                    size: 16,
                    ..
                }
            ),
            "{raw:#x}: {why:?}"
        );
    }
}

#[test]
fn checksums_must_lie_inside_a_placed_file() {
    assert_eq!(why(&[add_checksum("a", 0, 0, 1)]), Why::NotAllocated);
    for (offset, start, length) in [(64, 0, 1), (0, 0, 65), (0, 64, 1), (0, u32::MAX, u32::MAX)] {
        let why = why(&[allocate("a", 1), add_checksum("a", offset, start, length)]);
        assert!(matches!(why, Why::OutOfBounds { size: 64, .. }), "{why:?}");
    }
}

#[test]
fn write_pointer_needs_a_placed_target_and_a_file_that_takes_it() {
    assert_eq!(
        why(&[write_pointer("back", 0, "a", 0, 8)]),
        Why::NotAllocated
    );
    let after = |bad| why(&[allocate("a", 1), bad]);
    assert_eq!(
        after(write_pointer("back", 0, "a", 64, 8)),
        Why::OutOfBounds {
            offset: 64,
            length: 1,
            size: 64
        }
    );
    assert_eq!(
        after(write_pointer("back", 0, "a", 0, 5)),
        Why::BadPointerSize(5)
    );
    assert_eq!(
        after(write_pointer("back", 0, "a", 0, 1)),
        Why::PointerTooNarrow(1)
    );
    assert_eq!(
        after(write_pointer("back", 4, "a", 0, 8)),
        Why::Host(Refused)
    );
    assert_eq!(
        after(write_pointer("nowhere", 0, "a", 0, 8)),
        Why::Host(Refused)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 16 } else { 512 }))]

    /// The fake machine panics on any access outside its memory, so this shows that no script
    /// reaches outside the blobs.
    #[test]
    fn no_script_panics_or_leaves_its_blobs(
        commands in proptest::collection::vec(
            (0u32..6, 0usize..3, 0usize..3, any::<[u32; 3]>(), 0u32..80, 0u8..10), 0..12),
    ) {
        let files = ["a", "b", "back"];
        let mut script = allocate("a", 4);
        for (number, first, second, wild, small, width) in commands {
            let offset = if wild[2] % 2 == 0 { small } else { wild[0] };
            let (first, second) = (files[first], files[second]);
            script.extend(match number {
                1 => allocate(first, 1 << (wild[0] % 32)),
                2 => add_pointer(first, second, offset, width),
                3 => add_checksum(first, small, offset, wild[1] % 80),
                4 => write_pointer(first, offset, second, small, width),
                other => command(other, &[&wild.map(u32::to_le_bytes).concat()]),
            });
        }
        let contents = [0x11u8; 64];
        let mut machine =
            Machine::new(&[("a", &contents), ("b", &[0; 16]), ("back", &[0; 8])]);
        if let Ok(loaded) = run(&script, &mut machine) {
            for blob in loaded.blobs() {
                prop_assert!(blob.range().last().get() < BASE + ROOM as u64);
            }
        }
    }
}

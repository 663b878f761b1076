//! What firmware reports: HEST, the memory behind a generic error source, and CPER records.

use std::fmt::Write as _;

use crate::{Seed, one_word};
use cordon::addr::{PAGE_SIZE, Pa};
use cordon::ras::cper::{
    self, ArmRecord, BlockWriter, Body, ErrorInfo, ErrorKind, Memory, MemoryErrorType,
    MemoryFormat, Section, SectionHead, Severity, StatusBlock, Timestamp,
};
use cordon::ras::ghes::{Ghes, GhesError, MemoryError, PhysMemory};
use cordon::ras::hest::{GenericSource, Hest, Notification, ReadAck};

/// Target `cper`: a Generic Error Status Block.
pub fn cper(bytes: &[u8]) {
    match StatusBlock::parse(bytes) {
        Ok(block) => show_block(&block, bytes.len()),
        Err(error) => one_word(&error.to_string()),
    }
}

/// Target `hest`: a HEST, as it is and with a head that is right.
pub fn hest(bytes: &[u8]) {
    walk_sources(bytes);
    let mut table = bytes.to_vec();
    if table.len() >= 40 {
        let length = u32::try_from(table.len()).unwrap_or(u32::MAX);
        table[..4].copy_from_slice(b"HEST");
        table[4..8].copy_from_slice(&length.to_le_bytes());
        table[9] = 0;
        table[9] = table.iter().fold(0u8, |sum, &byte| sum.wrapping_sub(byte));
        assert!(Hest::parse(&table).is_ok(), "the head is right");
        walk_sources(&table);
    }
}

fn walk_sources(bytes: &[u8]) {
    match Hest::parse(bytes) {
        Ok(table) => {
            let mut count = 0;
            for source in table.sources() {
                count += 1;
                let text = source.map(|source| format!("{source:?}"));
                if let Err(error) = text {
                    one_word(&error.to_string());
                }
            }
            assert!(count <= bytes.len() / 20 + 1, "no source is that short");
        }
        Err(error) => one_word(&error.to_string()),
    }
}

/// Where the fake memory of target `ghes` has the pointer, the acknowledgement, and room.
const POINTER: Pa = Pa::new(0x1_0000);
const ACK: Pa = Pa::new(0x1_0008);

/// Target `ghes`: the first 8 bytes choose the source and the buffer, the others are memory.
pub fn ghes(bytes: &[u8]) {
    let Some((choice, image)) = bytes.split_first_chunk::<8>() else {
        return;
    };
    let [
        length_low,
        length_high,
        buffer_low,
        buffer_high,
        offset,
        width,
        preserve,
        write,
    ] = *choice;
    let source = GenericSource {
        id: 0,
        related: None,
        enabled: true,
        status_address: POINTER,
        block_length: u32::from(u16::from_le_bytes([length_low, length_high])),
        notification: Notification::Sea,
        read_ack: ReadAck::new(ACK, (offset, width), u64::from(preserve), u64::from(write)),
    };
    let mut memory = Image::new(image);
    let buffer_length = usize::from(u16::from_le_bytes([buffer_low, buffer_high]));
    let mut buffer = vec![0; buffer_length.min(0x2000)];
    take(&source, &mut memory, &mut buffer);
}

fn take(source: &GenericSource, memory: &mut Image, buffer: &mut [u8]) {
    let limit = buffer.len();
    let old_ack = memory.read_u64(ACK);
    // Before: the block may lie over the pointer, and releasing it then changes it.
    let pointer = memory.read_u64(POINTER).unwrap_or(0);
    let ghes = Ghes::new(*source);
    let (found, released) = match ghes.take(memory, buffer) {
        Ok(None) => (false, true),
        Ok(Some(record)) => {
            show_block(&record.block, limit);
            (true, record.released.is_ok())
        }
        Err(error) => {
            one_word(&error.to_string());
            (!matches!(error, GhesError::Pointer(_)), false)
        }
    };
    let mut allowed = vec![(pointer, 4)];
    if let Some(ack) = &source.read_ack {
        allowed.push((ACK.get(), 8));
        // The acknowledgement is made for good and bad records alike, unless the block lies over it.
        let apart = pointer.abs_diff(ACK.get()) >= 8;
        if let (true, true, Ok(old)) = (found, apart, old_ack) {
            assert_eq!(memory.read_u64(ACK), Ok(ack.acknowledge(old)));
        }
    }
    if !found {
        allowed.clear();
    }
    for write in &memory.writes {
        assert!(allowed.contains(write), "wrote {write:x?}");
    }
    let apart = pointer >= ACK.get() + 8;
    if found && released && apart {
        assert!(
            matches!(ghes.take(memory, buffer), Ok(None)),
            "a record is taken once"
        );
    }
}

/// Memory that begins at [`POINTER`] and ends where the input does.
struct Image {
    bytes: Vec<u8>,
    writes: Vec<(u64, usize)>,
}

impl Image {
    fn new(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.to_vec(),
            writes: Vec::new(),
        }
    }

    fn span(&mut self, at: Pa, length: usize) -> Result<&mut [u8], MemoryError> {
        at.checked_offset_from(POINTER)
            .and_then(|start| usize::try_from(start).ok())
            .and_then(|start| self.bytes.get_mut(start..start.checked_add(length)?))
            .ok_or(MemoryError::NotMapped(at))
    }
}

impl PhysMemory for Image {
    fn read(&mut self, from: Pa, to: &mut [u8]) -> Result<(), MemoryError> {
        to.copy_from_slice(self.span(from, to.len())?);
        Ok(())
    }

    fn write(&mut self, to: Pa, from: &[u8]) -> Result<(), MemoryError> {
        self.span(to, from.len())?.copy_from_slice(from);
        self.writes.push((to.get(), from.len()));
        Ok(())
    }

    fn read_u64(&mut self, from: Pa) -> Result<u64, MemoryError> {
        assert!(from.is_aligned(8));
        let mut bytes = [0; 8];
        self.read(from, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn write_u64(&mut self, to: Pa, value: u64) -> Result<(), MemoryError> {
        assert!(to.is_aligned(8));
        self.write(to, &value.to_le_bytes())
    }
}

fn show_block(block: &StatusBlock<'_>, length: usize) {
    let mut count = 0;
    for section in block.sections() {
        count += 1;
        match section {
            Ok(section) => check_section(&section),
            Err(error) => one_word(&error.to_string()),
        }
    }
    assert!(count <= length / 64 + 1, "no section is that short");
}

fn check_section(section: &Section<'_>) {
    let line = section.line().to_string();
    for pair in line.split(' ') {
        assert_eq!(pair.split('=').count(), 2, "{line}");
    }
    assert!(
        line.chars().all(|c| c.is_ascii_graphic() || c == ' '),
        "{line}"
    );
    let mut report = String::new();
    assert!(write!(report, "{}", section.report()).is_ok());
    match &section.body {
        Body::Memory(memory) => check_memory(memory),
        Body::ArmProcessor(arm) => {
            for error in arm.errors() {
                assert!(
                    error
                        .poisoned_page()
                        .is_none_or(|page| page.is_aligned(PAGE_SIZE))
                );
            }
            assert!(
                arm.contexts()
                    .all(|context| context.registers.len() < 1 << 32)
            );
        }
        Body::Pcie(_) | Body::Raw(_) => {}
    }
}

fn check_memory(memory: &Memory) {
    match memory.poisoned() {
        Ok(range) => {
            assert!(range.size().is_power_of_two() && range.size() >= PAGE_SIZE);
            assert!(range.start().is_aligned(range.size()));
            assert!(
                memory
                    .address
                    .is_some_and(|address| range.contains(address))
            );
        }
        Err(error) => one_word(&error.to_string()),
    }
    let mut buffer = [0; 256];
    let mut writer = BlockWriter::new(&mut buffer).expect("a head fits");
    let head = SectionHead::new(Severity::Recoverable, Timestamp::from_sequence(0));
    writer.memory(&head, memory).expect("what was read fits");
    let block = StatusBlock::parse(writer.finish()).expect("what was written is sound");
    let again = block.sections().next();
    match again.expect("one section").expect("a good one").body {
        Body::Memory(again) => assert_eq!(again, *memory),
        other => panic!("not memory: {other:?}"),
    }
}

/// Good records, tables, and memory that holds them.
pub(crate) fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for (name, block) in blocks() {
        seeds.push(("ghes", name, behind_a_source(&block)));
        seeds.push(("cper", name, block));
    }
    let qemu = include_bytes!("../../src/ras/testdata/hest_qemu_10.0.2.bin");
    seeds.push(("hest", "qemu", qemu.to_vec()));
    seeds.push(("hest", "every-type", every_type(qemu)));
    seeds
}

fn blocks() -> Vec<(&'static str, Vec<u8>)> {
    let golden = [
        (
            "linux-memory",
            &include_bytes!("../../src/ras/testdata/cper_memory.bin")[..],
        ),
        (
            "linux-arm",
            include_bytes!("../../src/ras/testdata/cper_arm.bin"),
        ),
        (
            "linux-arm-no-va",
            include_bytes!("../../src/ras/testdata/cper_arm_no_va.bin"),
        ),
    ];
    let mut blocks: Vec<_> = golden.map(|(name, bytes)| (name, bytes.to_vec())).into();
    for (name, format) in [
        ("memory-short", MemoryFormat::Short),
        ("memory-full", MemoryFormat::Full),
        ("memory-2", MemoryFormat::Second),
    ] {
        blocks.push((
            name,
            written(|writer, head| {
                let memory = Memory {
                    format,
                    node: Some(1),
                    row: Some(0x1234),
                    ..Memory::page(Pa::new(0x8000_0000), MemoryErrorType::MULTI_BIT_ECC)
                };
                writer.memory(head, &memory)
            }),
        ));
    }
    blocks.push((
        "arm-two-errors",
        written(|writer, head| {
            let error = ErrorInfo {
                kind: ErrorKind::CACHE,
                physical_address: Some(Pa::new(0x8000_0040)),
                ..ErrorInfo::default()
            };
            let record = ArmRecord {
                mpidr: Some(0x8000_0000),
                affinity_level: Some(1),
                midr: 0x410f_d0c0,
                running: Some(false),
                errors: &[error, error],
            };
            writer.arm_processor(head, &record)
        }),
    ));
    blocks.push(("pcie", pcie()));
    blocks
}

fn written(
    section: impl Fn(&mut BlockWriter<'_>, &SectionHead) -> Result<(), cper::WriteError>,
) -> Vec<u8> {
    let mut buffer = [0; 1024];
    let mut writer = BlockWriter::new(&mut buffer).expect("a head fits");
    let head = SectionHead::new(Severity::Recoverable, Timestamp::from_sequence(1));
    section(&mut writer, &head).expect("a section fits");
    section(&mut writer, &head).expect("two sections fit");
    writer.finish().to_vec()
}

/// A PCI Express section, which is not written otherwise.
fn pcie() -> Vec<u8> {
    const BODY: u32 = 208;
    let mut block = include_bytes!("../../src/ras/testdata/cper_memory.bin")[..92].to_vec();
    block[12..16].copy_from_slice(&(72 + BODY).to_le_bytes());
    block[20..36].copy_from_slice(&cper::section_type::PCIE.to_bytes());
    block[44..48].copy_from_slice(&BODY.to_le_bytes());
    block.push(0xff);
    block.resize(92 + 208, 0);
    block
}

/// `block` in memory, pointed to, behind a source as QEMU's.
fn behind_a_source(block: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x00, 0x04, 0x00, 0x04, 0, 64, 0xfe, 1];
    bytes.extend((POINTER.get() + 16).to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(block);
    bytes
}

/// A table with a source of every type.
fn every_type(qemu: &[u8]) -> Vec<u8> {
    let mut table = qemu.to_vec();
    let lengths = [
        (0u16, 40 + 28),
        (1, 48 + 28),
        (2, 20),
        (6, 48),
        (7, 44),
        (8, 56),
        (11, 48),
    ];
    for (kind, length) in lengths {
        let start = table.len();
        table.resize(start + length, 0);
        table[start..start + 2].copy_from_slice(&kind.to_le_bytes());
        match kind {
            0 => table[start + 32] = 1,
            1 => table[start + 44] = 1,
            _ => {}
        }
    }
    table.extend(&qemu[40..]);
    table[36] = 9;
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_good_records_so_that_fuzzing_starts_deep_inside() {
        for (target, name, bytes) in seeds() {
            match target {
                "cper" => {
                    let block = StatusBlock::parse(&bytes).expect(name);
                    assert!(block.sections().all(|section| section.is_ok()), "{name}");
                }
                "ghes" => {
                    let mut memory = Image::new(&bytes[8..]);
                    let source = GenericSource {
                        id: 0,
                        related: None,
                        enabled: true,
                        status_address: POINTER,
                        block_length: 0x400,
                        notification: Notification::Sea,
                        read_ack: None,
                    };
                    let mut buffer = [0; 0x400];
                    let taken = Ghes::new(source).take(&mut memory, &mut buffer);
                    assert!(taken.expect(name).is_some(), "{name}");
                }
                _ => hest(&bytes),
            }
        }
    }
}

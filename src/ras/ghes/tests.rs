//! The reader against a fake firmware that keeps count of what is done to its memory.

use std::vec;
use std::vec::Vec;

use super::*;
use crate::ras::cper::{
    BlockWriter, Body, Memory, MemoryErrorType, SectionHead, Severity, Timestamp, What,
};
use crate::ras::hest::{Notification, ReadAck};

const POINTER: Pa = Pa::new(0x1000);
const ACK: Pa = Pa::new(0x1008);
const BLOCK: Pa = Pa::new(0x1010);
const BLOCK_LENGTH: u32 = 0x400;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read(Pa, usize),
    Write(Pa, usize),
}

/// Memory from 0x1000 on, one page.
struct Fake {
    bytes: Vec<u8>,
    log: Vec<Access>,
    poisoned: Option<Pa>,
    rewrite_after_head: bool,
}

impl Fake {
    fn empty() -> Self {
        let mut fake = Self {
            bytes: vec![0; 0x1000],
            log: Vec::new(),
            poisoned: None,
            rewrite_after_head: false,
        };
        fake.write_u64(POINTER, BLOCK.get()).unwrap();
        fake.log.clear();
        fake
    }

    fn with_block(block: &[u8]) -> Self {
        let mut fake = Self::empty();
        fake.write(BLOCK, block).unwrap();
        fake.log.clear();
        fake
    }

    fn ack(&mut self) -> u64 {
        self.read_u64(ACK).unwrap()
    }

    fn block_status(&self) -> u32 {
        u32::from_le_bytes(self.bytes[0x10..0x14].try_into().unwrap())
    }

    fn span(&mut self, at: Pa, length: usize) -> Result<&mut [u8], MemoryError> {
        if self.poisoned.is_some_and(|bad| bad == at) {
            return Err(MemoryError::Poisoned(at));
        }
        at.checked_offset_from(POINTER)
            .and_then(|start| usize::try_from(start).ok())
            .and_then(|start| self.bytes.get_mut(start..start + length))
            .ok_or(MemoryError::NotMapped(at))
    }
}

impl PhysMemory for Fake {
    fn read(&mut self, from: Pa, to: &mut [u8]) -> Result<(), MemoryError> {
        self.log.push(Access::Read(from, to.len()));
        to.copy_from_slice(self.span(from, to.len())?);
        if self.rewrite_after_head && from == BLOCK {
            // Firmware, or somebody, changes its mind about the length.
            self.span(BLOCK, 20)?[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        }
        Ok(())
    }

    fn write(&mut self, to: Pa, from: &[u8]) -> Result<(), MemoryError> {
        self.log.push(Access::Write(to, from.len()));
        self.span(to, from.len())?.copy_from_slice(from);
        Ok(())
    }

    fn read_u64(&mut self, from: Pa) -> Result<u64, MemoryError> {
        let mut bytes = [0; 8];
        self.read(from, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn write_u64(&mut self, to: Pa, value: u64) -> Result<(), MemoryError> {
        self.write(to, &value.to_le_bytes())
    }
}

fn source() -> GenericSource {
    GenericSource {
        id: 0,
        related: None,
        enabled: true,
        status_address: POINTER,
        block_length: BLOCK_LENGTH,
        notification: Notification::Sea,
        read_ack: ReadAck::new(ACK, (0, 64), !1, 1),
    }
}

fn record() -> Vec<u8> {
    let mut buffer = [0; 512];
    let mut writer = BlockWriter::new(&mut buffer).unwrap();
    let head = SectionHead::new(Severity::Recoverable, Timestamp::from_sequence(1));
    let memory = Memory::page(Pa::new(0x8000_0000), MemoryErrorType::MULTI_BIT_ECC);
    writer.memory(&head, &memory).unwrap();
    writer.finish().to_vec()
}

#[test]
fn a_record_is_copied_then_cleared_then_acknowledged() {
    let mut fake = Fake::with_block(&record());
    let mut buffer = [0; 1024];
    let taken = Ghes::new(source()).take(&mut fake, &mut buffer).unwrap();
    let taken = taken.unwrap();
    assert_eq!(taken.released, Ok(()));
    let section = taken.block.sections().next().unwrap().unwrap();
    assert!(matches!(section.body, Body::Memory(m) if m.address == Some(Pa::new(0x8000_0000))));
    assert_eq!(
        fake.log,
        [
            Access::Read(POINTER, 8),
            Access::Read(BLOCK, 20),
            Access::Read(Pa::new(BLOCK.get() + 20), 152),
            Access::Write(BLOCK, 4),
            Access::Read(ACK, 8),
            Access::Write(ACK, 8),
        ]
    );
    assert_eq!((fake.block_status(), fake.ack()), (0, 1));
}

#[test]
fn no_pointer_or_an_empty_block_is_no_record_and_nothing_is_written() {
    let mut buffer = [0; 1024];
    for mut fake in [Fake::empty(), {
        let mut fake = Fake::with_block(&record());
        fake.write_u64(POINTER, 0).unwrap();
        fake.log.clear();
        fake
    }] {
        let taken = Ghes::new(source()).take(&mut fake, &mut buffer).unwrap();
        assert!(taken.is_none());
        assert!(!fake.log.iter().any(|a| matches!(a, Access::Write(..))));
    }
}

#[test]
fn a_record_is_taken_once() {
    let mut fake = Fake::with_block(&record());
    let mut buffer = [0; 1024];
    let ghes = Ghes::new(source());
    assert!(ghes.take(&mut fake, &mut buffer).unwrap().is_some());
    assert!(ghes.take(&mut fake, &mut buffer).unwrap().is_none());
}

#[test]
fn garbage_is_an_error_and_does_not_wedge_the_source() {
    let mut garbage = record();
    garbage[16..20].copy_from_slice(&77u32.to_le_bytes());
    let mut fake = Fake::with_block(&garbage);
    let mut buffer = [0; 1024];
    let error = Ghes::new(source())
        .take(&mut fake, &mut buffer)
        .unwrap_err();
    assert_eq!(
        error,
        GhesError::Malformed(CperError::BadSeverity {
            what: What::StatusBlock,
            raw: 77
        })
    );
    assert_eq!((fake.block_status(), fake.ack()), (0, 1));
}

#[test]
fn a_block_is_bounded_by_its_source_and_by_the_buffer() {
    for (block_length, buffer_length, limit) in [(171, 1024, 171), (0x400, 171, 171)] {
        let mut fake = Fake::with_block(&record());
        let mut buffer = vec![0; buffer_length];
        let ghes = Ghes::new(GenericSource {
            block_length,
            ..source()
        });
        assert_eq!(
            ghes.take(&mut fake, &mut buffer).unwrap_err(),
            GhesError::TooLong {
                claimed: 172,
                limit
            }
        );
        assert!(
            !fake
                .log
                .contains(&Access::Read(Pa::new(BLOCK.get() + 20), 152))
        );
        assert_eq!((fake.block_status(), fake.ack()), (0, 1));
    }
}

#[test]
fn a_block_that_is_rewritten_while_it_is_read_keeps_its_checked_length() {
    let mut fake = Fake::with_block(&record());
    fake.rewrite_after_head = true;
    let mut buffer = [0; 1024];
    let taken = Ghes::new(source()).take(&mut fake, &mut buffer).unwrap();
    assert_eq!(taken.unwrap().block.sections().count(), 1);
}

#[test]
fn a_pointer_to_nowhere_is_an_error_and_still_acknowledged() {
    let mut fake = Fake::empty();
    for nowhere in [0x9000_0000, u64::MAX] {
        fake.write_u64(POINTER, nowhere).unwrap();
        fake.write_u64(ACK, 0).unwrap();
        let mut buffer = [0; 1024];
        assert_eq!(
            Ghes::new(source())
                .take(&mut fake, &mut buffer)
                .unwrap_err(),
            GhesError::Block(MemoryError::NotMapped(Pa::new(nowhere)))
        );
        assert_eq!(fake.ack(), 1);
    }
}

#[test]
fn poison_under_the_record_itself_is_told_from_a_bad_record() {
    let mut fake = Fake::with_block(&record());
    let bad = Pa::new(BLOCK.get() + 20);
    fake.poisoned = Some(bad);
    let mut buffer = [0; 1024];
    assert_eq!(
        Ghes::new(source())
            .take(&mut fake, &mut buffer)
            .unwrap_err(),
        GhesError::Block(MemoryError::Poisoned(bad))
    );
    // What is poison is not written either.
    assert_eq!((fake.block_status(), fake.ack()), (0x11, 0));

    fake.poisoned = Some(POINTER);
    assert_eq!(
        Ghes::new(source())
            .take(&mut fake, &mut buffer)
            .unwrap_err(),
        GhesError::Pointer(MemoryError::Poisoned(POINTER))
    );
}

#[test]
fn a_record_is_good_even_if_it_cannot_be_acknowledged() {
    let mut fake = Fake::with_block(&record());
    fake.poisoned = Some(ACK);
    let mut buffer = [0; 1024];
    let taken = Ghes::new(source()).take(&mut fake, &mut buffer).unwrap();
    let taken = taken.unwrap();
    assert_eq!(taken.block.sections().count(), 1);
    assert_eq!(taken.released, Err(MemoryError::Poisoned(ACK)));
}

#[test]
fn a_version_1_source_is_cleared_without_an_acknowledgement() {
    let mut fake = Fake::with_block(&record());
    let mut buffer = [0; 1024];
    let ghes = Ghes::new(GenericSource {
        read_ack: None,
        ..source()
    });
    assert!(ghes.take(&mut fake, &mut buffer).unwrap().is_some());
    assert_eq!((fake.block_status(), fake.ack()), (0, 0));
}

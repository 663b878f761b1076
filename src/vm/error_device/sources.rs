//! The two error sources: source 0 for what was consumed, source 1 for what was found.
//!
//! Firmware's side of the order that `ras::ghes` describes: a record is written when the last one
//! was acknowledged, its block status last.

use alloc::collections::VecDeque;
use core::fmt;

use crate::addr::{Ipa, PAGE_SIZE, Pa};
use crate::ras::cper::{
    BlockWriter, Memory, MemoryErrorType, SectionFlags, SectionHead, Severity, Timestamp,
};
use crate::ras::ghes::{MemoryError, PhysMemory};
use crate::vm::guest_acpi::place::shared;

/// Reports that wait for their turn.
const QUEUE: usize = 64;

/// Room for a status block with one memory section.
const RECORD_SIZE: usize = 256;

/// What a guest is told of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The page, as the guest's physical address.
    pub ipa: Ipa,
    /// How bad it is.
    pub severity: Severity,
    /// More corrected errors than there should be: the page had better be given up.
    pub threshold: bool,
}

impl Report {
    /// The page at `ipa` is lost.
    pub const fn lost(ipa: Ipa) -> Self {
        Self {
            ipa,
            severity: Severity::Recoverable,
            threshold: false,
        }
    }
}

/// Why a guest was not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTold {
    /// It has not acknowledged the last record yet: who has consumed an error should try again.
    NotYet,
    /// It has not acknowledged the last record, and was waited for in vain.
    Busy,
    /// The block's memory cannot be written.
    Memory(MemoryError),
}

impl fmt::Display for NotTold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotYet => f.write_str("not-acknowledged-yet"),
            Self::Busy => f.write_str("not-acknowledged"),
            Self::Memory(error) => error.fmt(f),
        }
    }
}

/// A source: its block is free, or the guest has to acknowledge what is in it.
#[derive(Debug)]
pub(super) struct Source {
    number: usize,
    free: bool,
}

impl Source {
    pub(super) const fn new(number: usize) -> Self {
        Self { number, free: true }
    }

    pub(super) const fn is_free(&self) -> bool {
        self.free
    }

    pub(super) const fn release(&mut self) {
        self.free = true;
    }

    /// Writes a record about `report` into the block of the shared area at `area`.
    pub(super) fn publish(
        &mut self,
        memory: &mut impl PhysMemory,
        area: Pa,
        report: &Report,
        sequence: u64,
    ) -> Result<(), NotTold> {
        let block = (shared::BLOCK.get(self.number))
            .and_then(|offset| area.checked_add(*offset))
            .ok_or(NotTold::Memory(MemoryError::NotMapped(area)))?;
        let mut buffer = [0; RECORD_SIZE];
        let record = record(&mut buffer, report, sequence);
        let (status, rest) = record.split_at(record.len().min(4));
        let behind = block
            .checked_add(4)
            .ok_or(NotTold::Memory(MemoryError::NotMapped(block)))?;
        memory.write(behind, rest).map_err(NotTold::Memory)?;
        memory.write(block, status).map_err(NotTold::Memory)?;
        self.free = false;
        Ok(())
    }
}

/// The record of one page. Linux drops a record that equals an earlier one of the last ten seconds,
/// so each has another time.
fn record<'b>(buffer: &'b mut [u8; RECORD_SIZE], report: &Report, sequence: u64) -> &'b [u8] {
    let page = Pa::new(report.ipa.page().get());
    let (flags, kind) = if report.severity.is_uncorrected() {
        (SectionFlags::PRIMARY, MemoryErrorType::MULTI_BIT_ECC)
    } else {
        (SectionFlags::PRIMARY, MemoryErrorType::SINGLE_BIT_ECC)
    };
    let head = SectionHead {
        flags: if report.threshold {
            flags | SectionFlags::THRESHOLD_EXCEEDED
        } else {
            flags
        },
        ..SectionHead::new(report.severity, Timestamp::from_sequence(sequence))
    };
    let memory = Memory {
        address_mask: Some(!(PAGE_SIZE - 1)),
        ..Memory::page(page, kind)
    };
    // Neither fails: the buffer has room for both, and a page's memory section fits its format.
    match BlockWriter::new(buffer) {
        Ok(mut block) => {
            let written = block.memory(&head, &memory);
            debug_assert!(written.is_ok());
            block.finish()
        }
        Err(_) => &[],
    }
}

/// Source 1 with the reports that wait for it.
#[derive(Debug)]
pub(super) struct Found {
    source: Source,
    queue: VecDeque<Report>,
    overflows: u64,
}

impl Found {
    /// Allocates all that it will ever need.
    pub(super) fn new() -> Self {
        Self {
            source: Source::new(1),
            queue: VecDeque::with_capacity(QUEUE),
            overflows: 0,
        }
    }

    /// Forgets all reports.
    pub(super) fn reset(&mut self) {
        self.source = Source::new(1);
        self.queue.clear();
    }

    pub(super) const fn is_free(&self) -> bool {
        self.source.is_free()
    }

    pub(super) const fn release(&mut self) {
        self.source.release();
    }

    pub(super) const fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Adds a report, or counts one that there is no room for: the guest hears of that page when
    /// it consumes it.
    pub(super) fn push(&mut self, report: Report) {
        if self.queue.len() < QUEUE {
            self.queue.push_back(report);
        } else {
            self.overflows += 1;
        }
    }

    /// The next report, if the source is free for it.
    pub(super) fn next(&mut self) -> Option<Report> {
        self.is_free().then(|| self.queue.pop_front())?
    }

    pub(super) fn publish(
        &mut self,
        memory: &mut impl PhysMemory,
        area: Pa,
        report: &Report,
        sequence: u64,
    ) -> Result<(), NotTold> {
        self.source.publish(memory, area, report, sequence)
    }
}

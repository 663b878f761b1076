//! Making Generic Error Status Blocks.
//!
//! Who publishes a block to somebody who polls it must do so in this order: everything from byte 4
//! on, a barrier, then the first word, which is `Block Status` and says that there is something
//! to read. [`BlockWriter`] fills a private buffer; publishing it is the caller's business.

use core::fmt;
use core::mem::size_of;

use zerocopy::little_endian::U64;
use zerocopy::{FromZeros as _, Immutable, IntoBytes};

use super::block::{FRU_ID, FRU_TEXT, HEADER_SIZE, TIMESTAMP};
use super::memory::{bit, bit2, common_bit};
use super::wire::{self, DataEntryHeader, Memory2, MemoryExtension, MemoryShort};
use super::{
    BlockStatus, ErrorInfo, FruText, Guid, Memory, MemoryErrorType, MemoryFormat, SectionFlags,
    Severity, Timestamp, arm, section_type,
};
use crate::addr::Pa;

/// Why a section was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// The buffer has no room for it. What was written before is untouched.
    NoSpace,
    /// A field has a value that this format has no bits for.
    DoesNotFit,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSpace => "no-space",
            Self::DoesNotFit => "does-not-fit",
        })
    }
}

impl core::error::Error for WriteError {}

/// What the head of a section says, whatever the section is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionHead {
    /// How bad it is.
    pub severity: Severity,
    /// Flags.
    pub flags: SectionFlags,
    /// The field-replaceable unit.
    pub fru_id: Option<Guid>,
    /// Its name.
    pub fru_text: Option<FruText>,
    /// When. Give every record another one: [`Timestamp::from_sequence`] says why.
    pub timestamp: Option<Timestamp>,
}

impl SectionHead {
    /// Just a severity and a time.
    pub const fn new(severity: Severity, timestamp: Timestamp) -> Self {
        Self {
            severity,
            flags: SectionFlags::empty(),
            fru_id: None,
            fru_text: None,
            timestamp: Some(timestamp),
        }
    }
}

/// An ARM processor section to be written, without contexts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArmRecord<'a> {
    /// The processor's `MPIDR_EL1`.
    pub mpidr: Option<u64>,
    /// The affinity level up to which processors share the failing part, 0 to 3.
    pub affinity_level: Option<u8>,
    /// Its `MIDR_EL1`.
    pub midr: u64,
    /// Whether it is running.
    pub running: Option<bool>,
    /// The errors.
    pub errors: &'a [ErrorInfo],
}

/// Builds a block in a buffer of the caller's, one section after the other.
#[derive(Debug)]
pub struct BlockWriter<'a> {
    buffer: &'a mut [u8],
    used: usize,
    uncorrected: u32,
    corrected: u32,
    worst: Severity,
}

impl<'a> BlockWriter<'a> {
    /// An empty block in `buffer`, whose size bounds it.
    ///
    /// # Errors
    ///
    /// [`WriteError::NoSpace`] if not even the head fits.
    pub fn new(buffer: &'a mut [u8]) -> Result<Self, WriteError> {
        if buffer.len() < HEADER_SIZE {
            return Err(WriteError::NoSpace);
        }
        Ok(Self {
            buffer,
            used: HEADER_SIZE,
            uncorrected: 0,
            corrected: 0,
            worst: Severity::Informational,
        })
    }

    /// Adds a memory section in the format that `memory` names.
    ///
    /// # Errors
    ///
    /// [`WriteError`].
    pub fn memory(&mut self, head: &SectionHead, memory: &Memory) -> Result<(), WriteError> {
        match memory.format {
            MemoryFormat::Short => {
                let short = short_to_wire(memory)?;
                self.section(head, section_type::MEMORY, &[short.as_bytes()])
            }
            MemoryFormat::Full => {
                let (short, extension) = full_to_wire(memory)?;
                let parts = [short.as_bytes(), extension.as_bytes()];
                self.section(head, section_type::MEMORY, &parts)
            }
            MemoryFormat::Second => {
                let second = second_to_wire(memory);
                self.section(head, section_type::MEMORY2, &[second.as_bytes()])
            }
        }
    }

    /// Adds an ARM processor section.
    ///
    /// # Errors
    ///
    /// [`WriteError`].
    pub fn arm_processor(
        &mut self,
        head: &SectionHead,
        record: &ArmRecord<'_>,
    ) -> Result<(), WriteError> {
        let infos_size = size_of_val_on_wire(record.errors)?;
        let section_size = infos_size
            .checked_add(size_of::<wire::ArmProcessor>())
            .ok_or(WriteError::DoesNotFit)?;
        let start = self.begin(head, section_type::ARM_PROCESSOR, section_size)?;
        let mut at = start;
        at = self.put(at, &arm_to_wire(record, section_size)?)?;
        for error in record.errors {
            at = self.put(at, &info_to_wire(error))?;
        }
        self.commit(head, at);
        Ok(())
    }

    /// Fills in the head and returns the whole block.
    pub fn finish(self) -> &'a [u8] {
        let data_length = self.used.saturating_sub(HEADER_SIZE);
        let header = wire::StatusBlockHeader {
            block_status: block_status(self.uncorrected, self.corrected).into(),
            raw_data_offset: 0.into(),
            raw_data_length: 0.into(),
            // `begin` refused what would not fit in 32 bits.
            data_length: u32::try_from(data_length).unwrap_or(u32::MAX).into(),
            severity: self.worst.raw().into(),
        };
        if let Some(to) = self.buffer.get_mut(..HEADER_SIZE) {
            to.copy_from_slice(header.as_bytes());
        }
        self.buffer.get(..self.used).unwrap_or(&[])
    }

    fn section(
        &mut self,
        head: &SectionHead,
        kind: Guid,
        parts: &[&[u8]],
    ) -> Result<(), WriteError> {
        let size = parts.iter().map(|part| part.len()).sum();
        let mut at = self.begin(head, kind, size)?;
        for part in parts {
            at = self.put(at, *part)?;
        }
        self.commit(head, at);
        Ok(())
    }

    /// Writes a section's head, provided that all of the section fits, and returns where its body
    /// goes. Until [`Self::commit`] the section is not part of the block.
    fn begin(&mut self, head: &SectionHead, kind: Guid, size: usize) -> Result<usize, WriteError> {
        let total = size_of::<DataEntryHeader>() + size_of::<U64>();
        let end = self
            .used
            .checked_add(total)
            .and_then(|body| body.checked_add(size))
            .filter(|&end| end <= self.buffer.len() && u32::try_from(end).is_ok());
        if end.is_none() {
            return Err(WriteError::NoSpace);
        }
        let validation = bit_if(head.fru_id.is_some(), FRU_ID)
            | bit_if(head.fru_text.is_some(), FRU_TEXT)
            | bit_if(head.timestamp.is_some(), TIMESTAMP);
        let header = DataEntryHeader {
            section_type: kind,
            severity: head.severity.raw().into(),
            revision: wire::REVISION_WITH_TIMESTAMP.into(),
            validation,
            flags: head.flags.bits(),
            data_length: u32::try_from(size)
                .map_err(|_| WriteError::DoesNotFit)?
                .into(),
            fru_id: head.fru_id.unwrap_or(Guid::ZERO),
            fru_text: head.fru_text.map_or([0; 20], |text| text.0),
        };
        let at = self.put(self.used, &header)?;
        self.put(at, &U64::new(head.timestamp.map_or(0, Timestamp::raw)))
    }

    fn put<T: IntoBytes + Immutable + ?Sized>(
        &mut self,
        at: usize,
        value: &T,
    ) -> Result<usize, WriteError> {
        let bytes = value.as_bytes();
        let end = at.checked_add(bytes.len()).ok_or(WriteError::NoSpace)?;
        self.buffer
            .get_mut(at..end)
            .ok_or(WriteError::NoSpace)?
            .copy_from_slice(bytes);
        Ok(end)
    }

    fn commit(&mut self, head: &SectionHead, end: usize) {
        self.used = end;
        self.worst = self.worst.max(head.severity);
        let count = if head.severity.is_uncorrected() {
            &mut self.uncorrected
        } else {
            &mut self.corrected
        };
        *count = count.saturating_add(1);
    }
}

fn block_status(uncorrected: u32, corrected: u32) -> u32 {
    let mut status = 0;
    for (count, one, many) in [
        (
            uncorrected,
            BlockStatus::UNCORRECTED,
            BlockStatus::MULTIPLE_UNCORRECTED,
        ),
        (
            corrected,
            BlockStatus::CORRECTED,
            BlockStatus::MULTIPLE_CORRECTED,
        ),
    ] {
        status |= if count > 0 { one } else { 0 };
        status |= if count > 1 { many } else { 0 };
    }
    let total = uncorrected.saturating_add(corrected);
    status | total.min(BlockStatus::COUNT_MAX) << BlockStatus::COUNT_SHIFT
}

fn bit_if(condition: bool, bit: u32) -> u8 {
    if condition { 1 << bit } else { 0 }
}

/// Collects validation bits while the fields are unwrapped.
#[derive(Default)]
struct Validation(u64);

impl Validation {
    fn take<T: Default>(&mut self, field: Option<T>, bit: u32) -> T {
        if field.is_some() {
            self.0 |= 1 << bit;
        }
        field.unwrap_or_default()
    }

    /// As [`Self::take`], into a field of 16 bits.
    fn narrow(&mut self, field: Option<u32>, bit: u32) -> Result<u16, WriteError> {
        u16::try_from(self.take(field, bit)).map_err(|_| WriteError::DoesNotFit)
    }
}

/// The fields that all formats have, the row without what is beyond 16 bits.
fn short_with(memory: &Memory, v: &mut Validation) -> Result<MemoryShort, WriteError> {
    Ok(MemoryShort {
        error_status: v.take(memory.error_status, common_bit::STATUS).into(),
        physical_address: v
            .take(memory.address.map(Pa::get), common_bit::ADDRESS)
            .into(),
        physical_address_mask: v.take(memory.address_mask, common_bit::ADDRESS_MASK).into(),
        node: v.take(memory.node, common_bit::NODE).into(),
        card: v.take(memory.card, common_bit::CARD).into(),
        module: v.take(memory.module, common_bit::MODULE).into(),
        bank: v.take(memory.bank, common_bit::BANK).into(),
        device: v.narrow(memory.device, common_bit::DEVICE)?.into(),
        row: v
            .narrow(memory.row.map(|row| row & 0xffff), common_bit::ROW)?
            .into(),
        column: v.narrow(memory.column, common_bit::COLUMN)?.into(),
        bit_position: v.narrow(memory.bit_position, bit::BIT_POSITION)?.into(),
        requestor_id: v.take(memory.requestor, bit::REQUESTOR).into(),
        responder_id: v.take(memory.responder, bit::RESPONDER).into(),
        target_id: v.take(memory.target, bit::TARGET).into(),
        error_type: v.take(memory.error_type.map(MemoryErrorType::raw), bit::ERROR_TYPE),
        validation: v.0.into(),
    })
}

fn short_to_wire(memory: &Memory) -> Result<MemoryShort, WriteError> {
    let beyond = memory.row.is_some_and(|row| row > 0xffff)
        || memory.chip.is_some()
        || memory.rank.is_some()
        || memory.card_handle.is_some()
        || memory.module_handle.is_some();
    if beyond {
        return Err(WriteError::DoesNotFit);
    }
    short_with(memory, &mut Validation::default())
}

fn full_to_wire(memory: &Memory) -> Result<(MemoryShort, MemoryExtension), WriteError> {
    let mut v = Validation::default();
    let mut short = short_with(memory, &mut v)?;
    let high_row = memory.row.unwrap_or(0) >> 16;
    let chip = v.take(memory.chip, bit::CHIP);
    if high_row > 0b11 || chip > 0b111 {
        return Err(WriteError::DoesNotFit);
    }
    let high_row = v.narrow((high_row != 0).then_some(high_row), bit::EXTENDED_ROW)?;
    let [high_row, _] = high_row.to_le_bytes();
    let extension = MemoryExtension {
        extended: high_row | chip << 5,
        rank: v.narrow(memory.rank, bit::RANK)?.into(),
        card_handle: v.narrow(memory.card_handle, bit::CARD_HANDLE)?.into(),
        module_handle: v.narrow(memory.module_handle, bit::MODULE_HANDLE)?.into(),
    };
    short.validation = v.0.into();
    Ok((short, extension))
}

fn second_to_wire(memory: &Memory) -> Memory2 {
    let v = &mut Validation::default();
    Memory2 {
        error_status: v.take(memory.error_status, common_bit::STATUS).into(),
        physical_address: v
            .take(memory.address.map(Pa::get), common_bit::ADDRESS)
            .into(),
        physical_address_mask: v.take(memory.address_mask, common_bit::ADDRESS_MASK).into(),
        node: v.take(memory.node, common_bit::NODE).into(),
        card: v.take(memory.card, common_bit::CARD).into(),
        module: v.take(memory.module, common_bit::MODULE).into(),
        bank: v.take(memory.bank, common_bit::BANK).into(),
        device: v.take(memory.device, common_bit::DEVICE).into(),
        row: v.take(memory.row, common_bit::ROW).into(),
        column: v.take(memory.column, common_bit::COLUMN).into(),
        rank: v.take(memory.rank, bit2::RANK).into(),
        bit_position: v.take(memory.bit_position, bit2::BIT_POSITION).into(),
        chip_id: v.take(memory.chip, bit2::CHIP),
        error_type: v.take(
            memory.error_type.map(MemoryErrorType::raw),
            bit2::ERROR_TYPE,
        ),
        requestor_id: v.take(memory.requestor, bit2::REQUESTOR).into(),
        responder_id: v.take(memory.responder, bit2::RESPONDER).into(),
        target_id: v.take(memory.target, bit2::TARGET).into(),
        card_handle: v.take(memory.card_handle, bit2::CARD_HANDLE).into(),
        module_handle: v.take(memory.module_handle, bit2::MODULE_HANDLE).into(),
        validation: v.0.into(),
        ..Memory2::new_zeroed()
    }
}

fn size_of_val_on_wire(errors: &[ErrorInfo]) -> Result<usize, WriteError> {
    errors
        .len()
        .checked_mul(size_of::<wire::ArmErrorInfo>())
        .ok_or(WriteError::DoesNotFit)
}

fn arm_to_wire(record: &ArmRecord<'_>, size: usize) -> Result<wire::ArmProcessor, WriteError> {
    let mut v = Validation::default();
    let running = record.running.map(|yes| if yes { arm::RUNNING } else { 0 });
    let mut wire = wire::ArmProcessor::new_zeroed();
    wire.error_info_count = u16::try_from(record.errors.len())
        .map_err(|_| WriteError::DoesNotFit)?
        .into();
    wire.section_length = u32::try_from(size)
        .map_err(|_| WriteError::DoesNotFit)?
        .into();
    wire.mpidr = v.take(record.mpidr, arm::MPIDR).into();
    wire.affinity_level = v.take(record.affinity_level, arm::AFFINITY_LEVEL);
    wire.midr = record.midr.into();
    wire.running_state = v.take(running, arm::RUNNING_STATE).into();
    // Only bits 0 to 2 are ever set here.
    wire.validation = u32::try_from(v.0)
        .map_err(|_| WriteError::DoesNotFit)?
        .into();
    Ok(wire)
}

fn info_to_wire(error: &ErrorInfo) -> wire::ArmErrorInfo {
    use arm::info_bit::{DETAILS, FLAGS, MULTIPLE, PHYSICAL_ADDRESS, VIRTUAL_ADDRESS};
    let v = &mut Validation::default();
    wire::ArmErrorInfo {
        version: 0,
        length: INFO_LENGTH,
        kind: error.kind.bits(),
        multiple: v.take(error.multiple, MULTIPLE).into(),
        flags: v.take(error.flags.map(|flags| flags.bits()), FLAGS),
        error_information: v.take(error.details, DETAILS).into(),
        virtual_address: v.take(error.virtual_address, VIRTUAL_ADDRESS).into(),
        physical_address: v
            .take(error.physical_address.map(Pa::get), PHYSICAL_ADDRESS)
            .into(),
        // Only bits 0 to 4 are ever set here.
        validation: u16::try_from(v.0).unwrap_or(0).into(),
    }
}

/// The `Length` of one error.
const INFO_LENGTH: u8 = 32;
const _: () = assert!(size_of::<wire::ArmErrorInfo>() == INFO_LENGTH as usize);

//! The frame: a Generic Error Status Block and the sections in it.

use core::fmt;
use core::mem::size_of;

use zerocopy::little_endian::U64;

use super::wire::{self, DataEntryHeader, REVISION_WITH_TIMESTAMP, StatusBlockHeader};
use super::{
    ArmProcessor, CperError, ErrorInfos, Guid, Memory, Pcie, RangeError, Severity, Timestamp, What,
    section_type, valid,
};
use crate::addr::{PAGE_SIZE, PaRange};

/// Size in bytes of the head of a Generic Error Status Block.
pub const HEADER_SIZE: usize = size_of::<StatusBlockHeader>();

/// The `Block Status` word (ACPI 6.5 18.3.2.7.1): which kinds of error the block reports, and how
/// many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStatus(u32);

impl BlockStatus {
    pub(super) const UNCORRECTED: u32 = 1 << 0;
    pub(super) const CORRECTED: u32 = 1 << 1;
    pub(super) const MULTIPLE_UNCORRECTED: u32 = 1 << 2;
    pub(super) const MULTIPLE_CORRECTED: u32 = 1 << 3;
    pub(super) const COUNT_SHIFT: u32 = 4;
    pub(super) const COUNT_MAX: u32 = 0x3ff;

    /// Wraps the raw word.
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The raw word.
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// Whether the block says that it holds nothing: what system software writes when it has
    /// taken the record.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether an uncorrected error is reported.
    pub const fn has_uncorrected(self) -> bool {
        self.0 & (Self::UNCORRECTED | Self::MULTIPLE_UNCORRECTED) != 0
    }

    /// The number of sections the block claims, 0 to 1023. Firmware gets it wrong (QEMU writes
    /// 0), so it is shown and never relied upon.
    pub const fn claimed_sections(self) -> u32 {
        (self.0 >> Self::COUNT_SHIFT) & Self::COUNT_MAX
    }
}

/// A Generic Error Status Block whose frame has been checked.
#[derive(Clone, Copy, Debug)]
pub struct StatusBlock<'a> {
    status: BlockStatus,
    severity: Severity,
    sections: &'a [u8],
    raw_data: &'a [u8],
}

impl<'a> StatusBlock<'a> {
    /// Checks the frame of the block at the start of `bytes`. What follows the block is ignored.
    ///
    /// # Errors
    ///
    /// [`CperError::Truncated`] if the head, the sections or the raw data reach beyond `bytes`,
    /// [`CperError::BadSeverity`], or [`CperError::RawDataOverlaps`].
    // Always inlined: what it returns has gaps, which would be copied byte by byte.
    #[inline(always)]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, CperError> {
        let (header, rest) = wire::prefix::<StatusBlockHeader>(bytes, What::StatusBlock)?;
        let raw_severity = header.severity.get();
        let severity = Severity::from_raw(raw_severity).ok_or(CperError::BadSeverity {
            what: What::StatusBlock,
            raw: raw_severity,
        })?;
        let length = length(header.data_length.get());
        let sections = rest.get(..length).ok_or(CperError::Truncated {
            what: What::StatusBlock,
            need: length.saturating_add(HEADER_SIZE),
            have: bytes.len(),
        })?;
        Ok(Self {
            status: BlockStatus(header.block_status.get()),
            severity,
            sections,
            raw_data: raw_data(bytes, &header)?,
        })
    }

    /// The number of bytes that the block whose head is `header` says it takes, head, sections and
    /// raw data together. Only a claim: it is for deciding how much to copy before parsing.
    pub fn claimed_size(header: &[u8; HEADER_SIZE]) -> usize {
        let header: StatusBlockHeader = wire::whole(header);
        let sections = length(header.data_length.get()).saturating_add(HEADER_SIZE);
        let raw_length = length(header.raw_data_length.get());
        if raw_length == 0 {
            return sections;
        }
        sections.max(length(header.raw_data_offset.get()).saturating_add(raw_length))
    }

    /// What kinds of error the block reports.
    pub fn status(&self) -> BlockStatus {
        self.status
    }

    /// The severity of the whole: the worst of its sections, says the specification.
    pub fn severity(&self) -> Severity {
        self.severity
    }

    /// The sections, in order.
    pub fn sections(&self) -> Sections<'a> {
        Sections(self.entries())
    }

    /// What decides about each section, in order: what is for people is not decoded.
    #[inline]
    pub fn gists(&self) -> impl Iterator<Item = Result<Gist<'a>, CperError>> + use<'a> {
        self.entries().map(|entry| entry?.gist())
    }

    fn entries(&self) -> Entries<'a> {
        Entries {
            rest: self.sections,
        }
    }

    /// Whether there is no section in it, good or bad.
    pub fn is_empty(&self) -> bool {
        self.sections.is_empty()
    }

    /// The vendor's own bytes, often none.
    pub fn raw_data(&self) -> &'a [u8] {
        self.raw_data
    }
}

/// A length in a record, as a length in memory. Saturates where `usize` is smaller, which no
/// bound passes.
fn length(raw: u32) -> usize {
    usize::try_from(raw).unwrap_or(usize::MAX)
}

fn raw_data<'a>(bytes: &'a [u8], header: &StatusBlockHeader) -> Result<&'a [u8], CperError> {
    let size = length(header.raw_data_length.get());
    if size == 0 {
        return Ok(&[]);
    }
    let offset = length(header.raw_data_offset.get());
    if offset < length(header.data_length.get()).saturating_add(HEADER_SIZE) {
        return Err(CperError::RawDataOverlaps { offset });
    }
    let end = offset.saturating_add(size);
    bytes.get(offset..end).ok_or(CperError::Truncated {
        what: What::RawData,
        need: end,
        have: bytes.len(),
    })
}

/// The sections of a block, in order. After an error in the frame it ends.
#[derive(Clone, Debug)]
pub struct Sections<'a>(Entries<'a>);

impl<'a> Iterator for Sections<'a> {
    type Item = Result<Section<'a>, CperError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.next()?.and_then(Entry::decode))
    }
}

/// The frames of the sections, in order. After an error it ends.
#[derive(Clone, Debug)]
struct Entries<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, CperError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        // Taken out first: if the frame is wrong, nothing is left to walk.
        let bytes = core::mem::take(&mut self.rest);
        Some(Entry::split(bytes).map(|(entry, rest)| {
            self.rest = rest;
            entry
        }))
    }
}

/// A section whose frame is known to be sound and whose inside is still to be looked at.
struct Entry<'a> {
    bytes: &'a [u8],
    header: DataEntryHeader,
    timestamp: Option<&'a [u8]>,
    body: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Splits the first section off `bytes`.
    #[inline]
    fn split(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), CperError> {
        let (header, rest) = wire::prefix::<DataEntryHeader>(bytes, What::DataEntry)?;
        let (timestamp, rest) = if header.revision.get() >= REVISION_WITH_TIMESTAMP {
            let need = size_of::<U64>();
            let split = rest.split_at_checked(need);
            let (timestamp, rest) = split.ok_or(CperError::Truncated {
                what: What::DataEntry,
                need,
                have: rest.len(),
            })?;
            (Some(timestamp), rest)
        } else {
            (None, rest)
        };
        let need = length(header.data_length.get());
        let (body, rest) = rest.split_at_checked(need).ok_or(CperError::Truncated {
            what: What::Body,
            need,
            have: rest.len(),
        })?;
        let whole = bytes.len().saturating_sub(rest.len());
        let entry = Self {
            bytes: bytes.get(..whole).unwrap_or_default(),
            header,
            timestamp,
            body,
        };
        Ok((entry, rest))
    }

    #[inline]
    fn severity(&self) -> Result<Severity, CperError> {
        let raw = self.header.severity.get();
        Severity::from_raw(raw).ok_or(CperError::BadSeverity {
            what: What::DataEntry,
            raw,
        })
    }

    const fn flags(&self) -> SectionFlags {
        SectionFlags::from_bits_retain(self.header.flags)
    }

    /// Fails where [`Self::decode`] does.
    #[inline]
    fn gist(&self) -> Result<Gist<'a>, CperError> {
        Ok(Gist {
            severity: self.severity()?,
            flags: self.flags(),
            losses: Losses::of(self.header.section_type, self.body)?,
            bytes: self.bytes,
        })
    }

    fn decode(self) -> Result<Section<'a>, CperError> {
        let validation = u64::from(self.header.validation);
        let timestamp = self
            .timestamp
            .map(|bytes| wire::prefix(bytes, What::DataEntry));
        let timestamp: Option<(U64, _)> = timestamp.transpose()?;
        Ok(Section {
            kind: self.header.section_type,
            severity: self.severity()?,
            revision: self.header.revision.get(),
            flags: self.flags(),
            fru_id: valid(validation, FRU_ID, self.header.fru_id),
            fru_text: valid(validation, FRU_TEXT, FruText(self.header.fru_text)),
            timestamp: timestamp
                .and_then(|(raw, _)| valid(validation, TIMESTAMP, Timestamp::new(raw.get()))),
            body: Body::decode(self.header.section_type, self.body)?,
            bytes: self.bytes,
        })
    }
}

/// Validation bits of a Generic Error Data Entry.
pub(super) const FRU_ID: u32 = 0;
pub(super) const FRU_TEXT: u32 = 1;
pub(super) const TIMESTAMP: u32 = 2;

bitflags::bitflags! {
    /// The `Flags` of a section (UEFI 2.10 N.2.2).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct SectionFlags: u8 {
        /// The section that tells the cause, where others tell consequences.
        const PRIMARY = 1 << 0;
        /// The error was not contained: data may have spread to storage or network.
        const CONTAINMENT_WARNING = 1 << 1;
        /// The component must be reset before it is used again.
        const RESET = 1 << 2;
        /// Corrected errors have crossed a threshold: take the memory out of use soon.
        const THRESHOLD_EXCEEDED = 1 << 3;
        /// The resource cannot be reached for diagnosis.
        const NOT_ACCESSIBLE = 1 << 4;
        /// Found before it was consumed; nothing has used the data.
        const LATENT = 1 << 5;
    }
}

/// The name of a field-replaceable unit: up to 20 characters by firmware's good will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FruText(pub(super) [u8; 20]);

impl FruText {
    /// The first 20 bytes of `text`.
    pub fn new(text: &str) -> Self {
        let mut bytes = [0; 20];
        for (to, from) in bytes.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        Self(bytes)
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.0.starts_with(&[0])
    }
}

impl fmt::Display for FruText {
    /// What is not a visible ASCII character becomes `_`: the text must not be able to add a key,
    /// or a line, to the line that quotes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        self.0
            .iter()
            .take_while(|&&byte| byte != 0)
            .map(|&byte| match byte {
                b'=' => '_',
                byte if byte.is_ascii_graphic() => char::from(byte),
                _ => '_',
            })
            .try_for_each(|c| f.write_char(c))
    }
}

/// One section of a block.
#[derive(Clone, Copy, Debug)]
pub struct Section<'a> {
    /// What kind of section it is; [`section_type`] names those that are decoded.
    pub kind: Guid,
    /// How bad it is.
    pub severity: Severity,
    /// Revision of the section's head, for instance `0x300`.
    pub revision: u16,
    /// Flags.
    pub flags: SectionFlags,
    /// The field-replaceable unit that failed.
    pub fru_id: Option<Guid>,
    /// Its name.
    pub fru_text: Option<FruText>,
    /// When.
    pub timestamp: Option<Timestamp>,
    /// What the section says.
    pub body: Body<'a>,
    bytes: &'a [u8],
}

impl<'a> Section<'a> {
    /// The section, head and body, at the start of `bytes`.
    ///
    /// # Errors
    ///
    /// As of the iterator [`Sections`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, CperError> {
        Entry::split(bytes).and_then(|(entry, _)| entry.decode())
    }

    /// The bytes that it was parsed from, head and body: [`Self::parse`] makes the same of them.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// What a section says.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// Memory went bad.
    Memory(Memory),
    /// A processor reports an error in itself, or one that it ran into.
    ArmProcessor(ArmProcessor<'a>),
    /// A PCI Express device or port reports an error.
    Pcie(Pcie),
    /// A kind that is not decoded, as it is. [`Section::kind`] tells which.
    Raw(&'a [u8]),
}

impl<'a> Body<'a> {
    fn decode(kind: Guid, bytes: &'a [u8]) -> Result<Self, CperError> {
        Ok(match kind {
            section_type::MEMORY => Self::Memory(Memory::parse(bytes)?),
            section_type::MEMORY2 => Self::Memory(Memory::parse2(bytes)?),
            section_type::ARM_PROCESSOR => Self::ArmProcessor(ArmProcessor::parse(bytes)?),
            section_type::PCIE => Self::Pcie(Pcie::parse(bytes)?),
            _ => Self::Raw(bytes),
        })
    }
}

/// What decides about a section.
#[derive(Clone, Debug)]
pub struct Gist<'a> {
    /// How bad it is.
    pub severity: Severity,
    /// Flags.
    pub flags: SectionFlags,
    /// The memory that is bad.
    pub losses: Losses<'a>,
    bytes: &'a [u8],
}

impl<'a> Gist<'a> {
    /// The bytes of the section: [`Section::parse`] makes the whole of them.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// The memory that a section says is bad, range by range; or that it does not say so in a way that is to be
/// believed.
#[derive(Clone, Debug)]
pub enum Losses<'a> {
    /// No more.
    None,
    /// One range.
    Range(Result<PaRange, RangeError>),
    /// Errors of a processor, not all of which lose memory.
    Pages(ErrorInfos<'a>),
}

impl<'a> Losses<'a> {
    /// Those of a section with this body. Fails where [`Body::decode`] does.
    #[inline]
    fn of(kind: Guid, bytes: &'a [u8]) -> Result<Self, CperError> {
        // As numbers, which take fewer comparisons than bytes.
        const MEMORY: u128 = section_type::MEMORY.number();
        const MEMORY2: u128 = section_type::MEMORY2.number();
        const ARM_PROCESSOR: u128 = section_type::ARM_PROCESSOR.number();
        const PCIE: u128 = section_type::PCIE.number();
        Ok(match kind.number() {
            MEMORY => Self::Range(Memory::poisoned_in(bytes)?),
            MEMORY2 => Self::Range(Memory::poisoned_in2(bytes)?),
            ARM_PROCESSOR => Self::Pages(ArmProcessor::parse(bytes)?.errors()),
            PCIE => {
                Pcie::parse(bytes)?;
                Self::None
            }
            _ => Self::None,
        })
    }
}

impl Iterator for Losses<'_> {
    type Item = Result<PaRange, RangeError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::None => None,
            Self::Range(range) => {
                let range = *range;
                *self = Self::None;
                Some(range)
            }
            Self::Pages(errors) => errors
                .find_map(|error| PaRange::new(error.poisoned_page()?, PAGE_SIZE))
                .map(Ok),
        }
    }
}

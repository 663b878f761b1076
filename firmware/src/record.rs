//! The records that are written: a generic error status block with a memory section for each report.

use cordon::addr::Pa;
use cordon::ras::cper::{
    BlockWriter, FruText, Memory, MemoryErrorType, SectionFlags, SectionHead, Severity, Timestamp,
    WriteError,
};

/// Size of a record with one section in bytes: ACPI 6.5 table 18.11 (status block) and 18.12 (data
/// entry, revision 3.0), UEFI 2.10 appendix N.2.5 (memory section).
pub const RECORD_SIZE: usize = 20 + 72 + 80;

/// What kind of error a page has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Somebody has met it.
    Consumed,
    /// A scrubber has found it, and nobody has met it yet: action is optional (AO).
    Latent,
    /// A write has left poison behind, and nobody has met it yet.
    Deferred,
    /// It has been corrected.
    Corrected,
    /// It has been corrected, once too often.
    Threshold,
}

impl ErrorKind {
    /// The kind that a report is asked for by this name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        Some(match name {
            "ao" => Self::Latent,
            "deferred" => Self::Deferred,
            "ce" => Self::Corrected,
            "threshold" => Self::Threshold,
            _ => return None,
        })
    }

    const fn severity(self) -> Severity {
        match self {
            // Uncorrected, and somebody may be able to go on.
            Self::Consumed | Self::Latent | Self::Deferred => Severity::Recoverable,
            Self::Corrected | Self::Threshold => Severity::Corrected,
        }
    }

    fn flags(self) -> SectionFlags {
        let more = match self {
            Self::Consumed | Self::Corrected => SectionFlags::empty(),
            Self::Latent | Self::Deferred => SectionFlags::LATENT,
            Self::Threshold => SectionFlags::THRESHOLD_EXCEEDED,
        };
        SectionFlags::PRIMARY | more
    }

    const fn error_type(self) -> MemoryErrorType {
        match self {
            Self::Consumed | Self::Deferred => MemoryErrorType::MULTI_BIT_ECC,
            Self::Latent => MemoryErrorType::SCRUB_UNCORRECTED,
            Self::Corrected | Self::Threshold => MemoryErrorType::SINGLE_BIT_ECC,
        }
    }
}

/// One error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Any address in its page.
    pub page: Pa,
    /// What kind it is.
    pub kind: ErrorKind,
    /// Makes records of the same second and page different: a reader that drops repetitions, as Linux
    /// does, must see each.
    pub sequence: u64,
}

/// Makes a record of `first` and, as far as there is room, of `more`, at `seconds` after 1970 UTC. Returns
/// how many of `more` are in it.
///
/// # Errors
/// [`WriteError::NoSpace`] where `buffer` is shorter than [`RECORD_SIZE`].
pub fn memory_record(
    buffer: &mut [u8],
    first: Report,
    more: impl Iterator<Item = Report>,
    seconds: u64,
) -> Result<(&mut [u8], usize), WriteError> {
    let mut block = BlockWriter::new(buffer)?;
    section(&mut block, first, seconds)?;
    let taken = more
        .take_while(|report| section(&mut block, *report, seconds).is_ok())
        .count();
    let length = block.finish().len();
    let record = buffer.get_mut(..length).ok_or(WriteError::NoSpace)?;
    Ok((record, taken))
}

fn section(block: &mut BlockWriter<'_>, report: Report, seconds: u64) -> Result<(), WriteError> {
    /// Error type 4, "storage error in memory", in bits 15:8 (UEFI 2.10 N.2.12).
    const ERROR_STATUS: u64 = 4 << 8;
    let kind = report.kind;
    let head = SectionHead {
        flags: kind.flags(),
        fru_text: Some(fru_text(report.sequence)),
        ..SectionHead::new(kind.severity(), timestamp(seconds))
    };
    let memory = Memory {
        error_status: Some(ERROR_STATUS),
        ..Memory::page(report.page.page(), kind.error_type())
    };
    block.memory(&head, &memory)
}

/// Says in a record that there were more errors of its kind than it tells of (ACPI 6.5 18.3.2.7.1, Block
/// Status).
pub fn mark_overflow(record: &mut [u8]) {
    const UNCORRECTED: u8 = 1 << 0;
    const MULTIPLE_UNCORRECTED: u8 = 1 << 2;
    const MULTIPLE_CORRECTED: u8 = 1 << 3;
    if let Some(status) = record.first_mut() {
        *status |= if *status & UNCORRECTED != 0 {
            MULTIPLE_UNCORRECTED
        } else {
            MULTIPLE_CORRECTED
        };
    }
}

/// `gpt ` and the sequence number in 15 hexadecimal digits, which leaves room for a NUL.
fn fru_text(sequence: u64) -> FruText {
    let mut text = *b"gpt 000000000000000";
    for (place, digit) in text.iter_mut().skip(4).rev().enumerate() {
        let nibble = (sequence >> (4 * place) & 0xf) as u8;
        *digit = if nibble < 10 {
            b'0' + nibble
        } else {
            b'a' + (nibble - 10)
        };
    }
    FruText::new(core::str::from_utf8(&text).unwrap_or_default())
}

/// The time in a record (UEFI 2.10 N.2.1), precise to the second, from seconds since 1970-01-01 UTC.
/// Years beyond 9999 do not fit and wrap.
fn timestamp(seconds: u64) -> Timestamp {
    const PRECISE: u8 = 1;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from 0000-03-01, so that a leap day ends its year: eras of 400 years,
    // then centuries, then years (the proleptic Gregorian calendar).
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let leaps = day_of_era / 1_460 + day_of_era / 146_096 - day_of_era / 36_524;
    let year_of_era = (day_of_era - leaps) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let [second, minute, hour] = [second % 60, second / 60 % 60, second / 3600].map(bcd);
    let [day, month, year, century] = [day, month, year % 100, year / 100].map(bcd);
    let bytes = [second, minute, hour, PRECISE, day, month, year, century];
    Timestamp::new(u64::from_le_bytes(bytes))
}

/// Two decimal digits in a byte.
const fn bcd(value: u64) -> u8 {
    (((value / 10 % 10) << 4) | (value % 10)) as u8
}

/// Fills `out` with what no reader may take for a record: a status that says there is one, lengths
/// far beyond any block, and bytes with every bit pattern but none that means something.
pub fn garbage(out: &mut [u8]) {
    for (index, byte) in out.iter_mut().enumerate() {
        *byte = (index as u8).wrapping_mul(0x9d) | 0x81;
    }
}

#[cfg(test)]
mod tests {
    use cordon::ras::cper::{Body, HEADER_SIZE, MemoryFormat, Section, StatusBlock, section_type};

    use super::*;

    fn record(at: Pa, sequence: u64, seconds: u64) -> [u8; RECORD_SIZE] {
        let mut buffer = [0xff; RECORD_SIZE];
        let report = report(at, ErrorKind::Consumed, sequence);
        let written = memory_record(&mut buffer, report, core::iter::empty(), seconds);
        assert_eq!(
            written.map(|(record, more)| (record.len(), more)),
            Ok((RECORD_SIZE, 0))
        );
        buffer
    }

    fn report(page: Pa, kind: ErrorKind, sequence: u64) -> Report {
        Report {
            page,
            kind,
            sequence,
        }
    }

    /// The only section of `record`, as a reader sees it.
    fn section(record: &[u8]) -> Section<'_> {
        let block = StatusBlock::parse(record).unwrap();
        let mut sections = block.sections();
        let section = sections.next().unwrap().unwrap();
        assert!(sections.next().is_none());
        section
    }

    #[test]
    fn a_reader_learns_which_page_is_lost_and_how_bad_that_is() {
        let record = record(Pa::new(0x80_1234_5678), 7, 0);
        let block = StatusBlock::parse(&record).unwrap();
        assert_eq!(block.status().raw(), 0x11, "uncorrectable, one entry");
        assert_eq!(block.severity(), Severity::Recoverable);
        assert!(block.raw_data().is_empty());

        let section = section(&record);
        assert_eq!(section.kind, section_type::MEMORY);
        assert_eq!(section.severity, Severity::Recoverable);
        assert_eq!(
            (section.revision, section.flags),
            (0x300, SectionFlags::PRIMARY)
        );
        assert_eq!(section.fru_id, None);
        assert_eq!(section.fru_text, Some(FruText::new("gpt 000000000000007")));
        assert_eq!(section.timestamp, Some(timestamp(0)));
        let expected = Memory {
            format: MemoryFormat::Full,
            address: Some(Pa::new(0x80_1234_5000)),
            address_mask: Some(0xffff_ffff_ffff_f000),
            error_status: Some(0x400),
            error_type: Some(MemoryErrorType::MULTI_BIT_ECC),
            ..Memory::default()
        };
        assert!(
            matches!(section.body, Body::Memory(memory) if memory == expected),
            "{:?}",
            section.body
        );
    }

    #[test]
    fn two_records_for_one_page_in_one_second_differ() {
        let record = |sequence| record(Pa::new(0x1000), sequence, 1);
        assert_ne!(record(0xabc), record(0xabd));
        assert_eq!(
            section(&record(0xabc)).fru_text,
            Some(FruText::new("gpt 000000000000abc"))
        );
    }

    #[test]
    fn a_block_without_room_gets_no_part_of_a_record() {
        let mut buffer = [0; RECORD_SIZE - 1];
        let report = report(Pa::new(0x1000), ErrorKind::Consumed, 1);
        let result = memory_record(&mut buffer, report, core::iter::empty(), 1);
        assert!(matches!(result, Err(WriteError::NoSpace)));
    }

    #[test]
    fn as_many_reports_as_fit_share_a_record_in_order() {
        let mut buffer = [0; 20 + 3 * 152 + 151];
        let more = (2..9).map(|number| report(Pa::new(number << 12), ErrorKind::Consumed, number));
        let first = report(Pa::new(0x1000), ErrorKind::Consumed, 1);
        let (record, taken) = memory_record(&mut buffer, first, more, 1).unwrap();
        assert_eq!(taken, 2);
        let block = StatusBlock::parse(record).unwrap();
        assert_eq!(
            block.status().raw(),
            0x35,
            "several uncorrectable, three entries"
        );
        let texts = block.sections().map(|section| section.unwrap().fru_text);
        let expected = ["1", "2", "3"].map(|n| Some(FruText::new(&std::format!("gpt {n:0>15}"))));
        assert!(texts.eq(expected));
    }

    #[test]
    fn each_kind_is_told_from_the_others() {
        let tell = |kind| {
            let mut buffer = [0; RECORD_SIZE];
            let report = report(Pa::new(0x1000), kind, 1);
            let (record, _) = memory_record(&mut buffer, report, core::iter::empty(), 1).unwrap();
            let section = section(record);
            let error_type = match section.body {
                Body::Memory(memory) => memory.error_type.map(MemoryErrorType::raw),
                _ => None,
            };
            let status = StatusBlock::parse(record).unwrap().status().raw();
            let flags = section.flags - SectionFlags::PRIMARY;
            (status, section.severity, flags, error_type)
        };
        let latent = SectionFlags::LATENT;
        let uncorrected = Severity::Recoverable;
        assert_eq!(
            tell(ErrorKind::Latent),
            (0x11, uncorrected, latent, Some(14))
        );
        assert_eq!(
            tell(ErrorKind::Deferred),
            (0x11, uncorrected, latent, Some(3))
        );
        let none = SectionFlags::empty();
        assert_eq!(
            tell(ErrorKind::Corrected),
            (0x12, Severity::Corrected, none, Some(2))
        );
        let threshold = SectionFlags::THRESHOLD_EXCEEDED;
        assert_eq!(
            tell(ErrorKind::Threshold),
            (0x12, Severity::Corrected, threshold, Some(2))
        );
    }

    #[test]
    fn an_overflow_is_said_of_the_kind_that_the_record_has() {
        for (kind, expected) in [(ErrorKind::Latent, 0x15), (ErrorKind::Corrected, 0x1a)] {
            let mut buffer = [0; RECORD_SIZE];
            let report = report(Pa::new(0x1000), kind, 1);
            let (record, _) = memory_record(&mut buffer, report, core::iter::empty(), 1).unwrap();
            mark_overflow(record);
            assert_eq!(StatusBlock::parse(record).unwrap().status().raw(), expected);
        }
    }

    #[test]
    fn timestamps_are_bcd_with_century_last() {
        let bytes = |seconds| timestamp(seconds).raw().to_le_bytes();
        assert_eq!(bytes(0), [0, 0, 0, 1, 0x01, 0x01, 0x70, 0x19]);
        assert_eq!(
            bytes(951_827_696),
            [0x56, 0x34, 0x12, 1, 0x29, 0x02, 0x00, 0x20]
        );
        assert_eq!(
            bytes(4_107_542_399),
            [0x59, 0x59, 0x23, 1, 0x28, 0x02, 0x00, 0x21]
        );
        assert_eq!(bytes(4_107_542_400), [0, 0, 0, 1, 0x01, 0x03, 0x00, 0x21]);
    }

    #[test]
    fn garbage_claims_to_be_a_record_and_is_none() {
        let mut bytes = [0; 1024];
        garbage(&mut bytes);
        let head = bytes.first_chunk::<HEADER_SIZE>().unwrap();
        assert_ne!(head[0] & 1, 0, "Block Status");
        assert!(StatusBlock::claimed_size(head) > 1024);
        assert!(StatusBlock::parse(&bytes).is_err());
    }
}

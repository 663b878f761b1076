//! The record that is written for a consumed page: a generic error status block with one memory
//! section.

use cordon::addr::Pa;
use cordon::ras::cper::{
    BlockWriter, FruText, Memory, MemoryErrorType, SectionFlags, SectionHead, Severity, Timestamp,
    WriteError,
};

/// Size of the whole record in bytes: ACPI 6.5 table 18.11 (status block) and 18.12 (data entry,
/// revision 3.0), UEFI 2.10 appendix N.2.5 (memory section).
pub const RECORD_SIZE: usize = 20 + 72 + 80;

/// Makes the record for the poisoned page that holds `at`, consumed `seconds` after 1970 UTC.
/// `sequence` makes records of the same second and page different: a reader that drops repetitions,
/// as Linux does, must see each.
///
/// # Errors
/// [`WriteError::NoSpace`] where `buffer` is shorter than [`RECORD_SIZE`].
pub fn memory_record(
    buffer: &mut [u8],
    at: Pa,
    sequence: u64,
    seconds: u64,
) -> Result<&[u8], WriteError> {
    /// Error type 4, "storage error in memory", in bits 15:8 (UEFI 2.10 N.2.12).
    const ERROR_STATUS: u64 = 4 << 8;
    // Uncorrected, and somebody may be able to go on.
    let head = SectionHead {
        flags: SectionFlags::PRIMARY,
        fru_text: Some(fru_text(sequence)),
        ..SectionHead::new(Severity::Recoverable, timestamp(seconds))
    };
    let memory = Memory {
        error_status: Some(ERROR_STATUS),
        ..Memory::page(at.page(), MemoryErrorType::MULTI_BIT_ECC)
    };
    let mut block = BlockWriter::new(buffer)?;
    block.memory(&head, &memory)?;
    Ok(block.finish())
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
        let length = memory_record(&mut buffer, at, sequence, seconds).map(<[u8]>::len);
        assert_eq!(length, Ok(RECORD_SIZE));
        buffer
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
        let result = memory_record(&mut buffer, Pa::new(0x1000), 1, 1);
        assert_eq!(result, Err(WriteError::NoSpace));
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

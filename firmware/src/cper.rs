//! The record that is written for a consumed page: a generic error status block with one memory
//! section.
//!
//! Layouts: ACPI 6.5 table 18.11 (status block) and 18.12 (data entry, revision 3.0), UEFI 2.10
//! appendix N.2.5 (memory section). All little-endian.

use cordon::addr::{PAGE_SIZE, Pa};

const BLOCK_HEADER: usize = 20;
const ENTRY_HEADER: usize = 72;
const MEMORY_SECTION: usize = 80;
/// Size of the whole record in bytes.
pub const RECORD_SIZE: usize = BLOCK_HEADER + ENTRY_HEADER + MEMORY_SECTION;

/// Platform memory section, A5BC1114-6F64-4EDE-B863-3E83ED7C83B1, as it lies in memory.
const MEMORY_SECTION_TYPE: [u8; 16] = [
    0x14, 0x11, 0xbc, 0xa5, 0x64, 0x6f, 0xde, 0x4e, 0xb8, 0x63, 0x3e, 0x83, 0xed, 0x7c, 0x83, 0xb1,
];
/// Recoverable: uncorrected, and somebody may be able to go on (ACPI 6.5 table 18.11).
const SEVERITY_RECOVERABLE: u32 = 0;

/// A point in time, as precise as records need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp(u64);

impl Timestamp {
    /// From seconds since 1970-01-01 UTC; years beyond 9999 do not fit and wrap.
    #[must_use]
    pub fn from_unix(seconds: u64) -> Self {
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
        // Byte 3 bit 0: the time is precise.
        let bytes = [second % 60, second / 60 % 60, second / 3600]
            .map(bcd)
            .into_iter()
            .chain([1])
            .chain([day, month, year % 100, year / 100].map(bcd));
        let mut packed = [0; 8];
        for (to, from) in packed.iter_mut().zip(bytes) {
            *to = from;
        }
        Self(u64::from_le_bytes(packed))
    }
}

/// Two decimal digits in a byte.
const fn bcd(value: u64) -> u8 {
    (((value / 10 % 10) << 4) | (value % 10)) as u8
}

/// Writes little-endian fields one after the other.
struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, field: &[u8]) {
        let end = self.at + field.len();
        if let Some(room) = self.bytes.get_mut(self.at..end) {
            room.copy_from_slice(field);
        }
        self.at = end;
    }

    fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }
}

/// The record for the poisoned `page`. `sequence` makes records of the same second and page
/// different: a reader that drops repetitions, as Linux does, must see each.
#[must_use]
pub fn memory_record(page: Pa, sequence: u64, time: Timestamp) -> [u8; RECORD_SIZE] {
    let mut record = [0; RECORD_SIZE];
    let mut out = Writer {
        bytes: &mut record,
        at: 0,
    };
    block_header(&mut out);
    entry_header(&mut out, sequence, time);
    memory_section(&mut out, page);
    record
}

fn block_header(out: &mut Writer<'_>) {
    /// One uncorrectable error, and one entry (bits 13:4).
    const BLOCK_STATUS: u32 = 1 << 0 | 1 << 4;
    out.u32(BLOCK_STATUS);
    out.u32(0); // Raw data: none.
    out.u32(0);
    out.u32((ENTRY_HEADER + MEMORY_SECTION) as u32);
    out.u32(SEVERITY_RECOVERABLE);
}

fn entry_header(out: &mut Writer<'_>, sequence: u64, time: Timestamp) {
    const REVISION: u16 = 0x300;
    const VALID_FRU_TEXT: u8 = 1 << 1;
    const VALID_TIMESTAMP: u8 = 1 << 2;
    const FLAG_PRIMARY: u8 = 1 << 0;
    out.put(&MEMORY_SECTION_TYPE);
    out.u32(SEVERITY_RECOVERABLE);
    out.put(&REVISION.to_le_bytes());
    out.put(&[VALID_FRU_TEXT | VALID_TIMESTAMP, FLAG_PRIMARY]);
    out.u32(MEMORY_SECTION as u32);
    out.put(&[0; 16]); // FRU ID: not valid.
    out.put(&fru_text(sequence));
    out.u64(time.0);
}

/// `gpt ` and the sequence number in hexadecimal: 20 bytes, NUL-terminated.
fn fru_text(sequence: u64) -> [u8; 20] {
    let mut text = *b"gpt 000000000000000\0";
    for (place, digit) in text.iter_mut().skip(4).take(15).rev().enumerate() {
        let nibble = (sequence >> (4 * place) & 0xf) as u8;
        *digit = if nibble < 10 {
            b'0' + nibble
        } else {
            b'a' + (nibble - 10)
        };
    }
    text
}

fn memory_section(out: &mut Writer<'_>, page: Pa) {
    const VALID_ERROR_STATUS: u64 = 1 << 0;
    const VALID_PA: u64 = 1 << 1;
    const VALID_PA_MASK: u64 = 1 << 2;
    const VALID_TYPE: u64 = 1 << 14;
    /// Error type 4, "storage error in memory", in bits 15:8 (UEFI 2.10 table N.10).
    const ERROR_STATUS: u64 = 4 << 8;
    const TYPE_MULTI_BIT_ECC: u8 = 3;
    let start = out.at;
    out.u64(VALID_ERROR_STATUS | VALID_PA | VALID_PA_MASK | VALID_TYPE);
    out.u64(ERROR_STATUS);
    out.u64(page.page().get());
    out.u64(!(PAGE_SIZE - 1));
    out.at = start + 72;
    out.put(&[TYPE_MULTI_BIT_ECC]);
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
    use super::*;

    fn u32_at(record: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(record[at..at + 4].try_into().unwrap())
    }

    fn u64_at(record: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(record[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn a_record_says_which_page_and_how_bad() {
        let time = Timestamp::from_unix(0);
        let record = memory_record(Pa::new(0x80_1234_5678), 7, time);
        assert_eq!(record.len(), 172);
        assert_eq!(u32_at(&record, 0), 0x11, "uncorrectable, one entry");
        assert_eq!(u32_at(&record, 12), 152, "data length");
        assert_eq!(u32_at(&record, 16), 0, "block severity");
        assert_eq!(record[20..36], MEMORY_SECTION_TYPE);
        assert_eq!(u32_at(&record, 36), 0, "section severity");
        assert_eq!(u32_at(&record, 40) & 0xffff, 0x300);
        assert_eq!(u32_at(&record, 44), 80, "section length");
        assert_eq!(&record[64..84], b"gpt 000000000000007\0");
        assert_eq!(u64_at(&record, 84), time.0);
        assert_eq!(u64_at(&record, 92), 0x4007, "valid: status, PA, mask, type");
        assert_eq!(u64_at(&record, 108), 0x80_1234_5000);
        assert_eq!(u64_at(&record, 116), 0xffff_ffff_ffff_f000);
        assert_eq!(record[92 + 72], 3);
        assert_eq!(record[92 + 73..], [0; 7]);
    }

    #[test]
    fn two_records_for_one_page_in_one_second_differ() {
        let time = Timestamp::from_unix(1);
        let record = |sequence| memory_record(Pa::new(0x1000), sequence, time);
        assert_ne!(record(0xabc), record(0xabd));
    }

    #[test]
    fn timestamps_are_bcd_with_century_last() {
        let bytes = |seconds| Timestamp::from_unix(seconds).0.to_le_bytes();
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
    fn garbage_claims_to_be_a_record_and_has_impossible_lengths() {
        let mut bytes = [0; 1024];
        garbage(&mut bytes);
        assert_ne!(u32_at(&bytes, 0) & 1, 0);
        assert!(u32_at(&bytes, 12) > 1024, "data length");
        assert_ne!(bytes[20..36], MEMORY_SECTION_TYPE);
    }
}

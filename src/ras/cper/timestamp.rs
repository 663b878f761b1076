//! The time of an error: eight bytes of binary-coded decimal (UEFI 2.10 N.2.1, "Timestamp").

use core::fmt;

/// When an error happened, as firmware tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Wraps the raw value: from the lowest byte up seconds, minutes, hours, flags, day, month,
    /// year, century.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw value.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// A well-formed time that no other `sequence` of the last 2.9 billion has.
    ///
    /// Linux drops a record that equals one of the last ten seconds byte for byte, and a guest
    /// whose record is dropped takes the same abort again for ever. A machine without a clock still
    /// has to tell two records apart, so it counts: seconds since 2000-01-01, in a calendar
    /// whose months have 28 days. The "precise" flag stays clear.
    pub const fn from_sequence(sequence: u64) -> Self {
        let (seconds, rest) = (sequence % 60, sequence / 60);
        let (minutes, rest) = (rest % 60, rest / 60);
        let (hours, rest) = (rest % 24, rest / 24);
        let (day, rest) = (rest % 28 + 1, rest / 28);
        let (month, rest) = (rest % 12 + 1, rest / 12);
        let year = rest % 100;
        Self(
            bcd(seconds)
                | bcd(minutes) << 8
                | bcd(hours) << 16
                | bcd(day) << 32
                | bcd(month) << 40
                | bcd(year) << 48
                | bcd(20) << 56,
        )
    }

    /// Whether every byte is a decimal number that a clock can show.
    fn is_well_formed(self) -> bool {
        let [second, minute, hour, _, day, month, year, century] =
            self.0.to_le_bytes().map(from_bcd);
        let within =
            |value: Option<u8>, low, high| value.is_some_and(|v| (low..=high).contains(&v));
        within(second, 0, 59)
            && within(minute, 0, 59)
            && within(hour, 0, 23)
            && within(day, 1, 31)
            && within(month, 1, 12)
            && within(year, 0, 99)
            && within(century, 0, 99)
    }
}

/// A number below 100 as one byte of binary-coded decimal.
const fn bcd(value: u64) -> u64 {
    ((value / 10) << 4) | (value % 10)
}

fn from_bcd(byte: u8) -> Option<u8> {
    let (tens, ones) = (byte >> 4, byte & 0xf);
    (tens < 10 && ones < 10).then_some(tens * 10 + ones)
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_well_formed() {
            return write!(f, "{:#018x}", self.0);
        }
        let [second, minute, hour, _, day, month, year, century] = self.0.to_le_bytes();
        write!(
            f,
            "{century:02x}{year:02x}-{month:02x}-{day:02x}T{hour:02x}:{minute:02x}:{second:02x}"
        )
    }
}

//! The firmware's line commands: bytes in, a command or a named error out.
//!
//! The language is in `docs/protocols.md`, "The firmware's control".

use crate::record::ErrorKind;
use cordon::ras::esr::AsyncErrorType;

/// The longest line in bytes, its end not counted.
pub const LINE_MAX: usize = 120;

/// The most pages that one command reports: each is a record, made with all else at rest.
pub const REPORT_MAX: u64 = 256;

/// How consumption is signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// As a synchronous external abort.
    Sea,
    /// As an SError that says this of itself, where EL2 would take one.
    SError(AsyncErrorType),
}

impl Signal {
    /// Its name in commands and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sea => "sea",
            Self::SError(AsyncErrorType::Restartable) => "serror-ueo",
            Self::SError(AsyncErrorType::Unrecoverable) => "serror-ueu",
            Self::SError(AsyncErrorType::Uncontainable) => "serror-uc",
            Self::SError(_) => "serror",
        }
    }
}

/// What is written before consumption is signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// A CPER record.
    On,
    /// Nothing.
    Off,
    /// Bytes that are no record.
    Garbage,
}

impl Record {
    /// Its name in commands and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Garbage => "garbage",
        }
    }
}

/// A command, its numbers as given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Makes pages bad.
    Poison {
        /// An address in the first page.
        pa: u64,
        /// How many.
        pages: u64,
    },
    /// Makes pages good.
    Heal {
        /// An address in the first page.
        pa: u64,
        /// How many.
        pages: u64,
    },
    /// Reports errors that nobody has consumed.
    Report {
        /// An address in the first page.
        pa: u64,
        /// What kind of error each has.
        kind: ErrorKind,
        /// How many pages, [`REPORT_MAX`] at most.
        pages: u64,
    },
    /// Chooses the signal.
    Mode(Signal),
    /// Chooses the record.
    Record(Record),
    /// Asks for the counters.
    Status,
    /// Asks for the commands.
    Help,
}

/// Why a line is no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Its first word is none of the commands.
    UnknownCommand,
    /// A word that must be a number is not one of 64 bits.
    BadNumber,
    /// A word is missing, too many, or not one of those allowed.
    BadArgument,
    /// More than [`LINE_MAX`] bytes.
    LineTooLong,
}

impl Error {
    /// Its name in answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownCommand => "unknown-command",
            Self::BadNumber => "bad-number",
            Self::BadArgument => "bad-argument",
            Self::LineTooLong => "line-too-long",
        }
    }
}

/// Parses one line; `None` for a blank one, which is not answered.
///
/// # Errors
/// [`Error`].
pub fn parse(line: &[u8]) -> Result<Option<Command>, Error> {
    // A byte that is not text is part of no command.
    let line = core::str::from_utf8(line).map_err(|_| Error::UnknownCommand)?;
    let mut words = line.split_ascii_whitespace();
    let Some(name) = words.next() else {
        return Ok(None);
    };
    let command = match name {
        "poison" => span(&mut words).map(|(pa, pages)| Command::Poison { pa, pages })?,
        "heal" => span(&mut words).map(|(pa, pages)| Command::Heal { pa, pages })?,
        "report" => report(&mut words)?,
        "mode" => Command::Mode(match words.next() {
            Some("sea") => Signal::Sea,
            Some("serror") => Signal::SError(AsyncErrorType::Recoverable),
            Some("serror-ueo") => Signal::SError(AsyncErrorType::Restartable),
            Some("serror-ueu") => Signal::SError(AsyncErrorType::Unrecoverable),
            Some("serror-uc") => Signal::SError(AsyncErrorType::Uncontainable),
            _ => return Err(Error::BadArgument),
        }),
        "record" => Command::Record(match words.next() {
            Some("on") => Record::On,
            Some("off") => Record::Off,
            Some("garbage") => Record::Garbage,
            _ => return Err(Error::BadArgument),
        }),
        "status" => Command::Status,
        "help" => Command::Help,
        _ => return Err(Error::UnknownCommand),
    };
    if words.next().is_some() {
        return Err(Error::BadArgument);
    }
    Ok(Some(command))
}

/// `PA [PAGES]`.
fn span<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<(u64, u64), Error> {
    let pa = number(words.next().ok_or(Error::BadArgument)?)?;
    let pages = words.next().map_or(Ok(1), number)?;
    Ok((pa, pages))
}

/// `PA KIND [PAGES]`.
fn report<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<Command, Error> {
    let pa = number(words.next().ok_or(Error::BadArgument)?)?;
    let kind = words
        .next()
        .and_then(ErrorKind::of)
        .ok_or(Error::BadArgument)?;
    let pages = words.next().map_or(Ok(1), number)?;
    if pages > REPORT_MAX {
        return Err(Error::BadArgument);
    }
    Ok(Command::Report { pa, kind, pages })
}

/// Decimal, or hexadecimal after `0x`.
fn number(word: &str) -> Result<u64, Error> {
    let (digits, radix) = word
        .strip_prefix("0x")
        .map_or((word, 10), |digits| (digits, 16));
    // `from_str_radix` takes a sign, the protocol does not.
    if !digits.starts_with(|first: char| first.is_ascii_hexdigit()) {
        return Err(Error::BadNumber);
    }
    u64::from_str_radix(digits, radix).map_err(|_| Error::BadNumber)
}

/// Collects bytes into lines.
#[derive(Debug)]
pub struct LineBuffer {
    bytes: [u8; LINE_MAX],
    /// Bytes of the line so far; those beyond the buffer are counted but lost.
    length: usize,
}

impl LineBuffer {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bytes: [0; LINE_MAX],
            length: 0,
        }
    }

    /// Takes the next byte. At the end of a line calls `complete` with it and returns what that
    /// returns; the buffer is empty afterwards.
    pub fn push<R>(
        &mut self,
        byte: u8,
        complete: impl FnOnce(Result<&[u8], Error>) -> R,
    ) -> Option<R> {
        if matches!(byte, b'\r' | b'\n') {
            let length = core::mem::take(&mut self.length);
            return Some(complete(self.bytes.get(..length).ok_or(Error::LineTooLong)));
        }
        if let Some(place) = self.bytes.get_mut(self.length) {
            *place = byte;
        }
        self.length = self.length.saturating_add(1);
        None
    }
}

impl Default for LineBuffer {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use std::format;

    #[test]
    fn commands_of_the_protocol_are_understood() {
        let poison = |pa, pages| Ok(Some(Command::Poison { pa, pages }));
        assert_eq!(parse(b"poison 0x8000001000"), poison(0x80_0000_1000, 1));
        assert_eq!(parse(b"  poison 4096  0x10 "), poison(4096, 16));
        assert_eq!(
            parse(b"heal 0xABC 2"),
            Ok(Some(Command::Heal {
                pa: 0xabc,
                pages: 2
            }))
        );
        for mode in ["sea", "serror", "serror-ueo", "serror-ueu", "serror-uc"] {
            let command = parse(format!("mode {mode}").as_bytes());
            let is_it = |signal: Signal| signal.name() == mode;
            assert!(matches!(command, Ok(Some(Command::Mode(signal))) if is_it(signal)));
        }
        assert_eq!(
            parse(b"mode serror"),
            Ok(Some(Command::Mode(Signal::SError(
                AsyncErrorType::Recoverable
            ))))
        );
        assert_eq!(
            parse(b"record garbage"),
            Ok(Some(Command::Record(Record::Garbage)))
        );
        assert_eq!(
            parse(b"report 0x1000 ce 2"),
            Ok(Some(Command::Report {
                pa: 0x1000,
                kind: ErrorKind::Corrected,
                pages: 2
            }))
        );
        assert_eq!(parse(b"status"), Ok(Some(Command::Status)));
        assert_eq!(parse(b"help"), Ok(Some(Command::Help)));
        assert_eq!(parse(b" \t"), Ok(None));
    }

    #[test]
    fn numbers_are_strict() {
        for bad in [
            "0x",
            "x1",
            "+1",
            "-1",
            "0x+1",
            "1_000",
            "0x10000000000000000",
            "12a",
        ] {
            let line = std::format!("poison {bad}");
            assert_eq!(parse(line.as_bytes()), Err(Error::BadNumber), "{bad}");
        }
        assert!(parse(b"poison 18446744073709551615").is_ok());
    }

    #[test]
    fn missing_and_surplus_words_are_bad_arguments() {
        for bad in [
            "poison",
            "mode",
            "mode on",
            "record",
            "record sea",
            "status now",
            "heal 1 2 3",
            "report 1",
            "report 1 ue",
            "report 1 ao 257",
        ] {
            assert_eq!(parse(bad.as_bytes()), Err(Error::BadArgument), "{bad}");
        }
    }

    #[test]
    fn other_words_are_unknown() {
        assert_eq!(parse(b"posion 1"), Err(Error::UnknownCommand));
        assert_eq!(parse(b"Poison 1"), Err(Error::UnknownCommand));
        assert_eq!(parse(b"\xff"), Err(Error::UnknownCommand));
    }

    fn lines(bytes: &[u8]) -> Vec<Result<Vec<u8>, Error>> {
        let mut buffer = LineBuffer::new();
        bytes
            .iter()
            .filter_map(|&byte| buffer.push(byte, |line| line.map(<[u8]>::to_vec)))
            .collect()
    }

    #[test]
    fn cr_and_lf_both_end_a_line() {
        assert_eq!(lines(b"a\rb\nc"), [Ok(b"a".to_vec()), Ok(b"b".to_vec())]);
    }

    #[test]
    fn a_line_of_120_bytes_is_the_longest_and_the_next_one_is_whole_again() {
        let mut bytes = std::vec![b'x'; LINE_MAX];
        bytes.push(b'\n');
        assert_eq!(lines(&bytes), [Ok(std::vec![b'x'; LINE_MAX])]);
        bytes.insert(0, b'x');
        bytes.extend(b"ok\n");
        assert_eq!(lines(&bytes), [Err(Error::LineTooLong), Ok(b"ok".to_vec())]);
    }
}

//! Lists of pages that were bad before Cordon started.
//!
//! Two forms. A **list** is text, for people and tools, `poison.txt` in the bundle:
//!
//! ```text
//!   # a comment
//!   0x80123000          the page that holds this address
//!   0x80200000 16       so many pages, the first of which holds it
//! ```
//!
//! A **table** is what ACPI firmware keeps of retired pages (as the page that
//! `nvidia,egm-retired-pages-data-base` points to): a u64 with their number, then as many u64 with an
//! address in each; little-endian, like all that ACPI has. `poison.bin` in the bundle is one, and Cordon's
//! command line can say where in memory there is another.
//!
//! Whoever wrote them may have been wrong: what is no page is said, and the others count.

use core::fmt;

use crate::addr::{PAGE_SIZE, Pa, PaRange};
use crate::platform::cmdline::number;

/// The list's name in the bundle.
pub const LIST_FILE: &str = "poison.txt";
/// The table's.
pub const TABLE_FILE: &str = "poison.bin";

/// Most pages that one list or table can name.
pub const MAX_PAGES: u64 = 4096;

/// What is wrong with a list or table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetiredError {
    /// The list is not ASCII text.
    NotText,
    /// This line, counted from 1, is not an address with or without a number of pages, or names memory
    /// that wraps around.
    BadLine(usize),
    /// The table ends before its number does, or that many addresses do.
    Truncated,
    /// More than [`MAX_PAGES`]; what is beyond them is not counted.
    TooMany,
}

impl fmt::Display for RetiredError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotText => f.write_str("why=not-text"),
            Self::BadLine(line) => write!(f, "why=bad-line line={line}"),
            Self::Truncated => f.write_str("why=truncated"),
            Self::TooMany => f.write_str("why=too-many-pages"),
        }
    }
}

impl core::error::Error for RetiredError {}

/// The ranges of whole pages that a list names, and what is wrong with it.
pub fn list(bytes: &[u8]) -> impl Iterator<Item = Result<PaRange, RetiredError>> + '_ {
    let text = core::str::from_utf8(bytes)
        .ok()
        .filter(|text| text.is_ascii());
    let wrong = text.is_none().then_some(Err(RetiredError::NotText));
    let lines = text.unwrap_or_default().lines().enumerate();
    let entries = lines.filter_map(|(at, line)| {
        let line = line.split('#').next().unwrap_or_default().trim();
        let entry = || entry(line).ok_or(RetiredError::BadLine(at + 1));
        (!line.is_empty()).then(entry)
    });
    bounded(wrong.into_iter().chain(entries))
}

fn entry(line: &str) -> Option<PaRange> {
    let mut words = line.split_ascii_whitespace();
    let start = Pa::new(number(words.next()?)?).page();
    let pages = words.next().map_or(Some(1), number)?;
    if words.next().is_some() {
        return None;
    }
    PaRange::new(start, pages.checked_mul(PAGE_SIZE)?)
}

/// The pages that a table names, and what is wrong with it. What follows the last one does not matter.
pub fn table(bytes: &[u8]) -> impl Iterator<Item = Result<PaRange, RetiredError>> + '_ {
    let (words, _) = bytes.as_chunks::<8>();
    let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
    let count = words.next();
    let there = words.len() as u64;
    let short = count.is_none_or(|count| count > there);
    let count = count.unwrap_or(0).min(there);
    // Bounded by the words that are there, so the conversion is exact.
    let pages = words.take(usize::try_from(count).unwrap_or(usize::MAX));
    let pages = pages
        .map(|word| PaRange::new(Pa::new(word).page(), PAGE_SIZE).ok_or(RetiredError::Truncated));
    let wrong = short.then_some(Err(RetiredError::Truncated));
    bounded(pages.chain(wrong))
}

/// Stops where there are more than [`MAX_PAGES`] pages, and says so.
fn bounded(
    entries: impl Iterator<Item = Result<PaRange, RetiredError>>,
) -> impl Iterator<Item = Result<PaRange, RetiredError>> {
    let (mut left, mut over) = (MAX_PAGES, false);
    entries.map_while(move |entry| {
        if over {
            return None;
        }
        let Ok(range) = entry else {
            return Some(entry);
        };
        let pages = range.size() / PAGE_SIZE;
        over = pages > left;
        left = left.saturating_sub(pages);
        Some(if over {
            Err(RetiredError::TooMany)
        } else {
            entry
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn seen(entry: Result<PaRange, RetiredError>) -> Result<(u64, u64), RetiredError> {
        entry.map(|range| (range.start().get(), range.size() / PAGE_SIZE))
    }

    fn read(text: &str) -> Vec<Result<(u64, u64), RetiredError>> {
        list(text.as_bytes()).map(seen).collect()
    }

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn read_table(bytes: &[u8]) -> Vec<Result<(u64, u64), RetiredError>> {
        table(bytes).map(seen).collect()
    }

    #[test]
    fn a_list_names_pages_and_runs_of_pages() {
        let text = "# head\n\n0x80123abc\n  4096 16 # sixteen\r\n0x10000";
        let expected = [Ok((0x8012_3000, 1)), Ok((0x1000, 16)), Ok((0x1_0000, 1))];
        assert_eq!(read(text), expected);
        assert_eq!(read(""), []);
    }

    #[test]
    fn a_bad_line_is_named_and_the_others_count() {
        let bad = |line| Err(RetiredError::BadLine(line));
        let text = "x\n0x1000\n1 2 3\n0x1000 0\n0xfffffffffffff000 2\n0 0xfffffffffffffff";
        let expected = [bad(1), Ok((0x1000, 1)), bad(3), bad(4), bad(5), bad(6)];
        assert_eq!(read(text), expected);
        assert_eq!(list(&[0xff]).next(), Some(Err(RetiredError::NotText)));
    }

    #[test]
    fn a_table_is_a_number_and_so_many_addresses() {
        let bytes = words(&[2, 0x8000_0123, 0x9000_0000, 0xa000_0000]);
        let pages = [Ok((0x8000_0000, 1)), Ok((0x9000_0000, 1))];
        assert_eq!(read_table(&bytes), pages);
        let short = words(&[5, 0x1000]);
        assert_eq!(
            read_table(&short),
            [Ok((0x1000, 1)), Err(RetiredError::Truncated)]
        );
        for bytes in [&[][..], &[0; 7], &words(&[1])] {
            assert_eq!(read_table(bytes), [Err(RetiredError::Truncated)]);
        }
        assert_eq!(read_table(&words(&[0])), []);
        assert_eq!(read_table(&words(&[u64::MAX])).len(), 1);
    }

    #[test]
    fn more_pages_than_can_be_remembered_are_said_to_be_too_many() {
        let too_many = Err(RetiredError::TooMany);
        assert_eq!(read("0 4096\n0x10000000\n1"), [Ok((0, 4096)), too_many]);
        assert_eq!(read("0 4097"), [too_many]);
    }

    proptest! {
        #[test]
        #[cfg_attr(miri, ignore = "slow, and there is nothing unsafe in it")]
        fn any_bytes_are_read_to_their_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let pages: u64 = table(&bytes).chain(list(&bytes)).flatten().map(|it| it.size() / PAGE_SIZE).sum();
            prop_assert!(pages <= 2 * MAX_PAGES);
        }
    }
}

//! What a guest has lost at this moment, by its own experience: a page enters the book by an abort, and
//! leaves it when it was repaired or touched without one. Shared by all vCPUs without a lock.

use crate::bitmap::Bitmap;
use core::ops::Range;
use core::sync::atomic::AtomicU64;

/// Pages that are lost, and those that the guest has written a value to.
#[derive(Debug)]
pub struct Book<'a> {
    lost: Bitmap<'a>,
    written: Bitmap<'a>,
}

impl<'a> Book<'a> {
    /// One stretch of 512 pages of so many is written to: enough to notice contents that change, and few
    /// enough for memory of which the machine behind it has less, and gives it out in such stretches.
    const WRITTEN: u64 = 64;

    /// How many zeroed words a book about `pages` pages needs.
    pub const fn words_for(pages: u64) -> u64 {
        2 * Bitmap::words_for(pages)
    }

    /// An empty book on [`Book::words_for`] zeroed words.
    pub fn new(words: &'a [AtomicU64]) -> Self {
        let (lost, written) = words.split_at(words.len() / 2);
        Self {
            lost: Bitmap::new(lost),
            written: Bitmap::new(written),
        }
    }

    /// A page gave an abort; true if it was not in the book.
    pub fn lose(&self, page: u64) -> bool {
        self.lost.set(page)
    }

    /// Whether the page is in the book.
    pub fn has_lost(&self, page: u64) -> bool {
        self.lost.contains(page)
    }

    /// These pages are usable again.
    pub fn regain(&self, pages: &Range<u64>) {
        for page in self.lost().filter(|page| pages.contains(page)) {
            self.lost.clear(page);
        }
    }

    /// One page is usable again.
    pub fn regain_one(&self, page: u64) {
        self.lost.clear(page);
    }

    /// The pages in the book, in ascending order.
    pub fn lost(&self) -> impl Iterator<Item = u64> + 'a {
        self.lost.iter()
    }

    /// Whether the page is one that is written to.
    pub const fn is_chosen(page: u64) -> bool {
        (page / 512).is_multiple_of(Self::WRITTEN)
    }

    /// The page holds its value from now on.
    pub fn wrote(&self, page: u64) {
        self.written.set(page);
    }

    /// Whether the page holds its value; it is as it was at the start otherwise.
    pub fn has_written(&self, page: u64) -> bool {
        self.written.contains(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pages: u64) -> Vec<AtomicU64> {
        let count = usize::try_from(Book::words_for(pages)).unwrap();
        core::iter::repeat_with(AtomicU64::default)
            .take(count)
            .collect()
    }

    #[test]
    fn what_is_lost_is_in_the_book_until_it_is_regained() {
        let words = words(1000);
        let book = Book::new(&words);
        assert!(book.lose(7) && !book.lose(7));
        assert!(book.lose(999) && book.lose(64));
        assert!(book.has_lost(7) && !book.has_lost(8));
        book.regain(&(7..65));
        assert!(book.lost().eq([999]));
        book.regain_one(999);
        assert_eq!(book.lost().count(), 0);
        assert!(book.lose(7), "lost once more");
    }

    #[test]
    fn what_was_written_is_a_page_of_its_own() {
        let words = words(128);
        let book = Book::new(&words);
        book.wrote(0);
        assert!(book.has_written(0) && !book.has_written(1) && !book.has_lost(0));
        assert!(book.lose(127));
        assert!(!book.has_written(127));
        let chosen = (0..512 * 128).filter(|page| Book::is_chosen(*page)).count();
        assert_eq!(chosen, 1024);
    }
}

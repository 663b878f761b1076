//! Which pages were lost, and who has said so already.
//!
//! Shared by all vCPUs without a lock: two kinds of bitmaps over page numbers (see [`Pages`]).
//! `lost` only grows: it is the answer to the `lost` command. `known` has one bitmap a vCPU, the
//! pages whose abort this vCPU has reported unasked. It bounds the reports to one a page and vCPU,
//! and a patrol keeps off the pages in it, so that it does not run into the same page for ever. A
//! page that a later `fill` or `sweep` gets through without an abort is forgotten again: if it is
//! lost once more after a repair, that is news.
//!
//! [`Pages`]: crate::pages::Pages

use crate::bitmap::Bitmap;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The record of what was lost.
#[derive(Debug)]
pub struct Ledger<'a> {
    lost: Bitmap<'a>,
    known: Bitmap<'a>,
    pages: u64,
    vcpus: u64,
    anything_known: AtomicBool,
}

impl<'a> Ledger<'a> {
    /// How many zeroed words a ledger for `pages` pages and `vcpus` vCPUs needs.
    pub const fn words_for(pages: u64, vcpus: usize) -> u64 {
        Bitmap::words_for(pages) + Bitmap::words_for(pages * vcpus as u64)
    }

    /// An empty ledger on [`Ledger::words_for`] zeroed words.
    pub fn new(pages: u64, vcpus: usize, words: &'a [AtomicU64]) -> Self {
        let lost = usize::try_from(Bitmap::words_for(pages)).unwrap_or(usize::MAX);
        let (lost, known) = words.split_at_checked(lost).unwrap_or((words, &[]));
        Self {
            lost: Bitmap::new(lost),
            known: Bitmap::new(known),
            pages,
            vcpus: vcpus as u64,
            anything_known: AtomicBool::new(false),
        }
    }

    /// A page gave an abort.
    pub fn lose(&self, page: u64) {
        self.lost.set(page);
    }

    /// The pages that gave an abort since boot.
    pub fn lost(&self) -> impl Iterator<Item = u64> + 'a {
        self.lost.iter()
    }

    /// vCPU `vcpu` took an abort on `page` that nobody asked for; true if that is to be reported.
    pub fn discover(&self, vcpu: usize, page: u64) -> bool {
        self.lose(page);
        self.anything_known.store(true, Ordering::Release);
        self.bit(vcpu as u64, page)
            .is_some_and(|bit| self.known.set(bit))
    }

    /// Whether vCPU `vcpu` has reported `page`.
    pub fn is_known(&self, vcpu: usize, page: u64) -> bool {
        self.bit(vcpu as u64, page)
            .is_some_and(|bit| self.known.contains(bit))
    }

    /// All of `page` was accessed without an abort: an earlier report of it is history.
    pub fn forget(&self, page: u64) {
        if !self.anything_known.load(Ordering::Acquire) {
            return;
        }
        for vcpu in 0..self.vcpus {
            if let Some(bit) = self.bit(vcpu, page) {
                self.known.clear(bit);
            }
        }
    }

    fn bit(&self, vcpu: u64, page: u64) -> Option<u64> {
        (vcpu < self.vcpus && page < self.pages).then(|| vcpu * self.pages + page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pages: u64, vcpus: usize) -> Vec<AtomicU64> {
        (0..Ledger::words_for(pages, vcpus))
            .map(|_| AtomicU64::new(0))
            .collect()
    }

    #[test]
    fn a_page_is_reported_once_by_each_vcpu_and_lost_once() {
        let words = words(100, 2);
        let ledger = Ledger::new(100, 2, &words);
        assert!(ledger.discover(0, 7));
        assert!(!ledger.discover(0, 7));
        assert!(ledger.discover(1, 7));
        assert!(ledger.is_known(1, 7));
        assert!(!ledger.is_known(1, 8));
        assert!(ledger.lost().eq([7]));
    }

    #[test]
    fn a_page_that_came_back_is_news_when_lost_again_but_stays_in_the_record() {
        let words = words(100, 2);
        let ledger = Ledger::new(100, 2, &words);
        assert!(ledger.discover(1, 99));
        ledger.forget(99);
        assert!(!ledger.is_known(1, 99));
        assert!(ledger.lost().eq([99]));
        assert!(ledger.discover(1, 99));
    }

    #[test]
    fn the_last_page_of_one_vcpu_is_not_the_first_of_the_next() {
        let words = words(64, 3);
        let ledger = Ledger::new(64, 3, &words);
        assert!(ledger.discover(0, 63));
        assert!(!ledger.is_known(1, 0));
        assert!(!ledger.discover(0, 64), "no such page");
        assert!(!ledger.discover(3, 0), "no such vCPU");
    }
}

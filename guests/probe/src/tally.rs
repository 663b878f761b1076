//! What a piece of work counted.

use core::ops::AddAssign;

/// Counts of one vCPU's part of a job; the sum of all parts is what is reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Pages that were gone through.
    pub pages: u64,
    /// Pages of which an access aborted.
    pub lost: u64,
    /// Lines or words that held another value than expected.
    pub wrong: u64,
    /// Single loads and stores (`hammer` only).
    pub accesses: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, part: Self) {
        self.pages += part.pages;
        self.lost += part.lost;
        self.wrong += part.wrong;
        self.accesses += part.accesses;
    }
}

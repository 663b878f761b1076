//! Takes memory off the start of a free range, and never gives it back.

use crate::PAGE_SIZE;
use core::ops::Range;

/// A range of which the part below `next` is taken.
#[derive(Clone, Debug)]
pub struct Bump {
    next: u64,
    end: u64,
}

impl Bump {
    /// All of `range` is free.
    pub const fn new(range: Range<u64>) -> Self {
        Self {
            next: range.start,
            end: range.end,
        }
    }

    /// Takes `pages` pages at a multiple of `align` bytes (a power of two, at least a page).
    /// `None` if they do not fit.
    pub fn take(&mut self, pages: u64, align: u64) -> Option<u64> {
        let start = self.next.checked_next_multiple_of(align.max(PAGE_SIZE))?;
        let end = start.checked_add(pages.checked_mul(PAGE_SIZE)?)?;
        if end > self.end {
            return None;
        }
        self.next = end;
        Some(start)
    }

    /// The address below which everything is taken.
    pub const fn next(&self) -> u64 {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_out_disjoint_aligned_pages_until_the_end() {
        let mut bump = Bump::new(0x1800..0x20_5000);
        assert_eq!(bump.take(1, PAGE_SIZE), Some(0x2000));
        assert_eq!(bump.take(5, 0x20_0000), Some(0x20_0000));
        assert_eq!(bump.take(1, PAGE_SIZE), None);
        assert_eq!(bump.take(u64::MAX, PAGE_SIZE), None);
        assert_eq!(bump.take(0, PAGE_SIZE), Some(0x20_5000));
    }
}

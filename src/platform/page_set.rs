//! Pages that are known already, as ranges: what firmware shares with Cordon comes in pieces that
//! begin and end in the middle of pages, and each page is to be mapped once.

use crate::addr::{PAGE_SIZE, Pa, PaRange};
use alloc::vec::Vec;

/// A set of whole pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    /// Sorted; no two overlap or touch.
    ranges: Vec<PaRange>,
}

/// The smallest range that holds `a` and `b`.
fn hull(a: PaRange, b: PaRange) -> PaRange {
    let start = a.start().min(b.start());
    let last = a.last().max(b.last());
    let size = (last.get() - start.get()).checked_add(1);
    size.and_then(|size| PaRange::new(start, size)).unwrap_or(a)
}

/// The pages from the one with `first` to the one with `last`; `None` where there are none.
fn pages(first: Pa, last: Pa) -> Option<PaRange> {
    let start = first.page();
    let size = (last.get() | (PAGE_SIZE - 1)).checked_sub(start.get())?;
    PaRange::new(start, size.checked_add(1)?)
}

impl PageSet {
    /// The ranges, lowest first.
    pub fn ranges(&self) -> impl Iterator<Item = PaRange> + '_ {
        self.ranges.iter().copied()
    }

    /// Whether all of `range` lies in pages of the set.
    pub fn contains(&self, range: PaRange) -> bool {
        self.ranges.iter().any(|known| known.contains_range(range))
    }

    /// The pages that `range` touches and that are not in the set.
    pub fn missing(&self, range: PaRange) -> Vec<PaRange> {
        let mut gaps = Vec::new();
        let mut next = Some(range.start().page());
        for known in self
            .ranges
            .iter()
            .filter(|known| known.last() >= range.start().page())
        {
            let Some(first) = next.filter(|first| *first <= range.last()) else {
                break;
            };
            if known.start() > range.last() {
                break;
            }
            if let Some(last) = known.start().get().checked_sub(1).map(Pa::new)
                && last >= first
            {
                gaps.extend(pages(first, last));
            }
            next = known.last().checked_add(1);
        }
        let rest = next.filter(|first| *first <= range.last());
        gaps.extend(rest.and_then(|first| pages(first, range.last())));
        gaps
    }

    /// Adds the pages that `range` touches.
    pub fn insert(&mut self, range: PaRange) {
        let Some(mut added) = pages(range.start(), range.last()) else {
            return;
        };
        let touches = |a: PaRange, b: PaRange| {
            a.overlaps(b)
                || a.last().checked_add(1) == Some(b.start())
                || b.last().checked_add(1) == Some(a.start())
        };
        self.ranges.retain(|known| {
            let joined = touches(*known, added);
            if joined {
                added = hull(*known, added);
            }
            !joined
        });
        self.ranges.push(added);
        crate::sort::sort_by_key(&mut self.ranges, |range| range.start());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, size: u64) -> PaRange {
        PaRange::new(Pa::new(start), size).unwrap()
    }

    #[test]
    fn a_block_that_straddles_a_known_page_misses_only_the_others() {
        let mut set = PageSet::default();
        set.insert(range(0x1010, 8));
        assert_eq!(set.missing(range(0x1ff0, 0x20)), [range(0x2000, 0x1000)]);
        assert_eq!(set.missing(range(0x1018, 8)), []);
    }

    #[test]
    fn the_last_page_of_all_does_not_wrap() {
        let mut set = PageSet::default();
        let top = range(u64::MAX - 0xfff, 0x1000);
        assert_eq!(set.missing(top), [top]);
        set.insert(top);
        assert_eq!(set.missing(top), []);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 256 }))]

        #[test]
        fn it_agrees_with_a_plain_set_of_page_numbers(
            pieces in prop::collection::vec((0_u64..0x2_0000, 1_u64..0x5000), 1..12),
        ) {
            let mut set = PageSet::default();
            let mut model = std::collections::BTreeSet::new();
            for (start, size) in pieces {
                let piece = range(start, size);
                let missing: Vec<u64> =
                    set.missing(piece).iter().flat_map(|gap| gap.pfns()).collect();
                let expected: Vec<u64> =
                    piece.pfns().filter(|pfn| !model.contains(pfn)).collect();
                prop_assert_eq!(missing, expected);
                prop_assert_eq!(set.contains(piece), piece.pfns().all(|pfn| model.contains(&pfn)));
                set.insert(piece);
                model.extend(piece.pfns());
                let all: Vec<u64> = set.ranges().flat_map(PaRange::pfns).collect();
                prop_assert!(all.iter().eq(model.iter()));
            }
        }
    }
}

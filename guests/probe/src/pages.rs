//! The memory that can be lost, as one row of numbered pages.
//!
//! Page numbers run through the device-memory regions in the order of the device tree, then
//! through the buffer in RAM. Bitmaps and shares of work speak of numbers, everything else of IPAs.

use crate::PAGE_SIZE;
use core::ops::Range;

/// The most regions that the guest keeps track of, its RAM buffer included.
pub const MAX_REGIONS: usize = 17;

/// A page-aligned range of IPAs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub ipa: u64,
    /// Size in pages.
    pub pages: u64,
}

impl Region {
    /// The whole pages within `size` bytes from `ipa`; `None` if there is none or the range wraps.
    pub fn new(ipa: u64, size: u64) -> Option<Self> {
        let start = ipa.checked_next_multiple_of(PAGE_SIZE)?;
        let end = ipa.checked_add(size)? / PAGE_SIZE * PAGE_SIZE;
        let pages = end.checked_sub(start)? / PAGE_SIZE;
        (pages > 0).then_some(Self { ipa: start, pages })
    }

    /// Size in bytes.
    pub const fn size(&self) -> u64 {
        self.pages * PAGE_SIZE
    }

    /// Number within the region of the page that holds `ipa`.
    pub const fn page_of(&self, ipa: u64) -> Option<u64> {
        match ipa.checked_sub(self.ipa) {
            Some(offset) if offset / PAGE_SIZE < self.pages => Some(offset / PAGE_SIZE),
            _ => None,
        }
    }
}

/// The regions, device memory first and RAM last.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    regions: [Region; MAX_REGIONS],
    count: usize,
    device_regions: usize,
}

impl Pages {
    /// Adds a region of device memory, before any RAM. `None` if there are too many.
    pub fn add_device(&mut self, region: Region) -> Option<()> {
        self.add_ram(region)?;
        self.device_regions = self.count;
        Some(())
    }

    /// Adds a buffer in RAM. `None` if there are too many regions.
    pub fn add_ram(&mut self, region: Region) -> Option<()> {
        *self.regions.get_mut(self.count)? = region;
        self.count += 1;
        Some(())
    }

    /// All regions.
    pub fn regions(&self) -> &[Region] {
        self.regions.get(..self.count).unwrap_or(&[])
    }

    /// The regions that are device memory.
    pub fn device_regions(&self) -> &[Region] {
        self.regions.get(..self.device_regions).unwrap_or(&[])
    }

    /// How many pages there are.
    pub fn len(&self) -> u64 {
        self.regions().iter().map(|region| region.pages).sum()
    }

    /// Whether there is no page at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many of the pages are device memory; they have the numbers from 0.
    pub fn device_len(&self) -> u64 {
        self.device_regions()
            .iter()
            .map(|region| region.pages)
            .sum()
    }

    /// The IPA of page `number`.
    pub fn ipa(&self, number: u64) -> Option<u64> {
        let mut rest = number;
        for region in self.regions() {
            if rest < region.pages {
                return Some(region.ipa + rest * PAGE_SIZE);
            }
            rest -= region.pages;
        }
        None
    }

    /// The number of the page that holds `ipa`.
    pub fn number(&self, ipa: u64) -> Option<u64> {
        let mut before = 0;
        for region in self.regions() {
            if let Some(page) = region.page_of(ipa) {
                return Some(before + page);
            }
            before += region.pages;
        }
        None
    }

    /// The numbers of up to `count` pages around page `number`, all of the same region: half of
    /// them before it where the region reaches that far.
    pub fn around(&self, number: u64, count: u64) -> Option<Range<u64>> {
        let mut before = 0;
        for region in self.regions() {
            let end = before + region.pages;
            if number < end {
                let last_start = end.saturating_sub(count).max(before);
                let start = number.saturating_sub(count / 2).clamp(before, last_start);
                return Some(start..end.min(start + count));
            }
            before = end;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> Pages {
        let mut pages = Pages::default();
        pages
            .add_device(Region::new(0x10_0000_0000, 0x10_0000).unwrap())
            .unwrap();
        pages
            .add_device(Region::new(0x8_0000_0000, 0x3000).unwrap())
            .unwrap();
        pages
            .add_ram(Region::new(0x4020_0000, 0x20_0000).unwrap())
            .unwrap();
        pages
    }

    #[test]
    fn only_whole_pages_belong_to_a_region() {
        assert_eq!(Region::new(0x1800, 0x1000), None);
        assert_eq!(
            Region::new(0x1800, 0x2000),
            Some(Region {
                ipa: 0x2000,
                pages: 1
            })
        );
        assert_eq!(Region::new(u64::MAX - 10, 0x1000), None);
        assert_eq!(Region::new(0x1000, 0), None);
    }

    #[test]
    fn ram_is_not_counted_as_device_memory() {
        let pages = example();
        assert_eq!(pages.device_len(), 256 + 3);
        assert_eq!(pages.len(), 256 + 3 + 512);
        assert_eq!(pages.ipa(259), Some(0x4020_0000));
        assert_eq!(pages.ipa(256 + 3 + 512), None);
    }

    #[test]
    fn neighbours_stay_within_the_region() {
        let pages = example();
        assert_eq!(pages.around(100, 32), Some(84..116));
        assert_eq!(pages.around(3, 32), Some(0..32));
        assert_eq!(pages.around(255, 32), Some(224..256));
        assert_eq!(pages.around(257, 32), Some(256..259));
        assert_eq!(pages.around(u64::MAX, 32), None);
    }

    proptest! {
        #![proptest_config(crate::test_config())]

        #[test]
        fn numbers_and_addresses_are_inverse(number in 0..771_u64, offset in 0..PAGE_SIZE) {
            let pages = example();
            prop_assert_eq!(pages.number(pages.ipa(number).unwrap() + offset), Some(number));
        }

        #[test]
        fn the_middle_is_among_its_neighbours(number in 0..771_u64, count in 1..64_u64) {
            let around = example().around(number, count).unwrap();
            prop_assert!(around.contains(&number));
            prop_assert!(around.end - around.start <= count);
        }
    }
}

//! Addresses that cannot be mixed up.
//!
//! A guest's address ([`Ipa`]) and the machine's ([`Pa`]) are both 64-bit numbers, and confusing
//! the two is the classic way for a hypervisor to give away memory. They are distinct types here;
//! the stage-2 tables are the only place where one becomes the other.

use core::fmt;
use core::ops::Range;

/// Size in bytes of the smallest unit of memory that Cordon isolates. A memory error costs
/// exactly this much, whatever the size of the block that maps it.
pub const PAGE_SIZE: u64 = 4096;

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw address.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw address.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The start of the 4 KiB page that holds this address.
            pub const fn page(self) -> Self {
                Self(self.0 & !(PAGE_SIZE - 1))
            }

            /// Whether the address is a multiple of `size`, which must be a power of two.
            pub const fn is_aligned(self, size: u64) -> bool {
                self.0 & (size - 1) == 0
            }

            /// The address rounded down to a multiple of `size`, a power of two.
            pub const fn align_down(self, size: u64) -> Self {
                Self(self.0 & !(size - 1))
            }

            /// `self + bytes`, or `None` where that leaves the 64-bit address space.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// Distance in bytes from `base` up to `self`, or `None` where `self` is below it.
            pub const fn checked_offset_from(self, base: Self) -> Option<u64> {
                self.0.checked_sub(base.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A physical address: what the memory system and CPER records speak of.
    Pa
}

address! {
    /// An intermediate physical address: what a guest believes to be physical.
    Ipa
}

impl Pa {
    /// The number of the 4 KiB frame that holds this address.
    pub const fn pfn(self) -> Pfn {
        Pfn(self.0 >> PAGE_SHIFT)
    }
}

/// The number of a 4 KiB physical page frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Pfn(u64);

impl Pfn {
    /// Wraps a raw frame number.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw frame number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The address of the frame's first byte.
    pub const fn pa(self) -> Pa {
        Pa(self.0 << PAGE_SHIFT)
    }
}

/// A non-empty range of physical memory that does not wrap around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaRange {
    start: Pa,
    size: u64,
}

impl PaRange {
    /// The `size` bytes from `start`, or `None` where that is empty or wraps around.
    pub const fn new(start: Pa, size: u64) -> Option<Self> {
        if size == 0 || start.checked_add(size - 1).is_none() {
            return None;
        }
        Some(Self { start, size })
    }

    /// The block of `1 << shift` bytes that holds `pa`, of which there is one for every address.
    pub(crate) const fn of_block(pa: Pa, shift: u32) -> Self {
        let size = 1 << shift;
        Self {
            start: pa.align_down(size),
            size,
        }
    }

    /// First address.
    pub const fn start(self) -> Pa {
        self.start
    }

    /// Size in bytes, never 0.
    pub const fn size(self) -> u64 {
        self.size
    }

    /// Last address inside the range.
    pub const fn last(self) -> Pa {
        Pa(self.start.0 + (self.size - 1))
    }

    /// Whether `pa` lies inside.
    pub const fn contains(self, pa: Pa) -> bool {
        self.start.0 <= pa.0 && pa.0 <= self.last().0
    }

    /// Whether all of `other` lies inside.
    pub const fn contains_range(self, other: Self) -> bool {
        self.start.0 <= other.start.0 && other.last().0 <= self.last().0
    }

    /// Whether the two share at least one byte.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start.0 <= other.last().0 && other.start.0 <= self.last().0
    }

    /// The frame numbers that the range touches, first to last.
    pub const fn pfns(self) -> Range<u64> {
        (self.start.0 >> PAGE_SHIFT)..((self.last().0 >> PAGE_SHIFT) + 1)
    }
}

impl fmt::Display for PaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..={:#x}", self.start.0, self.last().0)
    }
}

/// Tags a VM's entries in the TLB (`VTTBR_EL2.VMID`, Arm ARM D19.2.162). Cordon hands out 1 to
/// 255: 8 bits are what every implementation has, and 0 stays unused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vmid(u8);

impl Vmid {
    /// The VMID `raw`, or `None` for 0.
    pub const fn new(raw: u8) -> Option<Self> {
        if raw == 0 { None } else { Some(Self(raw)) }
    }

    /// The raw VMID, 1 to 255.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Vmid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_may_end_at_the_last_address_but_not_wrap() {
        let top = PaRange::new(Pa::new(u64::MAX - 0xfff), 0x1000).unwrap();
        assert_eq!(top.last(), Pa::new(u64::MAX));
        assert!(top.contains(Pa::new(u64::MAX)));
        assert_eq!(PaRange::new(Pa::new(u64::MAX - 0xfff), 0x1001), None);
        assert_eq!(PaRange::new(Pa::new(0), 0), None);
    }

    #[test]
    fn neighbouring_ranges_do_not_overlap() {
        let low = PaRange::new(Pa::new(0x1000), 0x1000).unwrap();
        let high = PaRange::new(Pa::new(0x2000), 0x1000).unwrap();
        assert!(!low.overlaps(high));
        assert!(low.overlaps(PaRange::new(Pa::new(0x1fff), 2).unwrap()));
    }

    #[test]
    fn a_range_touches_every_page_it_has_a_byte_of() {
        let range = PaRange::new(Pa::new(0x1fff), 2).unwrap();
        assert_eq!(range.pfns(), 1..3);
    }

    #[test]
    fn vmid_zero_is_not_handed_out() {
        assert_eq!(Vmid::new(0), None);
        assert_eq!(Vmid::new(255).unwrap().get(), 255);
    }
}

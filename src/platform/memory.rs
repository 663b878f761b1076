//! RAM that nobody has yet, and how it is handed out at boot.
//!
//! [`FreeMemory`] starts as RAM minus everything reserved: whole pages, sorted, merged. Pieces are
//! taken for device memory (`reserved=`) and for the VMs' RAM before the first VM runs; nothing
//! comes back. EL2's own heap is another allocator; this one decides *where* guests live.
//!
//! Placement is about block size. A 1 GiB leaf of stage 2 needs IPA and PA equal modulo 1 GiB, so
//! memory of that size is placed congruent to its IPA, and smaller memory congruent modulo 2 MiB; with
//! other granules likewise by the size of their blocks.
//! Among the places that are congruent the cheapest wins: the one that breaks up the fewest whole
//! gigabytes of free memory, then the one in the smallest free range (best fit), then the lowest.
//! A buddy allocator would not do: it knows powers of two, aligned to their own size.

use alloc::vec::Vec;
use core::fmt;

use super::cmdline::ReservedWord;
use crate::addr::{Ipa, PAGE_SIZE, Pa, PaRange};

/// Size of a level-1 block with the 4 KiB granule, and what device memory is congruent to.
pub const GIB: u64 = 1 << 30;

/// Size of a level-2 block with the 4 KiB granule, and what all memory of VMs is aligned to.
pub const BLOCK_2M: u64 = 2 << 20;

/// Why memory cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryError {
    /// No free range has room at the alignment asked for.
    NoRoom {
        /// Bytes asked for.
        size: u64,
        /// The place must have a given offset modulo this.
        align: u64,
        /// Bytes in the largest free range.
        largest: u64,
    },
    /// Some of the range asked for is not free RAM.
    NotFree {
        /// The range asked for.
        range: PaRange,
    },
    /// The size is 0, or size or place is no whole number of pages.
    Misaligned,
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom {
                size,
                align,
                largest,
            } => {
                write!(
                    f,
                    "why=no-room size={size:#x} align={align:#x} largest={largest:#x}"
                )
            }
            Self::NotFree { range } => {
                write!(
                    f,
                    "why=not-free pa={} size={:#x}",
                    range.start(),
                    range.size()
                )
            }
            Self::Misaligned => f.write_str("why=misaligned"),
        }
    }
}

impl core::error::Error for MemoryError {}

/// Free RAM: pages `start..end`, sorted, neither overlapping nor touching, none empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreeMemory {
    spans: Vec<Span>,
}

/// The addresses from `start` up to but without `end`. RAM in the topmost page of the 64-bit
/// address space is not representable, and not existent: PAs have at most 56 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    start: u64,
    end: u64,
}

impl Span {
    const fn size(self) -> u64 {
        self.end - self.start
    }

    /// How many aligned gigabytes lie inside.
    const fn whole_gigabytes(self) -> u64 {
        match self.start.checked_next_multiple_of(GIB) {
            Some(start) => (self.end / GIB).saturating_sub(start / GIB),
            None => 0,
        }
    }

    /// What is left without the part that `taken` covers.
    fn without(self, taken: Self) -> impl Iterator<Item = Self> {
        let below = Self {
            start: self.start,
            end: self.end.min(taken.start),
        };
        let above = Self {
            start: self.start.max(taken.end),
            end: self.end,
        };
        [below, above]
            .into_iter()
            .filter(|span| span.start < span.end)
    }

    fn range(self) -> Option<PaRange> {
        PaRange::new(Pa::new(self.start), self.size())
    }
}

impl FreeMemory {
    /// RAM minus `reserved`. Ranges may overlap each other and need not be aligned: a page counts
    /// only where all of it is RAM, and not where any of it is reserved.
    pub fn new(
        ram: impl IntoIterator<Item = PaRange>,
        reserved: impl IntoIterator<Item = PaRange>,
    ) -> Self {
        let mut spans: Vec<Span> = ram.into_iter().filter_map(|ram| ram_span(&ram)).collect();
        crate::sort::sort(&mut spans);
        let mut free = Self {
            spans: merge(&spans),
        };
        for range in reserved {
            free.remove(covering_span(&range));
        }
        // Joined before pages are cut: two ranges may meet inside a page.
        free.spans = free
            .spans
            .iter()
            .filter_map(|span| whole_pages(*span))
            .collect();
        free
    }

    /// The free ranges, lowest first.
    pub fn ranges(&self) -> impl Iterator<Item = PaRange> + '_ {
        self.spans.iter().filter_map(|span| span.range())
    }

    /// Free bytes in all.
    pub fn total(&self) -> u64 {
        self.spans.iter().map(|span| span.size()).sum()
    }

    /// Bytes in the largest free range.
    pub fn largest(&self) -> u64 {
        self.spans.iter().map(|span| span.size()).max().unwrap_or(0)
    }

    /// Takes exactly `range`.
    ///
    /// # Errors
    /// [`MemoryError::Misaligned`], [`MemoryError::NotFree`]; nothing is taken then.
    pub fn take(&mut self, range: PaRange) -> Result<(), MemoryError> {
        let start = range.start().get();
        if !start.is_multiple_of(PAGE_SIZE) || !range.size().is_multiple_of(PAGE_SIZE) {
            return Err(MemoryError::Misaligned);
        }
        let wanted = covering_span(&range);
        let inside = |span: &Span| span.start <= wanted.start && wanted.end <= span.end;
        if range.size() > wanted.size() || !self.spans.iter().any(inside) {
            return Err(MemoryError::NotFree { range });
        }
        self.remove(wanted);
        Ok(())
    }

    /// Takes `size` bytes for a guest's memory at `ipa`, so that the largest blocks fit: congruent modulo the
    /// first of `blocks`, which has their sizes, that is no larger than `size` and for which there is a place;
    /// otherwise modulo 2 MiB.
    ///
    /// # Errors
    /// [`MemoryError::Misaligned`], [`MemoryError::NoRoom`]; nothing is taken then.
    pub fn allocate_for(
        &mut self,
        ipa: Ipa,
        size: u64,
        blocks: &[u64],
    ) -> Result<PaRange, MemoryError> {
        let mut congruent = |align: u64| self.allocate(size, align, ipa.get() & (align - 1));
        let useful = blocks.iter().filter(|block| size >= **block);
        let mut places = useful.filter_map(|block| congruent(*block).ok());
        match places.next() {
            Some(range) => Ok(range),
            None => congruent(BLOCK_2M),
        }
    }

    /// Takes `size` bytes as [`Self::allocate_for`] does, where no page of `bad` is if there is such a
    /// place.
    ///
    /// # Errors
    /// As there.
    pub fn allocate_good_for(
        &mut self,
        ipa: Ipa,
        size: u64,
        blocks: &[u64],
        bad: &[PaRange],
    ) -> Result<PaRange, MemoryError> {
        let mut good = self.clone();
        for range in bad {
            good.remove(covering_span(range));
        }
        match good.allocate_for(ipa, size, blocks) {
            Ok(range) => self.take(range).map(|()| range),
            Err(_) => self.allocate_for(ipa, size, blocks),
        }
    }

    /// Takes `size` bytes at an address that is `offset` more than a multiple of `align`, a power
    /// of two of at least a page.
    ///
    /// # Errors
    /// [`MemoryError::Misaligned`], [`MemoryError::NoRoom`]; nothing is taken then.
    pub fn allocate(&mut self, size: u64, align: u64, offset: u64) -> Result<PaRange, MemoryError> {
        let whole = |bytes: u64| bytes.is_multiple_of(PAGE_SIZE);
        let aligned = align.is_power_of_two() && align >= PAGE_SIZE && offset < align;
        if size == 0 || !whole(size) || !aligned || !whole(offset) {
            return Err(MemoryError::Misaligned);
        }
        let places = self.spans.iter().flat_map(|span| {
            let starts = [
                lowest(*span, size, align, offset),
                highest(*span, size, align, offset),
            ];
            starts
                .into_iter()
                .flatten()
                .map(|start| Place::new(*span, start, size))
        });
        let no_room = MemoryError::NoRoom {
            size,
            align,
            largest: self.largest(),
        };
        let start = places.min().ok_or(no_room)?.start;
        let range = PaRange::new(Pa::new(start), size).ok_or(no_room)?;
        self.remove(covering_span(&range));
        Ok(range)
    }

    /// Takes what the `reserved=` words of the command line ask for, to be offered as device memory:
    /// one result a word, in their order. Words that name a place are served first, so that one
    /// that does not cannot take it from them.
    pub fn carve(&mut self, words: &[ReservedWord]) -> Vec<Result<PaRange, MemoryError>> {
        let named: Vec<_> = words.iter().map(|word| self.take_named(word)).collect();
        let rest = named.into_iter().zip(words);
        rest.map(|(named, word)| named.unwrap_or_else(|| self.allocate_reserved(word)))
            .collect()
    }

    fn take_named(&mut self, word: &ReservedWord) -> Option<Result<PaRange, MemoryError>> {
        match *word {
            ReservedWord::At(range) => Some(self.take(range).map(|()| range)),
            ReservedWord::Anywhere { .. } => None,
        }
    }

    fn allocate_reserved(&mut self, word: &ReservedWord) -> Result<PaRange, MemoryError> {
        match *word {
            ReservedWord::At(range) => Err(MemoryError::NotFree { range }),
            ReservedWord::Anywhere { size } => {
                // Others will map it, and count on blocks: it is congruent or not there.
                let align = if size >= GIB { GIB } else { BLOCK_2M };
                self.allocate(size, align, 0)
            }
        }
    }

    fn remove(&mut self, taken: Span) {
        self.spans = self
            .spans
            .iter()
            .flat_map(|span| span.without(taken))
            .collect();
    }
}

/// A place for an allocation. The derived order is the order of preference.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    gigabytes_broken: u64,
    free_range: u64,
    start: u64,
}

impl Place {
    fn new(span: Span, start: u64, size: u64) -> Self {
        let taken = Span {
            start,
            end: start.saturating_add(size),
        };
        let left: u64 = span.without(taken).map(Span::whole_gigabytes).sum();
        // Gigabytes that the allocation fills completely are used, not broken.
        let used = taken.whole_gigabytes();
        let gigabytes_broken = span.whole_gigabytes().saturating_sub(left + used);
        Self {
            gigabytes_broken,
            free_range: span.size(),
            start,
        }
    }
}

/// The lowest start in `span` that is `offset` more than a multiple of `align`.
fn lowest(span: Span, size: u64, align: u64, offset: u64) -> Option<u64> {
    let distance = offset.wrapping_sub(span.start) & (align - 1);
    let start = span.start.checked_add(distance)?;
    (start.checked_add(size)? <= span.end).then_some(start)
}

/// The highest such start.
fn highest(span: Span, size: u64, align: u64, offset: u64) -> Option<u64> {
    let last = span.end.checked_sub(size)?;
    let start = last.checked_sub(last.wrapping_sub(offset) & (align - 1))?;
    (start >= span.start).then_some(start)
}

/// Bytes of a RAM range; the topmost page of the address space is cut off.
fn ram_span(range: &PaRange) -> Option<Span> {
    let end = range
        .last()
        .checked_add(1)
        .unwrap_or(range.last().page())
        .get();
    let start = range.start().get();
    (start < end).then_some(Span { start, end })
}

/// The pages that `range` touches.
fn covering_span(range: &PaRange) -> Span {
    let end = range
        .last()
        .page()
        .checked_add(PAGE_SIZE)
        .map_or(u64::MAX, Pa::get);
    Span {
        start: range.start().page().get(),
        end,
    }
}

/// The pages that lie inside `span` completely.
fn whole_pages(span: Span) -> Option<Span> {
    let start = span.start.checked_next_multiple_of(PAGE_SIZE)?;
    let end = span.end & !(PAGE_SIZE - 1);
    (start < end).then_some(Span { start, end })
}

/// Joins sorted spans that overlap or touch.
fn merge(sorted: &[Span]) -> Vec<Span> {
    let mut merged: Vec<Span> = Vec::with_capacity(sorted.len());
    for span in sorted {
        match merged.last_mut() {
            Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
            _ => merged.push(*span),
        }
    }
    merged
}

#[cfg(test)]
mod tests;

//! The one or two pages that an access lies in, put behind addresses of this CPU for as long as it takes.

use super::arithmetic::ones;
use super::env::{Memory, Stop};
use crate::addr::{PAGE_SIZE, Pa};
use crate::ras::media::MediaError;

/// How a page is accessed: as all others do who may have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// Normal, write-back.
    WriteBack,
    /// Normal, non-cacheable.
    NonCacheable,
    /// Device-nGnRE. What is not aligned aborts there.
    Device,
}

/// A CPU has two addresses for pages of guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The page of the first byte, and that of the instruction before.
    First,
    /// The page behind it.
    Second,
}

/// Why an access to an open page failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageError {
    /// It met poison.
    Poisoned,
    /// Others were faster for too long.
    Contended,
    /// The memory has no such accesses.
    Unsupported,
}

/// A page that is behind an address of this CPU until it is dropped. Offsets are below [`PAGE_SIZE`], and what
/// begins there does not reach beyond the page.
pub trait Page {
    /// Reads `size` bytes, 1, 2, 4, 8 or 16, by one access.
    ///
    /// # Errors
    /// [`PageError`].
    fn load(&self, offset: u64, size: u8) -> Result<u128, PageError>;
    /// Writes `size` bytes by one access.
    ///
    /// # Errors
    /// [`PageError`].
    fn store(&self, offset: u64, size: u8, value: u128) -> Result<(), PageError>;
    /// Writes `new` if `expected` is there, in one step for all observers, and returns what was there.
    ///
    /// # Errors
    /// [`PageError`].
    fn exchange(&self, offset: u64, size: u8, expected: u128, new: u128)
    -> Result<u128, PageError>;
    /// Writes zeros.
    ///
    /// # Errors
    /// [`PageError`]: part of it may be written.
    fn zero(&self, offset: u64, length: u64) -> Result<(), PageError>;
    /// Writes the line of the caches back that holds this byte, and forgets it, for all caches.
    ///
    /// # Errors
    /// [`PageError`].
    fn clean(&self, offset: u64) -> Result<(), PageError>;
}

/// Pages of guests, for the CPU that asks.
pub trait Apertures {
    /// An open page.
    type Page: Page;

    /// Puts a page, by its aligned PA, behind one of the CPU's addresses, where none is yet.
    ///
    /// # Errors
    /// [`MediaError::Unreachable`].
    fn open(&self, which: Which, page: Pa, caching: Caching) -> Result<Self::Page, MediaError>;
    /// A barrier for all accesses to memory.
    fn fence(&self);
}

/// What lies within so many bytes that are aligned is atomic (FEAT_LSE2).
const GRANULE: u64 = 16;

/// Whether one step can be made of an access to these bytes, if the memory has such accesses.
pub(super) const fn can_be_atomic(at: u64, length: u64) -> bool {
    at % GRANULE + length <= GRANULE
}

/// Where an access goes.
pub(super) struct Opened<'a, P: Apertures> {
    machine: &'a P,
    /// The address of the first byte.
    at: u64,
    first: P::Page,
    second: Option<P::Page>,
}

impl<'a, P: Apertures> Opened<'a, P> {
    /// Opens the pages of an access that begins at `at`.
    pub(super) fn new(
        machine: &'a P,
        at: u64,
        first: (Pa, Caching),
        second: Option<(Pa, Caching)>,
    ) -> Result<Self, MediaError> {
        let open = |which, (page, caching)| machine.open(which, page, caching);
        Ok(Self {
            machine,
            at,
            first: open(Which::First, first)?,
            second: second
                .map(|second| open(Which::Second, second))
                .transpose()?,
        })
    }

    /// The page of a byte.
    fn page(&self, at: u64) -> &P::Page {
        let behind = at.wrapping_sub(self.at) >= PAGE_SIZE - offset(self.at);
        self.second
            .as_ref()
            .filter(|_| behind)
            .unwrap_or(&self.first)
    }

    /// Whether the bytes lie in one page.
    const fn is_in_one(at: u64, size: u8) -> bool {
        offset(at) + size as u64 <= PAGE_SIZE
    }
}

const fn offset(at: u64) -> u64 {
    at & (PAGE_SIZE - 1)
}

fn stop(error: PageError, at: u64) -> Stop {
    match error {
        PageError::Poisoned => Stop::Poisoned(at),
        PageError::Contended => Stop::Contended,
        PageError::Unsupported => Stop::Unsupported,
    }
}

/// The same where it is not aligned, but lies in 16 bytes that are (FEAT_LSE2): all of those are written, or found as they
/// were, in one step.
fn exchange_within(
    page: &impl Page,
    at: u64,
    size: u8,
    (expected, new): (u128, u128),
) -> Result<u128, PageError> {
    /// How often others may be faster before the guest is to try again itself.
    const TRIES: u32 = 64;
    let (block, shift) = (at & !(GRANULE - 1), 8 * (at & (GRANULE - 1)));
    let part = ones(size);
    for _ in 0..TRIES {
        let old = page.load(block, GRANULE as u8)?;
        let seen = old >> shift & part;
        let wanted = match seen == expected {
            true => old & !(part << shift) | (new & part) << shift,
            false => old,
        };
        if page.exchange(block, GRANULE as u8, old, wanted)? == old {
            return Ok(seen);
        }
    }
    Err(PageError::Contended)
}

impl<P: Apertures> Memory for Opened<'_, P> {
    fn load(&mut self, at: u64, size: u8) -> Result<u128, Stop> {
        let one = |at: u64, size| {
            let loaded = self.page(at).load(offset(at), size);
            loaded.map_err(|error| stop(error, at))
        };
        if Self::is_in_one(at, size) {
            return one(at, size);
        }
        // What is not aligned may be accessed byte by byte (Arm ARM B2.2.1).
        (0..size).try_fold(0, |value, byte| {
            Ok(value | one(at.wrapping_add(byte.into()), 1)? << (8 * u32::from(byte)))
        })
    }

    fn store(&mut self, at: u64, size: u8, value: u128) -> Result<(), Stop> {
        let one = |at: u64, size, value| {
            let stored = self.page(at).store(offset(at), size, value);
            stored.map_err(|error| stop(error, at))
        };
        if Self::is_in_one(at, size) {
            return one(at, size, value);
        }
        (0..size).try_for_each(|byte| {
            let value = value >> (8 * u32::from(byte)) & 0xff;
            one(at.wrapping_add(byte.into()), 1, value)
        })
    }

    fn exchange(&mut self, at: u64, size: u8, expected: u128, new: u128) -> Result<u128, Stop> {
        let page = self.page(at);
        let seen = if at.is_multiple_of(size.into()) {
            page.exchange(offset(at), size, expected, new)
        } else {
            exchange_within(page, offset(at), size, (expected, new))
        };
        seen.map_err(|error| stop(error, at))
    }

    fn zero(&mut self, at: u64, length: u64) -> Result<(), Stop> {
        let zeroed = self.page(at).zero(offset(at), length);
        zeroed.map_err(|error| stop(error, at))
    }

    fn fence(&mut self) {
        self.machine.fence();
    }
}

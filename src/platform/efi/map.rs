//! The memory map (UEFI 2.10, 7.2.3): what is RAM, and what of that stays firmware's.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::{PAGE, ResetService, RuntimeKind, RuntimeRegion};
use crate::addr::{Pa, PaRange};
use crate::platform::machine::{Reserved, ReservedBy};

/// Bytes of a descriptor's known fields; firmware may have longer ones.
const DESCRIPTOR: usize = 40;
const TYPE: usize = 0;
const START: usize = 8;
const PAGES: usize = 24;
const ATTRIBUTES: usize = 32;

/// `EFI_MEMORY_WB`: it can be cached, as RAM can.
const WRITE_BACK: u64 = 1 << 3;
/// `EFI_MEMORY_SP`: kept for a purpose.
const SPECIAL_PURPOSE: u64 = 1 << 18;
/// `EFI_MEMORY_RUNTIME`: firmware uses it for ever.
const RUNTIME: u64 = 1 << 63;

/// Most descriptors that are read: firmware has a hundred or two.
const MAX_DESCRIPTORS: usize = 4096;

/// Why a map is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// It is no whole number of descriptors, or too many, or they are too short.
    BadSize {
        /// Bytes of the map.
        size: usize,
        /// Bytes of a descriptor.
        descriptor: usize,
    },
    /// A descriptor's memory is not whole pages, or wraps around.
    BadDescriptor {
        /// Its number.
        index: usize,
    },
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadSize { size, descriptor } => {
                write!(f, "why=bad-map-size size={size} descriptor={descriptor}")
            }
            Self::BadDescriptor { index } => write!(f, "why=bad-descriptor index={index}"),
        }
    }
}

impl core::error::Error for MapError {}

/// Memory, by a map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// RAM, sorted, and joined where it touches.
    pub ram: Vec<PaRange>,
    /// What of it is not to be used.
    pub reserved: Vec<Reserved>,
    /// Where ACPI tables and what belongs to them may be.
    pub tables: Vec<PaRange>,
    /// What the firmware wants mapped when it is called again.
    pub runtime: Vec<RuntimeRegion>,
}

/// What becomes of memory.
enum Use {
    /// It may be used.
    Free,
    /// It is RAM, and firmware's.
    Kept(&'static str),
    /// No RAM, or it is broken.
    None,
}

/// By the memory's type (table 7-6).
fn usage(kind: u32, attributes: u64) -> Use {
    if attributes & WRITE_BACK == 0 {
        return Use::None;
    }
    match kind {
        5 => Use::Kept("runtime-code"),
        6 => Use::Kept("runtime-data"),
        9 => Use::Kept("acpi-reclaim"),
        10 => Use::Kept("acpi-nvs"),
        // Loader's, boot services', conventional.
        1..=4 | 7 if attributes & RUNTIME != 0 => Use::Kept("runtime"),
        1..=4 | 7 if attributes & SPECIAL_PURPOSE != 0 => Use::Kept("special-purpose"),
        1..=4 | 7 => Use::Free,
        _ => Use::None,
    }
}

/// As what firmware wants `kind` of memory mapped.
fn runtime_kind(kind: u32, attributes: u64) -> RuntimeKind {
    match kind {
        _ if attributes & WRITE_BACK == 0 => RuntimeKind::Registers,
        5 => RuntimeKind::Code,
        _ => RuntimeKind::Data,
    }
}

impl Memory {
    /// Reads `map`, whose descriptors have `descriptor` bytes each.
    ///
    /// # Errors
    /// [`MapError`]; half a map is not believed.
    #[inline(never)] // Twice at boot: before boot services end, and behind.
    pub fn read(map: &[u8], descriptor: usize) -> Result<Self, MapError> {
        let size = map.len();
        let bad_size = MapError::BadSize { size, descriptor };
        let fits = descriptor >= DESCRIPTOR && size.checked_rem(descriptor) == Some(0);
        if !fits || size / descriptor > MAX_DESCRIPTORS {
            return Err(bad_size);
        }
        let mut memory = Self::default();
        for (index, bytes) in map.chunks_exact(descriptor).enumerate() {
            let bad = MapError::BadDescriptor { index };
            memory.add(bytes).ok_or(bad)?;
        }
        memory.ram = join(memory.ram);
        memory.tables = join(memory.tables);
        Ok(memory)
    }

    /// Takes note of a descriptor; `None` for a bad one.
    fn add(&mut self, bytes: &[u8]) -> Option<()> {
        let kind = u32::from_le_bytes(*bytes.get(TYPE..)?.first_chunk()?);
        let word = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let (start, pages) = (word(START)?, word(PAGES)?);
        if pages == 0 {
            return Some(());
        }
        let range = PaRange::new(Pa::new(start), pages.checked_mul(PAGE)?)?;
        if !range.start().is_aligned(PAGE) {
            return None;
        }
        let attributes = word(ATTRIBUTES)?;
        if attributes & RUNTIME != 0 {
            let kind = runtime_kind(kind, attributes);
            self.runtime.push(RuntimeRegion { range, kind });
        }
        match usage(kind, attributes) {
            Use::None => return Some(()),
            Use::Free => {}
            Use::Kept(why) => {
                let by = ReservedBy::Node(String::from(why));
                self.reserved.push(Reserved { range, by });
                // Tables are in memory for tables; some firmware has them with its other data.
                if matches!(kind, 6 | 9 | 10) {
                    self.tables.push(range);
                }
            }
        }
        self.ram.push(range);
        Some(())
    }

    /// ResetSystem, whose code is at `entry`; `None` where the map does not have that.
    pub fn reset_service(&self, entry: Pa) -> Option<ResetService> {
        ResetService::new(entry, self)
    }

    /// Whether all of `range` is RAM.
    pub fn contains(&self, range: PaRange) -> bool {
        self.ram.iter().any(|ram| ram.contains_range(range))
    }
}

/// Sorts, and joins what touches or overlaps.
fn join(mut ranges: Vec<PaRange>) -> Vec<PaRange> {
    ranges.sort_by_key(|range| range.start());
    let mut joined: Vec<PaRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        let touches = |last: &PaRange| {
            let behind = last.last().checked_add(1);
            behind.is_none_or(|behind| range.start() <= behind)
        };
        match joined.last_mut() {
            Some(last) if touches(last) => {
                let end = last.last().max(range.last());
                let size = end.get().wrapping_sub(last.start().get()).checked_add(1);
                *last = size
                    .and_then(|size| PaRange::new(last.start(), size))
                    .unwrap_or(*last);
            }
            _ => joined.push(range),
        }
    }
    joined
}

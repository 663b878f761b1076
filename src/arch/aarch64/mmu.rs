//! EL2's own stage 1: an identity map of Cordon itself and of the devices it drives.
//!
//! Guest memory is not in it. Whoever must look at other memory while the machine is being set up
//! opens a [`Window`], and when that is dropped, the memory is gone from EL2's view again: what
//! is not mapped cannot be speculated into, so poison in it cannot be consumed by EL2.
#![expect(
    unsafe_code,
    reason = "writes translation tables and makes slices of raw memory"
)]

use super::layout;
use aarch64_paging::{
    MapError,
    descriptor::El23Attributes,
    idmap::IdMap,
    paging::{Constraints, El2, MemoryRegion},
};
use cordon::addr::{PAGE_SIZE, Pa, PaRange};
use cordon::platform::efi::{ResetService, RuntimeKind, RuntimeRegion};
use core::fmt;
use core::ops::{Deref, DerefMut, Range};
use spin::Mutex;

/// Level 1: 39 bits of address, as `TCR_EL2` says (boot.rs).
const ROOT_LEVEL: usize = 1;

/// Index 1 of `MAIR_EL2`: Normal write-back.
const NORMAL: El23Attributes = El23Attributes::VALID
    .union(El23Attributes::ACCESSED)
    .union(El23Attributes::USER_RES1)
    .union(El23Attributes::INNER_SHAREABLE)
    .union(El23Attributes::ATTRIBUTE_INDEX_1);
const TEXT: El23Attributes = NORMAL.union(El23Attributes::READ_ONLY);
const RODATA: El23Attributes = TEXT.union(El23Attributes::XN);
const DATA: El23Attributes = NORMAL.union(El23Attributes::XN);
/// Index 0 of `MAIR_EL2`: Device-nGnRE.
const DEVICE: El23Attributes = El23Attributes::VALID
    .union(El23Attributes::ACCESSED)
    .union(El23Attributes::USER_RES1)
    .union(El23Attributes::XN);

/// The widest register of a device that Cordon drives, in bytes: one that is not aligned faults.
const REGISTER_ALIGN: u64 = 8;

/// Why memory could not be mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The real map is not there yet.
    NotReady,
    /// It is mapped already: Cordon's own memory, or another window's.
    InUse(PaRange),
    /// Address 0, which Rust has no reference to, or registers that are not aligned.
    BadAddress(PaRange),
    /// The paging library refused.
    Map(MapError),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady => f.write_str("no-map"),
            Self::InUse(range) => write!(f, "in-use:{range}"),
            Self::BadAddress(range) => write!(f, "bad-address:{range}"),
            Self::Map(_) => f.write_str("outside-of-el2-map"),
        }
    }
}

impl From<MapError> for Error {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

struct Map {
    tables: IdMap<El2>,
    /// What is mapped beside the image, page-aligned.
    used: alloc::vec::Vec<PaRange>,
}

static MAP: Mutex<Option<Map>> = Mutex::new(None);

/// Builds the map of the image and switches to it from the boot table.
///
/// # Errors
///
/// If the image lies beyond the map's 512 GiB, or the heap is too small for the tables.
pub fn init() -> Result<(), Error> {
    let mut tables = image_map()?;
    // SAFETY: everything that runs or is referred to, the tables themselves included, is part of
    // the image, which was mapped just now with the rights that each part of it needs. The map is
    // never dropped. `activate` sets the same root again and remembers that it is live.
    unsafe {
        super::boot::switch_table(tables.root_address().0 as u64);
        tables.activate();
    }
    *MAP.lock() = Some(Map {
        tables,
        used: alloc::vec::Vec::with_capacity(16),
    });
    Ok(())
}

/// A map of the image.
fn image_map() -> Result<IdMap<El2>, Error> {
    let mut tables = IdMap::new(ROOT_LEVEL, El2);
    let mut map =
        |start: u64, end: u64, attributes| tables.map_range(&region(start, end), attributes);
    map(layout::image_start(), layout::text_end(), TEXT)?;
    map(layout::text_end(), layout::relro_end(), RODATA)?;
    map(layout::relro_end(), layout::bss_end(), DATA)?;
    for cpu in 0..layout::MAX_CPUS {
        let top = layout::stack_top(cpu);
        map(top - layout::STACK_SLOT_SIZE / 2, top, DATA)?;
    }
    map(layout::heap_start(), layout::heap_end(), DATA)?;
    Ok(tables)
}

/// Another map, for good: the image, and what `service` wants mapped; and `uart`. Returns its root, for
/// [`super::boot::switch_table`].
///
/// # Errors
///
/// As [`Error`] says.
pub fn firmware_map(service: &ResetService, uart: Option<PaRange>) -> Result<u64, Error> {
    let own = layout::own_memory().ok_or(Error::NotReady)?;
    let mut tables = image_map()?;
    for RuntimeRegion { range, kind } in &service.regions {
        if range.overlaps(own) {
            return Err(Error::InUse(own));
        }
        let attributes = match kind {
            // As Linux has it: what is code in there, and what its data, is not said.
            RuntimeKind::Code => NORMAL,
            RuntimeKind::Data => DATA,
            RuntimeKind::Registers => DEVICE,
        };
        set(&mut tables, *range, attributes)?;
    }
    if let Some(page) = uart.and_then(|uart| service.beside(uart)) {
        set(&mut tables, page, DEVICE)?;
    }
    let root = tables.root_address().0 as u64;
    // No CPU walks it before the end, and from then on one does.
    core::mem::forget(tables);
    Ok(root)
}

/// `TTBR0_EL2` for the secondary CPUs.
pub fn root() -> u64 {
    MAP.lock()
        .as_ref()
        .map_or(0, |map| map.tables.root_address().0 as u64)
}

/// Maps device registers for good.
///
/// # Errors
///
/// As [`Error`] says. A second driver for the same page is refused.
pub fn map_device(range: PaRange) -> Result<(), Error> {
    if !range.start().is_aligned(REGISTER_ALIGN) {
        return Err(Error::BadAddress(range));
    }
    map(pages(range), DEVICE)
}

/// Maps memory that EL2 shares with firmware for good, error status blocks, by whole pages, and
/// returns what is mapped.
///
/// # Errors
///
/// As [`Error`] says.
pub fn map_shared(range: PaRange) -> Result<PaRange, Error> {
    let mapped = pages(range);
    map(mapped, DATA)?;
    Ok(mapped)
}

fn map(range: PaRange, attributes: El23Attributes) -> Result<(), Error> {
    let mut guard = MAP.lock();
    let map = guard.as_mut().ok_or(Error::NotReady)?;
    let own = layout::own_memory().ok_or(Error::NotReady)?;
    let taken = |other: &&PaRange| other.overlaps(range);
    if range.start() == Pa::new(0) {
        return Err(Error::BadAddress(range));
    }
    let slots = super::page_slot::addresses();
    if let Some(other) = map.used.iter().chain([&own]).chain(&slots).find(taken) {
        return Err(Error::InUse(*other));
    }
    set(&mut map.tables, range, attributes)?;
    map.used.push(range);
    Ok(())
}

/// What of EL2's memory `range` overlaps, if any: Cordon itself, its devices, what it shares with
/// firmware. None of that may ever be a guest's.
pub fn conflict(range: PaRange) -> Option<PaRange> {
    let guard = MAP.lock();
    let used = guard.iter().flat_map(|map| map.used.iter().copied());
    used.chain(layout::own_memory())
        .find(|own| own.overlaps(range))
}

fn unmap(range: PaRange) {
    let mut guard = MAP.lock();
    let Some(map) = guard.as_mut() else { return };
    // Clearing VALID is a break without a make: always allowed on a live table. The library
    // invalidates the TLB for the range and frees the tables that become empty.
    if set(&mut map.tables, range, El23Attributes::empty()).is_err() {
        log::error!("event=error what=el2-map why=unmap-failed range={range}");
    }
    map.used.retain(|used| *used != range);
}

fn set(tables: &mut IdMap<El2>, range: PaRange, attributes: El23Attributes) -> Result<(), Error> {
    let end = range
        .last()
        .checked_add(1)
        .ok_or(Error::BadAddress(range))?;
    let region = region(range.start().get(), end.get());
    let mapped =
        tables.map_range_with_constraints(&region, attributes, Constraints::NO_CONTIGUOUS_HINT);
    mapped.map_err(Error::Map)
}

fn region(start: u64, end: u64) -> MemoryRegion {
    MemoryRegion::new(start as usize, end as usize)
}

fn pages(range: PaRange) -> PaRange {
    let start = range.start().page();
    let last = range.last().get() | (PAGE_SIZE - 1);
    // All of the 64-bit address space has no size; EL2's map does not reach as far anyway.
    let size = (last - start.get()).checked_add(1);
    size.and_then(|size| PaRange::new(start, size))
        .unwrap_or(range)
}

/// A view of the registers of a device that is a VM's, for as long as it lives.
#[derive(Debug)]
pub struct DeviceWindow {
    registers: PaRange,
    mapped: PaRange,
}

impl DeviceWindow {
    /// Opens a window on `registers`.
    ///
    /// # Errors
    ///
    /// As [`Error`] says.
    pub fn open(registers: PaRange) -> Result<Self, Error> {
        if !registers.start().is_aligned(REGISTER_ALIGN) {
            return Err(Error::BadAddress(registers));
        }
        let mapped = pages(registers);
        map(mapped, DEVICE)?;
        Ok(Self { registers, mapped })
    }

    /// Address of its first register.
    pub fn start(&self) -> Pa {
        self.registers.start()
    }

    /// The word at `offset`, a multiple of 4, if it is one of the device's.
    pub fn read(&self, offset: u64) -> Option<u32> {
        let address = self.register(offset)?;
        // SAFETY: aligned, and mapped as device memory for as long as `self` lives; what reading it
        // does is the device's affair.
        Some(unsafe { core::ptr::read_volatile(address) })
    }

    /// Sets that word, if it is one of the device's.
    pub fn write(&self, offset: u64, value: u32) {
        if let Some(address) = self.register(offset) {
            // SAFETY: as above. The device is told nothing about any memory.
            unsafe { core::ptr::write_volatile(address, value) };
        }
    }

    fn register(&self, offset: u64) -> Option<*mut u32> {
        let inside = offset.is_multiple_of(4) && offset.checked_add(4)? <= self.registers.size();
        let address = self.registers.start().checked_add(offset)?;
        inside.then_some(address.get() as *mut u32)
    }
}

impl Drop for DeviceWindow {
    fn drop(&mut self) {
        unmap(self.mapped);
    }
}

/// A view of memory that is not Cordon's, for as long as it lives.
#[derive(Debug)]
pub struct Window {
    asked: PaRange,
    mapped: PaRange,
}

impl Window {
    /// Opens a window on `range`.
    ///
    /// # Errors
    ///
    /// As [`Error`] says.
    ///
    /// # Safety
    ///
    /// `range` must be RAM, and until the window is closed nobody else may write to it: no guest
    /// runs in it, no device or firmware is told to use it.
    pub unsafe fn open(range: PaRange) -> Result<Self, Error> {
        let mapped = pages(range);
        map(mapped, DATA)?;
        Ok(Self {
            asked: range,
            mapped,
        })
    }
}

impl Window {
    /// Opens a window on `range` while the machine is being set up: no guest runs, and what
    /// firmware and boot loader left in memory stays as it is.
    ///
    /// # Errors
    ///
    /// As [`Error`] says.
    pub fn open_at_boot(range: PaRange) -> Result<Self, Error> {
        // SAFETY: nothing but the boot CPU runs, and it opens windows on ranges that do not
        // overlap (`map` refuses) and that are RAM by the word of the DTB.
        unsafe { Self::open(range) }
    }

    /// Opens a window on memory of a VM none of whose vCPUs runs, or on the bundle.
    ///
    /// # Errors
    ///
    /// As [`Error`] says.
    pub fn open_stopped(range: PaRange) -> Result<Self, Error> {
        // SAFETY: the caller loads a VM that has no vCPU running and alone may start one; the bundle
        // is read and never written; windows do not overlap (`map` refuses).
        unsafe { Self::open(range) }
    }

    /// The `len` bytes at the physical address `start`, where the window shows all of them.
    pub fn at(&self, start: Pa, len: usize) -> Option<&[u8]> {
        self.get(self.part(start, len)?)
    }

    /// The same, to be written.
    pub fn at_mut(&mut self, start: Pa, len: usize) -> Option<&mut [u8]> {
        let part = self.part(start, len)?;
        self.get_mut(part)
    }

    fn part(&self, start: Pa, len: usize) -> Option<Range<usize>> {
        let offset = start.checked_offset_from(self.asked.start())?;
        let offset = usize::try_from(offset).ok()?;
        Some(offset..offset.checked_add(len)?)
    }
}

impl Deref for Window {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let start = self.asked.start().get() as *const u8;
        // SAFETY: the range is mapped Normal memory for as long as `self` lives, overlaps nothing
        // that Rust knows of (`map` checked), and is written through `&mut self` alone (`open`).
        unsafe { core::slice::from_raw_parts(start, self.asked.size() as usize) }
    }
}

impl DerefMut for Window {
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = self.asked.start().get() as *mut u8;
        // SAFETY: as above, and `&mut self` makes it the only view.
        unsafe { core::slice::from_raw_parts_mut(start, self.asked.size() as usize) }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        unmap(self.mapped);
    }
}

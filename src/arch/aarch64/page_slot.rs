//! Looking at single pages that are not in EL2's map: each CPU has a few addresses of its own, behind which it
//! puts a page for as long as one routine needs it, or one access that is carried out for a guest.
//!
//! The routines may meet poison. Whatever of them aborts goes on at one landing, and they say so.
//! What EL2's identity map cannot reach, memory beyond its 512 GiB, can be had in this way as well.
//!
//! # Caches
//!
//! Whole pages are read and written as write-back memory, whatever their guests have them as. One that has its own as
//! non-cacheable or Device, by stage 2 or by its stage 1 where nothing forces that, looks past the caches, so there may be
//! lines of its page which are not what memory has, and it must not find lines of ours. So a page is cleaned and
//! invalidated to the point of coherency before it is read (Arm ARM B2, "Mismatched memory attributes"), which leaves
//! what memory has, with the stores of guests that do use the caches; and after it was read or written, which leaves
//! nothing behind for whoever has it next. What [`verify`] reads so is memory and no cache. Nobody writes meanwhile: the
//! page is nobody's, or read-only wherever it is mapped. What may be fetched by speculation after that, until the address is
//! gone, is what memory has, and clean: nothing is ever written back from it.
//!
//! A page that is opened for an access of a guest is opened as what the guest has it, so there is no mismatch.
#![expect(
    unsafe_code,
    reason = "writes translation tables, and instructions that may abort"
)]

use super::{cpu, layout, mmu, tlb};
use cordon::addr::{PAGE_SIZE, Pa, PaRange};
use cordon::ras::media::MediaError;
use cordon::vm::access::pages::{Caching, Page, PageError, Which};
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

/// The last gigabyte of EL2's 39 bits of address.
const BASE: u64 = ENTRY << 30;
/// The level-1 entry for it.
const ENTRY: u64 = 511;
/// Pages that a CPU can look at, at once: two by the routines of this module, two by [`open`].
const SLOTS: usize = 4;
/// The first of the latter.
const OPEN: usize = 2;

/// A translation table (4K granule).
#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

impl Table {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 512])
    }

    fn descriptor(&self) -> u64 {
        const TABLE: u64 = 0b11;
        core::ptr::from_ref(self).addr() as u64 | TABLE
    }
}

static LEVEL_2: Table = Table::new();
static LEVEL_3: Table = Table::new();

const _: () = assert!(SLOTS * layout::MAX_CPUS <= 512, "one table has to do");

/// A page: valid, AP\[1\] RES1, Inner Shareable, AF, XN (Arm ARM D8.3, stage 1 of a regime with one exception
/// level).
const PAGE: u64 = 0b11 | 1 << 6 | 0b11 << 8 | 1 << 10 | 1 << 54;
/// AttrIndx of Device-nGnRE, Normal write-back and Normal non-cacheable memory (`MAIR_EL2`, boot.rs).
const DEVICE: u64 = 0 << 2;
const WRITE_BACK: u64 = 1 << 2;
const NON_CACHEABLE: u64 = 2 << 2;
/// Bits \[47:12\] of a page descriptor; the CPUs here have no more of PA that is used.
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// The addresses that this module uses: nothing may be mapped there by anybody else.
pub fn addresses() -> Option<PaRange> {
    PaRange::new(Pa::new(BASE), 1 << 30)
}

/// Hangs the tables into EL2's map, which must be live. Called once, on the boot CPU, before others run.
pub fn init() {
    let root = mmu::root() as *const AtomicU64;
    let [first, ..] = &LEVEL_2.0;
    first.store(LEVEL_3.descriptor(), Ordering::Relaxed);
    // SAFETY: the root is one table of 512 words in the heap, mapped and kept for good. Whoever else writes
    // to it does so for other entries: `addresses` is in use, so `mmu` maps nothing there.
    let entry = unsafe { &*root.add(ENTRY as usize) };
    entry.store(LEVEL_2.descriptor(), Ordering::Release);
    publish();
}

/// A page behind one of this CPU's addresses, until it is dropped.
struct Slot {
    word: &'static AtomicU64,
    address: u64,
}

impl Slot {
    /// Puts `page` behind this CPU's address number `which`. Nobody else uses that: EL2 is not interrupted,
    /// no routine of this module calls another, and what holds an [`OpenPage`] opens no second of the kind.
    fn open(which: usize, page: Pa) -> Result<Self, MediaError> {
        Self::open_as(which, page, WRITE_BACK)
    }

    fn open_as(which: usize, page: Pa, memory: u64) -> Result<Self, MediaError> {
        let cpu = cpu::try_this().ok_or(MediaError::Unreachable)?.index;
        let at = SLOTS * cpu + which;
        let word = LEVEL_3.0.get(at).ok_or(MediaError::Unreachable)?;
        if page.get() & !ADDRESS != 0 {
            return Err(MediaError::Unreachable);
        }
        // From invalid to valid: a barrier, no invalidation.
        word.store(page.get() | PAGE | memory, Ordering::Relaxed);
        publish();
        let address = BASE + at as u64 * PAGE_SIZE;
        Ok(Self { word, address })
    }

    /// What was written is to be seen by observers without caches, too: guests may have them off.
    fn clean(&self) -> Result<(), MediaError> {
        tlb::clean_to_poc(self.address, PAGE_SIZE).map_err(|_| MediaError::Poisoned)
    }

    /// No cache holds anything of the page any more.
    fn forget(&self) -> Result<(), MediaError> {
        tlb::clean_data_to_poc(self.address, PAGE_SIZE).map_err(|_| MediaError::Poisoned)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.word.store(0, Ordering::Relaxed);
        let page = self.address >> 12;
        // SAFETY: invalidates one address, which nobody uses any more. All CPUs: they share the tables, and
        // may have speculated.
        unsafe {
            asm!("dsb ishst", "tlbi vae2is, {}", "dsb ish", "isb", in(reg) page,
                 options(nostack, preserves_flags));
        }
    }
}

fn publish() {
    // SAFETY: barriers.
    unsafe { asm!("dsb ishst", "isb", options(nostack, preserves_flags)) };
}

// x0, x1: pages. An abort overwrites the registers in which the exit that is being handled was reported,
// and where the guest goes on: they are kept in x9 to x13, which the handler gives back.
global_asm!(
    ".global page_verify, page_clear, page_copy, page_routines_end, page_landing",
    ".global page_load, page_store, page_exchange, page_zero",
    ".macro keep_exit",
    "mrs x9, elr_el2",
    "mrs x10, spsr_el2",
    "mrs x11, esr_el2",
    "mrs x12, far_el2",
    "mrs x13, hpfar_el2",
    "mov x8, #{page}",
    ".endm",
    "page_verify:",
    "keep_exit",
    "1: ldp x2, x3, [x0], #16",
    "subs x8, x8, #16",
    "b.ne 1b",
    "b page_done",
    "page_clear:",
    "keep_exit",
    "1: stp xzr, xzr, [x0], #16",
    "subs x8, x8, #16",
    "b.ne 1b",
    "b page_done",
    "page_copy:",
    "keep_exit",
    "1: ldp x2, x3, [x0], #16",
    "stp x2, x3, [x1], #16",
    "subs x8, x8, #16",
    "b.ne 1b",
    "b page_done",
    // x1 is log2 of the size, x2 where the 16 bytes go.
    "page_load:",
    "keep_exit",
    "mov x4, #0",
    "cmp x1, #2",
    "b.eq 2f",
    "b.hi 3f",
    "cbnz x1, 1f",
    "ldrb w3, [x0]",
    "b 5f",
    "1: ldrh w3, [x0]",
    "b 5f",
    "2: ldr w3, [x0]",
    "b 5f",
    "3: cmp x1, #4",
    "b.eq 4f",
    "ldr x3, [x0]",
    "b 5f",
    "4: ldp x3, x4, [x0]",
    "5: stp x3, x4, [x2]",
    "mov x0, #0",
    "ret",
    // x2 and x3 are the value.
    "page_store:",
    "keep_exit",
    "cmp x1, #2",
    "b.eq 2f",
    "b.hi 3f",
    "cbnz x1, 1f",
    "strb w2, [x0]",
    "b page_done",
    "1: strh w2, [x0]",
    "b page_done",
    "2: str w2, [x0]",
    "b page_done",
    "3: cmp x1, #4",
    "b.eq 4f",
    "str x2, [x0]",
    "b page_done",
    "4: stp x2, x3, [x0]",
    "b page_done",
    // x2: what is expected and what is written instead, 16 bytes each; the former becomes what was there. An
    // exclusive that fails is made again, so many times.
    ".macro exchange_one, load, store, register",
    "8: \\load \\register\\()14, [x0]",
    "cmp \\register\\()14, \\register\\()3",
    "b.ne 7f",
    "\\store w15, \\register\\()5, [x0]",
    "cbz w15, 7f",
    "subs x7, x7, #1",
    "b.ne 8b",
    "b 9f",
    "7: clrex",
    "str x14, [x2]",
    "b page_done",
    ".endm",
    "page_exchange:",
    "keep_exit",
    "ldp x3, x4, [x2]",
    "ldp x5, x6, [x2, #16]",
    "mov x7, #{tries}",
    "cmp x1, #2",
    "b.eq 2f",
    "b.hi 3f",
    "cbnz x1, 1f",
    "exchange_one ldaxrb, stlxrb, w",
    "1: exchange_one ldaxrh, stlxrh, w",
    "2: exchange_one ldaxr, stlxr, w",
    "3: cmp x1, #4",
    "b.eq 4f",
    "exchange_one ldaxr, stlxr, x",
    // A pair was read in one step only if it was written: what is not expected is written back.
    "4: ldaxp x14, x15, [x0]",
    "cmp x14, x3",
    "ccmp x15, x4, #0, eq",
    "csel x16, x5, x14, eq",
    "csel x17, x6, x15, eq",
    "stlxp w1, x16, x17, [x0]",
    "cbz w1, 5f",
    "subs x7, x7, #1",
    "b.ne 4b",
    "9: mov x0, #{contended}",
    "ret",
    "5: stp x14, x15, [x2]",
    "b page_done",
    // From x0 to x1.
    "page_zero:",
    "keep_exit",
    "1: cmp x0, x1",
    "b.hs page_done",
    "stp xzr, xzr, [x0], #16",
    "b 1b",
    "page_done:",
    // An asynchronous abort of these accesses is not reported later than here.
    "dsb sy",
    "mov x0, #0",
    "ret",
    "page_routines_end:",
    "page_landing:",
    "mrs x0, esr_el2",
    "and x0, x0, #0x3f",
    "msr elr_el2, x9",
    "msr spsr_el2, x10",
    "msr esr_el2, x11",
    "msr far_el2, x12",
    "msr hpfar_el2, x13",
    "ret",
    page = const PAGE_SIZE,
    tries = const TRIES,
    contended = const CONTENDED,
);

/// How often an exclusive store may fail before the guest is to try again itself.
const TRIES: u64 = 256;
/// What the routines return: 0, the fault status of an abort, or this.
const CONTENDED: u64 = 1 << 8;
/// Fault status: an exclusive to memory that has none; a misaligned access. They come out of what guests do.
const UNSUPPORTED_EXCLUSIVE: u64 = 0x35;
const ALIGNMENT: u64 = 0x21;

/// Whether an abort that is no external one may go on at [`landing`], if it was met there.
pub const fn is_refusal(status: u64) -> bool {
    matches!(status, UNSUPPORTED_EXCLUSIVE | ALIGNMENT)
}

unsafe extern "C" {
    fn page_verify(page: u64) -> u64;
    fn page_clear(page: u64) -> u64;
    fn page_copy(from: u64, to: u64) -> u64;
    fn page_load(at: u64, log2: u64, value: *mut u128) -> u64;
    fn page_store(at: u64, log2: u64, low: u64, high: u64) -> u64;
    fn page_exchange(at: u64, log2: u64, values: *mut [u128; 2]) -> u64;
    fn page_zero(from: u64, to: u64) -> u64;
    static page_routines_end: u8;
    static page_landing: u8;
}

/// Where to go on after a synchronous external abort at `pc`, if that is in one of the routines.
pub fn landing(pc: u64) -> Option<u64> {
    let start = (page_verify as *const ()).addr() as u64;
    let end = (&raw const page_routines_end).addr() as u64;
    let landing = (&raw const page_landing).addr() as u64;
    (start..end).contains(&pc).then_some(landing)
}

fn outcome(aborted: u64) -> Result<(), MediaError> {
    match aborted {
        0 => Ok(()),
        _ => Err(MediaError::Poisoned),
    }
}

/// Reads all of a page.
///
/// # Errors
///
/// [`MediaError`].
pub fn verify(page: Pa) -> Result<(), MediaError> {
    let slot = Slot::open(0, page)?;
    slot.forget()?;
    // SAFETY: reads one page, which is mapped; an abort ends at the landing.
    outcome(unsafe { page_verify(slot.address) })?;
    slot.forget()
}

/// Writes zeros to all of a page. It must be nobody's: a guest that has it may see it half done.
///
/// # Errors
///
/// [`MediaError`].
pub fn clear(page: Pa) -> Result<(), MediaError> {
    let slot = Slot::open(0, page)?;
    // SAFETY: writes one page, which is mapped, and which is no memory of Cordon's: EL2 has no other address
    // for it. An abort ends at the landing.
    outcome(unsafe { page_clear(slot.address) })?;
    slot.clean()
}

/// Copies a page to another, which must be nobody's.
///
/// # Errors
///
/// [`MediaError`].
pub fn copy(from: Pa, to: Pa) -> Result<(), MediaError> {
    let (from, to) = (Slot::open(0, from)?, Slot::open(1, to)?);
    from.forget()?;
    // SAFETY: as for `verify` and `clear`.
    outcome(unsafe { page_copy(from.address, to.address) })?;
    from.forget()?;
    to.clean()
}

/// A page of a guest, behind one of this CPU's addresses until it is dropped.
pub struct OpenPage(Slot);

/// Opens `page`, where no other is open for `which`.
///
/// # Errors
///
/// [`MediaError::Unreachable`].
pub fn open(which: Which, page: Pa, caching: Caching) -> Result<OpenPage, MediaError> {
    let memory = match caching {
        Caching::WriteBack => WRITE_BACK,
        Caching::NonCacheable => NON_CACHEABLE,
        Caching::Device => DEVICE,
    };
    let number = match which {
        Which::First => OPEN,
        Which::Second => OPEN + 1,
    };
    Slot::open_as(number, page, memory).map(OpenPage)
}

/// All accesses before it are seen before all accesses behind it.
pub fn fence() {
    // SAFETY: a barrier.
    unsafe { asm!("dmb ish", options(nostack, preserves_flags)) };
}

fn judged(returned: u64) -> Result<(), PageError> {
    match returned {
        0 => Ok(()),
        CONTENDED => Err(PageError::Contended),
        status if is_refusal(status) => Err(PageError::Unsupported),
        _ => Err(PageError::Poisoned),
    }
}

impl OpenPage {
    /// The address of `length` bytes from `offset`, if they are in the page.
    fn at(&self, offset: u64, length: u64) -> Result<u64, PageError> {
        let end = offset.checked_add(length);
        end.filter(|end| *end <= PAGE_SIZE)
            .map(|_| self.0.address + offset)
            .ok_or(PageError::Unsupported)
    }

    /// The same for one access, and log2 of its size.
    fn access(&self, offset: u64, size: u8) -> Result<(u64, u64), PageError> {
        let log2 = u64::from(size.trailing_zeros());
        match size {
            1 | 2 | 4 | 8 | 16 => Ok((self.at(offset, size.into())?, log2)),
            _ => Err(PageError::Unsupported),
        }
    }
}

impl Page for OpenPage {
    fn load(&self, offset: u64, size: u8) -> Result<u128, PageError> {
        let (at, log2) = self.access(offset, size)?;
        let mut value = 0;
        // SAFETY: reads bytes of one page, which is mapped, and writes `value`; an abort ends at the landing.
        judged(unsafe { page_load(at, log2, &raw mut value) })?;
        Ok(value)
    }

    fn store(&self, offset: u64, size: u8, value: u128) -> Result<(), PageError> {
        let (at, log2) = self.access(offset, size)?;
        let (low, high) = (value as u64, (value >> 64) as u64);
        // SAFETY: writes bytes of one page, which is mapped, and which is no memory of Cordon's: it is a guest's,
        // who asks for it. An abort ends at the landing.
        judged(unsafe { page_store(at, log2, low, high) })
    }

    fn exchange(
        &self,
        offset: u64,
        size: u8,
        expected: u128,
        new: u128,
    ) -> Result<u128, PageError> {
        let (at, log2) = self.access(offset, size)?;
        let mut values = [expected, new];
        // SAFETY: as for `store`; `values` are the routine's as long as it runs. It ends after so many tries.
        judged(unsafe { page_exchange(at, log2, &raw mut values) })?;
        let [seen, _] = values;
        // Only the lower half is written for what is not larger.
        Ok(if size == 16 {
            seen
        } else {
            seen & u128::from(u64::MAX)
        })
    }

    fn zero(&self, offset: u64, length: u64) -> Result<(), PageError> {
        let at = self.at(offset, length)?;
        // SAFETY: as for `store`. Blocks are multiples of 16 bytes.
        judged(unsafe { page_zero(at, at + length) })
    }

    fn clean(&self, offset: u64) -> Result<(), PageError> {
        let at = self.at(offset, 1)?;
        tlb::clean_to_poc(at, 1).map_err(|_| PageError::Poisoned)
    }
}

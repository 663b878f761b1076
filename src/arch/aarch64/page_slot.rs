//! Looking at single pages that are not in EL2's map: each CPU has two addresses of its own, behind which it
//! puts a page for as long as one routine needs it.
//!
//! The routines may meet poison. Whatever of them aborts goes on at one landing, and they say so.
//! What EL2's identity map cannot reach, memory beyond its 512 GiB, can be had in this way as well.
#![expect(
    unsafe_code,
    reason = "writes translation tables, and instructions that may abort"
)]

use super::{cpu, layout, mmu, tlb};
use cordon::addr::{PAGE_SIZE, Pa, PaRange};
use cordon::ras::media::MediaError;
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

/// The last gigabyte of EL2's 39 bits of address.
const BASE: u64 = ENTRY << 30;
/// The level-1 entry for it.
const ENTRY: u64 = 511;
/// Pages that a CPU can look at, at once.
const SLOTS: usize = 2;

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

/// A page: valid, AttrIndx 1 (`MAIR_EL2`: Normal write-back), AP\[1\] RES1, Inner Shareable, AF, XN
/// (Arm ARM D8.3, stage 1 of a regime with one exception level).
const PAGE: u64 = 0b11 | 1 << 2 | 1 << 6 | 0b11 << 8 | 1 << 10 | 1 << 54;
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
    /// and no routine of this module calls another.
    fn open(which: usize, page: Pa) -> Result<Self, MediaError> {
        let cpu = cpu::try_this().ok_or(MediaError::Unreachable)?.index;
        let at = SLOTS * cpu + which;
        let word = LEVEL_3.0.get(at).ok_or(MediaError::Unreachable)?;
        if page.get() & !ADDRESS != 0 {
            return Err(MediaError::Unreachable);
        }
        // From invalid to valid: a barrier, no invalidation.
        word.store(page.get() | PAGE, Ordering::Relaxed);
        publish();
        let address = BASE + at as u64 * PAGE_SIZE;
        Ok(Self { word, address })
    }

    /// What was written is to be seen by observers without caches, too: guests may have them off.
    fn clean(&self) -> Result<(), MediaError> {
        tlb::clean_to_poc(self.address, PAGE_SIZE).map_err(|_| MediaError::Poisoned)
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
    "page_done:",
    // An asynchronous abort of these accesses is not reported later than here.
    "dsb sy",
    "mov x0, #0",
    "ret",
    "page_routines_end:",
    "page_landing:",
    "msr elr_el2, x9",
    "msr spsr_el2, x10",
    "msr esr_el2, x11",
    "msr far_el2, x12",
    "msr hpfar_el2, x13",
    "mov x0, #1",
    "ret",
    page = const PAGE_SIZE,
);

unsafe extern "C" {
    fn page_verify(page: u64) -> u64;
    fn page_clear(page: u64) -> u64;
    fn page_copy(from: u64, to: u64) -> u64;
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
    // SAFETY: reads one page, which is mapped; an abort ends at the landing.
    outcome(unsafe { page_verify(slot.address) })
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
    // SAFETY: as for `verify` and `clear`.
    outcome(unsafe { page_copy(from.address, to.address) })?;
    to.clean()
}

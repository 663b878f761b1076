//! The guest's own address space: stage 1, one table for all vCPUs.
//!
//! Virtual addresses are laid out by `cordon_probe::layout`. Alias 0 is the identity: the image at
//! page granularity (text executable, constants read-only, data writable), the rest of RAM and
//! device memory in the largest blocks that fit, the UART as Device memory. Device memory and the
//! buffer in RAM appear once more in each of the other views.
//!
//! Tables come first from a pool in the image, then from RAM, and are reached at their own address,
//! which alias 0 makes valid. After boot the lock guards all changes, and changes only add entries;
//! the exception is [`TestWindow`], whose one level-2 entry is replaced with break-before-make.
#![expect(
    unsafe_code,
    reason = "translation tables at bare addresses, TLB maintenance"
)]

use super::{image, ram};
use aarch64_cpu::asm::barrier;
use cordon_probe::PAGE_SIZE;
use cordon_probe::bump::Bump;
use cordon_probe::layout::Alias;
use cordon_probe::pages::Region;
use cordon_probe::paging::{self, Attributes, ENTRIES, Piece, Slot, Tables};
use core::arch::asm;
use core::cell::UnsafeCell;
use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use spin::Mutex;

/// Bytes that a level-2 block maps, and a level-3 table.
const BLOCK_2M: u64 = 2 << 20;

/// Enough to map the image, a device tree and a few ranges of RAM; the rest come from RAM.
const EARLY_TABLES: usize = 32;

#[repr(C, align(4096))]
pub(super) struct Table(UnsafeCell<[u64; ENTRIES]>);

impl Table {
    const fn empty() -> Self {
        Self(UnsafeCell::new([0; ENTRIES]))
    }
}

// SAFETY: tables are read and written at their address, by `Pool` alone, with volatile accesses.
unsafe impl Sync for Table {}

/// The level-0 table, for `TTBR0_EL1`.
pub(super) static ROOT: Table = Table::empty();

static EARLY: [Table; EARLY_TABLES] = [const { Table::empty() }; EARLY_TABLES];

/// What `map_image` has left of `EARLY`: it cannot take a lock.
static EARLY_NEXT: AtomicU64 = AtomicU64::new(0);

static POOL: Mutex<Pool> = Mutex::new(Pool {
    early: Bump::new(0..0),
});

/// Gives out tables, and reads and writes them.
struct Pool {
    early: Bump,
}

impl Pool {
    fn pointer(table: u64, index: usize) -> *mut u64 {
        with_exposed_provenance_mut::<u64>(table as usize).wrapping_add(index % ENTRIES)
    }
}

impl Tables for Pool {
    fn new_table(&mut self) -> Option<u64> {
        let table = self
            .early
            .take(1, PAGE_SIZE)
            .or_else(|| ram::take(1, PAGE_SIZE))?;
        for index in 0..ENTRIES {
            self.write(table, index, 0);
        }
        Some(table)
    }

    fn read(&self, table: u64, index: usize) -> u64 {
        // SAFETY: `table` is `ROOT` or came from `new_table` (paging follows nothing else), so it
        // is a mapped page that is used for nothing else; `index` is within it.
        unsafe { Self::pointer(table, index).read_volatile() }
    }

    fn write(&mut self, table: u64, index: usize, descriptor: u64) {
        // SAFETY: as for `read`; writers hold the lock or are alone (boot).
        unsafe { Self::pointer(table, index).write_volatile(descriptor) }
    }
}

fn root() -> u64 {
    ROOT.0.get().expose_provenance() as u64
}

/// With the MMU off: maps the image, and the 2 MiB with the start of the device tree
/// (`booting.rst` sees to it that they may be mapped as ordinary memory).
pub(super) extern "C" fn map_image(tree: u64) {
    let start = EARLY.as_ptr().expose_provenance() as u64;
    let mut pool = Pool {
        early: Bump::new(start..start + EARLY_TABLES as u64 * PAGE_SIZE),
    };
    let tree = tree / BLOCK_2M * BLOCK_2M;
    for (range, attributes) in [
        (image::text(), Attributes::EL1_CODE),
        (image::el0_text(), Attributes::EL0_CODE),
        (image::constants(), Attributes::EL1_CONSTANT),
        (image::data(), Attributes::EL1_DATA),
        (tree..tree + BLOCK_2M, Attributes::EL1_DATA),
    ] {
        let piece = Piece {
            va: range.start,
            pa: range.start,
            size: range.end - range.start,
        };
        // EARLY_TABLES suffices for five ranges; there would be nothing to report with anyway.
        let _ = paging::map(&mut pool, root(), piece, attributes);
    }
    EARLY_NEXT.store(pool.early.next(), Relaxed);
}

/// With the MMU on, on vCPU 0 alone: takes over what `map_image` has left.
pub(super) fn init() {
    let end = EARLY.as_ptr_range().end.addr() as u64;
    POOL.lock().early = Bump::new(EARLY_NEXT.load(Relaxed)..end);
}

/// Maps `region` at its place in `alias`. `None` if there is no memory for tables, or the IPA has
/// more bits than the guest can map.
fn map(alias: Alias, region: Region, attributes: Attributes) -> Option<()> {
    let piece = Piece {
        va: alias.va(region.ipa)?,
        pa: region.ipa,
        size: region.size(),
    };
    alias.va(region.ipa + region.size() - 1)?;
    paging::map(&mut *POOL.lock(), root(), piece, attributes).ok()?;
    // A walker may see the new entries from here on (Arm ARM D8.2.7).
    barrier::dsb(barrier::ISHST);
    barrier::isb(barrier::SY);
    Some(())
}

/// Maps the 2 MiB blocks that the device tree reaches into.
pub(super) fn map_rest_of_tree(tree: Region) {
    let start = tree.ipa / BLOCK_2M * BLOCK_2M;
    let end = (tree.ipa + tree.size()).next_multiple_of(BLOCK_2M);
    let region = Region {
        ipa: start,
        pages: (end - start) / PAGE_SIZE,
    };
    // Fails only without tables, and then the parser's abort is as good a report as any.
    let _ = map(Alias::El1Data, region, Attributes::EL1_DATA);
}

/// Maps RAM, all but what is mapped already.
pub(super) fn map_ram(region: Region) -> Option<()> {
    map(Alias::El1Data, region, Attributes::EL1_DATA)
}

/// Maps the page with a device's registers.
pub(super) fn map_device(ipa: u64) -> Option<()> {
    let region = Region {
        ipa: ipa / PAGE_SIZE * PAGE_SIZE,
        pages: 1,
    };
    map(Alias::El1Data, region, Attributes::DEVICE)
}

/// Maps memory that may be lost in all views.
pub(super) fn map_views(region: Region) -> Option<()> {
    for alias in Alias::VIEWS {
        let attributes = match alias {
            Alias::El1Code => Attributes::EL1_CODE,
            Alias::El0Data => Attributes::EL0_DATA,
            Alias::El0Code => Attributes::EL0_CODE,
            Alias::El1Data | Alias::TableTest | Alias::Attack | Alias::AttackRoot => {
                Attributes::EL1_DATA
            }
        };
        map(alias, region, attributes)?;
    }
    Some(())
}

/// 2 MiB of virtual addresses that are translated by a level-3 table of choice.
#[derive(Clone, Copy, Debug)]
pub(super) struct TestWindow {
    slot: Slot,
    good: u64,
}

impl TestWindow {
    /// The window's first address.
    pub(super) const VA: u64 = (Alias::TableTest as u64) << cordon_probe::layout::IPA_BITS;

    /// Makes the window, with a table in which every entry maps the page at `page`.
    pub(super) fn new(page: u64) -> Option<Self> {
        let mut pool = POOL.lock();
        for index in 0..ENTRIES as u64 {
            let piece = Piece {
                va: Self::VA + index * PAGE_SIZE,
                pa: page,
                size: PAGE_SIZE,
            };
            paging::map(&mut *pool, root(), piece, Attributes::EL1_DATA).ok()?;
        }
        barrier::dsb(barrier::ISHST);
        barrier::isb(barrier::SY);
        let slot = paging::slot(&*pool, root(), Self::VA, 2)?;
        Some(Self {
            slot,
            good: pool.read(slot.table, slot.index),
        })
    }

    /// From now on the page at `table` translates the window.
    pub(super) fn use_table(&self, table: u64) {
        self.replace(paging::table_descriptor(table));
    }

    /// From now on the window's own table, in ordinary RAM, translates it.
    pub(super) fn use_good_table(&self) {
        self.replace(self.good);
    }

    /// Break-before-make (Arm ARM D8.16.1): invalid, invalidated everywhere, then valid.
    fn replace(&self, descriptor: u64) {
        let mut pool = POOL.lock();
        pool.write(self.slot.table, self.slot.index, 0);
        Self::invalidate();
        pool.write(self.slot.table, self.slot.index, descriptor);
        barrier::dsb(barrier::ISHST);
        barrier::isb(barrier::SY);
    }

    /// Has all CPUs forget the window's translation, so that the next access walks the table.
    pub(super) fn invalidate() {
        barrier::dsb(barrier::ISHST);
        // SAFETY: forgetting a translation costs a walk and nothing else. VAAE1IS takes VA[55:12]
        // and covers entries of all levels of the walk, not only the last.
        unsafe {
            asm!("tlbi vaae1is, {}", in(reg) Self::VA >> 12, options(nostack));
        }
        barrier::dsb(barrier::ISH);
        barrier::isb(barrier::SY);
    }
}

/// A few pages of virtual addresses of one vCPU's, and what an attack maps there. They are low enough
/// for AArch32.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    first: Slot,
    va: u64,
}

impl Window {
    /// Pages of each vCPU's window.
    pub(super) const PAGES: usize = ENTRIES / cordon_probe::MAX_VCPUS;
    /// 2 MiB where the machine has nothing and the guest maps nothing.
    const BASE: u64 = 0x0d00_0000;

    /// The window of vCPU number `vcpu`.
    pub(super) fn new(vcpu: usize) -> Option<Self> {
        let index = vcpu % cordon_probe::MAX_VCPUS * Self::PAGES;
        let va = Self::BASE + index as u64 * PAGE_SIZE;
        let first = test_slot(va, 3)?;
        Some(Self { first, va })
    }

    /// The address of page number `page`.
    pub(super) const fn va(&self, page: usize) -> u64 {
        self.va + (page % Self::PAGES) as u64 * PAGE_SIZE
    }

    /// From now on page number `page` is the page at `pa`.
    pub(super) fn point(&self, page: usize, pa: u64, attributes: Attributes) {
        let slot = Slot {
            index: self.first.index + page % Self::PAGES,
            ..self.first
        };
        replace_own(slot, self.va(page), paging::page_descriptor(pa, attributes));
    }
}

/// Translations of whose tables an attack chooses one. For vCPU 0 alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Foreign {
    slot: Slot,
    va: u64,
}

impl Foreign {
    /// An address whose table of level 1, 2 or 3 is chosen, or, for 0, the block of 1 GiB itself.
    pub(super) fn new(level: u32) -> Option<Self> {
        const GIB: u64 = 1 << 30;
        let attack = (Alias::Attack as u64) << cordon_probe::layout::IPA_BITS;
        let va = match level {
            0 => attack + GIB,
            1 => (Alias::AttackRoot as u64) << cordon_probe::layout::IPA_BITS,
            2 => attack + 2 * GIB,
            // The first GiB has a level-2 table, with something in its first entry.
            _ => attack + BLOCK_2M,
        };
        let slot = match level {
            0 | 2 => entry(attack, va, 1),
            1 => entry(va, va, 0),
            _ => entry(attack, va, 2),
        }?;
        Some(Self { slot, va })
    }

    /// The first address.
    pub(super) const fn va(&self) -> u64 {
        self.va
    }

    /// From now on the page at `table` translates it.
    pub(super) fn use_table(&self, table: u64) {
        replace_own(self.slot, self.va, paging::table_descriptor(table));
    }

    /// From now on it is the block at `pa`.
    pub(super) fn use_block(&self, pa: u64) {
        let block = paging::block_descriptor(pa, Attributes::EL1_DATA);
        replace_own(self.slot, self.va, block);
    }

    /// It is nothing any more.
    pub(super) fn clear(&self) {
        replace_own(self.slot, self.va, 0);
    }
}

/// The descriptor of `va` at `level`, with the tables down to it made by mapping a page at `near`.
fn entry(near: u64, va: u64, level: u32) -> Option<Slot> {
    if level > 0 {
        test_slot(near, 3)?;
    }
    paging::slot(&*POOL.lock(), root(), va, level)
}

/// The descriptor of `va` at `level`, with the tables down to it, and in a new one nothing valid but
/// that of `va`, which is constant data of the image's.
fn test_slot(va: u64, level: u32) -> Option<Slot> {
    let mut pool = POOL.lock();
    if let Some(slot) = paging::slot(&*pool, root(), va, level) {
        return Some(slot);
    }
    let piece = Piece {
        va,
        pa: image::constants().start,
        size: PAGE_SIZE,
    };
    paging::map(&mut *pool, root(), piece, Attributes::EL1_CONSTANT).ok()?;
    barrier::dsb(barrier::ISHST);
    paging::slot(&*pool, root(), va, level)
}

/// Break-before-make for an entry that this vCPU alone uses: invalid, invalidated here, then valid.
fn replace_own(slot: Slot, va: u64, descriptor: u64) {
    let mut pool = POOL.lock();
    pool.write(slot.table, slot.index, 0);
    barrier::dsb(barrier::ISHST);
    // SAFETY: forgetting a translation costs a walk and nothing else. VAAE1 takes VA[55:12]; what
    // blocks and tables of the attack's choice translated is forgotten with the rest by VMALLE1.
    unsafe {
        if va >> 32 == 0 {
            asm!("tlbi vaae1, {}", in(reg) va >> 12, options(nostack));
        } else {
            asm!("tlbi vmalle1", options(nostack));
        }
    }
    barrier::dsb(barrier::NSH);
    pool.write(slot.table, slot.index, descriptor);
    barrier::dsb(barrier::ISHST);
    barrier::isb(barrier::SY);
}

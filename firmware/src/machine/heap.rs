//! Memory for the boot: the device tree is rewritten through vectors. Nothing is allocated once the
//! normal world runs.
#![expect(
    unsafe_code,
    reason = "a global allocator is given its memory by address"
)]

use core::cell::UnsafeCell;

use buddy_system_allocator::LockedHeap;

const HEAP_SIZE: usize = 1 << 20;

#[global_allocator]
static HEAP: LockedHeap<32> = LockedHeap::empty();

#[repr(align(4096))]
struct Space(UnsafeCell<[u8; HEAP_SIZE]>);

// SAFETY: nobody but the allocator, which locks, touches the space.
unsafe impl Sync for Space {}

static SPACE: Space = Space(UnsafeCell::new([0; HEAP_SIZE]));

/// Gives the heap its memory; once, before the first allocation.
pub(crate) fn init() {
    // SAFETY: the space is static, writable and nobody else's, and this is called once.
    unsafe { HEAP.lock().init(SPACE.0.get().addr(), HEAP_SIZE) };
}

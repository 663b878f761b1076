//! EL2's heap: a fixed part of the image (linker.ld), handed to a buddy allocator.
//!
//! It serves the building of VMs at boot. Nothing on the path of a memory error allocates: table
//! frames and poison nodes are taken from the heap beforehand.
#![expect(unsafe_code, reason = "hands raw memory to the allocator")]

use super::layout;
use buddy_system_allocator::LockedHeap;
use cordon::addr::{Pa, PaRange};
use core::alloc::Layout;
use core::ptr::NonNull;

/// Largest allocation: 2^31 bytes, far above the heap's own size.
const ORDERS: usize = 32;

#[global_allocator]
static HEAP: LockedHeap<ORDERS> = LockedHeap::empty();

/// Makes the heap usable. Called once, before the first allocation.
pub fn init() {
    let start = layout::heap_start();
    let size = layout::heap_end() - start;
    // SAFETY: the range is reserved by linker.ld for this alone, is mapped read-write, and this
    // is called once, by the boot CPU, before anything else could use it.
    unsafe { HEAP.lock().init(start as usize, size as usize) };
}

/// Makes the heap usable elsewhere, in `memory`: for the time that Cordon is a UEFI application.
///
/// # Safety
///
/// `memory` must be mapped read-write and nobody else's for as long as anything that was allocated is used; called
/// once, in the place of [`init`].
pub unsafe fn init_with(memory: PaRange) {
    let (start, size) = (memory.start().get() as usize, memory.size() as usize);
    // SAFETY: the caller's promise.
    unsafe { HEAP.lock().init(start, size) };
}

/// Bytes handed out, and bytes in all.
pub fn usage() -> (usize, usize) {
    let heap = HEAP.lock();
    (heap.stats_alloc_actual(), heap.stats_total_bytes())
}

/// `size` bytes, a power of two, aligned to their size.
pub fn take_frames(size: usize) -> Option<Pa> {
    let frames = HEAP.lock().alloc(frames_layout(size)?).ok()?;
    Some(Pa::new(frames.addr().get() as u64))
}

/// Takes back what [`take_frames`] gave, whole or in aligned powers of two.
///
/// # Safety
///
/// They must have come from there, and nobody may use them any more.
pub unsafe fn give_back_frames(first: Pa, size: usize) {
    let (Some(layout), Some(frames)) = (frames_layout(size), NonNull::new(first.get() as *mut u8))
    else {
        return;
    };
    // SAFETY: a buddy allocator takes back any aligned power of two of what it gave; the rest is
    // the caller's promise.
    unsafe { HEAP.lock().dealloc(frames, layout) };
}

fn frames_layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size, size).ok()
}

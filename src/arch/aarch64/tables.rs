//! Stage-2 table frames: pages of EL2's heap, reached through the identity map.
#![expect(unsafe_code, reason = "makes table words of heap pages")]

use super::{heap, layout};
use cordon::addr::{PAGE_SIZE, Pa};
use cordon::stage2::{FrameSource, TableMemory};
use core::sync::atomic::{AtomicU64, Ordering};

/// Words in a 4 KiB frame.
const WORDS: usize = PAGE_SIZE as usize / size_of::<AtomicU64>();

/// Frames from the heap. A frame that was given to a table stays one until it is given back.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeapFrames;

impl TableMemory for HeapFrames {
    fn table(&self, frame: Pa) -> Option<&[AtomicU64]> {
        let heap = layout::heap_start()..layout::heap_end();
        if !heap.contains(&frame.get()) || !frame.is_aligned(PAGE_SIZE) {
            return None;
        }
        // SAFETY: a page-aligned frame inside the heap, which is mapped read-write for good.
        // `Stage2` asks only for frames that it was given by `take` and that nothing else uses;
        // all access to them is atomic, the walker's included.
        Some(unsafe { core::slice::from_raw_parts(frame.get() as *const AtomicU64, WORDS) })
    }

    fn fill(&self, words: &[AtomicU64], first: u64, stride: u64) {
        let written = super::mem::fill(words, first, stride);
        for (index, word) in words.iter().enumerate().skip(written) {
            let value = first.wrapping_add(stride.wrapping_mul(index as u64));
            word.store(value, Ordering::Relaxed);
        }
    }
}

impl FrameSource for HeapFrames {
    fn take(&mut self, count: usize) -> Option<Pa> {
        heap::take_frames(count)
    }

    fn give_back(&mut self, first: Pa, count: usize) {
        for index in 0..count as u64 {
            let frame = Pa::new(first.get() + index * PAGE_SIZE);
            // SAFETY: `take` got this frame from the heap, alone or as part of a larger power of
            // two, and `FrameSource` says that nobody uses it any more.
            unsafe { heap::give_back_frames(frame, 1) };
        }
    }
}

//! Stage-2 table frames: pages of EL2's heap, reached through the identity map.
#![expect(unsafe_code, reason = "makes table words of heap pages")]

use super::{heap, layout};
use cordon::addr::Pa;
use cordon::stage2::{FrameSource, Granule, TableMemory};
use core::sync::atomic::{AtomicU64, Ordering};

/// Frames from the heap, of a granule's size. A frame that was given to a table stays one until it is
/// given back.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeapFrames(Granule);

impl HeapFrames {
    /// Frames for tables of `granule`.
    pub const fn of(granule: Granule) -> Self {
        Self(granule)
    }
}

impl TableMemory for HeapFrames {
    fn table(&self, frame: Pa) -> Option<&[AtomicU64]> {
        let size = self.0.page_size();
        let offset = frame.get().wrapping_sub(layout::heap_start());
        let room = (layout::heap_end() - layout::heap_start()).checked_sub(size)?;
        if offset > room || !frame.is_aligned(size) {
            return None;
        }
        // SAFETY: an aligned frame inside the heap as a whole, which is mapped read-write for good.
        // `Stage2` asks only for frames that it was given by `take` and that nothing else uses;
        // all access to them is atomic, the walker's included.
        Some(unsafe {
            core::slice::from_raw_parts(frame.get() as *const AtomicU64, self.0.entries())
        })
    }

    fn fill(&self, words: &[AtomicU64], first: u64, stride: u64) {
        let written = super::fill::fill(words, first, stride);
        for (index, word) in words.iter().enumerate().skip(written) {
            let value = first.wrapping_add(stride.wrapping_mul(index as u64));
            word.store(value, Ordering::Relaxed);
        }
    }
}

impl FrameSource for HeapFrames {
    fn take(&mut self, count: usize) -> Option<Pa> {
        heap::take_frames(count.checked_mul(self.0.page_size() as usize)?)
    }

    fn give_back(&mut self, first: Pa, count: usize) {
        let size = self.0.page_size();
        for index in 0..count as u64 {
            let frame = Pa::new(first.get() + index * size);
            // SAFETY: `take` got this frame from the heap, alone or as part of a larger power of
            // two, and `FrameSource` says that nobody uses it any more.
            unsafe { heap::give_back_frames(frame, size as usize) };
        }
    }
}

//! The frames set aside for containment.
//!
//! Splitting a block takes tables, and an error is a bad moment to look for memory. A [`Reserve`]
//! is filled while the VM is built; taking from it is a `pop`, and what a split took comes back by a
//! `push` when the block is whole again. Neither calls an allocator.

use super::BuildError;
use super::env::{FrameSource, TableMemory};
use super::granule::Granule;
use crate::addr::Pa;
use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;

#[derive(Debug)]
pub(super) struct Reserve {
    /// Those that are left.
    frames: Vec<Pa>,
    /// All that there are, in use or not, in order; with whether they were seen in use.
    all: Vec<(Pa, bool)>,
}

impl Reserve {
    /// Sets `count` frames aside. On an error, all of them are back where they came from.
    pub(super) fn fill(
        count: usize,
        granule: Granule,
        memory: &impl TableMemory,
        source: &mut impl FrameSource,
    ) -> Result<Self, BuildError> {
        let mut reserve = Self {
            frames: Vec::with_capacity(count),
            all: Vec::with_capacity(count),
        };
        for _ in 0..count {
            if let Err(error) = reserve.add_one(granule, memory, source) {
                reserve.release(source);
                return Err(error);
            }
        }
        reserve
            .all
            .extend(reserve.frames.iter().map(|frame| (*frame, false)));
        crate::sort::sort(&mut reserve.all);
        Ok(reserve)
    }

    fn add_one(
        &mut self,
        granule: Granule,
        memory: &impl TableMemory,
        source: &mut impl FrameSource,
    ) -> Result<(), BuildError> {
        let frame = source.take(1).ok_or(BuildError::OutOfFrames)?;
        self.frames.push(frame);
        match memory.table(frame) {
            Some(words) if words.len() == granule.entries() => Ok(()),
            _ => Err(BuildError::NoTable(frame)),
        }
    }

    /// Takes a frame and its words; `None` when the reserve is spent. A frame that cannot be
    /// reached any more is dropped: it is no use to anyone.
    pub(super) fn take<'m>(
        &mut self,
        granule: Granule,
        memory: &'m impl TableMemory,
    ) -> Option<(Pa, &'m [AtomicU64])> {
        loop {
            let frame = self.frames.pop()?;
            match memory.table(frame) {
                Some(words) if words.len() == granule.entries() => return Some((frame, words)),
                _ => {}
            }
        }
    }

    /// Takes a frame back that [`Self::take`] gave, and that no CPU can reach any more.
    pub(super) fn put(&mut self, frame: Pa) {
        // There is room for as many as there were at the start, so this does not allocate.
        if self.frames.len() < self.frames.capacity() {
            self.frames.push(frame);
        }
    }

    /// Never gives `frame` out again; whether it was one of those left.
    pub(super) fn retire_unused(&mut self, frame: Pa) -> bool {
        let at = self.frames.iter().position(|left| *left == frame);
        if let Some(at) = at {
            self.frames.swap_remove(at);
            self.retire(frame);
        }
        at.is_some()
    }

    /// Forgets that `frame` belongs to the reserve.
    pub(super) fn retire(&mut self, frame: Pa) {
        self.all.retain(|(own, _)| *own != frame);
    }

    /// All frames count as unused, but for those that are [`Self::mark`]ed from now on.
    pub(super) fn begin_reclaim(&mut self) {
        self.all.iter_mut().for_each(|(_, used)| *used = false);
    }

    /// `frame` is in use.
    pub(super) fn mark(&mut self, frame: Pa) {
        if let Ok(at) = self.all.binary_search_by_key(&frame, |(own, _)| *own)
            && let Some((_, used)) = self.all.get_mut(at)
        {
            *used = true;
        }
    }

    /// All frames that have not been marked are left.
    pub(super) fn end_reclaim(&mut self) {
        self.frames.clear();
        for (frame, used) in &self.all {
            // There is room for all of them.
            if !used && self.frames.len() < self.frames.capacity() {
                self.frames.push(*frame);
            }
        }
    }

    /// Frames left.
    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    /// Gives what is left back.
    pub(super) fn release(self, source: &mut impl FrameSource) {
        for frame in self.frames {
            source.give_back(frame, 1);
        }
    }
}

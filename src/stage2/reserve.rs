//! The frames set aside for containment.
//!
//! Splitting a block takes tables, and an error is a bad moment to look for memory. A [`Reserve`]
//! is filled while the VM is built and only gets smaller after that; taking from it is a `pop` and
//! never calls an allocator.

use super::BuildError;
use super::env::{FrameSource, TableMemory};
use super::granule::Granule;
use crate::addr::Pa;
use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;

#[derive(Debug)]
pub(super) struct Reserve {
    frames: Vec<Pa>,
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
        };
        for _ in 0..count {
            if let Err(error) = reserve.add_one(granule, memory, source) {
                reserve.release(source);
                return Err(error);
            }
        }
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

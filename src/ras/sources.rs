//! The sources of error records, as the pipeline reads them.

use alloc::vec::Vec;

use super::ghes::{Ghes, GhesError, MemoryError, PhysMemory};
use super::watch::Watch;

/// Longest record that is read, in bytes: a page, more than any source here offers.
const MAX_RECORD: usize = 4096;

/// One of them.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) ghes: Ghes,
    pub(super) watch: Watch,
    /// What it lies in has gone bad itself: it is not read any more.
    lost: bool,
}

impl Watched {
    /// Whether it is to be read.
    pub(super) const fn is_usable(&self) -> bool {
        !self.lost
    }

    /// Says that it could not be read. True if that is because it is poison, and Cordon has consumed
    /// it: that was for the last time.
    pub(super) fn failed(&mut self, why: &GhesError) -> bool {
        let id = self.ghes.source().id;
        let poisoned = MemoryError::is_poison;
        self.lost = matches!(why, GhesError::Pointer(it) | GhesError::Block(it) if poisoned(it));
        if self.lost {
            log::error!("event=error what=ghes id={id} why=source-lost:{why}");
        } else {
            log::error!("event=error what=cper id={id} why={why}");
        }
        self.lost
    }
}

/// The sources of records, and what they are read with.
#[derive(Debug)]
pub struct Sources<S> {
    pub(super) memory: S,
    pub(super) list: Vec<Watched>,
    pub(super) buffer: Vec<u8>,
}

impl<S: PhysMemory> Sources<S> {
    /// These sources, whose blocks are in `memory`, on a machine that has no interrupt for any of them.
    /// Allocates all that reading them needs.
    pub fn new(memory: S, list: Vec<Ghes>) -> Self {
        let watched = list
            .into_iter()
            .map(|ghes| (ghes, Watch::of(ghes.source().notification, false)));
        Self::watched(memory, watched)
    }

    /// The same, each watched as it says.
    pub fn watched(memory: S, list: impl IntoIterator<Item = (Ghes, Watch)>) -> Self {
        let list = list.into_iter().map(|(ghes, watch)| Watched {
            ghes,
            watch,
            lost: false,
        });
        Self {
            memory,
            list: list.collect(),
            buffer: alloc::vec![0; MAX_RECORD],
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

#[cfg(test)]
mod tests;

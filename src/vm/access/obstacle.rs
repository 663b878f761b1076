//! What may stand between an access and its being carried out.

use super::env::Stop;
use super::extent::Extent;
use super::pages::PageError;
use super::places::{Good, page_of};
use crate::addr::{Ipa, PAGE_SIZE, Pa};
use crate::ras::media::MediaError;
use crate::stage2::Damage;
use crate::vm::cpu::Denied;

/// Why an access is not carried out although the page is good. The names are those of `why=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// A fetch, or the walk of a table.
    NoData,
    /// The guest accesses memory in big-endian order there.
    BigEndian,
    /// An instruction of AArch32 that the syndrome does not describe.
    Aarch32,
    /// The instruction is none of those that are carried out.
    Instruction,
    /// The instruction cannot be read, or is not the one that trapped.
    Fetch,
    /// What is atomic, to memory that is not cached, or where no CPU makes it.
    Atomicity,
    /// What stands between a load-exclusive and its store is not understood.
    Sequence,
    /// Tags of addresses would have to be checked (FEAT_MTE).
    Tags,
    /// The poison set is full: which pages are bad is not known.
    Unknown,
    /// Cordon cannot reach the page.
    Unreachable,
    /// Whether the guest may access the second page is not known.
    Stage1,
}

impl Why {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::NoData => "no-data-access",
            Self::BigEndian => "big-endian",
            Self::Aarch32 => "aarch32",
            Self::Instruction => "instruction",
            Self::Fetch => "instruction-not-read",
            Self::Atomicity => "atomicity",
            Self::Sequence => "exclusive-sequence",
            Self::Tags => "tags",
            Self::Unknown => "poison-set-full",
            Self::Unreachable => "unreachable",
            Self::Stage1 => "stage-1",
        }
    }
}

/// What stands between an access and its being carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// It is to be made again.
    Again,
    /// The page of the byte at this address is lost.
    Lost(Byte),
    /// The page of the byte at this address was good, and gave poison.
    Consumed(Byte),
    /// The page of the instruction gave poison.
    Code(Byte),
    /// Nothing answers at this address, or not to a store.
    Nobody(u64),
    /// It is the guest's own fault, at this address, with this status: stage 1 forbids the access, or it is not aligned.
    Guests(u64, u8),
    /// The page was dropped with its block, and has to be brought back.
    Parked(Ipa),
    /// It is not carried out.
    Refused(Why),
    /// The map is damaged.
    Damaged(Damage),
}

/// A byte, by all its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Byte {
    pub(super) va: u64,
    pub(super) ipa: Ipa,
    pub(super) pa: Pa,
}

pub(super) fn unreachable(_: MediaError) -> Obstacle {
    Obstacle::Refused(Why::Unreachable)
}

pub(super) fn stop_of(
    stop: Stop,
    extent: &Extent,
    (first, second): (Good, Option<Good>),
) -> Obstacle {
    match stop {
        Stop::Contended => Obstacle::Again,
        Stop::Unsupported => Obstacle::Refused(Why::Atomicity),
        Stop::Poisoned(at) => {
            let in_first = page_of(at) == page_of(extent.at);
            let page = second.filter(|_| !in_first).unwrap_or(first);
            page.stopped(PageError::Poisoned, at)
        }
    }
}

impl Good {
    /// What an access to the byte at `va` came to.
    pub(super) fn stopped(&self, error: PageError, va: u64) -> Obstacle {
        let offset = va & (PAGE_SIZE - 1);
        match error {
            PageError::Contended => Obstacle::Again,
            PageError::Unsupported => Obstacle::Refused(Why::Atomicity),
            PageError::Poisoned => Obstacle::Consumed(Byte {
                va,
                ipa: Ipa::new(self.ipa.page().get() | offset),
                pa: Pa::new(self.frame.get() | offset),
            }),
        }
    }
}

impl Good {
    /// What a fetch of the instruction at `pc` came to.
    pub(super) fn stopped_fetching(&self, error: PageError, pc: u64) -> Obstacle {
        match self.stopped(error, pc) {
            Obstacle::Consumed(byte) => Obstacle::Code(byte),
            obstacle => obstacle,
        }
    }
}

impl Denied {
    pub(super) const fn at(self, va: u64) -> Obstacle {
        match self {
            Self::Stage1(status) => Obstacle::Guests(va, status),
            Self::Unknown => Obstacle::Refused(Why::Stage1),
        }
    }
}

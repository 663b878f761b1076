//! Which instruction made the access: what the syndrome describes, or what is read where the guest was.

use super::decode;
use super::extent::{self, Extent, Kind};
use super::obstacle::{Obstacle, Why, unreachable};
use super::operation::{Addressing, Direction, Operation, Order, Registers};
use super::pages::{Page, Which};
use super::places::{Good, TAG_BITS};
use super::sequence;
use crate::addr::PAGE_SIZE;
use crate::ras::esr::{Abort, Access, Mmio};
use crate::ras::inject::{GuestState, pstate};
use crate::stage2::Lookup;
use crate::vm::cpu::{GuestCpu, Rights};
use crate::vm::exit::Exit;
use crate::vm::hypervisor::Platform;
use crate::vm::virtual_machine::Space;
use core::sync::atomic::{AtomicU64, Ordering};

/// What a vCPU keeps from one access to the next. Its own CPU alone uses it.
#[derive(Debug)]
pub struct Carried {
    /// Where an instruction did not agree with its syndrome.
    doubted: AtomicU64,
}

/// No instruction is there: it would not be aligned.
const NOWHERE: u64 = 1;

impl Carried {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self {
            doubted: AtomicU64::new(NOWHERE),
        }
    }

    /// The instruction at `pc` is not what trapped. Whether that is so for the second time running.
    fn doubt(&self, pc: u64) -> bool {
        self.doubted.swap(pc, Ordering::Relaxed) == pc
    }

    fn trust(&self) {
        self.doubted.store(NOWHERE, Ordering::Relaxed);
    }
}

impl Default for Carried {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Platform, C: GuestCpu> Exit<'_, P, C> {
    /// What was tried, and what memory it is about.
    pub(super) fn identify(
        &self,
        map: &Space<P>,
        abort: &Abort,
        far: u64,
        state: &GuestState,
    ) -> Result<(Operation, Option<Extent>), Obstacle> {
        let is_aarch32 = state.pstate & pstate::AARCH32 != 0;
        let described = abort.mmio.filter(|mmio| {
            is_whole(mmio, far) || is_aarch32 && fits(mmio, far) && self.begins_at(map, far)
        });
        if let Some(mmio) = described {
            let operation = described_transfer(&mmio, far);
            let extent = extent::extent(&operation, &*self.cpu);
            return Ok((operation, extent));
        }
        if is_aarch32 {
            return Err(Obstacle::Refused(Why::Aarch32));
        }
        let word = self.instruction(map, state.pc)?;
        let operation = decode::decode(word).ok_or(Obstacle::Refused(Why::Instruction));
        let found = operation.map(|operation| (operation, extent::extent(&operation, &*self.cpu)));
        match found {
            Ok((_, Some(extent))) if !agrees(abort, far, &extent) => self.doubt(state.pc),
            // A hint does not trap.
            Ok((_, None)) => self.doubt(state.pc),
            found => {
                self.vcpu.carried.trust();
                found
            }
        }
    }

    /// Whether an access that reported `far`, the beginning of a page, begins there: one that had begun in the page
    /// before would have failed in that.
    fn begins_at(&self, map: &Space<P>, far: u64) -> bool {
        let before = self.cpu.translate_for(far.wrapping_sub(1), Rights::Fetch);
        before.is_ok_and(|before| {
            let found = map.lookup(before.ipa);
            found.is_ok_and(|found| !matches!(found, Lookup::Mapped { .. }))
        })
    }

    /// The instruction is not what trapped: somebody has changed it since.
    fn doubt<T>(&self, pc: u64) -> Result<T, Obstacle> {
        Err(match self.vcpu.carried.doubt(pc) {
            true => Obstacle::Refused(Why::Fetch),
            false => Obstacle::Again,
        })
    }

    /// The page of the instruction at `pc`.
    fn code(&self, map: &Space<P>, pc: u64) -> Result<Good, Obstacle> {
        let found = self.cpu.translate_for(pc, Rights::Fetch);
        let stage1 = found.map_err(|_| Obstacle::Refused(Why::Fetch))?;
        match self.good(map, pc, (stage1.ipa, Some(stage1)), false) {
            Ok(page) => Ok(page),
            Err(obstacle @ Obstacle::Damaged(_)) => Err(obstacle),
            // The guest finds out when it fetches it.
            Err(_) => Err(Obstacle::Again),
        }
    }

    /// The word at `pc`.
    fn instruction(&self, map: &Space<P>, pc: u64) -> Result<u32, Obstacle> {
        let page = self.code(map, pc)?;
        let platform = &self.hypervisor.platform;
        let opened = platform.open(Which::First, page.frame, page.caching);
        let opened = opened.map_err(unreachable)?;
        let word = opened.load(pc & (PAGE_SIZE - 1) & !3, 4);
        Ok(word.map_err(|error| page.stopped_fetching(error, pc))? as u32)
    }

    /// The words from the load-exclusive at `pc` to the end of its page.
    pub(super) fn sequence_words(&self, map: &Space<P>, pc: u64) -> Result<Words, Obstacle> {
        let code = self.code(map, pc)?;
        let platform = &self.hypervisor.platform;
        let opened = platform.open(Which::First, code.frame, code.caching);
        let opened = opened.map_err(unreachable)?;
        let mut words = Words::default();
        let offsets = (pc & (PAGE_SIZE - 1) & !3..PAGE_SIZE).step_by(4);
        for (word, offset) in words.list.iter_mut().zip(offsets) {
            let loaded = opened.load(offset, 4);
            *word = loaded.map_err(|error| code.stopped_fetching(error, pc))? as u32;
            words.count += 1;
        }
        Ok(words)
    }
}

/// The code of a sequence.
#[derive(Default)]
pub(super) struct Words {
    list: [u32; sequence::WORDS],
    count: usize,
}

impl Words {
    pub(super) fn as_slice(&self) -> &[u32] {
        self.list.get(..self.count).unwrap_or_default()
    }
}

/// Whether FAR is where the access begins, and it ends in the same page. An access that began in the page before
/// would have FAR at the beginning of this one.
const fn is_whole(mmio: &Mmio, far: u64) -> bool {
    (far & (PAGE_SIZE - 1) != 0 || mmio.size == 1) && fits(mmio, far)
}

const fn fits(mmio: &Mmio, far: u64) -> bool {
    (far & (PAGE_SIZE - 1)) + mmio.size as u64 <= PAGE_SIZE
}

/// What the syndrome describes. Whether it is ordered is not asked: it is made so.
const fn described_transfer(mmio: &Mmio, far: u64) -> Operation {
    Operation::Transfer {
        direction: if mmio.write {
            Direction::Store
        } else {
            Direction::Load
        },
        at: Addressing::Absolute(far),
        registers: Registers::General {
            rt: mmio.register,
            rt2: None,
            size: mmio.size,
            signed: mmio.sign_extend,
            wide: mmio.wide,
        },
        order: Order::BOTH,
        unprivileged: false,
    }
}

/// Whether the instruction could have made the access that failed. Of one that reads and writes, the syndrome
/// tells the read if that fails as well.
fn agrees(abort: &Abort, far: u64, extent: &Extent) -> bool {
    let direction = match extent.kind {
        Kind::Read => abort.access == Access::Read,
        Kind::Write => abort.access == Access::Write,
        Kind::Update => true,
    };
    let behind = far.wrapping_sub(extent.at) << TAG_BITS >> TAG_BITS;
    direction && behind < extent.length
}

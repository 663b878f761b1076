//! One access, from what the CPU reports of it to where the guest goes on.

use super::execute::Execution;
use super::extent::Extent;
use super::obstacle::{Obstacle, Why, stop_of, unreachable};
use super::operation::Operation;
use super::pages::{Caching, Opened, Page, Which, can_be_atomic};
use super::places::Good;
use crate::addr::{Ipa, PAGE_SIZE};
use crate::ras::esr::{Abort, Access};
use crate::ras::inject::{GuestState, Refusal, pstate, sctlr};
use crate::vm::cpu::GuestCpu;
use crate::vm::exit::Exit;
use crate::vm::hypervisor::Platform;

/// Where the guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// Behind the instruction.
    Instruction,
    /// There, with these flags: a sequence of instructions was carried out.
    Sequence { pc: u64, flags: u64 },
}

impl<P: Platform, C: GuestCpu> Exit<'_, P, C> {
    /// Does what the guest could not do itself at `ipa`.
    pub(super) fn carry_out(&mut self, abort: &Abort, ipa: Ipa) -> Result<Behind, Obstacle> {
        let far = abort.far(self.cpu.far()).unwrap_or(0);
        let vm = self.vm;
        let map = vm.stage2.lock();
        // First of all: what is lost costs no more than under a hole of one page.
        let write = abort.access == Access::Write && !abort.cache_maintenance;
        let found = self.frame(&map, far, ipa, write)?;
        if abort.stage1_walk || abort.access == Access::Fetch {
            return Err(Obstacle::Refused(Why::NoData));
        }
        let here = self.good_at(&map, far, (ipa, None), found)?;
        if abort.cache_maintenance {
            self.maintain(far, &here)?;
            return Ok(Behind::Instruction);
        }
        let state = self.cpu.state();
        let (operation, extent) = self.identify(&map, abort, far, &state)?;
        let Some(extent) = extent else {
            return Ok(Behind::Instruction);
        };
        let unprivileged = extent.unprivileged && state.pstate & pstate::UAO == 0;
        if is_big_endian(&state, unprivileged) {
            return Err(Obstacle::Refused(Why::BigEndian));
        }
        let (first, second) = self.both(&map, &extent, (far, here), unprivileged)?;
        suits(&operation, &extent, far, (first, second))?;
        if let Operation::LoadExclusive(what) = &operation {
            // The store needs what the load does not.
            self.frame(&map, far, here.ipa, true)?;
            let words = self.sequence_words(&map, state.pc)?;
            return self.exclusive((what, &extent), first, &words, &state);
        }
        self.access((&operation, &extent), first, second)?;
        Ok(Behind::Instruction)
    }

    /// Writes a line back, of memory that nobody but a device may look at otherwise.
    fn maintain(&self, far: u64, here: &Good) -> Result<(), Obstacle> {
        let platform = &self.hypervisor.platform;
        let page = (platform.open(Which::First, here.frame, here.caching)).map_err(unreachable)?;
        let cleaned = page.clean(far & (PAGE_SIZE - 1));
        cleaned.map_err(|error| here.stopped(error, far))
    }

    /// The access itself.
    fn access(
        &mut self,
        (operation, extent): (&Operation, &Extent),
        first: Good,
        second: Option<Good>,
    ) -> Result<(), Obstacle> {
        let open = |good: Good| (good.frame, good.caching);
        let platform = &self.hypervisor.platform;
        let opened = Opened::new(platform, extent.at, open(first), second.map(open));
        let mut memory = opened.map_err(unreachable)?;
        let mut execution = Execution {
            registers: &mut *self.cpu,
            memory: &mut memory,
        };
        let done = execution.run(operation, extent);
        done.map_err(|stop| stop_of(stop, extent, (first, second)))
    }
}

/// Whether memory of that type takes such an access, at the address where it is. Device memory wants each element to be
/// aligned, and no block of it is zeroed (Arm ARM B2.2.1; C5.3, "DC ZVA"); such a fault comes behind one of stage 2.
fn suits(
    operation: &Operation,
    extent: &Extent,
    far: u64,
    (first, second): (Good, Option<Good>),
) -> Result<(), Obstacle> {
    let is_cached = first.caching == Caching::WriteBack;
    if extent.exclusive && !(can_be_atomic(extent.at, extent.length) && is_cached) {
        return Err(Obstacle::Refused(Why::Atomicity));
    }
    let is_device = |page: Good| page.caching == Caching::Device;
    if !is_device(first) && !second.is_some_and(is_device) {
        return Ok(());
    }
    let misaligned = match operation {
        Operation::Transfer { registers, .. } => {
            let aligned = extent.at.is_multiple_of(registers.unit().into());
            (!aligned).then_some(extent.at)
        }
        // Of DC instructions, FAR is what the register has.
        Operation::ZeroBlock { .. } => Some(far),
        _ => None,
    };
    match misaligned {
        Some(at) => Err(Obstacle::Guests(at, Refusal::Alignment.status())),
        None => Ok(()),
    }
}

/// Whether data is in big-endian order at the level that accesses it.
const fn is_big_endian(state: &GuestState, unprivileged: bool) -> bool {
    let el0 = state.pstate & pstate::MODE_EL == 0;
    let user = state.sctlr & sctlr::E0E != 0;
    if state.pstate & pstate::AARCH32 != 0 {
        state.pstate & pstate::AARCH32_E != 0
    } else if el0 {
        user
    } else {
        state.sctlr & sctlr::EE != 0 || unprivileged && user
    }
}

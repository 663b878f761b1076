//! A load-exclusive and what follows it, up to its store, on registers and memory of the guest.

use super::arithmetic::{joined, parted};
use super::carry_out::Behind;
use super::env::Memory;
use super::extent::Extent;
use super::instruction::Words;
use super::obstacle::{Obstacle, Why, stop_of, unreachable};
use super::operation::{Exclusive, Operation, R31};
use super::pages::Opened;
use super::places::Good;
use super::sequence::{self, End, Scratch};
use crate::ras::inject::GuestState;
use crate::vm::cpu::GuestCpu;
use crate::vm::exit::Exit;
use crate::vm::hypervisor::Platform;

impl<P: Platform, C: GuestCpu> Exit<'_, P, C> {
    /// Does all of it, in one step, or nothing.
    pub(super) fn exclusive(
        &mut self,
        (what, extent): (&Exclusive, &Extent),
        page: Good,
        words: &Words,
        state: &GuestState,
    ) -> Result<Behind, Obstacle> {
        let refused = Obstacle::Refused(Why::Sequence);
        let platform = &self.hypervisor.platform;
        let place = (page.frame, page.caching);
        let mut memory = Opened::new(platform, extent.at, place, None).map_err(unreachable)?;
        let stopped = |stop| stop_of(stop, extent, (page, None));
        let size = what.size;
        let loaded = memory.load(extent.at, size).map_err(stopped)?;
        let mut scratch = Scratch::new(&*self.cpu, state.pstate);
        let set = |number, value| scratch.set(number, value);
        parted(set, loaded, (what.rt, what.rt2), size);
        let offset = match sequence::run(words.as_slice(), &mut scratch).ok_or(refused)? {
            End::Left(offset) => offset,
            End::Store { operation, offset } => {
                let new = self.store_of(&operation, extent, &mut scratch);
                let new = new.ok_or(refused)?;
                memory.fence();
                let seen = memory.exchange(extent.at, size, loaded, new);
                if seen.map_err(stopped)? != loaded {
                    return Err(Obstacle::Again);
                }
                offset + 4
            }
        };
        if what.order.acquire {
            memory.fence();
        }
        scratch.commit(&mut *self.cpu);
        let pc = state.pc.wrapping_add_signed(offset);
        let flags = scratch.flags;
        Ok(Behind::Sequence { pc, flags })
    }

    /// What the store-exclusive of the sequence that loaded `extent` writes there, and its status, which is that it
    /// was written; `None` if it is to other memory.
    fn store_of(
        &self,
        operation: &Operation,
        extent: &Extent,
        scratch: &mut Scratch,
    ) -> Option<u128> {
        let Operation::StoreExclusive { what, status } = *operation else {
            return None;
        };
        let at = match what.rn {
            R31 => self.cpu.stack_pointer(),
            rn => scratch.get(rn),
        };
        if at != extent.at || u64::from(what.size) != extent.length {
            return None;
        }
        let new = joined(|number| scratch.get(number), (what.rt, what.rt2), what.size);
        scratch.set(status, 0);
        Some(new)
    }
}

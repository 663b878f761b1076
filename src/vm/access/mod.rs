//! Accesses to good pages under a hole that is larger than the bad one, carried out for the guest.
//!
//! A hole is larger than a page where no table is left to split a block, or where the tables have larger
//! pages. An access to one of its good pages takes the same stage-2 fault as one to the bad page. It is
//! carried out here, so that the guest loses the bad page and no other:
//!
//! ```text
//!   which instruction?  the syndrome says (ISV), or the word at ELR is read             instruction, decode -> Operation
//!   which memory?       one page, or the end of one and the beginning of the next       extent -> Extent
//!   may it be?          stage 1 of the second page; both pages good, not being moved    places
//!   do it               on pages behind addresses of this CPU alone                     execute, layout, pages
//!                       from a load-exclusive to its store                              exclusive, sequence
//!   go on               behind the instruction                                          skip
//!   or do not           and what the guest gets instead                                 obstacle
//! ```
//!
//! What is not carried out gets the abort that a lost page gets: docs/carried-out.md has the list.
//!
//! # What stays true meanwhile
//!
//! The lock of the VM's map is held from the lookups to the last access. Whoever moves a page says that it is
//! busy, and then takes this lock to make it read-only; so either the access is made before the page is copied,
//! or it sees the page busy and is made again. A page that goes bad after it was looked up is met as poison, at a
//! place with a fix-up, and is contained as if the guest had met it. Under the lock only leaves are taken: the
//! poison set, the spares, the protections.
//!
//! The guest's own CPUs may change its tables, or its code, at any time. The page of the fault is what HPFAR says,
//! not what stage 1 says now; and what is read as the instruction must agree with the syndrome and with FAR. If
//! it does not, the access is made again; if it does not a second time running, it is not carried out.
//!
//! # Atomicity
//!
//! Each element that is aligned is one access of the CPU. What the guest does in one step (LDADD, SWP, CAS) is
//! done in one step, by exclusives of EL2 on the memory itself, so that others who have the memory mapped, other
//! VMs among them, see nothing between. Exclusives of the guest are carried out from the load to the store, in one
//! step as well ([`sequence`]).

mod arithmetic;
mod carry_out;
pub mod decode;
pub mod env;
mod exclusive;
pub mod execute;
pub mod extent;
mod fields;
mod instruction;
mod layout;
mod obstacle;
pub mod operation;
pub mod pages;
mod places;
pub mod sequence;
#[cfg(test)]
pub(super) mod tests;

use super::cpu::GuestCpu;
use super::exit::{Exit, Next};
use super::hypervisor::{Platform, StopReason};
use crate::addr::{Ipa, Pa};
use crate::ras::esr::{Abort, Access};
use crate::ras::inject;
use crate::ras::journal::Note;
use crate::ras::loops;
use crate::stage2::Damage;
use carry_out::Behind;
use core::sync::atomic::Ordering;
pub use instruction::Carried;
use obstacle::{Obstacle, Why};

impl<P: Platform, C: GuestCpu> Exit<'_, P, C> {
    /// The guest touched a hole that is larger than a page.
    #[cold]
    #[inline(never)]
    pub(super) fn under_hole(&mut self, abort: &Abort, ipa: Ipa, pa: Pa) -> Next {
        let obstacle = match self.carry_out(abort, ipa) {
            Ok(behind) => {
                match behind {
                    Behind::Instruction => self.cpu.skip_instruction(),
                    Behind::Sequence { pc, flags } => self.cpu.go_on(pc, flags),
                }
                self.count_carried(abort, ipa);
                return Next::Resume;
            }
            Err(obstacle) => obstacle,
        };
        match obstacle {
            Obstacle::Again => Next::Resume,
            Obstacle::Lost(byte) => {
                self.cpu.move_fault(byte.va);
                self.touched(abort, byte.ipa, byte.pa)
            }
            Obstacle::Consumed(byte) => {
                self.cpu.move_fault(byte.va);
                self.consumed(abort, byte.ipa, byte.pa)
            }
            // The guest meets it itself, when it fetches the instruction again.
            Obstacle::Code(byte) => {
                self.take_poison(abort, byte.ipa, byte.pa);
                Next::Resume
            }
            Obstacle::Nobody(va) => {
                self.cpu.move_fault(va);
                self.give_external_abort(abort)
            }
            Obstacle::Guests(va, status) => {
                let write = abort.access == Access::Write;
                self.deliver(inject::stage1_fault(&self.cpu.state(), va, write, status))
            }
            Obstacle::Parked(ipa) => match self.vm.follow(ipa) {
                Ok(place) => self.reopen(ipa, place),
                Err(damage) => self.give_up_map(&damage),
            },
            Obstacle::Refused(why) => {
                self.say_refused(ipa, why);
                self.touched(abort, ipa, pa)
            }
            Obstacle::Damaged(damage) => self.give_up_map(&damage),
        }
    }

    fn give_up_map(&mut self, damage: &Damage) -> Next {
        log::error!("event=error what=stage2 vm={} why={damage}", self.vm.name);
        self.stop(StopReason::Killed)
    }

    fn count_carried(&self, abort: &Abort, ipa: Ipa) {
        let count = self.vm.carried_out.fetch_add(1, Ordering::Relaxed) + 1;
        if loops::is_worth_a_line(count) {
            let note = Note::CarriedOut {
                vm: self.vm.vmid,
                vcpu: self.vcpu.index,
                ipa,
                el: self.cpu.exception_level(),
                access: abort.access,
                count,
            };
            self.hypervisor.ras.say(&note, self.hypervisor);
        }
    }

    fn say_refused(&self, ipa: Ipa, why: Why) {
        let count = self.vm.not_carried_out.fetch_add(1, Ordering::Relaxed) + 1;
        if loops::is_worth_a_line(count) {
            let note = Note::NotCarriedOut {
                vm: self.vm.vmid,
                vcpu: self.vcpu.index,
                ipa,
                why: why.name(),
                count,
            };
            self.hypervisor.ras.say(&note, self.hypervisor);
        }
    }
}

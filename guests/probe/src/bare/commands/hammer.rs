//! `hammer A N`: all vCPUs read and write around one page, to be struck in the middle.
//!
//! The 32 pages around A's are gone over N times by every vCPU. In each page but A's, a vCPU owns
//! every n-th of the words that the pattern leaves free (`pattern::hammer_share`): it reads back
//! what it wrote in the round before and writes this round's value. A's page is only read, by vCPU
//! 0, which checks its pattern if memory was filled since boot. So a lost or misdirected write and
//! a fault on a neighbour of a page that is taken away are both noticed. A page that gives a vCPU
//! an abort is left alone by that vCPU from then on: `aborts` is the number of (page, vCPU) pairs.
//!
//! `event=hammer-start` is printed when every vCPU has been through its first round.

use super::{memory, refuse};
use crate::bare::aborts::Abort;
use crate::bare::report::{self, report};
use crate::bare::smp::{self, Job};
use crate::bare::target::Target;
use crate::bare::{access, cpu, guest};
use cordon_probe::PAGE_SIZE;
use cordon_probe::layout::Alias;
use cordon_probe::pattern;
use cordon_probe::tally::Tally;
use core::sync::atomic::{AtomicUsize, Ordering};

const PAGES: u64 = 32;

static THROUGH_FIRST_ROUND: AtomicUsize = AtomicUsize::new(0);

/// What all vCPUs are to do.
#[derive(Clone, Copy, Debug)]
pub(in crate::bare) struct Plan {
    first: u64,
    end: u64,
    middle: u64,
    rounds: u64,
    check_middle: bool,
}

/// The command.
pub(super) fn hammer(around: u64, rounds: u64) {
    let pages = &guest::get().pages;
    let middle = pages.number(around);
    let Some((middle, range)) = middle.and_then(|m| Some((m, pages.around(m, PAGES)?))) else {
        return refuse("bad-address");
    };
    let check_middle = memory::is_filled() && middle < pages.device_len();
    let plan = Plan {
        first: range.start,
        end: range.end,
        middle,
        rounds,
        check_middle,
    };
    THROUGH_FIRST_ROUND.store(0, Ordering::Relaxed);
    let begin = cpu::microseconds();
    let sum = smp::run_everywhere(Job::Hammer(plan));
    let us = cpu::microseconds() - begin;
    report!(
        "event=hammer rounds={rounds} accesses={} aborts={} wrong={} us={us}",
        sum.accesses,
        sum.lost,
        sum.wrong
    );
}

/// This vCPU's part; `lost` counts the aborts.
pub(in crate::bare) fn run(plan: Plan) -> Tally {
    let mut hammer = Hammer {
        plan,
        vcpu: cpu::id(),
        left_alone: 0,
        tally: Tally::default(),
    };
    for round in 0..plan.rounds {
        hammer.round(round);
        if round == 0 {
            hammer.wait_for_all(plan);
        }
    }
    hammer.tally
}

struct Hammer {
    plan: Plan,
    vcpu: usize,
    /// One bit a page, from the first.
    left_alone: u32,
    tally: Tally,
}

impl Hammer {
    fn wait_for_all(&self, plan: Plan) {
        let all = guest::get().vcpus();
        let through = THROUGH_FIRST_ROUND.fetch_add(1, Ordering::AcqRel) + 1;
        cpu::wake_others();
        while THROUGH_FIRST_ROUND.load(Ordering::Acquire) < all {
            cpu::wait();
        }
        if through == all {
            report!(
                "event=hammer-start pages={} rounds={}",
                plan.end - plan.first,
                plan.rounds
            );
        }
    }

    fn round(&mut self, round: u64) {
        for page in self.plan.first..self.plan.end {
            let bit = 1 << (page - self.plan.first);
            let Some(target) = Target::of_page(page).filter(|_| self.left_alone & bit == 0) else {
                continue;
            };
            let result = match (page == self.plan.middle, self.vcpu) {
                (false, _) => self.own_words(target, round),
                (true, 0) => self.read_middle(target),
                (true, _) => Ok(()),
            };
            if let Err(abort) = result {
                self.left_alone |= bit;
                self.tally.lost += 1;
                report::unasked(guest::get(), page, abort);
            }
        }
    }

    /// Checks the round before and writes this one.
    fn own_words(&mut self, target: Target, round: u64) -> Result<(), Abort> {
        target.set_code(false);
        let start = target.va(Alias::El1Data);
        for index in pattern::hammer_share(self.vcpu, guest::get().vcpus()) {
            let offset = pattern::hammer_offset(index);
            let (at, ipa) = (start.offset(offset), target.ipa() + offset);
            if let Some(before) = round.checked_sub(1) {
                self.tally.accesses += 1;
                if access::load(at)? != pattern::hammer_value(ipa, self.vcpu, before) {
                    self.tally.wrong += 1;
                }
            }
            self.tally.accesses += 1;
            access::store(at, pattern::hammer_value(ipa, self.vcpu, round))?;
        }
        Ok(())
    }

    fn read_middle(&mut self, target: Target) -> Result<(), Abort> {
        let start = target.va(Alias::El1Data);
        for offset in (0..PAGE_SIZE).step_by(pattern::LINE_SIZE as usize) {
            self.tally.accesses += 1;
            let value = access::load(start.offset(offset))?;
            if self.plan.check_middle && value != pattern::value(target.ipa() + offset) {
                self.tally.wrong += 1;
            }
        }
        Ok(())
    }
}

//! `sgi`, `ipi`, `timer`, `masked`: interrupts, and whether as many come as were asked for.

use crate::bare::interrupts::{self, PHYSICAL_TIMER, SGI, VIRTUAL_TIMER};
use crate::bare::report::report;
use crate::bare::smp::{self, Job};
use crate::bare::{cpu, guest};

/// How long an interrupt may take before it counts as lost, in microseconds.
const PATIENCE: u64 = 2_000_000;
/// From arming a timer to its interrupt.
const PERIOD: u64 = 500;
/// For an interrupt that must not come.
const QUIET: u64 = 5_000;

/// Turns interrupts on, on all vCPUs. Says why not if that does not work.
pub(in crate::bare) fn ready() -> bool {
    match interrupts::open() {
        Some(gic) => {
            smp::run_everywhere(Job::Interrupts(gic));
            true
        }
        None => {
            super::refuse("no-gic");
            false
        }
    }
}

/// Waits until `vcpu` has taken `intid` `count` times; false if that does not happen.
fn wait_for(vcpu: usize, intid: usize, count: u64) -> bool {
    let deadline = cpu::microseconds() + PATIENCE;
    while interrupts::taken(vcpu, intid) < count {
        if cpu::microseconds() > deadline {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// `rounds` SGIs to this vCPU, one after the other.
pub(super) fn to_self(rounds: u64) {
    if !ready() {
        return;
    }
    let (vcpu, own) = (cpu::id(), cpu::affinity());
    let (before, start) = (interrupts::taken(vcpu, SGI), cpu::microseconds());
    for round in 1..=rounds {
        interrupts::send_to(own);
        if !wait_for(vcpu, SGI, before + round) {
            break;
        }
    }
    let (count, us) = (
        interrupts::taken(vcpu, SGI) - before,
        cpu::microseconds() - start,
    );
    report!("event=sgi sent={rounds} taken={count} us={us}");
}

/// `rounds` SGIs to each other vCPU, and as many to all others at once.
pub(super) fn to_others(rounds: u64) {
    if !ready() {
        return;
    }
    let own = cpu::affinity();
    let vcpus = guest::get().mpidrs().iter();
    let others = || (1..).zip(vcpus.clone().filter(|mpidr| **mpidr != own));
    let (start, mine) = (cpu::microseconds(), interrupts::taken(cpu::id(), SGI));
    let mut single = 0;
    for (vcpu, mpidr) in others() {
        let before = interrupts::taken(vcpu, SGI);
        for round in 1..=rounds {
            interrupts::send_to(*mpidr);
            if !wait_for(vcpu, SGI, before + round) {
                break;
            }
        }
        single += interrupts::taken(vcpu, SGI) - before;
    }
    let sum = || -> u64 { others().map(|(vcpu, _)| interrupts::taken(vcpu, SGI)).sum() };
    let before = sum();
    for _ in 0..rounds {
        let expected = sum() + others().count() as u64;
        interrupts::broadcast();
        let deadline = cpu::microseconds() + PATIENCE;
        while sum() < expected && cpu::microseconds() < deadline {
            core::hint::spin_loop();
        }
    }
    let (all, us) = (sum() - before, cpu::microseconds() - start);
    let stray = interrupts::taken(cpu::id(), SGI) - mine;
    report!("event=ipi rounds={rounds} single={single} broadcast={all} stray={stray} us={us}");
}

/// `rounds` interrupts of each timer; then one that goes on asking after its end, twice.
pub(super) fn timers(rounds: u64) {
    /// How often a timer asks again.
    const AGAIN: u64 = 2;
    if !ready() {
        return;
    }
    let (vcpu, start) = (cpu::id(), cpu::microseconds());
    let [ticks, again] = [rounds, 1].map(|rounds| {
        [VIRTUAL_TIMER, PHYSICAL_TIMER].map(|timer| {
            if rounds == 1 {
                interrupts::let_ask_again(AGAIN);
            }
            let before = interrupts::taken(vcpu, timer);
            for round in 1..=rounds {
                interrupts::arm(timer, PERIOD);
                if !wait_for(vcpu, timer, before + round) {
                    break;
                }
            }
            quiet();
            interrupts::taken(vcpu, timer) - before
        })
    });
    let us = cpu::microseconds() - start;
    report!(
        "event=timer rounds={rounds} virtual={} physical={} again={} us={us}",
        ticks[0],
        ticks[1],
        again[0] + again[1]
    );
}

/// An SGI and a timer while less urgent ones are masked by priority: they come when the mask opens.
pub(super) fn masked() {
    if !ready() {
        return;
    }
    let vcpu = cpu::id();
    let sum = || interrupts::taken(vcpu, SGI) + interrupts::taken(vcpu, VIRTUAL_TIMER);
    let before = sum();
    interrupts::set_mask(0x40);
    interrupts::send_to(cpu::affinity());
    interrupts::arm(VIRTUAL_TIMER, PERIOD);
    quiet();
    let closed = sum() - before;
    interrupts::set_mask(0xff);
    quiet();
    report!(
        "event=masked closed={closed} open={}",
        sum() - before - closed
    );
}

/// Long enough for an interrupt that should not come to come.
fn quiet() {
    let end = cpu::microseconds() + QUIET;
    while cpu::microseconds() < end {
        core::hint::spin_loop();
    }
}

//! `attack` and `fuzz`: everything that a VM must not reach is tried, and what comes of it is judged.
//!
//! An attempt is a few instructions, made at run time (`lab`), executed with every exception caught
//! ([`access::landing_pad`](super::access::landing_pad), [`el0`](super::el0)), and judged by
//! `cordon_probe::attack`. `memory`, `devices`, `registers`, `calls` and `state` each know one kind,
//! both as a list that is gone through and as a single attempt by chance; `fuzz` mixes them, on all
//! vCPUs. The first unexpected outcomes since boot are printed; all are counted.

mod calls;
mod devices;
mod forms;
pub(super) mod fuzz;
pub(super) mod lab;
mod memory;
mod registers;
mod state;

use super::aborts::Abort;
use super::report::report;
use super::{console, cpu, guest, interrupts};
use cordon_probe::attack::random::Random;
use cordon_probe::attack::verdict::{Score, Verdict};
use cordon_probe::command::Attack;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use lab::Lab;

/// How many unexpected outcomes are printed since boot.
const NAMED: u64 = 16;

static UNEXPECTED: AtomicU64 = AtomicU64::new(0);

/// The command `attack`.
pub(super) fn attack(what: Attack) {
    if lab::open().is_none() {
        return super::commands::refuse("no-room");
    }
    let name = match what {
        Attack::Memory => "memory",
        Attack::Sweep { .. } => "sweep",
        Attack::Registers => "registers",
        Attack::Calls => "calls",
        Attack::Devices => "devices",
        Attack::State => "state",
    };
    let Some(lab) = Lab::here() else {
        return super::commands::refuse("no-room");
    };
    let begin = cpu::microseconds();
    let mut attacker = Attacker::new(lab, name, 1);
    match what {
        Attack::Memory => memory::all(&mut attacker),
        Attack::Sweep { from, to, step } => memory::sweep(&mut attacker, from, to, step),
        Attack::Registers => registers::all(&mut attacker),
        Attack::Calls => calls::all(&mut attacker),
        Attack::Devices => devices::all(&mut attacker),
        Attack::State => state::all(&mut attacker),
    }
    recover();
    print(attacker.score, format_args!("attack what={name}"), begin);
}

/// Prints what an attack that began at `begin` has counted.
fn print(score: Score, event: core::fmt::Arguments<'_>, begin: u64) {
    let us = cpu::microseconds() - begin;
    report!(
        "event={event} tried={} values={} undefined={} aborts={} faults={} unexpected={} us={us}",
        score.tried,
        score.values,
        score.undefined,
        score.aborts,
        score.faults,
        score.unexpected,
    );
}

/// Puts the devices back into a state that the other commands can begin with.
fn recover() {
    console::restart(guest::get().uart());
    if let Some(gic) = interrupts::open() {
        interrupts::calm(gic);
    }
}

/// One vCPU on the attack.
struct Attacker {
    lab: Lab,
    what: &'static str,
    random: Random,
    score: Score,
}

impl Attacker {
    fn new(lab: Lab, what: &'static str, seed: u64) -> Self {
        Self {
            lab,
            what,
            random: Random::new(seed),
            score: Score::default(),
        }
    }

    /// Counts an attempt; says so if it was unexpected. `word` is its first instruction, `at` what it
    /// was about.
    fn judge(&mut self, verdict: Verdict, (word, at): (u32, u64), outcome: Result<u64, Abort>) {
        self.score.count(verdict);
        if verdict != Verdict::Unexpected || UNEXPECTED.fetch_add(1, Relaxed) >= NAMED {
            return;
        }
        let what = self.what;
        match outcome {
            Ok(value) => report!(
                "event=unexpected what={what} word={word:#010x} at={at:#x} result=ok value={value:#x}"
            ),
            Err(abort) => report!(
                "event=unexpected what={what} word={word:#010x} at={at:#x} result=exception \
                 esr={:#x} far={:#x} elr={:#x} spsr={:#x} vector={:#x}",
                abort.esr,
                abort.far,
                abort.elr,
                abort.spsr,
                abort.vector
            ),
        }
    }
}

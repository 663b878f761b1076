//! `fuzz SEED STEPS`: everything that `attack` does, by chance, on all vCPUs at once. Of one seed each
//! vCPU makes the same attempts again.

use super::{Attacker, lab, print, recover};
use crate::bare::smp::{self, Job};
use crate::bare::{cpu, guest, interrupts};
use cordon_probe::attack::verdict::Score;
use spin::Mutex;

static SCORE: Mutex<Score> = Mutex::new(Score {
    tried: 0,
    values: 0,
    undefined: 0,
    aborts: 0,
    faults: 0,
    unexpected: 0,
});

/// What all vCPUs are to do.
#[derive(Clone, Copy, Debug)]
pub(in crate::bare) struct Plan {
    seed: u64,
    steps: u64,
}

/// The command.
pub(in crate::bare) fn fuzz(seed: u64, steps: u64) {
    if lab::open().is_none() {
        return crate::bare::commands::refuse("no-room");
    }
    *SCORE.lock() = Score::default();
    let begin = cpu::microseconds();
    smp::run_everywhere(Job::Fuzz(Plan { seed, steps }));
    recover();
    let score = *SCORE.lock();
    let vcpus = guest::get().vcpus();
    print(
        score,
        format_args!("fuzz seed={seed:#x} steps={steps} vcpus={vcpus}"),
        begin,
    );
}

/// This vCPU's part.
pub(in crate::bare) fn run(plan: Plan) {
    let Some(lab) = lab::Lab::here() else {
        return;
    };
    let seed = plan.seed ^ (cpu::id() as u64) << 56;
    let mut attacker = Attacker::new(lab, "fuzz", seed);
    for _ in 0..plan.steps {
        match attacker.random.below(8) {
            0 | 1 => attacker.touch_by_chance(),
            2 | 3 => attacker.use_device_by_chance(),
            4 | 5 => attacker.register_by_chance(),
            6 => attacker.call_by_chance(),
            _ => attacker.pstate_by_chance(),
        }
    }
    interrupts::calm_own();
    *SCORE.lock() += attacker.score;
}

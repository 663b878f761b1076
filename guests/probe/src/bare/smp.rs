//! The other vCPUs, and jobs that all of them do together.
//!
//! vCPU 0 publishes a job and counts up `TURN`; each other vCPU, which looks at `TURN` between any
//! two pages of the patrol and whenever it is woken, does its part, adds its counts and reports
//! itself done; vCPU 0 does its own part and waits for the others. There is one job at a time,
//! since only vCPU 0 starts any and waits for its end. Waiting is by `wfe`, ended by `sev`.

use super::attack::fuzz;
use super::commands::bench;
use super::commands::forms;
use super::commands::hammer;
use super::commands::memory;
use super::patrol::Patroller;
use super::storm::{self, Stormer};
use super::{boot, cpu, guest, interrupts, psci, ram, report};
use cordon_probe::PAGE_SIZE;
use cordon_probe::machine::Gic;
use cordon_probe::tally::Tally;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use spin::Mutex;

/// How long a vCPU may take from `CPU_ON` to its first sign of life, in microseconds.
const START_TIMEOUT: u64 = 20_000_000;

/// Where the stacks of vCPUs 1 and up begin; `boot` reads it.
pub(super) static STACKS: AtomicU64 = AtomicU64::new(0);

static JOB: Mutex<Job> = Mutex::new(Job::Rendezvous);
static TURN: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicUsize = AtomicUsize::new(0);
static TALLY: Mutex<Tally> = Mutex::new(Tally {
    pages: 0,
    lost: 0,
    wrong: 0,
    accesses: 0,
});

/// Something that all vCPUs do together.
#[derive(Clone, Copy, Debug)]
pub(super) enum Job {
    /// Nothing: when it is done, no vCPU is in the middle of what it did before.
    Rendezvous,
    /// Write the pattern.
    Fill,
    /// Check the pattern.
    Sweep,
    /// Turn interrupts on.
    Interrupts(Gic),
    /// Read and write around a page.
    Hammer(hammer::Plan),
    /// Touch every page once.
    Audit,
    /// Attack by chance.
    Fuzz(fuzz::Plan),
    /// vCPU 0 interrupts the others, which sleep.
    BenchIpi,
    /// Change the same words, atomically.
    Contend(forms::Plan),
}

impl Job {
    /// This vCPU's part.
    fn run(self) -> Tally {
        match self {
            Self::Rendezvous => Tally::default(),
            Self::Fill => memory::fill_share(),
            Self::Sweep => memory::sweep_share(),
            Self::Interrupts(gic) => {
                interrupts::enable(gic);
                Tally::default()
            }
            Self::Hammer(plan) => hammer::run(plan),
            Self::Audit => storm::audit_share(),
            Self::Fuzz(plan) => {
                fuzz::run(plan);
                Tally::default()
            }
            Self::BenchIpi => {
                bench::ipi_part();
                Tally::default()
            }
            Self::Contend(plan) => {
                forms::contend_part(plan);
                Tally::default()
            }
        }
    }
}

/// On vCPU 0: has all vCPUs do `job`; returns the sum of what they counted.
pub(super) fn run_everywhere(job: Job) -> Tally {
    *JOB.lock() = job;
    *TALLY.lock() = Tally::default();
    DONE.store(0, Ordering::Relaxed);
    TURN.fetch_add(1, Ordering::Release);
    cpu::wake_others();
    let own = job.run();
    while DONE.load(Ordering::Acquire) + 1 < guest::get().vcpus() {
        cpu::wait();
    }
    let mut sum = *TALLY.lock();
    sum += own;
    sum
}

/// On the others: does the job that vCPU 0 has published since turn `seen`, if any.
fn take_part(seen: &mut u64) -> bool {
    let turn = TURN.load(Ordering::Acquire);
    if turn == *seen {
        return false;
    }
    *seen = turn;
    let job = *JOB.lock();
    let part = job.run();
    *TALLY.lock() += part;
    DONE.fetch_add(1, Ordering::Release);
    cpu::wake_others();
    true
}

/// Starts all vCPUs but this one, one after the other. `None` if there is no memory for stacks.
pub(super) fn start_others() -> Option<()> {
    let guest = guest::get();
    let own = cpu::affinity();
    let others = guest.mpidrs().iter().filter(|mpidr| **mpidr != own);
    let pages = boot::STACK_SIZE / PAGE_SIZE * guest.mpidrs().len() as u64;
    STACKS.store(ram::take(pages, PAGE_SIZE)?, Ordering::Relaxed);
    for (vcpu, mpidr) in (1..).zip(others) {
        if let Err(error) = psci::cpu_on(*mpidr, boot::secondary_entry(), vcpu) {
            report::fatal(format_args!("what=cpu-on which={vcpu} why={error:?}"));
        }
        let deadline = cpu::microseconds() + START_TIMEOUT;
        while (guest.vcpus() as u64) <= vcpu {
            if cpu::microseconds() > deadline {
                report::fatal(format_args!("what=cpu-on which={vcpu} why=no-sign-of-life"));
            }
            cpu::wait();
        }
    }
    Some(())
}

/// vCPUs 1 and up arrive here from `boot`.
pub(super) extern "C" fn secondary() -> ! {
    let mut seen = TURN.load(Ordering::Acquire);
    let mut patroller = Patroller::new();
    let mut stormer = Stormer::new();
    guest::get().add_vcpu();
    cpu::wake_others();
    cpu::unmask_serror();
    loop {
        if !take_part(&mut seen) && !patroller.step() && !stormer.step() {
            cpu::wait();
        }
    }
}

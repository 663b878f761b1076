//! `bench` and `bench-touch A`: what things cost, by the counter. See docs/performance.md.

use super::refuse;
use crate::bare::interrupts::{self, SGI, VIRTUAL_TIMER};
use crate::bare::report::report;
use crate::bare::smp::{self, Job};
use crate::bare::target::Target;
use crate::bare::timed::{self, DeviceRegister, Operation};
use crate::bare::{access, cpu, guest};
use aarch64_cpu::registers::{CNTV_CTL_EL0, CNTV_CVAL_EL0, Writeable};
use cordon_probe::layout::Alias;
use cordon_probe::machine::Gic;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How often each thing is done. The median is reported.
const ROUNDS: usize = 33;

/// How long after it is armed a timer fires, in ticks: longer than arming takes.
const AHEAD: u64 = 20_000;

/// A hypercall that no hypervisor knows: a function of SMCCC's range for vendors' hypervisors.
const UNKNOWN_CALL: u32 = 0xc600_ff7f;
const PSCI_VERSION: u32 = 0x8400_0000;

/// Offsets of registers: the distributor's, the second frame of a redistributor's, the UART's.
const TYPER: u64 = 0x004;
const ISENABLER: u64 = 0x100;
const ISPENDR: u64 = 0x200;
const SGI_FRAME: u64 = 0x1_0000;
const FR: u64 = 0x018;

/// The others' part of the work on inter-processor interrupts is over.
static OVER: AtomicBool = AtomicBool::new(false);

/// `bench`: a line for each thing that was measured, then how many.
pub(super) fn bench(begun: u64) {
    let Some(gic) = interrupts::open() else {
        return refuse("no-gic");
    };
    smp::run_everywhere(Job::Interrupts(gic));
    let mut count = 0;
    let mut say = |name: &str, value: u64| {
        report!("event=bench name={name} value={value}");
        count += 1;
    };
    say("boot", begun);
    for (name, operation) in operations(gic).into_iter().flatten() {
        say(name, median(|| timed::once(operation)));
    }
    say("sgi-self", median(sgi_to_self));
    say("eoi", interrupts::ending().saturating_sub(1));
    say("timer-busy", median(|| timer(|| {})));
    say("timer-wfi", median(|| timer(aarch64_cpu::asm::wfi)));
    if guest::get().vcpus() > 1 {
        OVER.store(false, Ordering::Release);
        smp::run_everywhere(Job::BenchIpi);
        say("ipi", LAST_IPI.load(Ordering::Relaxed));
    }
    report!("event=bench-end count={count}");
}

/// Single instructions and what they are called; `None` where a register cannot be reached.
fn operations(gic: Gic) -> [Option<(&'static str, Operation)>; 9] {
    let load = |name, ipa| Some((name, Operation::Load(DeviceRegister::map(ipa)?)));
    // With affinity routing the first 32 interrupts are the redistributor's.
    let (shared, own) = (gic.distributor + 4, gic.redistributors + SGI_FRAME);
    [
        Some(("hypercall", Operation::Hypercall(UNKNOWN_CALL))),
        Some(("psci-version", Operation::Hypercall(PSCI_VERSION))),
        Some(("id-register", Operation::IdRegister)),
        load("gicd-typer", gic.distributor + TYPER),
        load("gicd-isenabler", shared + ISENABLER),
        load("gicd-ispendr", shared + ISPENDR),
        load("gicr-isenabler", own + ISENABLER),
        load("gicr-ispendr", own + ISPENDR),
        load("uart-fr", guest::get().uart() + FR),
    ]
}

/// The median of [`ROUNDS`] measurements, after one that is not counted.
fn median(mut measure: impl FnMut() -> u64) -> u64 {
    measure();
    let mut values: [u64; ROUNDS] = core::array::from_fn(|_| measure());
    values.sort_unstable();
    values[ROUNDS / 2]
}

/// From sending an SGI to the vector.
fn sgi_to_self() -> u64 {
    let vcpu = cpu::id();
    let before = interrupts::taken(vcpu, SGI);
    let sent = timed::send(cpu::affinity());
    while interrupts::taken(vcpu, SGI) == before {
        core::hint::spin_loop();
    }
    interrupts::entered(vcpu).saturating_sub(sent)
}

/// From a timer's deadline to the vector; `wait` is done until then.
fn timer(wait: impl Fn()) -> u64 {
    let (vcpu, offset) = (cpu::id(), timed::offset());
    let before = interrupts::taken(vcpu, VIRTUAL_TIMER);
    let deadline = timed::now().wrapping_sub(offset) + AHEAD;
    CNTV_CVAL_EL0.set(deadline);
    CNTV_CTL_EL0.set(1);
    while interrupts::taken(vcpu, VIRTUAL_TIMER) == before {
        wait();
    }
    let entered = interrupts::entered(vcpu).wrapping_sub(offset);
    entered.saturating_sub(deadline)
}

/// What the interrupts to another vCPU came to.
static LAST_IPI: AtomicU64 = AtomicU64::new(0);

/// This vCPU's part of `Job::BenchIpi`: vCPU 0 interrupts the next one, and goes on when that has
/// ended the interrupt and sleeps again, or soon will. The counter counts for all CPUs.
pub(in crate::bare) fn ipi_part() {
    if cpu::id() != 0 {
        while !OVER.load(Ordering::Acquire) {
            interrupts::sleep_unless(|| OVER.load(Ordering::Acquire));
        }
        return;
    }
    let own = cpu::affinity();
    let others = guest::get().mpidrs().iter();
    if let Some(target) = others.copied().find(|mpidr| *mpidr != own) {
        LAST_IPI.store(median(|| ipi(target)), Ordering::Relaxed);
    }
    OVER.store(true, Ordering::Release);
    interrupts::broadcast();
}

/// From sending an SGI to a vCPU that sleeps until this one sees that it was taken.
fn ipi(target: u64) -> u64 {
    let before = interrupts::taken(1, SGI);
    let sent = timed::send(target);
    while interrupts::taken(1, SGI) == before {
        timed::give_way();
    }
    timed::now().saturating_sub(sent)
}

/// `bench-load A`: what a load of 64 bits from A takes, which gives a value.
pub(super) fn load(ipa: u64) {
    let Some(target) = Target::at(ipa, 8) else {
        return refuse("bad-address");
    };
    let va = target.va(Alias::El1Data);
    let (mut lost, mut ticks) = (0, [0; 2]);
    for (at, ticks) in ticks.iter_mut().enumerate() {
        *ticks = median(|| {
            let before = timed::now();
            // The first time for nothing but the counters.
            lost += u64::from(at == 1 && access::load(va).is_err());
            timed::now().saturating_sub(before)
        });
    }
    let [empty, full] = ticks;
    report!(
        "event=bench-load ipa={ipa:#x} ticks={} lost={lost}",
        full.saturating_sub(empty)
    );
}

/// `bench-touch A`: one load from A, and the physical counter before it and in the vector.
pub(super) fn touch(ipa: u64) {
    let Some(target) = Target::at(ipa, 8) else {
        return refuse("bad-address");
    };
    match access::timed_load(target.va(Alias::El1Data)) {
        (before, Some(abort)) => {
            if let Some(page) = target.page() {
                guest::get().ledger.lose(page);
            }
            let entered = abort.entered;
            report!("event=bench-touch ipa={ipa:#x} before={before} entered={entered}");
        }
        (_, None) => refuse("no-abort"),
    }
}

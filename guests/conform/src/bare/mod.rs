//! The guest on the machine.
//!
//! CPU 0 runs the tests, one after the other; the others wait for work that a test gives them (`cpu`).
//! IRQs are masked but where a test is about taking one: whether an interrupt has come is asked of
//! ISR_EL1 and ICC_IAR1_EL1. `unsafe` is in the leaves: `boot`, `vectors`, `sys`, `mmio`, `psci`, and
//! the tests of register state.

mod boot;
mod console;
mod cpu;
mod gic;
mod mmio;
mod psci;
mod sys;
mod test;
mod tests;
mod timer;
mod vectors;

use cordon_probe::machine::{Conduit, Gic, Machine};
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use fdt::Fdt;
use spin::Once;
use test::Tally;

static MACHINE: Once<Found> = Once::new();

/// Which test runs.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// What the device tree says.
struct Found {
    machine: Machine,
    gic: Gic,
}

impl Found {
    /// How many CPUs are used.
    fn cpus(&self) -> usize {
        self.machine.mpidrs().len().min(cpu::MAX_CPUS)
    }

    /// The affinity fields of a CPU; of none where there is no such CPU.
    fn mpidr(&self, number: usize) -> u64 {
        self.machine
            .mpidrs()
            .get(number)
            .copied()
            .unwrap_or(u64::MAX)
    }

    fn distributor(&self) -> u64 {
        self.gic.distributor
    }

    fn redistributors(&self) -> u64 {
        self.gic.redistributors
    }

    fn conduit(&self) -> Conduit {
        self.machine.conduit
    }
}

/// The machine. There is one from the beginning of the first test on.
fn machine() -> &'static Found {
    MACHINE.get().unwrap_or_else(|| halt())
}

/// The name of the test that runs.
fn running() -> &'static str {
    let all = tests::ALL.iter().copied().flatten();
    all.map(|(name, _)| *name)
        .nth(RUNNING.load(Relaxed))
        .unwrap_or("none")
}

/// CPU 0 arrives here from `boot`, with the MMU on.
#[expect(unsafe_code, reason = "the device tree at a bare address")]
extern "C" fn main(tree: u64) -> ! {
    let pointer = core::ptr::with_exposed_provenance::<u8>(tree as usize);
    // SAFETY: the loader's contract is that x0 is the address of a device tree, which is in RAM, and
    // nobody writes to it.
    let Ok(tree) = (unsafe { Fdt::from_ptr(pointer) }) else {
        halt()
    };
    let Ok(machine) = Machine::new(&tree) else {
        halt()
    };
    console::init(machine.uart);
    let Some(gic) = machine.gic else {
        fatal(format_args!("what=no-gic"))
    };
    MACHINE.call_once(|| Found { machine, gic });
    gic::enable_interface();
    if cpu::start_others().is_err() {
        fatal(format_args!("what=cpu-on"));
    }
    run()
}

fn run() -> ! {
    let begin = cpu::now();
    let mut tally = Tally::default();
    for (number, test) in tests::ALL.iter().copied().flatten().enumerate() {
        RUNNING.store(number, Relaxed);
        tally.run(*test);
    }
    let Tally {
        passed,
        failed,
        skipped,
    } = tally;
    console::print(format_args!(
        "event=conform-end tests={} passed={passed} failed={failed} skipped={skipped} us={}",
        passed + failed + skipped,
        cpu::now() - begin
    ));
    psci::off();
    halt()
}

/// Prints the last line, and powers off.
fn fatal(what: fmt::Arguments<'_>) -> ! {
    console::print(format_args!("event=panic {what}"));
    if MACHINE.get().is_some() {
        psci::off();
    }
    halt()
}

fn halt() -> ! {
    loop {
        sys::wfi();
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    match info.location() {
        Some(at) => fatal(format_args!(
            "what=rust-panic at={}:{}",
            at.file(),
            at.line()
        )),
        None => fatal(format_args!("what=rust-panic")),
    }
}

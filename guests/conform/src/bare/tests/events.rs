//! What ends WFE (Arm ARM D1.7.1, "Wait for Event").
#![expect(unsafe_code, reason = "the instructions themselves")]

use crate::bare::cpu;
use crate::bare::machine;
use crate::bare::sys::{self, cntkctl};
use crate::bare::test::{Stop, Test, Verdict, same};
use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

pub(super) static TESTS: &[Test] = &[("event-store", store), ("event-return", exception_return)];

/// What a lock's waiter looks at.
static WORD: AtomicU32 = AtomicU32::new(0);

/// CNTKCTL_EL1.EVNTEN: this CPU's own event stream.
const EVNTEN: u64 = 1 << 2;

/// The word that a waiter has loaded exclusively is written: the global monitor generates an event.
fn store() -> Verdict {
    fn wait(_: u64) -> u64 {
        let value: u64;
        // SAFETY: loads of a word that lives for ever; registers that are changed are declared.
        unsafe {
            asm!(
                "sevl",
                "wfe",
                "2: ldaxr {value:w}, [{word}]",
                "cbnz {value}, 3f",
                "wfe",
                "b 2b",
                "3: clrex",
                word = in(reg) WORD.as_ptr(), value = out(reg) value, options(nostack)
            );
        }
        value
    }
    wakes(wait)
}

/// An exception between load and WFE, taken and returned from by whomever, ends the monitor's watch; so it is an event
/// as well. (An access to an ID register is one where somebody traps it; where nobody does, this is the test above.)
fn exception_return() -> Verdict {
    fn wait(_: u64) -> u64 {
        let value: u64;
        // SAFETY: as above; ID registers can be read at EL1.
        unsafe {
            asm!(
                "sevl",
                "wfe",
                "2: ldaxr {value:w}, [{word}]",
                "cbnz {value}, 3f",
                "mrs {scratch}, id_aa64pfr0_el1",
                "wfe",
                "b 2b",
                "3: clrex",
                word = in(reg) WORD.as_ptr(), value = out(reg) value, scratch = out(reg) _,
                options(nostack)
            );
        }
        value
    }
    wakes(wait)
}

/// Whether a CPU that does `wait` sees what this one stores. Nobody sends it an event, no interrupt comes, and it has no
/// event stream of its own.
fn wakes(wait: cpu::Work) -> Verdict {
    if machine().cpus() < 2 {
        return Err(Stop::Skip("one-cpu"));
    }
    let set_stream = |on: bool| {
        let change: cpu::Work = match on {
            true => |_| stream(|own| own | EVNTEN),
            false => |_| stream(|own| own & !EVNTEN),
        };
        cpu::on(1, change, 0).map(|_| ())
    };
    for round in 1..=20 {
        WORD.store(0, Ordering::Release);
        set_stream(false)?;
        cpu::post(1, wait, 0);
        // Time enough to fall asleep.
        let end = cpu::now() + 500;
        while cpu::now() < end {
            sys::pause();
        }
        WORD.store(round, Ordering::Release);
        same("value", cpu::finish(1)?, round.into())?;
    }
    set_stream(true)
}

fn stream(change: impl Fn(u64) -> u64) -> u64 {
    cntkctl::write(change(cntkctl::read()));
    sys::dsb();
    0
}

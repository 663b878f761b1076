//! The generic timer at EL1 (Arm ARM D12).

use crate::bare::cpu;
use crate::bare::gic::{self, own};
use crate::bare::machine;
use crate::bare::sys::{self, cntkctl};
use crate::bare::test::{Stop, Test, Verdict, same, so};
use crate::bare::timer::{ENABLE, EVENTS, IMASK, ISTATUS, Timer};
use crate::bare::vectors::{self, SVC64, TRAPPED_SYSTEM, execute_el0, mrs};
use core::sync::atomic::{AtomicU64, Ordering};

pub(super) static TESTS: &[Test] = &[
    ("timer-counters", counters),
    ("timer-coherent", coherent),
    ("timer-value", value),
    ("timer-condition", condition),
    ("timer-line", line),
    ("timer-every-cpu", every_cpu),
    ("timer-interrupt", interrupt),
    ("timer-level", level),
    ("timer-withdrawn", withdrawn),
    ("timer-masked", masked),
    ("timer-extremes", extremes),
    ("timer-wfi", wfi),
    ("timer-exception", exception),
    ("timer-el0", el0),
];

/// Ticks of a microsecond, at least one.
fn ticks(microseconds: u64) -> u64 {
    (sys::cntfrq() * microseconds / 1_000_000).max(1)
}

fn both(mut test: impl FnMut(Timer) -> Verdict) -> Verdict {
    Timer::ALL.into_iter().try_for_each(|timer| {
        let verdict = test(timer);
        timer.set_ctl(0);
        verdict
    })
}

/// They count, and never back.
fn counters() -> Verdict {
    so(
        "frequency",
        sys::cntfrq() >= 1_000_000 && sys::cntfrq() <= 1 << 32,
    )?;
    both(|timer| {
        let first = timer.count();
        let mut last = first;
        for _ in 0..2000 {
            let now = timer.count();
            so("never-back", now >= last)?;
            last = now;
        }
        so("counts", last > first)
    })
}

static COUNT: AtomicU64 = AtomicU64::new(0);

/// No CPU's counter is behind what another one has read before.
fn coherent() -> Verdict {
    if machine().cpus() < 2 {
        return Err(Stop::Skip("one-cpu"));
    }
    /// Bit 0 of the argument: which timer; answers 1 where the counter was behind.
    fn look(which: u64) -> u64 {
        let timer = Timer::ALL[(which & 1) as usize];
        let before = COUNT.load(Ordering::Acquire);
        let now = timer.count();
        COUNT.store(now, Ordering::Release);
        (now < before).into()
    }
    for which in 0..2 {
        COUNT.store(0, Ordering::Relaxed);
        for round in 0..100 {
            let behind = cpu::on(round % machine().cpus(), look, which)?;
            same("behind", behind, 0)?;
        }
    }
    Ok(())
}

/// TVAL is 32 bits of CVAL - count, and is sign-extended when it is written.
fn value() -> Verdict {
    both(|timer| {
        let second = ticks(1_000_000);
        timer.set_cval(0x1234_5678_9abc_def0);
        same("cval", timer.cval(), 0x1234_5678_9abc_def0)?;
        for tval in [1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0xf_0000_0010] {
            let before = timer.count();
            timer.set_tval(tval);
            let after = timer.count();
            let extended = i64::from(tval as u32 as i32).cast_unsigned();
            let start = timer.cval().wrapping_sub(extended);
            so("cval-from-tval", start >= before && start <= after)?;
        }
        timer.set_cval(timer.count() + second);
        let tval = timer.tval();
        so("tval-of-the-future", tval <= second && tval > 0)?;
        timer.set_cval(timer.count() - 1);
        let tval = timer.tval();
        same("tval-of-the-past", tval >> 31, 1)
    })
}

fn condition() -> Verdict {
    both(|timer| {
        timer.set_cval(u64::MAX);
        timer.set_ctl(ENABLE | IMASK);
        same("future", timer.ctl(), ENABLE | IMASK)?;
        timer.set_cval(timer.count());
        same("now", timer.ctl(), ENABLE | IMASK | ISTATUS)?;
        timer.set_cval(timer.count() + ticks(2_000));
        same("not-yet", timer.ctl() & ISTATUS, 0)?;
        so("then", cpu::wait_for(|| timer.ctl() & ISTATUS != 0))?;
        timer.set_ctl(u64::MAX);
        same("reserved-bits", timer.ctl(), ENABLE | IMASK | ISTATUS)
    })
}

/// GICR_ISPENDR0 follows the line at once, with the interrupt disabled and enabled, taken or not.
fn line() -> Verdict {
    both(|timer| {
        let it = own(sys::tpidr() as usize, timer.intid());
        for enabled in [false, true] {
            if enabled {
                it.enable();
            }
            so("idle", !it.read(gic::ISPENDR))?;
            timer.fire();
            so("fired", it.read(gic::ISPENDR) && it.read(gic::ICPENDR))?;
            timer.set_ctl(ENABLE | IMASK);
            so("masked", !it.read(gic::ISPENDR))?;
            timer.set_ctl(ENABLE);
            so("unmasked", it.read(gic::ISPENDR))?;
            timer.set_cval(u64::MAX);
            so("future", !it.read(gic::ISPENDR))?;
            timer.set_cval(0);
            so("past", it.read(gic::ISPENDR))?;
            it.write(gic::ICPENDR);
            so("a-level-cannot-be-cleared", it.read(gic::ISPENDR))?;
            timer.set_ctl(0);
            so("off", !it.read(gic::ISPENDR))?;
            so("quiet", gic::quiet())?;
        }
        timer.fire();
        same("taken", gic::take(), timer.intid())?;
        so(
            "pending-and-active",
            it.read(gic::ISPENDR) && it.read(gic::ISACTIVER),
        )?;
        timer.set_ctl(0);
        so("active", !it.read(gic::ISPENDR) && it.read(gic::ISACTIVER))?;
        gic::end(timer.intid());
        so("inactive", !it.read(gic::ISACTIVER))?;
        it.disable();
        Ok(())
    })
}

/// Each CPU has timers of its own, whose lines the others see.
fn every_cpu() -> Verdict {
    fn fire(which: u64) -> u64 {
        Timer::ALL[(which & 1) as usize].fire();
        0
    }
    fn silence(which: u64) -> u64 {
        Timer::ALL[(which & 1) as usize].set_ctl(0);
        0
    }
    for (which, timer) in (0..).zip(Timer::ALL) {
        for number in 0..machine().cpus() {
            cpu::on(number, fire, which)?;
            for other in 0..machine().cpus() {
                let pending = own(other, timer.intid()).read(gic::ISPENDR);
                same("pending", pending.into(), u64::from(other == number))?;
            }
            cpu::on(number, silence, which)?;
            so("no-longer", !own(number, timer.intid()).read(gic::ISPENDR))?;
        }
    }
    Ok(())
}

/// In time, never early.
fn interrupt() -> Verdict {
    both(|timer| {
        own(0, timer.intid()).enable();
        for microseconds in [1, 500, 3_000] {
            let due = timer.count() + ticks(microseconds);
            timer.set_cval(due);
            timer.set_ctl(ENABLE);
            same("taken", gic::take(), timer.intid())?;
            so("not-early", timer.count() >= due)?;
            timer.set_ctl(0);
            gic::end(timer.intid());
            so("once", gic::quiet())?;
        }
        Ok(())
    })
}

/// It comes again as long as it asks.
fn level() -> Verdict {
    both(|timer| {
        own(0, timer.intid()).enable();
        timer.fire();
        for _ in 0..5 {
            same("taken", gic::take(), timer.intid())?;
            same("not-while-active", gic::acknowledge(), gic::SPURIOUS)?;
            gic::end(timer.intid());
        }
        same("again", gic::take(), timer.intid())?;
        timer.set_ctl(0);
        gic::end(timer.intid());
        so("quiet", gic::quiet())
    })
}

/// It no longer asks when its interrupt would be taken.
fn withdrawn() -> Verdict {
    both(|timer| {
        let it = own(0, timer.intid());
        it.enable();
        for way in 0..3 {
            timer.fire();
            so("signalled", cpu::wait_for(gic::signalled))?;
            match way {
                0 => timer.set_ctl(0),
                1 => timer.set_ctl(ENABLE | IMASK),
                _ => timer.set_cval(u64::MAX),
            }
            so("not-pending", !it.read(gic::ISPENDR))?;
            so("quiet", gic::quiet())?;
            same("nothing", gic::acknowledge(), gic::SPURIOUS)?;
            timer.set_ctl(0);
        }
        Ok(())
    })
}

fn masked() -> Verdict {
    both(|timer| {
        own(0, timer.intid()).enable();
        timer.set_cval(0);
        timer.set_ctl(ENABLE | IMASK);
        so("quiet", gic::quiet())?;
        timer.set_ctl(ENABLE);
        same("taken", gic::take(), timer.intid())?;
        timer.set_ctl(ENABLE | IMASK);
        gic::end(timer.intid());
        so("quiet-again", gic::quiet())
    })
}

fn extremes() -> Verdict {
    both(|timer| {
        own(0, timer.intid()).enable();
        for cval in [u64::MAX, 1 << 63, 1 << 60] {
            timer.set_cval(cval);
            timer.set_ctl(ENABLE);
            so("never", gic::quiet())?;
            same("not-met", timer.ctl() & ISTATUS, 0)?;
        }
        for cval in [0, 1, timer.count()] {
            timer.set_cval(cval);
            same("taken", gic::take(), timer.intid())?;
            timer.set_cval(u64::MAX);
            gic::end(timer.intid());
        }
        timer.set_tval(0);
        same("at-once", gic::take(), timer.intid())?;
        timer.set_ctl(0);
        gic::end(timer.intid());
        Ok(())
    })
}

/// It ends a WFI, with interrupts masked: at once if it asks already.
fn wfi() -> Verdict {
    both(|timer| {
        own(0, timer.intid()).enable();
        for microseconds in [0, 2_000] {
            timer.set_tval(ticks(microseconds));
            timer.set_ctl(ENABLE);
            while !gic::signalled() {
                sys::wfi();
            }
            same("met", timer.ctl() & ISTATUS, ISTATUS)?;
            same("taken", gic::take(), timer.intid())?;
            timer.set_ctl(0);
            gic::end(timer.intid());
        }
        Ok(())
    })
}

/// A hundred ticks, by exceptions.
fn exception() -> Verdict {
    both(|timer| {
        let it = own(0, timer.intid());
        it.enable();
        let before = cpu::this().taken(timer.intid());
        sys::unmask_irq();
        let mut taken = true;
        for n in 1..=100 {
            timer.set_tval(ticks(20));
            timer.set_ctl(ENABLE);
            taken &= cpu::wait_for(|| cpu::this().taken(timer.intid()) == before + n);
        }
        sys::mask_irq();
        so("taken", taken)?;
        it.disable();
        so("quiet", gic::quiet())?;
        let count = cpu::this().taken(timer.intid()) - before;
        same("as-often-as-asked", count.into(), 100)
    })
}

/// CNTKCTL_EL1 says what EL0 may: a trap to EL1 where it may not.
fn el0() -> Verdict {
    const COUNTERS: [(u64, u32); 2] = [(1, 1), (1 << 1, 2)];
    const TIMERS: [(u64, u32); 2] = [(1 << 8, 3), (1 << 9, 2)];
    let cases = COUNTERS
        .into_iter()
        .map(|(allow, op2)| (allow, mrs(3, 3, 14, 0, op2)));
    let timers = TIMERS
        .into_iter()
        .map(|(allow, crm)| (allow, mrs(3, 3, 14, crm, 2)));
    for (allow, instruction) in cases.chain(timers) {
        cntkctl::write(EVENTS);
        let (_, taken) = execute_el0(&[instruction], 0);
        same("trapped", taken.class(), TRAPPED_SYSTEM)?;
        cntkctl::write(EVENTS | allow);
        let (_, taken) = execute_el0(&[instruction], 0);
        same("allowed", taken.class(), SVC64)?;
    }
    cntkctl::write(EVENTS);
    let (_, taken) = vectors::execute(&[mrs(3, 3, 14, 0, 2)], 0);
    so("el1-may-always", taken.is_none())
}

//! PSCI (DEN0022F) and SMCCC (DEN0028). The end and the reset of the machine are not tried here.

use crate::bare::boot;
use crate::bare::cpu;
use crate::bare::gic::{self, own};
use crate::bare::machine;
use crate::bare::psci::{self, ALREADY_ON, NOT_SUPPORTED, ON_PENDING, SUCCESS, call, call_by};
use crate::bare::sys;
use crate::bare::test::{Stop, Test, Verdict, same, so};
use crate::bare::timer::{ENABLE, Timer};
use cordon_probe::machine::Conduit;
use core::sync::atomic::{AtomicBool, Ordering};

pub(super) static TESTS: &[Test] = &[
    ("psci-version", version),
    ("psci-features", features),
    ("psci-unknown", unknown),
    ("psci-registers", registers),
    ("psci-conduits", conduits),
    ("psci-upper-half", upper_half),
    ("psci-affinity", affinity),
    ("psci-on-refused", on_refused),
    ("psci-off-on", off_on),
    ("psci-on-32", on_32),
    ("psci-on-race", on_race),
    ("psci-suspend-standby", suspend_standby),
    ("psci-suspend-powerdown", suspend_powerdown),
    ("psci-suspend-bad", suspend_bad),
    ("psci-migrate", migrate),
    ("smccc-features", smccc_features),
];

/// AFFINITY_INFO.
const ON: i64 = 0;
const OFF: i64 = 1;

fn status(what: &'static str, got: i64, wanted: i64) -> Verdict {
    same(what, got.cast_unsigned(), wanted.cast_unsigned())
}

fn other() -> Result<usize, Stop> {
    match machine().cpus() {
        1 => Err(Stop::Skip("one-cpu")),
        cpus => Ok(cpus - 1),
    }
}

fn info(number: usize) -> i64 {
    call(psci::AFFINITY_INFO, machine().mpidr(number), 0, 0)
}

/// Has a CPU go off, and waits until it is.
fn turn_off(number: usize) -> Verdict {
    cpu::post(number, |_| call(psci::CPU_OFF, 0, 0, 0).cast_unsigned(), 0);
    so("goes-off", cpu::wait_for(|| info(number) == OFF))
}

fn version() -> Verdict {
    let version = call(psci::VERSION, 0, 0, 0);
    so("at-least-1.0", (0x1_0000..0x2_0000).contains(&version))
}

/// What is mandatory is there; FEATURES says so of itself.
fn features() -> Verdict {
    for function in [
        psci::VERSION,
        psci::CPU_SUSPEND,
        psci::CPU_OFF,
        psci::CPU_ON,
        psci::CPU_ON_32,
        psci::AFFINITY_INFO,
        psci::AFFINITY_INFO_32,
        psci::SYSTEM_OFF,
        psci::SYSTEM_RESET,
        psci::FEATURES,
    ] {
        let answer = call(psci::FEATURES, function, 0, 0);
        same("mandatory", function * u64::from(answer < 0), 0)?;
    }
    for function in [0x8400_001f, 0xc400_001f, 0x8600_ff01, 0, u64::MAX] {
        status(
            "unknown",
            call(psci::FEATURES, function, 0, 0),
            NOT_SUPPORTED,
        )?;
    }
    Ok(())
}

/// Function numbers of every kind of service that nobody gives.
fn unknown() -> Verdict {
    for function in [
        0x8400_001f,
        0xc400_001e,
        0xc400_0000,
        0x8500_0000,
        0xc600_ffff,
        0x8a00_0000,
        0xffff_ffff,
        0x7fff_ffff,
    ] {
        status("not-supported", call(function, 1, 2, 3), NOT_SUPPORTED)?;
    }
    Ok(())
}

/// x4 to x17 are as they were (SMCCC 1.1, DEN0028 2.6), whatever was called.
fn registers() -> Verdict {
    for function in [
        psci::VERSION,
        psci::SMCCC_VERSION,
        0xc400_001e,
        psci::AFFINITY_INFO,
    ] {
        let mut keep = core::array::from_fn(|n| 0x5a5a_0000_0000_0000 | n as u64);
        let before = keep;
        call_by(machine().conduit(), [function, 0, 0, 0], &mut keep);
        so("kept", keep == before)?;
    }
    Ok(())
}

/// Who is told to use HVC may as well use SMC here; the answer is the same, or the instruction is not
/// there. Plain machines have one of them only.
fn conduits() -> Verdict {
    const ID: u64 = psci::VERSION;
    const HVC: u32 = 0xd400_0002;
    const SMC: u32 = 0xd400_0003;
    let wanted = call(ID, 0, 0, 0).cast_unsigned();
    let own = if machine().conduit() == Conduit::Hvc {
        HVC
    } else {
        SMC
    };
    for instruction in [HVC, SMC] {
        let (x0, taken) = crate::bare::vectors::execute(&[instruction], ID);
        match taken {
            None => same("answer", x0, wanted)?,
            Some(taken) => {
                so("the-one-that-is-named", instruction != own)?;
                same("undefined", taken.class(), 0)?;
            }
        }
    }
    Ok(())
}

/// The function is in w0: what is above does not matter.
fn upper_half() -> Verdict {
    let plain = call(psci::VERSION, 0, 0, 0);
    let garbage = call(0xdead_beef_0000_0000 | psci::VERSION, 0, 0, 0);
    status("same", garbage, plain)
}

fn affinity() -> Verdict {
    for number in 0..machine().cpus() {
        status("on", info(number), ON)?;
        let mpidr = machine().mpidr(number) | 0xffff_ffff_0000_0000;
        status(
            "on-by-32-bits",
            call(psci::AFFINITY_INFO_32, mpidr, 0, 0),
            ON,
        )?;
    }
    for nobody in [0x7f, 0x7f00, 0x7f_0000, 0x7f_0000_0000, u64::MAX] {
        let answer = call(psci::AFFINITY_INFO, nobody, 0, 0);
        status("nobody", answer, psci::INVALID_PARAMETERS)?;
    }
    let answer = call(psci::AFFINITY_INFO, machine().mpidr(0), 4, 0);
    status("no-such-level", answer, psci::INVALID_PARAMETERS)
}

fn on_refused() -> Verdict {
    let entry = boot::secondary_entry();
    for number in 0..machine().cpus() {
        status("already-on", psci::cpu_on(number, entry, 0), ALREADY_ON)?;
    }
    for nobody in [0x7f, 0x7f_0000, 0x7f_0000_0000, u64::MAX] {
        let answer = call(psci::CPU_ON, nobody, entry, 0);
        status("nobody", answer, psci::INVALID_PARAMETERS)?;
    }
    let off = other()?;
    turn_off(off)?;
    for bad in [boot::NOWHERE, 0, 1 << 60, !3] {
        let answer = psci::cpu_on(off, bad, 0);
        if answer == SUCCESS {
            // Nobody has to check, but then this CPU is lost.
            return Err(Stop::Fail("bad-entry-accepted", bad, 0));
        }
        status("bad-entry", answer, psci::INVALID_ADDRESS)?;
        status("still-off", info(off), OFF)?;
    }
    cpu::start(off)
}

/// Off and on again, with what it is to know in x0, in the state that PSCI promises (DEN0022 6.4):
/// EL1, MMU and caches off, exceptions masked.
fn off_on() -> Verdict {
    const MMU_AND_CACHES: u64 = 1 | 1 << 2 | 1 << 12;
    const EL1_WITH_ITS_STACK: u64 = 1 << 2 | 1;
    let number = other()?;
    for round in 1..=20_u64 {
        turn_off(number)?;
        let (_, starts) = cpu::get(number).entry();
        let context = round << 32 | number as u64;
        let answer = psci::cpu_on(number, boot::secondary_entry(), context);
        status("on", answer, SUCCESS)?;
        cpu::started(number, starts)?;
        status("told", info(number), ON)?;
        let (entry, _) = cpu::get(number).entry();
        same("context", entry.context, context)?;
        same("mmu-and-caches-are-off", entry.sctlr & MMU_AND_CACHES, 0)?;
        same("little-endian", entry.sctlr >> 25 & 1, 0)?;
        same("masked", entry.daif, 0x3c0)?;
        same("level", entry.level, EL1_WITH_ITS_STACK)?;
    }
    Ok(())
}

/// The 32-bit form takes the lower halves.
fn on_32() -> Verdict {
    let number = other()?;
    turn_off(number)?;
    let (_, starts) = cpu::get(number).entry();
    let above = 0xffff_ffff_0000_0000;
    let mpidr = machine().mpidr(number);
    let entry = boot::secondary_entry();
    let answer = call(
        psci::CPU_ON_32,
        above | mpidr,
        above | entry,
        above | number as u64,
    );
    status("on", answer, SUCCESS)?;
    cpu::started(number, starts)?;
    same("context", cpu::get(number).entry().0.context, number as u64)
}

/// All others want one CPU on at the same time: one is told that it did it.
fn on_race() -> Verdict {
    static GO: AtomicBool = AtomicBool::new(false);
    fn race(target: u64) -> u64 {
        while !GO.load(Ordering::Acquire) {
            sys::pause();
        }
        psci::cpu_on(target as usize, boot::secondary_entry(), target).cast_unsigned()
    }
    let target = other()?;
    for _ in 0..20 {
        turn_off(target)?;
        let (_, starts) = cpu::get(target).entry();
        GO.store(false, Ordering::Release);
        (1..target).for_each(|number| cpu::post(number, race, target as u64));
        GO.store(true, Ordering::Release);
        let mut won = u64::from(race(target as u64) == 0);
        for number in 1..target {
            let answer = cpu::finish(number)?.cast_signed();
            won += u64::from(answer == SUCCESS);
            let known = matches!(answer, SUCCESS | ALREADY_ON | ON_PENDING);
            same("answer", answer.cast_unsigned() * u64::from(!known), 0)?;
        }
        same("winners", won, 1)?;
        cpu::started(target, starts)?;
    }
    so("started-once", cpu::never(|| info(target) != ON))
}

/// An interrupt that is due ends it, masked as it is by PSTATE, and the caller goes on.
fn suspend_standby() -> Verdict {
    for timer in Timer::ALL {
        let it = own(0, timer.intid());
        it.enable();
        for microseconds in [0, 2_000] {
            timer.set_tval(sys::cntfrq() * microseconds / 1_000_000);
            timer.set_ctl(ENABLE);
            let answer = call(psci::CPU_SUSPEND, 0, 0, 0);
            status("success", answer, SUCCESS)?;
            so("woken", cpu::wait_for(gic::signalled))?;
            same("taken", gic::take(), timer.intid())?;
            timer.set_ctl(0);
            gic::end(timer.intid());
        }
        it.disable();
    }
    Ok(())
}

/// A powerdown may be a standby (DEN0022 5.4.2): then the call returns; else the CPU starts at the entry.
fn suspend_powerdown() -> Verdict {
    const POWERDOWN: u64 = 1 << 16;
    fn suspend(number: u64) -> u64 {
        let timer = Timer::Virtual;
        own(number as usize, timer.intid()).enable();
        timer.set_tval(sys::cntfrq() / 1000);
        timer.set_ctl(ENABLE);
        let answer = call(
            psci::CPU_SUSPEND,
            POWERDOWN,
            boot::secondary_entry(),
            number,
        );
        timer.set_ctl(0);
        answer.cast_unsigned()
    }
    let number = other()?;
    let (_, starts) = cpu::get(number).entry();
    cpu::post(number, suspend, number as u64);
    let answer = cpu::finish(number)?;
    let (_, now) = cpu::get(number).entry();
    if now == starts {
        status("returned", answer.cast_signed(), SUCCESS)?;
    } else {
        same("started-once", now, starts + 1)?;
    }
    status("on", info(number), ON)
}

/// With something pending it comes back at once, whatever state was asked for.
fn suspend_bad() -> Verdict {
    own(0, 1).enable();
    gic::send(1, gic::target(0));
    so("signalled", cpu::wait_for(gic::signalled))?;
    let answer = call(psci::CPU_SUSPEND, 0, 0, 0);
    status("at-once", answer, SUCCESS)?;
    same("taken", gic::take(), 1)?;
    gic::end(1);
    Ok(())
}

fn migrate() -> Verdict {
    let answer = call(psci::MIGRATE_INFO_TYPE, 0, 0, 0);
    so("none-or-not-supported", matches!(answer, 2 | NOT_SUPPORTED))
}

/// Where SMCCC_VERSION is to be had, ARCH_FEATURES is as well (DEN0028 7.2, 7.3).
fn smccc_features() -> Verdict {
    if call(psci::FEATURES, psci::SMCCC_VERSION, 0, 0) != SUCCESS {
        return Err(Stop::Skip("smccc-1.0"));
    }
    so(
        "at-least-1.1",
        call(psci::SMCCC_VERSION, 0, 0, 0) >= 0x1_0001,
    )?;
    let known = |function| call(psci::SMCCC_ARCH_FEATURES, function, 0, 0);
    so("version", known(psci::SMCCC_VERSION) >= 0)?;
    so("features", known(psci::SMCCC_ARCH_FEATURES) >= 0)?;
    status("unknown", known(0x8000_7ff0), NOT_SUPPORTED)
}

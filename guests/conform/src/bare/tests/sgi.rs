//! Interrupts that software sends (IHI 0069, 12.2, ICC_SGI1R_EL1).

use crate::bare::cpu;
use crate::bare::gic::{self, ALL_BUT_SELF, SPURIOUS, own};
use crate::bare::machine;
use crate::bare::sys;
use crate::bare::test::{Stop, Test, Verdict, same, so};
use core::sync::atomic::{AtomicU64, Ordering};

pub(super) static TESTS: &[Test] = &[
    ("sgi-self", to_self),
    ("sgi-each", each),
    ("sgi-list", list),
    ("sgi-all-but-self", all_but_self),
    ("sgi-absent", absent),
    ("sgi-all-intids", all_intids),
    ("sgi-merge", merge),
    ("sgi-again-while-active", again_while_active),
    ("sgi-disabled", disabled),
    ("sgi-cleared", cleared),
    ("sgi-group0", group0),
    ("sgi-flood", flood),
];

/// Every CPU takes SGI `intid`, if it may.
fn enable(intid: u64) {
    for cpu in 0..machine().cpus() {
        own(cpu, intid).enable();
    }
}

/// Takes one interrupt and ends it.
fn take_and_end(_: u64) -> u64 {
    let intid = gic::take();
    gic::end(intid);
    intid
}

fn is_quiet(_: u64) -> u64 {
    gic::quiet().into()
}

/// Everybody in `takers` gets SGI `intid`, once, and nobody else.
fn arrived(intid: u64, takers: impl Fn(usize) -> bool) -> Verdict {
    for number in 0..machine().cpus() {
        if takers(number) {
            same("taken", cpu::on(number, take_and_end, 0)?, intid)?;
        }
        same("nothing-else", cpu::on(number, is_quiet, 0)?, 1)?;
    }
    Ok(())
}

fn two() -> Verdict {
    if machine().cpus() < 2 {
        return Err(Stop::Skip("one-cpu"));
    }
    Ok(())
}

fn to_self() -> Verdict {
    enable(1);
    gic::send(1, gic::target(0));
    arrived(1, |cpu| cpu == 0)
}

fn each() -> Verdict {
    two()?;
    enable(2);
    for target in 0..machine().cpus() {
        gic::send(2, gic::target(target));
        arrived(2, |cpu| cpu == target)?;
    }
    Ok(())
}

/// All that have one affinity 1, at once.
fn list() -> Verdict {
    two()?;
    enable(3);
    let targets = (0..machine().cpus()).fold(0, |all, cpu| all | gic::target(cpu));
    gic::send(3, targets);
    arrived(3, |_| true)
}

fn all_but_self() -> Verdict {
    two()?;
    enable(4);
    gic::send(4, ALL_BUT_SELF);
    arrived(4, |cpu| cpu != 0)?;
    fn from_another(_: u64) -> u64 {
        gic::send(4, ALL_BUT_SELF);
        0
    }
    cpu::on(1, from_another, 0)?;
    arrived(4, |cpu| cpu != 1)
}

/// CPUs that are not there, by every affinity field.
fn absent() -> Verdict {
    enable(5);
    for elsewhere in [0x8000, 200 << 16, 1 << 32, 1 << 48] {
        let list = if elsewhere == 0x8000 { 0 } else { 1 };
        gic::send(5, elsewhere | list);
        arrived(5, |_| false)?;
    }
    gic::send(5, gic::target(0) | 0xff00);
    arrived(5, |cpu| cpu == 0)
}

fn all_intids() -> Verdict {
    for intid in 0..16 {
        own(0, intid).enable();
        gic::send(intid, gic::target(0));
        same("taken", take_and_end(0), intid)?;
    }
    Ok(())
}

/// Two before the first is taken are one.
fn merge() -> Verdict {
    enable(6);
    gic::send(6, gic::target(0));
    gic::send(6, gic::target(0));
    arrived(6, |cpu| cpu == 0)
}

/// One that comes while the last is active waits, and comes when that ends.
fn again_while_active() -> Verdict {
    let sgi = own(0, 7);
    enable(7);
    gic::send(7, gic::target(0));
    same("first", gic::take(), 7)?;
    so("active", sgi.read(gic::ISACTIVER))?;
    so("not-pending", !sgi.read(gic::ISPENDR))?;
    gic::send(7, gic::target(0));
    so("both", sgi.read(gic::ISPENDR) && sgi.read(gic::ISACTIVER))?;
    same("not-while-active", gic::acknowledge(), SPURIOUS)?;
    gic::end(7);
    same("second", gic::take(), 7)?;
    gic::end(7);
    so("quiet", gic::quiet())
}

fn disabled() -> Verdict {
    let sgi = own(0, 8);
    gic::send(8, gic::target(0));
    so("quiet", gic::quiet())?;
    so("pending", sgi.read(gic::ISPENDR))?;
    sgi.enable();
    arrived(8, |cpu| cpu == 0)
}

/// ICPENDR before it is taken.
fn cleared() -> Verdict {
    let sgi = own(0, 9);
    sgi.enable();
    gic::send(9, gic::target(0));
    so("signalled", cpu::wait_for(gic::signalled))?;
    sgi.write(gic::ICPENDR);
    so("not-pending", !sgi.read(gic::ISPENDR))?;
    so("quiet", gic::quiet())?;
    same("nothing", gic::acknowledge(), SPURIOUS)
}

/// ICC_SGI0R_EL1 sends what is in group 0 alone, ICC_SGI1R_EL1 both, and group 0 comes by ICC_IAR0_EL1.
fn group0() -> Verdict {
    let sgi = own(0, 10);
    sgi.enable();
    sys::icc_sgi0r::write(10 << 24 | gic::target(0));
    so("group-1-is-not-sent", gic::quiet())?;
    so("nor-pending", !sgi.read(gic::ISPENDR))?;
    sgi.set_group(0);
    sys::icc_sgi0r::write(10 << 24 | gic::target(0));
    so("fiq", cpu::wait_for(|| sys::isr() & 1 << 6 != 0))?;
    so("no-irq", !gic::signalled())?;
    same("iar0", sys::icc_iar0() & 0xff_ffff, 10)?;
    sys::icc_eoir0::write(10);
    same("iar0-again", sys::icc_iar0() & 0xff_ffff, SPURIOUS)
}

/// A hundred in a row to each other CPU, none of which gets lost.
fn flood() -> Verdict {
    two()?;
    enable(11);
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    fn take_many(count: u64) -> u64 {
        let taken = (0..count).take_while(|_| {
            let right = take_and_end(0) == 11;
            TAKEN.fetch_add(1, Ordering::Release);
            sys::wake();
            right
        });
        taken.count() as u64
    }
    for number in 1..machine().cpus() {
        TAKEN.store(0, Ordering::Relaxed);
        cpu::post(number, take_many, 100);
        for n in 1..=100 {
            gic::send(11, gic::target(number));
            let taken = || TAKEN.load(Ordering::Acquire) == n;
            so("taken-in-time", cpu::wait_for(taken))?;
        }
        same("taken", cpu::finish(number)?, 100)?;
    }
    Ok(())
}

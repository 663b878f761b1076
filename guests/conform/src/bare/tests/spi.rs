//! Shared interrupts: where they go, what is pending and active, and what other CPUs do to that
//! (IHI 0069, 4).

use crate::bare::cpu;
use crate::bare::gic::{self, Interrupt, SPURIOUS, gicd, spi};
use crate::bare::machine;
use crate::bare::mmio::{read32, write32};
use crate::bare::sys::{icc_ctlr, icc_dir};
use crate::bare::test::{Stop, Test, Verdict, same, so};
use crate::bare::{console, sys};

pub(super) static TESTS: &[Test] = &[
    ("spi-route", route),
    ("spi-reroute", reroute),
    ("spi-nowhere", nowhere),
    ("spi-once", once),
    ("spi-clear", clear),
    ("spi-disable", disable),
    ("spi-group-off", group_off),
    ("spi-group0", group0),
    ("spi-active", active),
    ("spi-made-active", made_active),
    ("spi-seen-elsewhere", seen_elsewhere),
    ("spi-ended-elsewhere", ended_elsewhere),
    ("spi-dir-elsewhere", dir_elsewhere),
    ("spi-line", line),
    ("spi-every", every),
];

/// INTID of the UART's interrupt on this kind of machine: SPI 1.
const UART: u64 = 33;

/// Enabled, an edge or a level, for CPU `cpu`.
fn prepare(intid: u64, edge: bool, cpu: usize) -> Interrupt {
    let it = spi(intid);
    it.set_edge(edge);
    it.route(cpu);
    it.enable();
    it
}

/// CPU `number` takes one interrupt.
fn take_on(number: usize) -> Result<u64, Stop> {
    cpu::on(number, |_| gic::take(), 0)
}

fn end_on(number: usize, intid: u64) -> Verdict {
    cpu::on(
        number,
        |intid| {
            gic::end(intid);
            0
        },
        intid,
    )
    .map(drop)
}

fn quiet_on(number: usize) -> Verdict {
    same("quiet", cpu::on(number, |_| gic::quiet().into(), 0)?, 1)
}

fn last_cpu() -> Result<usize, Stop> {
    match machine().cpus() {
        1 => Err(Stop::Skip("one-cpu")),
        cpus => Ok(cpus - 1),
    }
}

fn route() -> Verdict {
    for edge in [true, false] {
        for number in 0..machine().cpus() {
            let it = prepare(40, edge, number);
            it.write(gic::ISPENDR);
            same("taken", take_on(number)?, 40)?;
            end_on(number, 40)?;
            quiet_on(number)?;
        }
    }
    Ok(())
}

/// While it is pending and may be signalled at its old place already.
fn reroute() -> Verdict {
    let other = last_cpu()?;
    let it = prepare(41, true, 0);
    it.write(gic::ISPENDR);
    so("signalled", cpu::wait_for(gic::signalled))?;
    it.route(other);
    same("taken-there", take_on(other)?, 41)?;
    same("not-here", gic::acknowledge(), SPURIOUS)?;
    end_on(other, 41)?;
    quiet_on(0)
}

/// To a CPU that is not there: it stays pending, and can be sent elsewhere.
fn nowhere() -> Verdict {
    let it = prepare(42, true, 0);
    crate::bare::mmio::write64(gicd(gic::IROUTER + 8 * 42), 0x7f_0000);
    it.write(gic::ISPENDR);
    so("quiet", gic::quiet())?;
    so("pending", it.read(gic::ISPENDR))?;
    it.route(0);
    same("taken", gic::take(), 42)?;
    gic::end(42);
    Ok(())
}

/// A level that software made pending is pending until it is taken, then no longer.
fn once() -> Verdict {
    for edge in [true, false] {
        let it = prepare(43, edge, 0);
        it.write(gic::ISPENDR);
        it.write(gic::ISPENDR);
        so("pending", it.read(gic::ISPENDR))?;
        same("taken", gic::take(), 43)?;
        so("not-pending", !it.read(gic::ISPENDR))?;
        so("active", it.read(gic::ISACTIVER))?;
        gic::end(43);
        so("inactive", !it.read(gic::ISACTIVER))?;
        so("quiet", gic::quiet())?;
    }
    Ok(())
}

fn clear() -> Verdict {
    for edge in [true, false] {
        let it = prepare(44, edge, 0);
        it.write(gic::ISPENDR);
        so("signalled", cpu::wait_for(gic::signalled))?;
        it.write(gic::ICPENDR);
        so("not-pending", !it.read(gic::ISPENDR))?;
        so("quiet", gic::quiet())?;
        same("nothing", gic::acknowledge(), SPURIOUS)?;
    }
    Ok(())
}

fn disable() -> Verdict {
    let it = prepare(45, true, 0);
    it.write(gic::ISPENDR);
    so("signalled", cpu::wait_for(gic::signalled))?;
    it.disable();
    so("quiet", gic::quiet())?;
    same("nothing", gic::acknowledge(), SPURIOUS)?;
    so("still-pending", it.read(gic::ISPENDR))?;
    it.enable();
    same("taken", gic::take(), 45)?;
    gic::end(45);
    Ok(())
}

fn group_off() -> Verdict {
    const GROUP0: u64 = 0b1_0001;
    let it = prepare(46, true, 0);
    it.write(gic::ISPENDR);
    so("signalled", cpu::wait_for(gic::signalled))?;
    gic::set_control(GROUP0);
    so("quiet", gic::quiet())?;
    same("nothing", gic::acknowledge(), SPURIOUS)?;
    gic::set_control(gic::BOTH_GROUPS);
    same("taken", gic::take(), 46)?;
    gic::end(46);
    Ok(())
}

fn group0() -> Verdict {
    let it = prepare(47, true, 0);
    it.set_group(0);
    it.write(gic::ISPENDR);
    so("fiq", cpu::wait_for(|| sys::isr() & 1 << 6 != 0))?;
    so("no-irq", !gic::signalled())?;
    same("iar0", sys::icc_iar0() & 0xff_ffff, 47)?;
    so("active", it.read(gic::ISACTIVER))?;
    sys::icc_eoir0::write(47);
    so("inactive", !it.read(gic::ISACTIVER))
}

/// Active means not signalled again, even when pending; ICACTIVER ends it.
fn active() -> Verdict {
    let it = prepare(48, true, 0);
    it.write(gic::ISPENDR);
    same("first", gic::take(), 48)?;
    it.write(gic::ISPENDR);
    so("quiet", gic::quiet())?;
    it.write(gic::ICACTIVER);
    so("inactive", !it.read(gic::ISACTIVER))?;
    // Its priority is still running.
    so("as-urgent-waits", gic::quiet())?;
    gic::end(48);
    same("second", gic::take(), 48)?;
    gic::end(48);
    so("quiet", gic::quiet())
}

/// What software made active is not signalled until software ends that.
fn made_active() -> Verdict {
    let it = prepare(49, true, 0);
    it.write(gic::ISACTIVER);
    so("active", it.read(gic::ISACTIVER))?;
    it.write(gic::ISPENDR);
    so("quiet", gic::quiet())?;
    same("nothing", gic::acknowledge(), SPURIOUS)?;
    it.write(gic::ICACTIVER);
    same("taken", gic::take(), 49)?;
    gic::end(49);
    Ok(())
}

/// Pending and active there is read here.
fn seen_elsewhere() -> Verdict {
    let other = last_cpu()?;
    let it = prepare(51, true, other);
    it.write(gic::ISPENDR);
    same("taken", take_on(other)?, 51)?;
    so("active", it.read(gic::ISACTIVER))?;
    so("not-pending", !it.read(gic::ISPENDR))?;
    end_on(other, 51)?;
    so("inactive", !it.read(gic::ISACTIVER))
}

/// ICACTIVER by a CPU that has not taken it.
fn ended_elsewhere() -> Verdict {
    let other = last_cpu()?;
    let it = prepare(52, true, other);
    it.write(gic::ISPENDR);
    same("taken", take_on(other)?, 52)?;
    it.write(gic::ICACTIVER);
    so("inactive", !it.read(gic::ISACTIVER))?;
    end_on(other, 52)?;
    it.write(gic::ISPENDR);
    same("again", take_on(other)?, 52)?;
    end_on(other, 52)?;
    quiet_on(other)
}

/// ICC_DIR_EL1 by a CPU that has not taken it: with EOImode = 1 any CPU may deactivate a shared
/// interrupt (IHI 0069, 4.1.1).
fn dir_elsewhere() -> Verdict {
    const EOI_MODE: u64 = 1 << 1;
    fn split(_: u64) -> u64 {
        icc_ctlr::write(EOI_MODE);
        0
    }
    let other = last_cpu()?;
    split(0);
    cpu::on(other, split, 0)?;
    for round in 0..3 {
        let it = prepare(53, true, other);
        it.write(gic::ISPENDR);
        same("taken", take_on(other)?, 53)?;
        end_on(other, 53)?;
        if round > 0 {
            so("active", it.read(gic::ISACTIVER))?;
        }
        icc_dir::write(53);
        if round == 0 {
            // Without a look at its state in between, which would bring it here.
            it.write(gic::ISPENDR);
            same("again", take_on(other)?, 53)?;
            end_on(other, 53)?;
            icc_dir::write(53);
        }
        so("inactive", !it.read(gic::ISACTIVER))?;
        quiet_on(other)?;
    }
    Ok(())
}

/// A device's level: pending as long as it is high, again after each end, and gone when it drops.
fn line() -> Verdict {
    const IMSC: u64 = 0x38;
    const RIS: u64 = 0x3c;
    const TRANSMIT: u64 = 1 << 5;
    let uart = console::uart();
    let it = prepare(UART, false, 0);
    // A line of its own, which nobody reads: only a character that is sent makes it ask.
    console::put(b'\r');
    console::put(b'\n');
    if !cpu::wait_for(|| read32(uart + RIS) & TRANSMIT != 0) {
        return Err(Stop::Skip("uart-does-not-ask"));
    }
    so("not-pending", !it.read(gic::ISPENDR))?;
    write32(uart + IMSC, TRANSMIT);
    let result = line_is_high(it).and_then(|()| {
        write32(uart + IMSC, 0);
        gic::end(UART);
        so("dropped", !it.read(gic::ISPENDR) && gic::quiet())
    });
    write32(uart + IMSC, 0);
    result
}

fn line_is_high(it: Interrupt) -> Verdict {
    so("pending", it.read(gic::ISPENDR))?;
    it.write(gic::ICPENDR);
    so("a-level-cannot-be-cleared", it.read(gic::ISPENDR))?;
    for _ in 0..3 {
        same("taken", gic::take(), UART)?;
        so(
            "pending-and-active",
            it.read(gic::ISPENDR) && it.read(gic::ISACTIVER),
        )?;
        gic::end(UART);
    }
    same("once-more", gic::take(), UART)
}

/// Each SPI there is, but the UART's.
fn every() -> Verdict {
    for intid in (32..gic::intids().min(gic::SPECIAL)).filter(|intid| *intid != UART) {
        let it = prepare(intid, true, 0);
        it.write(gic::ISPENDR);
        same("taken", gic::take(), intid)?;
        gic::end(intid);
        it.disable();
    }
    so("quiet", gic::quiet())
}

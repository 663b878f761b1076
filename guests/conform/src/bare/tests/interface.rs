//! The CPU interface: masks, priorities, preemption, deactivation (IHI 0069, 4 and 12.2).

use crate::bare::cpu;
use crate::bare::gic::{self, SPURIOUS, own, spi};
use crate::bare::sys::{self, icc_bpr1, icc_ctlr, icc_dir, icc_igrpen1, icc_pmr, icc_sre};
use crate::bare::test::{Test, Verdict, same, so};

pub(super) static TESTS: &[Test] = &[
    ("icc-sre", sre),
    ("icc-ctlr", control),
    ("icc-pmr", mask),
    ("icc-bpr", binary_point),
    ("icc-spurious", spurious),
    ("icc-masked", masked),
    ("icc-group-off", group_off),
    ("icc-order", order),
    ("icc-preempt", preempt),
    ("icc-same-group", same_group),
    ("icc-nested", nested),
    ("icc-nested-deactivate", nested_deactivate),
    ("icc-many", many),
    ("icc-eoimode", eoi_mode),
    ("icc-dir-pending", dir_pending),
    ("icc-exception", exception),
    ("icc-wfi", wfi),
];

/// What the running priority is when nothing is active.
const IDLE: u64 = 0xff;
/// ICC_CTLR_EL1.EOImode.
const EOI_MODE: u64 = 1 << 1;
const CBPR: u64 = 1;

/// SGI `intid` of this CPU has this priority, and is enabled.
fn prepare(intid: u64, priority: u64) {
    own(0, intid).set_priority(priority);
    own(0, intid).enable();
}

fn send(intid: u64) {
    gic::send(intid, gic::target(0));
}

fn sre() -> Verdict {
    same("system-registers", icc_sre::read() & 1, 1)?;
    icc_sre::write(0);
    same("nothing-else", icc_sre::read() & 1, 1)
}

fn control() -> Verdict {
    let fields = icc_ctlr::read();
    so("five-priority-bits", fields >> 8 & 7 >= 4)?;
    for value in [EOI_MODE, CBPR, EOI_MODE | CBPR, 0] {
        icc_ctlr::write(value);
        same("kept", icc_ctlr::read() & (EOI_MODE | CBPR), value)?;
    }
    same("read-only", icc_ctlr::read(), fields)
}

fn mask() -> Verdict {
    let bits = 8 - ((icc_ctlr::read() >> 8 & 7) + 1);
    let implemented = 0xff << bits & 0xff;
    for value in [0xff, 0x00, 0xa5, 0x5a] {
        icc_pmr::write(value);
        same("kept", icc_pmr::read(), value & implemented)?;
    }
    Ok(())
}

fn binary_point() -> Verdict {
    icc_bpr1::write(0);
    let least = icc_bpr1::read();
    so("least", least <= 3)?;
    for value in least..8 {
        icc_bpr1::write(value);
        same("kept", icc_bpr1::read(), value)?;
    }
    Ok(())
}

fn spurious() -> Verdict {
    same("nothing", gic::acknowledge(), SPURIOUS)?;
    same("idle", sys::icc_rpr() & 0xff, IDLE)?;
    gic::end(SPURIOUS);
    same("highest", sys::icc_hppir1() & 0xff_ffff, SPURIOUS)
}

/// Not while ICC_PMR_EL1 masks it, at once when it does no longer.
fn masked() -> Verdict {
    prepare(1, 0x80);
    for closed in [0, 0x40, 0x80] {
        icc_pmr::write(closed);
        send(1);
        so("quiet", gic::quiet())?;
        same("nothing", gic::acknowledge(), SPURIOUS)?;
        icc_pmr::write(0x88);
        same("taken", gic::take(), 1)?;
        gic::end(1);
    }
    Ok(())
}

fn group_off() -> Verdict {
    prepare(1, 0x80);
    icc_igrpen1::write(0);
    send(1);
    so("quiet", gic::quiet())?;
    same("nothing", gic::acknowledge(), SPURIOUS)?;
    icc_igrpen1::write(1);
    same("taken", gic::take(), 1)?;
    gic::end(1);
    Ok(())
}

/// The most urgent first, whatever its number.
fn order() -> Verdict {
    icc_pmr::write(0);
    for (intid, priority) in [(0, 0x60), (1, 0x20), (2, 0x80), (3, 0x40)] {
        prepare(intid, priority);
        send(intid);
    }
    icc_pmr::write(0xff);
    for (intid, priority) in [(1, 0x20), (3, 0x40), (0, 0x60), (2, 0x80)] {
        so("signalled", cpu::wait_for(gic::signalled))?;
        same("highest", sys::icc_hppir1() & 0xff_ffff, intid)?;
        same("taken", gic::take(), intid)?;
        same("running", sys::icc_rpr() & 0xff, priority)?;
        gic::end(intid);
    }
    same("idle", sys::icc_rpr() & 0xff, IDLE)
}

fn preempt() -> Verdict {
    prepare(1, 0xa0);
    prepare(2, 0x40);
    prepare(3, 0x40);
    prepare(4, 0xc0);
    send(1);
    same("first", gic::take(), 1)?;
    same("running", sys::icc_rpr() & 0xff, 0xa0)?;
    send(4);
    so("less-urgent-waits", gic::quiet())?;
    send(2);
    same("more-urgent", gic::take(), 2)?;
    same("running", sys::icc_rpr() & 0xff, 0x40)?;
    send(3);
    so("as-urgent-waits", gic::quiet())?;
    same("nothing", gic::acknowledge(), SPURIOUS)?;
    gic::end(2);
    same("then-it-comes", gic::take(), 3)?;
    gic::end(3);
    same("back", sys::icc_rpr() & 0xff, 0xa0)?;
    same("still-waits", gic::acknowledge(), SPURIOUS)?;
    gic::end(1);
    same("last", gic::take(), 4)?;
    gic::end(4);
    same("idle", sys::icc_rpr() & 0xff, IDLE)
}

/// Priorities that ICC_BPR1_EL1 puts into one group do not preempt each other.
fn same_group() -> Verdict {
    prepare(1, 0x60);
    prepare(2, 0x20);
    prepare(3, 0x90);
    icc_bpr1::write(7);
    send(1);
    same("first", gic::take(), 1)?;
    send(2);
    so("waits", gic::quiet())?;
    gic::end(1);
    same("then-it-comes", gic::take(), 2)?;
    gic::end(2);
    send(3);
    same("other-group", gic::take(), 3)?;
    send(1);
    same("preempts", gic::take(), 1)?;
    gic::end(1);
    gic::end(3);
    same("idle", sys::icc_rpr() & 0xff, IDLE)
}

/// Twelve within each other: more than a CPU interface has list registers.
const DEPTH: u64 = 12;

fn nest() -> Verdict {
    for level in 0..DEPTH {
        prepare(level, 0xe0 - 0x10 * level);
        send(level);
        same("preempts", gic::take(), level)?;
        same("running", sys::icc_rpr() & 0xff, 0xe0 - 0x10 * level)?;
        so("active", own(0, level).read(gic::ISACTIVER))?;
    }
    Ok(())
}

fn nested() -> Verdict {
    nest()?;
    for level in (0..DEPTH).rev() {
        gic::end(level);
        so("inactive", !own(0, level).read(gic::ISACTIVER))?;
    }
    same("idle", sys::icc_rpr() & 0xff, IDLE)?;
    so("quiet", gic::quiet())
}

/// With EOImode = 1 each is deactivated for itself, in any order.
fn nested_deactivate() -> Verdict {
    icc_ctlr::write(EOI_MODE);
    nest()?;
    (0..DEPTH).rev().for_each(gic::end);
    same("idle", sys::icc_rpr() & 0xff, IDLE)?;
    for level in (0..DEPTH).map(|level| level * 5 % DEPTH) {
        so("still-active", own(0, level).read(gic::ISACTIVER))?;
        icc_dir::write(level);
        so("inactive", !own(0, level).read(gic::ISACTIVER))?;
    }
    for level in 0..DEPTH {
        send(level);
        same("again", gic::take(), level)?;
        gic::end(level);
        icc_dir::write(level);
    }
    so("quiet", gic::quiet())
}

/// Sixteen SGIs and thirty-two SPIs at once: each once, in the order of their priorities.
fn many() -> Verdict {
    const SGIS: u64 = 16;
    const SPIS: u64 = 32;
    // Scattered over all levels but the least urgent, which ICC_PMR_EL1 always masks.
    let priority = |n: u64| (n * 7 % 30 + 1) * 8;
    icc_pmr::write(0);
    for n in 0..SGIS {
        prepare(n, priority(n));
        send(n);
    }
    for n in SGIS..SGIS + SPIS {
        let it = spi(32 + n);
        it.set_priority(priority(n));
        it.route(0);
        it.enable();
        it.write(gic::ISPENDR);
    }
    icc_pmr::write(0xff);
    let (mut seen, mut last) = (0_u64, 0);
    for _ in 0..SGIS + SPIS {
        let intid = gic::take();
        let n = if intid < 32 { intid } else { intid - 32 };
        so("known", intid < SPURIOUS && n < SGIS + SPIS)?;
        same("once", seen >> n & 1, 0)?;
        seen |= 1 << n;
        so("in-order", priority(n) >= last)?;
        last = priority(n);
        same("running", sys::icc_rpr() & 0xff, priority(n))?;
        gic::end(intid);
    }
    so("quiet", gic::quiet())
}

/// With EOImode = 1 the end is only that of the priority.
fn eoi_mode() -> Verdict {
    icc_ctlr::write(EOI_MODE);
    prepare(1, 0x80);
    send(1);
    same("first", gic::take(), 1)?;
    gic::end(1);
    same("idle", sys::icc_rpr() & 0xff, IDLE)?;
    so("still-active", own(0, 1).read(gic::ISACTIVER))?;
    send(1);
    so("waits", gic::quiet())?;
    icc_dir::write(1);
    same("second", gic::take(), 1)?;
    gic::end(1);
    icc_dir::write(1);
    so("inactive", !own(0, 1).read(gic::ISACTIVER))?;
    so("quiet", gic::quiet())
}

/// What is deactivated while it is pending once more stays pending.
fn dir_pending() -> Verdict {
    icc_ctlr::write(EOI_MODE);
    let it = spi(50);
    it.set_edge(true);
    it.route(0);
    it.enable();
    it.write(gic::ISPENDR);
    same("first", gic::take(), 50)?;
    it.write(gic::ISPENDR);
    so("both", it.read(gic::ISPENDR) && it.read(gic::ISACTIVER))?;
    gic::end(50);
    icc_dir::write(50);
    so("pending", it.read(gic::ISPENDR) && !it.read(gic::ISACTIVER))?;
    same("second", gic::take(), 50)?;
    gic::end(50);
    icc_dir::write(50);
    so("quiet", gic::quiet())
}

/// By an exception, as an operating system has it.
fn exception() -> Verdict {
    prepare(12, 0x80);
    let before = cpu::this().taken(12);
    sys::unmask_irq();
    for n in 1..=50 {
        send(12);
        let taken = cpu::wait_for(|| cpu::this().taken(12) == before + n);
        if !taken {
            sys::mask_irq();
            return so("taken", taken);
        }
    }
    sys::mask_irq();
    so("quiet", gic::quiet())?;
    same(
        "not-once-more",
        cpu::this().taken(12).into(),
        u64::from(before) + 50,
    )
}

/// What is pending ends a WFI, whether or not it may be taken.
fn wfi() -> Verdict {
    prepare(13, 0x80);
    send(13);
    so("signalled", cpu::wait_for(gic::signalled))?;
    sys::wfi();
    same("taken", gic::take(), 13)?;
    gic::end(13);
    Ok(())
}

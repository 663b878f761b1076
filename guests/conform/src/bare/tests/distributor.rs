//! The distributor's registers (IHI 0069, 12.9).

use crate::bare::gic::{self, gicd};
use crate::bare::machine;
use crate::bare::mmio::{read8, read32, read64, write8, write32, write64};
use crate::bare::test::{Test, Verdict, same, so};

pub(super) static TESTS: &[Test] = &[
    ("gicd-identity", identity),
    ("gicd-ctlr", control),
    ("gicd-priority", priority),
    ("gicd-targets", targets),
    ("gicd-banked", banked),
    ("gicd-enable", enable),
    ("gicd-group", group),
    ("gicd-config", config),
    ("gicd-pending", pending),
    ("gicd-active", active),
    ("gicd-router", router),
    ("gicd-reserved", reserved),
];

/// Writes of these do not change what is read.
fn read_only(what: &'static str, register: u64) -> Verdict {
    let before = read32(register);
    for value in [0, !before & 0xffff_ffff, 0xffff_ffff] {
        write32(register, value);
        same(what, read32(register), before)?;
    }
    Ok(())
}

/// Reads as zero, ignores writes.
fn zero(what: &'static str, register: u64) -> Verdict {
    write32(register, 0xffff_ffff);
    same(what, read32(register), 0)
}

fn identity() -> Verdict {
    let typer = read32(gicd(gic::TYPER));
    so("has-spis", typer & 0x1f > 0)?;
    so("intid-bits", typer >> 19 & 0x1f >= 9)?;
    same("one-security-state", typer >> 10 & 1, 0)?;
    read_only("typer-is-read-only", gicd(gic::TYPER))?;
    read_only("iidr-is-read-only", gicd(gic::IIDR))?;
    read_only("pidr2-is-read-only", gicd(gic::PIDR2))?;
    same("architecture", read32(gicd(gic::PIDR2)) >> 4 & 0xf, 3)
}

fn control() -> Verdict {
    const DS: u64 = 1 << 6;
    const ARE: u64 = 1 << 4;
    for groups in 0..4 {
        gic::set_control(ARE | groups);
        let now = read32(gicd(gic::CTLR));
        same("groups", now & 3, groups)?;
        same("fixed", now & (ARE | DS), ARE | DS)?;
    }
    gic::set_control(0);
    let now = read32(gicd(gic::CTLR));
    same("routing-and-security-stay", now & (ARE | DS), ARE | DS)
}

/// What kvm-unit-tests asks of a GICv2, of a GICv3.
fn priority() -> Verdict {
    let first = gicd(gic::IPRIORITYR + 32);
    write32(first, 0xffff_ffff);
    let mask = read32(first);
    same("same-mask-everywhere", mask, (mask & 0xff) * 0x0101_0101)?;
    so("sixteen-levels", mask & 0xf0 == 0xf0)?;
    write32(first, 0);
    same("cleared", read32(first), 0)?;
    write32(first, 0xff7f_bf3f);
    same("kept", read32(first), 0xff7f_bf3f & mask)?;
    same("byte-read", read8(first + 1), 0xbf & mask & 0xff)?;
    write8(first + 2, 0x1f);
    same("byte-write", read32(first), 0xff1f_bf3f & mask)?;
    let last = gicd(gic::IPRIORITYR + gic::intids() - 4);
    write32(last, 0x4080_c020);
    same("last", read32(last), 0x4080_c020 & mask)?;
    write32(last, 0);
    if gic::intids() < 1020 {
        zero("behind-the-last", gicd(gic::IPRIORITYR + gic::intids()))?;
    }
    Ok(())
}

/// With affinity routing there are no targets by CPU number.
fn targets() -> Verdict {
    (0..gic::intids() / 4).try_for_each(|word| zero("target", gicd(gic::ITARGETSR + 4 * word)))
}

/// With affinity routing the first 32 INTIDs are in the redistributors alone.
fn banked() -> Verdict {
    for register in [
        gic::IGROUPR,
        gic::ISENABLER,
        gic::ISPENDR,
        gic::ISACTIVER,
        gic::ICFGR,
        gic::ICFGR + 4,
    ] {
        zero("own-interrupts", gicd(register))?;
    }
    (0..8).try_for_each(|word| zero("own-priorities", gicd(gic::IPRIORITYR + 4 * word)))
}

/// A pair of registers that set and clear one bitmap.
fn pair(set: u64, clear: u64) -> Verdict {
    let (set, clear) = (gicd(set + 4), gicd(clear + 4));
    write32(clear, 0xffff_ffff);
    same("none", read32(set), 0)?;
    write32(set, 0x8000_0101);
    write32(set, 0x0000_1000);
    same("set", read32(set), 0x8000_1101)?;
    same("both-show-it", read32(clear), 0x8000_1101)?;
    write32(set, 0);
    write32(clear, 0);
    same("zeroes-do-nothing", read32(set), 0x8000_1101)?;
    write32(clear, 0x8000_0001);
    same("cleared", read32(set), 0x1100)?;
    write32(clear, 0xffff_ffff);
    same("all-cleared", read32(clear), 0)
}

fn enable() -> Verdict {
    pair(gic::ISENABLER, gic::ICENABLER)?;
    if gic::intids() < 1020 {
        zero("behind-the-last", gicd(gic::ISENABLER + gic::intids() / 8))?;
    }
    Ok(())
}

fn group() -> Verdict {
    let first = gicd(gic::IGROUPR + 4);
    for value in [0, 0x1234_5678, 0xffff_ffff] {
        write32(first, value);
        same("kept", read32(first), value)?;
    }
    Ok(())
}

/// The lower bit of each pair is reserved.
fn config() -> Verdict {
    let first = gicd(gic::ICFGR + 8);
    for value in [0xffff_ffff, 0x8888_8888, 0x5555_5555, 0] {
        write32(first, value);
        same("edges", read32(first), value & 0xaaaa_aaaa)?;
    }
    Ok(())
}

/// Of interrupts that are disabled, both of edges and of levels.
fn pending() -> Verdict {
    for edges in [0, 0xffff_ffff] {
        write32(gicd(gic::ICFGR + 16), edges);
        write32(gicd(gic::ICFGR + 20), edges);
        let (set, clear) = (gic::ISPENDR + 4, gic::ICPENDR + 4);
        pair(set, clear)?;
    }
    Ok(())
}

fn active() -> Verdict {
    pair(gic::ISACTIVER, gic::ICACTIVER)
}

fn router() -> Verdict {
    const NO_ONE_OF_N: u64 = 1 << 25;
    let register = gicd(gic::IROUTER + 8 * 40);
    let mine = machine().mpidr(0);
    let other = machine().mpidr(machine().cpus() - 1);
    write64(register, other);
    same("whole", read64(register), other)?;
    same("low-half", read32(register), other & 0xffff_ffff)?;
    same("high-half", read32(register + 4), other >> 32)?;
    write32(register + 4, 0x12);
    same(
        "high-half-written",
        read64(register),
        0x12 << 32 | other & 0xffff_ffff,
    )?;
    write32(register + 4, 0);
    write32(register, mine);
    same("low-half-written", read64(register), mine)?;
    write64(register, u64::MAX);
    let mut wanted = 0xff_00ff_ffff;
    if read32(gicd(gic::TYPER)) & NO_ONE_OF_N == 0 {
        wanted |= 1 << 31;
    }
    same(
        "reserved-bits",
        read64(register) & !(1 << 31),
        wanted & !(1 << 31),
    )?;
    write64(register, mine);
    write64(gicd(gic::IROUTER + 8 * 31), u64::MAX);
    same("own-interrupts", read64(gicd(gic::IROUTER + 8 * 31)), 0)
}

/// What is reserved, what there is only without affinity routing (SGIR, CPENDSGIR, SPENDSGIR), with
/// two security states (IGRPMODR, NSACR), or with message-based SPIs that TYPER does not show.
fn reserved() -> Verdict {
    const MBIS: u64 = 1 << 16;
    for offset in [
        0x00c,
        0x030,
        0x0c0 - 4,
        0xd04,
        0xe08,
        0xf00,
        0xf10,
        0xf20,
        0x1000,
        0x8000,
    ] {
        let known = offset == 0x0bc && gic::intids() > 480;
        if !known {
            zero("reserved", gicd(offset))?;
        }
    }
    if read32(gicd(gic::TYPER)) & MBIS == 0 {
        for offset in [0x040, 0x048, 0x050, 0x058] {
            zero("messages", gicd(offset))?;
        }
    }
    Ok(())
}

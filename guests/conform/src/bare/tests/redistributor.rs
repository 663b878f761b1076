//! The redistributors' registers (IHI 0069, 12.11).

use crate::bare::cpu;
use crate::bare::gic::{self, SGI_FRAME, gicr, own};
use crate::bare::machine;
use crate::bare::mmio::{read8, read32, read64, write8, write32};
use crate::bare::test::{Test, Verdict, same, so};

pub(super) static TESTS: &[Test] = &[
    ("gicr-typer", typer),
    ("gicr-identity", identity),
    ("gicr-waker", waker),
    ("gicr-ctlr", control),
    ("gicr-enable", enable),
    ("gicr-priority", priority),
    ("gicr-config", config),
    ("gicr-pending", pending),
    ("gicr-others", others),
];

/// One frame pair a CPU, each with that CPU's affinity and number; the last one says so.
fn typer() -> Verdict {
    let cpus = machine().cpus();
    for cpu in 0..cpus {
        let whole = read64(gicr(cpu, gic::GICR_TYPER));
        same(
            "low-half",
            read32(gicr(cpu, gic::GICR_TYPER)),
            whole & 0xffff_ffff,
        )?;
        same(
            "high-half",
            read32(gicr(cpu, gic::GICR_TYPER + 4)),
            whole >> 32,
        )?;
        let mpidr = machine().mpidr(cpu);
        same(
            "affinity",
            whole >> 32,
            mpidr >> 8 & 0xff00_0000 | mpidr & 0xff_ffff,
        )?;
        same("number", whole >> 8 & 0xffff, cpu as u64)?;
        same("last", whole >> 4 & 1, u64::from(cpu + 1 == cpus))?;
        same("virtual-lpis", whole >> 1 & 1, 0)?;
        write32(gicr(cpu, gic::GICR_TYPER), 0xffff_ffff);
        same("read-only", read64(gicr(cpu, gic::GICR_TYPER)), whole)?;
    }
    Ok(())
}

fn identity() -> Verdict {
    const IIDR: u64 = 4;
    for cpu in 0..machine().cpus() {
        same("architecture", read32(gicr(cpu, gic::PIDR2)) >> 4 & 0xf, 3)?;
        let before = read32(gicr(cpu, IIDR));
        write32(gicr(cpu, IIDR), !before);
        same("iidr-is-read-only", read32(gicr(cpu, IIDR)), before)?;
    }
    Ok(())
}

/// ChildrenAsleep follows ProcessorSleep (IHI 0069, 11.1).
fn waker() -> Verdict {
    let register = gicr(0, gic::GICR_WAKER);
    write32(register, 1 << 1);
    same("asleep", read32(register) & 6, 6)?;
    write32(register, 0);
    same("awake", read32(register) & 6, 0)
}

/// No LPIs, and nothing under way.
fn control() -> Verdict {
    const PLPIS: u64 = 1;
    if read64(gicr(0, gic::GICR_TYPER)) & PLPIS == 0 {
        write32(gicr(0, 0), 1);
        same("no-lpis", read32(gicr(0, 0)) & 1, 0)?;
    }
    same("idle", read32(gicr(0, 0)) & (1 << 3 | 1 << 31), 0)
}

fn enable() -> Verdict {
    let (set, clear) = (
        gicr(0, SGI_FRAME + gic::ISENABLER),
        gicr(0, SGI_FRAME + gic::ICENABLER),
    );
    write32(clear, 0xffff_ffff);
    write32(set, 0x4800_8001);
    same("set", read32(set), 0x4800_8001)?;
    same("both-show-it", read32(clear), 0x4800_8001)?;
    write32(clear, 0x0000_0001);
    same("cleared", read32(set), 0x4800_8000)?;
    write32(clear, 0xffff_ffff);
    same("all-cleared", read32(set), 0)
}

fn priority() -> Verdict {
    let first = gicr(0, SGI_FRAME + gic::IPRIORITYR);
    write32(first, 0xffff_ffff);
    let mask = read32(first);
    write32(first + 28, 0x1020_3040);
    same("word", read32(first + 28), 0x1020_3040 & mask)?;
    write8(first + 29, 0xc0);
    same("byte-write", read32(first + 28), 0x1020_c040 & mask)?;
    same("byte-read", read8(first + 31), 0x10 & mask & 0xff)
}

/// SGIs are edges for ever.
fn config() -> Verdict {
    let sgis = gicr(0, SGI_FRAME + gic::ICFGR);
    let before = read32(sgis);
    write32(sgis, 0);
    same("sgis-are-edges", read32(sgis), before)?;
    same("edges", before & 0xaaaa_aaaa, 0xaaaa_aaaa)
}

/// Of SGIs and PPIs that are disabled.
fn pending() -> Verdict {
    let (set, clear) = (
        gicr(0, SGI_FRAME + gic::ISPENDR),
        gicr(0, SGI_FRAME + gic::ICPENDR),
    );
    write32(set, 0x0010_8001);
    same("set", read32(set), 0x0010_8001)?;
    same("both-show-it", read32(clear), 0x0010_8001)?;
    write32(clear, 0x0000_0001);
    same("cleared", read32(set), 0x0010_8000)?;
    write32(clear, 0xffff_ffff);
    same("all-cleared", read32(set), 0)
}

/// Another CPU's redistributor can be used.
fn others() -> Verdict {
    for cpu in 1..machine().cpus() {
        let sgi = own(cpu, 3);
        sgi.write(gic::ISPENDR);
        so("pending", sgi.read(gic::ISPENDR))?;
        so("not-mine", !own(0, 3).read(gic::ISPENDR))?;
        sgi.enable();
        let taken = cpu::on(cpu, |_| gic::take(), 0)?;
        same("taken", taken, 3)?;
        so("active", sgi.read(gic::ISACTIVER))?;
        so("no-longer-pending", !sgi.read(gic::ISPENDR))?;
        cpu::on(
            cpu,
            |intid| {
                gic::end(intid);
                0
            },
            3,
        )?;
        so("inactive", !sgi.read(gic::ISACTIVER))?;
    }
    Ok(())
}

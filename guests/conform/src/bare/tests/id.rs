//! The ID registers, and whether the machine is what they say (Arm ARM D24.2).

use crate::bare::cpu;
use crate::bare::machine;
use crate::bare::sys::{self, cpacr, csselr};
use crate::bare::test::{Stop, Test, Verdict, same, so};
use crate::bare::vectors::{UNKNOWN, execute, mrs, msr};

pub(super) static TESTS: &[Test] = &[
    ("id-readable", readable),
    ("id-reserved", reserved),
    ("id-read-only", read_only),
    ("id-same-everywhere", same_everywhere),
    ("id-affinity", affinity),
    ("id-caches", caches),
    ("id-hidden", hidden),
    ("id-other-levels", other_levels),
    ("id-usable", usable),
    ("id-sve", sve),
];

/// A register of the ID space.
fn read(crm: u32, op2: u32) -> Result<u64, Stop> {
    match execute(&[mrs(3, 0, 0, crm, op2)], 0) {
        (value, None) => Ok(value),
        (_, Some(taken)) => Err(Stop::Fail(
            "not-readable",
            taken.esr,
            (crm << 4 | op2).into(),
        )),
    }
}

/// All of the space, reserved places included (Arm ARM D23.3.1).
fn readable() -> Verdict {
    for (crm, op2) in (1..8).flat_map(|crm| (0..8).map(move |op2| (crm, op2))) {
        let value = read(crm, op2)?;
        same("always-the-same", read(crm, op2)?, value)?;
    }
    Ok(())
}

/// Places that no version of the architecture has given a meaning.
fn reserved() -> Verdict {
    for (crm, op2) in [
        (4, 3),
        (4, 6),
        (5, 6),
        (5, 7),
        (6, 5),
        (6, 6),
        (6, 7),
        (7, 6),
        (7, 7),
    ] {
        same("zero", read(crm, op2)?, 0)?;
    }
    Ok(())
}

fn read_only() -> Verdict {
    for (crm, op2) in [(4, 0), (5, 0), (6, 0), (7, 0), (4, 7)] {
        let (_, taken) = execute(&[msr(3, 0, 0, crm, op2)], 0);
        same(
            "undefined",
            taken.map_or(!0, |taken| taken.class()),
            UNKNOWN,
        )?;
    }
    Ok(())
}

/// What all CPUs must agree on.
fn same_everywhere() -> Verdict {
    fn read_here(encoding: u64) -> u64 {
        let (crm, op2) = ((encoding >> 4) as u32, (encoding & 7) as u32);
        execute(&[mrs(3, 0, 0, crm, op2)], 0).0
    }
    for (crm, op2) in (1..8).flat_map(|crm| (0..8).map(move |op2| (crm, op2))) {
        let mine = read(crm, op2)?;
        for number in 1..machine().cpus() {
            let encoding = u64::from(crm << 4 | op2);
            same("same", cpu::on(number, read_here, encoding)?, mine)?;
        }
    }
    for number in 1..machine().cpus() {
        same("midr", cpu::on(number, |_| sys::midr(), 0)?, sys::midr())?;
        same("ctr", cpu::on(number, |_| sys::ctr(), 0)?, sys::ctr())?;
        same(
            "cntfrq",
            cpu::on(number, |_| sys::cntfrq(), 0)?,
            sys::cntfrq(),
        )?;
    }
    Ok(())
}

/// Each CPU is who the device tree says.
fn affinity() -> Verdict {
    for number in 0..machine().cpus() {
        let mpidr = cpu::on(number, |_| sys::mpidr(), 0)?;
        same("affinity", mpidr & 0xff_00ff_ffff, machine().mpidr(number))?;
        same("res1", mpidr >> 31 & 1, 1)?;
        same("multiprocessor", mpidr >> 30 & 1, 0)?;
    }
    Ok(())
}

/// The cache hierarchy hangs together.
fn caches() -> Verdict {
    let ctr = sys::ctr();
    same("ctr-res1", ctr >> 31 & 1, 1)?;
    so("lines", ctr & 0xf <= 9 && ctr >> 16 & 0xf <= 9)?;
    so("dc-zva", sys::dczid() & 0xf <= 9)?;
    let clidr = sys::clidr();
    for level in 0..7 {
        let kind = clidr >> (3 * level) & 7;
        if kind == 0 {
            break;
        }
        so("kind", kind <= 4)?;
        // A data or unified cache, and an instruction cache where there is one.
        let sides = [(kind != 1, 0), (kind & 1 != 0 && kind < 4, 1)];
        for (_, instruction) in sides.into_iter().filter(|(there, _)| *there) {
            csselr::write(level << 1 | instruction);
            same("selected", csselr::read(), level << 1 | instruction)?;
            so("geometry", sys::ccsidr() & 7 <= 5)?;
        }
    }
    csselr::write(0);
    Ok(())
}

/// A feature by its field, and a register of it by op0, op1, CRn, CRm, op2.
struct Feature {
    name: &'static str,
    /// CRm and op2 of the ID register, and the lowest bit of the field.
    field: (u32, u32, u32),
    /// The feature is there from this value on; 0b1111 is never.
    from: u64,
    register: (u32, u32, u32, u32, u32),
}

const fn feature(
    name: &'static str,
    field: (u32, u32, u32),
    from: u64,
    register: (u32, u32, u32, u32, u32),
) -> Feature {
    Feature {
        name,
        field,
        from,
        register,
    }
}

/// Registers that EL1 can read where the feature is, and that are undefined where it is not.
static FEATURES: &[Feature] = &[
    feature("pmu-pmcr", (5, 0, 8), 1, (3, 3, 9, 12, 0)),
    feature("pmu-pmccntr", (5, 0, 8), 1, (3, 3, 9, 13, 0)),
    feature("pmu-pmintenset", (5, 0, 8), 1, (3, 0, 9, 14, 1)),
    feature("pmu-pmevcntr0", (5, 0, 8), 1, (3, 3, 14, 8, 0)),
    feature("pmu-pmccfiltr", (5, 0, 8), 1, (3, 3, 14, 15, 7)),
    feature("spe-pmscr", (5, 0, 32), 1, (3, 0, 9, 9, 0)),
    feature("spe-pmbidr", (5, 0, 32), 1, (3, 0, 9, 10, 7)),
    feature("trbe-trblimitr", (5, 0, 44), 1, (3, 0, 9, 11, 0)),
    feature("trace-trfcr", (5, 0, 40), 1, (3, 0, 1, 2, 1)),
    feature("brbe-brbcr", (5, 0, 52), 1, (2, 1, 9, 0, 0)),
    feature("lor-lorc", (7, 1, 16), 1, (3, 0, 10, 4, 3)),
    feature("lor-lorid", (7, 1, 16), 1, (3, 0, 10, 4, 7)),
    feature("mpam-mpam0", (4, 0, 40), 1, (3, 0, 10, 5, 1)),
    feature("mpam-mpam1", (4, 0, 40), 1, (3, 0, 10, 5, 0)),
    feature("mpam-mpamidr", (4, 0, 40), 1, (3, 0, 10, 4, 4)),
    feature("amu-amcr", (4, 0, 44), 1, (3, 3, 13, 2, 0)),
    feature("amu-amevcntr00", (4, 0, 44), 1, (3, 3, 13, 4, 0)),
    feature("sme-svcr", (4, 1, 24), 1, (3, 3, 4, 2, 2)),
    feature("sme-smcr", (4, 1, 24), 1, (3, 0, 1, 2, 6)),
    feature("sme-tpidr2", (4, 1, 24), 1, (3, 3, 13, 0, 5)),
    feature("sve-zcr", (4, 0, 32), 1, (3, 0, 1, 2, 0)),
    feature("mte-gcr", (4, 1, 8), 2, (3, 0, 1, 0, 6)),
    feature("mte-rgsr", (4, 1, 8), 2, (3, 0, 1, 0, 5)),
    feature("mte-tfsr", (4, 1, 8), 2, (3, 0, 5, 6, 0)),
    feature("tcr2", (7, 3, 0), 1, (3, 0, 2, 0, 3)),
    feature("sctlr2", (7, 3, 4), 1, (3, 0, 1, 0, 3)),
    feature("pie-pir", (7, 3, 8), 1, (3, 0, 10, 2, 3)),
    feature("poe-por", (7, 3, 16), 1, (3, 0, 10, 2, 4)),
    feature("gcs-gcscr", (4, 1, 44), 1, (3, 0, 2, 5, 0)),
    feature("ls64-accdata", (6, 1, 60), 3, (3, 0, 13, 0, 5)),
    feature("rndr", (6, 0, 60), 1, (3, 3, 2, 4, 0)),
    feature("rndrrs", (6, 0, 60), 1, (3, 3, 2, 4, 1)),
    feature("pan", (7, 1, 20), 1, (3, 0, 4, 2, 3)),
    feature("uao", (7, 2, 4), 1, (3, 0, 4, 2, 4)),
    feature("dit", (4, 0, 48), 1, (3, 3, 4, 2, 5)),
    feature("ssbs", (4, 1, 4), 2, (3, 3, 4, 2, 6)),
    feature("ecv-cntvctss", (7, 0, 60), 1, (3, 3, 14, 0, 6)),
    feature("ras-erridr", (4, 0, 28), 1, (3, 0, 5, 3, 0)),
    feature("ras-disr", (4, 0, 28), 1, (3, 0, 12, 1, 1)),
    feature("pfar", (4, 1, 60), 1, (3, 0, 6, 0, 5)),
];

/// Whether its field says that it is there.
fn shown(feature: &Feature) -> Result<bool, Stop> {
    let (crm, op2, low) = feature.field;
    let value = read(crm, op2)? >> low & 0xf;
    Ok(value != 0xf && value >= feature.from)
}

/// A register is there exactly if its feature is.
fn hidden() -> Verdict {
    let before = cpacr::read();
    cpacr::write(before | 0b11 << 16 | 0b11 << 20 | 0b11 << 24);
    let verdict = FEATURES.iter().try_for_each(|feature| {
        let (op0, op1, crn, crm, op2) = feature.register;
        let (_, taken) = execute(&[mrs(op0, op1, crn, crm, op2)], 0);
        let shown = shown(feature)?;
        match taken {
            None => same(feature.name, 1, shown.into()),
            Some(_) if shown => Err(Stop::Fail(feature.name, 0, 1)),
            Some(taken) => same(feature.name, taken.class(), UNKNOWN),
        }
    });
    cpacr::write(before);
    verdict
}

/// What belongs to EL2 and EL3 is not there for EL1.
fn other_levels() -> Verdict {
    for (op1, crn, crm, op2) in [
        (4, 1, 1, 0),   // HCR_EL2
        (4, 2, 1, 0),   // VTTBR_EL2
        (4, 12, 0, 0),  // VBAR_EL2
        (4, 12, 9, 5),  // ICC_SRE_EL2
        (4, 12, 11, 0), // ICH_HCR_EL2
        (4, 14, 0, 3),  // CNTVOFF_EL2
        (6, 1, 1, 0),   // SCR_EL3
        (6, 12, 12, 5), // ICC_SRE_EL3
        (5, 1, 0, 0),   // SCTLR_EL12
    ] {
        let (_, taken) = execute(&[mrs(3, op1, crn, crm, op2)], 0);
        let class = taken.map_or(!0, |taken| taken.class());
        same("read", class, UNKNOWN)?;
    }
    Ok(())
}

/// An instruction of a feature: what it is called, the field and the value from which on it is there.
type Instruction = (&'static str, (u32, u32, u32), u64, u32);

/// They use x0 to x3 only, x0 being an address in RAM where they need one.
static INSTRUCTIONS: &[Instruction] = &[
    ("lse-ldadd", (6, 0, 20), 2, 0xf821_0002), // ldadd x1, x2, [x0]
    ("lse-cas", (6, 0, 20), 2, 0xc8a1_7c02),   // cas x1, x2, [x0]
    ("crc32", (6, 0, 16), 1, 0x9ac2_4c21),     // crc32x w1, w1, x2
    ("aes", (6, 0, 4), 1, 0x4e28_4820),        // aese v0, v1
    ("pmull", (6, 0, 4), 2, 0x0ee2_e020),      // pmull v0.1q, v1.1d, v2.1d
    ("sha1", (6, 0, 8), 1, 0x5e28_0820),       // sha1h s0, s1
    ("sha256", (6, 0, 12), 1, 0x5e28_2820),    // sha256su0 v0, v1
    ("sha512", (6, 0, 12), 2, 0xcec0_8020),    // sha512su0 v0, v1
    ("sha3", (6, 0, 32), 1, 0xce02_0c20),      // eor3 v0, v1, v2, v3
    ("rdm", (6, 0, 28), 1, 0x2e82_8420),       // sqrdmlah v0.2s, v1.2s, v2.2s
    ("dotprod", (6, 0, 44), 1, 0x2e82_9420),   // udot v0.2s, v1.8b, v2.8b
    ("flagm", (6, 0, 52), 1, 0xd500_401f),     // cfinv
    ("flagm2", (6, 0, 52), 2, 0xd500_405f),    // axflag
    ("tlbi-os", (6, 0, 56), 1, 0xd508_811f),   // tlbi vmalle1os
    ("tlbi-range", (6, 0, 56), 2, 0xd508_8620), // tlbi rvae1, x0
    ("dc-cvap", (6, 1, 0), 1, 0xd50b_7c20),    // dc cvap, x0
    ("dc-cvadp", (6, 1, 0), 2, 0xd50b_7d20),   // dc cvadp, x0
    ("pac-a", (6, 1, 4), 1, 0xdac1_0001),      // pacia x1, x0
    ("pac-a-impdef", (6, 1, 8), 1, 0xdac1_0001), // pacia x1, x0
    ("pac-g", (6, 1, 24), 1, 0x9ac2_3021),     // pacga x1, x1, x2
    ("jscvt", (6, 1, 12), 1, 0x1e7e_0001),     // fjcvtzs w1, d0
    ("fcma", (6, 1, 16), 1, 0x2e82_c420),      // fcmla v0.2s, v1.2s, v2.2s, #0
    ("lrcpc", (6, 1, 20), 1, 0xf8bf_c001),     // ldapr x1, [x0]
    ("lrcpc2", (6, 1, 20), 2, 0xd940_0001),    // ldapur x1, [x0]
    ("frint", (6, 1, 32), 1, 0x1e68_4020),     // frint32z d0, d1
    ("sb", (6, 1, 36), 1, 0xd503_30ff),        // sb
    ("specres", (6, 1, 40), 1, 0xd50b_7381),   // cfp rctx, x1
    ("bf16", (6, 1, 44), 1, 0x2e42_fc20),      // bfdot v0.2s, v1.4h, v2.4h
    ("i8mm", (6, 1, 52), 1, 0x4e82_a420),      // smmla v0.4s, v1.16b, v2.16b
    ("cssc", (6, 2, 52), 1, 0xdac0_2021),      // abs x1, x1
    ("fp16", (4, 0, 16), 1, 0x1ee0_4020),      // fmov h0, h1
    ("fhm", (6, 0, 48), 1, 0x0e22_ec20),       // fmlal v0.2s, v1.2h, v2.2h
    ("sm3", (6, 0, 36), 1, 0xce62_c020),       // sm3partw1 v0, v1, v2
    ("sm4", (6, 0, 40), 1, 0xcec0_8420),       // sm4e v0, v1
    ("mte-irg", (4, 1, 8), 1, 0x9adf_1001),    // irg x1, x0
    ("at-pan", (7, 1, 20), 2, 0xd508_7900),    // at s1e1rp, x0
];

/// What is shown can be used.
fn usable() -> Verdict {
    static SCRATCH: [core::sync::atomic::AtomicU64; 8] =
        [const { core::sync::atomic::AtomicU64::new(0) }; 8];
    let before = cpacr::read();
    cpacr::write(before | 0b11 << 20);
    let address = SCRATCH.as_ptr().expose_provenance() as u64;
    let mut tried = 0;
    let verdict = INSTRUCTIONS
        .iter()
        .try_for_each(|(name, (crm, op2, low), from, code)| {
            let value = read(*crm, *op2)? >> low & 0xf;
            if value == 0xf || value < *from {
                return Ok(());
            }
            tried += 1;
            // cas and ldadd take what is in x1 and x2; mov x1, xzr; mov x2, xzr.
            match execute(&[0xaa1f_03e1, 0xaa1f_03e2, *code], address) {
                (_, None) => Ok(()),
                (_, Some(taken)) => Err(Stop::Fail(name, taken.esr, 0)),
            }
        });
    cpacr::write(before);
    verdict?;
    so("some", tried > 0)
}

/// Every vector length up to the one that ZCR_EL1 gives, and no trap but EL1's own.
fn sve() -> Verdict {
    if read(4, 0)? >> 32 & 0xf == 0 {
        return Err(Stop::Skip("no-sve"));
    }
    const SVE_ACCESS: u64 = 0x19;
    const RDVL: u32 = 0x04bf_5020; // rdvl x0, #1
    let before = cpacr::read();
    cpacr::write(before & !(0b11 << 16));
    let (_, taken) = execute(&[RDVL], 0);
    cpacr::write(before | 0b11 << 16 | 0b11 << 20);
    let class = taken.map_or(!0, |taken| taken.class());
    let mut last = 0;
    let mut verdict = same("trapped-by-el1", class, SVE_ACCESS);
    for length in 0..16 {
        // ZCR_EL1, then isb.
        let set = [msr(3, 0, 1, 2, 0), 0xd503_3fdf, RDVL];
        let (bytes, taken) = execute(&set, length);
        let grows = bytes >= last && bytes.is_multiple_of(16) && bytes <= 16 * (length + 1);
        verdict = verdict.and(so("length", taken.is_none() && grows));
        last = bytes;
    }
    cpacr::write(before);
    verdict?;
    so("at-least-128-bits", last >= 16)
}

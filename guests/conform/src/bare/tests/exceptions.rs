//! Exceptions, and addresses where there is nothing.

use crate::bare::boot::{EL0_NOWHERE, NOWHERE};
use crate::bare::cpu;
use crate::bare::machine;
use crate::bare::sys;
use crate::bare::test::{Stop, Test, Verdict, same, so};
use crate::bare::vectors::{
    self, BREAKPOINT, DATA_EL0, DATA_EL1, Exception, FETCH_EL0, FETCH_EL1, SVC64, UNKNOWN, execute,
    execute_el0,
};

pub(super) static TESTS: &[Test] = &[
    ("exception-undefined", undefined),
    ("exception-calls", calls),
    ("exception-read-nowhere", read_nowhere),
    ("exception-write-nowhere", write_nowhere),
    ("exception-fetch-nowhere", fetch_nowhere),
    ("exception-nowhere-el0", nowhere_el0),
    ("exception-nowhere-kinds", nowhere_kinds),
    ("exception-nowhere-everywhere", nowhere_everywhere),
    ("exception-translate", translate),
];

/// A synchronous external abort that was not on a table walk.
const EXTERNAL: u64 = 0x10;
const WRITE: u64 = 1 << 6;

fn taken((_, exception): (u64, Option<Exception>)) -> Result<Exception, Stop> {
    exception.ok_or(Stop::Fail("no-exception", 0, 1))
}

/// With what syndrome, of which class, at which address.
fn aborted(exception: Exception, class: u64, far: u64) -> Verdict {
    same("class", exception.class(), class)?;
    same("status", exception.esr & 0x3f, EXTERNAL)?;
    same("length", exception.esr >> 25 & 1, 1)?;
    same("far-is-valid", exception.esr >> 10 & 1, 0)?;
    same("far", exception.far, far)
}

fn undefined() -> Verdict {
    // udf #0; an unallocated encoding; mrs of an unallocated register.
    for instruction in [0, 0x0000_ffff, 0xd53f_ffe0] {
        let exception = taken(execute(&[instruction], 0))?;
        same("class", exception.class(), UNKNOWN)?;
        same("syndrome", exception.esr & 0x1ff_ffff, 0)?;
    }
    Ok(())
}

/// svc and brk say what they were called with.
fn calls() -> Verdict {
    let svc = taken(execute(&[0xd400_0001 | 0x1234 << 5], 0))?;
    same("svc", svc.esr, SVC64 << 26 | 1 << 25 | 0x1234)?;
    let brk = taken(execute(&[0xd420_0000 | 0x4321 << 5], 0))?;
    same("brk", brk.esr, BREAKPOINT << 26 | 1 << 25 | 0x4321)
}

fn read_nowhere() -> Verdict {
    for offset in [0, 8, 0x1008, 0x3fff_fff8] {
        // ldr x0, [x0]
        let exception = taken(execute(&[0xf940_0000], NOWHERE + offset))?;
        aborted(exception, DATA_EL1, NOWHERE + offset)?;
        same("read", exception.esr & WRITE, 0)?;
    }
    Ok(())
}

fn write_nowhere() -> Verdict {
    // str x0, [x0]
    let exception = taken(execute(&[0xf900_0000], NOWHERE + 0x2010))?;
    aborted(exception, DATA_EL1, NOWHERE + 0x2010)?;
    same("write", exception.esr & WRITE, WRITE)
}

fn fetch_nowhere() -> Verdict {
    for offset in [0, 4, 0x10_0ffc] {
        let exception = taken(vectors::call(NOWHERE + offset, 0))?;
        aborted(exception, FETCH_EL1, NOWHERE + offset)?;
        same("elr", exception.elr, NOWHERE + offset)?;
    }
    Ok(())
}

fn nowhere_el0() -> Verdict {
    let (_, exception) = execute_el0(&[0xf940_0000], EL0_NOWHERE + 0x100);
    aborted(exception, DATA_EL0, EL0_NOWHERE + 0x100)?;
    let (_, exception) = execute_el0(&[0xf900_0000], EL0_NOWHERE + 0x108);
    aborted(exception, DATA_EL0, EL0_NOWHERE + 0x108)?;
    same("write", exception.esr & WRITE, WRITE)?;
    let (_, exception) = vectors::enter(EL0_NOWHERE + 0x40, 0);
    aborted(exception, FETCH_EL0, EL0_NOWHERE + 0x40)?;
    same("elr", exception.elr, EL0_NOWHERE + 0x40)
}

/// Accesses that nobody emulates: pairs, bytes, exclusives, acquire and release, unaligned ones.
fn nowhere_kinds() -> Verdict {
    const KINDS: [(u32, u64); 9] = [
        (0x3940_0001, 3), // ldrb w1, [x0]
        (0xa940_0801, 0), // ldp x1, x2, [x0]
        (0xa900_0801, 0), // stp x1, x2, [x0]
        (0xf840_8401, 0), // ldr x1, [x0], #8
        (0xc85f_7c01, 0), // ldxr x1, [x0]
        (0xc8df_fc01, 0), // ldar x1, [x0]
        (0xc89f_fc01, 0), // stlr x1, [x0]
        (0xf940_0001, 3), // ldr x1, [x0]
        (0xd50b_7420, 0), // dc zva, x0
    ];
    for (instruction, offset) in KINDS {
        let zva = instruction == 0xd50b_7420;
        if zva && sys::dczid() & 1 << 4 != 0 {
            continue;
        }
        let exception = taken(execute(&[instruction], NOWHERE + 0x4000 + offset))?;
        same("class", exception.class(), DATA_EL1)?;
        same("status", exception.esr & 0x3f, EXTERNAL)?;
        so("far", exception.far & !0x3f == (NOWHERE + 0x4000))?;
    }
    Ok(())
}

/// On all CPUs, at the same time.
fn nowhere_everywhere() -> Verdict {
    fn work(number: u64) -> u64 {
        let address = NOWHERE + (number << 12);
        let one = || {
            let exception = taken(execute(&[0xf940_0000], address))?;
            aborted(exception, DATA_EL1, address)?;
            let exception = taken(vectors::call(address, 0))?;
            aborted(exception, FETCH_EL1, address)
        };
        (0..50).filter(|_| one().is_err()).count() as u64
    }
    let cpus = machine().cpus();
    (1..cpus).for_each(|number| cpu::post(number, work, number as u64));
    same("wrong", work(0), 0)?;
    (1..cpus).try_for_each(|number| same("wrong-elsewhere", cpu::finish(number)?, 0))
}

/// AT tells of stage 1 alone: where it leads, whether or not there is anything.
fn translate() -> Verdict {
    // at s1e1r, x0; isb; mrs x0, par_el1
    let code = [0xd508_7800, 0xd503_3fdf, vectors::mrs(3, 0, 7, 4, 0)];
    for address in [NOWHERE + 0x5000, NOWHERE - 0x1000_0000] {
        let (par, exception) = execute(&code, address);
        so("no-exception", exception.is_none())?;
        same("translated", par & 1, 0)?;
        same("address", par & 0xf_ffff_f000, address)?;
    }
    let (par, _) = execute(&code, 5 << 30);
    same("fault", par & 1, 1)?;
    // A translation fault at level 1.
    same("status", par >> 1 & 0x3f, 0b000101)
}

//! Register state that has to survive whatever ends a guest's run.
#![expect(unsafe_code, reason = "the registers themselves")]

use crate::bare::cpu;
use crate::bare::gic;
use crate::bare::machine;
use crate::bare::psci;
use crate::bare::sys::{self, cpacr, csselr};
use crate::bare::test::{Stop, Test, Verdict, same};
use crate::bare::timer::Timer;
use crate::bare::vectors::{execute, mrs};
use core::arch::asm;

pub(super) static TESTS: &[Test] = &[
    ("state-general", general),
    ("state-simd", simd),
    ("state-sve", sve),
    ("state-system", system),
    ("state-set-way", set_way),
];

/// Everything that ends a guest's run: a call, a trapped register, a device, an interrupt.
fn exits() {
    psci::call(psci::VERSION, 0, 0, 0);
    let _ = execute(&[mrs(3, 0, 0, 4, 0)], 0);
    gic::own(0, 31).write(gic::ICENABLER);
    let timer = Timer::Virtual;
    let number = sys::tpidr() as usize;
    gic::own(number, timer.intid()).enable();
    timer.fire();
    gic::take();
    timer.set_ctl(0);
    gic::end(timer.intid());
}

/// On all CPUs at the same time, each with values of its own.
fn everywhere(work: cpu::Work) -> Verdict {
    let cpus = machine().cpus();
    (1..cpus).for_each(|number| cpu::post(number, work, number as u64));
    same("wrong", work(0), 0)?;
    (1..cpus).try_for_each(|number| same("wrong-elsewhere", cpu::finish(number)?, 0))
}

/// x0 to x30 around an access to a device.
fn general() -> Verdict {
    fn work(number: u64) -> u64 {
        let mut wrong = 0;
        for round in 0..20 {
            let seed = number << 32 | round << 16;
            let device = gic::gicr(number as usize, gic::GICR_WAKER);
            let bad: u64;
            // SAFETY: all registers that are changed are saved or declared; the load is from a device
            // that is mapped.
            unsafe {
                asm!(
                    "stp x19, x29, [sp, #-16]!",
                    "mov x30, x1",
                    "add x2, x1, #2", "add x3, x1, #3", "add x4, x1, #4", "add x5, x1, #5",
                    "add x6, x1, #6", "add x7, x1, #7", "add x8, x1, #8", "add x9, x1, #9",
                    "add x10, x1, #10", "add x11, x1, #11", "add x12, x1, #12",
                    "add x13, x1, #13", "add x14, x1, #14", "add x15, x1, #15",
                    "add x16, x1, #16", "add x17, x1, #17", "add x20, x1, #20",
                    "add x21, x1, #21", "add x22, x1, #22", "add x23, x1, #23",
                    "add x24, x1, #24", "add x25, x1, #25", "add x26, x1, #26",
                    "add x27, x1, #27", "add x28, x1, #28", "add x29, x1, #29",
                    "ldr w19, [x0]",
                    "mov x0, #0",
                    ".irp n, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29",
                    "sub x\\n, x\\n, #\\n",
                    "eor x\\n, x\\n, x30",
                    "orr x0, x0, x\\n",
                    ".endr",
                    "eor x1, x1, x30",
                    "orr x0, x0, x1",
                    "ldp x19, x29, [sp], #16",
                    inout("x0") device => bad, inout("x1") seed => _,
                    out("x2") _, out("x3") _, out("x4") _, out("x5") _, out("x6") _, out("x7") _,
                    out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _,
                    out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _,
                    out("x20") _, out("x21") _, out("x22") _, out("x23") _, out("x24") _,
                    out("x25") _, out("x26") _, out("x27") _, out("x28") _, out("x30") _,
                );
            }
            wrong += u64::from(bad != 0);
        }
        wrong
    }
    everywhere(work)
}

/// v0 to v31, FPCR and FPSR.
fn simd() -> Verdict {
    fn work(number: u64) -> u64 {
        let before = cpacr::read();
        cpacr::write(before | 0b11 << 20);
        let mut wrong = 0;
        for round in 0..20 {
            let seed = (number + 1) << 48 | round << 40 | 0x55aa;
            simd_fill(seed);
            exits();
            wrong += u64::from(simd_differs(seed) != 0);
        }
        cpacr::write(before);
        wrong
    }
    everywhere(work)
}

/// This guest is compiled without them, so nothing else uses the registers in between.
fn simd_fill(seed: u64) {
    // SAFETY: registers that nothing else here uses; CPACR_EL1 allows them.
    unsafe {
        asm!(
            ".arch_extension fp",
            ".arch_extension simd",
            ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
            "add {x}, {seed}, #\\n",
            "fmov d\\n, {x}",
            "mvn {x}, {x}",
            "mov v\\n\\().d[1], {x}",
            ".endr",
            "mov {x}, #(3 << 22)",
            "msr fpcr, {x}",
            "mov {x}, #0x1f",
            "msr fpsr, {x}",
            seed = in(reg) seed, x = out(reg) _, options(nostack)
        );
    }
}

fn simd_differs(seed: u64) -> u64 {
    let differs;
    // SAFETY: reads registers; CPACR_EL1 allows it.
    unsafe {
        asm!(
            ".arch_extension fp",
            ".arch_extension simd",
            "mrs {all}, fpcr",
            "eor {all}, {all}, #(3 << 22)",
            "mrs {x}, fpsr",
            "eor {x}, {x}, #0x1f",
            "orr {all}, {all}, {x}",
            ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
            "add {x}, {seed}, #\\n",
            "fmov {y}, d\\n",
            "eor {y}, {y}, {x}",
            "orr {all}, {all}, {y}",
            "mov {y}, v\\n\\().d[1]",
            "mvn {x}, {x}",
            "eor {y}, {y}, {x}",
            "orr {all}, {all}, {y}",
            ".endr",
            "msr fpcr, xzr",
            seed = in(reg) seed, x = out(reg) _, y = out(reg) _, all = out(reg) differs,
            options(nostack)
        );
    }
    differs
}

/// The whole of the vectors, the predicates and the first-fault register, at the greatest length.
fn sve() -> Verdict {
    if execute(&[mrs(3, 0, 0, 4, 0)], 0).0 >> 32 & 0xf == 0 {
        return Err(Stop::Skip("no-sve"));
    }
    fn work(number: u64) -> u64 {
        let before = cpacr::read();
        cpacr::write(before | 0b11 << 20 | 0b11 << 16);
        let mut wrong = 0;
        for round in 0..20 {
            let seed = number * 32 + round;
            sve_fill(seed);
            exits();
            wrong += u64::from(sve_differs(seed) != 0);
        }
        cpacr::write(before);
        wrong
    }
    everywhere(work)
}

fn sve_fill(seed: u64) {
    // SAFETY: registers that nothing else here uses; CPACR_EL1 allows them.
    unsafe {
        asm!(
            ".arch_extension sve",
            "mov {x}, #0xf",
            "msr s3_0_c1_c2_0, {x}",
            "isb",
            ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
            "add {x}, {seed}, #\\n",
            "index z\\n\\().d, {x}, #1",
            ".endr",
            "ptrue p0.b",
            "setffr",
            ".irp n, 3, 4, 5, 6, 7, 8",
            "ptrue p\\n\\().h, vl\\n",
            ".endr",
            seed = in(reg) seed, x = out(reg) _, options(nostack)
        );
    }
}

/// Each vector is compared with what it was filled with, made anew in z31; of z31 itself the last lane.
fn sve_differs(seed: u64) -> u64 {
    let (differs, ffr): (u64, u64);
    // SAFETY: reads registers, and changes some that nothing else here uses.
    unsafe {
        asm!(
            ".arch_extension sve",
            "rdffr p1.b",
            "ptrue p2.b",
            "eors p1.b, p2/z, p1.b, p2.b",
            "cset {ffr}, ne",
            "mov {all}, #0",
            // p3 to p8 have as many lanes as their number says.
            ".irp n, 3, 4, 5, 6, 7, 8",
            "cntp {y}, p0, p\\n\\().h",
            "sub {y}, {y}, #\\n",
            "orr {all}, {all}, {y}",
            ".endr",
            "ptrue p0.d",
            // Of z31 the last lane is enough: the others' comparison needs the register.
            "add {x}, {seed}, #0",
            "mov {y}, #0",
            "lastb {y}, p0, z31.d",
            "cntd {x}",
            "add {x}, {x}, {seed}",
            "add {x}, {x}, #30",
            "eor {y}, {y}, {x}",
            "orr {all}, {all}, {y}",
            ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30",
            "add {x}, {seed}, #\\n",
            "index z31.d, {x}, #1",
            "eor z31.d, z31.d, z\\n\\().d",
            "umaxv d31, p0, z31.d",
            "fmov {y}, d31",
            "orr {all}, {all}, {y}",
            ".endr",
            seed = in(reg) seed, x = out(reg) _, y = out(reg) _, all = out(reg) differs,
            ffr = out(reg) ffr, options(nostack)
        );
    }
    differs | ffr
}

/// EL1's own registers are its own.
fn system() -> Verdict {
    fn work(number: u64) -> u64 {
        let mut wrong = 0;
        for round in 0..20 {
            let value = (number + 1) << 32 | round;
            let (a, b, c): (u64, u64, u64);
            // SAFETY: registers that nothing else here uses.
            unsafe {
                asm!("msr tpidr_el0, {0}", "msr tpidrro_el0, {0}", "msr contextidr_el1, {1}", "isb",
                     in(reg) value, in(reg) round, options(nostack));
            }
            csselr::write(0);
            exits();
            // SAFETY: reads them.
            unsafe {
                asm!("mrs {0}, tpidr_el0", "mrs {1}, tpidrro_el0", "mrs {2}, contextidr_el1",
                     out(reg) a, out(reg) b, out(reg) c, options(nostack));
            }
            wrong += u64::from((a, b, c) != (value, value, round));
        }
        wrong
    }
    everywhere(work)
}

/// Maintenance by set and way loses nothing that was written.
fn set_way() -> Verdict {
    use core::sync::atomic::{AtomicU64, Ordering};
    static WORDS: [AtomicU64; 512] = [const { AtomicU64::new(0) }; 512];
    for (round, operation) in (0_u64..).zip([0xd508_7640_u32, 0xd508_7a40, 0xd508_7e40]) {
        // dc isw, csw and cisw, with x0.
        for (word, value) in WORDS.iter().zip(round << 32..) {
            word.store(value, Ordering::Relaxed);
        }
        for level in 0..2 {
            for set in 0..64 {
                let (_, taken) = execute(&[operation], level << 1 | set << 6);
                if let Some(taken) = taken {
                    return Err(Stop::Fail("refused", taken.esr, operation.into()));
                }
            }
        }
        let wrong = WORDS.iter().zip(round << 32..);
        let wrong = wrong.filter(|(word, value)| word.load(Ordering::Relaxed) != *value);
        same("wrong", wrong.count() as u64, 0)?;
    }
    Ok(())
}

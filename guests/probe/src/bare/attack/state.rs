//! PSTATE, debug, waiting, and EL0 in AArch32: what an exit from strange states leads to.

use super::Attacker;
use super::lab::Registers;
use crate::bare::aborts::Abort;
use crate::bare::commands::interrupts::ready;
use crate::bare::{cpu, debug, guest, interrupts};
use cordon_probe::attack::encoding::RET;
use cordon_probe::attack::verdict::Verdict;
use cordon_probe::paging::Attributes;

/// `msr elr_el1, x19`, `msr spsr_el1, x20`, `eret`: to x19 with PSTATE x20.
const RETURN: [u32; 3] = [0xd518_4033, 0xd518_4014, 0xd69f_03e0];
/// `svc #0`: done.
const DONE: u32 = 0xd400_0001;
const NOP: u32 = 0xd503_201f;

/// Where the code that is returned to begins in the page.
const TARGET: usize = 64;

/// EL1h, D, A, I and F masked.
const MASKED: u64 = 0x3c5;
const PSTATE_D: u64 = 1 << 9;
const PSTATE_SS: u64 = 1 << 21;
const PSTATE_IL: u64 = 1 << 20;
const MODE: u64 = 0x1f;

/// Exception classes.
const UNKNOWN: u8 = 0x00;
const TRAPPED_CP15: u8 = 0x03;
const ILLEGAL_STATE: u8 = 0x0e;
const SVC_AARCH32: u8 = 0x11;
const SVC: u8 = 0x15;
const DATA_ABORT_EL0: u8 = 0x24;
const BREAKPOINT: u8 = 0x31;
const STEP: u8 = 0x33;
const WATCHPOINT: u8 = 0x35;
const BRK: u8 = 0x3c;

/// Everything.
pub(super) fn all(attacker: &mut Attacker) {
    modes(attacker);
    for _ in 0..64 {
        attacker.pstate_by_chance();
    }
    undefined_from_sp_el0(attacker);
    kept_from_guests(attacker);
    software_debug(attacker);
    hardware_debug(attacker);
    steps(attacker);
    hints(attacker);
    waits(attacker);
    if debug::has_aarch32() {
        aarch32(attacker);
    }
}

impl Attacker {
    /// Returns to the code at [`TARGET`] with PSTATE `spsr`; what must come is an exception of class
    /// `class`, `at` instructions into it.
    fn enter(&mut self, spsr: u64, x1: u64, (class, at): (u8, usize), verdict: Verdict) {
        let mut registers = Registers::default();
        registers[1] = x1;
        registers[19] = self.lab.address(TARGET);
        registers[20] = spsr;
        self.lab.load(0, RETURN);
        let outcome = self.lab.run(0, &mut registers).map(|()| registers[0]);
        let expected = |abort: &Abort| {
            abort.syndrome().exception_class() == class
                && abort.elr == self.lab.address(TARGET + at)
        };
        let verdict = match outcome {
            Err(abort) if expected(&abort) => verdict,
            _ => Verdict::Unexpected,
        };
        self.judge(verdict, (RETURN[2], spsr), outcome);
    }

    /// EL1h with all other bits by chance, or a mode that there is none of.
    pub(super) fn pstate_by_chance(&mut self) {
        self.lab.load(TARGET, [DONE]);
        // Not AArch32, whose state this is not; no debug exceptions.
        let any = self.random.number() & 0xffff_ffff & !(MODE | PSTATE_SS);
        let spsr = any | MASKED;
        if spsr & PSTATE_IL != 0 {
            self.enter(spsr, 0, (ILLEGAL_STATE, 0), Verdict::Fault);
        } else {
            self.enter(spsr, 0, (SVC, 1), Verdict::Value);
        }
    }
}

/// All values of PSTATE.M: EL1 and EL0 alone can be returned to.
fn modes(attacker: &mut Attacker) {
    const EL0: u64 = 0b00000;
    const EL1T: u64 = 0b00100;
    const EL1H: u64 = 0b00101;
    const AARCH32_USER: u64 = 0b10000;
    attacker.lab.load(TARGET, [DONE]);
    for mode in 0..=MODE {
        let spsr = MASKED & !MODE | mode;
        match mode {
            EL0 | AARCH32_USER => {}
            EL1T | EL1H => attacker.enter(spsr, 0, (SVC, 1), Verdict::Value),
            _ => attacker.enter(spsr, 0, (ILLEGAL_STATE, 0), Verdict::Fault),
        }
    }
}

/// What is undefined because Cordon says so reaches the vector of EL1t.
fn undefined_from_sp_el0(attacker: &mut Attacker) {
    const EL1T: u64 = MASKED & !1;
    // smc #1; mrs x0, pmcr_el0; mrs x0, lorid_el1; ldr x0, [x1] where there is nothing.
    for word in [0xd400_0023, 0xd53b_9c00, 0xd538_a4e0] {
        attacker.lab.load(TARGET, [word, DONE]);
        attacker.enter(EL1T, 0, (UNKNOWN, 0), Verdict::Undefined);
    }
    attacker.lab.load(TARGET, [0xf940_0020, DONE]);
    let window = attacker.lab.window;
    window.point(0, 0x0902_0000, Attributes::EL0_DATA);
    attacker.enter(EL1T, window.va(0), (0x25, 0), Verdict::Abort);
}

/// What wants a control of EL2's that is off: `cpyfp [x1]!, [x2]!, x3!` and `setp [x1]!, x2!, x3` (FEAT_MOPS, HCRX_EL2).
fn kept_from_guests(attacker: &mut Attacker) {
    for word in [0x1902_0461, 0x19c3_0441] {
        attacker.lab.load(TARGET, [word, DONE]);
        attacker.enter(MASKED, 0, (UNKNOWN, 0), Verdict::Undefined);
    }
}

/// BRK is the guest's own; HLT and DCPS1 to 3 are undefined without a debugger.
fn software_debug(attacker: &mut Attacker) {
    attacker.lab.load(TARGET, [0xd420_0000 | 0x1234 << 5, DONE]);
    attacker.enter(MASKED, 0, (BRK, 0), Verdict::Fault);
    for word in [0xd440_0000, 0xd4a0_0001, 0xd4a0_0002, 0xd4a0_0003] {
        attacker.lab.load(TARGET, [word, DONE]);
        attacker.enter(MASKED, 0, (UNKNOWN, 0), Verdict::Undefined);
    }
}

/// A breakpoint and a watchpoint of the guest's.
fn hardware_debug(attacker: &mut Attacker) {
    let (lab, open) = (attacker.lab, MASKED & !PSTATE_D);
    lab.load(TARGET, [NOP, NOP, DONE]);
    let stop = debug::breakpoint(lab.address(TARGET + 1));
    attacker.enter(open, 0, (BREAKPOINT, 1), Verdict::Fault);
    drop(stop);
    attacker.enter(open, 0, (SVC, 3), Verdict::Value);
    // ldr x0, [x1]
    lab.load(TARGET, [0xf940_0020, DONE]);
    let stop = debug::watchpoint(lab.scratch);
    attacker.enter(open, lab.scratch, (WATCHPOINT, 0), Verdict::Fault);
    drop(stop);
    attacker.enter(open, lab.scratch, (SVC, 2), Verdict::Value);
}

/// A single step over what is trapped ends behind it, not behind the instruction after that (Arm ARM
/// D2.12): HVC, SMC, an ID register, an SGI, a register of the distributor.
fn steps(attacker: &mut Attacker) {
    let stepped = MASKED & !PSTATE_D | PSTATE_SS;
    let (lab, window) = (attacker.lab, attacker.lab.window);
    let gic = guest::get().gic().map_or(0, |gic| gic.distributor);
    window.point(0, gic, Attributes::EL0_DEVICE);
    // nop; hvc #0; smc #0; mrs x0, id_aa64pfr0_el1; msr icc_sgi1r_el1, xzr; ldr w0, [x1].
    for word in [
        NOP,
        0xd400_0002,
        0xd400_0003,
        0xd538_0400,
        0xd518_cbbf,
        0xb940_0020,
    ] {
        lab.load(TARGET, [word, NOP, NOP, DONE]);
        let stop = debug::single_step();
        attacker.enter(stepped, window.va(0), (STEP, 1), Verdict::Fault);
        drop(stop);
    }
    // What is undefined is not stepped over: mrs x0, pmcr_el0.
    lab.load(TARGET, [0xd53b_9c00, DONE]);
    let stop = debug::single_step();
    attacker.enter(stepped, 0, (UNKNOWN, 0), Verdict::Undefined);
    drop(stop);
}

/// All hints but WFE and WFI.
fn hints(attacker: &mut Attacker) {
    for hint in (0..128_u32).filter(|hint| !matches!(hint, 2 | 3)) {
        let word = NOP | hint << 5;
        attacker.lab.load(TARGET, [word, DONE]);
        attacker.enter(MASKED, 0, (SVC, 2), Verdict::Value);
    }
}

/// WFE, and WFI with a timer running.
fn waits(attacker: &mut Attacker) {
    const WFE: u32 = NOP | 2 << 5;
    const WFI: u32 = NOP | 3 << 5;
    const EVENTS: usize = 40;
    attacker.lab.load(TARGET, [WFE, DONE]);
    for _ in 0..EVENTS {
        cpu::wake_others();
        attacker.enter(MASKED, 0, (SVC, 2), Verdict::Value);
    }
    if !ready() {
        return;
    }
    attacker.lab.load(TARGET, [WFI, DONE]);
    for _ in 0..EVENTS {
        interrupts::while_masked(|| {
            interrupts::arm(interrupts::VIRTUAL_TIMER, 20);
            attacker.enter(MASKED, 0, (SVC, 2), Verdict::Value);
        });
    }
}

/// A32 or T32 code and what its first exception must be: a class, and an immediate of SVC if it is that.
struct Aarch32 {
    words: &'static [u32],
    thumb: bool,
    class: u8,
    immediate: u64,
    verdict: Verdict,
}

const A32_SVC: u32 = 0xef00_0000;

/// What EL0 may try in AArch32. The window's first page is the distributor, r1 its address.
const AARCH32: [Aarch32; 11] = [
    undefined(&[0xe160_0070]), // smc #0
    undefined(&[0xe140_0070]), // hvc #0
    undefined(&[0xee10_0f10]), // mrc p15, 0, r0, c0, c0, 0: MIDR
    undefined(&[0xee1f_0f10]), // mrc p15, 0, r0, c15, c0, 0: what an implementation added
    undefined(&[0xee1b_0f10]), // mrc p15, 0, r0, c11, c0, 0
    undefined(&[0xee07_0f5e]), // mcr p15, 0, r0, c7, c14, 2: DCCISW
    // mrc p15, 0, r0, c9, c12, 0: PMCR, which PMUSERENR_EL0 keeps from EL0
    Aarch32 {
        class: TRAPPED_CP15,
        ..undefined(&[0xee19_0f1c])
    },
    // ldr r0, [r1]; svc #1; svc #2
    svc(&[0xe591_0000, A32_SVC | 1, A32_SVC | 2], false),
    // ldrh r0, [r1]; svc #1; svc #2; svc #3: an instruction of two bytes is stepped over by two.
    svc(&[0xdf01_8808, 0xdf03_df02], true),
    // ldr.w r0, [r1]; svc #1; svc #2
    svc(&[0x0000_f8d1, 0xdf02_df01], true),
    // cmp r0, r0; ite eq; ldrheq r0, [r1]; svcne #2; svc #1: IT goes on behind what was emulated.
    svc(&[0xbf0c_4280, 0xdf02_8808, 0xdf03_df01], true),
];

const fn undefined(words: &'static [u32]) -> Aarch32 {
    Aarch32 {
        words,
        thumb: false,
        class: UNKNOWN,
        immediate: 0,
        verdict: Verdict::Undefined,
    }
}

const fn svc(words: &'static [u32], thumb: bool) -> Aarch32 {
    Aarch32 {
        words,
        thumb,
        class: SVC_AARCH32,
        immediate: 1,
        verdict: Verdict::Value,
    }
}

fn aarch32(attacker: &mut Attacker) {
    let (lab, window) = (attacker.lab, attacker.lab.window);
    let gic = guest::get().gic().map_or(0, |gic| gic.distributor);
    window.point(0, gic, Attributes::EL0_DEVICE);
    for case in &AARCH32 {
        attacker.run_aarch32(case);
    }
    // ldr r0, [r1] where there is nothing.
    window.point(0, 0x0902_0000, Attributes::EL0_DEVICE);
    lab.load(TARGET, [0xe591_0000, A32_SVC]);
    let (value, abort) = lab.run_aarch32(TARGET, 0, window.va(0), false);
    let right = abort.syndrome().exception_class() == DATA_ABORT_EL0
        && abort.syndrome().is_external_abort()
        && abort.far == window.va(0);
    let verdict = if right {
        Verdict::Abort
    } else {
        Verdict::Unexpected
    };
    attacker.judge(verdict, (0xe591_0000, value), Err(abort));
}

impl Attacker {
    fn run_aarch32(&mut self, case: &Aarch32) {
        let at = self.lab.window.va(0);
        self.lab
            .load(TARGET, case.words.iter().copied().chain([RET]));
        let (_, abort) = self.lab.run_aarch32(TARGET, 0, at, case.thumb);
        let syndrome = abort.syndrome();
        let right = syndrome.exception_class() == case.class
            && (case.class != SVC_AARCH32 || syndrome.raw() & 0xffff == case.immediate);
        let verdict = if right {
            case.verdict
        } else {
            Verdict::Unexpected
        };
        let word = case.words.first().copied().unwrap_or(0);
        self.judge(verdict, (word, case.thumb.into()), Err(abort));
    }
}

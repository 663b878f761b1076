//! The exception vectors, and how a test runs an instruction that may not be there.
//!
//! A synchronous exception from EL1 is expected only within [`execute`]: it is noted, and execution
//! goes on behind the instruction, or, where the fetch failed, at the return address. An IRQ is
//! acknowledged, counted and ended. An exception from EL0 ends [`execute_el0`]. Anything else ends
//! the guest.
#![expect(unsafe_code, reason = "the vector table, and generated code")]

use super::boot::EL0_ALIAS;
use super::cpu::{self, Cpu};
use super::{gic, sys, timer};
use core::arch::{asm, global_asm};
use core::mem::offset_of;
use core::sync::atomic::Ordering::Relaxed;

/// An exception that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exception {
    /// `ESR_EL1`.
    pub(super) esr: u64,
    /// `FAR_EL1`.
    pub(super) far: u64,
    /// `ELR_EL1`.
    pub(super) elr: u64,
}

impl Exception {
    /// `ESR_EL1.EC`.
    pub(super) fn class(self) -> u64 {
        self.esr >> 26 & 0x3f
    }
}

/// Exception classes (Arm ARM D24.2.43).
pub(super) const UNKNOWN: u64 = 0x00;
pub(super) const SVC64: u64 = 0x15;
pub(super) const TRAPPED_SYSTEM: u64 = 0x18;
pub(super) const FETCH_EL0: u64 = 0x20;
pub(super) const FETCH_EL1: u64 = 0x21;
pub(super) const DATA_EL0: u64 = 0x24;
pub(super) const DATA_EL1: u64 = 0x25;
pub(super) const BREAKPOINT: u64 = 0x3c;

/// `ret`.
pub(super) const RET: u32 = 0xd65f_03c0;
/// `svc #0`.
pub(super) const SVC: u32 = 0xd400_0001;

/// The interrupted state.
#[repr(C, align(16))]
struct Frame {
    x: [u64; 31],
    elr: u64,
    spsr: u64,
    _unused: u64,
}

const SYNCHRONOUS: u64 = 0x200;
const IRQ: u64 = 0x280;

global_asm!(
    ".pushsection .vectors, \"ax\"",
    ".balign 2048",
    ".global vectors",
    "vectors:",
    ".macro entry offset",
    ".org vectors + \\offset",
    "sub sp, sp, {frame}",
    "stp x0, x1, [sp]",
    "mov x1, \\offset",
    "b save_and_handle",
    ".endm",
    ".irp offset, 0x000, 0x080, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380",
    "entry \\offset",
    ".endr",
    // From EL0: `enter_el0` goes on.
    ".org vectors + 0x400",
    "mrs x1, esr_el1",
    "b leave_el0",
    ".irp offset, 0x480, 0x500, 0x580, 0x600, 0x680, 0x700, 0x780",
    "entry \\offset",
    ".endr",
    ".org vectors + 0x800",
    "save_and_handle:",
    ".irp n, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30",
    "str x\\n, [sp, #8 * \\n]",
    ".endr",
    "mrs x2, elr_el1",
    "mrs x3, spsr_el1",
    "stp x2, x3, [sp, {elr}]",
    "mov x0, sp",
    "bl {handle}",
    "ldp x2, x3, [sp, {elr}]",
    "msr elr_el1, x2",
    "msr spsr_el1, x3",
    ".irp n, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30",
    "ldr x\\n, [sp, #8 * \\n]",
    ".endr",
    "ldp x0, x1, [sp]",
    "add sp, sp, {frame}",
    "eret",
    // x0: where; x1: its x0. Returns x0, and ESR_EL1 in x1.
    "enter_el0:",
    "stp x29, x30, [sp, #-96]!",
    "stp x19, x20, [sp, #16]",
    "stp x21, x22, [sp, #32]",
    "stp x23, x24, [sp, #48]",
    "stp x25, x26, [sp, #64]",
    "stp x27, x28, [sp, #80]",
    "mov x2, #0x3c0",
    "msr elr_el1, x0",
    "msr spsr_el1, x2",
    "mov x0, x1",
    "isb",
    "eret",
    "leave_el0:",
    "ldp x19, x20, [sp, #16]",
    "ldp x21, x22, [sp, #32]",
    "ldp x23, x24, [sp, #48]",
    "ldp x25, x26, [sp, #64]",
    "ldp x27, x28, [sp, #80]",
    "ldp x29, x30, [sp], #96",
    "ret",
    ".popsection",
    frame = const size_of::<Frame>(),
    elr = const offset_of!(Frame, elr),
    handle = sym handle,
);

/// What EL0 leaves behind.
#[repr(C)]
struct Left {
    x0: u64,
    esr: u64,
}

// SAFETY: defined above.
unsafe extern "C" {
    fn enter_el0(entry: u64, x0: u64) -> Left;
}

/// Deals with the exception at vector offset `vector`.
extern "C" fn handle(frame: &mut Frame, vector: u64) {
    let cpu = cpu::this();
    match vector {
        SYNCHRONOUS if cpu.expecting.swap(false, Relaxed) => note(cpu, frame),
        IRQ => interrupt(cpu),
        _ => super::fatal(format_args!(
            "what=exception vector={vector:#x} esr={:#x} far={:#x} elr={:#x} spsr={:#x} test={}",
            esr(),
            sys::far(),
            frame.elr,
            frame.spsr,
            super::running()
        )),
    }
}

fn esr() -> u64 {
    let esr;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, esr_el1", out(reg) esr, options(nomem, nostack)) };
    esr
}

fn note(cpu: &Cpu, frame: &mut Frame) {
    let taken = Exception {
        esr: esr(),
        far: sys::far(),
        elr: frame.elr,
    };
    *cpu.exception.lock() = Some(taken);
    frame.elr = match taken.class() {
        FETCH_EL1 => frame.x[30],
        // SVC returns behind itself.
        SVC64 => frame.elr,
        _ => frame.elr + 4,
    };
}

fn interrupt(cpu: &Cpu) {
    let intid = gic::acknowledge();
    if intid >= gic::SPECIAL {
        return;
    }
    timer::silence(intid);
    cpu.took(intid);
    gic::end(intid);
}

/// Code that a test has made: up to 15 instructions.
#[repr(C, align(64))]
pub(super) struct Code(core::cell::UnsafeCell<[u32; 16]>);

// SAFETY: each CPU has its own.
unsafe impl Sync for Code {}

impl Code {
    pub(super) const fn new() -> Self {
        Self(core::cell::UnsafeCell::new([0; 16]))
    }

    /// Puts these instructions here, and `last` behind them. Returns their address.
    fn fill(&self, instructions: &[u32], last: u32) -> u64 {
        let start = self.0.get().cast::<u32>();
        let all = instructions.iter().copied().take(15).chain([last]);
        for (index, instruction) in all.enumerate() {
            // SAFETY: within the array, which is this CPU's own.
            unsafe { start.add(index).write_volatile(instruction) };
        }
        // SAFETY: makes what was written visible to the fetches of this CPU (Arm ARM B2.4.4).
        unsafe {
            asm!("dc cvau, {0}", "dsb ish", "ic ivau, {0}", "dsb ish", "isb", in(reg) start,
                 options(nostack));
        }
        start.expose_provenance() as u64
    }
}

/// Calls the function at `address` with `x0`. Returns its x0, and the exception that one of its
/// instructions caused, if any.
pub(super) fn call(address: u64, x0: u64) -> (u64, Option<Exception>) {
    let cpu = cpu::this();
    *cpu.exception.lock() = None;
    cpu.expecting.store(true, Relaxed);
    let result;
    // SAFETY: what is called keeps to the procedure call standard, which generated code and memory
    // that is not there do trivially.
    unsafe { asm!("blr {}", in(reg) address, inout("x0") x0 => result, clobber_abi("C")) };
    cpu.expecting.store(false, Relaxed);
    (result, cpu.exception.lock().take())
}

/// Executes instructions that may cause an exception each use only x0 to x17, and need no stack.
pub(super) fn execute(instructions: &[u32], x0: u64) -> (u64, Option<Exception>) {
    call(cpu::this().code.fill(instructions, RET), x0)
}

/// The same at EL0, until the first exception, which is `svc` at the latest.
pub(super) fn execute_el0(instructions: &[u32], x0: u64) -> (u64, Exception) {
    enter(cpu::this().code.fill(instructions, SVC) + EL0_ALIAS, x0)
}

/// Goes to `address` at EL0, until there is an exception.
pub(super) fn enter(address: u64, x0: u64) -> (u64, Exception) {
    // SAFETY: EL0 can reach nothing but RAM, of which generated code changes nothing.
    let left = unsafe { enter_el0(address, x0) };
    let taken = Exception {
        esr: left.esr,
        far: sys::far(),
        elr: sys::elr(),
    };
    (left.x0, taken)
}

/// `mrs x0, S<op0>_<op1>_C<crn>_C<crm>_<op2>`.
pub(super) const fn mrs(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    0xd530_0000 | (op0 & 1) << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5
}

/// `msr S<op0>_<op1>_C<crn>_C<crm>_<op2>, x0`.
pub(super) const fn msr(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    mrs(op0, op1, crn, crm, op2) & !(1 << 21)
}

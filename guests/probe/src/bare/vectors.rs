//! The exception vectors (Arm ARM D1.3.1.2).
//!
//! | offset | what | who handles it |
//! |---|---|---|
//! | 0x000, 0x200 | synchronous, from EL1 | an access with a landing pad is resumed there, else fatal |
//! | 0x280, 0x480 | interrupt | counted and ended, where a command has enabled it |
//! | 0x380, 0x580 | SError | reported, counted, resumed |
//! | 0x400, 0x600 | synchronous, from EL0 | `el0::exit`: the return of a touch |
//! | others | | fatal: FIQs are not used |
//!
//! All but 0x400 and 0x600 save the interrupted registers in a [`Frame`] on the stack and call [`handle`].
//! The report of something fatal needs no lock: the console takes it by force.
#![expect(unsafe_code, reason = "the vector table and its entry and exit code")]

use super::aborts::{self, Abort};
use super::{access, cpu, el0, interrupts, report};
use cordon_probe::syndrome::{Class, Syndrome};
use core::arch::global_asm;
use core::mem::offset_of;

/// The interrupted state.
#[repr(C, align(16))]
struct Frame {
    x: [u64; 31],
    elr: u64,
    spsr: u64,
    esr: u64,
    far: u64,
    /// The physical counter, a few instructions after the exception.
    entered: u64,
}

const SYNCHRONOUS_EL1: u64 = 0x200;
/// The same while `SP_EL0` was in use, which attacks alone do.
const SYNCHRONOUS_EL1T: u64 = 0x000;
const PSTATE_EL1H: u64 = 0b0101;
const PSTATE_F: u64 = 1 << 6;
const PSTATE_I: u64 = 1 << 7;
const PSTATE_A: u64 = 1 << 8;
const PSTATE_D: u64 = 1 << 9;
const IRQ_EL1: u64 = 0x280;
const IRQ_EL0: u64 = 0x480;
const SERROR_EL1: u64 = 0x380;
const SERROR_EL0: u64 = 0x580;

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
    "entry 0x000",
    "entry 0x080",
    "entry 0x100",
    "entry 0x180",
    "entry 0x200",
    "entry 0x280",
    "entry 0x300",
    "entry 0x380",
    ".org vectors + 0x400",
    "b {exit}",
    "entry 0x480",
    "entry 0x500",
    "entry 0x580",
    ".org vectors + 0x600",
    "b {exit}",
    "entry 0x680",
    "entry 0x700",
    "entry 0x780",
    ".org vectors + 0x800",
    "save_and_handle:",
    "stp x2, x3, [sp, #16]",
    "mrs x2, cntpct_el0",
    "str x2, [sp, {entered}]",
    "stp x4, x5, [sp, #32]",
    "stp x6, x7, [sp, #48]",
    "stp x8, x9, [sp, #64]",
    "stp x10, x11, [sp, #80]",
    "stp x12, x13, [sp, #96]",
    "stp x14, x15, [sp, #112]",
    "stp x16, x17, [sp, #128]",
    "stp x18, x19, [sp, #144]",
    "stp x20, x21, [sp, #160]",
    "stp x22, x23, [sp, #176]",
    "stp x24, x25, [sp, #192]",
    "stp x26, x27, [sp, #208]",
    "stp x28, x29, [sp, #224]",
    "str x30, [sp, #240]",
    "mrs x2, elr_el1",
    "mrs x3, spsr_el1",
    "stp x2, x3, [sp, {elr}]",
    "mrs x2, esr_el1",
    "mrs x3, far_el1",
    "stp x2, x3, [sp, {esr}]",
    "mov x0, sp",
    "bl {handle}",
    "ldp x2, x3, [sp, {elr}]",
    "msr elr_el1, x2",
    "msr spsr_el1, x3",
    "ldp x28, x29, [sp, #224]",
    "ldp x26, x27, [sp, #208]",
    "ldp x24, x25, [sp, #192]",
    "ldp x22, x23, [sp, #176]",
    "ldp x20, x21, [sp, #160]",
    "ldp x18, x19, [sp, #144]",
    "ldp x16, x17, [sp, #128]",
    "ldp x14, x15, [sp, #112]",
    "ldp x12, x13, [sp, #96]",
    "ldp x10, x11, [sp, #80]",
    "ldp x8, x9, [sp, #64]",
    "ldp x6, x7, [sp, #48]",
    "ldp x4, x5, [sp, #32]",
    "ldp x2, x3, [sp, #16]",
    "ldp x0, x1, [sp]",
    "ldr x30, [sp, #240]",
    "add sp, sp, {frame}",
    "eret",
    ".popsection",
    frame = const size_of::<Frame>(),
    elr = const offset_of!(Frame, elr),
    esr = const offset_of!(Frame, esr),
    entered = const offset_of!(Frame, entered),
    exit = sym el0::exit,
    handle = sym handle,
);

/// Deals with the exception at vector offset `vector`; returning resumes what `frame` says.
extern "C" fn handle(frame: &mut Frame, vector: u64) {
    let class = Syndrome::new(frame.esr).class();
    match vector {
        SYNCHRONOUS_EL1 | SYNCHRONOUS_EL1T => resume_at_landing_pad(frame, vector),
        IRQ_EL1 | IRQ_EL0 => interrupts::handle(frame.entered),
        SERROR_EL1 | SERROR_EL0 if class == Class::SError => serror(frame),
        _ => fatal(frame, vector),
    }
}

fn resume_at_landing_pad(frame: &mut Frame, vector: u64) {
    let Some(pad) = access::landing_pad(frame.elr, frame.x[30]) else {
        fatal(frame, vector);
    };
    let Frame {
        esr,
        far,
        spsr,
        elr,
        entered,
        ..
    } = *frame;
    aborts::record(
        cpu::id(),
        Abort {
            esr,
            far,
            spsr,
            vector,
            elr,
            entered,
        },
    );
    frame.elr = pad;
    // A pad runs as any code of this guest's, whatever PSTATE was under attack: not in illegal
    // state, not stepped, on the guest's own stack. Condition flags mean nothing there.
    frame.spsr = spsr & (PSTATE_A | PSTATE_I | PSTATE_F) | PSTATE_D | PSTATE_EL1H;
}

fn serror(frame: &Frame) {
    let vcpu = cpu::id();
    let count = aborts::record_serror(vcpu);
    let level = frame.spsr >> 2 & 3;
    report::report!(
        "event=serror vcpu={vcpu} esr={:#x} el={level} count={count}",
        frame.esr
    );
}

fn fatal(frame: &Frame, vector: u64) -> ! {
    report::fatal(format_args!(
        "what=exception vector={vector:#x} esr={:#x} far={:#x} elr={:#x} spsr={:#x} x30={:#x} \
         image={:#x}",
        frame.esr,
        frame.far,
        frame.elr,
        frame.spsr,
        frame.x[30],
        super::image::whole().start,
    ))
}

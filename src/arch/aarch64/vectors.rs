//! EL2's exception vectors (Arm ARM D1.3.6), the guest's general registers around them, and the
//! way into and out of a guest.
//!
//! While a guest runs, SP_EL2 is the top of this CPU's stack. An exit makes room for a
//! [`GuestFrame`] there and saves the registers that a function may clobber: x0 to x18 and x30. The
//! others are where the procedure call standard puts them back (AAPCS64 6.1.1), which is enough for
//! interrupts, and for requests and memory errors among the synchronous exceptions, `exit::guest_quick`. If
//! that declines, it has changed nothing, x19 to x29 are still the guest's, join the frame, and
//! `exit::guest_sync` has them all. When a handler returns, the frame is popped and the guest goes on. ELR, SPSR, ESR and FAR stay in their registers, where a handler
//! reads what it needs. FP/SIMD registers are not saved: they are the guest's throughout.
//!
//! An exception from EL2 itself is Cordon's own fault, unless it came from one of the few
//! instructions in [`super::fixup`] that are allowed to meet poison.
#![expect(unsafe_code, reason = "exception entry and return")]

use aarch64_cpu::registers::{VBAR_EL2, Writeable};
use core::arch::naked_asm;
use core::mem::{offset_of, size_of};

/// A guest's general registers, as pushed at an exit. Of those that are not saved there, there is
/// something or other.
#[repr(C, align(16))]
#[derive(Clone, Default)]
pub struct GuestFrame {
    /// x0 to x30.
    pub x: [u64; 31],
    _pad: u64,
}

/// All that an exception from EL2 interrupts and Rust code may clobber.
#[repr(C, align(16))]
pub struct HypFrame {
    /// x0 to x30.
    pub x: [u64; 31],
    /// SP before the exception.
    pub sp: u64,
}

const GUEST_FRAME_SIZE: usize = size_of::<GuestFrame>();
const HYP_FRAME_SIZE: usize = size_of::<HypFrame>();
const _: () = assert!(GUEST_FRAME_SIZE == 256 && HYP_FRAME_SIZE == 256);
const _: () = assert!(offset_of!(GuestFrame, x) == 0 && offset_of!(HypFrame, x) == 0);

/// The end of an exit. An exception return is an event to its CPU (Arm ARM D1.7.1), so that a guest which was interrupted between
/// the load of a lock and its WFE looks at the lock once more; QEMU's is none since 11.1, where WFE sleeps. SEVL makes it one.
macro_rules! exception_return {
    () => {
        "sevl
         eret
         // Nothing after an ERET may be speculated into (Arm ARM, SB).
         dsb nsh
         isb"
    };
}

/// Stores x2-x18 and x30 at \[sp\]; x0 and x1 are there already. An odd one goes with its neighbour.
macro_rules! save_caller_saved {
    () => {
        "stp x2,  x3,  [sp, #16]
         stp x4,  x5,  [sp, #32]
         stp x6,  x7,  [sp, #48]
         stp x8,  x9,  [sp, #64]
         stp x10, x11, [sp, #80]
         stp x12, x13, [sp, #96]
         stp x14, x15, [sp, #112]
         stp x16, x17, [sp, #128]
         stp x18, x19, [sp, #144]
         str x30,      [sp, #240]"
    };
}

/// The rest: x20-x29.
macro_rules! save_callee_saved {
    () => {
        "stp x20, x21, [sp, #160]
         stp x22, x23, [sp, #176]
         stp x24, x25, [sp, #192]
         stp x26, x27, [sp, #208]
         stp x28, x29, [sp, #224]"
    };
}

macro_rules! restore_caller_saved {
    () => {
        "ldp x0,  x1,  [sp]
         ldp x2,  x3,  [sp, #16]
         ldp x4,  x5,  [sp, #32]
         ldp x6,  x7,  [sp, #48]
         ldp x8,  x9,  [sp, #64]
         ldp x10, x11, [sp, #80]
         ldp x12, x13, [sp, #96]
         ldp x14, x15, [sp, #112]
         ldp x16, x17, [sp, #128]
         ldp x18, x19, [sp, #144]
         ldr x30,      [sp, #240]"
    };
}

macro_rules! restore_callee_saved {
    () => {
        "ldp x20, x21, [sp, #160]
         ldp x22, x23, [sp, #176]
         ldp x24, x25, [sp, #192]
         ldp x26, x27, [sp, #208]
         ldp x28, x29, [sp, #224]"
    };
}

/// A vector entry for an exception from a guest: room for the frame, two registers to work with.
macro_rules! guest_entry {
    ($exit:literal) => {
        concat!(
            ".balign 128\n",
            "sub sp, sp, #{frame}\n",
            "stp x0, x1, [sp]\n",
            "b {",
            $exit,
            "}\n"
        )
    };
}

/// A vector entry for an exception from EL2. The stack may be what went wrong: its slot is
/// twice its size and unmapped below (linker.ld), so one address bit tells whether SP still lies
/// in the upper half. The test borrows SP itself, there being no free register.
macro_rules! hyp_entry {
    ($handler:literal) => {
        concat!(
            ".balign 128\n",
            "sub sp, sp, #{frame}\n",
            "add sp, sp, x0\n",
            "sub x0, sp, x0\n",
            "tbz x0, #{slot_bit}, {overflow}\n",
            "sub x0, sp, x0\n",
            "sub sp, sp, x0\n",
            "stp x0, x1, [sp]\n",
            "adr x1, {",
            $handler,
            "}\n",
            "b {hyp_exception}\n"
        )
    };
}

/// log2 of the stack's size, half a slot: set in every good SP (linker.ld, `STACK_SLOT_SIZE`).
const STACK_BIT: u32 = 15;

/// The same on a CPU with FEAT_RAS: an error that the guest has left pending is the guest's, so it is
/// looked for before anything else is done (ESB, here by its number as a hint; Arm ARM, "RAS PE
/// Architecture"). EL2 masks SErrors, so it ends up in DISR_EL1.
macro_rules! guest_entry_with_barrier {
    ($exit:literal) => {
        concat!(
            ".balign 128\n",
            "hint #16\n",
            "sub sp, sp, #{frame}\n",
            "stp x0, x1, [sp]\n",
            "mrs x0, s3_0_c12_c1_1\n",
            "cbnz x0, {",
            $exit,
            "_deferred}\n",
            "b {",
            $exit,
            "}\n"
        )
    };
}

/// A vector table, in a section to itself: linker.ld aligns it.
macro_rules! vector_table {
    ($name:ident, $section:literal, $guest_entry:ident $(, $more:ident)*) => {
        #[unsafe(naked)]
        #[unsafe(link_section = $section)]
        pub unsafe extern "C" fn $name() {
            naked_asm!(
                // Current EL with SP0: EL2 never selects it.
                hyp_entry!("unexpected"),
                hyp_entry!("unexpected"),
                hyp_entry!("unexpected"),
                hyp_entry!("unexpected"),
                // Current EL with SPx.
                hyp_entry!("sync"),
                hyp_entry!("unexpected"),
                hyp_entry!("unexpected"),
                hyp_entry!("serror"),
                // Lower EL, AArch64.
                $guest_entry!("guest_sync"),
                $guest_entry!("guest_irq"),
                $guest_entry!("guest_irq"),
                $guest_entry!("guest_serror"),
                // Lower EL, AArch32: EL0 of a guest.
                $guest_entry!("guest_sync"),
                $guest_entry!("guest_irq"),
                $guest_entry!("guest_irq"),
                $guest_entry!("guest_serror"),
                frame = const GUEST_FRAME_SIZE,
                slot_bit = const STACK_BIT,
                overflow = sym stack_overflow,
                hyp_exception = sym hyp_exception,
                unexpected = sym unexpected_exception,
                sync = sym super::fault::hyp_sync,
                serror = sym super::fault::hyp_serror,
                guest_sync = sym guest_sync,
                guest_irq = sym guest_irq,
                guest_serror = sym guest_serror,
                $($more = sym $more,)*
            )
        }
    };
}

vector_table!(vectors, ".text.vectors", guest_entry);
vector_table!(
    vectors_with_barrier,
    ".text.vectors_with_barrier",
    guest_entry_with_barrier,
    guest_sync_deferred,
    guest_irq_deferred,
    guest_serror_deferred
);

/// The calling CPU looks for errors that its guest has left pending, if it can.
pub fn look_for_deferred(features: &super::features::Features) {
    if features.ras {
        VBAR_EL2.set(vectors_with_barrier as *const () as u64);
        aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
    }
}

/// A guest's exit before which it left an error: x0 is DISR_EL1, x0 and x1 are saved. That is seen to
/// first, then the exit as any other.
macro_rules! deferred {
    ($name:ident, $next:ident) => {
        #[unsafe(naked)]
        #[unsafe(link_section = ".text.boot")]
        unsafe extern "C" fn $name() {
            naked_asm!(
                save_caller_saved!(),
                save_callee_saved!(),
                "mov x1, x0",
                "mov x0, sp",
                "bl  {deferred}",
                restore_callee_saved!(),
                restore_caller_saved!(),
                "b   {next}",
                deferred = sym crate::exit::guest_deferred,
                next = sym $next,
            )
        }
    };
}

deferred!(guest_sync_deferred, guest_sync);
deferred!(guest_irq_deferred, guest_irq);
deferred!(guest_serror_deferred, guest_serror);

/// The error that EL2 itself has left pending since it was entered, if there is one, by its syndrome in
/// DISR_EL1, where it is no more. To be asked on a CPU with FEAT_RAS, before its guest goes on, which
/// would be blamed for it.
pub fn take_own_error() -> u64 {
    let disr: u64;
    // SAFETY: ESB, and a register of FEAT_RAS, which the caller says is there.
    unsafe {
        core::arch::asm!("hint #16", "mrs {}, s3_0_c12_c1_1", out(reg) disr,
                         options(nostack, preserves_flags));
    }
    if disr != 0 {
        forget_deferred();
    }
    disr
}

/// DISR_EL1 has been seen to. Only on a CPU with FEAT_RAS.
pub fn forget_deferred() {
    // SAFETY: as above.
    unsafe { core::arch::asm!("msr s3_0_c12_c1_1, xzr", options(nostack, preserves_flags)) };
}

/// A synchronous exception from a guest. x0 and x1 are saved.
#[unsafe(naked)]
#[unsafe(link_section = ".text.boot")]
unsafe extern "C" fn guest_sync() {
    naked_asm!(
        save_caller_saved!(),
        "mov x0, sp",
        "bl  {quick}",
        "tbz w0, #0, 1f",
        restore_caller_saved!(),
        "add sp, sp, #{frame}",
        exception_return!(),
        "1:",
        save_callee_saved!(),
        "mov x0, sp",
        "bl  {sync}",
        restore_callee_saved!(),
        restore_caller_saved!(),
        "add sp, sp, #{frame}",
        exception_return!(),
        frame = const GUEST_FRAME_SIZE,
        quick = sym crate::exit::guest_quick,
        sync = sym crate::exit::guest_sync,
    )
}

/// An exception from a guest that `handler` deals with, without the guest's x20 to x29.
macro_rules! guest_exit {
    ($name:ident, $handler:path) => {
        #[unsafe(naked)]
        #[unsafe(link_section = ".text.boot")]
        unsafe extern "C" fn $name() {
            naked_asm!(
                save_caller_saved!(),
                "mov x0, sp",
                "bl  {handler}",
                restore_caller_saved!(),
                "add sp, sp, #{frame}",
                exception_return!(),
                frame = const GUEST_FRAME_SIZE,
                handler = sym $handler,
            )
        }
    };
}

guest_exit!(guest_irq, crate::exit::guest_irq);
guest_exit!(guest_serror, crate::exit::guest_serror);

/// x1 = handler, x0 and x1 saved. Returns to wherever the handler left ELR_EL2.
#[unsafe(naked)]
#[unsafe(link_section = ".text.boot")]
unsafe extern "C" fn hyp_exception() {
    naked_asm!(
        save_caller_saved!(),
        save_callee_saved!(),
        "add x0, sp, #{frame}",
        "str x0, [sp, #248]",
        "mov x0, sp",
        "blr x1",
        restore_callee_saved!(),
        restore_caller_saved!(),
        "add sp, sp, #{frame}",
        exception_return!(),
        frame = const HYP_FRAME_SIZE,
    )
}

/// The stack is gone: the report has one of its own, for the one CPU that gets to print it. (A
/// second one would spoil it, but meets the same end.)
#[unsafe(naked)]
#[unsafe(link_section = ".text.boot")]
unsafe extern "C" fn stack_overflow() {
    naked_asm!(
        "adrp x0, {stack}",
        "add  x0, x0, :lo12:{stack}",
        "mov  x1, #{size}",
        "add  sp, x0, x1",
        "b    {report}",
        stack = sym EMERGENCY_STACK,
        size = const EMERGENCY_STACK_SIZE,
        report = sym super::fault::stack_overflow,
    )
}

/// Room for one report, and for one fault in it: bit [`STACK_BIT`] is set in every SP inside.
const EMERGENCY_STACK_SIZE: usize = 2 << STACK_BIT;

#[repr(C, align(65536))]
struct EmergencyStack(core::cell::UnsafeCell<[u8; EMERGENCY_STACK_SIZE]>);
const _: () = assert!(align_of::<EmergencyStack>() == EMERGENCY_STACK_SIZE);

// SAFETY: only SP points there, of a CPU that has come to its end.
unsafe impl Sync for EmergencyStack {}

static EMERGENCY_STACK: EmergencyStack =
    EmergencyStack(core::cell::UnsafeCell::new([0; EMERGENCY_STACK_SIZE]));

extern "C" fn unexpected_exception(frame: &HypFrame) {
    super::fault::report_and_stop("unexpected-vector", frame)
}

/// Enters the guest at ELR_EL2/SPSR_EL2 with `frame` in its registers, on a fresh stack.
///
/// # Safety
///
/// EL1 state, ELR_EL2, SPSR_EL2, HCR_EL2 and VTTBR_EL2 must be a guest's, with an address space
/// of its own; `stack_top` must be the top of this CPU's stack; no lock may be held.
#[unsafe(naked)]
pub unsafe extern "C" fn enter_guest(frame: &GuestFrame, stack_top: u64) -> ! {
    naked_asm!(
        "mov  sp, x1",
        "sub  sp, sp, #{frame}",
        "mov  x2, #0",
        "1: ldr x3, [x0, x2]",
        "str  x3, [sp, x2]",
        "add  x2, x2, #8",
        "cmp  x2, #{frame}",
        "b.lo 1b",
        restore_callee_saved!(),
        restore_caller_saved!(),
        "add  sp, sp, #{frame}",
        exception_return!(),
        frame = const GUEST_FRAME_SIZE,
    )
}

/// Leaves whatever this CPU was doing for `then`, on a fresh stack.
///
/// # Safety
///
/// `stack_top` must be the top of this CPU's stack. Nothing on the stack is dropped, so no lock
/// may be held.
#[unsafe(naked)]
pub unsafe extern "C" fn restart(stack_top: u64, then: extern "C" fn() -> !) -> ! {
    naked_asm!("mov sp, x0", "mov x29, #0", "mov x30, #0", "br x1")
}

//! Single instructions, timed by the virtual counter.
//!
//! Where the counter counts instructions (docs/performance.md), a figure is what the instruction costs
//! at all exception levels together, itself included. What reading the counter costs is taken off.
#![expect(unsafe_code, reason = "hypercalls, and registers of emulated devices")]

use super::{interrupts, mmu};
use core::arch::naked_asm;

/// An instruction that a hypervisor handles.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    /// `hvc #0` with this in w0.
    Hypercall(u32),
    /// A read of ID_AA64PFR0_EL1.
    IdRegister,
    /// A 32-bit load from the device register at this IPA, which has no side effect and is mapped.
    Load(DeviceRegister),
}

/// IPA of a 32-bit register of an emulated device that may be read at any time.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceRegister(u64);

impl DeviceRegister {
    /// The register at `ipa`, which must be one that reading does not change. `None` where it cannot
    /// be mapped.
    pub(super) fn map(ipa: u64) -> Option<Self> {
        mmu::map_device(ipa).map(|()| Self(ipa & !3))
    }
}

/// Ticks of the virtual counter that `operation` takes, once.
pub(super) fn once(operation: Operation) -> u64 {
    // SAFETY: the calls change x0 to x3 at most (SMCCC 1.1, 2.6); the address is a mapped device
    // register without side effects, by `DeviceRegister`.
    let (gross, empty) = unsafe {
        let gross = match operation {
            Operation::Hypercall(function) => hypercall(function.into()),
            Operation::IdRegister => id_register(0),
            Operation::Load(register) => load(register.0),
        };
        (gross, nothing(0))
    };
    gross.saturating_sub(empty)
}

/// The physical counter less the virtual one.
pub(super) fn offset() -> u64 {
    let (virtual_, physical): (u64, u64);
    // SAFETY: reads counters.
    unsafe {
        core::arch::asm!(
            "isb",
            "mrs {0}, cntvct_el0",
            "mrs {1}, cntpct_el0",
            out(reg) virtual_,
            out(reg) physical,
            options(nomem, nostack, preserves_flags)
        );
    }
    // The second was read one tick later.
    physical.wrapping_sub(virtual_).wrapping_sub(1)
}

/// Sends the SGI to the vCPU with this affinity; the physical counter just before.
pub(super) fn send(affinity: u64) -> u64 {
    let now = now();
    interrupts::send_to(affinity);
    now
}

/// The physical counter.
pub(super) fn now() -> u64 {
    let now: u64;
    // SAFETY: reads a counter.
    unsafe {
        core::arch::asm!("isb", "mrs {}, cntpct_el0", out(reg) now,
             options(nomem, nostack, preserves_flags));
    }
    now
}

/// Lets other vCPUs go ahead, where an emulator runs one at a time.
pub(super) fn give_way() {
    // SAFETY: a hint.
    unsafe { core::arch::asm!("yield", options(nomem, nostack, preserves_flags)) };
}

/// A function of one argument, in x0, that returns the ticks that its instruction takes.
macro_rules! timed {
    ($name:ident, $($instruction:literal),*) => {
        #[unsafe(naked)]
        unsafe extern "C" fn $name(argument: u64) -> u64 {
            naked_asm!(
                "stp x19, x30, [sp, #-16]!",
                "isb",
                "mrs x19, cntvct_el0",
                $($instruction,)*
                "mrs x0, cntvct_el0",
                "sub x0, x0, x19",
                "ldp x19, x30, [sp], #16",
                "ret",
            )
        }
    };
}

timed!(nothing,);
timed!(hypercall, "hvc #0");
timed!(id_register, "mrs x1, id_aa64pfr0_el1");
timed!(load, "ldr w1, [x0]");

//! UEFI's ResetSystem, on a machine that PSCI does not end (UEFI 2.10, 8.5.1).
//!
//! It is the firmware's code, called at EL2 as an operating system would call it (2.3.6.2): MMU on, its memory where
//! it always was, since nobody sets a virtual address map. That memory is in no map that is in use while
//! guests run, so that EL2 can neither speculate into it nor execute it. A second map has it, built at boot, when
//! there is memory for tables; the CPU that ends the machine goes over to it, and never comes back.
//!
//! The firmware may use FP/SIMD registers (2.3.6.4). What is in them is this CPU's guest's, which will not run again:
//! by now the machine has been given up. Guests on other CPUs run on until it ends; this firmware's memory was never
//! theirs to reach.
#![expect(unsafe_code, reason = "calls the firmware, in a map of its own")]

use super::{boot, crash, mmu};
use cordon::addr::PaRange;
use cordon::platform::efi::ResetService;
use core::arch::naked_asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

// Beside what a crash needs, since that ends the machine too.

/// `TTBR0_EL2` of the firmware's map, 0 for none.
#[unsafe(link_section = ".bss.crash")]
static ROOT: AtomicU64 = AtomicU64::new(0);
/// The function.
#[unsafe(link_section = ".bss.crash")]
static ENTRY: AtomicU64 = AtomicU64::new(0);
/// Somebody has called it. A second call, by who crashes in the first, or by another CPU, would do no better.
#[unsafe(link_section = ".bss.crash")]
static CALLED: AtomicBool = AtomicBool::new(false);

/// `EFI_RESET_TYPE`.
#[derive(Clone, Copy, Debug)]
pub enum How {
    /// `EfiResetCold`.
    Anew = 0,
    /// `EfiResetShutdown`.
    Off = 2,
}

/// From now on `service` can be called. `uart` is for last words meanwhile.
///
/// # Errors
///
/// If what it wants mapped cannot be.
pub fn init(service: &ResetService, uart: Option<PaRange>) -> Result<(), mmu::Error> {
    let root = mmu::firmware_map(service, uart)?;
    ENTRY.store(service.entry.get(), Ordering::Relaxed);
    ROOT.store(root, Ordering::Release);
    Ok(())
}

/// Whether there is one to be called.
pub fn is_there() -> bool {
    ROOT.load(Ordering::Relaxed) != 0
}

/// Calls it. Comes back only where there is none.
pub fn call(how: How) {
    let root = ROOT.load(Ordering::Acquire);
    if root == 0 {
        return;
    }
    if CALLED.swap(true, Ordering::AcqRel) {
        crash::wait_for_ever();
    }
    // SAFETY: `init` has made the map, which has this image, and all that the function there wants. What this
    // CPU was doing is over.
    unsafe { leave(how as u64, ENTRY.load(Ordering::Relaxed), root) }
}

/// Calls the function at `entry` in the map at `root`, from the top of this CPU's stack: 8 KiB have to be free.
///
/// # Safety
///
/// The map must have the image, and what the function wants.
#[unsafe(naked)]
unsafe extern "C" fn leave(how: u64, entry: u64, root: u64) -> ! {
    naked_asm!(
        // A stack begins below a multiple of its slot's size (linker.ld).
        "mov    x3, sp",
        "orr    x3, x3, #{slot} - 1",
        "add    sp, x3, #1",
        "mov    x29, #0",
        "mov    x19, x0",
        "mov    x20, x1",
        // CPTR_EL2.TFP: FP/SIMD is not trapped (Arm ARM D19.2.34, E2H = 0).
        "mrs    x4, cptr_el2",
        "bic    x4, x4, #(1 << 10)",
        "msr    cptr_el2, x4",
        "isb",
        "mov    x0, x2",
        "bl     {switch}",
        "mov    x0, x19",
        "mov    x1, #0",          // EFI_SUCCESS
        "mov    x2, #0",          // no data
        "mov    x3, #0",
        "blr    x20",
        "b      {returned}",
        slot = const super::layout::STACK_SLOT_SIZE,
        switch = sym boot::switch_table,
        returned = sym returned,
    )
}

/// The specification has no such case.
extern "C" fn returned() -> ! {
    crash::add(format_args!(
        "cordon: event=error what=reset-service why=returned"
    ));
    crash::wait_for_ever()
}

//! Started at another exception level than EL2: Cordon says so, and stops.
//!
//! Nothing is set up for this, so it is done with the MMU off, in RAM that is Device memory then: slower,
//! and enough for a line. The heap's lock is taken all the same. Its exclusive accesses work on such memory
//! where the system has a global monitor for it (Arm ARM B2.12.1); where not, this ends in silence.
#![expect(unsafe_code, reason = "reads the device tree as a loader left it")]

use super::{heap, smc, uart};
use aarch64_cpu::registers::{CurrentEL, Readable};
use cordon::platform::fdt::{CheckedFdt, without_nops};
use cordon::platform::machine::{Conduit, Machine};
use core::fmt::Write;

/// Prints where the device tree at `dtb` says that a console is, and turns the machine off if that can be
/// done from here.
pub extern "C" fn say_so(dtb: u64) -> ! {
    heap::init();
    let level = CurrentEL.read(CurrentEL::EL);
    // SAFETY: x0 of a boot protocol that Cordon was started by.
    let tree = unsafe { tree(dtb) };
    let closed_up = tree.and_then(|tree| without_nops(tree).ok().flatten());
    let checked = closed_up.as_deref().or(tree).map(CheckedFdt::new);
    let fdt = checked.and_then(Result::ok);
    let console = fdt.as_ref().and_then(Machine::console);
    let console = console.unwrap_or(uart::VIRT_PL011);
    let mut port = uart::steal(console.kind, console.registers.start().get());
    // The UART does not fail.
    let _ = writeln!(port, "cordon: event=error what=el why=not-el2 el={level}");
    let _ = writeln!(port, "cordon: event=halt reason=not-el2");
    match fdt.as_ref().and_then(Machine::conduit) {
        // At EL3 there is nobody below.
        Some(Conduit::Smc) if level < 3 => smc::system_off(),
        Some(Conduit::Hvc) if level < 2 => smc::system_off_by_hvc(),
        _ => {}
    }
    super::crash::wait_for_ever()
}

/// The device tree at `dtb`, as far as its head says.
///
/// # Safety
///
/// `dtb` must be 0 or the address of memory that nobody writes any more.
unsafe fn tree(dtb: u64) -> Option<&'static [u8]> {
    let start = dtb as *const u8;
    // A tree is at a multiple of 8 (`booting.rst`); with the MMU off, words must be aligned.
    if dtb == 0 || !dtb.is_multiple_of(8) {
        return None;
    }
    // SAFETY: the caller's promise, for a head; and for what the head says, which is bounded.
    unsafe {
        let head = core::slice::from_raw_parts(start, CheckedFdt::HEADER_LEN);
        let size = CheckedFdt::total_size(head).ok()?;
        Some(core::slice::from_raw_parts(start, size))
    }
}

//! The last words of a machine that stops because of Cordon itself.
//!
//! It works when nothing else does: no lock, no allocation, a UART port of its own. A second
//! fault while the report is printed ends the machine at once, and a second CPU that crashes
//! leaves the word to the first.

use super::cpu;
use super::smc;
use super::uart;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

static CRASHED: AtomicBool = AtomicBool::new(false);

/// Prints what `report` writes, then turns the machine off.
pub fn stop(report: impl FnOnce(&mut dyn Write) -> fmt::Result) -> ! {
    if CRASHED.swap(true, Ordering::AcqRel) {
        smc::system_off();
    }
    let mut port = uart::steal();
    let number = cpu::try_this().map_or(0, |cpu| cpu.index);
    // A UART that does not print leaves nothing to do but stop, which follows.
    let _ = writeln!(port, "\ncordon: event=crash cpu={number}");
    let _ = report(&mut port);
    let _ = writeln!(port, "cordon: event=halt reason=hypervisor-error");
    smc::system_off()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    stop(|out| writeln!(out, "cordon: panic: {info}"))
}

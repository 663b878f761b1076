//! The last words of a machine that stops because of Cordon itself.
//!
//! It works when nothing else does: no lock, no allocation, a UART port of its own. It touches as
//! little of Cordon's memory as it can, the console's lock included, which may lie in the very page
//! that went bad. A second fault while the report is printed ends the machine at once. A second
//! CPU that crashes leaves the word to the first.

use super::cpu;
use super::smc;
use super::uart;
use aarch64_cpu::registers::{MPIDR_EL1, Readable};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};

/// The MPIDR of the CPU that crashed first.
static CRASHED: AtomicU64 = AtomicU64::new(NOBODY);
/// No MPIDR: bit 31 of one is RES1.
const NOBODY: u64 = 0;

/// Prints what `report` writes, then turns the machine off.
pub fn stop(report: impl FnOnce(&mut dyn Write) -> fmt::Result) -> ! {
    let own = MPIDR_EL1.get();
    match CRASHED.compare_exchange(NOBODY, own, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        Err(first) if first == own => smc::system_off(),
        Err(_) => wait_for_ever(),
    }
    let mut port = uart::steal();
    let number = cpu::try_this().map_or(0, |cpu| cpu.index);
    // A UART that does not print leaves nothing to do but stop, which follows.
    let _ = writeln!(port, "\ncordon: event=crash cpu={number}");
    let _ = report(&mut port);
    let _ = writeln!(port, "cordon: event=halt reason=hypervisor-error");
    smc::system_off()
}

/// Leaves it to another CPU to stop the machine.
pub fn wait_for_ever() -> ! {
    loop {
        aarch64_cpu::asm::wfi();
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    stop(|out| writeln!(out, "cordon: panic: {info}"))
}

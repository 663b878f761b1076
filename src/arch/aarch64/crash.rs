//! The last words of a machine that stops because of Cordon itself.
//!
//! It works when nothing else does: no lock, no allocation, a UART port of its own. Any static may
//! lie in the very page that went bad, the console's lock and this CPU's record included; so what a
//! crash needs to remember is in a page of its own (linker.ld, `.bss.crash`), and it touches no
//! other. A second fault while the report is printed ends the machine at once. A second CPU that
//! crashes leaves the word to the first.
#![expect(unsafe_code, reason = "puts statics into a section of their own")]

use super::power;
use super::uart;
use aarch64_cpu::registers::{MPIDR_EL1, Readable};
use cordon::platform::machine::UartKind;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// The MPIDR of the CPU that crashed first.
#[unsafe(link_section = ".bss.crash")]
static CRASHED: AtomicU64 = AtomicU64::new(NOBODY);
/// No MPIDR: bit 31 of one is RES1.
const NOBODY: u64 = 0;

/// Where the UART is, 0 for nowhere.
#[unsafe(link_section = ".bss.crash")]
static UART: AtomicU64 = AtomicU64::new(0);
/// What it is, as [`UartKind::to_bits`] has it.
#[unsafe(link_section = ".bss.crash")]
static UART_KIND: AtomicU32 = AtomicU32::new(0);

/// The report is out, and what was left to be said before it is being printed.
#[unsafe(link_section = ".bss.crash")]
static FLUSHING: AtomicBool = AtomicBool::new(false);

/// Remembers where the UART is, and what it is.
pub fn remember_uart(kind: UartKind, base: u64) {
    UART_KIND.store(kind.to_bits(), Ordering::Relaxed);
    UART.store(base, Ordering::Relaxed);
}

fn port() -> uart::Port {
    let kind = UartKind::from_bits(UART_KIND.load(Ordering::Relaxed));
    uart::steal(kind, UART.load(Ordering::Relaxed))
}

/// Prints what `report` writes, then turns the machine off.
pub fn stop(report: impl FnOnce(&mut dyn Write) -> fmt::Result) -> ! {
    let own = MPIDR_EL1.get();
    match CRASHED.compare_exchange(NOBODY, own, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        Err(first) if first == own => {
            if FLUSHING.load(Ordering::Relaxed) {
                say_halt(&mut port());
            }
            power::off()
        }
        Err(_) => wait_for_ever(),
    }
    let mut port = port();
    // A UART that does not print leaves nothing to do but stop, which follows.
    let _ = writeln!(port, "\ncordon: event=crash mpidr={own:#x}");
    let _ = report(&mut port);
    // Statics that may have gone bad: the report comes first.
    FLUSHING.store(true, Ordering::Relaxed);
    if let Some(hypervisor) = crate::machine::HYPERVISOR.get() {
        (hypervisor.ras.journal).drain_by_force(hypervisor, |line| {
            let _ = writeln!(port, "ras: {line}");
        });
    }
    say_halt(&mut port);
    power::off()
}

/// Prints a line, whatever holds the console.
pub fn add(line: fmt::Arguments<'_>) {
    // As above.
    let _ = writeln!(port(), "{line}");
}

fn say_halt(port: &mut uart::Port) {
    let _ = writeln!(port, "cordon: event=halt reason=hypervisor-error");
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

//! The console's PL011, and the `log` backend behind which all of Cordon's lines go there.
//!
//! A record's target is the line's prefix: `log::info!(target: "ras", "event=...")` prints
//! `ras: event=...`; everything without a target of its own is `cordon: `.
#![expect(unsafe_code, reason = "device registers")]

use super::{crash, mmu};
use crate::machine;
use arm_pl011_uart::{Interrupts, PL011Registers, Uart, UniqueMmioPointer};
use cordon::addr::{PAGE_SIZE, Pa, PaRange};
use cordon::console::{Screen, Switchboard};
use core::fmt;
use core::ptr::NonNull;
use log::{LevelFilter, Log, Metadata, Record};
use spin::{Mutex, MutexGuard};

/// The physical UART, once it is found.
pub struct Port {
    uart: Option<Uart<'static>>,
    /// It did not take a byte for so long that nobody can be listening.
    stuck: bool,
}

/// How often a full FIFO is looked at before its byte is given up: many times what a byte takes
/// at 9600 baud, and not so long that a wire that flow control holds could stop a guest.
const PATIENCE: u32 = 10_000_000;

impl fmt::Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.put(b'\r');
            }
            self.put(byte);
        }
        Ok(())
    }
}

impl Port {
    /// Sends `byte`, or drops it where the FIFO does not drain.
    fn put(&mut self, byte: u8) {
        let Some(uart) = &mut self.uart else { return };
        let patience = if self.stuck { 1 } else { PATIENCE };
        self.stuck = !(0..patience).any(|_| !uart.is_tx_fifo_full());
        if !self.stuck {
            uart.write_word(byte);
        }
    }

    /// Whether there is to be an interrupt when something is typed.
    fn announce_input(&mut self, wanted: bool) {
        let interrupts = Interrupts::RXI | Interrupts::RTI;
        if let Some(uart) = &mut self.uart {
            uart.set_interrupt_masks(if wanted {
                interrupts
            } else {
                Interrupts::empty()
            });
        }
    }
}

impl Screen for Port {
    fn raw(&mut self, byte: u8) {
        self.put(byte);
    }

    /// Line errors count as nothing typed.
    fn key(&mut self) -> Option<u8> {
        self.uart.as_mut()?.read_word().ok().flatten()
    }
}

/// An interrupt is wanted when something is typed, until [`mute`] is called.
pub fn listen() {
    CONSOLE.lock().sink().announce_input(true);
}

/// No interrupt any more, although what was typed has not been read.
pub fn mute() {
    CONSOLE.lock().sink().announce_input(false);
}

/// The console, for whoever prints: what waits to be said is said first.
pub fn console() -> MutexGuard<'static, Switchboard<Port>> {
    let mut console = CONSOLE.lock();
    machine::say_waiting(&mut console);
    console
}

/// Everything that is printed goes through here. Who prints takes it by [`console`].
pub static CONSOLE: Mutex<Switchboard<Port>> = Mutex::new(Switchboard::new(Port {
    uart: None,
    stuck: false,
}));

struct Logger;

static LOGGER: Logger = Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let prefix = if record.target() == "ras" {
            "ras"
        } else {
            "cordon"
        };
        // The UART does not fail, and there is nobody else to tell.
        let _ = console().line(format_args!("{prefix}: {}", record.args()));
    }

    fn flush(&self) {}
}

/// Where QEMU's `virt` has its first PL011 (`hw/arm/virt.c`, VIRT_UART0).
pub const VIRT_PL011: Pa = Pa::new(0x0900_0000);

/// Starts printing on the PL011 at `base`, at the level `level`.
///
/// # Errors
///
/// If the registers cannot be mapped.
pub fn init(base: Pa, level: LevelFilter) -> Result<(), mmu::Error> {
    if let Some(range) = PaRange::new(base, PAGE_SIZE) {
        mmu::map_device(range)?;
    }
    CONSOLE.lock().sink().uart = open(base.get());
    crash::remember_uart(base.get());
    // Fails only if there is a logger already.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
    Ok(())
}

/// The port as firmware or QEMU left it: its line settings are none of Cordon's business.
fn open(base: u64) -> Option<Uart<'static>> {
    let registers = NonNull::new(base as *mut PL011Registers)?;
    // SAFETY: mapped as device memory for good, and no other driver has it: `map_device` refuses
    // a second one.
    Some(Uart::new(unsafe { UniqueMmioPointer::new(registers) }))
}

/// A port of one's own on the UART at `base`, bypassing the lock: only for the last words of a machine that stops.
pub fn steal(base: u64) -> Port {
    Port {
        uart: open(base),
        stuck: false,
    }
}

//! The console's UART, and the `log` backend behind which all of Cordon's lines go there.
//!
//! A record's target is the line's prefix: `log::info!(target: "ras", "event=...")` prints
//! `ras: event=...`; everything without a target of its own is `cordon: `.
#![expect(unsafe_code, reason = "device registers")]

mod driver;

use super::{crash, mmu};
use crate::machine;
use cordon::addr::{PAGE_SIZE, Pa, PaRange};
use cordon::console::{Screen, Switchboard};
use cordon::platform::machine::{HostUart, UartKind};
use core::fmt;
use driver::AnyUart;
use log::{LevelFilter, Log, Metadata, Record};
use spin::{Mutex, MutexGuard};

/// The physical UART, once it is found.
pub struct Port {
    uart: Option<AnyUart>,
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
        let uart = uart.driver();
        let patience = if self.stuck { 1 } else { PATIENCE };
        self.stuck = !(0..patience).any(|_| !uart.is_full());
        if !self.stuck {
            uart.send(byte);
        }
    }

    /// Whether there is to be an interrupt when something is typed.
    fn announce_input(&mut self, wanted: bool) {
        if let Some(uart) = &mut self.uart {
            uart.driver().announce_input(wanted);
        }
    }
}

impl Screen for Port {
    fn raw(&mut self, byte: u8) {
        self.put(byte);
    }

    /// Line errors count as nothing typed.
    fn key(&mut self) -> Option<u8> {
        self.uart.as_mut()?.driver().receive()
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
pub const VIRT_PL011: HostUart = HostUart {
    kind: UartKind::Pl011,
    registers: match PaRange::new(Pa::new(0x0900_0000), PAGE_SIZE) {
        Some(range) => range,
        None => unreachable!(),
    },
};

/// Starts printing on `uart`, at the level `level`.
///
/// # Errors
///
/// If the registers cannot be mapped.
pub fn init(uart: &HostUart, level: LevelFilter) -> Result<(), mmu::Error> {
    let base = uart.registers.start();
    // What a node says of the size is no matter: all registers of each kind are in one page.
    if let Some(range) = PaRange::new(base, PAGE_SIZE) {
        mmu::map_device(range)?;
    }
    // SAFETY: mapped as device memory for good, and no other driver has it: `map_device` refuses a
    // second one.
    CONSOLE.lock().sink().uart = unsafe { AnyUart::open(uart.kind, base.get()) };
    crash::remember_uart(uart.kind, base.get());
    // Fails only if there is a logger already.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
    Ok(())
}

/// A port of one's own on the UART at `base`, bypassing the lock: only for the last words of a machine that stops.
pub fn steal(kind: UartKind, base: u64) -> Port {
    Port {
        // SAFETY: the UART of `init`, or with the MMU off that of the device tree; whoever drove it
        // does not come to a next register access of consequence any more.
        uart: unsafe { AnyUart::open(kind, base) },
        stuck: false,
    }
}

//! The secure UART, which is the firmware's console, and the normal world's for last words.
#![expect(unsafe_code, reason = "UARTs are made from addresses")]

use core::fmt;
use core::ptr::NonNull;

use arm_pl011_uart::{
    DataBits, Interrupts, LineConfig, PL011Registers, Parity, StopBits, Uart, UniqueMmioPointer,
};
use cordon_firmware::layout::{SECURE_UART_BASE, UART0_BASE};
use spin::Mutex;

const LINE: LineConfig = LineConfig {
    data_bits: DataBits::Bits8,
    parity: Parity::None,
    stop_bits: StopBits::One,
};
const BAUD: u32 = 115_200;
/// `apb-pclk` in QEMU's device tree.
const CLOCK: u32 = 24_000_000;

/// How often a full transmit FIFO is looked at before the rest of the line is dropped: nobody reads,
/// and the normal world must not stand still for that.
const FULL_TRIES: u32 = 1_000_000;

/// The secure UART. A whole line is written under one lock.
static CONSOLE: Mutex<Option<Uart<'static>>> = Mutex::new(None);

/// The driver for the UART at `base`.
fn uart(base: u64) -> Option<Uart<'static>> {
    let registers = NonNull::new(core::ptr::with_exposed_provenance_mut::<PL011Registers>(
        usize::try_from(base).ok()?,
    ))?;
    // SAFETY: a PL011 is there, mapped as device memory for ever. The pointer is unique for the
    // secure UART but for `last_words`, after which nothing else runs on this CPU; UART 0 is only
    // used there.
    Some(Uart::new(unsafe { UniqueMmioPointer::new(registers) }))
}

/// Sets the secure UART up, its receive interrupt still masked.
pub(crate) fn init() {
    let mut console = CONSOLE.lock();
    *console = uart(SECURE_UART_BASE);
    if let Some(uart) = console.as_mut() {
        // The divisor for these two rates exists.
        let _ = uart.enable(LINE, BAUD, CLOCK);
        uart.set_interrupt_masks(Interrupts::empty());
    }
}

/// Lets received bytes interrupt: at the FIFO's trigger level, and when some wait below it.
pub(crate) fn enable_receive_interrupt() {
    if let Some(uart) = CONSOLE.lock().as_mut() {
        uart.set_interrupt_masks(Interrupts::RXI | Interrupts::RTI);
    }
}

/// The next received byte. One that came with an error is dropped.
pub(crate) fn read() -> Option<u8> {
    let mut console = CONSOLE.lock();
    let uart = console.as_mut()?;
    uart.clear_interrupts(Interrupts::RXI | Interrupts::RTI);
    loop {
        if let Ok(byte) = uart.read_word() {
            return byte;
        }
    }
}

/// Writes a whole line to the secure UART.
pub(crate) fn write(line: &str) {
    if let Some(uart) = CONSOLE.lock().as_mut() {
        send(uart, line);
    }
}

/// Writes to both UARTs, past the lock, which a CPU that failed may hold.
pub(crate) fn last_words(line: &str) {
    for base in [SECURE_UART_BASE, UART0_BASE] {
        if let Some(mut uart) = uart(base) {
            if base == UART0_BASE {
                let _ = uart.enable(LINE, BAUD, CLOCK);
            }
            send(&mut uart, line);
        }
    }
}

fn send(uart: &mut Uart<'_>, text: &str) {
    for byte in text.bytes() {
        if (0..FULL_TRIES).all(|_| uart.is_tx_fifo_full()) {
            return;
        }
        uart.write_word(byte);
    }
}

/// A line being made. What does not fit is cut off.
pub(crate) struct Line {
    bytes: [u8; 256],
    length: usize,
}

impl Line {
    /// An empty one.
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [0; 256],
            length: 0,
        }
    }

    /// What was written to it.
    pub(crate) fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..self.length).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or("! cut\n")
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length + text.len();
        let room = self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

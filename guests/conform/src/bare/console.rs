//! The console: a PL011, polled, out only.

use super::mmio;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use spin::Mutex;

const DR: u64 = 0x00;
const FR: u64 = 0x18;
const CR: u64 = 0x30;
/// UARTCR: transmission and the UART itself are on.
const CR_ON: u64 = 1 << 9 | 1 << 8 | 1;
/// UARTFR.TXFF.
const FULL: u64 = 1 << 5;

static UART: AtomicU64 = AtomicU64::new(0);
/// How often the lock is tried before a line is printed without it.
const TRIES: u32 = 10_000_000;

static LOCK: Mutex<()> = Mutex::new(());

/// The UART is at this address.
pub(super) fn init(uart: u64) {
    mmio::write32(uart + CR, CR_ON);
    UART.store(uart, Relaxed);
}

/// Where it is.
pub(super) fn uart() -> u64 {
    UART.load(Relaxed)
}

/// Prints `guest: ` and a line.
pub(super) fn print(line: fmt::Arguments<'_>) {
    // The holder may have been interrupted for good.
    let _lock = (0..TRIES).find_map(|_| LOCK.try_lock());
    // It cannot fail.
    let _ = write!(Out, "guest: {line}\r\n");
}

/// One character, as it is.
pub(super) fn put(byte: u8) {
    let uart = uart();
    if uart == 0 {
        return;
    }
    while mmio::read32(uart + FR) & FULL != 0 {}
    mmio::write32(uart + DR, byte.into());
}

struct Out;

impl Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(put);
        Ok(())
    }
}

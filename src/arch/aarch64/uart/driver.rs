//! The UARTs that there are drivers for, behind one trait.
#![expect(unsafe_code, reason = "device registers")]

use arm_pl011_uart::{Interrupts, PL011Registers, Uart, UniqueMmioPointer};
use cordon::platform::imx_uart::{ImxUart, Registers};
use cordon::platform::machine::UartKind;
use core::ptr::{NonNull, read_volatile, write_volatile};

/// What a console asks of a UART.
pub(super) trait Driver {
    /// Whether a byte that is sent now would be lost.
    fn is_full(&self) -> bool;

    /// Sends a byte.
    fn send(&mut self, byte: u8);

    /// A byte that was received, if one is waiting. Line errors count as nothing received.
    fn receive(&mut self) -> Option<u8>;

    /// Whether there is to be an interrupt when something is received.
    fn announce_input(&mut self, wanted: bool);
}

impl Driver for Uart<'_> {
    fn is_full(&self) -> bool {
        self.is_tx_fifo_full()
    }

    fn send(&mut self, byte: u8) {
        self.write_word(byte);
    }

    fn receive(&mut self) -> Option<u8> {
        self.read_word().ok().flatten()
    }

    fn announce_input(&mut self, wanted: bool) {
        self.set_interrupt_masks(if wanted {
            Interrupts::RXI | Interrupts::RTI
        } else {
            Interrupts::empty()
        });
    }
}

impl<R: Registers> Driver for ImxUart<R> {
    fn is_full(&self) -> bool {
        ImxUart::is_full(self)
    }

    fn send(&mut self, byte: u8) {
        ImxUart::send(self, byte);
    }

    fn receive(&mut self) -> Option<u8> {
        ImxUart::receive(self)
    }

    fn announce_input(&mut self, wanted: bool) {
        ImxUart::announce_input(self, wanted);
    }
}

/// The registers of an i.MX UART.
pub(super) struct ImxRegisters(u64);

impl Registers for ImxRegisters {
    fn read(&self, offset: u64) -> u32 {
        // SAFETY: `open`'s caller promised the registers; `ImxUart` asks for its own only, which are
        // aligned.
        unsafe { read_volatile((self.0 + offset) as *const u32) }
    }

    fn write(&mut self, offset: u64, value: u32) {
        // SAFETY: as above; no register of this device refers to memory but those of its DMA, which
        // `ImxUart` does not use.
        unsafe { write_volatile((self.0 + offset) as *mut u32, value) }
    }
}

/// One of them.
pub(super) enum AnyUart {
    Pl011(Uart<'static>),
    Imx(ImxUart<ImxRegisters>),
}

impl AnyUart {
    /// The UART as firmware or QEMU left it: its line settings are none of Cordon's business. `None`
    /// for address 0.
    ///
    /// # Safety
    ///
    /// `base` must be the address of such a UART's registers, mapped as device memory for good, or
    /// used with the MMU off; no other driver may be in use.
    pub(super) unsafe fn open(kind: UartKind, base: u64) -> Option<Self> {
        let registers = NonNull::new(base as *mut PL011Registers)?;
        Some(match kind {
            // SAFETY: the caller's promise.
            UartKind::Pl011 => Self::Pl011(Uart::new(unsafe { UniqueMmioPointer::new(registers) })),
            UartKind::Imx => Self::Imx(ImxUart::new(ImxRegisters(base))),
        })
    }

    /// Whatever it is.
    pub(super) fn driver(&mut self) -> &mut dyn Driver {
        match self {
            Self::Pl011(uart) => uart,
            Self::Imx(uart) => uart,
        }
    }
}

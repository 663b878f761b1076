//! The UARTs that there are drivers for, behind one trait.
#![expect(unsafe_code, reason = "device registers")]

use arm_pl011_uart::{Interrupts, PL011Registers, Uart, UniqueMmioPointer};
use cordon::platform::machine::UartKind;
use cordon::platform::uart::Registers;
use cordon::platform::uart::cadence::Cadence;
use cordon::platform::uart::imx::ImxUart;
use cordon::platform::uart::ns16550::Ns16550;
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

/// The library's drivers have what is asked for under the same names.
macro_rules! drivers {
    ($($kind:ident),*) => {$(
        impl<R: Registers> Driver for $kind<R> {
            fn is_full(&self) -> bool {
                $kind::is_full(self)
            }

            fn send(&mut self, byte: u8) {
                $kind::send(self, byte);
            }

            fn receive(&mut self) -> Option<u8> {
                $kind::receive(self)
            }

            fn announce_input(&mut self, wanted: bool) {
                $kind::announce_input(self, wanted);
            }
        }
    )*};
}

drivers!(ImxUart, Cadence, Ns16550);

/// Registers in memory.
pub(super) struct DeviceRegisters {
    base: u64,
    /// Each access is of 32 bits, not of 8.
    words: bool,
}

impl Registers for DeviceRegisters {
    fn read(&self, offset: u64) -> u32 {
        let at = self.base + offset;
        // SAFETY: `open`'s caller promised the registers; a driver asks for its own only, which are aligned where
        // they are words.
        unsafe {
            match self.words {
                true => read_volatile(at as *const u32),
                false => read_volatile(at as *const u8).into(),
            }
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        let at = self.base + offset;
        let [byte, ..] = value.to_le_bytes();
        // SAFETY: as above; no register that a driver uses refers to memory.
        unsafe {
            match self.words {
                true => write_volatile(at as *mut u32, value),
                false => write_volatile(at as *mut u8, byte),
            }
        }
    }
}

/// One of them.
pub(super) enum AnyUart {
    Pl011(Uart<'static>),
    Imx(ImxUart<DeviceRegisters>),
    Cadence(Cadence<DeviceRegisters>),
    Ns16550(Ns16550<DeviceRegisters>),
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
        let device = |words| DeviceRegisters { base, words };
        Some(match kind {
            // SAFETY: the caller's promise.
            UartKind::Pl011 => Self::Pl011(Uart::new(unsafe { UniqueMmioPointer::new(registers) })),
            UartKind::Imx => Self::Imx(ImxUart::new(device(true))),
            UartKind::Cadence => Self::Cadence(Cadence::new(device(true))),
            UartKind::Ns16550(layout) => Self::Ns16550(Ns16550::new(device(layout.words), layout)),
        })
    }

    /// Whatever it is.
    pub(super) fn driver(&mut self) -> &mut dyn Driver {
        match self {
            Self::Pl011(uart) => uart,
            Self::Imx(uart) => uart,
            Self::Cadence(uart) => uart,
            Self::Ns16550(uart) => uart,
        }
    }
}

//! The i.MX UART, as far as a console needs it.
//!
//! The line's settings are the boot loader's; receiver and transmitter are switched on, since a loader
//! that only printed may have left the first one off. Registers and bits are those of the i.MX 8M Mini
//! Applications Processor Reference Manual, 16.2.14, and the same on all i.MX from the i.MX21 on.

use super::Registers;

const URXD: u64 = 0x00;
const UTXD: u64 = 0x40;
const UCR1: u64 = 0x80;
const UCR2: u64 = 0x84;
const UCR4: u64 = 0x8c;
const USR2: u64 = 0x98;
const UTS: u64 = 0xb4;

/// URXD: break, framing error, parity error. An overrun (bit 13) says that what came later is lost,
/// and nothing against this character.
const URXD_BAD: u32 = 1 << 12 | 1 << 11 | 1 << 10;
/// UCR1: the UART is on.
const UARTEN: u32 = 1 << 0;
/// UCR2: no software reset, which 0 would be; receiver and transmitter on.
const SRST: u32 = 1 << 0;
const RXEN: u32 = 1 << 1;
const TXEN: u32 = 1 << 2;
/// UCR4: an interrupt while USR2.RDR.
const DREN: u32 = 1 << 0;
/// USR2: at least one character was received.
const RDR: u32 = 1 << 0;
/// UTS: the transmit FIFO has no room.
const TXFULL: u32 = 1 << 4;

/// Characters that the receive FIFO can hold.
const FIFO: u32 = 32;

/// An i.MX UART behind its registers.
#[derive(Debug)]
pub struct ImxUart<R> {
    registers: R,
}

impl<R: Registers> ImxUart<R> {
    /// The UART, ready to send and to receive, without interrupts as long as nobody wants them.
    pub fn new(mut registers: R) -> Self {
        let on = registers.read(UCR1) | UARTEN;
        registers.write(UCR1, on);
        let both = registers.read(UCR2) | SRST | RXEN | TXEN;
        registers.write(UCR2, both);
        Self { registers }
    }

    /// Whether a character that is sent now would be lost.
    pub fn is_full(&self) -> bool {
        self.registers.read(UTS) & TXFULL != 0
    }

    /// Sends a character.
    pub fn send(&mut self, byte: u8) {
        self.registers.write(UTXD, u32::from(byte));
    }

    /// A character that was received in good order; others are passed over.
    pub fn receive(&mut self) -> Option<u8> {
        for _ in 0..FIFO {
            if self.registers.read(USR2) & RDR == 0 {
                return None;
            }
            let word = self.registers.read(URXD);
            if word & URXD_BAD == 0 {
                let [byte, ..] = word.to_le_bytes();
                return Some(byte);
            }
        }
        None
    }

    /// Whether there is to be an interrupt when something was received.
    pub fn announce_input(&mut self, wanted: bool) {
        let old = self.registers.read(UCR4) & !DREN;
        self.registers
            .write(UCR4, if wanted { old | DREN } else { old });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::{BTreeMap, VecDeque};
    use alloc::vec::Vec;
    use core::cell::RefCell;

    /// The registers' behaviour, by the manual.
    #[derive(Default)]
    struct Fake {
        values: BTreeMap<u64, u32>,
        received: RefCell<VecDeque<u32>>,
        sent: Vec<u32>,
        resets: usize,
    }

    impl Registers for Fake {
        fn read(&self, offset: u64) -> u32 {
            let mut received = self.received.borrow_mut();
            match offset {
                URXD => received.pop_front().expect("RDR was looked at") | 1 << 15,
                USR2 => u32::from(!received.is_empty()) | 1 << 3,
                _ => self.values.get(&offset).copied().unwrap_or(0),
            }
        }

        fn write(&mut self, offset: u64, value: u32) {
            match offset {
                UTXD => self.sent.push(value),
                UCR2 if value & 1 == 0 => self.resets += 1,
                _ => {
                    self.values.insert(offset, value);
                }
            }
        }
    }

    fn uart(received: &[u32]) -> ImxUart<Fake> {
        let mut fake = Fake::default();
        fake.received.borrow_mut().extend(received);
        // Eight bits, no flow control: the loader's settings.
        fake.values.insert(UCR2, 0x4024);
        ImxUart::new(fake)
    }

    #[test]
    fn it_is_switched_on_without_a_reset_of_its_settings() {
        let uart = uart(&[]);
        assert_eq!(uart.registers.resets, 0);
        assert_eq!(uart.registers.values[&UCR2], 0x4024 | 0b111);
        assert_eq!(uart.registers.values[&UCR1], 1);
    }

    #[test]
    fn what_was_received_comes_in_order_and_damaged_characters_do_not() {
        let received = [
            u32::from(b'a'),
            1 << 12,
            1 << 11,
            u32::from(b'b') | 1 << 14 | 1 << 13,
        ];
        let mut uart = uart(&received);
        assert_eq!(uart.receive(), Some(b'a'));
        assert_eq!(uart.receive(), Some(b'b'), "an overrun is the next one's");
        assert_eq!(uart.receive(), None);
    }

    #[test]
    fn a_line_of_nothing_but_breaks_ends() {
        assert_eq!(uart(&[1 << 11; 100]).receive(), None);
    }

    #[test]
    fn characters_are_sent_while_there_is_room() {
        let mut uart = uart(&[]);
        assert!(!uart.is_full());
        uart.send(b'x');
        assert_eq!(uart.registers.sent, [u32::from(b'x')]);
        uart.registers.values.insert(UTS, 1 << 4);
        assert!(uart.is_full());
    }

    #[test]
    fn its_interrupt_is_that_of_input_alone() {
        let mut uart = uart(&[]);
        uart.registers.values.insert(UCR4, 0x8000);
        uart.announce_input(true);
        assert_eq!(uart.registers.values[&UCR4], 0x8001);
        uart.announce_input(false);
        assert_eq!(uart.registers.values[&UCR4], 0x8000);
    }
}

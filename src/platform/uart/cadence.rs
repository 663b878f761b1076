//! Cadence's UART, as far as a console needs it: that of Xilinx' Zynq and Zynq UltraScale+.
//!
//! Registers and bits are those of the Zynq UltraScale+ Devices Register Reference (UG1087), module UART.

use super::Registers;

const CONTROL: u64 = 0x00;
const INTERRUPT_ENABLE: u64 = 0x08;
const INTERRUPT_DISABLE: u64 = 0x0c;
const INTERRUPT_STATUS: u64 = 0x14;
const RECEIVE_TRIGGER: u64 = 0x20;
const STATUS: u64 = 0x2c;
const FIFO: u64 = 0x30;

/// Control: receiver and transmitter on, and off, of which the latter wins.
const RXEN: u32 = 1 << 2;
const RXDIS: u32 = 1 << 3;
const TXEN: u32 = 1 << 4;
const TXDIS: u32 = 1 << 5;
/// Status: the receive FIFO is empty, the transmit FIFO has no room.
const REMPTY: u32 = 1 << 1;
const TFUL: u32 = 1 << 4;
/// Interrupts: the receive FIFO has come up to its trigger.
const RTRIG: u32 = 1 << 0;
const ALL: u32 = 0x3fff;

/// A Cadence UART behind its registers.
#[derive(Debug)]
pub struct Cadence<R> {
    registers: R,
}

impl<R: Registers> Cadence<R> {
    /// The UART, ready to send and to receive, without interrupts as long as nobody wants them.
    pub fn new(mut registers: R) -> Self {
        registers.write(INTERRUPT_DISABLE, ALL);
        let old = registers.read(CONTROL) & !(RXDIS | TXDIS);
        registers.write(CONTROL, old | RXEN | TXEN);
        // An interrupt for each character.
        registers.write(RECEIVE_TRIGGER, 1);
        Self { registers }
    }

    /// Whether a character that is sent now would be lost.
    pub fn is_full(&self) -> bool {
        self.registers.read(STATUS) & TFUL != 0
    }

    /// Sends a character.
    pub fn send(&mut self, byte: u8) {
        self.registers.write(FIFO, u32::from(byte));
    }

    /// A character that was received. What was wrong with it the FIFO does not say.
    pub fn receive(&mut self) -> Option<u8> {
        // The interrupt's bit stays until it is cleared: before the FIFO is looked at, so that what comes
        // behind the look sets it again.
        self.registers.write(INTERRUPT_STATUS, RTRIG);
        if self.registers.read(STATUS) & REMPTY != 0 {
            return None;
        }
        let [byte, ..] = self.registers.read(FIFO).to_le_bytes();
        Some(byte)
    }

    /// Whether there is to be an interrupt when something was received.
    pub fn announce_input(&mut self, wanted: bool) {
        let register = if wanted {
            INTERRUPT_ENABLE
        } else {
            INTERRUPT_DISABLE
        };
        self.registers.write(register, RTRIG);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::VecDeque;
    use alloc::vec::Vec;
    use core::cell::RefCell;

    /// The registers' behaviour, by the reference.
    #[derive(Default)]
    struct Fake {
        control: u32,
        mask: u32,
        status: u32,
        trigger: u32,
        full: bool,
        received: RefCell<VecDeque<u8>>,
        sent: Vec<u32>,
    }

    impl Fake {
        fn type_key(&mut self, byte: u8) {
            let mut received = self.received.borrow_mut();
            received.push_back(byte);
            if received.len() >= self.trigger as usize {
                self.status |= RTRIG;
            }
        }

        fn interrupts(&self) -> bool {
            self.mask & self.status != 0
        }
    }

    impl Registers for Fake {
        fn read(&self, offset: u64) -> u32 {
            let mut received = self.received.borrow_mut();
            match offset {
                CONTROL => self.control,
                STATUS => {
                    let empty = if received.is_empty() { REMPTY } else { 0 };
                    empty | if self.full { TFUL } else { 0 }
                }
                FIFO => received.pop_front().expect("REMPTY was looked at").into(),
                other => unreachable!("nobody reads {other:#x}"),
            }
        }

        fn write(&mut self, offset: u64, value: u32) {
            match offset {
                CONTROL => self.control = value,
                INTERRUPT_ENABLE => self.mask |= value,
                INTERRUPT_DISABLE => self.mask &= !value,
                INTERRUPT_STATUS => self.status &= !value,
                RECEIVE_TRIGGER => self.trigger = value,
                FIFO => self.sent.push(value),
                other => unreachable!("nobody writes {other:#x}"),
            }
        }
    }

    fn uart() -> Cadence<Fake> {
        Cadence::new(Fake {
            control: 1 << 8 | TXDIS | RXDIS,
            mask: ALL,
            trigger: 32,
            ..Fake::default()
        })
    }

    #[test]
    fn it_is_switched_on_and_quiet() {
        let uart = uart();
        assert_eq!(uart.registers.control, 1 << 8 | RXEN | TXEN);
        assert_eq!(uart.registers.mask, 0);
    }

    #[test]
    fn each_character_is_announced_once_and_comes_in_order() {
        let mut uart = uart();
        uart.announce_input(true);
        uart.registers.type_key(b'a');
        uart.registers.type_key(b'b');
        assert!(uart.registers.interrupts());
        assert_eq!(uart.receive(), Some(b'a'));
        assert_eq!(uart.receive(), Some(b'b'));
        assert_eq!(uart.receive(), None);
        assert!(!uart.registers.interrupts());
        uart.registers.type_key(b'c');
        assert!(uart.registers.interrupts());
        uart.announce_input(false);
        assert!(!uart.registers.interrupts());
    }

    #[test]
    fn characters_are_sent_while_there_is_room() {
        let mut uart = uart();
        assert!(!uart.is_full());
        uart.send(b'x');
        assert_eq!(uart.registers.sent, [u32::from(b'x')]);
        uart.registers.full = true;
        assert!(uart.is_full());
    }
}

//! The 16550 and what is compatible with it, as far as a console needs it.
//!
//! Registers and bits are those of National Semiconductor's PC16550D; how far apart they are, and how wide an access
//! may be, differs from chip to chip ([`Layout`]). The FIFOs stay as the boot loader has them: switching
//! them on would empty them.

use super::Registers;

/// Where the registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// log2 of the bytes from one register to the next, at most 4.
    pub shift: u8,
    /// Each access is of 32 bits, not of 8.
    pub words: bool,
}

impl Layout {
    /// Eight bytes side by side, as on a PC.
    pub const BYTES: Self = Self {
        shift: 0,
        words: false,
    };
    /// Eight words.
    pub const WORDS: Self = Self {
        shift: 2,
        words: true,
    };

    /// The layout with these properties of a node's (`8250.yaml`), or `None` where no access fits in.
    pub const fn new(shift: u32, width: u32) -> Option<Self> {
        let words = match width {
            1 => false,
            4 => true,
            _ => return None,
        };
        // Words that overlap are none; 16 bytes apart is more than anybody has.
        if shift > 4 || (words && shift < 2) {
            return None;
        }
        let shift = shift.to_le_bytes()[0];
        Some(Self { shift, words })
    }
}

/// RBR and THR; IER; IIR; LCR; MCR; LSR.
const DATA: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;

/// IER: an interrupt when something was received.
const ERBFI: u32 = 1 << 0;
/// IIR: which interrupt; and that which says that something waits in the receive FIFO for long.
const IIR_ID: u32 = 0xf;
const IIR_TIMEOUT: u32 = 0xc;
/// LCR: the first two registers are the divisor's.
const DLAB: u32 = 1 << 7;
/// MCR: on a PC, the interrupt's way out.
const OUT2: u32 = 1 << 3;
/// LSR: something was received; parity error, framing error, break; there is room to send.
const DR: u32 = 1 << 0;
const BAD: u32 = 1 << 2 | 1 << 3 | 1 << 4;
const THRE: u32 = 1 << 5;

/// Characters that the largest receive FIFO can hold.
const FIFO: u32 = 256;

/// A 16550 behind its registers.
#[derive(Debug)]
pub struct Ns16550<R> {
    registers: R,
    shift: u8,
}

impl<R: Registers> Ns16550<R> {
    /// The UART, without interrupts as long as nobody wants them.
    pub fn new(registers: R, layout: Layout) -> Self {
        let shift = layout.shift;
        let mut uart = Self { registers, shift };
        let line = uart.get(LCR);
        if line & DLAB != 0 {
            uart.set(LCR, line & !DLAB);
        }
        uart.set(IER, 0);
        let modem = uart.get(MCR);
        uart.set(MCR, modem | OUT2);
        uart
    }

    /// Whether a character that is sent now could be lost.
    pub fn is_full(&self) -> bool {
        self.get(LSR) & THRE == 0
    }

    /// Sends a character.
    pub fn send(&mut self, byte: u8) {
        self.set(DATA, u32::from(byte));
    }

    /// A character that was received in good order; others are passed over.
    pub fn receive(&mut self) -> Option<u8> {
        for _ in 0..FIFO {
            // Its errors are those of the character that is read next, and gone when this was read.
            let status = self.get(LSR);
            if status & DR == 0 {
                // DesignWare's may say that something waits when nothing does any more, until that is read.
                if self.get(IIR) & IIR_ID == IIR_TIMEOUT {
                    self.get(DATA);
                }
                return None;
            }
            let [byte, ..] = self.get(DATA).to_le_bytes();
            if status & BAD == 0 {
                return Some(byte);
            }
        }
        None
    }

    /// Whether there is to be an interrupt when something was received.
    pub fn announce_input(&mut self, wanted: bool) {
        self.set(IER, if wanted { ERBFI } else { 0 });
    }

    fn get(&self, register: u64) -> u32 {
        self.registers.read(register << self.shift)
    }

    fn set(&mut self, register: u64, value: u32) {
        self.registers.write(register << self.shift, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::{BTreeMap, VecDeque};
    use alloc::vec::Vec;
    use core::cell::{Cell, RefCell};

    /// The registers' behaviour, by the data sheet: a character, and what is wrong with it.
    struct Fake {
        shift: u8,
        values: BTreeMap<u64, u32>,
        received: RefCell<VecDeque<(u8, u32)>>,
        late: Cell<bool>,
        sent: Vec<u32>,
        room: bool,
    }

    impl Registers for Fake {
        fn read(&self, offset: u64) -> u32 {
            assert_eq!(offset & ((1 << self.shift) - 1), 0);
            let register = offset >> self.shift;
            let divisor = self.values.get(&LCR).is_some_and(|line| line & DLAB != 0);
            let mut received = self.received.borrow_mut();
            match register {
                DATA if !divisor => {
                    self.late.set(false);
                    received.pop_front().map_or(0, |(byte, _)| byte.into())
                }
                LSR => {
                    let first = received.front().map_or(0, |(_, errors)| DR | errors);
                    first | if self.room { THRE } else { 0 }
                }
                IIR if self.late.get() => 0xc0 | IIR_TIMEOUT,
                IIR => 0xc1,
                _ => self.values.get(&register).copied().unwrap_or(0),
            }
        }

        fn write(&mut self, offset: u64, value: u32) {
            let register = offset >> self.shift;
            let divisor = self.values.get(&LCR).is_some_and(|line| line & DLAB != 0);
            match register {
                DATA | IER if divisor => unreachable!("the line's speed is the loader's"),
                DATA => self.sent.push(value),
                _ => {
                    self.values.insert(register, value);
                }
            }
        }
    }

    fn uart(layout: Layout, received: &[(u8, u32)]) -> Ns16550<Fake> {
        let fake = Fake {
            shift: layout.shift,
            // Eight bits, left open at the divisor; all interrupts; two outputs.
            values: [(LCR, 0x83), (IER, 0xf), (MCR, 3)].into(),
            received: RefCell::new(received.iter().copied().collect()),
            late: Cell::new(false),
            sent: Vec::new(),
            room: true,
        };
        Ns16550::new(fake, layout)
    }

    #[test]
    fn it_is_taken_over_with_the_loaders_settings_and_quiet() {
        for layout in [Layout::BYTES, Layout::WORDS] {
            let uart = uart(layout, &[]);
            assert_eq!(uart.registers.values[&LCR], 3);
            assert_eq!(uart.registers.values[&IER], 0);
            assert_eq!(uart.registers.values[&MCR], 0xb);
        }
    }

    #[test]
    fn what_was_received_comes_in_order_and_damaged_characters_do_not() {
        let overrun = 1 << 1;
        let received = [(b'a', 0), (0, 1 << 4), (b'x', 1 << 2), (b'b', overrun)];
        let mut uart = uart(Layout::WORDS, &received);
        assert_eq!(uart.receive(), Some(b'a'));
        assert_eq!(uart.receive(), Some(b'b'), "an overrun is the next one's");
        assert_eq!(uart.receive(), None);
        let nothing_but_breaks = [(0, 1 << 4); 300];
        assert_eq!(
            self::uart(Layout::BYTES, &nothing_but_breaks).receive(),
            None
        );
    }

    #[test]
    fn an_interrupt_for_nothing_ends() {
        let mut uart = uart(Layout::BYTES, &[]);
        uart.registers.late.set(true);
        assert_eq!(uart.receive(), None);
        assert!(!uart.registers.late.get());
    }

    #[test]
    fn characters_are_sent_while_there_is_room_and_input_is_announced_when_wanted() {
        let mut uart = uart(Layout::WORDS, &[]);
        assert!(!uart.is_full());
        uart.send(b'x');
        assert_eq!(uart.registers.sent, [u32::from(b'x')]);
        uart.registers.room = false;
        assert!(uart.is_full());
        uart.announce_input(true);
        assert_eq!(uart.registers.values[&IER], 1);
        uart.announce_input(false);
        assert_eq!(uart.registers.values[&IER], 0);
    }

    #[test]
    fn a_layout_that_nobody_could_have_is_none() {
        assert_eq!(Layout::new(0, 1), Some(Layout::BYTES));
        assert_eq!(Layout::new(2, 4), Some(Layout::WORDS));
        for (shift, width) in [(0, 4), (1, 4), (5, 1), (2, 2), (2, 0), (u32::MAX, 1)] {
            assert_eq!(Layout::new(shift, width), None);
        }
    }
}

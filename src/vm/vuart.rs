//! The VM's console: an emulated PL011 (Arm DDI 0183).
//!
//! Its transmitter sends at once, so its FIFO is always empty; its receiver's FIFO is filled from the
//! terminal whenever there is room. Characters have no duration here, so the receive timeout, which
//! tells that fewer of them than the trigger level are waiting, comes at once too.

use super::config::UART;

/// Size in bytes of the register window.
const SIZE: u64 = UART.1;

const DR: u64 = 0x000;
const FR: u64 = 0x018;
const IBRD: u64 = 0x024;
const FBRD: u64 = 0x028;
const LCR_H: u64 = 0x02c;
const CR: u64 = 0x030;
const IFLS: u64 = 0x034;
const IMSC: u64 = 0x038;
const RIS: u64 = 0x03c;
const MIS: u64 = 0x040;
const ICR: u64 = 0x044;
const ID: u64 = 0xfe0;

/// Flags: receive FIFO empty and full, transmit FIFO empty. The transmitter never fills.
const FR_RXFE: u64 = 1 << 4;
const FR_RXFF: u64 = 1 << 6;
const FR_TXFE: u64 = 1 << 7;

/// Interrupts: received as many as the trigger level says, ready to transmit, received fewer and no
/// more for a while (DDI 0183 3.3.10).
const INT_RX: u16 = 1 << 4;
const INT_TX: u16 = 1 << 5;
const INT_RT: u16 = 1 << 6;
const INT_ALL: u16 = 0x7ff;

/// LCR_H.FEN: the FIFOs are in use.
const LCR_H_FEN: u16 = 1 << 4;

/// PL011 r1p5: peripheral ID 0x00341011, cell ID 0xb105f00d, a byte per word (DDI 0183 3.3.15).
const ID_BYTES: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// CR after reset: both directions enabled, the UART itself not (DDI 0183 3.3.8).
const CR_RESET: u16 = 0x0300;
/// IFLS after reset (DDI 0183 3.3.9).
const IFLS_RESET: u16 = 0x12;

/// Depth of the receive FIFO of an r1p5, where FIFOs are in use.
const DEPTH: usize = 32;

/// Where characters go to and come from.
pub trait Terminal {
    /// The guest printed `byte`.
    fn put(&mut self, byte: u8);
    /// A character for the guest, if one is waiting. [`Vuart::receive`] is called when there is more.
    fn get(&mut self) -> Option<u8>;
    /// The guest has printed all that it wants to for now.
    fn pause(&mut self);
}

/// Characters that the guest has not read yet.
#[derive(Debug, Default)]
struct Fifo {
    bytes: [u8; DEPTH],
    first: usize,
    len: usize,
}

impl Fifo {
    fn push(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut((self.first + self.len) % DEPTH) {
            *slot = byte;
            self.len = (self.len + 1).min(DEPTH);
        }
    }

    fn pop(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.first).filter(|_| self.len > 0)?;
        self.first = (self.first + 1) % DEPTH;
        self.len -= 1;
        Some(byte)
    }
}

/// The emulated registers.
#[derive(Debug)]
pub struct Vuart {
    received: Fifo,
    /// The guest has printed something since it last looked at the flags.
    printing: bool,
    /// The interrupt line, as it was last reported.
    line: bool,
    raw: u16,
    ibrd: u16,
    fbrd: u16,
    lcr_h: u16,
    cr: u16,
    ifls: u16,
    imsc: u16,
}

impl Default for Vuart {
    fn default() -> Self {
        Self {
            received: Fifo::default(),
            printing: false,
            line: false,
            raw: 0,
            ibrd: 0,
            fbrd: 0,
            lcr_h: 0,
            cr: CR_RESET,
            ifls: IFLS_RESET,
            imsc: 0,
        }
    }
}

impl Vuart {
    /// What a load from `offset` gives. Registers that are not there read as zero.
    pub fn read(&mut self, offset: u64, terminal: &mut impl Terminal) -> u64 {
        match offset {
            DR => self.read_data(terminal),
            FR => self.read_flags(terminal),
            IBRD => self.ibrd.into(),
            FBRD => self.fbrd.into(),
            LCR_H => self.lcr_h.into(),
            CR => self.cr.into(),
            IFLS => self.ifls.into(),
            IMSC => self.imsc.into(),
            RIS => self.raw.into(),
            MIS => (self.raw & self.imsc).into(),
            ID..SIZE if offset.is_multiple_of(4) => {
                let index = usize::try_from((offset - ID) / 4).unwrap_or(usize::MAX);
                ID_BYTES.get(index).copied().map_or(0, u64::from)
            }
            _ => 0,
        }
    }

    /// Carries out a store to `offset`. Stores to registers that are not there, or cannot be
    /// written, are ignored.
    pub fn write(&mut self, offset: u64, value: u64, terminal: &mut impl Terminal) {
        let [low, high, ..] = value.to_le_bytes();
        let half = u16::from_le_bytes([low, high]);
        match offset {
            DR => {
                terminal.put(low);
                self.printing = true;
                // Sent already: there is room again.
                self.raw |= INT_TX;
            }
            IBRD => self.ibrd = half,
            FBRD => self.fbrd = half & 0x3f,
            LCR_H => self.lcr_h = half & 0xff,
            CR => self.cr = half,
            IFLS => self.ifls = half & 0x3f,
            IMSC => self.write_mask(half & INT_ALL, terminal),
            ICR => self.raw &= !half,
            _ => {}
        }
    }

    /// Characters may be waiting at the terminal.
    pub fn receive(&mut self, terminal: &mut impl Terminal) {
        let depth = if self.lcr_h & LCR_H_FEN != 0 {
            DEPTH
        } else {
            1
        };
        while self.received.len < depth {
            let Some(byte) = terminal.get() else {
                return;
            };
            self.received.push(byte);
            self.raw |= INT_RT;
            if self.received.len >= self.trigger() {
                self.raw |= INT_RX;
            }
        }
    }

    /// The interrupt line, if it has changed since it was last asked for.
    pub fn line_change(&mut self) -> Option<bool> {
        let line = self.raw & self.imsc != 0;
        (line != core::mem::replace(&mut self.line, line)).then_some(line)
    }

    fn read_data(&mut self, terminal: &mut impl Terminal) -> u64 {
        self.receive(terminal);
        let byte = self.received.pop();
        if self.received.len == 0 {
            self.raw &= !INT_RT;
        }
        if self.received.len < self.trigger() {
            self.raw &= !INT_RX;
        }
        self.receive(terminal);
        byte.map_or(0, u64::from)
    }

    /// A driver that prints looks at the flags once a character, to see whether there is room; one
    /// that waits for a character does nothing else.
    fn read_flags(&mut self, terminal: &mut impl Terminal) -> u64 {
        if !core::mem::take(&mut self.printing) {
            terminal.pause();
            self.receive(terminal);
        }
        let depth = if self.lcr_h & LCR_H_FEN != 0 {
            DEPTH
        } else {
            1
        };
        match self.received.len {
            0 => FR_TXFE | FR_RXFE,
            len if len >= depth => FR_TXFE | FR_RXFF,
            _ => FR_TXFE,
        }
    }

    /// A driver that prints by interrupt masks it when it has no more to print.
    fn write_mask(&mut self, mask: u16, terminal: &mut impl Terminal) {
        if self.imsc & !mask & INT_TX != 0 {
            terminal.pause();
        }
        self.imsc = mask;
    }

    /// How many characters raise INT_RX (DDI 0183 3.3.9, IFLS.RXIFLSEL).
    fn trigger(&self) -> usize {
        if self.lcr_h & LCR_H_FEN == 0 {
            return 1;
        }
        match self.ifls >> 3 & 0b111 {
            0 => DEPTH / 8,
            1 => DEPTH / 4,
            2 => DEPTH / 2,
            3 => DEPTH * 3 / 4,
            _ => DEPTH * 7 / 8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[derive(Default)]
    struct Tape {
        typed: Vec<u8>,
        printed: Vec<u8>,
        pauses: usize,
    }

    impl Terminal for Tape {
        fn put(&mut self, byte: u8) {
            self.printed.push(byte);
        }
        fn pause(&mut self) {
            self.pauses += 1;
        }
        fn get(&mut self) -> Option<u8> {
            (!self.typed.is_empty()).then(|| self.typed.remove(0))
        }
    }

    #[test]
    fn a_character_is_announced_then_read_once() {
        let (mut uart, mut tape) = (Vuart::default(), Tape::default());
        assert_eq!(uart.read(FR, &mut tape) & FR_RXFE, FR_RXFE);
        tape.typed = b"ab".to_vec();
        assert_eq!(uart.read(FR, &mut tape) & FR_RXFE, 0);
        assert_eq!(uart.read(FR, &mut tape) & FR_RXFE, 0);
        assert_eq!(uart.read(DR, &mut tape), u64::from(b'a'));
        assert_eq!(uart.read(DR, &mut tape), u64::from(b'b'));
        assert_eq!(uart.read(FR, &mut tape) & FR_RXFE, FR_RXFE);
    }

    #[test]
    fn only_the_low_byte_is_printed() {
        let (mut uart, mut tape) = (Vuart::default(), Tape::default());
        uart.write(DR, 0xffff_ff41, &mut tape);
        assert_eq!(tape.printed, b"A");
    }

    #[test]
    fn a_driver_can_tell_that_it_is_a_pl011() {
        let (mut uart, mut tape) = (Vuart::default(), Tape::default());
        let id: Vec<u64> = (0..8).map(|i| uart.read(ID + 4 * i, &mut tape)).collect();
        assert_eq!(id, [0x11, 0x10, 0x34, 0, 0x0d, 0xf0, 0x05, 0xb1]);
    }

    #[test]
    fn every_other_offset_reads_zero_and_ignores_stores() {
        let (mut uart, mut tape) = (Vuart::default(), Tape::default());
        for offset in [0x4, 0x100, 0xfdc, 0xfe1, 0xfff, SIZE, u64::MAX] {
            uart.write(offset, u64::MAX, &mut tape);
            assert_eq!(uart.read(offset, &mut tape), 0, "{offset:#x}");
        }
        assert!(tape.printed.is_empty());
    }

    /// As Linux's driver uses it: receive interrupts on, transmit interrupts while there is a backlog.
    #[test]
    fn what_is_typed_raises_the_line_until_it_is_read() {
        let (mut uart, mut tape) = (Vuart::default(), Tape::default());
        uart.write(LCR_H, LCR_H_FEN.into(), &mut tape);
        uart.write(IMSC, (INT_RX | INT_RT).into(), &mut tape);
        assert_eq!(uart.line_change(), None);
        tape.typed = b"ab".to_vec();
        uart.receive(&mut tape);
        assert_eq!(uart.line_change(), Some(true));
        assert_eq!(uart.read(MIS, &mut tape), u64::from(INT_RT));
        uart.read(DR, &mut tape);
        assert_eq!(uart.line_change(), None);
        uart.read(DR, &mut tape);
        assert_eq!(uart.line_change(), Some(false));
    }

    #[test]
    fn the_trigger_level_is_that_of_ifls() {
        for (level, count) in [(0, 4), (1, 8), (2, 16), (3, 24), (4, 28)] {
            let (mut uart, mut tape) = (Vuart::default(), Tape::default());
            uart.write(LCR_H, LCR_H_FEN.into(), &mut tape);
            uart.write(IFLS, level << 3, &mut tape);
            tape.typed = alloc::vec![b'x'; count - 1];
            uart.receive(&mut tape);
            assert_eq!(uart.read(RIS, &mut tape) & u64::from(INT_RX), 0);
            tape.typed = b"x".to_vec();
            uart.receive(&mut tape);
            assert_ne!(uart.read(RIS, &mut tape) & u64::from(INT_RX), 0);
        }
    }

    #[test]
    fn a_full_fifo_leaves_the_rest_at_the_terminal_and_loses_nothing() {
        let (mut uart, mut tape) = (Vuart::default(), Tape::default());
        uart.write(LCR_H, LCR_H_FEN.into(), &mut tape);
        tape.typed = (0..100).collect();
        uart.receive(&mut tape);
        assert_eq!(tape.typed.len(), 100 - DEPTH);
        let read: Vec<u64> = (0..100).map(|_| uart.read(DR, &mut tape)).collect();
        assert_eq!(read, (0..100).collect::<Vec<u64>>());
    }

    #[test]
    fn having_printed_raises_the_transmit_interrupt_until_it_is_cleared() {
        let (mut uart, mut tape) = (Vuart::default(), Tape::default());
        uart.write(IMSC, INT_TX.into(), &mut tape);
        assert_eq!(uart.line_change(), None);
        uart.write(DR, b'A'.into(), &mut tape);
        assert_eq!(uart.line_change(), Some(true));
        uart.write(ICR, INT_TX.into(), &mut tape);
        assert_eq!(uart.line_change(), Some(false));
    }

    #[test]
    fn a_pause_is_seen_in_polling_and_in_masking_but_not_in_printing() {
        let (mut uart, mut tape) = (Vuart::default(), Tape::default());
        for byte in *b"> " {
            uart.write(DR, byte.into(), &mut tape);
            uart.read(FR, &mut tape);
        }
        assert_eq!(tape.pauses, 0);
        uart.read(FR, &mut tape);
        assert_eq!(tape.pauses, 1);
        uart.write(IMSC, INT_TX.into(), &mut tape);
        uart.write(IMSC, 0, &mut tape);
        assert_eq!(tape.pauses, 2);
    }
}

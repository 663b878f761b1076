//! The VM's console: an emulated PL011 (Arm DDI 0183), polled. It has no interrupt yet.
//!
//! Only what software looks at is there: data, flags, the identification registers, and the
//! control registers as plain storage.

/// Size in bytes of the register window.
const SIZE: u64 = super::config::UART.1;

const DR: u64 = 0x000;
const FR: u64 = 0x018;
const IBRD: u64 = 0x024;
const FBRD: u64 = 0x028;
const LCR_H: u64 = 0x02c;
const CR: u64 = 0x030;
const IFLS: u64 = 0x034;
const IMSC: u64 = 0x038;
const ID: u64 = 0xfe0;

/// Flags: receive FIFO empty, transmit FIFO empty. The transmitter never fills.
const FR_RXFE: u64 = 1 << 4;
const FR_TXFE: u64 = 1 << 7;

/// PL011 r1p5: peripheral ID 0x00341011, cell ID 0xb105f00d, a byte per word (DDI 0183 3.3.15).
const ID_BYTES: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// CR after reset: both directions enabled, the UART itself not (DDI 0183 3.3.8).
const CR_RESET: u16 = 0x0300;
/// IFLS after reset (DDI 0183 3.3.9).
const IFLS_RESET: u16 = 0x12;

/// Where characters go to and come from.
pub trait Terminal {
    /// The guest printed `byte`.
    fn put(&mut self, byte: u8);
    /// A character for the guest, if one is waiting.
    fn get(&mut self) -> Option<u8>;
}

/// The emulated registers.
#[derive(Debug)]
pub struct Vuart {
    /// A character taken from the terminal because the guest asked whether there was one.
    received: Option<u8>,
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
            received: None,
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
            DR => {
                self.fill(terminal);
                self.received.take().map_or(0, u64::from)
            }
            FR => {
                self.fill(terminal);
                if self.received.is_some() {
                    FR_TXFE
                } else {
                    FR_TXFE | FR_RXFE
                }
            }
            IBRD => self.ibrd.into(),
            FBRD => self.fbrd.into(),
            LCR_H => self.lcr_h.into(),
            CR => self.cr.into(),
            IFLS => self.ifls.into(),
            IMSC => self.imsc.into(),
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
            DR => terminal.put(low),
            IBRD => self.ibrd = half,
            FBRD => self.fbrd = half & 0x3f,
            LCR_H => self.lcr_h = half & 0xff,
            CR => self.cr = half,
            IFLS => self.ifls = half & 0x3f,
            IMSC => self.imsc = half & 0x7ff,
            _ => {}
        }
    }

    fn fill(&mut self, terminal: &mut impl Terminal) {
        if self.received.is_none() {
            self.received = terminal.get();
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
    }

    impl Terminal for Tape {
        fn put(&mut self, byte: u8) {
            self.printed.push(byte);
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
}

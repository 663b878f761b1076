//! Escape sequences, as far as it takes to know where one ends (ECMA-48 5.4): they are no text.

const ESC: u8 = 0x1b;

/// How much of a sequence has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sequence {
    /// Nothing.
    #[default]
    None,
    /// ESC.
    Begun,
    /// ESC [ and parameters, or ESC O.
    Open,
}

impl Sequence {
    /// Takes in one byte. Whether it is part of a sequence.
    pub fn push(&mut self, byte: u8) -> bool {
        let next = match (*self, byte) {
            (_, ESC) => Self::Begun,
            (Self::Begun, b'[' | b'O') => Self::Open,
            // Parameters and intermediates. Any other byte is the last one, or none of it.
            (Self::Open, 0x20..=0x3f) => Self::Open,
            _ => Self::None,
        };
        let was = core::mem::replace(self, next);
        let ends = matches!((was, byte), (Self::Open, 0x40..=0x7e));
        next != Self::None || ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;

    fn text(bytes: &[u8]) -> String {
        let mut sequence = Sequence::None;
        let text = bytes.iter().filter(|byte| !sequence.push(**byte));
        text.map(|byte| char::from(*byte)).collect()
    }

    #[test]
    fn sequences_are_left_out_and_nothing_else_is() {
        assert_eq!(text(b"a\x1b[6nb\x1b[1;5Cc\x1bOPd\x1b[?1049he"), "abcde");
        assert_eq!(text(b"\x1b\x1b[mx"), "x");
        // Not begun by anything that is known here: what follows ESC is text.
        assert_eq!(text(b"\x1bcx"), "cx");
        // Broken off: a line cannot be hidden in a sequence that never ends.
        assert_eq!(text(b"\x1b[12\nx"), "\nx");
    }
}

//! The operator's keys: one escape key, and what follows it.
//!
//! The escape key is Ctrl-], which telnet made known for this and which no shell or editor needs;
//! QEMU's multiplexer and screen have Ctrl-A, minicom too.

/// Ctrl-].
pub const ESCAPE: u8 = 0x1d;

/// What a byte from the keyboard means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Nothing yet.
    Nothing,
    /// A byte for whoever has the focus.
    Plain(u8),
    /// The focus goes to this VM, counted from 0.
    Focus(usize),
    /// The focus goes to the next VM.
    Next,
    /// The monitor begins.
    Monitor,
    /// The monitor ends.
    Console,
    /// The focused VM's bytes go to the terminal as they are, or do no more.
    Raw,
    /// The keys are wanted.
    Help,
}

/// Decodes the escape key.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    /// Nothing has been typed.
    pub const fn new() -> Self {
        Self { escaped: false }
    }

    /// Takes in one byte.
    pub fn push(&mut self, byte: u8) -> Key {
        if !core::mem::take(&mut self.escaped) {
            self.escaped = byte == ESCAPE;
            return match byte {
                ESCAPE => Key::Nothing,
                byte => Key::Plain(byte),
            };
        }
        match byte {
            ESCAPE => Key::Plain(ESCAPE),
            b'1'..=b'9' => Key::Focus(usize::from(byte - b'1')),
            b'n' => Key::Next,
            b'm' => Key::Monitor,
            b'c' => Key::Console,
            b'r' => Key::Raw,
            _ => Key::Help,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut keys = Keys::new();
        let pushed = bytes.iter().map(|byte| keys.push(*byte));
        pushed.filter(|key| *key != Key::Nothing).collect()
    }

    #[test]
    fn what_follows_the_escape_key_is_for_cordon_and_nothing_else_is() {
        assert_eq!(
            keys(b"\x1d1n\x1dn\x1dm\x1dc\x1dr\x1d9"),
            [
                Key::Focus(0),
                Key::Plain(b'n'),
                Key::Next,
                Key::Monitor,
                Key::Console,
                Key::Raw,
                Key::Focus(8),
            ]
        );
    }

    #[test]
    fn the_escape_key_twice_is_one_for_the_guest() {
        let expected = [Key::Plain(ESCAPE), Key::Plain(b'1')];
        assert_eq!(keys(b"\x1d\x1d1"), expected);
    }

    #[test]
    fn any_other_key_after_it_asks_for_help_and_is_used_up() {
        for byte in [b'?', b'0', b'x', 0, 0xff, b'\r'] {
            assert_eq!(keys(&[ESCAPE, byte, b'a']), [Key::Help, Key::Plain(b'a')]);
        }
    }
}

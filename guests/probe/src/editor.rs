//! The line that is being typed: echo, backspace, end of line, and nothing else.

/// The longest line that is accepted, in bytes.
pub const CAPACITY: usize = 120;

/// What a received byte does to the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Show this byte.
    Echo(u8),
    /// Rub out the last shown byte.
    Erase,
    /// Show nothing.
    Nothing,
    /// The line is complete: take it with [`Editor::take`].
    Done,
}

/// A complete line, or as much as has been typed.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    bytes: [u8; CAPACITY],
    len: usize,
    truncated: bool,
}

impl Line {
    const EMPTY: Self = Self {
        bytes: [0; CAPACITY],
        len: 0,
        truncated: false,
    };

    /// The text; only printable ASCII gets in.
    pub fn as_str(&self) -> &str {
        self.bytes
            .get(..self.len)
            .and_then(|bytes| str::from_utf8(bytes).ok())
            .unwrap_or("")
    }

    /// Whether bytes were dropped because the line was too long.
    pub const fn is_truncated(&self) -> bool {
        self.truncated
    }
}

/// Collects a line.
#[derive(Clone, Debug)]
pub struct Editor {
    line: Line,
    after_cr: bool,
}

impl Editor {
    /// An empty line.
    pub const fn new() -> Self {
        Self {
            line: Line::EMPTY,
            after_cr: false,
        }
    }

    /// Takes in one byte. CR, LF and CR LF each end one line.
    pub fn push(&mut self, byte: u8) -> Edit {
        let after_cr = core::mem::replace(&mut self.after_cr, byte == b'\r');
        match byte {
            b'\n' if after_cr => Edit::Nothing,
            b'\r' | b'\n' => Edit::Done,
            0x08 | 0x7f => self.erase(),
            b' '..=b'~' => self.append(byte),
            _ => Edit::Nothing,
        }
    }

    fn erase(&mut self) -> Edit {
        match self.line.len.checked_sub(1) {
            Some(len) => {
                self.line.len = len;
                self.line.truncated = false;
                Edit::Erase
            }
            None => Edit::Nothing,
        }
    }

    fn append(&mut self, byte: u8) -> Edit {
        match self.line.bytes.get_mut(self.line.len) {
            Some(slot) => {
                *slot = byte;
                self.line.len += 1;
                Edit::Echo(byte)
            }
            None => {
                self.line.truncated = true;
                Edit::Nothing
            }
        }
    }

    /// What has been typed so far.
    pub const fn line(&self) -> &Line {
        &self.line
    }

    /// The line; a new one begins.
    pub fn take(&mut self) -> Line {
        core::mem::replace(&mut self.line, Line::EMPTY)
    }
}

impl Default for Editor {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8]) -> Vec<String> {
        let mut editor = Editor::new();
        let mut lines = Vec::new();
        for byte in input {
            if editor.push(*byte) == Edit::Done {
                lines.push(editor.take().as_str().to_owned());
            }
        }
        lines
    }

    #[test]
    fn cr_lf_and_both_end_one_line_each() {
        assert_eq!(lines(b"a\rb\nc\r\nd\r\r"), ["a", "b", "c", "d", ""]);
    }

    #[test]
    fn backspace_and_delete_take_back_one_byte() {
        assert_eq!(lines(b"\x08filk\x7fl\x08l\n"), ["fill"]);
        assert_eq!(Editor::new().push(0x08), Edit::Nothing);
    }

    #[test]
    fn control_and_non_ascii_bytes_are_dropped() {
        assert_eq!(lines(b"\x1b[A\x00f\xffg\n"), ["[Afg"]);
    }

    #[test]
    fn a_line_that_is_too_long_says_so() {
        let mut editor = Editor::new();
        for _ in 0..CAPACITY {
            assert_eq!(editor.push(b'x'), Edit::Echo(b'x'));
        }
        assert_eq!(editor.push(b'y'), Edit::Nothing);
        assert!(editor.line().is_truncated());
        assert_eq!(editor.take().as_str().len(), CAPACITY);
        assert!(!editor.line().is_truncated());
    }
}

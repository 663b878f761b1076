//! The line that is being typed at the monitor.

use super::line::Line;
use super::sequence::Sequence;

const CTRL_C: u8 = 0x03;
const CTRL_D: u8 = 0x04;
const CTRL_U: u8 = 0x15;

/// What a typed byte does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Show this byte.
    Echo(u8),
    /// Rub out so many bytes.
    Erase(usize),
    /// Show nothing.
    Nothing,
    /// The line is complete: take it with [`Editor::take`].
    Done,
    /// The line was given up, and is empty now.
    Cancel,
    /// The person leaves.
    Leave,
}

/// Collects a line.
#[derive(Clone, Debug)]
pub struct Editor {
    line: Line,
    after_cr: bool,
    sequence: Sequence,
}

impl Editor {
    /// An empty line.
    pub const fn new() -> Self {
        Self {
            line: Line::new(),
            after_cr: false,
            sequence: Sequence::None,
        }
    }

    /// What has been typed of the line.
    pub fn text(&self) -> &str {
        self.line.as_str()
    }

    /// Takes in one byte. CR, LF and CR LF each end one line.
    pub fn push(&mut self, byte: u8) -> Edit {
        let after_cr = core::mem::replace(&mut self.after_cr, byte == b'\r');
        // An arrow key is no text.
        if self.sequence.push(byte) {
            return Edit::Nothing;
        }
        match byte {
            b'\n' if after_cr => Edit::Nothing,
            b'\r' | b'\n' => Edit::Done,
            0x08 | 0x7f if self.line.pop() => Edit::Erase(1),
            CTRL_U => Edit::Erase(core::mem::take(&mut self.line).as_str().len()),
            CTRL_C => {
                self.line = Line::new();
                Edit::Cancel
            }
            CTRL_D if self.line.as_str().is_empty() => Edit::Leave,
            b' '..=b'~' if self.line.push(byte) => Edit::Echo(byte),
            _ => Edit::Nothing,
        }
    }

    /// The line, and the next one begins.
    pub fn take(&mut self) -> Line {
        core::mem::take(&mut self.line)
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
    use crate::console::line::CAPACITY;

    fn typed(bytes: &[u8]) -> (Editor, Edit) {
        let mut editor = Editor::new();
        let edits = bytes.iter().map(|byte| editor.push(*byte));
        let last = edits.last().unwrap_or(Edit::Nothing);
        (editor, last)
    }

    #[test]
    fn a_line_is_edited_and_taken() {
        let (mut editor, edit) = typed(b"helq\x7fp\r");
        assert_eq!(edit, Edit::Done);
        assert_eq!(editor.take().as_str(), "help");
        assert_eq!(editor.text(), "");
        assert_eq!(editor.push(b'\n'), Edit::Nothing);
        assert_eq!(editor.push(b'\n'), Edit::Done);
    }

    #[test]
    fn control_keys_give_up_a_line_or_leave() {
        assert_eq!(typed(b"abc\x15").1, Edit::Erase(3));
        assert_eq!(typed(b"abc\x03").1, Edit::Cancel);
        assert_eq!(typed(b"abc\x04").1, Edit::Nothing);
        assert_eq!(typed(b"abc\x03\x04").1, Edit::Leave);
        assert_eq!(typed(b"\x7f").1, Edit::Nothing);
    }

    #[test]
    fn arrows_and_other_control_bytes_leave_no_text() {
        let (editor, _) = typed(b"a\x1b[A\x1b[1;5C\x1bOP\x00\x07\xff\x80b");
        assert_eq!(editor.text(), "ab");
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_known_to_be_missing() {
        let (mut editor, edit) = typed(&[b'x'; CAPACITY + 1]);
        assert_eq!(edit, Edit::Nothing);
        let line = editor.take();
        assert_eq!((line.as_str().len(), line.is_cut()), (CAPACITY, true));
        let (mut editor, _) = typed(&[b'x'; CAPACITY]);
        assert!(!editor.take().is_cut());
    }
}

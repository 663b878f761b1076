//! A terminal of paper.

use super::Screen;
use alloc::collections::VecDeque;
use alloc::string::String;
use core::fmt;

/// Keeps what is printed, and types what it is given.
#[derive(Debug, Default)]
pub(crate) struct Paper {
    pub(crate) text: String,
    pub(crate) keys: VecDeque<u8>,
}

impl fmt::Write for Paper {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.text.push_str(text);
        Ok(())
    }
}

impl Screen for Paper {
    fn raw(&mut self, byte: u8) {
        self.text.push(char::from(byte));
    }

    fn key(&mut self) -> Option<u8> {
        self.keys.pop_front()
    }
}

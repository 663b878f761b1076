//! A line that somebody typed, in memory of its own: nothing is allocated for it.

/// The longest line, in bytes.
pub const CAPACITY: usize = 120;

/// Printable ASCII.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    bytes: [u8; CAPACITY],
    len: usize,
    cut: bool,
}

impl Line {
    /// An empty one.
    pub const fn new() -> Self {
        Self {
            bytes: [0; CAPACITY],
            len: 0,
            cut: false,
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        self.bytes
            .get(..self.len)
            .and_then(|bytes| str::from_utf8(bytes).ok())
            .unwrap_or_default()
    }

    /// Whether more was typed than there is room for.
    pub const fn is_cut(&self) -> bool {
        self.cut
    }

    /// Adds `byte`, which is printable ASCII. False where there is no room.
    pub fn push(&mut self, byte: u8) -> bool {
        match self.bytes.get_mut(self.len) {
            Some(slot) => {
                *slot = byte;
                self.len += 1;
                true
            }
            None => {
                self.cut = true;
                false
            }
        }
    }

    /// Takes the last byte away. False where there is none.
    pub fn pop(&mut self) -> bool {
        self.cut &= self.len == 0;
        match self.len.checked_sub(1) {
            Some(len) => {
                self.len = len;
                true
            }
            None => false,
        }
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

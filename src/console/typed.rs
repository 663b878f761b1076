//! What was typed for one VM and not taken by its UART yet.

use alloc::boxed::Box;

/// How much is kept, in bytes: as much as a Linux terminal keeps of a line. A VM that does not read
/// must not keep the operator from the keys that lead away from it, so what is typed beyond that
/// is dropped.
pub const CAPACITY: usize = 4096;

/// A queue of bytes.
#[derive(Debug)]
pub struct Typed {
    bytes: Box<[u8]>,
    first: usize,
    len: usize,
}

impl Typed {
    /// An empty one. Allocates all that it will ever need.
    pub fn new() -> Self {
        Self {
            bytes: alloc::vec![0; CAPACITY].into_boxed_slice(),
            first: 0,
            len: 0,
        }
    }

    /// Adds a byte. False where there is no room.
    pub fn push(&mut self, byte: u8) -> bool {
        if self.len >= CAPACITY {
            return false;
        }
        if let Some(slot) = self.bytes.get_mut((self.first + self.len) % CAPACITY) {
            *slot = byte;
            self.len += 1;
        }
        true
    }

    /// Takes the oldest byte.
    pub fn pop(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.first).filter(|_| self.len > 0)?;
        self.first = (self.first + 1) % CAPACITY;
        self.len -= 1;
        Some(byte)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.len = 0;
    }
}

impl Default for Typed {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in_and_the_surplus_does_not_go_in() {
        let mut typed = Typed::new();
        for round in 0..3u32 {
            let byte = |at: usize| (at as u32 * 7 + round) as u8;
            for at in 0..CAPACITY {
                assert!(typed.push(byte(at)));
            }
            assert!(!typed.push(0));
            for at in 0..CAPACITY {
                assert_eq!(typed.pop(), Some(byte(at)));
            }
            assert_eq!(typed.pop(), None);
            // The next round begins elsewhere in the ring.
            typed.push(0);
            typed.pop();
        }
    }
}

//! Every form against a model that reads the assembler's text, and what an exit makes of it.

mod decoding;
mod forms;
mod model;
mod sequences;

use super::env::{GuestRegisters, Memory, Stop};
use std::vec::Vec;

/// Registers that are nothing but that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) x: [u64; 31],
    pub(super) sp: u64,
    pub(super) v: [u128; 32],
}

/// Where [`State`]'s instructions are.
const PC: u64 = 0x4000_1000;

/// The methods of [`GuestRegisters`] but for `pc`, by the fields `x`, `sp` and `v`.
macro_rules! plain_registers {
    () => {
        fn register(&self, number: u8) -> u64 {
            self.x.get(usize::from(number)).copied().unwrap_or(0)
        }
        fn set_register(&mut self, number: u8, value: u64) {
            if let Some(register) = self.x.get_mut(usize::from(number)) {
                *register = value;
            }
        }
        fn stack_pointer(&self) -> u64 {
            self.sp
        }
        fn set_stack_pointer(&mut self, value: u64) {
            self.sp = value;
        }
        fn vector(&self, number: u8) -> u128 {
            self.v[usize::from(number)]
        }
        fn set_vector(&mut self, number: u8, value: u128) {
            self.v[usize::from(number)] = value;
        }
        fn zero_block(&self) -> u64 {
            64
        }
    };
}
pub(in crate::vm) use plain_registers;

impl GuestRegisters for State {
    plain_registers!();
    fn pc(&self) -> u64 {
        PC
    }
}

/// Bytes from an address on, that count as memory which is all there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flat {
    pub(super) base: u64,
    pub(super) bytes: Vec<u8>,
    /// The first access and the end of the last, to be compared with an extent.
    pub(super) touched: Option<(u64, u64)>,
    /// Accesses, by whether they write.
    pub(super) steps: [usize; 2],
    pub(super) fences: usize,
}

impl Flat {
    pub(super) fn at(&mut self, at: u64, size: u64) -> &mut [u8] {
        let from = usize::try_from(at.wrapping_sub(self.base)).unwrap();
        &mut self.bytes[from..from + usize::try_from(size).unwrap()]
    }

    fn touch(&mut self, at: u64, size: u64, write: bool) {
        let (first, end) = self.touched.unwrap_or((at, at + size));
        self.touched = Some((first.min(at), end.max(at + size)));
        self.steps[usize::from(write)] += 1;
    }
}

impl Memory for Flat {
    fn load(&mut self, at: u64, size: u8) -> Result<u128, Stop> {
        self.touch(at, size.into(), false);
        let bytes = self.at(at, size.into());
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |all, byte| all << 8 | u128::from(*byte)))
    }
    fn store(&mut self, at: u64, size: u8, value: u128) -> Result<(), Stop> {
        self.touch(at, size.into(), true);
        let bytes = self.at(at, size.into());
        bytes.copy_from_slice(&value.to_le_bytes()[..usize::from(size)]);
        Ok(())
    }
    fn exchange(&mut self, at: u64, size: u8, expected: u128, new: u128) -> Result<u128, Stop> {
        assert!(at.is_multiple_of(size.into()));
        let seen = self.load(at, size)?;
        if seen == expected {
            self.store(at, size, new)?;
        }
        Ok(seen)
    }
    fn zero(&mut self, at: u64, length: u64) -> Result<(), Stop> {
        self.touch(at, length, true);
        self.at(at, length).fill(0);
        Ok(())
    }
    fn fence(&mut self) {
        self.fences += 1;
    }
}

/// The list of forms: words and texts.
pub(super) fn list(text: &'static str) -> impl Iterator<Item = (u32, &'static str)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| {
        let (word, text) = line.split_once(' ').unwrap();
        (u32::from_str_radix(word, 16).unwrap(), text)
    })
}

/// All forms that are carried out.
pub(super) fn forms() -> impl Iterator<Item = (u32, &'static str)> {
    list(include_str!("../forms.txt")).chain(list(include_str!("newer.txt")))
}

pub(super) const REFUSED: &str = include_str!("refused.txt");

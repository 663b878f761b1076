//! Instructions that are carried out for a guest, which can put there what it likes.

use crate::Seed;
use cordon::vm::access::decode::decode;
use cordon::vm::access::env::{GuestRegisters, Memory, Stop};
use cordon::vm::access::execute::Execution;
use cordon::vm::access::extent::{Extent, Kind, MOST, extent};
use cordon::vm::access::sequence::{Scratch, run};

/// Bytes that stand for registers and memory, over and over.
struct Any<'a> {
    bytes: &'a [u8],
}

impl Any<'_> {
    fn word(&self, at: u64) -> u64 {
        let length = self.bytes.len().max(1) as u64;
        (0..8).fold(0, |word, byte| {
            let at = usize::try_from(at.wrapping_add(byte) % length).unwrap_or(0);
            word << 8 | u64::from(self.bytes.get(at).copied().unwrap_or(0))
        })
    }
}

impl GuestRegisters for Any<'_> {
    fn register(&self, number: u8) -> u64 {
        if number == 31 {
            0
        } else {
            self.word(8 * u64::from(number))
        }
    }
    fn set_register(&mut self, number: u8, _: u64) {
        assert!(number < 32);
    }
    fn stack_pointer(&self) -> u64 {
        self.word(3)
    }
    fn set_stack_pointer(&mut self, _: u64) {}
    fn vector(&self, number: u8) -> u128 {
        u128::from(self.word(number.into()))
    }
    fn set_vector(&mut self, number: u8, _: u128) {
        assert!(number < 32);
    }
    fn pc(&self) -> u64 {
        self.word(5)
    }
    fn zero_block(&self) -> u64 {
        64
    }
}

/// Memory that stops after so many accesses, and keeps to an extent.
struct Within<'a> {
    extent: &'a Extent,
    left: u8,
    touched: u64,
}

impl Within<'_> {
    fn touch(&mut self, at: u64, length: u64, write: bool) -> Result<(), Stop> {
        let offset = at.wrapping_sub(self.extent.at);
        assert!(offset < self.extent.length && offset + length <= self.extent.length);
        assert!(!write || self.extent.kind != Kind::Read);
        self.touched = self.touched.max(offset + length);
        self.left = self.left.checked_sub(1).ok_or(Stop::Poisoned(at))?;
        Ok(())
    }
}

impl Memory for Within<'_> {
    fn load(&mut self, at: u64, size: u8) -> Result<u128, Stop> {
        self.touch(at, size.into(), false)?;
        Ok(u128::from(at))
    }
    fn store(&mut self, at: u64, size: u8, value: u128) -> Result<(), Stop> {
        assert!(
            size == 16 || value >> (8 * u32::from(size)) == 0,
            "more than the element"
        );
        self.touch(at, size.into(), true)
    }
    fn exchange(&mut self, at: u64, size: u8, _: u128, _: u128) -> Result<u128, Stop> {
        self.touch(at, size.into(), true)?;
        // Somebody else is always faster.
        Ok(u128::from(self.left))
    }
    fn zero(&mut self, at: u64, length: u64) -> Result<(), Stop> {
        self.touch(at, length, true)
    }
    fn fence(&mut self) {}
}

/// Target `access`: four bytes of instruction, one that says how many accesses go well, and the rest.
pub fn access(bytes: &[u8]) {
    let Some((word, rest)) = bytes.split_first_chunk::<4>() else {
        return;
    };
    let Some((left, rest)) = rest.split_first() else {
        return;
    };
    let mut registers = Any { bytes: rest };
    let words: Vec<u32> = rest
        .chunks_exact(4)
        .map(|word| word.iter().fold(0, |all, byte| all << 8 | u32::from(*byte)))
        .collect();
    let _ = run(&words, &mut Scratch::new(&registers, 0));
    let Some(operation) = decode(u32::from_le_bytes(*word)) else {
        return;
    };
    let Some(extent) = extent(&operation, &registers) else {
        return;
    };
    assert!(extent.length > 0 && extent.length <= MOST as u64);
    let mut memory = Within {
        extent: &extent,
        left: *left,
        touched: 0,
    };
    let mut execution = Execution {
        registers: &mut registers,
        memory: &mut memory,
    };
    if execution.run(&operation, &extent).is_ok() && memory.left < *left {
        assert_eq!(memory.touched, extent.length);
    }
}

/// Every eighth form, with registers behind it.
pub fn seeds() -> Vec<Seed> {
    let forms = include_str!("../../src/vm/access/forms.txt").lines();
    let words = forms.filter_map(|line| u32::from_str_radix(line.get(..8)?, 16).ok());
    let seed = |word: u32| {
        let mut bytes = word.to_le_bytes().to_vec();
        bytes.push(64);
        bytes.extend(0..32);
        let name: &'static str = Box::leak(format!("{word:08x}").into_boxed_str());
        ("access", name, bytes)
    };
    words.step_by(8).map(seed).collect()
}

//! How registers lie in memory, and what of it is put into vectors.

use super::arithmetic::ones;
use super::env::GuestRegisters;
use super::extent::MOST;
use super::operation::{R31, Registers};
use core::ops::Range;

/// What is loaded or stored, in the order of addresses.
pub(super) struct Bytes([u8; MOST]);

impl Default for Bytes {
    fn default() -> Self {
        Self([0; MOST])
    }
}

impl Bytes {
    pub(super) fn get(&self, offset: u8, size: u8) -> u128 {
        let mut value = [0; 16];
        let from = self.0.iter().skip(offset.into()).take(size.into());
        for (to, from) in value.iter_mut().zip(from) {
            *to = *from;
        }
        u128::from_le_bytes(value)
    }

    pub(super) fn set(&mut self, offset: u8, size: u8, value: u128) {
        let to = self.0.iter_mut().skip(offset.into()).take(size.into());
        for (to, from) in to.zip(value.to_le_bytes()) {
            *to = from;
        }
    }
}

impl Registers {
    /// Bytes of memory, all together.
    pub const fn length(&self) -> u8 {
        match *self {
            Self::General { rt2, size, .. } | Self::Vector { rt2, size, .. } => {
                size << rt2.is_some() as u32
            }
            Self::Structures { count, size, .. } => count * size,
            Self::Lane { count, element, .. } | Self::Replicate { count, element, .. } => {
                count * element
            }
        }
    }

    /// Bytes of what is accessed in one step, where it is aligned (Arm ARM B2.2.1).
    pub(super) const fn unit(&self) -> u8 {
        match *self {
            Self::General { size, .. } | Self::Vector { size, .. } => size,
            Self::Structures { element, .. }
            | Self::Lane { element, .. }
            | Self::Replicate { element, .. } => element,
        }
    }

    /// How many there are.
    const fn count(&self) -> u8 {
        match *self {
            Self::General { rt2, .. } | Self::Vector { rt2, .. } => 1 + rt2.is_some() as u8,
            Self::Structures { count, .. }
            | Self::Lane { count, .. }
            | Self::Replicate { count, .. } => count,
        }
    }

    /// The number of register `nth`, from 0 on; V0 follows V31.
    fn number(&self, nth: u8) -> u8 {
        match *self {
            Self::General { rt, rt2, .. } | Self::Vector { rt, rt2, .. } => {
                rt2.filter(|_| nth > 0).unwrap_or(rt)
            }
            Self::Structures { rt, .. } | Self::Lane { rt, .. } | Self::Replicate { rt, .. } => {
                rt.wrapping_add(nth) & R31
            }
        }
    }

    /// The lanes of a vector, of [`Self::unit`] bytes each, that are transferred. One lane is what is no vector of
    /// elements.
    const fn lanes(&self) -> Range<u8> {
        match *self {
            Self::General { .. } | Self::Vector { .. } => 0..1,
            Self::Lane { index, .. } => index..index + 1,
            Self::Structures { element, size, .. } | Self::Replicate { element, size, .. } => {
                0..size / element
            }
        }
    }

    /// Where lane `lane` of register `nth` is.
    const fn offset(&self, nth: u8, lane: u8) -> u8 {
        match *self {
            Self::General { size, .. } | Self::Vector { size, .. } => nth * size,
            Self::Structures {
                count,
                interleaved: true,
                element,
                ..
            } => (lane * count + nth) * element,
            Self::Structures { element, size, .. } => nth * size + lane * element,
            Self::Lane { element, .. } | Self::Replicate { element, .. } => nth * element,
        }
    }

    /// By how many bits a lane is shifted in its vector.
    const fn shift(&self, lane: u8) -> u32 {
        8 * (lane * self.unit()) as u32
    }
}

/// Puts what was loaded into vectors.
pub(super) fn take(registers: &mut impl GuestRegisters, what: &Registers, bytes: &Bytes) {
    let unit = what.unit();
    for nth in 0..what.count() {
        let number = what.number(nth);
        // What is not loaded becomes zero, unless it is one lane that is.
        let kept = match *what {
            Registers::Lane { index, .. } => {
                registers.vector(number) & !(ones(unit) << what.shift(index))
            }
            _ => 0,
        };
        let value = what.lanes().fold(kept, |value, lane| {
            value | bytes.get(what.offset(nth, lane), unit) << what.shift(lane)
        });
        registers.set_vector(number, value);
    }
}

/// What is to be stored of vectors. There is no store that replicates: it would be its last lane's.
pub(super) fn give(registers: &impl GuestRegisters, what: &Registers) -> Bytes {
    let mut bytes = Bytes::default();
    for nth in 0..what.count() {
        let value = registers.vector(what.number(nth));
        for lane in what.lanes() {
            let part = value >> what.shift(lane);
            bytes.set(what.offset(nth, lane), what.unit(), part);
        }
    }
    bytes
}

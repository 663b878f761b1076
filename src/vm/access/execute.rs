//! Doing what an [`Operation`] says, to registers and memory that are traits.
//!
//! No register changes before memory has been dealt with, so that an access that stops half-way can be made again, or
//! told of.

use super::arithmetic::{joined, parted, sign_extended, truncated};
use super::env::{GuestRegisters, Memory, Stop};
use super::extent::{Extent, address};
use super::layout::{Bytes, give, take};
use super::operation::{Direction, Modify, Operation, Order, R31, Registers};

/// An operation that is carried out.
pub struct Execution<'a, R, M> {
    /// The vCPU's registers.
    pub registers: &'a mut R,
    /// The memory of the operation's [`Extent`].
    pub memory: &'a mut M,
}

impl<R: GuestRegisters, M: Memory> Execution<'_, R, M> {
    /// Does it.
    ///
    /// # Errors
    /// [`Stop`]; no register has changed.
    pub fn run(&mut self, operation: &Operation, extent: &Extent) -> Result<(), Stop> {
        match *operation {
            Operation::Nothing => Ok(()),
            Operation::Transfer {
                direction,
                at,
                registers,
                order,
                ..
            } => {
                let back = address(&at, self.registers).1;
                self.fenced(order, |this| match direction {
                    Direction::Load => this.load(extent, &registers, back),
                    Direction::Store => this.store(extent, &registers, back),
                })
            }
            Operation::Modify {
                how,
                size,
                rs,
                rt,
                upper,
                order,
                ..
            } => {
                let operand = joined(|number| self.registers.register(number), (rs, upper), size);
                let old = self.fenced(order, |this| this.modify(extent.at, size, how, operand))?;
                let set = |number, value| self.registers.set_register(number, value);
                parted(set, old, (rt, upper), size);
                Ok(())
            }
            Operation::CompareSwap {
                size,
                pair,
                rs,
                rt,
                order,
                ..
            } => {
                let [expected, new] = [rs, rt].map(|first| self.gather(first, pair, size));
                let old = self.fenced(order, |this| {
                    this.memory.exchange(extent.at, size, expected, new)
                })?;
                let second = pair.then(|| rs.wrapping_add(1) & R31);
                let set = |number, value| self.registers.set_register(number, value);
                parted(set, old, (rs, second), size);
                Ok(())
            }
            // Of use with its store alone: `sequence`.
            Operation::LoadExclusive { .. } => Err(Stop::Unsupported),
            // There was none before it that was carried out: the monitor is open.
            Operation::StoreExclusive { status, .. } => {
                self.registers.set_register(status, 1);
                Ok(())
            }
            Operation::ZeroBlock { .. } => self.memory.zero(extent.at, extent.length),
        }
    }

    fn fenced<T>(
        &mut self,
        order: Order,
        access: impl FnOnce(&mut Self) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        if order.release {
            self.memory.fence();
        }
        let result = access(self)?;
        if order.acquire {
            self.memory.fence();
        }
        Ok(result)
    }

    fn write_back(&mut self, back: Option<(u8, u64)>) {
        match back {
            Some((R31, value)) => self.registers.set_stack_pointer(value),
            Some((rn, value)) => self.registers.set_register(rn, value),
            None => {}
        }
    }

    /// The base is written back first: of a base that is loaded as well, hardware may leave either.
    fn load(
        &mut self,
        extent: &Extent,
        what: &Registers,
        back: Option<(u8, u64)>,
    ) -> Result<(), Stop> {
        let unit = what.unit();
        if let Registers::General {
            rt,
            rt2,
            signed,
            wide,
            ..
        } = *what
        {
            let first = self.memory.load(extent.at, unit)?;
            let second = match rt2 {
                Some(rt2) => Some((rt2, self.memory.load(behind(extent, unit), unit)?)),
                None => None,
            };
            self.write_back(back);
            for (register, raw) in core::iter::once((rt, first)).chain(second) {
                let value = widened(raw as u64, unit, (signed, wide));
                self.registers.set_register(register, value);
            }
            return Ok(());
        }
        let mut bytes = Bytes::default();
        for offset in (0..what.length()).step_by(unit.max(1).into()) {
            let value = self.memory.load(behind(extent, offset), unit)?;
            bytes.set(offset, unit, value);
        }
        self.write_back(back);
        take(self.registers, what, &bytes);
        Ok(())
    }

    fn store(
        &mut self,
        extent: &Extent,
        what: &Registers,
        back: Option<(u8, u64)>,
    ) -> Result<(), Stop> {
        let unit = what.unit();
        if let Registers::General { rt, rt2, .. } = *what {
            for (offset, register) in [(0, Some(rt)), (unit, rt2)] {
                if let Some(register) = register {
                    let value = truncated(self.registers.register(register).into(), unit);
                    self.memory.store(behind(extent, offset), unit, value)?;
                }
            }
        } else {
            let bytes = give(self.registers, what);
            for offset in (0..what.length()).step_by(unit.max(1).into()) {
                let value = bytes.get(offset, unit);
                self.memory.store(behind(extent, offset), unit, value)?;
            }
        }
        self.write_back(back);
        Ok(())
    }

    /// Repeats until nobody was faster, a bounded number of times.
    fn modify(&mut self, at: u64, size: u8, how: Modify, operand: u128) -> Result<u128, Stop> {
        /// How often others may be faster before the guest is to try again itself.
        const TRIES: u32 = 64;
        let mut old = self.memory.load(at, size)?;
        for _ in 0..TRIES {
            let new = how.apply(old, operand, size);
            let seen = self.memory.exchange(at, size, old, new)?;
            if seen == old {
                return Ok(old);
            }
            old = seen;
        }
        Err(Stop::Contended)
    }

    /// Of CASP, the registers are `first` and the one behind it, each with half of `size` bytes.
    fn gather(&self, first: u8, pair: bool, size: u8) -> u128 {
        let second = pair.then(|| first.wrapping_add(1) & R31);
        joined(
            |number| self.registers.register(number),
            (first, second),
            size,
        )
    }
}

/// The address `offset` bytes behind the first.
const fn behind(extent: &Extent, offset: u8) -> u64 {
    extent.at.wrapping_add(offset as u64)
}

/// What a general register has after `size` bytes were loaded, with their sign or without, into all of it or its lower
/// half.
const fn widened(raw: u64, size: u8, (signed, wide): (bool, bool)) -> u64 {
    let value = if signed {
        sign_extended(raw, size)
    } else {
        raw
    };
    if wide { value } else { value & u32::MAX as u64 }
}

impl Modify {
    /// What is in memory afterwards, of `size` bytes.
    fn apply(self, old: u128, operand: u128, size: u8) -> u128 {
        let signed = |value: u128| sign_extended(value as u64, size).cast_signed();
        let new = match self {
            Self::Add => old.wrapping_add(operand),
            Self::Clear => old & !operand,
            Self::ExclusiveOr => old ^ operand,
            Self::Set => old | operand,
            Self::SignedMax if signed(operand) > signed(old) => operand,
            Self::SignedMin if signed(operand) < signed(old) => operand,
            Self::SignedMax | Self::SignedMin => old,
            Self::UnsignedMax => old.max(operand),
            Self::UnsignedMin => old.min(operand),
            Self::Swap => operand,
        };
        truncated(new, size)
    }
}

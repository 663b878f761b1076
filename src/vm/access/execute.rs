//! Doing what an [`Operation`] says, to registers and memory that are traits.
//!
//! First [`extent`] says what memory is accessed, so that whoever calls can see to it that all of it is there
//! and allowed. Then [`Execution::run`] accesses it. No register changes before memory has been dealt with, so
//! that an access that stops half-way can be made again, or told of.

use super::operation::{
    Addressing, Direction, Extend, Modify, Operation, Order, Registers, Writeback,
};

/// XZR, or SP as a base.
const R31: u8 = 31;
/// Most bytes that an operation other than DC ZVA accesses: four vectors.
pub const MOST: usize = 64;

/// The registers of the vCPU that made the access.
pub trait GuestRegisters {
    /// General register `number`; 31 is XZR.
    fn register(&self, number: u8) -> u64;
    /// Sets general register `number`; nothing happens for 31.
    fn set_register(&mut self, number: u8, value: u64);
    /// The stack pointer in use.
    fn stack_pointer(&self) -> u64;
    /// Sets it.
    fn set_stack_pointer(&mut self, value: u64);
    /// SIMD&FP register `number`.
    fn vector(&self, number: u8) -> u128;
    /// Sets it. What an SVE register has above it becomes zero.
    fn set_vector(&mut self, number: u8, value: u128);
    /// The address of the instruction.
    fn pc(&self) -> u64;
    /// Bytes that DC ZVA zeroes: a power of two, at most 2,048.
    fn zero_block(&self) -> u64;
}

/// Why an access was not made to its end. What it was to write may be written in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The memory of the byte at this address is poisoned.
    Poisoned(u64),
    /// Others were at the same place all the time: it is to be made again.
    Contended,
    /// The memory refuses accesses of this kind.
    Unsupported,
}

/// The memory that an [`Extent`] names, by the guest's addresses.
///
/// An access of `size` (1, 2, 4, 8 or 16) bytes that lies in one page is one access of the CPU.
pub trait Memory {
    /// Reads.
    ///
    /// # Errors
    /// [`Stop`].
    fn load(&mut self, at: u64, size: u8) -> Result<u128, Stop>;
    /// Writes.
    ///
    /// # Errors
    /// [`Stop`].
    fn store(&mut self, at: u64, size: u8, value: u128) -> Result<(), Stop>;
    /// Writes `new` if `expected` is there, in one step for all observers. Returns what was there. `at` is a
    /// multiple of `size`.
    ///
    /// # Errors
    /// [`Stop`].
    fn exchange(&mut self, at: u64, size: u8, expected: u128, new: u128) -> Result<u128, Stop>;
    /// Writes zeros.
    ///
    /// # Errors
    /// [`Stop`].
    fn zero(&mut self, at: u64, length: u64) -> Result<(), Stop>;
    /// What comes before this is seen by all observers before what comes after it.
    fn fence(&mut self);
}

/// What is done to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is read.
    Read,
    /// It is written.
    Write,
    /// It is read and written, in one step.
    Update,
}

/// The memory that an operation accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first address.
    pub at: u64,
    /// How many bytes there are. At least one; more than [`MOST`] for DC ZVA alone, which lies in one page.
    pub length: u64,
    /// What is done to them.
    pub kind: Kind,
    /// Whether it is done by an instruction that must be aligned to its length here.
    pub exclusive: bool,
    /// Whether it is done with the rights of EL0, whatever the level.
    pub unprivileged: bool,
}

/// What memory `operation` accesses; `None` if it accesses none.
pub fn extent(operation: &Operation, registers: &impl GuestRegisters) -> Option<Extent> {
    let plain = |at, length: u64, kind| Extent {
        at,
        length,
        kind,
        exclusive: false,
        unprivileged: false,
    };
    let base = |rn: u8| base(registers, rn);
    Some(match *operation {
        Operation::Nothing => return None,
        Operation::Transfer {
            direction,
            at,
            registers: what,
            unprivileged,
            ..
        } => {
            let kind = match direction {
                Direction::Load => Kind::Read,
                Direction::Store => Kind::Write,
            };
            Extent {
                unprivileged,
                ..plain(address(&at, registers).0, what.length().into(), kind)
            }
        }
        Operation::Modify { size, rn, .. } | Operation::CompareSwap { size, rn, .. } => Extent {
            exclusive: true,
            ..plain(base(rn), size.into(), Kind::Update)
        },
        Operation::LoadExclusive { size, rn, .. } => Extent {
            exclusive: true,
            ..plain(base(rn), size.into(), Kind::Read)
        },
        Operation::StoreExclusive { size, rn, .. } => Extent {
            exclusive: true,
            ..plain(base(rn), size.into(), Kind::Write)
        },
        Operation::ZeroBlock { rt } => {
            let block = registers.zero_block();
            let at = registers.register(rt) & !(block.wrapping_sub(1));
            plain(at, block, Kind::Write)
        }
    })
}

fn base(registers: &impl GuestRegisters, rn: u8) -> u64 {
    match rn {
        R31 => registers.stack_pointer(),
        _ => registers.register(rn),
    }
}

/// Where an access is, and which register is written back with what.
fn address(at: &Addressing, registers: &impl GuestRegisters) -> (u64, Option<(u8, u64)>) {
    match *at {
        Addressing::Absolute(address) => (address, None),
        Addressing::Literal(offset) => (registers.pc().wrapping_add_signed(offset), None),
        Addressing::Base {
            rn,
            offset,
            writeback,
        } => {
            let base = base(registers, rn);
            let moved = base.wrapping_add_signed(offset);
            match writeback {
                Writeback::None => (moved, None),
                Writeback::Before => (moved, Some((rn, moved))),
                Writeback::After => (base, Some((rn, moved))),
            }
        }
        Addressing::PostRegister { rn, rm } => {
            let base = base(registers, rn);
            let moved = base.wrapping_add(registers.register(rm));
            (base, Some((rn, moved)))
        }
        Addressing::Extended {
            rn,
            rm,
            extend,
            shift,
        } => {
            let index = registers.register(rm);
            let index = match extend {
                Extend::Lsl => index,
                Extend::Uxtw => index & u64::from(u32::MAX),
                Extend::Sxtw => sign_extended(index, 4),
            };
            (base(registers, rn).wrapping_add(index << shift), None)
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
    const fn unit(&self) -> u8 {
        match *self {
            Self::General { size, .. } | Self::Vector { size, .. } => size,
            Self::Structures { element, .. }
            | Self::Lane { element, .. }
            | Self::Replicate { element, .. } => element,
        }
    }
}

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
                order,
                ..
            } => {
                let operand = truncated(self.registers.register(rs).into(), size);
                let old = self.fenced(order, |this| this.modify(extent.at, size, how, operand))?;
                self.registers.set_register(rt, old as u64);
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
            Operation::StoreExclusive { rs, .. } => {
                self.registers.set_register(rs, 1);
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
        let mut bytes = Bytes::default();
        let unit = what.unit();
        for offset in (0..what.length()).step_by(unit.max(1).into()) {
            let value = self
                .memory
                .load(extent.at.wrapping_add(offset.into()), unit)?;
            bytes.set(offset, unit, value);
        }
        self.write_back(back);
        self.take(what, &bytes);
        Ok(())
    }

    fn store(
        &mut self,
        extent: &Extent,
        what: &Registers,
        back: Option<(u8, u64)>,
    ) -> Result<(), Stop> {
        let bytes = self.give(what);
        let unit = what.unit();
        for offset in (0..what.length()).step_by(unit.max(1).into()) {
            let at = extent.at.wrapping_add(offset.into());
            self.memory.store(at, unit, bytes.get(offset, unit))?;
        }
        self.write_back(back);
        Ok(())
    }

    /// Puts what was loaded into registers.
    fn take(&mut self, what: &Registers, bytes: &Bytes) {
        match *what {
            Registers::General {
                rt,
                rt2,
                size,
                signed,
                wide,
            } => {
                for (at, register) in (0..).zip([Some(rt), rt2].into_iter().flatten()) {
                    let raw = bytes.get(at * size, size) as u64;
                    let value = if signed {
                        sign_extended(raw, size)
                    } else {
                        raw
                    };
                    let mask = if wide { u64::MAX } else { u32::MAX.into() };
                    self.registers.set_register(register, value & mask);
                }
            }
            Registers::Vector { rt, rt2, size } => {
                for (at, register) in (0..).zip([Some(rt), rt2].into_iter().flatten()) {
                    let value = bytes.get(at * size, size);
                    self.registers.set_vector(register, value);
                }
            }
            Registers::Structures {
                rt,
                count,
                element,
                size,
                ..
            } => {
                for vector in 0..count {
                    let mut value = 0;
                    for lane in 0..size / element {
                        let at = what.element_offset(vector, lane);
                        value |= bytes.get(at, element) << (8 * u32::from(lane * element));
                    }
                    self.registers.set_vector(nth(rt, vector), value);
                }
            }
            Registers::Lane {
                rt,
                count,
                element,
                index,
            } => {
                let shift = 8 * u32::from(index * element);
                for vector in 0..count {
                    let (register, new) = (nth(rt, vector), bytes.get(vector * element, element));
                    let kept = self.registers.vector(register) & !(ones(element) << shift);
                    self.registers.set_vector(register, kept | new << shift);
                }
            }
            Registers::Replicate {
                rt,
                count,
                element,
                size,
            } => {
                for vector in 0..count {
                    let one = bytes.get(vector * element, element);
                    let lanes = (0..size / element).map(|lane| 8 * u32::from(lane * element));
                    let value = lanes.fold(0, |all, shift| all | one << shift);
                    self.registers.set_vector(nth(rt, vector), value);
                }
            }
        }
    }

    /// What is to be stored. There is no store that replicates: it would be its first lane's.
    fn give(&self, what: &Registers) -> Bytes {
        let mut bytes = Bytes::default();
        match *what {
            Registers::General { rt, rt2, size, .. } => {
                for (at, register) in (0..).zip([Some(rt), rt2].into_iter().flatten()) {
                    bytes.set(at * size, size, self.registers.register(register).into());
                }
            }
            Registers::Vector { rt, rt2, size } => {
                for (at, register) in (0..).zip([Some(rt), rt2].into_iter().flatten()) {
                    bytes.set(at * size, size, self.registers.vector(register));
                }
            }
            Registers::Structures {
                rt,
                count,
                element,
                size,
                ..
            } => {
                for vector in 0..count {
                    let value = self.registers.vector(nth(rt, vector));
                    for lane in 0..size / element {
                        let part = value >> (8 * u32::from(lane * element));
                        bytes.set(what.element_offset(vector, lane), element, part);
                    }
                }
            }
            Registers::Lane {
                rt,
                count,
                element,
                index,
            } => {
                for vector in 0..count {
                    let value = self.registers.vector(nth(rt, vector));
                    let part = value >> (8 * u32::from(index * element));
                    bytes.set(vector * element, element, part);
                }
            }
            Registers::Replicate {
                rt, count, element, ..
            } => {
                for vector in 0..count {
                    let value = self.registers.vector(nth(rt, vector));
                    bytes.set(vector * element, element, value);
                }
            }
        }
        bytes
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

/// One register, or two with half of `size` bytes each; the first is at the lower address.
pub(super) fn joined(
    register: impl Fn(u8) -> u64,
    (first, second): (u8, Option<u8>),
    size: u8,
) -> u128 {
    let low = u128::from(register(first));
    match second {
        None => truncated(low, size),
        Some(second) => {
            let (half, high) = (size / 2, u128::from(register(second)));
            truncated(low, half) | truncated(high, half) << (8 * u32::from(half))
        }
    }
}

/// The reverse.
pub(super) fn parted(
    mut set: impl FnMut(u8, u64),
    value: u128,
    (first, second): (u8, Option<u8>),
    size: u8,
) {
    match second {
        None => set(first, value as u64),
        Some(second) => {
            let half = size / 2;
            set(first, truncated(value, half) as u64);
            let high = value >> (8 * u32::from(half));
            set(second, truncated(high, half) as u64);
        }
    }
}

impl Registers {
    /// Where element `lane` of vector number `vector` is.
    const fn element_offset(&self, vector: u8, lane: u8) -> u8 {
        match *self {
            Self::Structures {
                count,
                interleaved,
                element,
                size,
                ..
            } => {
                if interleaved {
                    (lane * count + vector) * element
                } else {
                    vector * size + lane * element
                }
            }
            _ => 0,
        }
    }
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

/// What is loaded or stored, in the order of addresses.
struct Bytes([u8; MOST]);

impl Default for Bytes {
    fn default() -> Self {
        Self([0; MOST])
    }
}

impl Bytes {
    fn get(&self, offset: u8, size: u8) -> u128 {
        let mut value = [0; 16];
        let from = self.0.iter().skip(offset.into()).take(size.into());
        for (to, from) in value.iter_mut().zip(from) {
            *to = *from;
        }
        u128::from_le_bytes(value)
    }

    fn set(&mut self, offset: u8, size: u8, value: u128) {
        let to = self.0.iter_mut().skip(offset.into()).take(size.into());
        for (to, from) in to.zip(value.to_le_bytes()) {
            *to = from;
        }
    }
}

/// The register `behind` behind `first`; V0 follows V31.
const fn nth(first: u8, behind: u8) -> u8 {
    first.wrapping_add(behind) & R31
}

/// As many ones as `size` bytes have.
const fn ones(size: u8) -> u128 {
    u128::MAX >> (128 - 8 * (size as u32 & 0x1f))
}

/// The lowest `size` bytes.
const fn truncated(value: u128, size: u8) -> u128 {
    value & ones(size)
}

/// The lowest `size` bytes of `value`, 1 to 8, with their sign above.
const fn sign_extended(value: u64, size: u8) -> u64 {
    let unused = 64 - 8 * (size as u32 & 0xf);
    ((value << unused).cast_signed() >> unused).cast_unsigned()
}

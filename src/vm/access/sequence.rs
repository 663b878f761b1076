//! From a load-exclusive to its store, in one go.
//!
//! The exception return behind a load-exclusive that was carried out opens the CPU's monitor, and a store-exclusive
//! with an open monitor need not even look at memory: it fails, without a fault by which anybody would hear of it.
//! So the load alone is of no use. What stands between both is a few instructions on registers; they are
//! interpreted here, on a copy, and the store is made only if memory still has what was loaded. To everybody else
//! it is one atomic step.
//!
//! Code that leaves the sequence by a branch, or waits (WFE), has only loaded. What is not understood is `None`: then
//! nothing is carried out at all.

use super::decode::decode;
use super::env::GuestRegisters;
use super::fields::{bit, bits, signed, small};
use super::operation::Operation;

/// Most words of a sequence, the load included.
pub const WORDS: usize = 32;
/// Most instructions that are interpreted: a sequence may have branches within.
const STEPS: usize = 64;

/// WFE.
const WFE: u32 = 0xd503_205f;
const NOP: u32 = 0xd503_201f;

const N: u64 = 1 << 31;
const Z: u64 = 1 << 30;
const C: u64 = 1 << 29;
const V: u64 = 1 << 28;

/// The registers of the guest, for as long as nothing is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// x0 to x30, and XZR.
    x: [u64; 32],
    /// N, Z, C and V, as PSTATE has them.
    pub flags: u64,
}

impl Scratch {
    /// A copy of `registers`, with these flags.
    pub fn new(registers: &impl GuestRegisters, pstate: u64) -> Self {
        let mut x = [0; 32];
        for (number, register) in (0..31).zip(&mut x) {
            *register = registers.register(number);
        }
        Self {
            x,
            flags: pstate & (N | Z | C | V),
        }
    }

    /// Register `number`; 31 is XZR.
    pub fn get(&self, number: u8) -> u64 {
        self.x.get(usize::from(number)).copied().unwrap_or(0)
    }

    /// Sets it.
    pub fn set(&mut self, number: u8, value: u64) {
        if number < 31
            && let Some(register) = self.x.get_mut(usize::from(number))
        {
            *register = value;
        }
    }

    /// Makes `registers` these.
    pub fn commit(&self, registers: &mut impl GuestRegisters) {
        for (number, value) in (0..31).zip(&self.x) {
            registers.set_register(number, *value);
        }
    }

    fn width(&self, number: u8, wide: bool) -> u64 {
        narrow(self.get(number), wide)
    }
}

/// Where a sequence ends. Offsets are in bytes from its load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At this store-exclusive.
    Store {
        /// What it is.
        operation: Operation,
        /// Where.
        offset: i64,
    },
    /// It goes on there, and has stored nothing.
    Left(i64),
}

/// Interprets `words`, of which the first was the load, with what was loaded in its registers already.
pub fn run(words: &[u32], scratch: &mut Scratch) -> Option<End> {
    let mut offset = 4_i64;
    for _ in 0..STEPS {
        let at = usize::try_from(offset / 4).ok().filter(|at| *at > 0);
        let Some(word) = at.and_then(|at| words.get(at)).copied() else {
            return Some(End::Left(offset));
        };
        if word == WFE {
            return Some(End::Left(offset));
        }
        match decode(word) {
            Some(operation @ Operation::StoreExclusive { .. }) => {
                return Some(End::Store { operation, offset });
            }
            Some(Operation::Nothing) => offset += 4,
            Some(_) => return None,
            None => offset += step(word, scratch)?,
        }
    }
    None
}

const fn register(word: u32, low: u32) -> u8 {
    small(word, low + 4, low)
}

const fn narrow(value: u64, wide: bool) -> u64 {
    if wide { value } else { value & 0xffff_ffff }
}

/// Bytes that a branch with this signed field of words goes.
const fn branch(word: u32, high: u32, low: u32) -> i64 {
    4 * signed(word, high, low)
}

/// Does what one instruction on registers does, and returns how far to the next. `None`: it is none of those that
/// are known (Arm ARM C4.1, "Data processing" and "Branches").
fn step(word: u32, s: &mut Scratch) -> Option<i64> {
    let wide = bit(word, 31);
    if word == NOP {
        return Some(4);
    }
    if bits(word, 31, 26) == 0b00_0101 {
        return Some(branch(word, 25, 0));
    }
    if word & 0xff00_0010 == 0x5400_0000 {
        let taken = holds(bits(word, 3, 0), s.flags);
        return Some(if taken { branch(word, 23, 5) } else { 4 });
    }
    let rt = register(word, 0);
    match bits(word, 30, 25) {
        // CBZ, CBNZ.
        0b01_1010 => {
            let taken = (s.width(rt, wide) != 0) == bit(word, 24);
            return Some(if taken { branch(word, 23, 5) } else { 4 });
        }
        // TBZ, TBNZ.
        0b01_1011 => {
            let tested = bits(word, 31, 31) << 5 | bits(word, 23, 19);
            let taken = (s.get(rt) >> tested & 1 != 0) == bit(word, 24);
            return Some(if taken { branch(word, 18, 5) } else { 4 });
        }
        _ => {}
    }
    match bits(word, 28, 23) {
        0b10_0010 => add_immediate(word, s),
        0b10_0100 => logical_immediate(word, s),
        0b10_0101 => move_wide(word, s),
        0b10_0110 => bitfield(word, s),
        0b01_0100 | 0b01_0101 => logical(word, s),
        0b01_0110 | 0b01_0111 if !bit(word, 21) => add_shifted(word, s),
        0b01_0110 => add_extended(word, s),
        0b11_0101 if bits(word, 29, 29) == 0 && bits(word, 22, 21) == 0 => select(word, s),
        0b11_0100 if bits(word, 22, 21) == 0b10 && bit(word, 29) => compare_if(word, s),
        _ => None,
    }?;
    Some(4)
}

/// The condition of `cond` (Arm ARM C1.2.4).
const fn holds(cond: u32, flags: u64) -> bool {
    let (n, z) = (flags & N != 0, flags & Z != 0);
    let (c, v) = (flags & C != 0, flags & V != 0);
    let base = match cond >> 1 {
        0 => z,
        1 => c,
        2 => n,
        3 => v,
        4 => c && !z,
        5 => n == v,
        6 => n == v && !z,
        _ => return true,
    };
    base != (cond & 1 != 0)
}

/// Pseudocode `AddWithCarry`: the sum, and the flags.
const fn add(a: u64, b: u64, carry: bool, wide: bool) -> (u64, u64) {
    let (a, b) = (narrow(a, wide), narrow(b, wide));
    let sum = a as u128 + b as u128 + carry as u128;
    let result = narrow(sum as u64, wide);
    let top = if wide { 63 } else { 31 };
    let overflow = (a ^ result) & (b ^ result);
    let mut flags = 0;
    if result >> top & 1 != 0 {
        flags |= N;
    }
    if result == 0 {
        flags |= Z;
    }
    if sum >> (top + 1) & 1 != 0 {
        flags |= C;
    }
    if overflow >> top & 1 != 0 {
        flags |= V;
    }
    (result, flags)
}

/// ADD, ADDS, SUB or SUBS, by bits 30 and 29, of two values.
fn add_or_subtract(word: u32, s: &mut Scratch, a: u64, b: u64) {
    let (wide, subtract) = (bit(word, 31), bit(word, 30));
    let (result, flags) = match subtract {
        true => add(a, !b, true, wide),
        false => add(a, b, false, wide),
    };
    if bit(word, 29) {
        s.flags = flags;
    }
    s.set(register(word, 0), result);
}

/// SP as a source, or as a target where no flags are set, is not for here.
const fn uses_stack(word: u32) -> bool {
    register(word, 5) == 31 || register(word, 0) == 31 && !bit(word, 29)
}

fn add_immediate(word: u32, s: &mut Scratch) -> Option<()> {
    if uses_stack(word) {
        return None;
    }
    let shift = if bit(word, 22) { 12 } else { 0 };
    let immediate = u64::from(bits(word, 21, 10)) << shift;
    let a = s.get(register(word, 5));
    add_or_subtract(word, s, a, immediate);
    Some(())
}

/// A shifted register; `None` where the shift is reserved.
fn shifted(word: u32, s: &Scratch) -> Option<u64> {
    let (wide, amount) = (bit(word, 31), bits(word, 15, 10));
    let size = if wide { 64 } else { 32 };
    if amount >= size {
        return None;
    }
    let value = s.width(register(word, 16), wide);
    let signed = if wide {
        value.cast_signed()
    } else {
        i64::from((value as u32).cast_signed())
    };
    Some(match bits(word, 23, 22) {
        0 => value << amount,
        1 => value >> amount,
        2 => (signed >> amount).cast_unsigned(),
        _ if wide => value.rotate_right(amount),
        _ => (value as u32).rotate_right(amount).into(),
    })
}

fn add_shifted(word: u32, s: &mut Scratch) -> Option<()> {
    if bits(word, 23, 22) == 3 {
        return None;
    }
    let b = shifted(word, s)?;
    let a = s.get(register(word, 5));
    add_or_subtract(word, s, a, b);
    Some(())
}

fn add_extended(word: u32, s: &mut Scratch) -> Option<()> {
    let shift = bits(word, 12, 10);
    if uses_stack(word) || shift > 4 || bits(word, 23, 22) != 0 {
        return None;
    }
    let option = bits(word, 15, 13);
    let unused = 64 - (8 << (option & 3));
    let raw = s.get(register(word, 16)) << unused;
    let value = match option >= 4 {
        true => (raw.cast_signed() >> unused).cast_unsigned(),
        false => raw >> unused,
    };
    let a = s.get(register(word, 5));
    add_or_subtract(word, s, a, value << shift);
    Some(())
}

/// AND, ORR, EOR or ANDS, by bits 30 and 29.
fn logic(word: u32, s: &mut Scratch, b: u64) {
    let wide = bit(word, 31);
    let a = s.width(register(word, 5), wide);
    let result = narrow(
        match bits(word, 30, 29) {
            1 => a | b,
            2 => a ^ b,
            _ => a & b,
        },
        wide,
    );
    if bits(word, 30, 29) == 3 {
        // C and V become 0.
        s.flags = add(result, 0, false, wide).1 & (N | Z);
    }
    s.set(register(word, 0), result);
}

fn logical(word: u32, s: &mut Scratch) -> Option<()> {
    let b = shifted(word, s)?;
    logic(word, s, if bit(word, 21) { !b } else { b });
    Some(())
}

fn logical_immediate(word: u32, s: &mut Scratch) -> Option<()> {
    if register(word, 0) == 31 && bits(word, 30, 29) != 3 {
        return None;
    }
    let mask = bit_mask(word)?;
    logic(word, s, mask);
    Some(())
}

/// Pseudocode `DecodeBitMasks`, of which a logical immediate is the first.
fn bit_mask(word: u32) -> Option<u64> {
    let (n, immr, imms) = (bits(word, 22, 22), bits(word, 21, 16), bits(word, 15, 10));
    if !bit(word, 31) && n != 0 {
        return None;
    }
    let length = (n << 6 | !imms & 0x3f)
        .checked_ilog2()
        .filter(|it| *it > 0)?;
    let size = 1 << length;
    let levels = size - 1;
    let (ones, rotation) = (imms & levels, immr & levels);
    if ones == levels {
        return None;
    }
    let element = (1_u64 << (ones + 1)) - 1;
    let all = u64::MAX >> (64 - size);
    let rotated = match rotation {
        0 => element,
        by => (element >> by | element << (size - by)) & all,
    };
    let copies = (0..64 / size).map(|copy| rotated << (copy * size));
    Some(copies.fold(0, |mask, copy| mask | copy))
}

fn move_wide(word: u32, s: &mut Scratch) -> Option<()> {
    let (wide, shift) = (bit(word, 31), 16 * bits(word, 22, 21));
    if !wide && shift > 16 {
        return None;
    }
    let immediate = u64::from(bits(word, 20, 5)) << shift;
    let rd = register(word, 0);
    let value = match bits(word, 30, 29) {
        0 => !immediate,
        2 => immediate,
        3 => s.get(rd) & !(0xffff << shift) | immediate,
        _ => return None,
    };
    s.set(rd, narrow(value, wide));
    Some(())
}

/// SBFM, BFM and UBFM: what shifts, extensions and fields are made of.
fn bitfield(word: u32, s: &mut Scratch) -> Option<()> {
    let wide = bit(word, 31);
    let size = if wide { 64 } else { 32 };
    let (immr, imms) = (bits(word, 21, 16), bits(word, 15, 10));
    if bit(word, 22) != wide || immr >= size || imms >= size {
        return None;
    }
    let (rd, source) = (register(word, 0), s.width(register(word, 5), wide));
    let ones = |count: u32| u64::MAX >> (64 - count);
    // The field, where it is to stand, and how long it is.
    let (field, at, length) = if imms >= immr {
        (source >> immr, 0, imms - immr + 1)
    } else {
        (source, size - immr, imms + 1)
    };
    let mask = ones(length);
    let placed = (field & mask) << at;
    let value = match bits(word, 30, 29) {
        0 if field >> (length - 1) & 1 != 0 => placed | u64::MAX << at & !(mask << at),
        0 | 2 => placed,
        1 => s.get(rd) & !(mask << at) | placed,
        _ => return None,
    };
    s.set(rd, narrow(value, wide));
    Some(())
}

/// CSEL, CSINC, CSINV and CSNEG.
fn select(word: u32, s: &mut Scratch) -> Option<()> {
    if bit(word, 11) {
        return None;
    }
    let wide = bit(word, 31);
    let [n, m] = [5, 16].map(|low| s.get(register(word, low)));
    let value = if holds(bits(word, 15, 12), s.flags) {
        n
    } else {
        match (bit(word, 30), bit(word, 10)) {
            (false, false) => m,
            (false, true) => m.wrapping_add(1),
            (true, false) => !m,
            (true, true) => m.wrapping_neg(),
        }
    };
    s.set(register(word, 0), narrow(value, wide));
    Some(())
}

/// CCMP and CCMN.
fn compare_if(word: u32, s: &mut Scratch) -> Option<()> {
    if bit(word, 10) || bit(word, 4) {
        return None;
    }
    s.flags = if holds(bits(word, 15, 12), s.flags) {
        let a = s.get(register(word, 5));
        let b = match bit(word, 11) {
            true => bits(word, 20, 16).into(),
            false => s.get(register(word, 16)),
        };
        match bit(word, 30) {
            true => add(a, !b, true, bit(word, 31)).1,
            false => add(a, b, false, bit(word, 31)).1,
        }
    } else {
        u64::from(bits(word, 3, 0)) << 28
    };
    Some(())
}

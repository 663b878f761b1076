//! LD1 to LD4, ST1 to ST4, LD1R to LD4R.

use super::super::fields::{bit, small};
use super::super::operation::{Addressing, Operation, R31, Registers, Writeback};
use super::{at_base, ordered, rn, rs, rt, transfer};

/// "Advanced SIMD load/store multiple structures", with and without post-index.
pub(super) fn structures(word: u32) -> Option<Operation> {
    if bit(word, 31) || bit(word, 21) {
        return None;
    }
    let (count, interleaved) = match small(word, 15, 12) {
        0b0000 => (4, true),
        0b0010 => (4, false),
        0b0100 => (3, true),
        0b0110 => (3, false),
        0b0111 => (1, false),
        0b1000 => (2, true),
        0b1010 => (2, false),
        _ => return None,
    };
    let (element, size) = (1 << small(word, 11, 10), vector_size(word));
    // One element of 8 bytes alone has nothing to alternate with.
    if interleaved && element == 8 && size == 8 {
        return None;
    }
    let at = structure_address(word, count * size)?;
    let registers = Registers::Structures {
        rt: rt(word),
        count,
        interleaved,
        element,
        size,
    };
    Some(transfer(bit(word, 22), at, registers))
}

const fn vector_size(word: u32) -> u8 {
    if bit(word, 30) { 16 } else { 8 }
}

/// Where structures begin: at the base. Post-indexed, `length` or a register is added to it.
fn structure_address(word: u32, length: u8) -> Option<Addressing> {
    let (rn, rm) = (rn(word), rs(word));
    match (bit(word, 23), rm) {
        (false, 0) => Some(at_base(rn)),
        (false, _) => None,
        (true, R31) => Some(Addressing::Base {
            rn,
            offset: length.into(),
            writeback: Writeback::After,
        }),
        (true, rm) => Some(Addressing::PostRegister { rn, rm }),
    }
}

/// "Advanced SIMD load/store single structure", with and without post-index.
pub(super) fn single_structure(word: u32) -> Option<Operation> {
    if bit(word, 31) {
        return None;
    }
    let (load, s, size) = (bit(word, 22), bit(word, 12), small(word, 11, 10));
    let count = (small(word, 13, 13) << 1 | small(word, 21, 21)) + 1;
    let (rt, q) = (rt(word), small(word, 30, 30));
    // Q:S:size is the index of a byte; of what is larger, its upper bits.
    let index = q << 3 | u8::from(s) << 2 | size;
    let (element, registers) = match (small(word, 15, 14), size) {
        (0, _) => lane(rt, count, 1, index),
        (1, 0 | 2) => lane(rt, count, 2, index >> 1),
        (2, 0) => lane(rt, count, 4, index >> 2),
        (2, 1) if !s => lane(rt, count, 8, q),
        (3, _) if load && !s => {
            let element = 1 << size;
            let registers = Registers::Replicate {
                rt,
                count,
                element,
                size: vector_size(word),
            };
            (element, registers)
        }
        _ => return None,
    };
    // LDAP1 and STL1 (FEAT_LRCPC3): LD1 and ST1 of 64 bits, but for a register that is not one.
    if element == 8 && count == 1 && !bit(word, 23) && rs(word) == 1 && small(word, 15, 14) == 2 {
        return Some(ordered(load, at_base(rn(word)), registers));
    }
    let at = structure_address(word, count * element)?;
    Some(transfer(load, at, registers))
}

const fn lane(rt: u8, count: u8, element: u8, index: u8) -> (u8, Registers) {
    let registers = Registers::Lane {
        rt,
        count,
        element,
        index,
    };
    (element, registers)
}

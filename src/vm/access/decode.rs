//! From an instruction's word to an [`Operation`] (Arm ARM C4.1.94, "Loads and stores", and DC ZVA).
//!
//! What is `None` is not carried out: SVE and SME, memory tags, loads that authenticate, 64-byte atomics, those that check
//! what they write (FEAT_THE), memory copy and set, and all that is no load or store, or unallocated.
//! CONSTRAINED UNPREDICTABLE combinations of registers that hardware may execute are executed.

mod structures;
mod synchronizing;

use super::fields::{bit, bits, signed, small};
use super::operation::{Addressing, Direction, Extend, Operation, Order, Registers, Writeback};
use structures::{single_structure, structures};
use synchronizing::{atomic, atomic_pair, exclusive, ordered_pair_or_writeback, ordered_unscaled};

/// DC ZVA with its register cleared (SYS #3, C7, C4, #1).
const DC_ZVA: u32 = 0xd50b_7420;

/// Fields that nearly every load and store has.
const fn rt(word: u32) -> u8 {
    small(word, 4, 0)
}
const fn rn(word: u32) -> u8 {
    small(word, 9, 5)
}
const fn rt2(word: u32) -> u8 {
    small(word, 14, 10)
}
const fn rs(word: u32) -> u8 {
    small(word, 20, 16)
}
/// log2 of the size, bits 31:30.
const fn scale(word: u32) -> u8 {
    small(word, 31, 30)
}

const fn direction(load: bool) -> Direction {
    if load {
        Direction::Load
    } else {
        Direction::Store
    }
}

const fn transfer(load: bool, at: Addressing, registers: Registers) -> Operation {
    Operation::Transfer {
        direction: direction(load),
        at,
        registers,
        order: Order::NONE,
        unprivileged: false,
    }
}

const fn at_base(rn: u8) -> Addressing {
    offset_from(rn, 0)
}

const fn offset_from(rn: u8, offset: i64) -> Addressing {
    Addressing::Base {
        rn,
        offset,
        writeback: Writeback::None,
    }
}

/// Decodes an A64 instruction.
pub fn decode(word: u32) -> Option<Operation> {
    if word & !0x1f == DC_ZVA {
        return Some(Operation::ZeroBlock { rt: rt(word) });
    }
    match small(word, 29, 24) {
        0b00_1000 => exclusive(word),
        0b00_1100 => structures(word),
        0b00_1101 => single_structure(word),
        0b01_1000 | 0b01_1100 => literal(word),
        0b01_1001 if bit(word, 21) => atomic_pair(word),
        0b01_1001 if bits(word, 11, 10) == 2 => ordered_pair_or_writeback(word),
        0b01_1001 | 0b01_1101 => ordered_unscaled(word),
        0b10_1000 | 0b10_1001 | 0b10_1100 | 0b10_1101 => pair(word),
        0b11_1001 | 0b11_1101 => {
            let scale = register_scale(word)?;
            let offset = i64::from(word >> 10 & 0xfff) << scale;
            single(word, offset_from(rn(word), offset))
        }
        0b11_1000 | 0b11_1100 => unscaled_or_index(word),
        _ => None,
    }
}

/// One register that is neither signed nor narrowed.
const fn plain(rt: u8, size: u8) -> Registers {
    Registers::General {
        rt,
        rt2: None,
        size,
        signed: false,
        wide: size == 8,
    }
}

/// A load that acquires, or a store that releases.
const fn ordered(load: bool, at: Addressing, registers: Registers) -> Operation {
    Operation::Transfer {
        direction: direction(load),
        at,
        registers,
        order: Order {
            acquire: load,
            release: !load,
        },
        unprivileged: false,
    }
}

/// "Load register (literal)".
fn literal(word: u32) -> Option<Operation> {
    let (opc, rt) = (scale(word), rt(word));
    let at = Addressing::Literal(4 * signed(word, 23, 5));
    let registers = match (bit(word, 26), opc) {
        (true, 3) => return None,
        (true, _) => Registers::Vector {
            rt,
            rt2: None,
            size: 4 << opc,
        },
        (false, 3) => return Some(Operation::Nothing),
        (false, 2) => Registers::General {
            rt,
            rt2: None,
            size: 4,
            signed: true,
            wide: true,
        },
        (false, _) => plain(rt, 4 << opc),
    };
    Some(transfer(true, at, registers))
}

/// "Load/store register pair", all four kinds.
fn pair(word: u32) -> Option<Operation> {
    let (opc, load) = (scale(word), bit(word, 22));
    let (rt, rt2) = (rt(word), Some(rt2(word)));
    let no_allocate = small(word, 24, 23) == 0;
    let (size, registers) = if bit(word, 26) {
        let size = match opc {
            0..=2 => 4 << opc,
            _ => return None,
        };
        (size, Registers::Vector { rt, rt2, size })
    } else {
        // LDPSW. STGP, which would be its store, is one of tags.
        let signed = opc == 1;
        if opc == 3 || signed && (!load || no_allocate) {
            return None;
        }
        let (size, wide) = if opc == 2 { (8, true) } else { (4, signed) };
        let registers = Registers::General {
            rt,
            rt2,
            size,
            signed,
            wide,
        };
        (size, registers)
    };
    let at = Addressing::Base {
        rn: rn(word),
        offset: i64::from(size) * signed(word, 21, 15),
        writeback: match small(word, 24, 23) {
            0b01 => Writeback::After,
            0b11 => Writeback::Before,
            _ => Writeback::None,
        },
    };
    Some(transfer(load, at, registers))
}

/// log2 of the size of what "Load/store register" transfers.
fn register_scale(word: u32) -> Option<u8> {
    match (bit(word, 26), scale(word), bit(word, 23)) {
        (false, scale, _) | (true, scale, false) => Some(scale),
        (true, 0, true) => Some(4),
        (true, _, true) => None,
    }
}

/// The registers of "Load/store register", by V, size and opc; whether it is a load. `None` for a prefetch as
/// well.
fn registers(word: u32) -> Option<(bool, Registers)> {
    if bit(word, 26) {
        let size = 1 << register_scale(word)?;
        let registers = Registers::Vector {
            rt: rt(word),
            rt2: None,
            size,
        };
        return Some((bit(word, 22), registers));
    }
    general(word)
}

/// The same for general registers.
fn general(word: u32) -> Option<(bool, Registers)> {
    let (scale, opc) = (scale(word), small(word, 23, 22));
    let signed = opc >= 2;
    let wide = match opc {
        0 | 1 => scale == 3,
        2 => true,
        _ => false,
    };
    // There is nothing to extend in 64 bits, nor in 32 bits of 32.
    if signed && scale >= if wide { 3 } else { 2 } {
        return None;
    }
    let registers = Registers::General {
        rt: rt(word),
        rt2: None,
        size: 1 << scale,
        signed,
        wide,
    };
    Some((opc != 0, registers))
}

/// PRFM, PRFUM and RPRFM stand where a load of 64 bits would be that sign-extends.
const fn is_prefetch(word: u32) -> bool {
    !bit(word, 26) && scale(word) == 3 && small(word, 23, 22) == 2
}

/// A load or store of one register, without writeback.
fn single(word: u32, at: Addressing) -> Option<Operation> {
    if is_prefetch(word) {
        return Some(Operation::Nothing);
    }
    let (load, registers) = registers(word)?;
    Some(transfer(load, at, registers))
}

/// "Load/store register" with an immediate of nine bits or an index, and atomics.
fn unscaled_or_index(word: u32) -> Option<Operation> {
    let kind = small(word, 11, 10);
    if bit(word, 21) {
        return match kind {
            0b00 if !bit(word, 26) => atomic(word),
            0b10 => indexed(word),
            _ => None,
        };
    }
    let (rn, offset) = (rn(word), signed(word, 20, 12));
    let writeback = match kind {
        0b00 => return single(word, offset_from(rn, offset)),
        0b01 => Writeback::After,
        0b10 => return unprivileged(word),
        _ => Writeback::Before,
    };
    let at = Addressing::Base {
        rn,
        offset,
        writeback,
    };
    let (load, registers) = registers(word)?;
    Some(transfer(load, at, registers))
}

/// LDTR, STTR and their kin.
fn unprivileged(word: u32) -> Option<Operation> {
    if bit(word, 26) {
        return None;
    }
    let (load, registers) = general(word)?;
    Some(Operation::Transfer {
        direction: direction(load),
        at: offset_from(rn(word), signed(word, 20, 12)),
        registers,
        order: Order::NONE,
        unprivileged: true,
    })
}

/// "Load/store register (register offset)".
fn indexed(word: u32) -> Option<Operation> {
    let extend = match small(word, 15, 13) {
        0b010 => Extend::Uxtw,
        0b011 | 0b111 => Extend::Lsl,
        0b110 => Extend::Sxtw,
        _ => return None,
    };
    let scale = register_scale(word)?;
    let at = Addressing::Extended {
        rn: rn(word),
        rm: rs(word),
        extend,
        shift: if bit(word, 12) { scale.into() } else { 0 },
    };
    single(word, at)
}

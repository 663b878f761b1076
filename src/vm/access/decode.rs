//! From an instruction's word to an [`Operation`] (Arm ARM C4.1.94, "Loads and stores", and DC ZVA).
//!
//! What is `None` is not carried out: SVE and SME, memory tags, loads that authenticate, 64-byte and 128-bit
//! atomics, accesses of FEAT_LRCPC3, memory copy and set, and all that is no load or store, or unallocated.
//! CONSTRAINED UNPREDICTABLE combinations of registers that hardware may execute are executed.

use super::operation::{
    Addressing, Direction, Extend, Modify, Operation, Order, Registers, Writeback,
};

/// DC ZVA with its register cleared (SYS #3, C7, C4, #1).
const DC_ZVA: u32 = 0xd50b_7420;
/// XZR, or SP.
const R31: u8 = 31;

/// Bits `high` to `low` of a word, which are at most eight.
const fn bits(word: u32, high: u32, low: u32) -> u8 {
    ((word >> low) & ((1 << (high - low + 1)) - 1)) as u8
}

const fn bit(word: u32, n: u32) -> bool {
    word >> n & 1 != 0
}

/// Bits `high` to `low` of a word as a signed number.
const fn signed(word: u32, high: u32, low: u32) -> i64 {
    let top = word << (31 - high);
    (top.cast_signed() >> (31 - high + low)) as i64
}

/// Fields that nearly every load and store has.
const fn rt(word: u32) -> u8 {
    bits(word, 4, 0)
}
const fn rn(word: u32) -> u8 {
    bits(word, 9, 5)
}
const fn rt2(word: u32) -> u8 {
    bits(word, 14, 10)
}
const fn rs(word: u32) -> u8 {
    bits(word, 20, 16)
}
/// log2 of the size, bits 31:30.
const fn scale(word: u32) -> u8 {
    bits(word, 31, 30)
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
    match bits(word, 29, 24) {
        0b00_1000 => exclusive(word),
        0b00_1100 => structures(word),
        0b00_1101 => single_structure(word),
        0b01_1000 | 0b01_1100 => literal(word),
        0b01_1001 => ordered_unscaled(word),
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

/// "Load/store exclusive", "ordered", "Compare and swap" and "pair".
fn exclusive(word: u32) -> Option<Operation> {
    let (o2, load, o1, o0) = (bit(word, 23), bit(word, 22), bit(word, 21), bit(word, 15));
    let size = 1 << scale(word);
    let order = Order {
        acquire: load && o0,
        release: !load && o0,
    };
    match (o2, o1) {
        (false, false) => Some(exclusive_of(word, load, size, None, order)),
        (false, true) if bit(word, 31) => {
            Some(exclusive_of(word, load, 2 * size, Some(rt2(word)), order))
        }
        (false, true) => compare_swap_pair(word),
        (true, false) if rs(word) == R31 && rt2(word) == R31 => Some(Operation::Transfer {
            direction: direction(load),
            at: at_base(rn(word)),
            registers: plain(rt(word), size),
            // LDLAR and STLLR order less than LDAR and STLR: within a LORegion.
            order: Order {
                acquire: load,
                release: !load,
            },
            unprivileged: false,
        }),
        (true, true) if rt2(word) == R31 => Some(Operation::CompareSwap {
            size,
            pair: false,
            rs: rs(word),
            rt: rt(word),
            rn: rn(word),
            order: compare_order(word),
        }),
        _ => None,
    }
}

const fn exclusive_of(word: u32, load: bool, size: u8, rt2: Option<u8>, order: Order) -> Operation {
    let (rt, rn, rs) = (rt(word), rn(word), rs(word));
    if load {
        Operation::LoadExclusive {
            size,
            rt,
            rt2,
            rn,
            order,
        }
    } else {
        Operation::StoreExclusive {
            size,
            rs,
            rt,
            rt2,
            rn,
            order,
        }
    }
}

/// CAS and CASP: bit 22 is A, bit 15 R.
const fn compare_order(word: u32) -> Order {
    Order {
        acquire: bit(word, 22),
        release: bit(word, 15),
    }
}

/// CASP: with odd registers it is undefined.
fn compare_swap_pair(word: u32) -> Option<Operation> {
    let (rs, rt) = (rs(word), rt(word));
    let valid = rt2(word) == R31 && rs & 1 == 0 && rt & 1 == 0;
    valid.then(|| Operation::CompareSwap {
        size: if bit(word, 30) { 16 } else { 8 },
        pair: true,
        rs,
        rt,
        rn: rn(word),
        order: compare_order(word),
    })
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

/// STLUR, LDAPUR and their kin (FEAT_LRCPC2).
fn ordered_unscaled(word: u32) -> Option<Operation> {
    if bit(word, 21) || bits(word, 11, 10) != 0 {
        return None;
    }
    let (load, registers) = general(word)?;
    Some(Operation::Transfer {
        direction: direction(load),
        at: offset_from(rn(word), signed(word, 20, 12)),
        registers,
        order: Order {
            acquire: load,
            release: !load,
        },
        unprivileged: false,
    })
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
    let no_allocate = bits(word, 24, 23) == 0;
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
        writeback: match bits(word, 24, 23) {
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
    let (scale, opc) = (scale(word), bits(word, 23, 22));
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
    !bit(word, 26) && scale(word) == 3 && bits(word, 23, 22) == 2
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
    let kind = bits(word, 11, 10);
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
    let extend = match bits(word, 15, 13) {
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

/// "Atomic memory operations".
fn atomic(word: u32) -> Option<Operation> {
    let (acquire, release) = (bit(word, 23), bit(word, 22));
    let size = 1 << scale(word);
    let how = match (bit(word, 15), bits(word, 14, 12)) {
        (false, 0) => Modify::Add,
        (false, 1) => Modify::Clear,
        (false, 2) => Modify::ExclusiveOr,
        (false, 3) => Modify::Set,
        (false, 4) => Modify::SignedMax,
        (false, 5) => Modify::SignedMin,
        (false, 6) => Modify::UnsignedMax,
        (false, 7) => Modify::UnsignedMin,
        (true, 0) => Modify::Swap,
        // LDAPR.
        (true, 4) if acquire && !release && rs(word) == R31 => {
            return Some(Operation::Transfer {
                direction: Direction::Load,
                at: at_base(rn(word)),
                registers: plain(rt(word), size),
                order: Order {
                    acquire: true,
                    release: false,
                },
                unprivileged: false,
            });
        }
        _ => return None,
    };
    Some(Operation::Modify {
        how,
        size,
        rs: rs(word),
        rt: rt(word),
        rn: rn(word),
        order: Order { acquire, release },
    })
}

/// "Advanced SIMD load/store multiple structures", with and without post-index.
fn structures(word: u32) -> Option<Operation> {
    if bit(word, 31) || bit(word, 21) {
        return None;
    }
    let (count, interleaved) = match bits(word, 15, 12) {
        0b0000 => (4, true),
        0b0010 => (4, false),
        0b0100 => (3, true),
        0b0110 => (3, false),
        0b0111 => (1, false),
        0b1000 => (2, true),
        0b1010 => (2, false),
        _ => return None,
    };
    let (element, size) = (1 << bits(word, 11, 10), vector_size(word));
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
fn single_structure(word: u32) -> Option<Operation> {
    if bit(word, 31) {
        return None;
    }
    let (load, s, size) = (bit(word, 22), bit(word, 12), bits(word, 11, 10));
    let count = (bits(word, 13, 13) << 1 | bits(word, 21, 21)) + 1;
    let (rt, q) = (rt(word), bits(word, 30, 30));
    // Q:S:size is the index of a byte; of what is larger, its upper bits.
    let index = q << 3 | u8::from(s) << 2 | size;
    let (element, registers) = match (bits(word, 15, 14), size) {
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

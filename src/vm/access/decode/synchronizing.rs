//! Exclusives, accesses that acquire or release, and atomics.

use super::super::fields::{bit, bits, signed, small};
use super::super::operation::{
    Addressing, Exclusive, Modify, Operation, Order, R31, Registers, Writeback,
};
use super::{at_base, offset_from, ordered, plain, registers, rn, rs, rt, rt2, scale};

/// "Load/store exclusive", "ordered", "Compare and swap" and "pair".
pub(super) fn exclusive(word: u32) -> Option<Operation> {
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
        // LDLAR and STLLR order less than LDAR and STLR: within a LORegion.
        (true, false) if rs(word) == R31 && rt2(word) == R31 => {
            let registers = plain(rt(word), size);
            Some(ordered(load, at_base(rn(word)), registers))
        }
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
    let what = Exclusive {
        size,
        rt: rt(word),
        rt2,
        rn: rn(word),
        order,
    };
    if load {
        Operation::LoadExclusive(what)
    } else {
        let status = rs(word);
        Operation::StoreExclusive { what, status }
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

/// STLUR, LDAPUR and their kin (FEAT_LRCPC2), and those of SIMD&FP registers (FEAT_LRCPC3).
pub(super) fn ordered_unscaled(word: u32) -> Option<Operation> {
    let vector = bit(word, 26);
    if bit(word, 21) || bits(word, 11, 10) != if vector { 2 } else { 0 } {
        return None;
    }
    let (load, registers) = registers(word)?;
    let at = offset_from(rn(word), signed(word, 20, 12));
    Some(ordered(load, at, registers))
}

/// LDIAPP and STILP; LDAPR that goes on behind what it loads, and STLR that begins before its base (FEAT_LRCPC3).
pub(super) fn ordered_pair_or_writeback(word: u32) -> Option<Operation> {
    let (scale, load, writes_back) = (scale(word), bit(word, 22), small(word, 15, 12) == 0);
    if scale < 2 || small(word, 15, 13) != 0 {
        return None;
    }
    let (rt2, single) = (rs(word), bit(word, 23));
    if single && !(rt2 == 0 && writes_back) {
        return None;
    }
    let registers = Registers::General {
        rt: rt(word),
        rt2: (!single).then_some(rt2),
        size: 1 << scale,
        signed: false,
        wide: scale == 3,
    };
    let length = i64::from(registers.length());
    let (offset, writeback) = match (writes_back, load) {
        (false, _) => (0, Writeback::None),
        (true, true) => (length, Writeback::After),
        (true, false) => (-length, Writeback::Before),
    };
    let at = Addressing::Base {
        rn: rn(word),
        offset,
        writeback,
    };
    Some(ordered(load, at, registers))
}

/// LDCLRP, LDSETP and SWPP (FEAT_LSE128). With XZR they are undefined.
pub(super) fn atomic_pair(word: u32) -> Option<Operation> {
    let how = match (scale(word), bits(word, 15, 10)) {
        (0, 0b00_0100) => Modify::Clear,
        (0, 0b00_1100) => Modify::Set,
        (0, 0b10_0000) => Modify::Swap,
        _ => return None,
    };
    let (first, second) = (rt(word), rs(word));
    let valid = first != R31 && second != R31;
    valid.then(|| Operation::Modify {
        how,
        size: 16,
        rs: first,
        rt: first,
        upper: Some(second),
        rn: rn(word),
        order: Order {
            acquire: bit(word, 23),
            release: bit(word, 22),
        },
    })
}

/// "Atomic memory operations".
pub(super) fn atomic(word: u32) -> Option<Operation> {
    let (acquire, release) = (bit(word, 23), bit(word, 22));
    let size = 1 << scale(word);
    let how = match (bit(word, 15), small(word, 14, 12)) {
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
            let registers = plain(rt(word), size);
            return Some(ordered(true, at_base(rn(word)), registers));
        }
        _ => return None,
    };
    Some(Operation::Modify {
        how,
        size,
        rs: rs(word),
        rt: rt(word),
        upper: None,
        rn: rn(word),
        order: Order { acquire, release },
    })
}

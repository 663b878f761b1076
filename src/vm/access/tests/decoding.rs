//! What is decoded, and what is not.

use super::{REFUSED, State, forms, list};
use crate::vm::access::decode::decode;
use crate::vm::access::extent::{MOST, extent};
use crate::vm::access::operation::{Addressing, Direction, Operation, Registers};
use proptest::prelude::*;
use std::vec::Vec;

#[test]
fn what_is_refused_is_refused() {
    for (word, text) in list(REFUSED) {
        assert_eq!(decode(word), None, "{text}");
    }
}

#[test]
fn literals_are_relative_to_the_instruction() {
    let loaded = |word| match decode(word) {
        Some(Operation::Transfer {
            direction: Direction::Load,
            at: Addressing::Literal(offset),
            registers,
            ..
        }) => (offset, registers),
        other => unreachable!("{other:?}"),
    };
    let general = |size, signed, wide| Registers::General {
        rt: 2,
        rt2: None,
        size,
        signed,
        wide,
    };
    let vector = |size| Registers::Vector {
        rt: 2,
        rt2: None,
        size,
    };
    // ldr w2, .+8; ldr x2, .-4; ldrsw x2, .+1048572; ldr s2, .-1048576; ldr d2, .; ldr q2, .+4
    for (word, expected) in [
        (0x1800_0042, (8, general(4, false, false))),
        (0x58ff_ffe2, (-4, general(8, false, true))),
        (0x987f_ffe2, (1_048_572, general(4, true, true))),
        (0x1c80_0002, (-1_048_576, vector(4))),
        (0x5c00_0002, (0, vector(8))),
        (0x9c00_0022, (4, vector(16))),
    ] {
        assert_eq!(loaded(word), expected, "{word:#x}");
    }
    // prfm pldl1keep, .+4
    assert_eq!(decode(0xd800_0020), Some(Operation::Nothing));
    assert_eq!(decode(0xdc00_0020), None);
}

/// A word that is no load or store by its top-level encoding, and not DC ZVA.
fn is_no_access(word: u32) -> bool {
    (word >> 27 & 1 == 0 || word >> 25 & 1 == 1) && word & !0x1f != 0xd50b_7420
}

proptest! {
    #[test]
    fn nothing_else_is_an_access(word: u32) {
        if is_no_access(word) {
            prop_assert_eq!(decode(word), None);
        }
    }

    /// Registers stand in the same bits of every form.
    #[test]
    fn registers_are_fields(form: prop::sample::Index, base in 0..31_u32, data in 0..32_u32) {
        let all: Vec<_> = forms().collect();
        let (word, text) = *form.get(&all);
        let changed = word & !0x3ff | base << 5 | data;
        // CASP has even registers.
        prop_assume!(!text.starts_with("casp") || data & 1 == 0);
        // And 128 bits are no XZR.
        let wide = ["swpp", "ldclrp", "ldsetp"].iter().any(|name| text.starts_with(name));
        prop_assume!(!wide || data != 31);
        let state = State { x: core::array::from_fn(|at| 0x1000 * at as u64), sp: 0, v: [0; 32] };
        let before = decode(word).map(|it| extent(&it, &state));
        let after = decode(changed).map(|it| extent(&it, &state));
        match (before, after) {
            (Some(Some(before)), Some(Some(after))) if !text.starts_with("dc") => {
                let moved = |at: u64, rn: u32| at.wrapping_sub(state.x.get(rn as usize).copied().unwrap_or(0));
                let rn = word >> 5 & 31;
                prop_assert_eq!(moved(after.at, base), moved(before.at, rn), "{}", text);
                prop_assert_eq!((after.length, after.kind), (before.length, before.kind));
            }
            (Some(before), Some(after)) => prop_assert_eq!(before.is_some(), after.is_some()),
            // With its register in other bits, a DC ZVA is something else.
            _ => prop_assert!(text.starts_with("dc"), "{}", text),
        }
    }

    #[test]
    fn no_word_accesses_more_than_there_is_room_for(word: u32) {
        let state = State { x: [u64::MAX - 3; 31], sp: 7, v: [0; 32] };
        if let Some(extent) = decode(word).and_then(|it| extent(&it, &state)) {
            prop_assert!(extent.length > 0 && extent.length <= MOST as u64);
        }
    }
}

//! What stands between a load-exclusive and its store.

use super::State;
use crate::vm::access::operation::Operation;
use crate::vm::access::sequence::{End, Scratch, run};
use proptest::prelude::*;

const LDXR: u32 = 0xc85f_7c22; // ldxr x2, [x1]
const STXR: u32 = 0xc804_7c23; // stxr w4, x3, [x1]
const RET: u32 = 0xd65f_03c0;

fn scratch(x: [u64; 31], flags: u64) -> Scratch {
    let state = State {
        x,
        sp: 0,
        v: [0; 32],
    };
    Scratch::new(&state, flags << 28)
}

/// Runs one instruction between the load and the store; `None` where it is not known.
fn one(word: u32, scratch: &mut Scratch) -> Option<()> {
    match run(&[LDXR, word, STXR], scratch)? {
        End::Store {
            operation: Operation::StoreExclusive { .. },
            offset: 8,
        } => Some(()),
        other => unreachable!("{other:?}"),
    }
}

/// An instruction, and what it leaves in x3 (of x2 and x5, and of x3 and the carry) in 64 bits.
type Plain = (u32, fn(u64, u64, u64) -> u64);

const WIDE: [Plain; 24] = [
    (0x8b05_0043, |a, b, _| a.wrapping_add(b)), // add x3, x2, x5
    (0xcb05_0043, |a, b, _| a.wrapping_sub(b)), // sub x3, x2, x5
    (0x9100_4043, |a, _, _| a.wrapping_add(16)), // add x3, x2, #16
    (0xd140_0443, |a, _, _| a.wrapping_sub(1 << 12)), // sub x3, x2, #1, lsl #12
    (0x8a05_0043, |a, b, _| a & b),             // and x3, x2, x5
    (0xaa05_0043, |a, b, _| a | b),             // orr x3, x2, x5
    (0xca05_0043, |a, b, _| a ^ b),             // eor x3, x2, x5
    (0x8a25_0043, |a, b, _| a & !b),            // bic x3, x2, x5
    (0xaa25_03e3, |_, b, _| !b),                // mvn x3, x5
    (0xaa05_03e3, |_, b, _| b),                 // mov x3, x5
    (0x8b05_1043, |a, b, _| a.wrapping_add(b << 4)), // add x3, x2, x5, lsl #4
    (0xca85_4043, |a, b, _| {
        a ^ (b.cast_signed() >> 16).cast_unsigned()
    }), // eor x3, x2, x5, asr #16
    (0xaac5_2043, |a, b, _| a | b.rotate_right(8)), // orr x3, x2, x5, ror #8
    (0xb240_1c43, |a, _, _| a | 0xff),          // orr x3, x2, #0xff
    (0x9278_dc43, |a, _, _| a & 0xffff_ffff_ffff_ff00), // and x3, x2, #-256
    (0xd200_c043, |a, _, _| a ^ 0x0101_0101_0101_0101), // eor x3, x2, #0x0101010101010101
    (0xd280_0543, |_, _, _| 42),                // mov x3, #42
    (0x9280_0003, |_, _, _| u64::MAX),          // mov x3, #-1
    (0xf2a0_0543, |_, _, c| c & !0xffff_0000 | 42 << 16), // movk x3, #42, lsl #16
    (0xd348_fc43, |a, _, _| a >> 8),            // lsr x3, x2, #8
    (0xd37c_ec43, |a, _, _| a << 4),            // lsl x3, x2, #4
    (0x9340_1c43, |a, _, _| i64::from(a as i8).cast_unsigned()), // sxtb x3, w2
    (0xb378_1c43, |a, _, c| c & !0xff00 | (a & 0xff) << 8), // bfi x3, x2, #8, #8
    (0x8b25_8043, |a, b, _| {
        a.wrapping_add(i64::from(b as i8).cast_unsigned())
    }), // add x3, x2, w5, sxtb
];

proptest! {
    #[test]
    fn arithmetic_is_that_of_64_bits(a: u64, b: u64, c: u64, flags in 0..16_u64) {
        for (word, expected) in WIDE {
            let mut x = [7; 31];
            (x[2], x[5], x[3]) = (a, b, c);
            let mut scratch = scratch(x, flags);
            let before = scratch.flags;
            one(word, &mut scratch).unwrap();
            prop_assert_eq!(scratch.get(3), expected(a, b, c), "{:#x}", word);
            prop_assert_eq!(scratch.flags, before);
        }
    }

    /// With bit 31 clear, the same of 32 bits.
    #[test]
    fn and_of_32(a: u32, b: u32, garbage: u64) {
        for (word, expected) in [(0x8b05_0043, a.wrapping_add(b)), (0xcb05_0043, a.wrapping_sub(b)),
            (0xca05_0043, a ^ b), (0xaa25_03e3, !b), (0x9280_0003, u32::MAX), (0x8a25_0043, a & !b)] {
            let mut x = [garbage; 31];
            (x[2], x[5]) = (garbage << 32 | u64::from(a), garbage << 32 | u64::from(b));
            let mut scratch = scratch(x, 0);
            one(word & !(1 << 31), &mut scratch).unwrap();
            prop_assert_eq!(scratch.get(3), u64::from(expected), "{:#x}", word);
        }
    }

    /// CMP, and every condition by CSEL.
    #[test]
    fn conditions_are_those_of_a_comparison(a: u64, b in prop_oneof![any::<u64>(), 0..3_u64]) {
        for (a, b) in [(a, b), (b, a), (a, a), (i64::MAX as u64, b), (i64::MIN as u64, b)] {
            let (sa, sb) = (a.cast_signed(), b.cast_signed());
            let difference = a.wrapping_sub(b).cast_signed();
            let expected = [a == b, a != b, a >= b, a < b, difference < 0, difference >= 0,
                sa.checked_sub(sb).is_none(), sa.checked_sub(sb).is_some(), a > b, a <= b,
                sa >= sb, sa < sb, sa > sb, sa <= sb, true, true];
            for (cond, expected) in (0_u32..).zip(expected) {
                let mut x = [0; 31];
                (x[2], x[5], x[6], x[7]) = (a, b, 111, 222);
                let mut scratch = scratch(x, 0);
                one(0xeb05_005f, &mut scratch).unwrap(); // cmp x2, x5
                one(0x9a87_00c3 | cond << 12, &mut scratch).unwrap(); // csel x3, x6, x7, cond
                prop_assert_eq!(scratch.get(3), if expected { 111 } else { 222 }, "{} {} {}", a, b, cond);
            }
        }
    }

    #[test]
    fn no_words_go_on_for_ever(words in prop::collection::vec(any::<u32>(), 0..32), first: u32) {
        let mut scratch = scratch([3; 31], 0);
        let _ = run(&words, &mut scratch);
        // Nothing but branches to themselves and forth and back.
        let branches: std::vec::Vec<u32> = words.iter().map(|word| 0x1400_0000 | (word % 32)).collect();
        let _ = run(&branches, &mut scratch);
        let _ = run(&[first; 32], &mut scratch);
    }
}

#[test]
fn branches_leave_or_stay() {
    let mut scratch = scratch([0; 31], 0);
    // cbnz x2, .+12: x2 is 0.
    let words = [LDXR, 0xb500_0062, STXR];
    let end = run(&words, &mut scratch).unwrap();
    assert!(matches!(end, End::Store { offset: 8, .. }));
    scratch.set(2, 1);
    assert_eq!(run(&words, &mut scratch), Some(End::Left(16)));
    // tbz w2, #0, .-8: to before the load.
    scratch.set(2, 2);
    let words = [LDXR, 0x3607_ffc2, STXR];
    assert_eq!(run(&words, &mut scratch), Some(End::Left(-4)));
    // To the load itself: it would be made again.
    assert_eq!(run(&[LDXR, 0x17ff_ffff], &mut scratch), Some(End::Left(0)));
    // wfe
    assert_eq!(
        run(&[LDXR, 0xd503_205f, STXR], &mut scratch),
        Some(End::Left(4))
    );
}

#[test]
fn what_is_not_known_is_not_done() {
    // A return, a call, a load, an access to SP, a multiplication, a system register.
    for word in [
        RET,
        0x9400_0001,
        0xf940_0043,
        0x9100_43ff,
        0x9b05_7c43,
        0xd53b_d043,
    ] {
        let mut scratch = scratch([0; 31], 0);
        assert_eq!(run(&[LDXR, word, STXR], &mut scratch), None, "{word:#x}");
    }
}

//! Every form, decoded and carried out, leaves what the model leaves.

use super::model::Model;
use super::{Flat, State, forms};
use crate::vm::access::decode::decode;
use crate::vm::access::execute::Execution;
use crate::vm::access::extent::{Kind, extent};
use crate::vm::access::operation::Operation;
use proptest::prelude::*;

/// Where memory begins, how much there is, and where the base points within.
const BASE: u64 = 0x10_0000;
const SIZE: usize = 0x1_0000;
const MIDDLE: u64 = BASE + SIZE as u64 / 2;

/// Registers and memory of any contents, but with indices that stay within memory.
fn machine(seed: u64, offset: u64) -> (State, Flat) {
    let mut word = seed | 1;
    let mut next = || {
        // xorshift64 (Marsaglia).
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word
    };
    let mut x = core::array::from_fn(|_| next());
    let garbage = 0x7fff_1234_0000_0000;
    x[1] = MIDDLE + offset;
    (x[8], x[11]) = (16, 3);
    (x[10], x[12]) = (garbage | 40, garbage | 5);
    (x[9], x[13]) = (0xffff_ffe8, garbage | 0xffff_fff9);
    let v = core::array::from_fn(|_| u128::from(next()) << 64 | u128::from(next()));
    let state = State {
        x,
        sp: MIDDLE + offset,
        v,
    };
    let memory = Flat {
        base: BASE,
        bytes: (0..SIZE).map(|_| next() as u8).collect(),
        touched: None,
        steps: [0, 0],
        fences: 0,
    };
    (state, memory)
}

/// Carries `word` out.
fn carry_out(word: u32, (state, memory): (&mut State, &mut Flat)) -> Operation {
    let operation = decode(word).unwrap();
    let Some(extent) = extent(&operation, state) else {
        assert_eq!(operation, Operation::Nothing);
        return operation;
    };
    (memory.touched, memory.steps) = (None, [0, 0]);
    let mut execution = Execution {
        registers: state,
        memory,
    };
    execution.run(&operation, &extent).unwrap();
    // What is announced is what is accessed, no more and no less.
    if let Some(touched) = memory.touched {
        assert_eq!(touched, (extent.at, extent.at + extent.length));
    }
    let wrote = memory.steps[1] > 0;
    assert!(!(wrote && extent.kind == Kind::Read));
    operation
}

fn compare(word: u32, text: &str, seed: u64, offset: u64) {
    let (mut state, mut memory) = machine(seed, offset);
    let mut model = Model {
        state: state.clone(),
        memory: memory.clone(),
    };
    // A compare that succeeds, every other time.
    if text.starts_with("cas") && seed.is_multiple_of(2) {
        let old = memory.at(MIDDLE + offset, 16).to_vec();
        let part = |from| u64::from_le_bytes(old[from..from + 8].try_into().unwrap());
        (state.x[2], state.x[3]) = (part(0), part(8));
        (state.x[4], state.x[6], state.x[7]) = (part(0), part(0), part(8));
        if text.contains("w2, w3") {
            (state.x[2], state.x[3]) = (part(0), part(0) >> 32);
        }
        model.state = state.clone();
    }
    carry_out(word, (&mut state, &mut memory));
    model.step(text);
    assert_eq!(state, model.state, "{text} of {seed:#x} at {offset}");
    assert!(
        memory.bytes == model.memory.bytes,
        "{text} of {seed:#x} at {offset}"
    );
}

/// Load-exclusives and their stores are carried out together: `sequences`.
fn is_exclusive(word: u32) -> bool {
    matches!(
        decode(word),
        Some(Operation::LoadExclusive { .. } | Operation::StoreExclusive { .. })
    )
}

fn is_atomic(word: u32) -> bool {
    !matches!(
        decode(word),
        Some(Operation::Transfer { .. } | Operation::Nothing)
    )
}

#[test]
fn every_form_leaves_what_the_model_leaves() {
    let mut count = 0;
    for (word, text) in forms().filter(|(word, _)| !is_exclusive(*word)) {
        count += 1;
        for seed in 1..4_u64 {
            let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) & !1 | seed & 1;
            let offset = if is_atomic(word) { 16 } else { seed >> 8 & 63 };
            compare(word, text, seed, offset);
        }
    }
    assert!(count > 1000, "{count}");
}

proptest! {
    #[test]
    fn whatever_registers_hold(form: prop::sample::Index, seed: u64, offset in 0..256_u64) {
        let all: std::vec::Vec<_> = forms().filter(|(word, _)| !is_exclusive(*word)).collect();
        let (word, text) = *form.get(&all);
        let offset = if is_atomic(word) { offset & !15 } else { offset };
        compare(word, text, seed, offset);
    }
}

#[test]
fn ordered_accesses_have_fences() {
    for (text, fences) in [
        ("ldar x2, [x1]", 1),
        ("stlr x2, [x1]", 1),
        ("ldaddal x2, x4, [x1]", 2),
        ("ldadd x2, x4, [x1]", 0),
        ("ldr x2, [x1]", 0),
        ("casa x2, x4, [x1]", 1),
    ] {
        let (word, _) = forms().find(|form| form.1 == text).unwrap();
        let (mut state, mut memory) = machine(5, 0);
        carry_out(word, (&mut state, &mut memory));
        assert_eq!(memory.fences, fences, "{text}");
    }
}

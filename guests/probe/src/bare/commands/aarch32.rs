//! `aarch32 A`: loads and stores of EL0 in AArch32, in the page of A and on ordinary memory.

use super::refuse;
use crate::bare::access;
use crate::bare::attack::lab::{self, Lab};
use crate::bare::debug;
use crate::bare::report::report;
use crate::bare::target::Target;
use cordon_probe::PAGE_SIZE;
use cordon_probe::layout::Alias;
use cordon_probe::paging::Attributes;
use cordon_probe::pattern;

/// The code, A32 or T32; r0 is data, r1 the address. It ends with an SVC.
struct Case {
    words: [u32; 2],
    thumb: bool,
}

const fn a32(word: u32) -> Case {
    Case {
        words: [word, 0xef00_0000],
        thumb: false,
    }
}

const fn t32(halves: u32) -> Case {
    Case {
        words: [0xdf00_0000 | halves, 0xdf00_df00],
        thumb: true,
    }
}

const CASES: [Case; 20] = [
    a32(0xe591_0000), // ldr r0, [r1]
    a32(0xe5d1_0001), // ldrb r0, [r1, #1]
    a32(0xe1d1_00b2), // ldrh r0, [r1, #2]
    a32(0xe1d1_00d1), // ldrsb r0, [r1, #1]
    a32(0xe1d1_00f2), // ldrsh r0, [r1, #2]
    a32(0xe581_0000), // str r0, [r1]
    a32(0xe5c1_0003), // strb r0, [r1, #3]
    a32(0xe1c1_00b2), // strh r0, [r1, #2]
    t32(0x6808),      // ldr r0, [r1]
    t32(0x6008),      // str r0, [r1]
    t32(0x8808),      // ldrh r0, [r1]
    // What no syndrome describes.
    a32(0xe491_0004), // ldr r0, [r1], #4
    a32(0xe5a1_0004), // str r0, [r1, #4]!
    a32(0xe891_0005), // ldm r1, {r0, r2}
    a32(0xe881_0001), // stm r1, {r0}
    a32(0xe901_0001), // stmdb r1, {r0}
    a32(0xe1c1_20d0), // ldrd r2, r3, [r1]
    a32(0xe191_0f9f), // ldrex r0, [r1]
    a32(0xed91_0b00), // vldr d0, [r1]
    a32(0xf461_078f), // vld1.32 {d16}, [r1]
];

/// Where in the page, and how many words there are looked at.
const OFFSET: u64 = 0x40;
const WORDS: u64 = 4;
/// The pages of the window, and the code in its own.
const THERE: usize = 0;
const HERE: usize = 1;
const PLACE: usize = 64;
/// Exception class of SVC in AArch32.
const SVC: u8 = 0x11;

/// What one leaves.
#[derive(PartialEq, Eq)]
struct Left {
    class: u8,
    r0: u32,
    memory: [u64; WORDS as usize],
}

/// All of them: `done` left the same as on ordinary memory, `refused` had an external abort and changed nothing.
pub(super) fn aarch32(ipa: u64) {
    let page = ipa / PAGE_SIZE * PAGE_SIZE;
    if !debug::has_aarch32() {
        return refuse("no-aarch32");
    }
    let (true, Some(lab)) = (lab::open().is_some(), Lab::here()) else {
        return refuse("no-room");
    };
    let Some(buffer) = crate::bare::guest::get().buffer.ipa.checked_add(PAGE_SIZE) else {
        return refuse("no-room");
    };
    lab.window.point(THERE, page, Attributes::EL0_DATA);
    lab.window.point(HERE, buffer, Attributes::EL0_DATA);
    let (mut done, mut refused, mut wrong) = (0_u64, 0_u64, 0_u64);
    for case in &CASES {
        let there = attempt(&lab, case, THERE, page);
        let here = attempt(&lab, case, HERE, buffer);
        match (there, here) {
            (Some((left, _)), Some((same, _))) if left == same => done += 1,
            (Some((left, true)), _) if left.memory == filled() => refused += 1,
            _ => {
                wrong += 1;
                report!("event=form-wrong word={:#010x}", case.words[0]);
            }
        }
    }
    report!(
        "event=aarch32 ipa={ipa:#x} count={} done={done} refused={refused} wrong={wrong}",
        CASES.len()
    );
}

/// What is in memory before.
fn filled() -> [u64; WORDS as usize] {
    core::array::from_fn(|at| pattern::value(8 * at as u64))
}

/// Executes the code on the page behind page number `at` of the window. What it leaves, and whether there was an
/// external abort.
fn attempt(lab: &Lab, case: &Case, at: usize, page: u64) -> Option<(Left, bool)> {
    let words = || (0..WORDS).map(|at| Target::at(page + OFFSET + 8 * at, 8));
    for (target, value) in words().zip(filled()) {
        access::store(target?.va(Alias::El1Data), value).ok()?;
    }
    lab.load(PLACE, case.words);
    let base = lab.window.va(at) + OFFSET;
    let (x0, abort) = lab.run_aarch32(PLACE, 0x1234_5678, base, case.thumb);
    let syndrome = abort.syndrome();
    let mut memory = [0; _];
    for (word, target) in memory.iter_mut().zip(words()) {
        *word = access::load(target?.va(Alias::El1Data)).ok()?;
    }
    let class = syndrome.exception_class();
    let left = Left {
        class,
        r0: x0 as u32,
        memory,
    };
    Some((left, class != SVC && syndrome.is_external_abort()))
}

//! `literals A`: LDR and PRFM (literal), which find their memory from where they stand, with the page of A right behind
//! their code and right before it.

use super::refuse;
use crate::bare::access;
use crate::bare::attack::lab::{self, Lab};
use crate::bare::report::report;
use crate::bare::target::Target;
use cordon_probe::PAGE_SIZE;
use cordon_probe::attack::encoding::RET;
use cordon_probe::layout::Alias;
use cordon_probe::paging::Attributes;
use cordon_probe::pattern;

/// What x2 and x3 are afterwards.
#[derive(Clone, Copy)]
enum Loaded {
    General,
    Signed,
    /// The lower and the upper half of V2.
    Vector,
    Nothing,
}

/// Word with register 2 and offset 0, bytes, and what is loaded.
const LITERALS: [(u32, usize, Loaded); 7] = [
    (0x1800_0002, 4, Loaded::General), // ldr w2
    (0x5800_0002, 8, Loaded::General), // ldr x2
    (0x9800_0002, 4, Loaded::Signed),  // ldrsw x2
    (0x1c00_0002, 4, Loaded::Vector),  // ldr s2
    (0x5c00_0002, 8, Loaded::Vector),  // ldr d2
    (0x9c00_0002, 16, Loaded::Vector), // ldr q2
    (0xd800_0002, 0, Loaded::Nothing), // prfm pldl2keep
];
/// `fmov x2, d2` and `fmov x3, v2.d[1]`.
const TO_GENERAL: [u32; 2] = [0x9e66_0042, 0x9eae_0043];
const NOP: u32 = 0xd503_201f;

/// Where in the page: in the middle of it, and where all but the shortest reach into the next one.
const OFFSETS: [u64; 3] = [0x40, 0x84, PAGE_SIZE - 4];
/// Pages of the window: the two before the code, the code, the same two behind it.
const BEFORE: usize = 0;
const CODE: usize = 2;
const BEHIND: usize = 3;
/// The instruction in the page of code.
const PLACE: usize = 64;
/// Words around a literal that are filled.
const WORDS: usize = 3;
/// What a register holds that nothing is loaded into.
const UNTOUCHED: u64 = 0x5555;

/// All of them, and whether what they leave is what memory has.
pub(super) fn literals(ipa: u64) {
    let page = ipa / PAGE_SIZE * PAGE_SIZE;
    let (true, Some(lab)) = (lab::open().is_some(), Lab::here()) else {
        return refuse("no-room");
    };
    lab.window.point(CODE, lab.code(), Attributes::EL1_CODE);
    for first in [BEFORE, BEHIND] {
        for (at, ipa) in (first..).zip([page, page + PAGE_SIZE]) {
            lab.window.point(at, ipa, Attributes::EL1_DATA);
        }
    }
    let (mut count, mut wrong, mut aborts) = (0_u64, 0_u64, 0_u64);
    for offset in OFFSETS {
        let Some(bytes) = fill(page + offset) else {
            return refuse("bad-address");
        };
        let bytes = &bytes[offset as usize % 8..];
        for first in [BEFORE, BEHIND] {
            for (word, size, loaded) in LITERALS {
                count += 1;
                let literal = lab.window.va(first) + offset;
                match execute(&lab, word, literal, loaded) {
                    Some(registers) => {
                        wrong += u64::from(registers != expected(bytes, size, loaded))
                    }
                    None => aborts += 1,
                }
            }
        }
    }
    report!("event=literals ipa={ipa:#x} count={count} wrong={wrong} aborts={aborts}");
}

/// Fills the words from that of `ipa` on.
fn fill(ipa: u64) -> Option<[u8; 8 * WORDS]> {
    let mut bytes = [0; _];
    for (at, word) in (ipa / 8 * 8..).step_by(8).zip(bytes.chunks_exact_mut(8)) {
        let value = pattern::value(at) | 1 << 31;
        access::store(Target::at(at, 8)?.va(Alias::El1Data), value).ok()?;
        word.copy_from_slice(&value.to_le_bytes());
    }
    Some(bytes)
}

/// x2 and x3 behind the instruction; `None` if it aborted.
fn execute(lab: &Lab, word: u32, literal: u64, loaded: Loaded) -> Option<[u64; 2]> {
    let at = lab.window.va(CODE) + 4 * PLACE as u64;
    let distance = literal.wrapping_sub(at) as u32 >> 2 & 0x7_ffff;
    let [low, high] = match loaded {
        Loaded::Vector => TO_GENERAL,
        _ => [NOP; 2],
    };
    lab.load(PLACE, [word | distance << 5, low, high, RET]);
    let mut registers = lab::Registers::default();
    (registers[2], registers[3]) = (UNTOUCHED, UNTOUCHED);
    lab.run_at(at, &mut registers).ok()?;
    Some([registers[2], registers[3]])
}

fn expected(bytes: &[u8], size: usize, loaded: Loaded) -> [u64; 2] {
    let mut value = [0; 16];
    value[..size].copy_from_slice(&bytes[..size]);
    let value = u128::from_le_bytes(value);
    let (low, high) = (value as u64, (value >> 64) as u64);
    match loaded {
        Loaded::General => [low, UNTOUCHED],
        Loaded::Signed => [i64::from(low as i32).cast_unsigned(), UNTOUCHED],
        Loaded::Vector => [low, high],
        Loaded::Nothing => [UNTOUCHED; 2],
    }
}

//! The values that the guest leaves in memory.
//!
//! The first 64-bit word of each 64-byte line holds [`value`] of the line's IPA, a bijection: no
//! two lines of an address space hold the same, so a page that was swapped with another, or an
//! access that went elsewhere, is noticed as a wrong value. Successive lines differ by a constant
//! before the last mixing step, which lets the assembly loops do with one addition a line.
//!
//! Words 1 to 7 of a line belong to `hammer`: the 448 words of a page are dealt out to the vCPUs.

use crate::PAGE_SIZE;
use core::iter::StepBy;
use core::ops::Range;

/// Distance in bytes between two checked words.
pub const LINE_SIZE: u64 = 64;

/// Lines in a page.
pub const LINES_PER_PAGE: u64 = PAGE_SIZE / LINE_SIZE;

/// What to add to a [`seed`] for the next line's.
pub const LINE_STEP: u64 = MULTIPLIER.wrapping_mul(LINE_SIZE);

/// Words of a page that `hammer` may write: all but the first of each line.
pub const HAMMER_WORDS: u64 = LINES_PER_PAGE * WORDS_PER_LINE_LEFT;

const WORDS_PER_LINE_LEFT: u64 = LINE_SIZE / 8 - 1;

/// Odd, so that multiplication is a bijection; 2^64 divided by the golden ratio spreads best.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Keeps IPA 0 from having the value 0, which untouched memory has.
const OFFSET: u64 = 0x5bd1_e995_2545_f491;

/// The linear part of [`value`], which an inner loop advances by [`LINE_STEP`].
pub const fn seed(ipa: u64) -> u64 {
    ipa.wrapping_mul(MULTIPLIER).wrapping_add(OFFSET)
}

/// The value that belongs at `ipa`. The assembly loops compute the same from a seed.
pub const fn value(ipa: u64) -> u64 {
    let seed = seed(ipa);
    seed ^ (seed >> 32)
}

/// The value that vCPU `vcpu` writes at `ipa` in round `round` of a hammer.
pub const fn hammer_value(ipa: u64, vcpu: usize, round: u64) -> u64 {
    value(ipa) ^ value(round.wrapping_shl(8) | vcpu as u64)
}

/// Which of a page's [`HAMMER_WORDS`] belong to vCPU `vcpu` of `vcpus`. Every word has one owner.
pub fn hammer_share(vcpu: usize, vcpus: usize) -> StepBy<Range<u64>> {
    (vcpu as u64..HAMMER_WORDS).step_by(vcpus.max(1))
}

/// Where hammer word `index` lies: bytes from the start of its page.
pub const fn hammer_offset(index: u64) -> u64 {
    let line = index / WORDS_PER_LINE_LEFT;
    let word = 1 + index % WORDS_PER_LINE_LEFT;
    line * LINE_SIZE + word * 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn hammer_words_are_dealt_out_once_each_and_spare_the_pattern() {
        for vcpus in [1, 2, 3, 7, 8, 64] {
            let mut offsets = BTreeSet::new();
            for vcpu in 0..vcpus {
                for index in hammer_share(vcpu, vcpus) {
                    assert!(
                        offsets.insert(hammer_offset(index)),
                        "a word has two owners"
                    );
                }
            }
            assert_eq!(offsets.len() as u64, HAMMER_WORDS);
            assert!(offsets.iter().all(|offset| *offset < PAGE_SIZE));
            assert!(offsets.iter().all(|offset| offset % LINE_SIZE != 0));
        }
    }

    proptest! {
        #![proptest_config(crate::test_config())]

        #[test]
        fn the_next_line_is_one_step_away(ipa in 0..1_u64 << 48) {
            prop_assert_eq!(seed(ipa).wrapping_add(LINE_STEP), seed(ipa + LINE_SIZE));
        }

        #[test]
        fn different_addresses_have_different_values(a: u64, b: u64) {
            prop_assert_eq!(a == b, value(a) == value(b));
        }

        #[test]
        fn a_value_of_the_previous_round_is_noticed(
            ipa: u64, vcpu in 0..64_usize, round in 1..u64::from(u32::MAX),
        ) {
            prop_assert_ne!(hammer_value(ipa, vcpu, round), hammer_value(ipa, vcpu, round - 1));
            prop_assert_ne!(hammer_value(ipa, vcpu, round), hammer_value(ipa, vcpu ^ 1, round));
        }
    }
}

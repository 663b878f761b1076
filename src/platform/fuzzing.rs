//! Damage for valid inputs. Random bytes seldom get past a magic; a valid input with a few bytes
//! changed reaches everything behind it.

use alloc::vec::Vec;
use proptest::prelude::*;
use proptest::test_runner::Config;

/// A moderate number of cases; `PROPTEST_CASES` sets another, for a long run.
pub(crate) fn fuzz_config() -> Config {
    let cases = if cfg!(miri) { 8 } else { 1024 };
    let asked = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    Config {
        cases: asked.unwrap_or(cases),
        failure_persistence: None,
        ..Config::default()
    }
}

/// What is done to an input.
#[derive(Clone, Debug)]
pub(crate) struct Damage {
    edits: Vec<(usize, Edit)>,
    keep: Option<usize>,
}

#[derive(Clone, Debug)]
enum Edit {
    Byte(u8),
    Bit(u8),
    /// A big-endian word, at a multiple of four: what lengths, offsets and tokens are.
    Word(u32),
    /// A little-endian word anywhere.
    WordLe(u32),
    /// Copies 4 bytes from elsewhere to a multiple of four: tokens in the wrong place.
    Copy(usize),
}

impl Damage {
    /// Damages `bytes`; positions wrap around.
    pub(crate) fn apply(&self, bytes: &mut Vec<u8>) {
        for (at, edit) in &self.edits {
            let at = at % bytes.len();
            let word = (at & !3)..((at & !3) + 4).min(bytes.len());
            match *edit {
                Edit::Byte(byte) => bytes[at] = byte,
                Edit::Bit(bit) => bytes[at] ^= 1 << (bit % 8),
                Edit::Word(value) if word.len() == 4 => {
                    bytes[word].copy_from_slice(&value.to_be_bytes());
                }
                Edit::WordLe(value) if at + 4 <= bytes.len() => {
                    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
                }
                Edit::Copy(from) if word.len() == 4 => {
                    let from = (from % (bytes.len() - 3)) & !3;
                    bytes.copy_within(from..from + 4, word.start);
                }
                _ => {}
            }
        }
        if let Some(keep) = self.keep {
            bytes.truncate(keep % (bytes.len() + 1));
        }
    }
}

/// One to six edits to an input of about `len` bytes, now and then cut short.
pub(crate) fn damage(len: usize) -> impl Strategy<Value = Damage> {
    let value = prop_oneof![
        any::<u32>(),
        0..16_u32,
        Just(u32::MAX),
        Just(0x7fff_ffff),
        0..u32::try_from(len).unwrap_or(u32::MAX),
    ];
    let edit = prop_oneof![
        any::<u8>().prop_map(Edit::Byte),
        any::<u8>().prop_map(Edit::Bit),
        value.clone().prop_map(Edit::Word),
        value.prop_map(Edit::WordLe),
        any::<usize>().prop_map(Edit::Copy),
    ];
    let edits = proptest::collection::vec((0..len, edit), 1..6);
    let keep = proptest::option::weighted(0.2, 0..len);
    (edits, keep).prop_map(|(edits, keep)| Damage { edits, keep })
}

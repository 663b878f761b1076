//! A set of page numbers, one bit each, that all vCPUs may change at once.

use core::sync::atomic::{AtomicU64, Ordering};

/// A bitmap over words that somebody else provides, all zero at first.
///
/// Each bit stands for itself and nothing else is published through it, so relaxed order does.
#[derive(Clone, Copy, Debug)]
pub struct Bitmap<'a> {
    words: &'a [AtomicU64],
}

impl<'a> Bitmap<'a> {
    /// A bitmap with 64 bits a word.
    pub const fn new(words: &'a [AtomicU64]) -> Self {
        Self { words }
    }

    /// How many words hold `bits` bits.
    pub const fn words_for(bits: u64) -> u64 {
        bits.div_ceil(64)
    }

    fn word(&self, bit: u64) -> Option<(&'a AtomicU64, u64)> {
        let word = self.words.get(usize::try_from(bit / 64).ok()?)?;
        Some((word, 1 << (bit % 64)))
    }

    /// Sets a bit; true if it was clear. A bit beyond the end stays clear.
    pub fn set(&self, bit: u64) -> bool {
        self.word(bit)
            .is_some_and(|(word, mask)| word.fetch_or(mask, Ordering::Relaxed) & mask == 0)
    }

    /// Clears a bit.
    pub fn clear(&self, bit: u64) {
        if let Some((word, mask)) = self.word(bit)
            && word.load(Ordering::Relaxed) & mask != 0
        {
            word.fetch_and(!mask, Ordering::Relaxed);
        }
    }

    /// Whether a bit is set.
    pub fn contains(&self, bit: u64) -> bool {
        self.word(bit)
            .is_some_and(|(word, mask)| word.load(Ordering::Relaxed) & mask != 0)
    }

    /// The bits that are set, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + 'a {
        (0_u64..).zip(self.words).flat_map(|(index, word)| {
            let bits = word.load(Ordering::Relaxed);
            (0..64)
                .filter(move |bit| bits >> bit & 1 != 0)
                .map(move |bit| index * 64 + bit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #![proptest_config(crate::test_config())]

        #[test]
        fn behaves_like_a_set(steps in prop::collection::vec((0..256_u64, any::<bool>()), 0..200)) {
            let words: [AtomicU64; 4] = Default::default();
            let bitmap = Bitmap::new(&words);
            let mut model = BTreeSet::new();
            for (bit, insert) in steps {
                if insert {
                    prop_assert_eq!(bitmap.set(bit), model.insert(bit));
                } else {
                    bitmap.clear(bit);
                    model.remove(&bit);
                }
                prop_assert_eq!(bitmap.contains(bit), model.contains(&bit));
            }
            prop_assert!(bitmap.iter().eq(model));
        }
    }

    #[test]
    fn a_bit_beyond_the_end_is_never_set() {
        let words = [AtomicU64::new(0)];
        let bitmap = Bitmap::new(&words);
        assert!(!bitmap.set(64));
        assert!(!bitmap.contains(64));
        assert!(!bitmap.contains(u64::MAX));
    }

    #[test]
    fn a_partial_word_counts_whole() {
        assert_eq!(Bitmap::words_for(0), 0);
        assert_eq!(Bitmap::words_for(64), 1);
        assert_eq!(Bitmap::words_for(65), 2);
    }
}

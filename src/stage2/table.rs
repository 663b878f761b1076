//! Writing whole tables that nobody can see yet.

use core::sync::atomic::{AtomicU64, Ordering};

/// How many entries are written between two looks at the counter. The number of entries of a table
/// is a multiple of it for every granule. Twice as many are too many for the compiler to unroll, and
/// cost three times as much.
const UNROLL: usize = 32;

/// Fills a table with `first`, `first + stride`, ... This is nearly all of the work of making a
/// hole in a block. It goes in portions because compilers leave runs of atomic stores as they are.
pub(super) fn fill(words: &[AtomicU64], first: u64, stride: u64) {
    let mut value = first;
    let mut put = |word: &AtomicU64| {
        word.store(value, Ordering::Relaxed);
        value = value.wrapping_add(stride);
    };
    let (portions, rest) = words.as_chunks::<UNROLL>();
    for portion in portions {
        portion.iter().for_each(&mut put);
    }
    rest.iter().for_each(put);
}

/// What the size of every group of leaves is a multiple of.
pub(super) const SMALLEST_GROUP: usize = 16;

/// The same for a whole group.
pub(super) fn fill_group(words: &[AtomicU64], first: u64, stride: u64) {
    let mut value = first;
    let mut put = |word: &AtomicU64| {
        word.store(value, Ordering::Relaxed);
        value = value.wrapping_add(stride);
    };
    let (portions, _) = words.as_chunks::<SMALLEST_GROUP>();
    for portion in portions {
        portion.iter().for_each(&mut put);
    }
}

/// Makes all words of a table say "never mapped".
pub(super) fn clear(words: &[AtomicU64]) {
    fill(words, 0, 0);
}

//! Fields of an instruction's word.

/// Bits `high` to `low`, which are not all 32.
pub(super) const fn bits(word: u32, high: u32, low: u32) -> u32 {
    word >> low & ((1 << (high - low + 1)) - 1)
}

/// The same of at most eight bits.
pub(super) const fn small(word: u32, high: u32, low: u32) -> u8 {
    bits(word, high, low) as u8
}

/// Bit `n`.
pub(super) const fn bit(word: u32, n: u32) -> bool {
    word >> n & 1 != 0
}

/// Bits `high` to `low` as a signed number.
pub(super) const fn signed(word: u32, high: u32, low: u32) -> i64 {
    let top = word << (31 - high);
    (top.cast_signed() >> (31 - high + low)) as i64
}

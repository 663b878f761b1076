//! Values of so many bytes, and pairs of registers as one.

/// One register, or two with half of `size` bytes each; the first is at the lower address.
pub(super) fn joined(
    register: impl Fn(u8) -> u64,
    (first, second): (u8, Option<u8>),
    size: u8,
) -> u128 {
    let low = u128::from(register(first));
    match second {
        None => truncated(low, size),
        Some(second) => {
            let (half, high) = (size / 2, u128::from(register(second)));
            truncated(low, half) | truncated(high, half) << (8 * u32::from(half))
        }
    }
}

/// The reverse.
pub(super) fn parted(
    mut set: impl FnMut(u8, u64),
    value: u128,
    (first, second): (u8, Option<u8>),
    size: u8,
) {
    match second {
        None => set(first, value as u64),
        Some(second) => {
            let half = size / 2;
            set(first, truncated(value, half) as u64);
            let high = value >> (8 * u32::from(half));
            set(second, truncated(high, half) as u64);
        }
    }
}

/// As many ones as `size` bytes have.
pub(super) const fn ones(size: u8) -> u128 {
    u128::MAX >> (128 - 8 * (size as u32 & 0x1f))
}

/// The lowest `size` bytes.
pub(super) const fn truncated(value: u128, size: u8) -> u128 {
    value & ones(size)
}

/// The lowest `size` bytes of `value`, 1 to 8, with their sign above.
pub(super) const fn sign_extended(value: u64, size: u8) -> u64 {
    let unused = 64 - 8 * (size as u32 & 0xf);
    ((value << unused).cast_signed() >> unused).cast_unsigned()
}

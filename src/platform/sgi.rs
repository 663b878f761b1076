//! How one CPU of a GICv3 is addressed by another (Arm IHI 0069, 12.11, ICC_SGI1R_EL1).

/// The value of ICC_SGI1R_EL1 that sends software-generated interrupt `number`, 0 to 15, to the
/// one CPU whose MPIDR_EL1 has these affinity fields.
///
/// The target list has 16 bits; Aff0 beyond 15 takes the range selector, which a GIC with such
/// CPUs has (GICD_TYPER.RSS).
#[must_use]
pub const fn sgi1r(mpidr: u64, number: u32) -> u64 {
    let [aff0, aff1, aff2, _, aff3, ..] = mpidr.to_le_bytes();
    let (list, range) = (1_u64 << (aff0 & 0xf), (aff0 >> 4) as u64);
    (aff3 as u64) << 48
        | range << 44
        | (aff2 as u64) << 32
        | ((number & 0xf) as u64) << 24
        | (aff1 as u64) << 16
        | list
}

#[cfg(test)]
mod tests {
    use super::sgi1r;

    #[test]
    fn every_affinity_field_has_its_place() {
        assert_eq!(sgi1r(0, 0), 1);
        assert_eq!(sgi1r(0x12_0034_5603, 5), 0x0012_0034_0556_0008);
    }

    #[test]
    fn aff0_beyond_15_is_told_apart_by_the_range_selector() {
        for aff0 in 0..=255_u32 {
            let value = sgi1r(aff0.into(), 0);
            assert_eq!(value & 0xffff, 1 << (aff0 % 16));
            assert_eq!(value >> 44, u64::from(aff0 / 16));
        }
    }
}

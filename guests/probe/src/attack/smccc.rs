//! Calls to a hypervisor or to firmware by SMCCC (DEN0028), and what Cordon's guests are to get.

/// What a call must give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// NOT_SUPPORTED, all other registers unchanged.
    NotSupported,
    /// Some answer in x0, all other registers unchanged.
    Answer,
    /// Anything in x0.
    Anything,
    /// The caller goes off, waits, or is no more: it is not called.
    NeverMade,
}

/// SMCCC's NOT_SUPPORTED (DEN0028 7.1).
pub const NOT_SUPPORTED: u64 = u64::MAX;

/// The owning entities, bits 29 to 24.
pub const OWNERS: u32 = 64;

/// Function numbers (bits 15 to 0) that are looked at for every owner: the first ones, PSCI's,
/// TRNG's, the boundaries of reserved ranges, and the queries.
pub const NUMBERS: [u32; 32] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xa, 0xc, 0xd, 0xe, 0xf, 0x10, 0x11, 0x12, 0x13, 0x1f, 0x20,
    0x50, 0x53, 0x7fff, 0x8000, 0xfeff, 0xff00, 0xff01, 0xff02, 0xff03, 0xff10, 0xffff,
];

/// A function identifier.
pub const fn function(fast: bool, wide: bool, owner: u32, number: u32) -> u32 {
    (fast as u32) << 31 | (wide as u32) << 30 | (owner & 0x3f) << 24 | number & 0xff_ffff
}

/// What `function`, with immediate 0 and `x1`, must give.
pub const fn expected(function: u32, x1: u64) -> Expected {
    match function {
        // CPU_SUSPEND, CPU_OFF, SYSTEM_OFF, SYSTEM_RESET.
        0x8400_0001 | 0xc400_0001 | 0x8400_0002 | 0x8400_0008 | 0x8400_0009 => Expected::NeverMade,
        // SYSTEM_RESET2 of the one kind that there is.
        0x8400_0012 | 0xc400_0012 if x1 & 0xffff_ffff == 0 => Expected::NeverMade,
        // What Cordon itself offers (docs/protocols.md): UID; what changes the caller's own memory and is
        // not called; what may be asked.
        0x8600_ff01 => Expected::Anything,
        0xc600_0001 | 0xc600_0004 | 0xc600_0006 | 0xc600_0010 => Expected::NeverMade,
        0x8600_ff03 | 0xc600_0000 | 0xc600_0002 | 0xc600_0003 | 0xc600_0005 => Expected::Answer,
        // SMCCC_VERSION, SMCCC_ARCH_FEATURES, PSCI_VERSION, CPU_ON, AFFINITY_INFO,
        // MIGRATE_INFO_TYPE, PSCI_FEATURES, SYSTEM_RESET2.
        0x8000_0000 | 0x8000_0001 | 0x8400_0000 | 0x8400_0003 | 0xc400_0003 | 0x8400_0004
        | 0xc400_0004 | 0x8400_0006 | 0x8400_000a | 0x8400_0012 | 0xc400_0012 => Expected::Answer,
        _ => Expected::NotSupported,
    }
}

/// Whether `x0` is what a call that is answered may say: an error of DEN0022 5.2.2, or a small number.
pub const fn is_answer(x0: u64) -> bool {
    let signed = x0.cast_signed();
    signed >= -9 && signed <= 0x0001_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmwares_calls_are_nobodys() {
        for function in [0xc200_0001, 0xc200_0002, 0xc200_0003, 0, u32::MAX] {
            assert_eq!(expected(function, 0), Expected::NotSupported);
        }
    }

    #[test]
    fn what_ends_the_caller_is_never_called() {
        assert_eq!(expected(0x8400_0008, 0), Expected::NeverMade);
        assert_eq!(expected(0xc400_0012, 1 << 32), Expected::NeverMade);
        assert_eq!(expected(0xc400_0012, 1), Expected::Answer);
        assert_eq!(function(true, true, 4, 0x12), 0xc400_0012);
    }

    #[test]
    fn answers_are_small() {
        assert!(is_answer(0x0001_0001) && is_answer(NOT_SUPPORTED) && is_answer(0));
        assert!(!is_answer(0x4000_0000) && !is_answer((-10_i64).cast_unsigned()));
    }
}

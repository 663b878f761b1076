//! What a guest may ask of its firmware: PSCI 1.1 (DEN0022F) over SMCCC 1.1 (DEN0028).
//!
//! Decoding is apart from doing: [`Call::decode`] knows the numbers, [`super::exit`] acts.

/// SMCCC and PSCI return values (DEN0028 7.1, DEN0022 5.2.2).
pub mod status {
    /// Success.
    pub const SUCCESS: i64 = 0;
    /// Unknown function, or one that is not implemented.
    pub const NOT_SUPPORTED: i64 = -1;
    /// A parameter makes no sense.
    pub const INVALID_PARAMETERS: i64 = -2;
    /// The core is on.
    pub const ALREADY_ON: i64 = -4;
    /// The core is being turned on.
    pub const ON_PENDING: i64 = -5;
    /// The entry point is not the guest's memory.
    pub const INVALID_ADDRESS: i64 = -9;
}

/// PSCI 1.1, as PSCI_VERSION returns it.
const PSCI_VERSION: i64 = 0x0001_0001;
/// SMCCC 1.1, as SMCCC_VERSION returns it.
const SMCCC_VERSION: i64 = 0x0001_0001;
/// MIGRATE_INFO_TYPE: there is no Trusted OS to migrate (DEN0022 5.9).
const NO_TRUSTED_OS: i64 = 2;

/// Function identifiers. Bit 30 tells the 64-bit form, where there are two.
mod function {
    pub(super) const SMCCC_VERSION: u32 = 0x8000_0000;
    pub(super) const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
    pub(super) const PSCI_VERSION: u32 = 0x8400_0000;
    pub(super) const CPU_SUSPEND_32: u32 = 0x8400_0001;
    pub(super) const CPU_SUSPEND_64: u32 = 0xc400_0001;
    pub(super) const CPU_OFF: u32 = 0x8400_0002;
    pub(super) const CPU_ON_32: u32 = 0x8400_0003;
    pub(super) const CPU_ON_64: u32 = 0xc400_0003;
    pub(super) const AFFINITY_INFO_32: u32 = 0x8400_0004;
    pub(super) const AFFINITY_INFO_64: u32 = 0xc400_0004;
    pub(super) const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
    pub(super) const SYSTEM_OFF: u32 = 0x8400_0008;
    pub(super) const SYSTEM_RESET: u32 = 0x8400_0009;
    pub(super) const PSCI_FEATURES: u32 = 0x8400_000a;
    pub(super) const SYSTEM_RESET2_32: u32 = 0x8400_0012;
    pub(super) const SYSTEM_RESET2_64: u32 = 0xc400_0012;
}

/// A call that needs doing, or its answer where the numbers alone decide it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Put this into x0.
    Answer(i64),
    /// Start a vCPU.
    CpuOn {
        /// Affinity fields of its MPIDR.
        target: u64,
        /// IPA of its first instruction.
        entry: u64,
        /// Its x0.
        context: u64,
    },
    /// Let the calling vCPU wait for an interrupt. Whichever state was asked for, it is a standby
    /// state that it gets, out of which it returns to its caller (DEN0022 5.1.2 allows that).
    CpuSuspend,
    /// Stop the calling vCPU.
    CpuOff,
    /// Is a vCPU on?
    AffinityInfo {
        /// Affinity fields of its MPIDR.
        target: u64,
        /// Lowest affinity level that counts; only 0 is supported (DEN0022 5.7.2 allows that).
        level: u64,
    },
    /// End the VM.
    SystemOff,
    /// Start the VM anew.
    SystemReset,
}

impl Call {
    /// Decodes an HVC or SMC with immediate 0 by its w0 and x1 to x3.
    pub fn decode(function: u32, args: [u64; 3]) -> Self {
        let [a, b, c] = args;
        let low = |value: u64| value & 0xffff_ffff;
        match function {
            function::SMCCC_VERSION => Self::Answer(SMCCC_VERSION),
            function::SMCCC_ARCH_FEATURES => Self::Answer(arch_features(a)),
            function::PSCI_VERSION => Self::Answer(PSCI_VERSION),
            function::PSCI_FEATURES => Self::Answer(psci_features(a)),
            function::MIGRATE_INFO_TYPE => Self::Answer(NO_TRUSTED_OS),
            function::CPU_SUSPEND_32 | function::CPU_SUSPEND_64 => Self::CpuSuspend,
            function::CPU_OFF => Self::CpuOff,
            function::CPU_ON_32 => Self::CpuOn {
                target: low(a),
                entry: low(b),
                context: low(c),
            },
            function::CPU_ON_64 => Self::CpuOn {
                target: a,
                entry: b,
                context: c,
            },
            function::AFFINITY_INFO_32 => Self::AffinityInfo {
                target: low(a),
                level: low(b),
            },
            function::AFFINITY_INFO_64 => Self::AffinityInfo {
                target: a,
                level: b,
            },
            function::SYSTEM_OFF => Self::SystemOff,
            function::SYSTEM_RESET => Self::SystemReset,
            function::SYSTEM_RESET2_32 | function::SYSTEM_RESET2_64 => reset2(low(a)),
            _ => Self::Answer(status::NOT_SUPPORTED),
        }
    }

    /// The answer where the numbers alone decide it, as of [`Self::decode`]; `first` is x1, the only argument
    /// that such an answer depends on.
    #[inline]
    pub fn quick(function: u32, first: impl FnOnce() -> u64) -> Option<i64> {
        if function == function::PSCI_VERSION {
            return Some(PSCI_VERSION);
        }
        match Self::decode(function, [first(), 0, 0]) {
            Self::Answer(answer) => Some(answer),
            _ => None,
        }
    }
}

/// SYSTEM_RESET2: the one architectural type there is, a warm reset, is a reset like any other
/// (DEN0022 5.11).
fn reset2(kind: u64) -> Call {
    const SYSTEM_WARM_RESET: u64 = 0;
    match kind {
        SYSTEM_WARM_RESET => Call::SystemReset,
        _ => Call::Answer(status::INVALID_PARAMETERS),
    }
}

fn arch_features(asked: u64) -> i64 {
    match u32::try_from(asked & 0xffff_ffff) {
        Ok(function::SMCCC_VERSION | function::SMCCC_ARCH_FEATURES) => status::SUCCESS,
        _ => status::NOT_SUPPORTED,
    }
}

/// PSCI_FEATURES answers for PSCI functions and SMCCC_VERSION (DEN0022 5.14). No flags to report.
fn psci_features(asked: u64) -> i64 {
    match u32::try_from(asked & 0xffff_ffff) {
        Ok(
            function::SMCCC_VERSION
            | function::PSCI_VERSION
            | function::PSCI_FEATURES
            | function::MIGRATE_INFO_TYPE
            | function::CPU_SUSPEND_32
            | function::CPU_SUSPEND_64
            | function::CPU_OFF
            | function::CPU_ON_32
            | function::CPU_ON_64
            | function::AFFINITY_INFO_32
            | function::AFFINITY_INFO_64
            | function::SYSTEM_OFF
            | function::SYSTEM_RESET
            | function::SYSTEM_RESET2_32
            | function::SYSTEM_RESET2_64,
        ) => status::SUCCESS,
        _ => status::NOT_SUPPORTED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_32_bit_form_ignores_the_upper_half_of_its_arguments() {
        let args = [0xdead_0000_0000_0001, 0xbeef_0000_4000_0000, u64::MAX];
        assert_eq!(
            Call::decode(0x8400_0003, args),
            Call::CpuOn {
                target: 1,
                entry: 0x4000_0000,
                context: 0xffff_ffff
            }
        );
        assert_eq!(
            Call::decode(0xc400_0003, args),
            Call::CpuOn {
                target: args[0],
                entry: args[1],
                context: args[2]
            }
        );
    }

    #[test]
    fn features_says_yes_exactly_where_decode_does_something() {
        for function in (0x8400_0000..0x8400_0020u32).chain(0xc400_0000..0xc400_0020) {
            let known = Call::decode(function, [0; 3]) != Call::Answer(status::NOT_SUPPORTED)
                || function == function::PSCI_FEATURES;
            let told = Call::decode(function::PSCI_FEATURES, [u64::from(function), 0, 0]);
            assert_eq!(told == Call::Answer(0), known, "{function:#x}");
        }
    }

    #[test]
    fn of_the_kinds_of_reset_only_the_warm_one_is_known() {
        for function in [0x8400_0012, 0xc400_0012] {
            assert_eq!(Call::decode(function, [0, 9, 9]), Call::SystemReset);
            for kind in [1, 0x8000_0000] {
                assert_eq!(Call::decode(function, [kind, 0, 0]), Call::Answer(-2));
            }
        }
    }

    #[test]
    fn the_quick_way_answers_what_decode_answers_and_does_nothing_else() {
        let ranges = [0x8000_0000, 0x8400_0000, 0xc400_0000];
        for function in ranges.into_iter().flat_map(|start| start..start + 0x20) {
            for first in [0, 1, 0x8400_0000, 0x8000_0001, 0x8000_0000] {
                let whole = match Call::decode(function, [first, 7, 9]) {
                    Call::Answer(answer) => Some(answer),
                    _ => None,
                };
                assert_eq!(Call::quick(function, || first), whole, "{function:#x}");
            }
        }
    }

    #[test]
    fn an_unknown_function_is_not_supported() {
        for function in [0, 0x8600_ff01, 0xc200_0001, 0xffff_ffff] {
            assert_eq!(Call::decode(function, [0; 3]), Call::Answer(-1));
        }
    }
}

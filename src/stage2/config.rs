//! The shape of a VM's stage 2, worked out from what the CPU can do, and the registers that say so.
//!
//! With the 4K granule the tables start at level 1 wherever they can (up to 43 bits of IPA, with up
//! to 16 concatenated root tables), at level 0 from 44 bits on. Starting at level 2, which the
//! architecture also offers for small spaces, would give up the 1 GiB blocks.

use super::bbm::Strategy;
use super::granule::{Granule, Level};
use crate::addr::{Ipa, Pa, Vmid};
use core::fmt;

/// The smallest IPA space. All of it is below 4 GiB, where guests expect their first RAM.
pub const MIN_IPA_BITS: u32 = 32;
/// The largest IPA space without FEAT_LPA2.
pub const MAX_IPA_BITS: u32 = 48;

/// What guests are given that need no more: 1 TiB.
pub const USUAL_IPA_BITS: u32 = 40;

/// The most tables that can be concatenated at the start level (Arm ARM D8.2, "Concatenated
/// translation tables").
const MAX_CONCATENATED_BITS: u32 = 4;

/// `ID_AA64MMFR0_EL1.PARange`, in bits of PA, by the field's value.
const PA_RANGES: [u32; 8] = [32, 36, 40, 42, 44, 48, 52, 56];
/// The value of `PARange` (and of `VTCR_EL2.PS`) for 48 bits: the largest in use here.
const PA_RANGE_48: u64 = 5;

// Fields of VTCR_EL2 (Arm ARM, "VTCR_EL2, Virtualization Translation Control Register").
// T0SZ, bits [5:0], needs no shift. TG0, bits [15:14], is 0 for 4K; VS, bit 19, is 0 for 8-bit VMIDs.
const VTCR_SL0_SHIFT: u32 = 6;
const VTCR_IRGN0_WB_RA_WA: u64 = 0b01 << 8;
const VTCR_ORGN0_WB_RA_WA: u64 = 0b01 << 10;
const VTCR_SH0_INNER: u64 = 0b11 << 12;
const VTCR_TG0_4K: u64 = 0b00 << 14;
const VTCR_PS_SHIFT: u32 = 16;
const VTCR_RES1: u64 = 1 << 31;

/// Field `VTTBR_EL2.VMID`, bits [55:48] while `VTCR_EL2.VS` is 0.
const VTTBR_VMID_SHIFT: u32 = 48;

/// Why a stage 2 cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// `ID_AA64MMFR0_EL1.PARange` has this value, which is not defined.
    UnknownPaRange(u64),
    /// The CPU has no 4K granule at stage 2.
    NoGranule4K,
    /// An IPA space of this many bits is below [`MIN_IPA_BITS`], or larger than the PA space.
    IpaBits(u32),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownPaRange(raw) => write!(f, "unknown-pa-range-{raw}"),
            Self::NoGranule4K => f.write_str("no-4k-granule-at-stage-2"),
            Self::IpaBits(bits) => write!(f, "no-ipa-space-of-{bits}-bits"),
        }
    }
}

/// The shape of a stage 2. Every CPU that runs the VM must have been asked: the tables are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    pa_range: u64,
    pa_bits: u32,
    ipa_bits: u32,
    fwb: bool,
    strategy: Strategy,
}

impl Config {
    /// The largest stage 2 that a CPU with these ID registers has, up to 48 bits.
    ///
    /// # Errors
    /// [`ConfigError::UnknownPaRange`], [`ConfigError::NoGranule4K`].
    pub fn from_id_registers(
        id_aa64mmfr0_el1: u64,
        id_aa64mmfr2_el1: u64,
    ) -> Result<Self, ConfigError> {
        if !has_granule_4k(id_aa64mmfr0_el1) {
            return Err(ConfigError::NoGranule4K);
        }
        let fwb = field(id_aa64mmfr2_el1, 40) != 0;
        let bbm = field(id_aa64mmfr2_el1, 52);
        Ok(Self::new(field(id_aa64mmfr0_el1, 0))?
            .with_fwb(fwb)
            .with_strategy(Strategy::for_bbm_level(bbm)))
    }

    /// The largest stage 2, up to 48 bits, for a value of `ID_AA64MMFR0_EL1.PARange`; without
    /// FEAT_S2FWB, and with break-before-make in full.
    ///
    /// # Errors
    /// [`ConfigError::UnknownPaRange`].
    pub fn new(pa_range: u64) -> Result<Self, ConfigError> {
        let bits = usize::try_from(pa_range)
            .ok()
            .and_then(|at| PA_RANGES.get(at))
            .ok_or(ConfigError::UnknownPaRange(pa_range))?;
        let pa_bits = (*bits).min(MAX_IPA_BITS);
        Ok(Self {
            pa_range: pa_range.min(PA_RANGE_48),
            pa_bits,
            ipa_bits: pa_bits,
            fwb: false,
            strategy: Strategy::BreakFirst,
        })
    }

    /// The same with an IPA space of `bits`, for a VM that needs no more: a smaller space can save
    /// a level of every walk.
    ///
    /// # Errors
    /// [`ConfigError::IpaBits`]. A space larger than the PA space would fault on every walk.
    pub fn with_ipa_bits(self, bits: u32) -> Result<Self, ConfigError> {
        if !(MIN_IPA_BITS..=self.pa_bits).contains(&bits) {
            return Err(ConfigError::IpaBits(bits));
        }
        Ok(Self {
            ipa_bits: bits,
            ..self
        })
    }

    /// The same with an IPA space for a VM whose last address is `last`: as many bits as a guest's
    /// `ID_AA64MMFR0_EL1.PARange` can tell, from 40 on, which start the walk as far down as one of 48
    /// bits would not; all there are if that is not enough.
    #[must_use]
    pub fn for_last(self, last: Ipa) -> Self {
        let bits = PA_RANGES
            .into_iter()
            .filter(|bits| (USUAL_IPA_BITS..=self.pa_bits).contains(bits))
            .find(|bits| last.get() >> bits == 0);
        Self {
            ipa_bits: bits.unwrap_or(self.pa_bits),
            ..self
        }
    }

    /// The same with memory types encoded for `HCR_EL2.FWB` = `fwb`. Whoever sets `HCR_EL2` must
    /// follow [`Self::fwb`].
    #[must_use]
    pub const fn with_fwb(self, fwb: bool) -> Self {
        Self { fwb, ..self }
    }

    /// The same with another way to exchange a block for a table.
    #[must_use]
    pub const fn with_strategy(self, strategy: Strategy) -> Self {
        Self { strategy, ..self }
    }

    /// The translation granule.
    pub const fn granule(&self) -> Granule {
        Granule::K4
    }

    /// Bits of an output address, at most 48.
    pub const fn pa_bits(&self) -> u32 {
        self.pa_bits
    }

    /// Bits of an input address, 32 to 48.
    pub const fn ipa_bits(&self) -> u32 {
        self.ipa_bits
    }

    /// The value that `HCR_EL2.FWB` must have while the VM runs.
    pub const fn fwb(&self) -> bool {
        self.fwb
    }

    /// How a live block is exchanged for a table.
    pub const fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// The level at which a walk starts.
    pub const fn start_level(&self) -> Level {
        let g = self.granule();
        let reach = g.shift(Level::L1) + g.index_bits() + MAX_CONCATENATED_BITS;
        // SL0 for level 0 is reserved where the PA space has fewer than 44 bits; it is never
        // chosen there, since the IPA space is no larger.
        if self.ipa_bits <= reach {
            Level::L1
        } else {
            Level::L0
        }
    }

    /// How many tables are concatenated at the start level, 1 to 16. The root is aligned to all of
    /// them together.
    pub const fn root_tables(&self) -> usize {
        let g = self.granule();
        let one = g.shift(self.start_level()) + g.index_bits();
        1 << self.ipa_bits.saturating_sub(one)
    }

    /// Whether `ipa` is inside the IPA space.
    pub const fn has_ipa(&self, ipa: Ipa) -> bool {
        ipa.get() >> self.ipa_bits == 0
    }

    /// Whether `pa` is inside the PA space.
    pub const fn has_pa(&self, pa: Pa) -> bool {
        pa.get() >> self.pa_bits == 0
    }

    /// The value for `VTCR_EL2`: this shape, with walks that are Inner Shareable and Write-Back
    /// Cacheable. HA, HD and DS stay 0.
    pub const fn vtcr_el2(&self) -> u64 {
        let t0sz = 64 - self.ipa_bits as u64;
        // With the 4K granule SL0 counts upwards from level 2: 0b01 is level 1, 0b10 level 0.
        let sl0 = (Level::L2.number() - self.start_level().number()) as u64;
        VTCR_RES1
            | self.pa_range << VTCR_PS_SHIFT
            | VTCR_TG0_4K
            | VTCR_SH0_INNER
            | VTCR_ORGN0_WB_RA_WA
            | VTCR_IRGN0_WB_RA_WA
            | sl0 << VTCR_SL0_SHIFT
            | t0sz
    }

    /// The value for `VTTBR_EL2` with the root at `root`. CnP stays 0: CPUs run different VMs.
    pub const fn vttbr_el2(&self, root: Pa, vmid: Vmid) -> u64 {
        (vmid.get() as u64) << VTTBR_VMID_SHIFT | root.get()
    }
}

const fn field(register: u64, shift: u32) -> u64 {
    register >> shift & 0xf
}

/// `ID_AA64MMFR0_EL1.TGran4_2`, bits [43:40]: 0 refers to `TGran4`, bits [31:28], where 0b1111 means
/// that there is none; 1 means none at stage 2.
const fn has_granule_4k(id_aa64mmfr0_el1: u64) -> bool {
    match field(id_aa64mmfr0_el1, 40) {
        0 => field(id_aa64mmfr0_el1, 28) != 0xf,
        1 => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_bits(bits: u32) -> Config {
        Config::new(6).unwrap().with_ipa_bits(bits).unwrap()
    }

    #[test]
    fn every_size_from_32_to_48_bits_gets_the_fewest_levels_that_keep_1g_blocks() {
        for bits in MIN_IPA_BITS..=MAX_IPA_BITS {
            let config = with_bits(bits);
            let expected = match bits {
                32..=39 => (Level::L1, 1),
                40 => (Level::L1, 2),
                41 => (Level::L1, 4),
                42 => (Level::L1, 8),
                43 => (Level::L1, 16),
                _ => (Level::L0, 1),
            };
            assert_eq!(
                (config.start_level(), config.root_tables()),
                expected,
                "{bits} bits"
            );
        }
    }

    #[test]
    fn a_vm_is_given_no_more_bits_than_it_needs_but_what_is_usual() {
        let bits = |pa_range, last| {
            let config = Config::new(pa_range).unwrap().for_last(Ipa::new(last));
            assert!(config.has_ipa(Ipa::new(last)) || last >> config.pa_bits != 0);
            config.ipa_bits()
        };
        assert_eq!(bits(6, 0), 40);
        assert_eq!(bits(6, (1 << 40) - 1), 40);
        assert_eq!(bits(6, 1 << 40), 42);
        assert_eq!(bits(5, 1 << 42), 44);
        assert_eq!(bits(5, 1 << 44), 48);
        assert_eq!(bits(2, 1 << 20), 40);
        assert_eq!(bits(1, 1 << 20), 36, "a CPU with less");
        assert_eq!(bits(4, 1 << 47), 44, "what cannot be is not asked for");
        let usual = Config::new(6).unwrap().for_last(Ipa::new(0));
        assert_eq!(usual.start_level(), Level::L1);
    }

    #[test]
    fn the_start_level_is_one_the_architecture_allows_for_the_size() {
        // Arm ARM, AArch64.S2InconsistentSL: the bits left for the start level must be 1 to 13.
        for bits in MIN_IPA_BITS..=MAX_IPA_BITS {
            let config = with_bits(bits);
            let below = (3 - config.start_level().number()) * 9 + 12;
            assert!((1..=13).contains(&(bits - below)), "{bits} bits");
        }
    }

    #[test]
    fn vtcr_of_a_40_bit_machine() {
        let config = Config::new(2).unwrap();
        // RES1, PS=2, SH0=3, ORGN0=1, IRGN0=1, SL0=1, T0SZ=24.
        assert_eq!(config.vtcr_el2(), 0x8002_3558);
    }

    #[test]
    fn vtcr_of_a_48_bit_machine() {
        let config = Config::new(5).unwrap();
        // RES1, PS=5, SH0=3, ORGN0=1, IRGN0=1, SL0=2, T0SZ=16.
        assert_eq!(config.vtcr_el2(), 0x8005_3590);
        assert_eq!(
            config.vttbr_el2(Pa::new(0x4567_8000), Vmid::new(9).unwrap()),
            0x0009_0000_4567_8000
        );
    }

    #[test]
    fn larger_pa_spaces_are_used_up_to_48_bits() {
        for pa_range in [5, 6, 7] {
            assert_eq!(Config::new(pa_range), Config::new(5));
        }
        assert_eq!(Config::new(8), Err(ConfigError::UnknownPaRange(8)));
        assert_eq!(
            Config::new(u64::MAX),
            Err(ConfigError::UnknownPaRange(u64::MAX))
        );
    }

    #[test]
    fn an_ipa_space_is_neither_tiny_nor_larger_than_the_pa_space() {
        let config = Config::new(2).unwrap();
        assert_eq!(config.ipa_bits(), 40);
        assert_eq!(config.with_ipa_bits(41), Err(ConfigError::IpaBits(41)));
        assert_eq!(config.with_ipa_bits(31), Err(ConfigError::IpaBits(31)));
        assert_eq!(config.with_ipa_bits(32).unwrap().ipa_bits(), 32);
    }

    #[test]
    fn id_registers_choose_the_features() {
        let plain = Config::from_id_registers(5, 0).unwrap();
        assert_eq!(plain.strategy(), Strategy::BreakFirst);
        assert!(!plain.fwb());
        let rich = Config::from_id_registers(5, 2 << 52 | 1 << 40).unwrap();
        assert_eq!(rich.strategy(), Strategy::SwapThenBreak);
        assert!(rich.fwb());
    }

    #[test]
    fn a_cpu_without_a_4k_stage_2_is_refused() {
        let none = Err(ConfigError::NoGranule4K);
        assert_eq!(Config::from_id_registers(0xf << 28 | 5, 0), none);
        assert_eq!(Config::from_id_registers(1 << 40 | 5, 0), none);
        assert!(Config::from_id_registers(2 << 40 | 0xf << 28 | 5, 0).is_ok());
    }
}

//! The shape of a VM's stage 2, worked out from what the CPU can do, and the registers that say so.
//!
//! The tables start at the level of the largest blocks wherever they can, with up to 16 concatenated root
//! tables: that is level 1 up to 43 bits of IPA with the 4K granule, level 2 up to 40 bits with 16K and
//! up to 46 with 64K; one level higher from there on. Starting lower, which the architecture also offers
//! for small spaces, would give up those blocks.
//!
//! FEAT_LPA2 has blocks one level higher still, and costs each walk to something smaller that level. So a VM has it
//! only if some of its memory fills such a block. Addresses of more than 48 bits, which it also brings, are not used.

use super::attrs::Encoding;
use super::bbm::Strategy;
use super::granule::{Granule, Level};
use crate::addr::{Ipa, Pa, Vmid};
use core::fmt;

/// The smallest IPA space. All of it is below 4 GiB, where guests expect their first RAM.
pub const MIN_IPA_BITS: u32 = 32;
/// The largest IPA space that is used; FEAT_LPA and FEAT_LPA2 would have 52 bits.
pub const MAX_IPA_BITS: u32 = 48;

/// Fewer bits of PA than this have no start level as high as the blocks of FEAT_LPA2 are.
const LPA2_PA_BITS: u32 = 44;

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
// T0SZ, bits [5:0], needs no shift. VS, bit 19, is 0 for 8-bit VMIDs.
const VTCR_SL0_SHIFT: u32 = 6;
const VTCR_IRGN0_WB_RA_WA: u64 = 0b01 << 8;
const VTCR_ORGN0_WB_RA_WA: u64 = 0b01 << 10;
const VTCR_SH0_INNER: u64 = 0b11 << 12;
const VTCR_TG0_SHIFT: u32 = 14;
const VTCR_PS_SHIFT: u32 = 16;
const VTCR_RES1: u64 = 1 << 31;
const VTCR_DS: u64 = 1 << 32;

/// Field `VTTBR_EL2.VMID`, bits [55:48] while `VTCR_EL2.VS` is 0.
const VTTBR_VMID_SHIFT: u32 = 48;

/// Why a stage 2 cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// `ID_AA64MMFR0_EL1.PARange` has this value, which is not defined.
    UnknownPaRange(u64),
    /// The CPU does not have this granule at stage 2.
    NoGranule(Granule),
    /// An IPA space of this many bits is below [`MIN_IPA_BITS`], or larger than the PA space.
    IpaBits(u32),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownPaRange(raw) => write!(f, "unknown-pa-range-{raw}"),
            Self::NoGranule(granule) => {
                write!(f, "no-granule-of-{}-at-stage-2", granule.name())
            }
            Self::IpaBits(bits) => write!(f, "no-ipa-space-of-{bits}-bits"),
        }
    }
}

/// Which granules a CPU has at stage 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granules {
    k4: Have,
    k16: Have,
    k64: Have,
}

/// What a CPU has of a granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Have {
    None,
    Plain,
    /// In the format of FEAT_LPA2 as well.
    Lpa2,
}

impl Granules {
    /// All there are.
    pub const ALL: Self = Self {
        k4: Have::Lpa2,
        k16: Have::Lpa2,
        k64: Have::Plain,
    };

    /// By `ID_AA64MMFR0_EL1`. In the fields for stage 2, `TGran4_2`, `TGran16_2` and `TGran64_2`, 0 refers
    /// to the one for stage 1, 1 means that there is none, and 3 FEAT_LPA2; `TGran16` is 0 where there is none and 2
    /// with FEAT_LPA2, the others are 0b1111, and `TGran4` is 1.
    pub const fn from_id_register(id_aa64mmfr0_el1: u64) -> Self {
        const fn have(stage2: u64, stage1: Have) -> Have {
            match stage2 {
                0 => stage1,
                1 => Have::None,
                2 => Have::Plain,
                _ => Have::Lpa2,
            }
        }
        let raw = id_aa64mmfr0_el1;
        let k4 = match field(raw, 28) {
            0xf => Have::None,
            1 => Have::Lpa2,
            _ => Have::Plain,
        };
        let k16 = match field(raw, 20) {
            0 => Have::None,
            1 => Have::Plain,
            _ => Have::Lpa2,
        };
        let k64 = match field(raw, 24) {
            0xf => Have::None,
            _ => Have::Plain,
        };
        Self {
            k4: have(field(raw, 40), k4),
            k16: have(field(raw, 32), k16),
            k64: have(field(raw, 36), k64),
        }
    }

    /// The same without FEAT_LPA2.
    #[must_use]
    pub fn without_lpa2(self) -> Self {
        let plain = |have: Have| have.min(Have::Plain);
        Self {
            k4: plain(self.k4),
            k16: plain(self.k16),
            k64: plain(self.k64),
        }
    }

    /// Whether `granule` is one of them.
    pub const fn contains(self, granule: Granule) -> bool {
        match granule {
            Granule::K4 => !matches!(self.k4, Have::None),
            Granule::K16 => !matches!(self.k16, Have::None),
            Granule::K64 => !matches!(self.k64, Have::None),
            Granule::K4Lpa2 => matches!(self.k4, Have::Lpa2),
            Granule::K16Lpa2 => matches!(self.k16, Have::Lpa2),
        }
    }
}

/// The shape of a stage 2. Every CPU that runs the VM must have been asked: the tables are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    granule: Granule,
    granules: Granules,
    pa_range: u64,
    pa_bits: u32,
    ipa_bits: u32,
    /// As [`start_of`] has it.
    start: Level,
    fwb: bool,
    strategy: Strategy,
    contiguous: bool,
}

impl Config {
    /// The largest stage 2 that a CPU with these ID registers has, up to 48 bits, with pages of 4 KiB;
    /// or of something else, where the CPU does not have them, which [`Self::with_granule`] tells.
    ///
    /// # Errors
    /// [`ConfigError::UnknownPaRange`].
    pub fn from_id_registers(
        id_aa64mmfr0_el1: u64,
        id_aa64mmfr2_el1: u64,
    ) -> Result<Self, ConfigError> {
        let fwb = field(id_aa64mmfr2_el1, 40) != 0;
        let bbm = field(id_aa64mmfr2_el1, 52);
        let mut config = Self::new(field(id_aa64mmfr0_el1, 0))?
            .with_fwb(fwb)
            .with_strategy(Strategy::for_bbm_level(bbm));
        config.granules = Granules::from_id_register(id_aa64mmfr0_el1);
        Ok(config)
    }

    /// The largest stage 2, up to 48 bits, for a value of `ID_AA64MMFR0_EL1.PARange`, of a CPU that has all
    /// granules; with pages of 4 KiB, without FEAT_S2FWB, and with break-before-make in full.
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
            granule: Granule::K4,
            granules: Granules::ALL,
            pa_range: pa_range.min(PA_RANGE_48),
            pa_bits,
            ipa_bits: pa_bits,
            start: start_of(Granule::K4, pa_bits),
            fwb: false,
            strategy: Strategy::BreakFirst,
            contiguous: true,
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
        Ok(self.shaped(self.granule, bits))
    }

    /// The same for a VM with `memory`, each piece by its first IPA, the PA there and its size in bytes: with as
    /// many bits of IPA as a guest's `ID_AA64MMFR0_EL1.PARange` can tell, from 40 on, which start the walk as far
    /// down as one of 48 bits would not, or all there are if that is not enough; and in the format of FEAT_LPA2, if
    /// the CPU has it and some of the memory fills a block of it.
    #[must_use]
    pub fn for_memory(self, memory: impl Iterator<Item = (Ipa, Pa, u64)>) -> Self {
        let (mut last, mut granule) = (0, self.granule);
        for (ipa, pa, size) in memory {
            last = last.max(ipa.get().saturating_add(size.saturating_sub(1)));
            if let Some(lpa2) = self.lpa2().filter(|it| it.has_large_block(ipa, pa, size)) {
                granule = lpa2;
            }
        }
        let bits = PA_RANGES
            .into_iter()
            .filter(|bits| (USUAL_IPA_BITS..=self.pa_bits).contains(bits))
            .find(|bits| last >> bits == 0);
        self.shaped(granule, bits.unwrap_or(self.pa_bits))
    }

    /// This granule in the format of FEAT_LPA2, where the CPU has it, and a PA space that is large enough for walks to
    /// start at the level of its blocks (AArch64.S2InvalidSL).
    fn lpa2(&self) -> Option<Granule> {
        let lpa2 = self.granule.lpa2().filter(|it| self.granules.contains(*it));
        lpa2.filter(|_| self.pa_bits >= LPA2_PA_BITS)
    }

    /// The same without FEAT_LPA2.
    #[must_use]
    pub fn without_lpa2(self) -> Self {
        Self {
            granules: self.granules.without_lpa2(),
            ..self
        }
    }

    /// The same with another granule.
    ///
    /// # Errors
    /// [`ConfigError::NoGranule`].
    pub fn with_granule(self, granule: Granule) -> Result<Self, ConfigError> {
        if self.granules.contains(granule) {
            Ok(self.shaped(granule, self.ipa_bits))
        } else {
            Err(ConfigError::NoGranule(granule))
        }
    }

    const fn shaped(self, granule: Granule, ipa_bits: u32) -> Self {
        Self {
            granule,
            ipa_bits,
            start: start_of(granule, ipa_bits),
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

    /// The same with or without groups of leaves that CPUs may cache as one.
    #[must_use]
    pub const fn with_contiguous(self, contiguous: bool) -> Self {
        Self { contiguous, ..self }
    }

    /// The translation granule.
    pub const fn granule(&self) -> Granule {
        self.granule
    }

    /// What [`Self::with_granule`] takes.
    pub const fn granules(&self) -> Granules {
        self.granules
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

    /// How attributes are written.
    pub(super) const fn encoding(&self) -> Encoding {
        Encoding {
            fwb: self.fwb,
            lpa2: self.granule.is_lpa2(),
        }
    }

    /// How a live block is exchanged for a table.
    pub const fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// Whether leaves that continue each other are marked as what CPUs may cache as one.
    pub const fn contiguous(&self) -> bool {
        self.contiguous
    }

    /// The level at which a walk starts.
    pub const fn start_level(&self) -> Level {
        self.start
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
    /// Cacheable. HA and HD stay 0. All memory is Inner Shareable where descriptors cannot say it (DS).
    pub const fn vtcr_el2(&self) -> u64 {
        let t0sz = 64 - self.ipa_bits as u64;
        // SL0 counts upwards from level 2 with the 4K granule, from level 3 with the others.
        let (tg0, from) = match self.granule {
            Granule::K4 | Granule::K4Lpa2 => (0b00, Level::L2),
            Granule::K16 | Granule::K16Lpa2 => (0b10, Level::L3),
            Granule::K64 => (0b01, Level::L3),
        };
        let sl0 = (from.number() - self.start_level().number()) as u64;
        let ds = if self.granule.is_lpa2() { VTCR_DS } else { 0 };
        VTCR_RES1
            | ds
            | self.pa_range << VTCR_PS_SHIFT
            | tg0 << VTCR_TG0_SHIFT
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

/// The level at which a walk of an IPA space of this many bits starts.
const fn start_of(granule: Granule, ipa_bits: u32) -> Level {
    let level = granule.top_leaf_level();
    let reach = granule.shift(level) + granule.index_bits() + MAX_CONCATENATED_BITS;
    // The next level up is reserved where the PA space is small: of fewer than 44 bits with 4K and
    // 64K, of fewer than 42 with 16K (AArch64.S2InvalidSL). It is never chosen there, since the IPA
    // space is no larger. A level that has less than a bit to resolve cannot be the first either.
    match (level, level.below()) {
        (_, Some(below)) if ipa_bits <= granule.shift(level) => below,
        _ if ipa_bits <= reach => level,
        (Level::L1, _) => Level::L0,
        _ => Level::L1,
    }
}

const fn field(register: u64, shift: u32) -> u64 {
    register >> shift & 0xf
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_bits(bits: u32) -> Config {
        Config::new(6).unwrap().with_ipa_bits(bits).unwrap()
    }

    /// Memory whose last address is `last`.
    fn up_to(last: u64) -> impl Iterator<Item = (Ipa, Pa, u64)> {
        core::iter::once((Ipa::new(last), Pa::new(0), 1))
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
    fn larger_granules_start_at_their_blocks_wherever_they_can() {
        let at = |granule, bits: u32| {
            let config = with_bits(bits).with_granule(granule).unwrap();
            (config.start_level(), config.root_tables())
        };
        for bits in MIN_IPA_BITS..=MAX_IPA_BITS {
            let expected = match bits {
                32..=36 => (Level::L2, 1),
                37..=40 => (Level::L2, 1 << (bits - 36)),
                41..=47 => (Level::L1, 1),
                _ => (Level::L1, 2),
            };
            assert_eq!(at(Granule::K16, bits), expected, "16K, {bits} bits");
            let expected = match bits {
                32..=42 => (Level::L2, 1),
                43..=46 => (Level::L2, 1 << (bits - 42)),
                _ => (Level::L1, 1),
            };
            assert_eq!(at(Granule::K64, bits), expected, "64K, {bits} bits");
            let expected = match bits {
                32..=39 => (Level::L1, 1),
                _ => (Level::L0, 1),
            };
            assert_eq!(at(Granule::K4Lpa2, bits), expected, "4K, LPA2, {bits} bits");
            let expected = match bits {
                32..=36 => (Level::L2, 1),
                37..=47 => (Level::L1, 1),
                _ => (Level::L1, 2),
            };
            assert_eq!(
                at(Granule::K16Lpa2, bits),
                expected,
                "16K, LPA2, {bits} bits"
            );
        }
    }

    #[test]
    fn a_vm_has_the_format_of_lpa2_if_the_cpu_has_it_and_a_block_of_it_can_be_used() {
        let t = 512 << 30;
        let chosen = |config: Config, ipa, pa, size| {
            let ram = (Ipa::new(1 << 30), Pa::new(1 << 30), 1 << 30);
            let memory = [ram, (Ipa::new(ipa), Pa::new(pa), size), ram];
            let config = config.for_memory(memory.into_iter());
            assert_eq!(config.vtcr_el2() >> 32 & 1 == 1, config.granule().is_lpa2());
            (config.granule(), config.ipa_bits())
        };
        let config = Config::new(6).unwrap();
        assert_eq!(chosen(config, t, 2 * t, t), (Granule::K4Lpa2, 40));
        assert_eq!(chosen(config, t, 2 * t, t - 4096), (Granule::K4, 40));
        assert_eq!(chosen(config, 2 * t, 2 * t, 2 * t), (Granule::K4Lpa2, 42));
        let without = config.without_lpa2();
        assert_eq!(chosen(without, t, 2 * t, t), (Granule::K4, 40));
        let g64 = 64 << 30;
        let k16 = config.with_granule(Granule::K16).unwrap();
        assert_eq!(chosen(k16, g64, 2 * g64, g64), (Granule::K16Lpa2, 40));
        assert_eq!(chosen(k16, g64, 2 * g64, g64 / 2), (Granule::K16, 40));
        let k64 = config.with_granule(Granule::K64).unwrap();
        assert_eq!(chosen(k64, t, 2 * t, t), (Granule::K64, 40));
        let small = Config::new(3).unwrap();
        assert_eq!(
            chosen(small, t, 2 * t, t),
            (Granule::K4, 40),
            "42 bits of PA"
        );
    }

    #[test]
    fn a_vm_is_given_no_more_bits_than_it_needs_but_what_is_usual() {
        let bits = |pa_range, last| {
            let config = Config::new(pa_range).unwrap().for_memory(up_to(last));
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
        let usual = Config::new(6).unwrap().for_memory(up_to(0));
        assert_eq!(usual.start_level(), Level::L1);
    }

    #[test]
    fn the_start_level_is_one_the_architecture_allows_for_the_size() {
        // Arm ARM, AArch64.S2InconsistentSL: the start level resolves at least one bit, and at most four
        // more than a table has. AArch64.S2InvalidSL: what a small PA space must not start at.
        for (granule, page, stride, least_pa) in [
            (Granule::K4, 12, 9, 44),
            (Granule::K16, 14, 11, 42),
            (Granule::K64, 16, 13, 44),
            (Granule::K4Lpa2, 12, 9, 44),
            (Granule::K16Lpa2, 14, 11, 42),
        ] {
            for bits in MIN_IPA_BITS..=MAX_IPA_BITS {
                let config = with_bits(bits).with_granule(granule).unwrap();
                let level = config.start_level();
                let below = (3 - level.number()) * stride + page;
                assert!((1..=stride + 4).contains(&(bits - below)), "{bits} bits");
                let pa_bits = PA_RANGES.into_iter().find(|pa| *pa >= bits).unwrap();
                assert!(
                    granule.has_leaves(level) || pa_bits >= least_pa,
                    "{bits} bits of IPA, and no more of PA than that takes"
                );
            }
        }
    }

    #[test]
    fn vtcr_says_granule_and_start_level() {
        let vtcr = |granule, bits| with_bits(bits).with_granule(granule).unwrap().vtcr_el2();
        // As below, with TG0=2 for 16K and 1 for 64K; SL0=1 is level 2, SL0=2 level 1.
        assert_eq!(vtcr(Granule::K16, 40), 0x8005_b558);
        assert_eq!(vtcr(Granule::K16, 48), 0x8005_b590);
        assert_eq!(vtcr(Granule::K64, 40), 0x8005_7558);
        assert_eq!(vtcr(Granule::K64, 48), 0x8005_7590);
        // DS=1; SL0=2 is level 0 with 4K, and level 1 with 16K.
        assert_eq!(vtcr(Granule::K4Lpa2, 40), 0x1_8005_3598);
        assert_eq!(vtcr(Granule::K16Lpa2, 40), 0x1_8005_b598);
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
    fn a_granule_that_the_cpu_lacks_is_refused() {
        let has = |mmfr0, granule| {
            let config = Config::from_id_registers(mmfr0, 0).unwrap();
            let got = config.with_granule(granule);
            assert!(got.is_ok() || got == Err(ConfigError::NoGranule(granule)));
            got.is_ok()
        };
        // Bits of the fields for stage 1 and 2, what says "none" for stage 1, and "there is one".
        for (granule, stage1, stage2, none, some) in [
            (Granule::K4, 28, 40, 0xf, 0),
            (Granule::K16, 20, 32, 0, 1),
            (Granule::K64, 24, 36, 0xf, 0),
        ] {
            assert!(!has(none << stage1 | 5, granule), "none at stage 1");
            assert!(has(some << stage1 | 5, granule), "as stage 1");
            assert!(!has(1 << stage2 | some << stage1 | 5, granule), "none here");
            assert!(has(2 << stage2 | none << stage1 | 5, granule), "here alone");
            assert!(has(3 << stage2 | none << stage1 | 5, granule), "with LPA2");
            let Some(lpa2) = granule.lpa2() else {
                continue;
            };
            let with = some + 1;
            assert!(has(with << stage1 | 5, granule) && has(with << stage1 | 5, lpa2));
            assert!(!has(some << stage1 | 5, lpa2), "not at stage 1");
            assert!(!has(2 << stage2 | with << stage1 | 5, lpa2), "not here");
            assert!(has(3 << stage2 | none << stage1 | 5, lpa2), "here alone");
        }
    }
}

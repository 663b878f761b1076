//! What this CPU can do, from its ID registers. Each capability is found by itself; none is
//! inferred from another.
#![expect(unsafe_code, reason = "an ID register that has no name in the library")]

use aarch64_cpu::registers::{
    ID_AA64DFR0_EL1, ID_AA64ISAR1_EL1, ID_AA64MMFR0_EL1, ID_AA64MMFR1_EL1, ID_AA64MMFR2_EL1,
    ID_AA64PFR0_EL1, ID_AA64PFR1_EL1, Readable,
};
use cordon::ras::capabilities::Capabilities;
use cordon::ras::inject;
use cordon::stage2::Config;
use spin::Once;

/// Capabilities that Cordon acts on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    /// FEAT_BBM level: 0, 1 or 2 (3 and above count as 2).
    pub bbm: u8,
    /// FEAT_RAS, any version.
    pub ras: bool,
    /// FEAT_PFAR.
    pub pfar: bool,
    /// FEAT_PAN.
    pub pan: bool,
    /// FEAT_PAN2: address translation can be asked to heed PAN.
    pub pan2: bool,
    /// FEAT_SSBS.
    pub ssbs: bool,
    /// FEAT_MTE.
    pub mte: bool,
    /// FEAT_MTE2: tags in memory, and the registers that go with them.
    pub mte2: bool,
    /// FEAT_PAuth, by any algorithm.
    pub pauth: bool,
    /// PMUVer of FEAT_PMUv3, or 0 without it.
    pub pmu: u8,
    /// FEAT_AMUv1.
    pub amu: bool,
    /// FEAT_CSV2_2: there are software context numbers.
    pub scxtnum: bool,
    /// FEAT_DIT.
    pub dit: bool,
    /// FEAT_SVE.
    pub sve: bool,
    /// FEAT_FGT.
    pub fgt: bool,
    /// FEAT_FGT2.
    pub fgt2: bool,
    /// FEAT_HCX.
    pub hcx: bool,
    /// What matters to a guest that takes an exception.
    pub injection: inject::Features,
}

/// The 4-bit field of `register` from bit `shift`.
fn field(register: u64, shift: u32) -> u8 {
    ((register >> shift) & 0xf) as u8
}

static FEATURES: Once<Features> = Once::new();

/// What of memory-error handling the CPU and its firmware have, as far as can be seen from here.
pub fn capabilities(stage2: &Config) -> Capabilities {
    let this = get();
    Capabilities::empty()
        .with(Capabilities::FEAT_RAS, this.ras)
        .with(Capabilities::FEAT_PFAR, this.pfar)
        .with(Capabilities::BBM2, this.bbm >= 2)
        .with(Capabilities::S2FWB, stage2.fwb())
        .with(
            Capabilities::POISON_SWITCH,
            super::smc::poison_switch::is_there(),
        )
        .with(Capabilities::TIMER, super::gic::has_own_timer())
}

/// What the boot CPU can do. All others can too, as far as Cordon relies on it.
pub fn get() -> &'static Features {
    FEATURES.call_once(Features::detect)
}

impl Features {
    fn for_injection(&self) -> inject::Features {
        use inject::Features as F;
        let flag = |has: bool, feature: F| if has { feature } else { F::empty() };
        flag(self.pan, F::PAN)
            | flag(self.dit, F::DIT)
            | flag(self.ssbs, F::SSBS)
            | flag(self.mte, F::MTE)
            | flag(self.ras, F::RAS)
    }

    /// Reads the calling CPU's.
    pub fn detect() -> Self {
        let found = Self::read();
        Self {
            injection: found.for_injection(),
            ..found
        }
    }

    fn read() -> Self {
        let (mmfr0, mmfr1) = (ID_AA64MMFR0_EL1.get(), ID_AA64MMFR1_EL1.get());
        let mmfr2 = ID_AA64MMFR2_EL1.get();
        let (pfr0, pfr1) = (ID_AA64PFR0_EL1.get(), ID_AA64PFR1_EL1.get());
        Self {
            bbm: field(mmfr2, 52).min(2),
            ras: field(pfr0, 28) != 0,
            pfar: field(pfr1, 60) != 0,
            pan: field(mmfr1, 20) != 0,
            pan2: field(mmfr1, 20) >= 2,
            ssbs: field(pfr1, 4) != 0,
            mte: field(pfr1, 8) != 0,
            mte2: field(pfr1, 8) >= 2,
            pauth: has_pauth(),
            pmu: pmu_version(),
            amu: field(pfr0, 44) != 0,
            scxtnum: field(pfr0, 56) >= 2,
            dit: field(pfr0, 48) != 0,
            sve: field(pfr0, 32) != 0,
            fgt: field(mmfr0, 56) != 0,
            fgt2: field(mmfr0, 56) >= 2,
            hcx: field(mmfr1, 40) != 0,
            injection: inject::Features::empty(),
        }
    }
}

/// ID_AA64ISAR1_EL1.{APA, API}: address authentication by QARMA5 or an algorithm of the
/// implementation's own; ID_AA64ISAR2_EL1.APA3: by QARMA3.
fn has_pauth() -> bool {
    let isar1 = ID_AA64ISAR1_EL1.get();
    let isar2: u64;
    // SAFETY: an ID register; where it is not assigned it reads as zero (Arm ARM D19.1.3).
    unsafe {
        core::arch::asm!("mrs {}, s3_0_c0_c6_2", out(reg) isar2,
                         options(nomem, nostack, preserves_flags));
    }
    field(isar1, 4) | field(isar1, 8) | field(isar2, 12) != 0
}

/// ID_AA64DFR0_EL1.PMUVer, 0 for a PMU that is none or is not the architecture's (0b1111).
fn pmu_version() -> u8 {
    match field(ID_AA64DFR0_EL1.get(), 8) {
        0xf => 0,
        version => version,
    }
}

//! The few syndromes that come often, decoded with little work.

use super::{Mmio, System, bit, bits, class};
use crate::addr::{Ipa, PAGE_SHIFT, PAGE_SIZE};

/// An exception of a guest that is nothing but a request. [`Syndrome`](super::Syndrome) says the same
/// of it, and more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quick {
    /// HVC with immediate 0.
    Call,
    /// A trapped access to a system register.
    System(System),
    /// A load or store of one register where stage 2 maps nothing, its own and not a walk's.
    Access(Mmio),
}

impl Quick {
    /// Decodes `ESR_EL2`. `None` for everything else.
    #[inline]
    pub fn decode(esr: u64) -> Option<Self> {
        match bits(esr, 31, 26) {
            class::HVC64 if bits(esr, 15, 0) == 0 => Some(Self::Call),
            class::SYS64 => Some(Self::System(System::decode(esr))),
            class::DATA_ABORT_LOWER if is_plain_translation_fault(esr) => {
                Mmio::decode(esr).map(Self::Access)
            }
            _ => None,
        }
    }

    /// The address of a [`Self::Access`], from `HPFAR_EL2` and `FAR_EL2`: both are valid for it.
    #[inline]
    pub const fn ipa(hpfar: u64, far: u64) -> Ipa {
        let page = bits(hpfar, 47, 4) << PAGE_SHIFT;
        Ipa::new(page | far & (PAGE_SIZE - 1))
    }
}

/// DFSC says translation fault, level 0 to 3, and S1PTW is 0.
const fn is_plain_translation_fault(esr: u64) -> bool {
    bits(esr, 5, 2) == 0b0001 && !bit(esr, 7)
}

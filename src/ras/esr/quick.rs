//! The few syndromes that come often, decoded with little work.

use super::{Abort, Fault, Mmio, System, bit, bits, class};
use crate::addr::{Ipa, PAGE_SHIFT, PAGE_SIZE};

/// An exception of a guest that is nothing but a request, or may be about lost memory.
/// [`Syndrome`](super::Syndrome) says the same of it, and more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quick {
    /// HVC with immediate 0.
    Call,
    /// A trapped access to a system register.
    System(System),
    /// A load or store of one register where stage 2 maps nothing, its own and not a walk's.
    Access(Mmio),
    /// Any other abort.
    Abort,
}

impl Quick {
    /// Decodes `ESR_EL2`. `None` for everything else.
    #[inline]
    pub fn decode(esr: u64) -> Option<Self> {
        match bits(esr, 31, 26) {
            class::HVC64 if bits(esr, 15, 0) == 0 => Some(Self::Call),
            class::SYS64 => Some(Self::System(System::decode(esr))),
            class::DATA_ABORT_LOWER if is_translation_fault(esr) && !bit(esr, 7) => {
                Some(Mmio::decode(esr).map_or(Self::Abort, Self::Access))
            }
            class::DATA_ABORT_LOWER | class::INSTRUCTION_ABORT_LOWER => Some(Self::Abort),
            _ => None,
        }
    }

    /// The whole of a [`Self::Access`] or a [`Self::Abort`], if it is a translation fault, level 0 to 3.
    #[inline]
    pub fn translation_fault(esr: u64) -> Option<Abort> {
        is_translation_fault(esr).then(|| Abort::of_guest(esr, Fault::translation(esr)))
    }

    /// The whole of a [`Self::Abort`], if the memory system refused the access.
    #[inline]
    pub fn external_abort(esr: u64) -> Option<Abort> {
        let fault = Fault::of(esr);
        fault.is_external().then(|| Abort::of_guest(esr, fault))
    }

    /// The address of a [`Self::Access`], from `HPFAR_EL2` and `FAR_EL2`: both are valid for it.
    #[inline]
    pub const fn ipa(hpfar: u64, far: u64) -> Ipa {
        let page = bits(hpfar, 47, 4) << PAGE_SHIFT;
        Ipa::new(page | far & (PAGE_SIZE - 1))
    }
}

/// DFSC or IFSC says translation fault, level 0 to 3.
const fn is_translation_fault(esr: u64) -> bool {
    bits(esr, 5, 2) == 0b0001
}

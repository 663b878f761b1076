//! What handling an exit needs of the CPU that took it, as a trait: the image implements it with
//! system registers, tests with plain values.

use super::vgic::CpuInterface;
use crate::addr::Ipa;
use crate::ras::inject::{GuestState, Injected};

/// The CPU, stopped in EL2 by an exit of the guest that is pinned to it.
pub trait GuestCpu {
    /// The hypervisor's side of its virtual interrupts.
    type Interrupts: CpuInterface;

    /// `ESR_EL2`.
    fn esr(&self) -> u64;
    /// `FAR_EL2`. Whether it means anything, the syndrome says.
    fn far(&self) -> u64;
    /// `HPFAR_EL2`, likewise.
    fn hpfar(&self) -> u64;

    /// `PFAR_EL2`, on a CPU with FEAT_PFAR. Whether it means anything, the syndrome says.
    fn pfar(&self) -> Option<u64> {
        None
    }

    /// Whether the CPU calls an SError unrecoverable that it cannot contain
    /// ([`triage::overstates_serrors`](crate::ras::triage::overstates_serrors)).
    fn overstates_serrors(&self) -> bool {
        false
    }

    /// General register `number`; 31 is XZR.
    fn register(&self, number: u8) -> u64;
    /// Sets general register `number`; nothing happens for 31.
    fn set_register(&mut self, number: u8, value: u64);

    /// Whether [`Self::register`] and [`Self::set_register`] know general register `number`. They
    /// know all, except while [`Exit::quick`](super::exit::Exit::quick) runs.
    fn has_register(&self, _number: u8) -> bool {
        true
    }

    /// Steps over the instruction that caused the exit, which has been emulated
    /// ([`skip::behind`](super::skip::behind)).
    fn skip_instruction(&mut self);

    /// What the CPU has in its ID register with this `CRm` (1 to 7) and `op2` (0 to 7); reserved
    /// ones are zero.
    fn id_register(&self, crm: u8, op2: u8) -> u64;

    /// The exception level that was interrupted, 0 or 1.
    fn exception_level(&self) -> u8;

    /// The guest's state as an exception to its EL1 would find it.
    fn state(&self) -> GuestState;
    /// Makes the guest take an exception to its EL1.
    fn deliver(&mut self, exception: &Injected);
    /// Makes a virtual SError pending, with this syndrome where the guest has FEAT_RAS.
    fn virtual_serror(&mut self, vsesr: u64);

    /// Its virtual interrupts.
    fn interrupts(&mut self) -> &mut Self::Interrupts;

    /// The guest's stage 1 for `va`: `None` where it gives none, or meets poison itself.
    fn translate(&self, va: u64) -> Option<Ipa>;
}

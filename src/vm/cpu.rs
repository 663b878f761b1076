//! What handling an exit needs of the CPU that took it, as a trait: the image implements it with
//! system registers, tests with plain values.

use super::access::env::GuestRegisters;
use super::vgic::CpuInterface;
use crate::addr::Ipa;
use crate::ras::inject::{GuestState, Injected};

/// With whose rights an address is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// To read an instruction, which is being executed: whatever can be, EL1 can read.
    Fetch,
    /// EL0's.
    El0 {
        /// To write.
        write: bool,
    },
    /// EL1's, with PSTATE.PAN as the guest has it.
    El1 {
        /// To write.
        write: bool,
    },
}

/// What stage 1 says of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage1 {
    /// Where it leads.
    pub ipa: Ipa,
    /// The memory type, as `MAIR_EL1` has it.
    pub memory: u8,
}

impl Stage1 {
    /// Normal, Inner and Outer Write-Back (Arm ARM, `MAIR_EL1`).
    pub const fn is_write_back(self) -> bool {
        // 0b01RW with RW not 0, or 0b11RW.
        const fn nibble(attr: u8) -> bool {
            matches!(attr & 0xf, 0b0101..=0b0111 | 0b1100..=0b1111)
        }
        nibble(self.memory) && nibble(self.memory >> 4) || self.is_tagged()
    }

    /// Device memory of any kind: 0b0000_xxxx.
    pub const fn is_device(self) -> bool {
        self.memory >> 4 == 0
    }

    /// Normal, Write-Back, with tags.
    pub const fn is_tagged(self) -> bool {
        self.memory == 0xf0
    }
}

/// Why stage 1 gives no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// A fault, with this status code.
    Stage1(u8),
    /// It cannot be told: a table is a hole, or met poison; or the CPU cannot be asked.
    Unknown,
}

/// The CPU, stopped in EL2 by an exit of the guest that is pinned to it.
pub trait GuestCpu: GuestRegisters {
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

    /// The fault that is handled is at this address, from now on: of an access to two pages, the second was the
    /// one that failed.
    fn move_fault(&mut self, far: u64);

    /// Whether [`GuestRegisters::register`] and [`GuestRegisters::set_register`] know general register `number`.
    /// They know all, except while [`Exit::quick`](super::exit::Exit::quick) runs.
    fn has_register(&self, _number: u8) -> bool {
        true
    }

    /// Steps over the instruction that caused the exit, which has been emulated
    /// ([`skip::behind`](super::skip::behind)).
    fn skip_instruction(&mut self);

    /// The guest goes on at `pc`, with these for its condition flags: a few instructions were carried out.
    fn go_on(&mut self, pc: u64, flags: u64);

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

    /// The same, with what else it says.
    ///
    /// # Errors
    /// [`Denied`].
    fn translate_for(&self, va: u64, rights: Rights) -> Result<Stage1, Denied>;
}

//! Trapped accesses to system registers: what each gets in place of the register.
//!
//! What is trapped, `arch` decides when it confines a CPU (`HCR_EL2`, `MDCR_EL2`, `CPTR_EL2` and the
//! fine-grained traps). A register that is not named here is one of a feature that the guest's ID
//! registers do not show, or implementation-defined: it is undefined, as on a CPU without it.
//!
//! Set/way cache maintenance is not trapped: a vCPU has its CPU for itself, so the instruction
//! acts on the caches that it would act on without Cordon, and `HCR_EL2.SWIO` makes every
//! invalidation clean first, so that nobody else's data can be lost by it.

use crate::ras::esr::{System, SystemRegister};

/// What an access gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A read gives this; a write changes nothing.
    Value(u64),
    /// The exception of an instruction that is not there.
    Undefined,
}

const fn register(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> SystemRegister {
    SystemRegister {
        op0,
        op1,
        crn,
        crm,
        op2,
    }
}

/// `ACTLR_EL1`: controls of the implementation, none of which a guest may turn.
const ACTLR_EL1: SystemRegister = register(3, 0, 1, 0, 1);
/// `ERRIDR_EL1`: how many error records there are.
const ERRIDR_EL1: SystemRegister = register(3, 0, 5, 3, 0);
/// `ERRSELR_EL1`: which of them is looked at.
const ERRSELR_EL1: SystemRegister = register(3, 0, 5, 3, 1);

/// The answer to `access`, which is no read of an ID register: those are in [`id_registers`], and
/// read-only.
///
/// [`id_registers`]: super::id_registers
pub fn answer(access: &System) -> Answer {
    match access.register {
        ACTLR_EL1 | ERRSELR_EL1 => Answer::Value(0),
        // No records: the errors that there are come by exceptions and by firmware's description.
        ERRIDR_EL1 if access.is_read => Answer::Value(0),
        // Without records, ERX* may be RAZ/WI (Arm RAS, DDI 0587, "ERXFR_EL1").
        SystemRegister {
            op0: 3,
            op1: 0,
            crn: 5,
            crm: 4 | 5,
            ..
        } => Answer::Value(0),
        _ => Answer::Undefined,
    }
}

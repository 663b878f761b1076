//! What `ESR_EL2` says, as values (Arm ARM DDI 0487, register description of `ESR_EL2`).
//!
//! [`Syndrome::decode`] turns the register into an enum once; nothing else in Cordon looks at its
//! bits. Addresses that belong to a fault are `Option`s of [`Abort::far`] and [`Abort::ipa_page`]: the
//! architecture leaves `FAR_EL2` and `HPFAR_EL2` with the values of some earlier fault when this one
//! has none, and a stale address would contain the wrong page.

mod abort;
mod quick;
#[cfg(test)]
mod tests;

pub use abort::{Abort, Access, Fault, Level, Mmio, Origin, SyncErrorType};
pub use quick::Quick;

/// Bits `high` to `low` of `value`.
const fn bits(value: u64, high: u32, low: u32) -> u64 {
    (value >> low) & (u64::MAX >> (63 - (high - low)))
}

/// Bit `n` of `value`.
const fn bit(value: u64, n: u32) -> bool {
    (value >> n) & 1 != 0
}

/// Up to eight bits of `value` as a byte.
fn byte(value: u64, high: u32, low: u32) -> u8 {
    u8::try_from(bits(value, high, low)).unwrap_or(u8::MAX)
}

/// Up to sixteen bits of `value`.
fn half(value: u64, high: u32, low: u32) -> u16 {
    u16::try_from(bits(value, high, low)).unwrap_or(u16::MAX)
}

/// Exception classes, `ESR_ELx.EC`.
pub mod class {
    /// Unknown reason: an undefined instruction, when taken to EL1.
    pub const UNKNOWN: u64 = 0x00;
    /// Trapped WFI, WFE, WFIT or WFET.
    pub const WFX: u64 = 0x01;
    /// Trapped access to FP, SIMD or SVE registers.
    pub const FP: u64 = 0x07;
    /// Illegal execution state.
    pub const ILLEGAL_STATE: u64 = 0x0e;
    /// HVC in AArch64.
    pub const HVC64: u64 = 0x16;
    /// SMC in AArch64.
    pub const SMC64: u64 = 0x17;
    /// Trapped MSR, MRS or system instruction in AArch64.
    pub const SYS64: u64 = 0x18;
    /// Instruction Abort from a lower exception level.
    pub const INSTRUCTION_ABORT_LOWER: u64 = 0x20;
    /// Instruction Abort from this exception level.
    pub const INSTRUCTION_ABORT_SAME: u64 = 0x21;
    /// Misaligned PC.
    pub const PC_ALIGNMENT: u64 = 0x22;
    /// Data Abort from a lower exception level.
    pub const DATA_ABORT_LOWER: u64 = 0x24;
    /// Data Abort from this exception level.
    pub const DATA_ABORT_SAME: u64 = 0x25;
    /// Misaligned SP.
    pub const SP_ALIGNMENT: u64 = 0x26;
    /// SError.
    pub const SERROR: u64 = 0x2f;
}

/// `ESR_ELx.IL`: the instruction is 32 bits long, or the class says that the bit is 1.
pub const IL: u64 = 1 << 25;
/// Position of `ESR_ELx.EC`.
pub const CLASS_SHIFT: u32 = 26;

/// An exception taken to EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syndrome {
    /// The CPU gives no reason.
    Unknown,
    /// A guest waits.
    Wait(Wait),
    /// A guest uses a system register, or a system instruction, that is not its own.
    System(System),
    /// HVC with this immediate.
    Hvc(u16),
    /// SMC with this immediate. The preferred return address is the SMC itself.
    Smc(u16),
    /// FP, SIMD or SVE is trapped.
    Fp,
    /// Illegal execution state.
    IllegalState,
    /// The PC is misaligned.
    PcAlignment,
    /// The SP is misaligned.
    SpAlignment,
    /// An access to memory failed.
    Abort(Abort),
    /// An error that belongs to no instruction.
    SError(SError),
    /// Any other class.
    Other {
        /// Exception class.
        class: u8,
        /// Its syndrome.
        iss: u32,
    },
}

impl Syndrome {
    /// Decodes `ESR_EL2`.
    pub fn decode(esr: u64) -> Self {
        match bits(esr, 31, 26) {
            class::UNKNOWN => Self::Unknown,
            class::WFX => Self::Wait(Wait::decode(esr)),
            class::FP => Self::Fp,
            class::ILLEGAL_STATE => Self::IllegalState,
            class::HVC64 => Self::Hvc(half(esr, 15, 0)),
            class::SMC64 => Self::Smc(half(esr, 15, 0)),
            class::SYS64 => Self::System(System::decode(esr)),
            class::PC_ALIGNMENT => Self::PcAlignment,
            class::SP_ALIGNMENT => Self::SpAlignment,
            class::INSTRUCTION_ABORT_LOWER => {
                Self::Abort(Abort::instruction(esr, Origin::LowerLevel))
            }
            class::INSTRUCTION_ABORT_SAME => {
                Self::Abort(Abort::instruction(esr, Origin::SameLevel))
            }
            class::DATA_ABORT_LOWER => Self::Abort(Abort::data(esr, Origin::LowerLevel)),
            class::DATA_ABORT_SAME => Self::Abort(Abort::data(esr, Origin::SameLevel)),
            class::SERROR => Self::SError(SError::decode(esr)),
            class => Self::Other {
                class: u8::try_from(class).unwrap_or(u8::MAX),
                iss: u32::try_from(bits(esr, 24, 0)).unwrap_or(u32::MAX),
            },
        }
    }
}

/// A trapped wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Which instruction.
    pub kind: WaitKind,
    /// The register with the timeout, for WFIT and WFET.
    pub timeout_register: Option<u8>,
}

/// The waiting instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitKind {
    /// For an interrupt.
    Wfi,
    /// For an event.
    Wfe,
    /// For an interrupt, not for ever.
    Wfit,
    /// For an event, not for ever.
    Wfet,
}

impl Wait {
    fn decode(esr: u64) -> Self {
        let kind = match bits(esr, 1, 0) {
            0b00 => WaitKind::Wfi,
            0b01 => WaitKind::Wfe,
            0b10 => WaitKind::Wfit,
            _ => WaitKind::Wfet,
        };
        let timed = matches!(kind, WaitKind::Wfit | WaitKind::Wfet);
        // RV, bit 2, says whether RN is filled in.
        let register = (timed && bit(esr, 2)).then(|| byte(esr, 9, 5));
        Self {
            kind,
            timeout_register: register,
        }
    }
}

/// A trapped MRS, MSR or system instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct System {
    /// What is accessed.
    pub register: SystemRegister,
    /// The general-purpose register, 31 being XZR.
    pub rt: u8,
    /// MRS, rather than MSR.
    pub is_read: bool,
}

/// A system register by its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "the names of the encoding are all there is to say"
)]
pub struct SystemRegister {
    pub op0: u8,
    pub op1: u8,
    pub crn: u8,
    pub crm: u8,
    pub op2: u8,
}

impl System {
    #[inline]
    fn decode(esr: u64) -> Self {
        Self {
            register: SystemRegister {
                op0: byte(esr, 21, 20),
                op2: byte(esr, 19, 17),
                op1: byte(esr, 16, 14),
                crn: byte(esr, 13, 10),
                crm: byte(esr, 4, 1),
            },
            rt: byte(esr, 9, 5),
            is_read: bit(esr, 0),
        }
    }
}

/// The syndrome of an SError.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SError {
    /// What the CPU knows about its own state.
    pub kind: SErrorKind,
    /// The error was synchronised by an implicit barrier at exception entry.
    pub implicit_barrier: bool,
    /// External abort type, for whoever knows the CPU.
    pub ea: bool,
    /// Bits 24 to 0, to be handed on.
    pub iss: u32,
}

/// What an SError does to the CPU's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SErrorKind {
    /// The CPU classified it: `AET` is valid.
    Classified(AsyncErrorType),
    /// The syndrome is the CPU's own (`IDS`).
    ImplementationDefined,
    /// There is no syndrome: a CPU without FEAT_RAS, or an error it knows nothing about.
    Uncategorized,
}

/// `AET`, Asynchronous Error Type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncErrorType {
    /// UC: the error may have gone anywhere.
    Uncontainable,
    /// UEU: what ran cannot be continued.
    Unrecoverable,
    /// UEO: what ran can be continued.
    Restartable,
    /// UER: what ran can be continued if software mends the cause.
    Recoverable,
    /// CE: nothing was lost.
    Corrected,
    /// A reserved value.
    Reserved(u8),
}

impl AsyncErrorType {
    const fn from_raw(raw: u8) -> Self {
        match raw {
            0b000 => Self::Uncontainable,
            0b001 => Self::Unrecoverable,
            0b010 => Self::Restartable,
            0b011 => Self::Recoverable,
            0b110 => Self::Corrected,
            raw => Self::Reserved(raw),
        }
    }

    /// The encoding, three bits.
    pub const fn raw(self) -> u8 {
        match self {
            Self::Uncontainable => 0b000,
            Self::Unrecoverable => 0b001,
            Self::Restartable => 0b010,
            Self::Recoverable => 0b011,
            Self::Corrected => 0b110,
            Self::Reserved(raw) => raw & 0b111,
        }
    }
}

impl SError {
    /// `DFSC` of an SError that has an `AET`.
    const ASYNCHRONOUS: u64 = 0x11;

    /// Decodes the syndrome in `ESR_EL2`, or in `DISR_EL1`, which has the same layout in these bits.
    pub fn decode(esr: u64) -> Self {
        // AET and DFSC mean something only where IDS is 0, and AET only with this DFSC
        // (Arm ARM, ISS encoding for an SError interrupt).
        let kind = if bit(esr, 24) {
            SErrorKind::ImplementationDefined
        } else if bits(esr, 5, 0) == Self::ASYNCHRONOUS {
            SErrorKind::Classified(AsyncErrorType::from_raw(byte(esr, 12, 10)))
        } else {
            SErrorKind::Uncategorized
        };
        Self {
            kind,
            implicit_barrier: bit(esr, 13),
            ea: bit(esr, 9),
            iss: u32::try_from(bits(esr, 24, 0)).unwrap_or(u32::MAX),
        }
    }
}

//! Interrupts that one vCPU sends to others: what is written to ICC_SGI1R_EL1 and its siblings
//! (IHI 0069, 12.2, ICC_SGI1R_EL1).

use super::VcpuSet;
use crate::ras::esr::SystemRegister;

/// The register that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generator {
    /// ICC_SGI0R_EL1 and, there being one security state, ICC_ASGI1R_EL1: group 0 alone.
    Group0,
    /// ICC_SGI1R_EL1: whatever group the interrupt is in.
    Any,
}

impl Generator {
    /// The register that is `register`, if it sends interrupts.
    pub const fn from_register(register: SystemRegister) -> Option<Self> {
        match register {
            SystemRegister {
                op0: 3,
                op1: 0,
                crn: 12,
                crm: 11,
                op2,
            } => match op2 {
                5 => Some(Self::Any),
                6 | 7 => Some(Self::Group0),
                _ => None,
            },
            _ => None,
        }
    }
}

/// An interrupt to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sgi {
    /// INTID, 0 to 15.
    pub intid: u16,
    /// To whom. Some of them may not exist.
    pub targets: VcpuSet,
    /// By which register.
    pub generator: Generator,
}

impl Sgi {
    /// Decodes `value`, written by vCPU number `from` of `vcpus`. vCPU n has affinity
    /// 0.0.(n / 16).(n % 16), see [`mpidr`](crate::vm::vcpu::mpidr).
    pub const fn decode(generator: Generator, value: u64, from: usize, vcpus: usize) -> Self {
        /// Aff3, Aff2 and RS (which would be Aff0 values from 16 up): nobody is there.
        const ELSEWHERE: u64 = 0xff << 48 | 0xff << 32 | 0xf << 44;
        const IRM: u64 = 1 << 40;
        let affinity1 = value >> 16 & 0xff;
        let targets = if value & IRM != 0 {
            VcpuSet::first(vcpus).without(from)
        } else if value & ELSEWHERE != 0 || affinity1 > 3 {
            VcpuSet::NONE
        } else {
            VcpuSet::from_bits((value & 0xffff) << (16 * affinity1))
        };
        Self {
            intid: (value >> 24 & 0xf) as u16,
            targets,
            generator,
        }
    }
}

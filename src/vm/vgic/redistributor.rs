//! The redistributors: each vCPU's own interrupts, SGIs 0 to 15 and PPIs 16 to 31.

use super::VcpuSet;
use super::bank::Bank;
use super::registers::{self, FRAME_SIZE, Place, Register};
use super::state::State;

const IIDR: u64 = 0x0004;
const TYPER: u64 = 0x0008;
const TYPER_HIGH: u64 = 0x000c;
const WAKER: u64 = 0x0014;
const IDENTIFICATION: u64 = 0xffd0;

const WAKER_PROCESSOR_SLEEP: u64 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u64 = 1 << 2;

/// SGIs are edge-triggered.
const SGIS: u32 = 0xffff;

/// A vCPU's own interrupts, and what else its redistributor remembers.
#[derive(Clone, Debug)]
pub struct Redistributor {
    /// INTIDs 0 to 31. Their triggers cannot be chosen: PPIs are level-sensitive.
    pub bank: Bank,
    /// GICR_WAKER.ProcessorSleep. The handshake is all there is to it: interrupts are signalled
    /// whether or not software has gone through it.
    asleep: bool,
}

impl Redistributor {
    /// As after a reset.
    pub fn new() -> Self {
        let bank = Bank {
            edge: SGIS,
            ..Bank::default()
        };
        Self { bank, asleep: true }
    }
}

impl State {
    /// What a load from a register gives that has a place for each of the own interrupts of vCPU number
    /// `vcpu`; `lines` are its timers' lines at this moment.
    pub fn read_own(
        &self,
        vcpu: usize,
        (register, bank, byte): Place,
        size: u8,
        lines: u32,
    ) -> u64 {
        let Some(cpu) = self.cpus.get(vcpu).filter(|_| bank == 0) else {
            return 0;
        };
        let own = &cpu.own.bank;
        match register {
            Register::SetPending | Register::ClearPending if size == 4 => {
                // Of a timer that fired, `line` remembers just that; `lines` is how it is now.
                let asking = own.pending() & !own.forwarded | lines;
                (own.latch | asking).into()
            }
            _ => own.read(register, byte, size),
        }
    }

    /// What a load from the redistributor of vCPU number `vcpu` gives, but for what [`Self::read_own`]
    /// is about.
    pub fn read_redistributor(&self, vcpu: usize, offset: u64, size: u8) -> u64 {
        let Some(cpu) = self.cpus.get(vcpu) else {
            return 0;
        };
        if let Some(offset) = offset.checked_sub(FRAME_SIZE) {
            return match Register::at(offset) {
                Some((register, 0, byte)) => cpu.own.bank.read(register, byte, size),
                _ if size == 4 => registers::identification(offset),
                _ => 0,
            };
        }
        let typer = self.redistributor_type(vcpu);
        match (offset, size) {
            (IIDR, 4) => registers::IIDR,
            (TYPER, 8) => typer,
            (TYPER, 4) => typer & 0xffff_ffff,
            (TYPER_HIGH, 4) => typer >> 32,
            (WAKER, 4) if cpu.own.asleep => WAKER_PROCESSOR_SLEEP | WAKER_CHILDREN_ASLEEP,
            (IDENTIFICATION.., 4) => registers::identification(offset),
            _ => 0,
        }
    }

    /// GICR_TYPER: affinity, number, and whether this is the last one of the region.
    fn redistributor_type(&self, vcpu: usize) -> u64 {
        const LAST: u64 = 1 << 4;
        let last = if vcpu + 1 == self.cpus.len() { LAST } else { 0 };
        crate::vm::vcpu::mpidr(vcpu) << 32 | (vcpu as u64) << 8 | last
    }

    /// Carries out a store. Returns whom it concerns.
    pub fn write_redistributor(
        &mut self,
        vcpu: usize,
        offset: u64,
        size: u8,
        value: u64,
    ) -> VcpuSet {
        let Some(cpu) = self.cpus.get_mut(vcpu) else {
            return VcpuSet::NONE;
        };
        match offset.checked_sub(FRAME_SIZE).map(Register::at) {
            Some(Some((register, 0, byte))) => {
                cpu.own.bank.write(register, byte, size, value);
                VcpuSet::only(vcpu)
            }
            None if (offset, size) == (WAKER, 4) => {
                cpu.own.asleep = value & WAKER_PROCESSOR_SLEEP != 0;
                VcpuSet::NONE
            }
            _ => VcpuSet::NONE,
        }
    }
}

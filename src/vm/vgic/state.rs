//! Everything that a VM's lock protects.

use super::bank::{Bank, Groups};
use super::distributor::{SPI_BANKS, SpiBank};
use super::hardware::Hardware;
use super::lists::{Lists, View};
use super::redistributor::Redistributor;
use super::{CpuInterface, PHYSICAL_TIMER, Timers, VIRTUAL_TIMER};
use alloc::vec::Vec;

/// One vCPU's part.
#[derive(Debug)]
pub struct Cpu {
    /// Its redistributor.
    pub own: Redistributor,
    /// Its list registers.
    pub lists: Lists,
}

/// The interrupt controller of one VM.
#[derive(Debug)]
pub struct State {
    /// GICD_CTLR's group enables.
    pub groups: Groups,
    /// By vCPU.
    pub cpus: Vec<Cpu>,
    /// INTIDs from 32 up.
    pub spis: [SpiBank; SPI_BANKS],
    /// What some of these are wired to.
    pub hardware: Hardware,
    timers: Timers,
}

impl State {
    /// As after a reset.
    pub fn new(vcpus: usize, timers: Timers) -> Self {
        let cpu = |_| Cpu {
            own: Redistributor::new(),
            lists: Lists::default(),
        };
        Self {
            groups: Groups::default(),
            cpus: (0..vcpus).map(cpu).collect(),
            spis: core::array::from_fn(|_| SpiBank::new()),
            hardware: Hardware::default(),
            timers,
        }
    }

    /// Makes everything as it is after a reset, but keeps in mind which physical interrupts are
    /// still active: that is settled on their CPUs, when the vCPUs start.
    pub fn reset(&mut self) {
        self.hardware.silence();
        self.groups = Groups::default();
        self.spis = core::array::from_fn(|_| SpiBank::new());
        for cpu in &mut self.cpus {
            let (forwarded, line) = (cpu.own.bank.forwarded, cpu.own.bank.line);
            cpu.own = Redistributor::new();
            cpu.own.bank.forwarded = forwarded;
            cpu.own.bank.line = line;
        }
        self.hardware.resume();
        self.hardware.follow(&self.spis, self.groups);
    }

    /// What a vCPU's list registers are filled from.
    pub fn view(&mut self, vcpu: usize) -> Option<View<'_>> {
        let cpu = self.cpus.get_mut(vcpu)?;
        Some(View {
            vcpu: u8::try_from(vcpu).ok()?,
            groups: self.groups,
            own: &mut cpu.own.bank,
            spis: &mut self.spis,
            lists: &mut cpu.lists,
            timers: &self.timers,
            hardware: &self.hardware,
        })
    }

    /// Which of the timers that are wired ask for an interrupt on this CPU, as bits by INTID.
    pub fn timer_lines(&self, cpu: &impl CpuInterface) -> u32 {
        let line = |intid| match self.timers.physical_intid(intid) {
            Some(_) if cpu.timer_line(intid) => 1 << intid,
            _ => 0,
        };
        line(VIRTUAL_TIMER) | line(PHYSICAL_TIMER)
    }

    /// The bank of a shared interrupt, and its bit there.
    pub fn spi(&mut self, intid: u16) -> Option<(&mut SpiBank, u32)> {
        let index = usize::from(intid / 32).checked_sub(1)?;
        Some((self.spis.get_mut(index)?, 1 << (intid % 32)))
    }

    /// The bank of a vCPU's own interrupts.
    pub fn own(&mut self, vcpu: usize) -> Option<&mut Bank> {
        Some(&mut self.cpus.get_mut(vcpu)?.own.bank)
    }
}

//! The interrupt controller's registers, and the state that each test finds.

use super::test::Stop;
use super::{cpu, machine, mmio, sys, timer};

/// INTIDs from here on mean that there is none (IHI 0069, 2.2.1).
pub(super) const SPECIAL: u64 = 1020;
/// Nothing is pending, or nothing that may be taken.
pub(super) const SPURIOUS: u64 = 1023;
/// The priority that every interrupt has unless a test says otherwise.
pub(super) const PRIORITY: u64 = 0xa0;

pub(super) const CTLR: u64 = 0x0000;
pub(super) const TYPER: u64 = 0x0004;
pub(super) const IIDR: u64 = 0x0008;
pub(super) const IGROUPR: u64 = 0x0080;
pub(super) const ISENABLER: u64 = 0x0100;
pub(super) const ICENABLER: u64 = 0x0180;
pub(super) const ISPENDR: u64 = 0x0200;
pub(super) const ICPENDR: u64 = 0x0280;
pub(super) const ISACTIVER: u64 = 0x0300;
pub(super) const ICACTIVER: u64 = 0x0380;
pub(super) const IPRIORITYR: u64 = 0x0400;
pub(super) const ITARGETSR: u64 = 0x0800;
pub(super) const ICFGR: u64 = 0x0c00;
pub(super) const IROUTER: u64 = 0x6000;
pub(super) const PIDR2: u64 = 0xffe8;

pub(super) const GICR_TYPER: u64 = 0x0008;
pub(super) const GICR_WAKER: u64 = 0x0014;
/// The redistributor's second frame, with SGIs and PPIs.
pub(super) const SGI_FRAME: u64 = 0x1_0000;
const REDISTRIBUTOR: u64 = 0x2_0000;

/// `GICD_CTLR`: both groups, affinity routing.
pub(super) const BOTH_GROUPS: u64 = 0b1_0011;
const RWP: u64 = 1 << 31;

/// The address of a distributor's register.
pub(super) fn gicd(register: u64) -> u64 {
    machine().distributor() + register
}

/// The address of a register of a CPU's redistributor.
pub(super) fn gicr(cpu: usize, register: u64) -> u64 {
    machine().redistributors() + REDISTRIBUTOR * cpu as u64 + register
}

/// Sets `GICD_CTLR` and waits until that has its effect.
pub(super) fn set_control(value: u64) {
    mmio::write32(gicd(CTLR), value);
    while mmio::read32(gicd(CTLR)) & RWP != 0 {
        sys::pause();
    }
}

/// How many INTIDs the distributor has.
pub(super) fn intids() -> u64 {
    32 * ((mmio::read32(gicd(TYPER)) & 0x1f) + 1)
}

/// One interrupt: a CPU's own below 32, or a shared one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interrupt {
    pub(super) intid: u64,
    cpu: usize,
}

/// CPU `cpu`'s own interrupt.
pub(super) const fn own(cpu: usize, intid: u64) -> Interrupt {
    Interrupt { intid, cpu }
}

/// A shared interrupt.
pub(super) const fn spi(intid: u64) -> Interrupt {
    Interrupt { intid, cpu: 0 }
}

impl Interrupt {
    fn base(self) -> u64 {
        if self.intid < 32 {
            gicr(self.cpu, SGI_FRAME)
        } else {
            gicd(0)
        }
    }

    fn bitmap(self, register: u64) -> u64 {
        self.base() + register + self.intid / 32 * 4
    }

    const fn bit(self) -> u64 {
        1 << (self.intid % 32)
    }

    /// Writes its bit, alone, to a bitmap register.
    pub(super) fn write(self, register: u64) {
        mmio::write32(self.bitmap(register), self.bit());
    }

    /// Its bit in a bitmap register.
    pub(super) fn read(self, register: u64) -> bool {
        mmio::read32(self.bitmap(register)) & self.bit() != 0
    }

    /// Enables it, after which it may be taken.
    pub(super) fn enable(self) {
        self.write(ISENABLER);
    }

    /// Disables it, and waits until that has its effect.
    pub(super) fn disable(self) {
        self.write(ICENABLER);
        let control = if self.intid < 32 {
            gicr(self.cpu, 0)
        } else {
            gicd(CTLR)
        };
        // GICR_CTLR.RWP is bit 3.
        let busy = if self.intid < 32 { 1 << 3 } else { RWP };
        while mmio::read32(control) & busy != 0 {
            sys::pause();
        }
    }

    pub(super) fn set_priority(self, priority: u64) {
        mmio::write8(self.base() + IPRIORITYR + self.intid, priority);
    }

    pub(super) fn set_group(self, group: u64) {
        let register = self.bitmap(IGROUPR);
        let others = mmio::read32(register) & !self.bit();
        mmio::write32(register, others | group << (self.intid % 32));
    }

    /// A shared one goes to this CPU.
    pub(super) fn route(self, cpu: usize) {
        mmio::write64(gicd(IROUTER) + 8 * self.intid, machine().mpidr(cpu));
    }

    pub(super) fn set_edge(self, edge: bool) {
        let register = self.base() + ICFGR + self.intid / 16 * 4;
        let shift = self.intid % 16 * 2 + 1;
        let others = mmio::read32(register) & !(1 << shift);
        mmio::write32(register, others | u64::from(edge) << shift);
    }
}

/// Takes an interrupt of group 1, if there is one; [`SPURIOUS`] otherwise.
pub(super) fn acknowledge() -> u64 {
    let intid = sys::icc_iar1() & 0xff_ffff;
    sys::dsb();
    intid
}

/// Ends it.
pub(super) fn end(intid: u64) {
    sys::icc_eoir1::write(intid);
}

/// Whether an IRQ is pending for this CPU, taken or not (ISR_EL1.I).
pub(super) fn signalled() -> bool {
    sys::isr() & 1 << 7 != 0
}

/// Waits for an interrupt of group 1 and takes it.
pub(super) fn take() -> u64 {
    let mut intid = SPURIOUS;
    cpu::wait_for(|| {
        intid = acknowledge();
        intid != SPURIOUS
    });
    intid
}

/// Takes everything there is, and returns whether there was nothing for a while.
pub(super) fn quiet() -> bool {
    cpu::never(signalled)
}

/// SGI `intid` to the CPUs with these bits in ICC_SGI1R_EL1.
pub(super) fn send(intid: u64, to: u64) {
    sys::dsb();
    sys::icc_sgi1r::write(intid << 24 | to);
}

/// What ICC_SGI1R_EL1 takes for one CPU.
pub(super) fn target(cpu: usize) -> u64 {
    let mpidr = machine().mpidr(cpu);
    (mpidr >> 8 & 0xff) << 16 | (mpidr >> 16 & 0xff) << 32 | 1 << (mpidr & 0xf)
}

/// What it takes for all but the sender.
pub(super) const ALL_BUT_SELF: u64 = 1 << 40;

/// This CPU's interface: everything of both groups is taken, EOImode = 0.
pub(super) fn enable_interface() {
    sys::cntkctl::write(timer::EVENTS);
    sys::icc_sre::write(7);
    sys::icc_ctlr::write(0);
    sys::icc_pmr::write(0xff);
    sys::icc_bpr0::write(0);
    sys::icc_bpr1::write(0);
    sys::icc_igrpen0::write(1);
    sys::icc_igrpen1::write(1);
}

/// This CPU: no timer asks, its own interrupts are idle, disabled and in group 1.
fn reset_cpu(_: u64) -> u64 {
    let number = sys::tpidr() as usize;
    timer::off();
    sys::mask_irq();
    enable_interface();
    let frame = |register| gicr(number, SGI_FRAME + register);
    mmio::write32(gicr(number, GICR_WAKER), 0);
    mmio::write32(frame(ICENABLER), u64::MAX);
    mmio::write32(frame(ICPENDR), u64::MAX);
    mmio::write32(frame(ICACTIVER), u64::MAX);
    mmio::write32(frame(IGROUPR), u64::MAX);
    for word in 0..8 {
        mmio::write32(frame(IPRIORITYR) + 4 * word, PRIORITY * 0x0101_0101);
    }
    // Whatever a failed test has left running.
    sys::icc_ap0r0::write(0);
    sys::icc_ap1r0::write(0);
    0
}

/// Everything is idle and disabled, in group 1, and goes to CPU 0.
pub(super) fn reset() -> Result<(), Stop> {
    set_control(BOTH_GROUPS);
    for number in 0..machine().cpus() {
        cpu::on(number, reset_cpu, 0)?;
    }
    for bank in 1..intids() / 32 {
        mmio::write32(gicd(ICENABLER) + 4 * bank, u64::MAX);
        mmio::write32(gicd(ICPENDR) + 4 * bank, u64::MAX);
        mmio::write32(gicd(ICACTIVER) + 4 * bank, u64::MAX);
        mmio::write32(gicd(IGROUPR) + 4 * bank, u64::MAX);
        mmio::write32(gicd(ICFGR) + 8 * bank, 0);
        mmio::write32(gicd(ICFGR) + 8 * bank + 4, 0);
    }
    for word in 8..intids() / 4 {
        mmio::write32(gicd(IPRIORITYR) + 4 * word, PRIORITY * 0x0101_0101);
    }
    Ok(())
}

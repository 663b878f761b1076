//! Shared interrupts that come from devices which the VM was given: each is wired to a physical one.
//!
//! The physical distributor is made to do what the guest asks of the virtual one: a wired interrupt is
//! enabled there while the guest could be signalled by it, triggers as the guest says, and goes to the
//! CPU that the vCPU is pinned to which the guest routes it to. So what the guest does not want yet
//! stays pending where it came up, in hardware.
//!
//! One that came is active there, with its priority dropped, from its acknowledgement until the guest
//! ends the virtual one: a list register is linked to it, and the CPU deactivates both together (GIC
//! architecture IHI 0069, 4.6, ICH_LR<n>_EL2.HW). That is what [`Bank::forwarded`] says. Where a link
//! could not be made, or the guest ended the interrupt by other means, [`Hardware::settle`] does it.
//!
//! Everything here happens under the lock of the VM's interrupt controller, the physical accesses
//! included: so a reset cannot miss an interrupt that another CPU is just taking.

use super::bank::{Bank, Groups};
use super::distributor::{NOBODY, SpiBank};
use alloc::vec::Vec;
use core::fmt;

/// The physical distributor, as far as single shared interrupts are concerned (GICD_*).
pub trait PhysicalDistributor: fmt::Debug + Sync {
    /// Forwards an interrupt or no longer. When it returns, an interrupt that is off comes no more.
    fn set_enabled(&self, physical: u16, on: bool);
    /// Sets its trigger. It is not enabled.
    fn set_edge(&self, physical: u16, edge: bool);
    /// Routes it to physical CPU number `cpu`.
    fn set_route(&self, physical: u16, cpu: usize);
    /// Whether it is pending: of a level-sensitive one, whether its line is high.
    fn is_pending(&self, physical: u16) -> bool;
    /// Forgets an edge.
    fn clear_pending(&self, physical: u16);
    /// Whether it is active.
    fn is_active(&self, physical: u16) -> bool;
    /// Deactivates it, from whichever CPU.
    fn deactivate(&self, physical: u16);
}

/// A shared interrupt of the VM and what is behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// INTID for the guest, from 32 up.
    pub virtual_: u16,
    /// INTID in the machine, 32 to 1019.
    pub physical: u16,
}

/// The interrupts of all devices that a VM was given.
#[derive(Debug)]
pub struct Wiring {
    /// The wires; no INTID is there twice.
    pub wires: Vec<Wire>,
    /// Physical CPU numbers, by vCPU.
    pub cpus: Vec<usize>,
    /// What they are wired to.
    pub distributor: &'static dyn PhysicalDistributor,
}

/// What the physical distributor was last told about a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Programmed {
    enabled: bool,
    edge: bool,
    cpu: Option<usize>,
}

/// A VM's [`Wiring`], and what has been made of it.
#[derive(Debug, Default)]
pub struct Hardware {
    wiring: Option<Wiring>,
    /// By wire.
    programmed: Vec<Programmed>,
    /// The VM does not run: nothing may come.
    silent: bool,
}

impl Hardware {
    /// Takes the wires over, whatever state a boot loader left them in.
    pub fn connect(&mut self, wiring: Wiring) {
        self.programmed = alloc::vec![Programmed::default(); wiring.wires.len()];
        for wire in &wiring.wires {
            wiring.distributor.set_enabled(wire.physical, false);
            wiring.distributor.set_edge(wire.physical, false);
        }
        self.wiring = Some(wiring);
        self.silence();
        self.silent = false;
    }

    fn wires(&self) -> impl Iterator<Item = (Wire, &'static dyn PhysicalDistributor)> + '_ {
        wires_of(&self.wiring)
    }

    /// What is behind the guest's `intid`.
    pub fn physical(&self, intid: u16) -> Option<u16> {
        let mut wires = self.wires();
        let found = wires.find(|(wire, _)| wire.virtual_ == intid);
        found.map(|(wire, _)| wire.physical)
    }

    /// The guest's INTID for what came as `physical`, and whether it is active: it is not any more
    /// where a reset came between its acknowledgement and now.
    pub fn arrival(&self, physical: u16) -> Option<(u16, bool)> {
        let (wire, distributor) = self.wires().find(|(wire, _)| wire.physical == physical)?;
        Some((wire.virtual_, distributor.is_active(physical)))
    }

    /// Nothing comes any more, and nothing is pending or active.
    pub fn silence(&mut self) {
        self.silent = true;
        for ((wire, distributor), programmed) in wires_of(&self.wiring).zip(&mut self.programmed) {
            distributor.set_enabled(wire.physical, false);
            distributor.clear_pending(wire.physical);
            distributor.deactivate(wire.physical);
            programmed.enabled = false;
        }
    }

    /// After a reset: as the guest says, which has not said anything yet.
    pub fn resume(&mut self) {
        self.silent = false;
    }

    /// Makes the physical distributor agree with what the guest has written.
    pub fn follow(&mut self, spis: &[SpiBank], groups: Groups) {
        let cpus = self.wiring.as_ref().map_or(&[][..], |wiring| &wiring.cpus);
        for ((wire, distributor), known) in wires_of(&self.wiring).zip(&mut self.programmed) {
            let Some((spis, bit)) = bank_of(spis, wire.virtual_) else {
                continue;
            };
            let target = spis.target[usize::from(wire.virtual_ % 32)];
            let wanted = Programmed {
                cpu: cpus.get(usize::from(target)).copied(),
                edge: spis.bank.edge & bit != 0,
                enabled: spis.bank.forwardable(groups) & bit != 0
                    && target != NOBODY
                    && !self.silent,
            };
            program(distributor, wire.physical, known, wanted);
        }
    }

    /// Interrupts that came, but that the guest has ended without the CPU's doing so for the physical
    /// one, or whose line has dropped before the guest took them: the physical one is deactivated.
    pub fn settle(&self, spis: &mut [SpiBank]) {
        for (wire, distributor) in self.wires() {
            let Some((bank, bit)) = bank_of_mut(spis, wire.virtual_) else {
                continue;
            };
            if bank.forwarded & !bank.active & !bank.in_flight & bit == 0 {
                continue;
            }
            if bank.line & bit != 0 && !distributor.is_pending(wire.physical) {
                bank.line &= !bit;
            }
            if bank.pending() & bit == 0 {
                bank.line &= !bit;
                bank.forwarded &= !bit;
                distributor.deactivate(wire.physical);
            }
        }
    }

    /// Which interrupts of bank `index` are wired, and which of these are pending in the machine.
    pub fn pending(&self, index: usize) -> (u32, u32) {
        let (mut wired, mut pending) = (0, 0);
        for (wire, distributor) in self.wires() {
            if usize::from(wire.virtual_ / 32) == index + 1 {
                let bit = 1 << (wire.virtual_ % 32);
                wired |= bit;
                if distributor.is_pending(wire.physical) {
                    pending |= bit;
                }
            }
        }
        (wired, pending)
    }

    /// The guest clears what is pending of bank `index` among `interrupts`.
    pub fn clear_pending(&self, index: usize, interrupts: u32) {
        for (wire, distributor) in self.wires() {
            let here = usize::from(wire.virtual_ / 32) == index + 1;
            if here && interrupts >> (wire.virtual_ % 32) & 1 != 0 {
                distributor.clear_pending(wire.physical);
            }
        }
    }
}

/// The wires, where another field of [`Hardware`] is being changed.
fn wires_of(
    wiring: &Option<Wiring>,
) -> impl Iterator<Item = (Wire, &'static dyn PhysicalDistributor)> + '_ {
    let wiring = wiring.iter();
    wiring.flat_map(|it| it.wires.iter().map(|wire| (*wire, it.distributor)))
}

/// Tells the distributor what it has not been told yet. The trigger of an interrupt that is enabled
/// must not be changed (IHI 0069, 12.9.9 GICD_ICFGR).
fn program(
    distributor: &dyn PhysicalDistributor,
    physical: u16,
    known: &mut Programmed,
    wanted: Programmed,
) {
    if known.enabled && (!wanted.enabled || known.edge != wanted.edge) {
        distributor.set_enabled(physical, false);
        known.enabled = false;
    }
    if known.edge != wanted.edge {
        distributor.set_edge(physical, wanted.edge);
        known.edge = wanted.edge;
    }
    if let Some(cpu) = wanted.cpu.filter(|_| known.cpu != wanted.cpu) {
        distributor.set_route(physical, cpu);
        known.cpu = Some(cpu);
    }
    if wanted.enabled && !known.enabled {
        distributor.set_enabled(physical, true);
        known.enabled = true;
    }
}

fn bank_of(spis: &[SpiBank], intid: u16) -> Option<(&SpiBank, u32)> {
    let index = usize::from(intid / 32).checked_sub(1)?;
    Some((spis.get(index)?, 1 << (intid % 32)))
}

fn bank_of_mut(spis: &mut [SpiBank], intid: u16) -> Option<(&mut Bank, u32)> {
    let index = usize::from(intid / 32).checked_sub(1)?;
    Some((&mut spis.get_mut(index)?.bank, 1 << (intid % 32)))
}

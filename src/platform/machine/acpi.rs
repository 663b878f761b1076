//! The machine, as ACPI describes it (ACPI 6.5): what a device tree would say of CPUs, interrupt controller,
//! timer, console and PCI Express.
//!
//! RAM is not in these tables; it is UEFI's memory map that knows it ([`super::efi`]). Of devices, the DSDT knows what
//! only running it would tell, so there are none that a VM could be given.

use alloc::vec::Vec;
use core::fmt;

use super::{
    Conduit, GicV3, HostUart, Machine, MachineError, Mpidr, PcieHost, TimerInterrupts, UartKind,
};
use crate::addr::{Pa, PaRange};
use crate::platform::acpi::{self, AcpiError, CheckedTables, Madt, PhysicalBytes, Signature};
use crate::platform::aml;
use crate::platform::uart::ns16550::Layout;

/// Registers of a GICv3's distributor, and of a redistributor (GIC architecture 12.8, 12.10), in bytes.
const DISTRIBUTOR: u64 = 64 << 10;
const REDISTRIBUTOR: u64 = 128 << 10;
/// Registers of a UART, in bytes: SPCR does not say how many.
const UART: u64 = 4096;

/// Where fields are, from their table's beginning: FADT (5.2.9), GTDT (5.2.25), SPCR (of Microsoft's), MCFG (PCI
/// Firmware Specification 3.3, 4.1.2).
mod field {
    pub(super) const FADT_ARM_BOOT: usize = 129;
    pub(super) const GTDT_SECURE_EL1: usize = 48;
    pub(super) const GTDT_EL1: usize = 56;
    pub(super) const GTDT_VIRTUAL: usize = 64;
    pub(super) const GTDT_EL2: usize = 72;
    pub(super) const GTDT_VIRTUAL_EL2: usize = 96;
    pub(super) const SPCR_TYPE: usize = 36;
    pub(super) const SPCR_SPACE: usize = 40;
    pub(super) const SPCR_WIDTH: usize = 41;
    pub(super) const SPCR_ACCESS: usize = 43;
    pub(super) const SPCR_ADDRESS: usize = 44;
    pub(super) const SPCR_INTERRUPT_TYPE: usize = 52;
    pub(super) const SPCR_GSIV: usize = 54;
    pub(super) const MCFG_ENTRIES: usize = 44;
}

/// What the tables say, each part only where its table is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// The CPUs that may be used, in MADT's order.
    pub cpus: Vec<Mpidr>,
    /// The interrupt controller, where it is a GICv3 or GICv4.
    pub gic: Option<GicV3>,
    /// Where it is an older one, its name.
    pub other_gic: Option<&'static str>,
    /// How PSCI is called, by the FADT.
    pub psci: Option<Conduit>,
    /// The generic timer's interrupts, by the GTDT.
    pub timer: Option<TimerInterrupts>,
    /// The console, by SPCR, if there is a driver for it.
    pub uart: Option<HostUart>,
    /// INTID of its interrupt.
    pub uart_interrupt: Option<u32>,
    /// The first PCI Express host bridge, by MCFG and DSDT.
    pub pcie: Option<PcieHost>,
}

/// Where a [`Description`] comes from. MADT's reader is the `acpi` crate, whose door is an unsafe one, so it is
/// read before.
pub struct AcpiParts<'a> {
    /// The tables, checked.
    pub tables: &'a CheckedTables,
    /// What they lie in.
    pub memory: &'a dyn PhysicalBytes,
    /// Their MADT, where there is one.
    pub madt: Option<Madt>,
}

impl Description {
    /// Reads the tables.
    ///
    /// # Errors
    /// A table that is damaged. What is described by a table that makes no sense is left out.
    #[inline(never)] // There are two callers, of which one is gone when the other comes.
    pub fn read(parts: AcpiParts<'_>) -> Result<Self, AcpiError> {
        let AcpiParts {
            tables,
            memory,
            madt,
        } = parts;
        let table = |signature| tables.table(memory, signature);
        let madt = madt.unwrap_or_default();
        let spcr = table(Signature::SPCR)?;
        let windows = tables.dsdt(memory)?.map(aml::find_pci_windows);
        Ok(Self {
            gic: gic(&madt),
            other_gic: matches!(madt.version, 1 | 2).then_some("gicv2"),
            cpus: madt.cpus,
            psci: table(Signature::FADT)?.and_then(conduit),
            timer: table(Signature::GTDT)?.map(timer),
            uart: spcr.and_then(uart),
            uart_interrupt: spcr.and_then(uart_interrupt),
            pcie: table(Signature::MCFG)?.and_then(|mcfg| pcie(mcfg, windows.unwrap_or_default())),
        })
    }

    /// What is described here and, otherwise, in `machine`.
    pub fn differences(&self, machine: &Machine) -> Vec<Difference> {
        let sorted = |cpus: &[Mpidr]| {
            let mut cpus = cpus.to_vec();
            cpus.sort_unstable();
            cpus
        };
        let both = |differ: bool, what| differ.then_some(Difference(what));
        let gics = self.gic.as_ref().zip(machine.gic.as_ref());
        let frames = |gic: &GicV3| {
            let starts = gic.redistributors.iter().map(|range| range.start());
            (gic.distributor.start(), starts.min())
        };
        let timers = self.timer.zip(machine.timer);
        // The secure one is nobody's business here, and some tables leave it out.
        let seen = |timer: TimerInterrupts| (timer.physical, timer.virtual_, timer.hyp_physical);
        let ecams = self.pcie.as_ref().zip(machine.pcie.as_ref());
        let uarts = self.uart.zip(machine.host_uart());
        let place = |uart: HostUart| (uart.kind, uart.registers.start());
        let conduits = self.psci.zip(machine.psci);
        let cpus = !self.cpus.is_empty() && sorted(&self.cpus) != sorted(&machine.cpus);
        [
            both(cpus, "cpus"),
            both(gics.is_some_and(|(a, b)| frames(a) != frames(b)), "gic"),
            both(timers.is_some_and(|(a, b)| seen(a) != seen(b)), "timer"),
            both(uarts.is_some_and(|(a, b)| place(a) != place(b)), "uart"),
            both(conduits.is_some_and(|(a, b)| a != b), "psci"),
            both(
                ecams.is_some_and(|(a, b)| a.ecam.start() != b.ecam.start()),
                "pcie",
            ),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Something that device tree and ACPI say differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference(&'static str);

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "why=differs in={}", self.0)
    }
}

impl From<AcpiError> for MachineError {
    fn from(error: AcpiError) -> Self {
        Self::Acpi(error)
    }
}

fn gic(madt: &Madt) -> Option<GicV3> {
    let distributor = PaRange::new(madt.distributor?, DISTRIBUTOR)?;
    let mut redistributors = madt.redistributors.clone();
    if redistributors.is_empty() {
        let own = madt.own_redistributors.iter();
        redistributors = own
            .filter_map(|start| PaRange::new(*start, REDISTRIBUTOR))
            .collect();
    }
    let is_v3 = matches!(madt.version, 3 | 4) && !redistributors.is_empty();
    is_v3.then_some(GicV3 {
        distributor,
        redistributors,
        redistributor_stride: None,
        maintenance: madt.maintenance.and_then(ppi),
    })
}

/// A private interrupt's INTID; 0 says that there is none.
fn ppi(gsiv: u32) -> Option<u32> {
    (16..32).contains(&gsiv).then_some(gsiv)
}

/// FADT, ARM Boot Architecture Flags (table 5.11): PSCI is there, and is called by HVC.
fn conduit(fadt: &[u8]) -> Option<Conduit> {
    const PSCI: u8 = 1 << 0;
    const HVC: u8 = 1 << 1;
    let flags = *fadt.get(field::FADT_ARM_BOOT)?;
    (flags & PSCI != 0).then_some(if flags & HVC != 0 {
        Conduit::Hvc
    } else {
        Conduit::Smc
    })
}

fn timer(gtdt: &[u8]) -> TimerInterrupts {
    let interrupt = |at| ppi(acpi::u32_at(gtdt, at));
    TimerInterrupts {
        secure_physical: interrupt(field::GTDT_SECURE_EL1),
        physical: interrupt(field::GTDT_EL1),
        virtual_: interrupt(field::GTDT_VIRTUAL),
        hyp_physical: interrupt(field::GTDT_EL2),
        hyp_virtual: interrupt(field::GTDT_VIRTUAL_EL2),
    }
}

/// SPCR's interface types are DBG2's subtypes of serial ports.
fn uart(spcr: &[u8]) -> Option<HostUart> {
    const SYSTEM_MEMORY: u8 = 0;
    let kind = match spcr.get(field::SPCR_TYPE)? {
        // A PL011; what Arm's server base says of one, with 32-bit accesses alone and without.
        0x03 | 0x0d | 0x0e => UartKind::Pl011,
        0x0c => UartKind::Imx,
        // 16550, all of it or a part, and as the address structure says.
        0x00 | 0x01 | 0x12 => UartKind::Ns16550(layout(spcr)?),
        // The BCM2835's, in words whatever is said.
        0x10 => UartKind::Ns16550(Layout::WORDS),
        _ => return None,
    };
    if *spcr.get(field::SPCR_SPACE)? != SYSTEM_MEMORY {
        return None;
    }
    let start = Pa::new(acpi::u64_at(spcr, field::SPCR_ADDRESS));
    let registers = PaRange::new(start, UART).filter(|_| start != Pa::new(0))?;
    Some(HostUart { kind, registers })
}

/// How a 16550's registers lie, by the generic address structure (ACPI 6.5, 5.2.3.2): its width is from one to the
/// next, its access size that of an access.
fn layout(spcr: &[u8]) -> Option<Layout> {
    let shift = match *spcr.get(field::SPCR_WIDTH)? {
        0 | 8 => 0,
        16 => 1,
        32 => 2,
        _ => return None,
    };
    let width = match *spcr.get(field::SPCR_ACCESS)? {
        0 | 1 => 1,
        3 => 4,
        _ => return None,
    };
    Layout::new(shift, width)
}

/// SPCR's interrupt, where it is one of the GIC's shared ones.
fn uart_interrupt(spcr: &[u8]) -> Option<u32> {
    const GIC: u8 = 1 << 3;
    let is_gic = spcr.get(field::SPCR_INTERRUPT_TYPE)? & GIC != 0;
    let gsiv = acpi::u32_at(spcr, field::SPCR_GSIV);
    (is_gic && (32..1020).contains(&gsiv)).then_some(gsiv)
}

/// MCFG's first entry; its address is that of bus 0, whether or not the bridge has that.
fn pcie(mcfg: &[u8], windows: aml::PciWindows) -> Option<PcieHost> {
    let entry = mcfg.get(field::MCFG_ENTRIES..)?.first_chunk::<16>()?;
    let (first, last) = (entry[10], entry[11]);
    let count = u64::from(last.checked_sub(first)?) + 1;
    let base = Pa::new(acpi::u64_at(entry, 0)).checked_add(u64::from(first) << 20)?;
    Some(PcieHost {
        ecam: PaRange::new(base, count << 20).filter(|_| base.is_aligned(1 << 20))?,
        buses: first..=last,
        window32: windows.window32,
        window64: windows.window64,
        placed: true,
    })
}

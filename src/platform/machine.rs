//! The machine, as its device tree or its ACPI tables describe it.
//!
//! [`Machine::from_fdt`] reads a [`CheckedFdt`](super::fdt::CheckedFdt) once, [`Machine::from_efi`] that or a
//! [`Description`] by ACPI, with UEFI's memory map; the rest of Cordon
//! sees only the typed result. What a machine may lack is an `Option`. What it has but describes
//! wrongly is a [`MachineError`] that names the node: half a description is not believed.
//!
//! A device whose `status` is not `okay` belongs to somebody else, such as the secure world, and
//! so does everything below it.

mod acpi;
#[cfg(test)]
mod acpi_tests;
mod devices;
mod discover;
mod efi;
#[cfg(test)]
mod tests;
mod uart;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::RangeInclusive;

use super::acpi::AcpiError;
use super::efi::ResetService;
use super::fdt::FdtError;
use crate::addr::{Pa, PaRange};
pub use acpi::{AcpiParts, Description, Difference};
pub use devices::{HostDevice, HostInterrupt, MAX_DEVICES};
pub use uart::{HostUart, UartKind};

/// What was found out about the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// RAM as `/memory` lists it, in its order.
    pub ram: Vec<PaRange>,
    /// What must not be used although it may be RAM.
    pub reserved: Vec<Reserved>,
    /// The CPUs that may be used, in the tree's order.
    pub cpus: Vec<Mpidr>,
    /// How PSCI 0.2 or later is called, where there is one.
    pub psci: Option<Conduit>,
    /// The registers of the UART that is `stdout-path`, or else of the first one, of those that there
    /// are drivers for.
    pub uart: Option<PaRange>,
    /// The driver that it wants.
    pub uart_kind: Option<UartKind>,
    /// INTID of its interrupt, where that is one of the GIC's shared ones.
    pub uart_interrupt: Option<u32>,
    /// The interrupt controller, where it is a GICv3.
    pub gic: Option<GicV3>,
    /// Where it is another one that is known by name, and not driven: that name.
    pub other_gic: Option<&'static str>,
    /// The generic timer's interrupts.
    pub timer: Option<TimerInterrupts>,
    /// The first PCI Express host bridge with ECAM.
    pub pcie: Option<PcieHost>,
    /// The registers of QEMU's fw_cfg.
    pub fw_cfg: Option<PaRange>,
    /// Everything else that has registers in memory and says what it is, in the tree's order.
    pub devices: Vec<HostDevice>,
    /// The words that Cordon was started with.
    pub bootargs: Option<String>,
    /// What the boot loader left in memory for Cordon: the bundle.
    pub initrd: Option<PaRange>,
    /// What ends the machine where PSCI does not: UEFI's.
    pub reset: Option<ResetService>,
    /// The ACPI RSDP, by Cordon's own `cordon,acpi-rsdp` in `/chosen`.
    pub rsdp: Option<Pa>,
}

/// Memory that is taken, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// The memory.
    pub range: PaRange,
    /// Who said so.
    pub by: ReservedBy,
}

/// Why memory is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReservedBy {
    /// An entry of the blob's memory reservation block.
    Memreserve,
    /// The child of `/reserved-memory` of this name.
    Node(String),
    /// The device tree blob itself.
    Dtb,
    /// The initrd.
    Initrd,
}

impl fmt::Display for ReservedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memreserve => f.write_str("memreserve"),
            Self::Node(name) => f.write_str(name),
            Self::Dtb => f.write_str("dtb"),
            Self::Initrd => f.write_str("initrd"),
        }
    }
}

/// A CPU's affinity: the Aff fields of its `MPIDR_EL1` (Arm ARM D19.2.103) and nothing else. This
/// is what PSCI calls `target_cpu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mpidr(u64);

impl Mpidr {
    /// Aff3 in bits 39 to 32, Aff2 to Aff0 in bits 23 to 0.
    pub const AFFINITY: u64 = 0xff_00ff_ffff;

    /// The affinity `raw`, or `None` where another bit is set.
    pub const fn new(raw: u64) -> Option<Self> {
        if raw & !Self::AFFINITY == 0 {
            Some(Self(raw))
        } else {
            None
        }
    }

    /// The affinity fields of a value read from `MPIDR_EL1`.
    pub const fn from_register(value: u64) -> Self {
        Self(value & Self::AFFINITY)
    }

    /// The raw affinity.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Mpidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// How firmware is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// By SMC: firmware is at EL3.
    Smc,
    /// By HVC: firmware is a hypervisor, so Cordon itself cannot be at EL2.
    Hvc,
}

impl fmt::Display for Conduit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Smc => "smc",
            Self::Hvc => "hvc",
        })
    }
}

/// A GICv3's register frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GicV3 {
    /// The distributor.
    pub distributor: PaRange,
    /// The regions that hold the redistributors, at least one.
    pub redistributors: Vec<PaRange>,
    /// Bytes from one redistributor to the next where it is not the architecture's 128 KiB
    /// (GICv3) or 256 KiB (GICv4).
    pub redistributor_stride: Option<u64>,
    /// INTID of the maintenance interrupt of the CPUs' virtual interfaces, 16 to 31.
    pub maintenance: Option<u32>,
}

/// INTIDs of the generic timer's interrupts, each 16 to 31.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerInterrupts {
    /// Secure EL1 physical timer.
    pub secure_physical: Option<u32>,
    /// Non-secure EL1 physical timer.
    pub physical: Option<u32>,
    /// EL1 virtual timer.
    pub virtual_: Option<u32>,
    /// EL2 physical timer.
    pub hyp_physical: Option<u32>,
    /// EL2 virtual timer (FEAT_VHE).
    pub hyp_virtual: Option<u32>,
}

/// A PCI Express host bridge whose configuration space is memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcieHost {
    /// Configuration space: 1 MiB a bus, from the first of `buses`.
    pub ecam: PaRange,
    /// The buses behind the bridge for which `ecam` has room.
    pub buses: RangeInclusive<u8>,
    /// Where memory BARs of 32 bits may be placed.
    pub window32: Option<PciWindow>,
    /// Where memory BARs of 64 bits may be placed.
    pub window64: Option<PciWindow>,
    /// Firmware has placed all functions: their BARs are where they are to be, whether the functions decode
    /// memory yet or not.
    pub placed: bool,
}

/// A range of PCI memory addresses that the host bridge forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciWindow {
    /// The window as the CPU sees it.
    pub cpu: PaRange,
    /// The PCI address of its first byte: what goes into a BAR.
    pub pci: u64,
}

/// What is wrong with a machine's description. `node` is the path of the node in question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineError {
    /// No usable `/memory`.
    NoRam,
    /// No usable CPU.
    NoCpus,
    /// A property that is needed is absent, or its value has the wrong length or form.
    BadProperty {
        /// The node that has, or lacks, it.
        node: String,
        /// The property.
        property: &'static str,
    },
    /// A CPU's `reg` has bits that are no affinity.
    BadMpidr {
        /// The value found.
        value: u64,
    },
    /// Two CPUs say that they are the same one.
    DuplicateCpu {
        /// The affinity that is there twice.
        mpidr: Mpidr,
    },
    /// The DTB's own place wraps around.
    BadDtb,
    /// The device tree blob is damaged.
    Fdt(FdtError),
    /// ACPI's tables are, or what one of them says is wrong.
    Acpi(AcpiError),
    /// Nothing describes the machine: neither ACPI tables nor a device tree.
    Undescribed,
}

impl fmt::Display for MachineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRam => f.write_str("why=no-ram"),
            Self::NoCpus => f.write_str("why=no-cpus"),
            Self::BadProperty { node, property } => {
                write!(f, "why=bad-property node={node} property={property}")
            }
            Self::BadMpidr { value } => write!(f, "why=bad-mpidr value={value:#x}"),
            Self::DuplicateCpu { mpidr } => write!(f, "why=duplicate-cpu mpidr={mpidr}"),
            Self::BadDtb => f.write_str("why=bad-dtb"),
            Self::Fdt(error) => error.fmt(f),
            Self::Acpi(error) => error.fmt(f),
            Self::Undescribed => f.write_str("why=not-described"),
        }
    }
}

impl core::error::Error for MachineError {}

/// One `cordon: event=found` line for each thing, without a final line end.
impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Lines { f, first: true };
        for ram in &self.ram {
            lines.range("ram", *ram)?;
        }
        for Reserved { range, by } in &self.reserved {
            lines.line(format_args!(
                "what=reserved pa={} size={:#x} by={by}",
                range.start(),
                range.size()
            ))?;
        }
        for (cpu, mpidr) in self.cpus.iter().enumerate() {
            lines.line(format_args!("what=cpu cpu={cpu} mpidr={mpidr}"))?;
        }
        if let Some(conduit) = self.psci {
            lines.line(format_args!("what=psci conduit={conduit}"))?;
        }
        self.uart.map_or(Ok(()), |uart| lines.range("uart", uart))?;
        if let Some(gic) = &self.gic {
            lines.range("gicd", gic.distributor)?;
            for redistributors in &gic.redistributors {
                lines.range("gicr", *redistributors)?;
            }
        }
        if let Some(pcie) = &self.pcie {
            lines.pcie(pcie)?;
        }
        self.fw_cfg
            .map_or(Ok(()), |fw_cfg| lines.range("fw-cfg", fw_cfg))?;
        self.initrd
            .map_or(Ok(()), |initrd| lines.range("initrd", initrd))?;
        (self.reset.as_ref()).map_or(Ok(()), |reset| {
            lines.line(format_args!("what=reset-service pa={}", reset.entry))
        })?;
        self.rsdp.map_or(Ok(()), |rsdp| {
            lines.line(format_args!("what=rsdp pa={rsdp}"))
        })
    }
}

/// Puts line ends between lines and the prefix before each.
struct Lines<'a, 'f> {
    f: &'a mut fmt::Formatter<'f>,
    first: bool,
}

impl Lines<'_, '_> {
    fn line(&mut self, line: fmt::Arguments<'_>) -> fmt::Result {
        if !self.first {
            self.f.write_str("\n")?;
        }
        self.first = false;
        write!(self.f, "cordon: event=found {line}")
    }

    fn range(&mut self, what: &str, range: PaRange) -> fmt::Result {
        self.line(format_args!(
            "what={what} pa={} size={:#x}",
            range.start(),
            range.size()
        ))
    }

    fn pcie(&mut self, pcie: &PcieHost) -> fmt::Result {
        let (ecam, buses) = (pcie.ecam, &pcie.buses);
        self.line(format_args!(
            "what=pcie-ecam pa={} size={:#x} first_bus={} last_bus={}",
            ecam.start(),
            ecam.size(),
            buses.start(),
            buses.end()
        ))?;
        let windows = [
            ("pcie-window32", pcie.window32),
            ("pcie-window64", pcie.window64),
        ];
        for (what, window) in windows {
            if let Some(PciWindow { cpu, pci }) = window {
                self.line(format_args!(
                    "what={what} pa={} size={:#x} pci={pci:#x}",
                    cpu.start(),
                    cpu.size()
                ))?;
            }
        }
        Ok(())
    }
}

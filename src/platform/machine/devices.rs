//! The machine's further devices, any of which a VM may be given.
//!
//! Nothing is wrong with a machine that describes one of these oddly: what cannot be understood of a
//! device that nobody may ever ask for is left out.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use fdt::node::FdtNode;

use super::Machine;
use crate::addr::{Pa, PaRange};
use crate::platform::dt::{self, Bus};

/// Most devices that are remembered.
pub const MAX_DEVICES: usize = 512;

/// A device that has registers in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// Its node's path.
    pub path: String,
    /// What it is, the most specific name first.
    pub compatible: Vec<String>,
    /// Its registers, as `reg` lists them; at least one range.
    pub registers: Vec<PaRange>,
    /// Its interrupts, where each of them is one of the GIC's shared ones; empty otherwise.
    pub interrupts: Vec<HostInterrupt>,
    /// Its DMA is coherent with the CPUs' caches (`dma-coherent`).
    pub coherent: bool,
}

/// An interrupt of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostInterrupt {
    /// INTID, 32 to 1019.
    pub intid: u16,
    /// Edge-triggered, rather than level-sensitive.
    pub edge: bool,
}

/// What `interrupts` and its parent say of a device, before it is known which node is the GIC.
pub(super) struct Candidate {
    device: HostDevice,
    interrupt_parent: Option<u32>,
}

impl Candidate {
    /// The device at `path`, if it is one.
    pub(super) fn read(
        path: &str,
        node: FdtNode<'_, '_>,
        bus: &Bus<'_, '_>,
        interrupt_parent: Option<u32>,
    ) -> Option<Self> {
        let registers = bus.reg(dt::value(node, "reg")?)?;
        let compatible = dt::texts(dt::value(node, "compatible")?);
        let compatible: Vec<String> = compatible.map(ToOwned::to_owned).collect();
        let device = HostDevice {
            path: path.to_owned(),
            compatible,
            registers,
            interrupts: interrupts(node).unwrap_or_default(),
            coherent: dt::value(node, "dma-coherent").is_some(),
        };
        (!device.registers.is_empty() && !device.compatible.is_empty()).then_some(Self {
            device,
            interrupt_parent,
        })
    }

    /// The device, whose interrupts are the GIC's only where its node has the phandle `gic`.
    pub(super) fn resolve(mut self, gic: Option<u32>) -> HostDevice {
        if gic.is_none() || self.interrupt_parent != gic {
            self.device.interrupts.clear();
        }
        self.device
    }
}

/// Specifiers of three cells each (`arm,gic-v3.yaml`): type, 0 being a shared one, number, trigger.
fn interrupts(node: FdtNode<'_, '_>) -> Option<Vec<HostInterrupt>> {
    const RISING: u32 = 1;
    const HIGH: u32 = 4;
    let cells: Vec<u32> = dt::cells(dt::value(node, "interrupts")?)?.collect();
    let (specifiers, rest) = cells.as_chunks::<3>();
    let read = |specifier: &[u32; 3]| match *specifier {
        [0, number @ 0..=987, trigger @ (RISING | HIGH)] => Some(HostInterrupt {
            intid: u16::try_from(number + 32).ok()?,
            edge: trigger == RISING,
        }),
        _ => None,
    };
    let interrupts = specifiers.iter().map(read).collect::<Option<Vec<_>>>()?;
    rest.is_empty().then_some(interrupts)
}

impl Machine {
    /// The device with a register at `address` that is first in its `reg`.
    pub fn device_at(&self, address: Pa) -> Option<&HostDevice> {
        let first = |device: &&HostDevice| {
            (device.registers.first()).is_some_and(|first| first.start() == address)
        };
        self.devices.iter().find(first)
    }

    /// What of the things that Cordon uses, or that are everybody's, has to do with `range`.
    pub fn own(&self, range: PaRange) -> Option<&'static str> {
        let one = |name, range: Option<PaRange>| range.map(|range| (name, range));
        let gic = self.gic.iter();
        let pcie = self.pcie.iter();
        let things = (self.ram.iter().map(|ram| ("ram", *ram)))
            .chain(one("uart", self.uart))
            .chain(one("fw-cfg", self.fw_cfg))
            .chain(gic.clone().map(|gic| ("gicd", gic.distributor)))
            .chain(gic.flat_map(|gic| gic.redistributors.iter().map(|range| ("gicr", *range))))
            .chain(pcie.clone().map(|pcie| ("pcie", pcie.ecam)))
            .chain(pcie.flat_map(|pcie| {
                let windows = [pcie.window32, pcie.window64].into_iter().flatten();
                windows.map(|window| ("pcie", window.cpu))
            }));
        let mut things = things;
        things
            .find(|(_, own)| own.overlaps(range))
            .map(|(name, _)| name)
    }
}

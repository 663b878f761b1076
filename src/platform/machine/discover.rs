//! From a checked device tree to a [`Machine`].
//!
//! One walk, top-down. A [`Bus`] goes along that turns the addresses of each level into the CPU's,
//! so a UART inside a `simple-bus` with `ranges` is found as well as one at the root. Nodes are
//! recognised by `compatible` (Linux `Documentation/devicetree/bindings`), and the first of a kind
//! wins, except that `stdout-path` chooses the UART.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

use fdt::node::FdtNode;

use super::devices::{Candidate, MAX_DEVICES};
use super::{
    Conduit, GicV3, HostUart, Machine, MachineError, Mpidr, PciWindow, PcieHost, Reserved,
    ReservedBy, TimerInterrupts, UartKind,
};
use crate::addr::{Pa, PaRange};
use crate::platform::dt::{self, Bus};
use crate::platform::fdt::CheckedFdt;

type Node<'b, 'a> = FdtNode<'b, 'a>;

impl Machine {
    /// Reads what `fdt`, a blob at `dtb`, says about the machine.
    ///
    /// # Errors
    /// [`MachineError`] for a tree that lacks RAM or CPUs, or describes something wrongly.
    #[inline(never)] // It has two callers, and is large.
    pub fn from_fdt(fdt: &CheckedFdt<'_>, dtb: Pa) -> Result<Self, MachineError> {
        let root = fdt.root().ok_or(MachineError::NoRam)?;
        let mut walk = Walk::new(root);
        walk.chosen(root)?;
        walk.children(root, None)?;
        let mut machine = walk.machine;
        let devices = walk.devices.into_iter();
        machine.devices = devices.map(|device| device.resolve(walk.gic)).collect();
        machine.reserve_blobs(fdt, dtb)?;
        if machine.ram.is_empty() {
            return Err(MachineError::NoRam);
        }
        if machine.cpus.is_empty() {
            return Err(MachineError::NoCpus);
        }
        Ok(machine)
    }

    /// The UART of a machine that may be described wrongly otherwise: where to say so.
    pub fn console(fdt: &CheckedFdt<'_>) -> Option<HostUart> {
        let root = fdt.root()?;
        let mut walk = Walk::new(root);
        walk.uarts(root, None);
        walk.machine.host_uart()
    }

    /// The conduit of a machine that may be described wrongly otherwise: how to turn it off.
    pub fn conduit(fdt: &CheckedFdt<'_>) -> Option<Conduit> {
        let root = fdt.root()?;
        let mut walk = Walk::new(root);
        // Without one, or with a wrong one, there is nobody to call.
        let _ = walk.psci(dt::child(root, "psci")?);
        walk.machine.psci
    }

    fn reserve_blobs(&mut self, fdt: &CheckedFdt<'_>, dtb: Pa) -> Result<(), MachineError> {
        let mut reserve = |range, by| self.reserved.push(Reserved { range, by });
        fdt.reservations()
            .for_each(|range| reserve(range, ReservedBy::Memreserve));
        let blob = PaRange::new(dtb, fdt.size() as u64).ok_or(MachineError::BadDtb)?;
        reserve(blob, ReservedBy::Dtb);
        if let Some(initrd) = self.initrd {
            self.reserved.push(Reserved {
                range: initrd,
                by: ReservedBy::Initrd,
            });
        }
        Ok(())
    }
}

/// The path in `/chosen` `stdout-path`, with an alias resolved and without the options that may
/// follow a colon.
fn stdout_path(root: Node<'_, '_>) -> Option<String> {
    let chosen = dt::child(root, "chosen")?;
    let value = dt::text(dt::value(chosen, "stdout-path")?)?;
    let path = value.split_once(':').map_or(value, |(path, _)| path);
    if path.starts_with('/') {
        return Some(path.to_owned());
    }
    let aliases = dt::child(root, "aliases")?;
    Some(dt::text(dt::value(aliases, path)?)?.to_owned())
}

/// Whether `path` is what `wanted` names; a component of `wanted` may lack its unit address.
fn path_matches(path: &str, wanted: &str) -> bool {
    let same = |(here, wanted): (&str, &str)| {
        here == wanted || (!wanted.contains('@') && dt::base_name(here) == wanted)
    };
    path.split('/').count() == wanted.split('/').count()
        && path.split('/').zip(wanted.split('/')).all(same)
}

struct Walk {
    machine: Machine,
    /// Path of the node that is being read.
    path: String,
    stdout: Option<String>,
    /// The CPUs so far.
    seen: BTreeSet<Mpidr>,
    /// The devices so far.
    devices: Vec<Candidate>,
    /// The phandle of whom interrupts go to here (Devicetree Specification 2.4.1).
    interrupt_parent: Option<u32>,
    /// The phandle of the interrupt controller.
    gic: Option<u32>,
}

impl Walk {
    /// At `root`.
    fn new(root: Node<'_, '_>) -> Self {
        Self {
            machine: Machine::default(),
            path: String::new(),
            stdout: stdout_path(root),
            seen: BTreeSet::new(),
            devices: Vec::new(),
            interrupt_parent: None,
            gic: None,
        }
    }

    fn bad(&self, property: &'static str) -> MachineError {
        MachineError::BadProperty {
            node: self.path.clone(),
            property,
        }
    }

    fn chosen(&mut self, root: Node<'_, '_>) -> Result<(), MachineError> {
        let Some(chosen) = dt::child(root, "chosen") else {
            return Ok(());
        };
        self.path.push_str("/chosen");
        if let Some(bootargs) = dt::value(chosen, "bootargs") {
            let bootargs = dt::text(bootargs).ok_or_else(|| self.bad("bootargs"))?;
            self.machine.bootargs = Some(bootargs.to_owned());
        }
        let start = self.chosen_number(chosen, "linux,initrd-start")?;
        let end = self.chosen_number(chosen, "linux,initrd-end")?;
        self.machine.initrd = match (start, end) {
            (None, None) => None,
            (Some(start), Some(end)) => {
                let size = end.checked_sub(start);
                let range = size.and_then(|size| PaRange::new(Pa::new(start), size));
                Some(range.ok_or_else(|| self.bad("linux,initrd-end"))?)
            }
            (Some(_), None) => return Err(self.bad("linux,initrd-end")),
            (None, Some(_)) => return Err(self.bad("linux,initrd-start")),
        };
        self.machine.rsdp = self.chosen_number(chosen, "cordon,acpi-rsdp")?.map(Pa::new);
        self.path.clear();
        Ok(())
    }

    fn chosen_number(
        &self,
        chosen: Node<'_, '_>,
        name: &'static str,
    ) -> Result<Option<u64>, MachineError> {
        dt::value(chosen, name)
            .map(|value| dt::number(value).ok_or_else(|| self.bad(name)))
            .transpose()
    }

    /// Reads the children of `node`, which is on the bus `above`. The depth is bounded by
    /// [`MAX_DEPTH`](crate::platform::fdt::MAX_DEPTH).
    fn children<'a>(
        &mut self,
        node: Node<'_, 'a>,
        above: Option<&Bus<'_, 'a>>,
    ) -> Result<(), MachineError> {
        let bus = Bus::of(node, above);
        let inherited = self.interrupt_parent;
        if let Some(parent) = dt::value(node, "interrupt-parent") {
            self.interrupt_parent = dt::cell(parent);
        }
        for child in node.children().filter(|child| dt::is_usable(*child)) {
            let parent_len = self.path.len();
            self.path.push('/');
            self.path.push_str(child.name);
            self.device(child, &bus)?;
            self.children(child, Some(&bus))?;
            self.path.truncate(parent_len);
        }
        self.interrupt_parent = inherited;
        Ok(())
    }

    fn device(&mut self, node: Node<'_, '_>, bus: &Bus<'_, '_>) -> Result<(), MachineError> {
        let compatible = dt::value(node, "compatible").unwrap_or_default();
        let is = |wanted| dt::lists(compatible, wanted);
        match dt::value(node, "device_type").and_then(dt::text) {
            Some("memory") if self.is_at_root() => return self.memory(node, bus),
            Some("cpu") if self.path.starts_with("/cpus/") => return self.cpu(node, bus),
            _ => {}
        }
        if self.path.starts_with("/reserved-memory/") {
            self.reserved_memory(node, bus)
        } else if let Some(kind) = UartKind::of(node) {
            self.uart(node, bus, kind)
        } else if is("arm,gic-v3") && self.machine.gic.is_none() {
            self.gic(node, bus)
        } else if let Some(name) = GICV2.into_iter().find(|name| is(name)) {
            self.machine.other_gic = Some(name);
            Ok(())
        } else if is("arm,armv8-timer") && self.machine.timer.is_none() {
            self.timer(node)
        } else if is("pci-host-ecam-generic") && self.machine.pcie.is_none() {
            self.pcie(node, bus)
        } else if is("arm,psci-0.2") || is("arm,psci-1.0") {
            self.psci(node)
        } else if is("qemu,fw-cfg-mmio") && self.machine.fw_cfg.is_none() {
            self.machine.fw_cfg = self.reg(node, bus)?.first().copied();
            Ok(())
        } else {
            self.other(node, bus);
            Ok(())
        }
    }

    /// A device that Cordon has no use for itself.
    fn other(&mut self, node: Node<'_, '_>, bus: &Bus<'_, '_>) {
        let own = dt::value(node, "interrupt-parent");
        let parent = own.map_or(self.interrupt_parent, dt::cell);
        if self.devices.len() < MAX_DEVICES
            && let Some(device) = Candidate::read(&self.path, node, bus, parent)
        {
            self.devices.push(device);
        }
    }

    fn is_at_root(&self) -> bool {
        self.path.rfind('/') == Some(0)
    }

    fn reg(&self, node: Node<'_, '_>, bus: &Bus<'_, '_>) -> Result<Vec<PaRange>, MachineError> {
        let reg = dt::value(node, "reg").and_then(|reg| bus.reg(reg));
        reg.ok_or_else(|| self.bad("reg"))
    }

    fn memory(&mut self, node: Node<'_, '_>, bus: &Bus<'_, '_>) -> Result<(), MachineError> {
        let ranges = self.reg(node, bus)?;
        self.machine.ram.extend(ranges);
        Ok(())
    }

    /// A child without `reg` asks for a place of its size, and nobody gave it one yet.
    fn reserved_memory(
        &mut self,
        node: Node<'_, '_>,
        bus: &Bus<'_, '_>,
    ) -> Result<(), MachineError> {
        if dt::value(node, "reg").is_none() {
            return Ok(());
        }
        for range in self.reg(node, bus)? {
            let by = ReservedBy::Node(node.name.to_owned());
            self.machine.reserved.push(Reserved { range, by });
        }
        Ok(())
    }

    /// `reg` of a CPU is its affinity (`cpus.yaml`): bits 23 to 0 in a cell of their own, with
    /// Aff3 in a cell before it where `#address-cells` is 2.
    fn cpu(&mut self, node: Node<'_, '_>, bus: &Bus<'_, '_>) -> Result<(), MachineError> {
        let reg = dt::value(node, "reg")
            .filter(|reg| Some(reg.len()) == bus.address_cells.checked_mul(4));
        let value = reg.and_then(dt::number).ok_or_else(|| self.bad("reg"))?;
        let mpidr = Mpidr::new(value).ok_or(MachineError::BadMpidr { value })?;
        if !self.seen.insert(mpidr) {
            return Err(MachineError::DuplicateCpu { mpidr });
        }
        self.machine.cpus.push(mpidr);
        Ok(())
    }

    fn psci(&mut self, node: Node<'_, '_>) -> Result<(), MachineError> {
        let method = dt::value(node, "method").and_then(dt::text);
        self.machine.psci = Some(match method {
            Some("smc") => Conduit::Smc,
            Some("hvc") => Conduit::Hvc,
            _ => return Err(self.bad("method")),
        });
        Ok(())
    }

    fn uart(
        &mut self,
        node: Node<'_, '_>,
        bus: &Bus<'_, '_>,
        kind: UartKind,
    ) -> Result<(), MachineError> {
        let chosen = self
            .stdout
            .as_ref()
            .is_some_and(|wanted| path_matches(&self.path, wanted));
        if chosen || self.machine.uart.is_none() {
            self.machine.uart = self.reg(node, bus)?.first().copied();
            self.machine.uart_kind = Some(kind);
            self.machine.uart_interrupt = interrupt(node).and_then(|cells| spi(&cells));
        }
        Ok(())
    }

    /// The UARTs below `node`, whatever else is wrong there.
    fn uarts<'a>(&mut self, node: Node<'_, 'a>, above: Option<&Bus<'_, 'a>>) {
        let bus = Bus::of(node, above);
        for child in node.children().filter(|child| dt::is_usable(*child)) {
            let parent_len = self.path.len();
            self.path.push('/');
            self.path.push_str(child.name);
            if let Some(kind) = UartKind::of(child) {
                // One that is described wrongly is no console.
                let _ = self.uart(child, &bus, kind);
            }
            self.uarts(child, Some(&bus));
            self.path.truncate(parent_len);
        }
    }

    /// `reg` is the distributor, then the redistributor regions, then frames that only a GICv2
    /// guest would need (`arm,gic-v3.yaml`).
    fn gic(&mut self, node: Node<'_, '_>, bus: &Bus<'_, '_>) -> Result<(), MachineError> {
        let regions = match dt::value(node, "#redistributor-regions") {
            None => 1,
            Some(value) => {
                let count = dt::cell(value).and_then(|count| usize::try_from(count).ok());
                count.ok_or_else(|| self.bad("#redistributor-regions"))?
            }
        };
        let reg = self.reg(node, bus)?;
        let (distributor, rest) = reg.split_first().ok_or_else(|| self.bad("reg"))?;
        let redistributors = rest.get(..regions).filter(|regions| !regions.is_empty());
        let redistributors = redistributors.ok_or_else(|| self.bad("reg"))?.to_vec();
        let stride = dt::value(node, "redistributor-stride")
            .map(|value| dt::number(value).ok_or_else(|| self.bad("redistributor-stride")));
        self.gic = dt::value(node, "phandle").and_then(dt::cell);
        self.machine.gic = Some(GicV3 {
            distributor: *distributor,
            redistributors,
            redistributor_stride: stride.transpose()?,
            maintenance: interrupt(node).and_then(|cells| ppi(&cells)),
        });
        Ok(())
    }

    /// The interrupts are those of `interrupt-names`, or else in the order of the binding
    /// (`arm,arch_timer.yaml`), four or five of them. That tells how many cells each has, which
    /// is 3 or, where a GIC partitions its PPIs, 4 (`arm,gic-v3.yaml`).
    fn timer(&mut self, node: Node<'_, '_>) -> Result<(), MachineError> {
        let bad = || self.bad("interrupts");
        let value = dt::value(node, "interrupts")
            .and_then(dt::cells)
            .ok_or_else(bad)?;
        let cells: Vec<u32> = value.collect();
        let names: Vec<&str> = match dt::value(node, "interrupt-names") {
            Some(names) => dt::texts(names).collect(),
            None if matches!(cells.len(), 15 | 20) => TIMERS.to_vec(),
            None => TIMERS.get(..4).unwrap_or_default().to_vec(),
        };
        let each = cells.len().checked_div(names.len()).ok_or_else(bad)?;
        if !matches!(each, 3 | 4) || each * names.len() != cells.len() {
            return Err(bad());
        }
        let mut timer = TimerInterrupts::default();
        for (name, interrupt) in names.iter().zip(cells.chunks_exact(each)) {
            let intid = ppi(interrupt).ok_or_else(bad)?;
            if let Some(slot) = timer_slot(&mut timer, name) {
                *slot = Some(intid);
            }
        }
        self.machine.timer = Some(timer);
        Ok(())
    }

    fn pcie(&mut self, node: Node<'_, '_>, bus: &Bus<'_, '_>) -> Result<(), MachineError> {
        let ecam = self
            .reg(node, bus)?
            .first()
            .copied()
            .ok_or_else(|| self.bad("reg"))?;
        let bus_range = dt::value(node, "bus-range");
        let range = bus_range.map_or(Some(0..=u8::MAX), bus_numbers);
        let range = range.ok_or_else(|| self.bad("bus-range"))?;
        // ECAM gives each bus 1 MiB (PCI Express Base 6.0, 7.2.2); it may have less than it says.
        let room = u8::try_from((ecam.size() >> 20).saturating_sub(1)).unwrap_or(u8::MAX);
        if ecam.size() < 1 << 20 {
            return Err(self.bad("reg"));
        }
        let last = (*range.end()).min(range.start().saturating_add(room));
        let ranges = dt::value(node, "ranges").unwrap_or_default();
        let window = |space| pci_window(ranges, bus, space).ok_or_else(|| self.bad("ranges"));
        let (window32, window64) = (window(SPACE_MEM32)?, window(SPACE_MEM64)?);
        let buses = *range.start()..=last;
        self.machine.pcie = Some(PcieHost {
            ecam,
            buses,
            window32,
            window64,
            placed: false,
        });
        Ok(())
    }
}

/// What a GICv2 is compatible with (`arm,gic.yaml`).
const GICV2: [&str; 4] = [
    "arm,gic-400",
    "arm,cortex-a15-gic",
    "arm,cortex-a7-gic",
    "arm,cortex-a9-gic",
];

/// Names of the generic timer's interrupts, in the order that an unnamed list has.
const TIMERS: [&str; 5] = ["sec-phys", "phys", "virt", "hyp-phys", "hyp-virt"];

fn timer_slot<'t>(timer: &'t mut TimerInterrupts, name: &str) -> Option<&'t mut Option<u32>> {
    Some(match name {
        "sec-phys" => &mut timer.secure_physical,
        "phys" => &mut timer.physical,
        "virt" => &mut timer.virtual_,
        "hyp-phys" => &mut timer.hyp_physical,
        "hyp-virt" => &mut timer.hyp_virtual,
        _ => return None,
    })
}

/// The INTID of an interrupt specifier that is a PPI: type 1, numbers 0 to 15.
fn ppi(interrupt: &[u32]) -> Option<u32> {
    match *interrupt {
        [1, number @ 0..=15, ..] => Some(16 + number),
        _ => None,
    }
}

/// The INTID of an interrupt specifier that is an SPI: type 0, numbers 0 to 987.
fn spi(interrupt: &[u32]) -> Option<u32> {
    match *interrupt {
        [0, number @ 0..=987, ..] => Some(32 + number),
        _ => None,
    }
}

/// The cells of a node's `interrupts`, of which the first ones are its first interrupt.
fn interrupt(node: Node<'_, '_>) -> Option<Vec<u32>> {
    Some(dt::cells(dt::value(node, "interrupts")?)?.collect())
}

fn bus_numbers(value: &[u8]) -> Option<core::ops::RangeInclusive<u8>> {
    let (first, last) = value.split_at_checked(4)?;
    let first = u8::try_from(dt::cell(first)?).ok()?;
    let last = u8::try_from(dt::cell(last)?).ok()?;
    (first <= last).then_some(first..=last)
}

/// Bits 25 and 24 of `phys.hi` (IEEE 1275 PCI bus binding, 2.2.1.1): the address space.
const SPACE_MEM32: u32 = 0b10;
const SPACE_MEM64: u32 = 0b11;

/// The first window for `space` among a host bridge's `ranges`: PCI address (three cells, the
/// space in the first), address on the parent bus, size (two cells). The outer `None` is for a
/// list that is no whole number of entries, or a window that is empty, wraps or is out of reach.
fn pci_window(ranges: &[u8], bus: &Bus<'_, '_>, space: u32) -> Option<Option<PciWindow>> {
    let above_len = bus.address_cells.checked_mul(4)?;
    let entry = above_len.checked_add(20)?;
    let entries = ranges.chunks_exact(entry);
    if !entries.remainder().is_empty() {
        return None;
    }
    for entry in entries {
        let (hi, rest) = entry.split_at_checked(4)?;
        if (dt::cell(hi)? >> 24) & 0b11 != space {
            continue;
        }
        let (pci, rest) = rest.split_at_checked(8)?;
        let (above, size) = rest.split_at_checked(above_len)?;
        let (pci, size) = (dt::number(pci)?, dt::number(size)?);
        pci.checked_add(size.checked_sub(1)?)?;
        let cpu = bus.translate(PaRange::new(Pa::new(dt::number(above)?), size)?)?;
        return Some(Some(PciWindow { cpu, pci }));
    }
    Some(None)
}

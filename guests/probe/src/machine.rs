//! What the device tree says about the machine. The guest trusts its device tree, so whatever it
//! does not name is simply not there; only what the guest cannot do without is an error.

use crate::MAX_VCPUS;
use crate::pages::{Pages, Region};
use core::fmt;
use fdt::Fdt;
use fdt::node::FdtNode;

/// The most ranges of RAM that are used.
pub const MAX_MEMORY: usize = 8;

/// The most ranges that the tree may call bad.
pub const MAX_BAD: usize = 32;

/// How PSCI is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// By `hvc`.
    Hvc,
    /// By `smc`.
    Smc,
}

/// A machine without this cannot be used. Displays as the name of what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No PL011.
    Uart,
    /// No usable `/psci`.
    Psci,
    /// No `/memory`.
    Memory,
    /// More regions of device memory than the guest can keep track of.
    RoomForRegions,
    /// More bad ranges than it can keep off.
    RoomForBad,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uart => "uart",
            Self::Psci => "psci",
            Self::Memory => "memory",
            Self::RoomForRegions => "room-for-regions",
            Self::RoomForBad => "room-for-bad",
        })
    }
}

/// IPAs of a GICv3's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gic {
    /// The distributor.
    pub distributor: u64,
    /// The first redistributor; the others follow.
    pub redistributors: u64,
}

/// The machine as the device tree describes it.
#[derive(Clone, Debug)]
pub struct Machine {
    /// IPA of the PL011.
    pub uart: u64,
    /// How PSCI is called.
    pub conduit: Conduit,
    /// The interrupt controller, where there is one.
    pub gic: Option<Gic>,
    memory: [Region; MAX_MEMORY],
    bad: [Region; MAX_BAD],
    mpidrs: [u64; MAX_VCPUS],
    vcpus: usize,
    /// Device memory; the guest adds its buffer in RAM.
    pub pages: Pages,
}

impl Machine {
    /// Reads a device tree.
    pub fn new(tree: &Fdt<'_>) -> Result<Self, Missing> {
        let mut machine = Self {
            uart: uart(tree).ok_or(Missing::Uart)?,
            conduit: conduit(tree).ok_or(Missing::Psci)?,
            gic: gic(tree),
            memory: [Region::default(); MAX_MEMORY],
            bad: [Region::default(); MAX_BAD],
            mpidrs: [0; MAX_VCPUS],
            vcpus: 0,
            pages: device_memory(tree)?,
        };
        let memory = tree.find_node("/memory").ok_or(Missing::Memory)?;
        for (slot, region) in machine.memory.iter_mut().zip(regions(memory)) {
            *slot = region;
        }
        for (index, region) in bad(tree).enumerate() {
            *machine.bad.get_mut(index).ok_or(Missing::RoomForBad)? = region;
        }
        for (slot, cpu) in machine.mpidrs.iter_mut().zip(tree.cpus()) {
            *slot = cpu.ids().first() as u64;
            machine.vcpus += 1;
        }
        Ok(machine)
    }

    /// The ranges of RAM.
    pub fn memory(&self) -> impl Iterator<Item = Region> {
        self.memory.into_iter().filter(|region| region.pages > 0)
    }

    /// The ranges that were bad before the guest started, in RAM and in device memory.
    pub fn bad(&self) -> impl Iterator<Item = Region> {
        self.bad.into_iter().filter(|region| region.pages > 0)
    }

    /// The largest part of `range` without anything bad.
    pub fn largest_good(&self, range: core::ops::Range<u64>) -> core::ops::Range<u64> {
        let ends = self.bad().map(|bad| bad.ipa + bad.size());
        let starts = ends
            .chain([range.start])
            .filter(|start| range.contains(start));
        let part = |start| {
            let next = self.bad().map(|bad| bad.ipa).filter(|bad| *bad >= start);
            start..next.min().unwrap_or(range.end).min(range.end)
        };
        let parts = starts.map(part);
        parts
            .max_by_key(|part| part.end - part.start)
            .unwrap_or(range.start..range.start)
    }

    /// The affinities (`MPIDR_EL1`, as PSCI takes them) of all vCPUs.
    pub fn mpidrs(&self) -> &[u64] {
        self.mpidrs.get(..self.vcpus).unwrap_or(&[])
    }
}

fn regions<'a>(node: FdtNode<'_, 'a>) -> impl Iterator<Item = Region> + 'a {
    let ranges = node.reg().into_iter().flatten();
    ranges.filter_map(|range| Region::new(range.starting_address as u64, range.size? as u64))
}

/// Children of `/reserved-memory` that must not be mapped, and what device memory calls bad of itself.
fn bad<'a>(tree: &'a Fdt<'a>) -> impl Iterator<Item = Region> + 'a {
    let reserved = tree.find_node("/reserved-memory").into_iter();
    let reserved = reserved.flat_map(|node| node.children());
    let reserved = reserved.filter(|node| node.property("no-map").is_some());
    let ram = reserved.flat_map(regions);
    let devices = tree
        .all_nodes()
        .filter_map(|node| node.property("cordon,bad-ranges"));
    let pairs = devices.flat_map(|property| property.value.chunks_exact(16));
    let device = pairs.filter_map(|pair| {
        let (ipa, size) = pair.split_at_checked(8)?;
        let number = |bytes: &[u8]| Some(u64::from_be_bytes(bytes.try_into().ok()?));
        Region::new(number(ipa)?, number(size)?)
    });
    ram.chain(device)
}

fn is_compatible(node: FdtNode<'_, '_>, with: &str) -> bool {
    node.compatible()
        .is_some_and(|compatible| compatible.all().any(|name| name == with))
}

/// IPA of the console's PL011.
pub fn uart(tree: &Fdt<'_>) -> Option<u64> {
    let chosen = tree
        .chosen()
        .stdout()
        .filter(|node| is_compatible(*node, "arm,pl011"));
    let node = chosen.or_else(|| tree.find_compatible(&["arm,pl011"]))?;
    let registers = node.reg()?.next()?;
    Some(registers.starting_address as u64)
}

/// How PSCI is called.
pub fn conduit(tree: &Fdt<'_>) -> Option<Conduit> {
    match tree.find_node("/psci")?.property("method")?.as_str()? {
        "hvc" => Some(Conduit::Hvc),
        "smc" => Some(Conduit::Smc),
        _ => None,
    }
}

fn gic(tree: &Fdt<'_>) -> Option<Gic> {
    let mut frames = tree.find_compatible(&["arm,gic-v3"])?.reg()?;
    let mut next = || Some(frames.next()?.starting_address as u64);
    Some(Gic {
        distributor: next()?,
        redistributors: next()?,
    })
}

fn device_memory(tree: &Fdt<'_>) -> Result<Pages, Missing> {
    let mut pages = Pages::default();
    // One region stays free for the buffer in RAM.
    let room = crate::pages::MAX_REGIONS - 1;
    let nodes = tree
        .all_nodes()
        .filter(|node| is_compatible(*node, "cordon,device-memory"));
    for (index, region) in nodes.flat_map(regions).enumerate() {
        if index >= room {
            return Err(Missing::RoomForRegions);
        }
        pages.add_device(region).ok_or(Missing::RoomForRegions)?;
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_fdt::FdtWriter;

    /// A tree as docs/protocols.md describes it, with `regions` regions of device memory.
    fn tree(method: &str, regions: u64) -> Vec<u8> {
        let mut writer = FdtWriter::new().unwrap();
        let root = writer.begin_node("").unwrap();
        writer.property_u32("#address-cells", 2).unwrap();
        writer.property_u32("#size-cells", 2).unwrap();
        let node = writer.begin_node("chosen").unwrap();
        writer
            .property_string("stdout-path", "/pl011@9000000")
            .unwrap();
        writer.end_node(node).unwrap();
        let node = writer.begin_node("memory@40000000").unwrap();
        writer.property_string("device_type", "memory").unwrap();
        writer
            .property_array_u64("reg", &[0x4000_0000, 0x400_0000])
            .unwrap();
        writer.end_node(node).unwrap();
        let cpus = writer.begin_node("cpus").unwrap();
        writer.property_u32("#address-cells", 1).unwrap();
        writer.property_u32("#size-cells", 0).unwrap();
        for cpu in [0_u32, 0x100] {
            let node = writer.begin_node(&format!("cpu@{cpu:x}")).unwrap();
            writer.property_string("device_type", "cpu").unwrap();
            writer.property_u32("reg", cpu).unwrap();
            writer.end_node(node).unwrap();
        }
        writer.end_node(cpus).unwrap();
        let node = writer.begin_node("psci").unwrap();
        writer.property_string("method", method).unwrap();
        writer.end_node(node).unwrap();
        let node = writer.begin_node("pl011@9000000").unwrap();
        writer
            .property_string_list("compatible", vec!["arm,pl011".into()])
            .unwrap();
        writer
            .property_array_u64("reg", &[0x900_0000, 0x1000])
            .unwrap();
        writer.end_node(node).unwrap();
        for index in 0..regions {
            let ipa = 0x10_0000_0000 + index * 0x4000_0000;
            let node = writer
                .begin_node(&format!("device-memory@{ipa:x}"))
                .unwrap();
            writer
                .property_string("compatible", "cordon,device-memory")
                .unwrap();
            writer.property_array_u64("reg", &[ipa, 0x2000]).unwrap();
            writer.end_node(node).unwrap();
        }
        writer.end_node(root).unwrap();
        writer.finish().unwrap()
    }

    fn machine(method: &str, regions: u64) -> Result<Machine, Missing> {
        Machine::new(&Fdt::new(&tree(method, regions)).unwrap())
    }

    #[test]
    fn the_tree_of_the_protocol_is_understood() {
        let machine = machine("hvc", 2).unwrap();
        assert_eq!(machine.uart, 0x900_0000);
        assert_eq!(machine.conduit, Conduit::Hvc);
        assert_eq!(machine.mpidrs(), [0, 0x100]);
        let memory: Vec<_> = machine.memory().collect();
        assert_eq!(
            memory,
            [Region {
                ipa: 0x4000_0000,
                pages: 0x4000
            }]
        );
        assert_eq!(machine.pages.device_len(), 4);
        assert_eq!(machine.pages.ipa(2), Some(0x10_4000_0000));
    }

    #[test]
    fn free_memory_goes_around_what_is_bad() {
        let mut machine = machine("hvc", 0).unwrap();
        let all = 0x4010_0000..0x4100_0000;
        assert_eq!(machine.largest_good(all.clone()), all);
        machine.bad[0] = Region::new(0x4010_0000, 0x1000).unwrap();
        assert_eq!(machine.largest_good(all.clone()), 0x4010_1000..0x4100_0000);
        machine.bad[1] = Region::new(0x4080_0000, 0x1000).unwrap();
        assert_eq!(machine.largest_good(all.clone()), 0x4080_1000..0x4100_0000);
        machine.bad[2] = Region::new(0x4090_0000, 0x70_0000).unwrap();
        assert_eq!(machine.largest_good(all), 0x4010_1000..0x4080_0000);
        assert_eq!(machine.bad().count(), 3);
    }

    #[test]
    fn psci_may_be_called_by_smc_but_must_be_there() {
        assert_eq!(machine("smc", 0).unwrap().conduit, Conduit::Smc);
        assert_eq!(machine("telepathy", 0).unwrap_err(), Missing::Psci);
    }

    #[test]
    fn more_regions_than_there_is_room_for_are_not_dropped_silently() {
        assert_eq!(machine("hvc", 16).unwrap().pages.regions().len(), 16);
        assert_eq!(machine("hvc", 17).unwrap_err(), Missing::RoomForRegions);
    }
}

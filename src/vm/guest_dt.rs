//! The device tree that a guest is given (`docs/protocols.md`, "The VM as its guest sees it").
//!
//! Written with `vm-fdt` from a [`VmConfig`], whose ranges and texts are checked, so an error here
//! is a matter of size. All addresses and sizes at the root are two cells.

use alloc::format;
use alloc::vec::Vec;
use core::fmt;

use vm_fdt::FdtWriter;

use super::caches::Level;
use super::config::{
    Appearance, DISTRIBUTOR, DTB_SIZE, DeviceMemory, Given, IpaRange, REDISTRIBUTORS, UART,
    UART_INTERRUPT, VmConfig,
};
use super::vcpu;
use super::vgic;
use crate::platform::machine::Mpidr;

/// What a piece of device memory is recognised by.
pub const DEVICE_MEMORY_COMPATIBLE: &str = "cordon,device-memory";

/// What Linux knows as memory that is no RAM (`pmem-region.txt`).
pub const PMEM_COMPATIBLE: &str = "pmem-region";

/// Phandles.
const GIC: u32 = 1;
const CLOCK: u32 = 2;
/// Of level n of vCPU i: this, 8 i and n together.
const FIRST_CACHE: u32 = 0x100;

/// Interrupt specifiers: shared or private, and edge-triggered, rising, or level-sensitive, active high
/// (`arm,gic-v3.yaml`).
const SPI: u32 = 0;
const PPI: u32 = 1;
const EDGE: u32 = 1;
const LEVEL: u32 = 4;

/// Why a tree could not be written.
#[derive(Debug, PartialEq, Eq)]
pub enum GuestDtError {
    /// Larger than its place in the guest's RAM.
    TooBig {
        /// The tree's size in bytes.
        size: usize,
    },
    /// The writer refused a name or value.
    Writer(vm_fdt::Error),
}

impl fmt::Display for GuestDtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooBig { size } => write!(f, "why=dtb-too-big size={size:#x}"),
            // The writer's texts have blanks; its variants are names.
            Self::Writer(error) => write!(f, "why=dtb-refused error={error:?}"),
        }
    }
}

impl core::error::Error for GuestDtError {}

impl From<vm_fdt::Error> for GuestDtError {
    fn from(error: vm_fdt::Error) -> Self {
        Self::Writer(error)
    }
}

/// The affinity of vCPU `index`: what the guest reads in MPIDR_EL1 and passes to PSCI.
pub const fn vcpu_mpidr(index: u32) -> Mpidr {
    Mpidr::from_register(vcpu::mpidr(index as usize))
}

/// What the machine adds to a VM's own description.
#[derive(Clone, Copy, Debug, Default)]
pub struct Surroundings<'a> {
    /// The devices that it is given.
    pub devices: &'a [Given],
    /// The caches of each CPU, level 1 first.
    pub caches: &'a [Level],
}

/// Writes the tree of `vm`.
///
/// # Errors
/// [`GuestDtError`] where the tree does not fit into [`DTB_SIZE`] bytes.
pub fn build(vm: &VmConfig<'_>, machine: Surroundings<'_>) -> Result<Vec<u8>, GuestDtError> {
    let mut dt = FdtWriter::new()?;
    let root = dt.begin_node("")?;
    dt.property_string("compatible", "cordon,vm")?;
    dt.property_u32("#address-cells", 2)?;
    dt.property_u32("#size-cells", 2)?;
    dt.property_u32("interrupt-parent", GIC)?;
    chosen(&mut dt, vm)?;
    memory(&mut dt, vm)?;
    cpus(&mut dt, vm.vcpus, machine.caches)?;
    psci(&mut dt)?;
    interrupt_controller(&mut dt, vm.vcpus)?;
    timer(&mut dt)?;
    clock(&mut dt)?;
    uart(&mut dt)?;
    for memory in &vm.device_memory {
        device_memory(&mut dt, memory)?;
    }
    for given in machine.devices {
        device(&mut dt, given)?;
    }
    dt.end_node(root)?;
    let blob = dt.finish()?;
    if u64::try_from(blob.len()).is_ok_and(|size| size <= DTB_SIZE) {
        Ok(blob)
    } else {
        Err(GuestDtError::TooBig { size: blob.len() })
    }
}

fn reg(dt: &mut FdtWriter, range: IpaRange) -> Result<(), vm_fdt::Error> {
    dt.property_array_u64("reg", &[range.start().get(), range.size()])
}

fn chosen(dt: &mut FdtWriter, vm: &VmConfig<'_>) -> Result<(), vm_fdt::Error> {
    let node = dt.begin_node("chosen")?;
    if let Some(bootargs) = vm.bootargs {
        dt.property_string("bootargs", bootargs)?;
    }
    dt.property_string("stdout-path", &format!("/pl011@{:x}", UART.0.get()))?;
    if let Some(initrd) = vm.layout.initrd {
        dt.property_u64("linux,initrd-start", initrd.start().get())?;
        // The end is the first address behind it. RAM ends below the IPA size, so this fits.
        let end = initrd.last().get().saturating_add(1);
        dt.property_u64("linux,initrd-end", end)?;
    }
    dt.end_node(node)
}

fn memory(dt: &mut FdtWriter, vm: &VmConfig<'_>) -> Result<(), vm_fdt::Error> {
    let node = dt.begin_node(&format!("memory@{:x}", vm.ram.start().get()))?;
    dt.property_string("device_type", "memory")?;
    reg(dt, vm.ram)?;
    dt.end_node(node)
}

fn cpus(dt: &mut FdtWriter, count: u32, caches: &[Level]) -> Result<(), vm_fdt::Error> {
    let cpus = dt.begin_node("cpus")?;
    dt.property_u32("#address-cells", 2)?;
    dt.property_u32("#size-cells", 0)?;
    for (index, mpidr) in (0..count).map(|index| (index, vcpu_mpidr(index))) {
        let cpu = dt.begin_node(&format!("cpu@{:x}", mpidr.get()))?;
        dt.property_string("device_type", "cpu")?;
        dt.property_string("compatible", "arm,armv8")?;
        dt.property_string("enable-method", "psci")?;
        dt.property_u64("reg", mpidr.get())?;
        if let Some((first, next)) = caches.split_first() {
            level(dt, *first)?;
            next_levels(dt, index, 2, next)?;
        }
        dt.end_node(cpu)?;
    }
    dt.end_node(cpus)
}

/// The caches behind those that the open node has (Devicetree Specification 3.9), each inside of the
/// one before it. There are seven levels at most.
fn next_levels(
    dt: &mut FdtWriter,
    cpu: u32,
    number: u32,
    levels: &[Level],
) -> Result<(), vm_fdt::Error> {
    let Some((first, next)) = levels.split_first() else {
        return Ok(());
    };
    let phandle = FIRST_CACHE + 8 * cpu + number;
    dt.property_u32("next-level-cache", phandle)?;
    let node = dt.begin_node(&format!("l{number}-cache"))?;
    dt.property_string("compatible", "cache")?;
    dt.property_u32("cache-level", number)?;
    level(dt, *first)?;
    dt.property_phandle(phandle)?;
    next_levels(dt, cpu, number + 1, next)?;
    dt.end_node(node)
}

/// The properties of one level of caches.
fn level(dt: &mut FdtWriter, level: Level) -> Result<(), vm_fdt::Error> {
    let kinds = match level {
        Level::Split { instruction, data } => [("i-", instruction), ("d-", data)],
        Level::Unified(both) => {
            dt.property_null("cache-unified")?;
            [("", Some(both)), ("", None)]
        }
    };
    for (kind, geometry) in kinds {
        if let Some((geometry, size)) = geometry.and_then(|it| Some((it, it.size()?))) {
            dt.property_u32(&format!("{kind}cache-size"), size)?;
            dt.property_u32(&format!("{kind}cache-line-size"), geometry.line)?;
            dt.property_u32(&format!("{kind}cache-sets"), geometry.sets)?;
        }
    }
    Ok(())
}

fn psci(dt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    let node = dt.begin_node("psci")?;
    let versions = ["arm,psci-1.0", "arm,psci-0.2"].map(Into::into).into();
    dt.property_string_list("compatible", versions)?;
    dt.property_string("method", "hvc")?;
    dt.end_node(node)
}

/// `arm,gic-v3.yaml`.
fn interrupt_controller(dt: &mut FdtWriter, vcpus: u32) -> Result<(), vm_fdt::Error> {
    let (distributor, size) = DISTRIBUTOR;
    let redistributors = u64::from(vcpus) * vgic::REDISTRIBUTOR_SIZE;
    let node = dt.begin_node(&format!("intc@{:x}", distributor.get()))?;
    dt.property_string("compatible", "arm,gic-v3")?;
    let (first, _) = REDISTRIBUTORS;
    dt.property_array_u64(
        "reg",
        &[distributor.get(), size, first.get(), redistributors],
    )?;
    dt.property_null("interrupt-controller")?;
    dt.property_u32("#interrupt-cells", 3)?;
    dt.property_u32("#address-cells", 0)?;
    dt.property_phandle(GIC)?;
    dt.end_node(node)
}

/// `arm,arch_timer.yaml`: the secure, physical, virtual and hypervisor's timers. What the guest
/// does not have needs its place in the list nevertheless.
fn timer(dt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    const SECURE: u16 = 29;
    const HYPERVISOR: u16 = 26;
    let lines = [
        SECURE,
        vgic::PHYSICAL_TIMER,
        vgic::VIRTUAL_TIMER,
        HYPERVISOR,
    ];
    let cells = lines.map(|intid| [PPI, u32::from(intid) - 16, LEVEL]);
    let node = dt.begin_node("timer")?;
    dt.property_string("compatible", "arm,armv8-timer")?;
    dt.property_array_u32("interrupts", cells.as_flattened())?;
    dt.property_null("always-on")?;
    dt.end_node(node)
}

/// What the PL011's rate is derived from. It has none, but its driver wants one.
fn clock(dt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    let node = dt.begin_node("apb-pclk")?;
    dt.property_string("compatible", "fixed-clock")?;
    dt.property_u32("#clock-cells", 0)?;
    dt.property_u32("clock-frequency", 24_000_000)?;
    dt.property_string("clock-output-names", "clk24mhz")?;
    dt.property_phandle(CLOCK)?;
    dt.end_node(node)
}

fn uart(dt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    let (start, size) = UART;
    let node = dt.begin_node(&format!("pl011@{:x}", start.get()))?;
    let models = ["arm,pl011", "arm,primecell"].map(Into::into).into();
    dt.property_string_list("compatible", models)?;
    dt.property_array_u64("reg", &[start.get(), size])?;
    dt.property_array_u32("interrupts", &[SPI, u32::from(UART_INTERRUPT) - 32, LEVEL])?;
    dt.property_array_u32("clocks", &[CLOCK, CLOCK])?;
    let names = ["uartclk", "apb_pclk"].map(Into::into).into();
    dt.property_string_list("clock-names", names)?;
    dt.end_node(node)
}

/// A `pmem-region` is `volatile` (`pmem-region.txt`): no write to it must be flushed to make it last, for
/// it does not last.
fn device_memory(dt: &mut FdtWriter, memory: &DeviceMemory) -> Result<(), vm_fdt::Error> {
    let (name, compatible) = match memory.appearance {
        Appearance::Plain | Appearance::Dax => ("device-memory", DEVICE_MEMORY_COMPATIBLE),
        Appearance::Pmem => ("pmem", PMEM_COMPATIBLE),
    };
    let node = dt.begin_node(&format!("{name}@{:x}", memory.ipa.start().get()))?;
    dt.property_string("compatible", compatible)?;
    reg(dt, memory.ipa)?;
    if memory.appearance == Appearance::Pmem {
        dt.property_null("volatile")?;
    }
    dt.end_node(node)
}

/// A device of the machine, as the machine describes it, but for its interrupts.
fn device(dt: &mut FdtWriter, given: &Given) -> Result<(), vm_fdt::Error> {
    let host = &given.host;
    let name = host.path.rsplit('/').next().unwrap_or_default();
    let node = dt.begin_node(name)?;
    dt.property_string_list("compatible", host.compatible.clone())?;
    let registers = host.registers.iter();
    let registers: Vec<u64> = registers
        .flat_map(|range| [range.start().get(), range.size()])
        .collect();
    dt.property_array_u64("reg", &registers)?;
    let interrupts = given.wires.iter().zip(&host.interrupts);
    let interrupts: Vec<u32> = interrupts
        .flat_map(|(wire, interrupt)| {
            let trigger = if interrupt.edge { EDGE } else { LEVEL };
            [SPI, u32::from(wire.virtual_) - 32, trigger]
        })
        .collect();
    dt.property_array_u32("interrupts", &interrupts)?;
    if host.coherent {
        dt.property_null("dma-coherent")?;
    }
    dt.end_node(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Pa;
    use crate::platform::dt;
    use crate::platform::fdt::CheckedFdt;
    use crate::platform::machine::{Conduit, Machine};
    use crate::vm::config::tests::{Tree, read};
    use alloc::string::{String, ToString};

    /// What the bundle said comes back from the tree, by the reader that reads real machines.
    #[test]
    fn the_guest_finds_the_machine_that_the_bundle_described() {
        let mut tree = Tree::full();
        tree.set("vcpus", &18_u32.to_be_bytes());
        let bundle = tree.bundle();
        let vm = &read(&bundle).unwrap()[0];
        let blob = build(vm, Surroundings::default()).unwrap();
        let fdt = CheckedFdt::new(&blob).unwrap();
        let guest = Machine::from_fdt(&fdt, Pa::new(vm.layout.dtb.start().get())).unwrap();

        let ram = guest.ram[0];
        assert_eq!((ram.start().get(), ram.size()), (0x4000_0000, 0x0400_0000));
        let cpus: Vec<u64> = guest.cpus.iter().map(|cpu| cpu.get()).collect();
        assert_eq!(cpus[..3], [0, 1, 2]);
        assert_eq!(cpus[15..], [15, 0x100, 0x101]);
        assert_eq!(guest.psci, Some(Conduit::Hvc));
        assert_eq!(guest.uart.unwrap().start(), Pa::new(0x0900_0000));
        assert_eq!(guest.bootargs.as_deref(), Some("console=ttyAMA0 quiet"));
        assert_eq!(guest.uart_interrupt, Some(33));
        let gic = guest.gic.unwrap();
        assert_eq!(gic.distributor.start(), Pa::new(0x0800_0000));
        assert_eq!(gic.redistributors[0].start(), Pa::new(0x080a_0000));
        assert_eq!(gic.redistributors[0].size(), 18 * 0x2_0000);
        let timer = guest.timer.unwrap();
        assert_eq!((timer.virtual_, timer.physical), (Some(27), Some(30)));
        let initrd = guest.initrd.unwrap();
        assert_eq!(initrd.size(), vm.initrd.unwrap().bytes.len() as u64);
        assert_eq!(
            initrd.start().get(),
            vm.layout.initrd.unwrap().start().get()
        );
    }

    #[test]
    fn device_memory_has_a_node_each() {
        let bundle = Tree::full().bundle();
        let blob = build(&read(&bundle).unwrap()[0], Surroundings::default()).unwrap();
        let fdt = CheckedFdt::new(&blob).unwrap();
        let root = fdt.root().unwrap();
        let node = dt::child(root, "device-memory").unwrap();
        assert_eq!(node.name, "device-memory@1000000000");
        assert!(dt::is_compatible(node, "cordon,device-memory"));
        let expected = [0x10_0000_0000_u64, 0x8000_0000]
            .map(u64::to_be_bytes)
            .concat();
        assert_eq!(dt::value(node, "reg"), Some(&expected[..]));
        let names: Vec<String> = root.children().map(|node| node.name.to_string()).collect();
        let expected = [
            "chosen",
            "memory@40000000",
            "cpus",
            "psci",
            "intc@8000000",
            "timer",
            "apb-pclk",
            "pl011@9000000",
            "device-memory@1000000000",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn device_memory_can_be_what_linux_knows() {
        let mut tree = Tree::full();
        tree.device_memory().set("as", b"pmem\0");
        let bundle = tree.bundle();
        let blob = build(&read(&bundle).unwrap()[0], Surroundings::default()).unwrap();
        let fdt = CheckedFdt::new(&blob).unwrap();
        let node = dt::child(fdt.root().unwrap(), "pmem").unwrap();
        assert_eq!(node.name, "pmem@1000000000");
        assert!(dt::is_compatible(node, "pmem-region"));
        assert_eq!(dt::value(node, "volatile"), Some(&[][..]));
    }

    #[test]
    fn each_cpu_has_the_caches_that_the_machine_says() {
        use crate::vm::caches::Geometry;
        let geometry = |sets| Geometry {
            line: 64,
            ways: 4,
            sets,
        };
        let caches = [
            Level::Split {
                instruction: Some(geometry(256)),
                data: Some(geometry(128)),
            },
            Level::Unified(geometry(1024)),
            Level::Unified(geometry(4096)),
        ];
        let bundle = Tree::full().bundle();
        let surroundings = Surroundings {
            devices: &[],
            caches: &caches,
        };
        let blob = build(&read(&bundle).unwrap()[0], surroundings).unwrap();
        let fdt = CheckedFdt::new(&blob).unwrap();
        let cpus = dt::child(fdt.root().unwrap(), "cpus").unwrap();
        let cell = |node, name| dt::value(node, name).and_then(dt::cell);
        let mut phandles = Vec::new();
        for cpu in cpus.children() {
            assert_eq!(cell(cpu, "i-cache-size"), Some(64 << 10));
            assert_eq!(cell(cpu, "d-cache-sets"), Some(128));
            let second = dt::child(cpu, "l2-cache").unwrap();
            assert_eq!(cell(second, "cache-size"), Some(256 << 10));
            assert!(dt::value(second, "cache-unified").is_some());
            let third = dt::child(second, "l3-cache").unwrap();
            assert_eq!(cell(third, "cache-level"), Some(3));
            for (above, below) in [(cpu, second), (second, third)] {
                let phandle = cell(below, "phandle").unwrap();
                assert_eq!(cell(above, "next-level-cache"), Some(phandle));
                assert!(!phandles.contains(&phandle));
                phandles.push(phandle);
            }
        }
        assert_eq!(phandles.len(), 4);
    }

    #[test]
    fn a_tree_that_does_not_fit_is_refused() {
        let bundle = Tree::full().bundle();
        let mut vm = read(&bundle).unwrap()[0].clone();
        let long = "x".repeat(DTB_SIZE as usize);
        vm.bootargs = Some(&long);
        assert!(
            matches!(build(&vm, Surroundings::default()), Err(GuestDtError::TooBig { size }) if size > 2 << 20)
        );
        vm.bootargs = Some("a\0b");
        let refused = build(&vm, Surroundings::default()).unwrap_err();
        assert_eq!(refused, GuestDtError::Writer(vm_fdt::Error::InvalidString));
        assert_eq!(refused.to_string(), "why=dtb-refused error=InvalidString");
    }
}

use super::*;
use crate::platform::fdt::CheckedFdt;
use crate::platform::uart::ns16550::Layout;
use crate::platform::{damage, fuzz_config};
use alloc::string::ToString;
use proptest::prelude::*;
use vm_fdt::FdtWriter;

const VIRT: &[u8] = include_bytes!("../testdata/qemu-virt.dtb");
const VIRT_SECURE: &[u8] = include_bytes!("../testdata/qemu-virt-secure.dtb");
const DTB: Pa = Pa::new(0x4000_0000);

fn range(start: u64, size: u64) -> PaRange {
    PaRange::new(Pa::new(start), size).unwrap()
}

fn read(blob: &[u8]) -> Result<Machine, MachineError> {
    Machine::from_fdt(&CheckedFdt::new(blob).unwrap(), DTB)
}

fn bad(node: &str, property: &'static str) -> MachineError {
    MachineError::BadProperty {
        node: node.to_string(),
        property,
    }
}

fn virt(psci: Option<Conduit>, dtb_size: usize) -> Machine {
    Machine {
        ram: [range(0x4000_0000, 4 << 30)].to_vec(),
        reserved: [Reserved {
            range: range(0x4000_0000, dtb_size as u64),
            by: ReservedBy::Dtb,
        }]
        .to_vec(),
        cpus: (0..4).map(Mpidr).collect(),
        psci,
        uart: Some(range(0x0900_0000, 0x1000)),
        uart_kind: Some(UartKind::Pl011),
        uart_interrupt: Some(33),
        gic: Some(GicV3 {
            distributor: range(0x0800_0000, 0x1_0000),
            redistributors: [range(0x080a_0000, 0xf6_0000)].to_vec(),
            redistributor_stride: None,
            maintenance: Some(25),
        }),
        timer: Some(TimerInterrupts {
            secure_physical: Some(29),
            physical: Some(30),
            virtual_: Some(27),
            hyp_physical: Some(26),
            hyp_virtual: Some(28),
        }),
        pcie: Some(PcieHost {
            ecam: range(0x40_1000_0000, 0x1000_0000),
            buses: 0..=255,
            window32: Some(PciWindow {
                cpu: range(0x1000_0000, 0x2eff_0000),
                pci: 0x1000_0000,
            }),
            window64: Some(PciWindow {
                cpu: range(0x80_0000_0000, 512 << 30),
                pci: 0x80_0000_0000,
            }),
            placed: false,
        }),
        fw_cfg: Some(range(0x0902_0000, 0x18)),
        ..Machine::default()
    }
}

#[test]
fn qemus_virt_machine_is_found_whole() {
    let found = without_devices(read(VIRT).unwrap());
    assert_eq!(found, virt(Some(Conduit::Smc), VIRT.len()));
}

fn without_devices(mut machine: Machine) -> Machine {
    machine.devices.clear();
    machine
}

#[test]
fn what_a_vm_can_be_given_is_known_with_its_interrupts() {
    let machine = read(VIRT).unwrap();
    let device = machine.device_at(Pa::new(0x0a00_0000)).unwrap();
    let expected = HostDevice {
        path: "/virtio_mmio@a000000".into(),
        compatible: ["virtio,mmio".into()].to_vec(),
        registers: [range(0x0a00_0000, 0x200)].to_vec(),
        interrupts: [HostInterrupt {
            intid: 48,
            edge: true,
        }]
        .to_vec(),
        coherent: true,
    };
    assert_eq!(*device, expected);
    assert_eq!(machine.device_at(Pa::new(0x0a00_0004)), None);
    // The UART is Cordon's own, and in no list.
    assert_eq!(machine.device_at(Pa::new(0x0900_0000)), None);
}

#[test]
fn what_cordon_uses_itself_has_a_name() {
    let machine = read(VIRT).unwrap();
    let own = |start, size| machine.own(range(start, size));
    assert_eq!(own(0x0900_0800, 4), Some("uart"));
    assert_eq!(own(0x0902_0000, 0x1000), Some("fw-cfg"));
    assert_eq!(own(0x0800_f000, 0x1000), Some("gicd"));
    assert_eq!(own(0x080a_0000, 1), Some("gicr"));
    assert_eq!(own(0x4000_0000, 1), Some("ram"));
    assert_eq!(own(0x1000_0000, 1), Some("pcie"));
    assert_eq!(own(0x0a00_0000, 0x1000), None);
}

/// `secure=on` lists the secure world's RAM and UART, both disabled, before the normal world's,
/// and leaves PSCI to firmware.
#[test]
fn what_belongs_to_the_secure_world_is_not_ours() {
    let found = without_devices(read(VIRT_SECURE).unwrap());
    assert_eq!(found, virt(None, VIRT_SECURE.len()));
}

#[test]
fn the_boot_lines_name_each_thing() {
    let mut machine = read(VIRT).unwrap();
    machine.rsdp = Some(Pa::new(0x4100_0000));
    machine.cpus.truncate(1);
    let expected = "\
cordon: event=found what=ram pa=0x40000000 size=0x100000000
cordon: event=found what=reserved pa=0x40000000 size=0x1385 by=dtb
cordon: event=found what=cpu cpu=0 mpidr=0x0
cordon: event=found what=psci conduit=smc
cordon: event=found what=uart pa=0x9000000 size=0x1000
cordon: event=found what=gicd pa=0x8000000 size=0x10000
cordon: event=found what=gicr pa=0x80a0000 size=0xf60000
cordon: event=found what=pcie-ecam pa=0x4010000000 size=0x10000000 first_bus=0 last_bus=255
cordon: event=found what=pcie-window32 pa=0x10000000 size=0x2eff0000 pci=0x10000000
cordon: event=found what=pcie-window64 pa=0x8000000000 size=0x8000000000 pci=0x8000000000
cordon: event=found what=fw-cfg pa=0x9020000 size=0x18
cordon: event=found what=rsdp pa=0x41000000";
    assert_eq!(machine.to_string(), expected);
}

/// A tree written node by node: each node is its path's last part, its properties, its children.
struct Node {
    name: &'static str,
    properties: Vec<(&'static str, Vec<u8>)>,
    children: Vec<Node>,
}

fn node(name: &'static str) -> Node {
    Node {
        name,
        properties: Vec::new(),
        children: Vec::new(),
    }
}

fn cells(cells: &[u32]) -> Vec<u8> {
    cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()
}

impl Node {
    fn with(mut self, name: &'static str, value: impl AsRef<[u8]>) -> Self {
        self.properties.retain(|(other, _)| *other != name);
        self.properties.push((name, value.as_ref().to_vec()));
        self
    }

    fn child(mut self, child: Node) -> Self {
        self.children.push(child);
        self
    }

    fn write(&self, writer: &mut FdtWriter) {
        let node = writer.begin_node(self.name).unwrap();
        for (name, value) in &self.properties {
            writer.property(name, value).unwrap();
        }
        self.children.iter().for_each(|child| child.write(writer));
        writer.end_node(node).unwrap();
    }

    fn blob(&self) -> Vec<u8> {
        let mut writer = FdtWriter::new().unwrap();
        self.write(&mut writer);
        writer.finish().unwrap()
    }

    fn read(&self) -> Result<Machine, MachineError> {
        read(&self.blob())
    }
}

fn cpu(name: &'static str, reg: &[u32]) -> Node {
    node(name)
        .with("device_type", "cpu\0")
        .with("reg", cells(reg))
}

fn cpus(address_cells: u32) -> Node {
    node("cpus")
        .with("#address-cells", cells(&[address_cells]))
        .with("#size-cells", cells(&[0]))
}

fn memory() -> Node {
    node("memory")
        .with("device_type", "memory\0")
        .with("reg", cells(&[0x8000_0000, 0x1000_0000]))
}

/// A root of one-cell addresses and sizes with RAM and one CPU.
fn board() -> Node {
    node("")
        .with("#address-cells", cells(&[1]))
        .with("#size-cells", cells(&[1]))
        .child(memory())
        .child(cpus(1).child(cpu("cpu@0", &[0])))
}

fn device(name: &'static str, compatible: &str, reg: &[u32]) -> Node {
    node(name)
        .with("compatible", compatible)
        .with("reg", cells(reg))
}

fn pl011(name: &'static str, base: u32) -> Node {
    device(name, "arm,pl011\0arm,primecell\0", &[base, 0x1000])
}

#[test]
fn a_machine_may_lack_everything_but_ram_and_cpus() {
    let machine = board().read().unwrap();
    assert_eq!(machine.ram, [range(0x8000_0000, 0x1000_0000)]);
    assert_eq!(machine.cpus, [Mpidr(0)]);
    let found = (
        machine.psci,
        machine.uart,
        machine.gic,
        machine.timer,
        machine.pcie,
    );
    assert_eq!(found, (None, None, None, None, None));
    assert_eq!(
        (machine.fw_cfg, machine.bootargs, machine.rsdp),
        (None, None, None)
    );

    let root = || {
        node("")
            .with("#address-cells", cells(&[1]))
            .with("#size-cells", cells(&[1]))
    };
    let no_ram = root().child(cpus(1).child(cpu("cpu@0", &[0])));
    assert_eq!(no_ram.read(), Err(MachineError::NoRam));
    let disabled = cpu("cpu@0", &[0]).with("status", "fail\0");
    assert_eq!(
        root().child(memory()).child(cpus(1).child(disabled)).read(),
        Err(MachineError::NoCpus)
    );
}

#[test]
fn addresses_are_translated_on_every_bus_on_the_way() {
    let inner = node("apb")
        .with("#address-cells", cells(&[1]))
        .with("#size-cells", cells(&[1]))
        .with("ranges", cells(&[0x0, 0x10_0000, 0x1_0000]))
        .child(pl011("serial", 0x4000));
    let soc = node("soc")
        .with("#address-cells", cells(&[1]))
        .with("#size-cells", cells(&[1]))
        .with(
            "ranges",
            cells(&[
                0x0,
                0x7000_0000,
                0x10_0000,
                0x10_0000,
                0xfe00_0000,
                0x10_0000,
            ]),
        )
        .child(inner);
    let machine = board().child(soc).read().unwrap();
    assert_eq!(machine.uart, Some(range(0xfe00_4000, 0x1000)));
}

#[test]
fn a_device_behind_a_bus_that_the_cpu_cannot_reach_is_an_error() {
    let soc = node("soc")
        .with("#address-cells", cells(&[1]))
        .with("#size-cells", cells(&[1]))
        .child(pl011("serial", 0x4000));
    assert_eq!(board().child(soc).read(), Err(bad("/soc/serial", "reg")));
}

#[test]
fn the_uarts_driver_is_chosen_by_what_it_is_compatible_with() {
    for (compatible, kind) in [
        ("arm,pl011\0arm,primecell\0", Some(UartKind::Pl011)),
        ("fsl,imx8mm-uart\0fsl,imx6q-uart\0", Some(UartKind::Imx)),
        (
            "xlnx,zynqmp-uart\0cdns,uart-r1p12\0",
            Some(UartKind::Cadence),
        ),
        ("ns16550a\0", Some(UartKind::Ns16550(Layout::BYTES))),
        (
            "brcm,bcm2835-aux-uart\0",
            Some(UartKind::Ns16550(Layout::WORDS)),
        ),
        ("vendor,other-uart\0", None),
    ] {
        let uart = pl011("uart@1000", 0x1000).with("compatible", compatible);
        let machine = board().child(uart).read().unwrap();
        assert_eq!(machine.uart_kind, kind, "{compatible}");
    }
}

#[test]
fn a_16550s_registers_lie_as_its_node_says() {
    let read = |properties: &[(&'static str, u32)]| {
        let uart = pl011("uart@1000", 0x1000).with("compatible", "snps,dw-apb-uart\0");
        let uart = (properties.iter()).fold(uart, |uart, (name, value)| {
            uart.with(name, cells(&[*value]))
        });
        board().child(uart).read().unwrap().uart_kind
    };
    let of = |shift, words| Some(UartKind::Ns16550(Layout { shift, words }));
    assert_eq!(read(&[]), of(0, false));
    assert_eq!(read(&[("reg-shift", 2)]), of(2, false));
    assert_eq!(read(&[("reg-shift", 2), ("reg-io-width", 4)]), of(2, true));
    // No driver for it: 16 bits wide, words that overlap, further apart than anybody's.
    assert_eq!(read(&[("reg-shift", 1), ("reg-io-width", 2)]), None);
    assert_eq!(read(&[("reg-io-width", 4)]), None);
    assert_eq!(read(&[("reg-shift", 40)]), None);
    for kind in [UartKind::Pl011, UartKind::Imx, UartKind::Cadence] {
        assert_eq!(UartKind::from_bits(kind.to_bits()), kind);
    }
    for kind in [of(0, false), of(2, true), of(4, false)]
        .into_iter()
        .flatten()
    {
        assert_eq!(UartKind::from_bits(kind.to_bits()), kind);
    }
}

#[test]
fn a_tree_that_is_wrong_elsewhere_still_has_a_console() {
    let psci = node("psci")
        .with("compatible", "arm,psci-1.0\0")
        .with("method", "hvc\0");
    let tree = node("")
        .with("#address-cells", cells(&[1]))
        .with("#size-cells", cells(&[1]))
        .child(psci)
        .child(pl011("uart@1000", 0x1000));
    assert_eq!(tree.read(), Err(MachineError::NoRam));
    let blob = tree.blob();
    let fdt = CheckedFdt::new(&blob).unwrap();
    let console = Machine::console(&fdt).map(|uart| uart.registers);
    assert_eq!(console, Some(range(0x1000, 0x1000)));
    assert_eq!(Machine::conduit(&fdt), Some(Conduit::Hvc));
}

#[test]
fn stdout_path_chooses_among_the_uarts() {
    let two = || {
        board()
            .child(pl011("uart@1000", 0x1000))
            .child(pl011("uart@2000", 0x2000))
    };
    assert_eq!(two().read().unwrap().uart, Some(range(0x1000, 0x1000)));
    for path in [
        "/uart@2000\0",
        "/uart@2000:115200n8\0",
        "serial0\0",
        "serial0:9600\0",
    ] {
        let root = two()
            .child(node("chosen").with("stdout-path", path))
            .child(node("aliases").with("serial0", "/uart@2000\0"));
        assert_eq!(
            root.read().unwrap().uart,
            Some(range(0x2000, 0x1000)),
            "{path}"
        );
    }
    // An alias that is not there, or leads to a device that is none of ours.
    for path in ["serial9\0", "/memory\0", "loop\0"] {
        let root = two()
            .child(node("chosen").with("stdout-path", path))
            .child(node("aliases").with("loop", "loop\0"));
        assert_eq!(
            root.read().unwrap().uart,
            Some(range(0x1000, 0x1000)),
            "{path}"
        );
    }
}

#[test]
fn what_the_boot_loader_passes_is_in_chosen() {
    let chosen = node("chosen")
        .with("bootargs", "bbm=1 loglevel=debug\0")
        .with("linux,initrd-start", cells(&[0, 0x8800_0000]))
        .with("linux,initrd-end", cells(&[0x8800_1234]))
        .with("cordon,acpi-rsdp", cells(&[1, 0x2000]));
    let machine = board().child(chosen).read().unwrap();
    assert_eq!(machine.bootargs.as_deref(), Some("bbm=1 loglevel=debug"));
    assert_eq!(machine.initrd, Some(range(0x8800_0000, 0x1234)));
    assert_eq!(machine.rsdp, Some(Pa::new(0x1_0000_2000)));
    assert_eq!(machine.reserved[1].by, ReservedBy::Initrd);
    assert_eq!(machine.reserved[1].range, range(0x8800_0000, 0x1234));
}

#[test]
fn what_chosen_says_wrongly_is_named() {
    let refused = |properties: &[(&'static str, Vec<u8>)]| {
        let chosen = properties
            .iter()
            .fold(node("chosen"), |node, (name, value)| node.with(name, value));
        board().child(chosen).read().unwrap_err()
    };
    let (start, end) = ("linux,initrd-start", "linux,initrd-end");
    assert_eq!(
        refused(&[("bootargs", b"no end".to_vec())]),
        bad("/chosen", "bootargs")
    );
    assert_eq!(
        refused(&[("cordon,acpi-rsdp", [0; 3].to_vec())]),
        bad("/chosen", "cordon,acpi-rsdp")
    );
    assert_eq!(refused(&[(start, cells(&[1]))]), bad("/chosen", end));
    assert_eq!(refused(&[(end, cells(&[1]))]), bad("/chosen", start));
    assert_eq!(
        refused(&[(start, cells(&[2])), (end, cells(&[1]))]),
        bad("/chosen", end)
    );
    assert_eq!(
        refused(&[(start, cells(&[2])), (end, cells(&[2]))]),
        bad("/chosen", end)
    );
}

#[test]
fn reserved_memory_is_what_has_a_place() {
    let reserved = node("reserved-memory")
        .with("#address-cells", cells(&[1]))
        .with("#size-cells", cells(&[1]))
        .with("ranges", [])
        .child(
            node("ghes@80000000").with("reg", cells(&[0x8000_0000, 0x1000, 0x8010_0000, 0x1000])),
        )
        .child(node("cma").with("size", cells(&[0x100_0000])));
    let machine = board().child(reserved).read().unwrap();
    let by = || ReservedBy::Node("ghes@80000000".to_string());
    assert_eq!(
        machine.reserved[..2],
        [
            Reserved {
                range: range(0x8000_0000, 0x1000),
                by: by()
            },
            Reserved {
                range: range(0x8010_0000, 0x1000),
                by: by()
            }
        ]
    );
}

#[test]
fn cpus_are_known_by_their_affinity() {
    let root = |cpus: Node| board().child(cpus).read();
    let two_cells = cpus(2).child(cpu("cpu@100000000", &[0x1, 0x100]));
    assert_eq!(
        root(two_cells).unwrap().cpus,
        [Mpidr(0), Mpidr(0x1_0000_0100)]
    );
    let not_affinity = cpus(1).child(cpu("cpu@1", &[0x8000_0001]));
    assert_eq!(
        root(not_affinity),
        Err(MachineError::BadMpidr { value: 0x8000_0001 })
    );
    let twice = cpus(1).child(cpu("cpu@0", &[0]));
    assert_eq!(
        root(twice),
        Err(MachineError::DuplicateCpu { mpidr: Mpidr(0) })
    );
    let no_reg = cpus(1).child(node("cpu@1").with("device_type", "cpu\0"));
    assert_eq!(root(no_reg), Err(bad("/cpus/cpu@1", "reg")));
    let wrong_length = cpus(1).child(cpu("cpu@1", &[0, 1]));
    assert_eq!(root(wrong_length), Err(bad("/cpus/cpu@1", "reg")));
}

#[test]
fn an_affinity_is_the_aff_fields_and_nothing_else() {
    assert_eq!(Mpidr::from_register(0x81_c100_0203), Mpidr(0x81_0000_0203));
    assert_eq!(Mpidr::new(0x81_0000_0203), Some(Mpidr(0x81_0000_0203)));
    assert_eq!(Mpidr::new(1 << 30), None);
}

#[test]
fn psci_is_called_by_the_method_named() {
    let psci = |method: &str| {
        let psci = node("psci")
            .with("compatible", "arm,psci-1.0\0")
            .with("method", method);
        board().child(psci).read().map(|machine| machine.psci)
    };
    assert_eq!(psci("hvc\0"), Ok(Some(Conduit::Hvc)));
    assert_eq!(psci("smc\0"), Ok(Some(Conduit::Smc)));
    assert_eq!(psci("sms\0"), Err(bad("/psci", "method")));
}

#[test]
fn a_gic_may_have_several_redistributor_regions() {
    let gic = |regions: u32| {
        device(
            "gic",
            "arm,gic-v3\0",
            &[0x1000, 0x1000, 0x2000, 0x1000, 0x3000, 0x1000],
        )
        .with("#redistributor-regions", cells(&[regions]))
        .with("redistributor-stride", cells(&[0, 0x4_0000]))
    };
    let found = board().child(gic(2)).read().unwrap().gic.unwrap();
    assert_eq!(
        found.redistributors,
        [range(0x2000, 0x1000), range(0x3000, 0x1000)]
    );
    assert_eq!(found.redistributor_stride, Some(0x4_0000));
    assert_eq!(board().child(gic(0)).read(), Err(bad("/gic", "reg")));
    assert_eq!(board().child(gic(3)).read(), Err(bad("/gic", "reg")));
    let odd = gic(1).with("#redistributor-regions", []);
    assert_eq!(
        board().child(odd).read(),
        Err(bad("/gic", "#redistributor-regions"))
    );
    let odd = gic(1).with("redistributor-stride", [1]);
    assert_eq!(
        board().child(odd).read(),
        Err(bad("/gic", "redistributor-stride"))
    );
}

#[test]
fn timer_interrupts_are_named_or_in_order() {
    let timer = |interrupts: &[u32]| {
        node("timer")
            .with("compatible", "arm,armv8-timer\0")
            .with("interrupts", cells(interrupts))
    };
    let read = |timer: Node| {
        board()
            .child(timer)
            .read()
            .map(|machine| machine.timer.unwrap())
    };
    let four = read(timer(&[1, 13, 8, 1, 14, 8, 1, 11, 8, 1, 10, 8])).unwrap();
    assert_eq!((four.hyp_physical, four.hyp_virtual), (Some(26), None));
    let partitioned = read(timer(&[1, 13, 8, 0, 1, 14, 8, 0, 1, 11, 8, 0, 1, 10, 8, 0])).unwrap();
    assert_eq!(partitioned, four);
    let named = timer(&[1, 10, 8, 1, 11, 8]).with("interrupt-names", "hyp-phys\0virt\0");
    let expected = TimerInterrupts {
        hyp_physical: Some(26),
        virtual_: Some(27),
        ..TimerInterrupts::default()
    };
    assert_eq!(read(named), Ok(expected));
    for wrong in [
        &[1, 13, 8][..],
        &[1, 16, 8].repeat(4),
        &[0, 13, 8].repeat(4),
        &[],
    ] {
        assert_eq!(
            read(timer(wrong)),
            Err(bad("/timer", "interrupts")),
            "{wrong:?}"
        );
    }
    let unnamed = timer(&[1, 10, 8]).with("interrupt-names", "");
    assert_eq!(read(unnamed), Err(bad("/timer", "interrupts")));
}

#[test]
fn a_host_bridge_has_windows_and_buses() {
    let pcie = || {
        device("pcie", "pci-host-ecam-generic\0", &[0x4000_0000, 0x20_0000])
            .with("bus-range", cells(&[4, 9]))
            .with(
                "ranges",
                cells(&[0x4300_0000, 1, 0, 0x5000_0000, 0, 0x1000_0000]),
            )
    };
    let read = |pcie: Node| {
        board()
            .child(pcie)
            .read()
            .map(|machine| machine.pcie.unwrap())
    };
    let host = read(pcie()).unwrap();
    assert_eq!(host.buses, 4..=5, "ECAM has room for two");
    let window = PciWindow {
        cpu: range(0x5000_0000, 0x1000_0000),
        pci: 1 << 32,
    };
    assert_eq!((host.window32, host.window64), (None, Some(window)));

    let wrong_ranges = [
        &[0x4300_0000, 1, 0, 0x5000_0000, 0][..],
        &[0x4300_0000, 1, 0, 0x5000_0000, 0, 0],
        &[0x4300_0000, u32::MAX, u32::MAX, 0x5000_0000, 0, 2],
    ];
    for ranges in wrong_ranges {
        assert_eq!(
            read(pcie().with("ranges", cells(ranges))),
            Err(bad("/pcie", "ranges"))
        );
    }
    for buses in [&[9, 4][..], &[0], &[0, 256]] {
        assert_eq!(
            read(pcie().with("bus-range", cells(buses))),
            Err(bad("/pcie", "bus-range"))
        );
    }
    let small = pcie().with("reg", cells(&[0x4000_0000, 0xf_ffff]));
    assert_eq!(read(small), Err(bad("/pcie", "reg")));
}

#[test]
fn a_blob_at_the_end_of_the_address_space_is_refused() {
    let fdt = CheckedFdt::new(VIRT).unwrap();
    assert_eq!(
        Machine::from_fdt(&fdt, Pa::new(u64::MAX - 1)),
        Err(MachineError::BadDtb)
    );
}

#[test]
fn errors_are_keys_and_values() {
    assert_eq!(
        bad("/psci", "method").to_string(),
        "why=bad-property node=/psci property=method"
    );
    assert_eq!(
        MachineError::BadMpidr { value: 16 }.to_string(),
        "why=bad-mpidr value=0x10"
    );
}

proptest! {
    #![proptest_config(fuzz_config())]

    #[test]
    fn a_damaged_tree_never_panics(damage in damage(VIRT_SECURE.len())) {
        let mut blob = VIRT_SECURE.to_vec();
        damage.apply(&mut blob);
        if let Ok(fdt) = CheckedFdt::new(&blob)
            && let Ok(machine) = Machine::from_fdt(&fdt, DTB)
        {
            prop_assert!(!machine.ram.is_empty() && !machine.cpus.is_empty());
            let _ = machine.to_string();
        }
    }
}

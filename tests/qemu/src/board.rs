//! Machines other than QEMU's `virt`: models of boards that exist.
//!
//! What is there is there: CPUs, their kind and what memory there is are the board's. QEMU itself
//! makes the device tree of one of them and wants to be given those of the others, as they would come from
//! the board's maker; what of them a hypervisor looks at is written here and in [`sketch`], by the makers' manuals and in
//! the words of Linux's bindings.

mod sketch;

use crate::scenario::{Board, Boot, SaidBundle, Scenario, ScenarioError};
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::Path;
use vm_fdt::{FdtWriter, FdtWriterResult};

impl Board {
    /// QEMU's name of it, but for `virt`, whose name depends on how it comes up.
    pub(crate) fn model(self) -> Option<&'static str> {
        match self {
            Self::Virt => None,
            Self::VirtGicv2 => Some("virt,virtualization=on,gic-version=2"),
            Self::XlnxVersalVirt => Some("xlnx-versal-virt"),
            Self::Imx8mmEvk => Some("imx8mm-evk"),
            Self::Ast2700 => Some("ast2700a1-evb"),
            Self::Raspi4b => Some("raspi4b"),
            Self::Zcu102 => Some("xlnx-zcu102,virtualization=on"),
        }
    }

    /// Whether its CPUs are what they are.
    pub(crate) fn has_own_cpus(self) -> bool {
        !matches!(self, Self::Virt | Self::VirtGicv2)
    }

    /// CPUs that QEMU counts too, and nobody starts: Versal's two real-time processors, and the AST2700's others, for want
    /// of PSCI.
    pub(crate) fn more_cpus(self) -> u32 {
        match self {
            Self::XlnxVersalVirt => 2,
            Self::Ast2700 => 3,
            _ => 0,
        }
    }

    /// UARTs before the one that has the console: the EVK's is its second, and the Raspberry Pi's mini UART.
    pub(crate) fn uarts_before(self) -> usize {
        match self {
            Self::Imx8mmEvk | Self::Raspi4b => 1,
            _ => 0,
        }
    }
}

/// What cannot be meant.
pub(crate) fn check(s: &Scenario) -> std::result::Result<(), ScenarioError> {
    let machine = &s.machine;
    if let Some(said) = &machine.said_bundle
        && (machine.board != Board::Imx8mmEvk || s.has_bundle())
    {
        let message =
            "machine.said-bundle: the EVK's tree alone is told so, where there is no bundle";
        return Err(s.error(said.at.span(), message));
    }
    if machine.board == Board::Virt {
        return Ok(());
    }
    let own = machine.device_memory.is_empty() && machine.disk.is_empty() && machine.cpu.is_none();
    if machine.boot == Boot::Kernel && own && s.acpi.is_none() {
        return Ok(());
    }
    let message = "machine.board: a board has boot = \"kernel\", and no device-memory, disk, cpu or acpi but its own";
    Err(s.error(0..0, message))
}

/// The arguments for what has to be made first, in `logs`.
pub(crate) fn attach(scenario: &Scenario, logs: &Path) -> Result<Vec<OsString>> {
    let (board, cpus) = (scenario.machine.board, *scenario.machine.cpus.as_ref());
    let tree = match board.sketch() {
        Some(sketch) => sketch.tree(cpus),
        None if board == Board::Imx8mmEvk => imx8mm(cpus, scenario.machine.said_bundle.as_ref()),
        None => return Ok(Vec::new()),
    };
    let path = logs.join("board.dtb");
    let tree = tree.context("the board's device tree")?;
    std::fs::write(&path, tree).with_context(|| format!("cannot write {}", path.display()))?;
    let mut arguments: Vec<OsString> = vec!["-dtb".into(), path.into()];
    if board == Board::Ast2700 {
        // The chip's own ROM, in whose place QEMU's loader starts the image. It wants to be there all the same.
        let path = logs.join("rom.bin");
        std::fs::write(&path, [0; 64])
            .with_context(|| format!("cannot write {}", path.display()))?;
        arguments.extend(["-bios".into(), path.into()]);
    }
    Ok(arguments)
}

const GIC: u32 = 1;
/// Types and flags of interrupts (`arm,gic-v3.yaml`).
const SPI: u32 = 0;
const PPI: u32 = 1;
const HIGH: u32 = 4;

/// The i.MX 8M Mini on its EVK. QEMU adds the memory, PSCI and `/chosen`'s words.
fn imx8mm(cpus: u32, bundle: Option<&SaidBundle>) -> FdtWriterResult<Vec<u8>> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string_list(
        "compatible",
        vec!["fsl,imx8mm-evk".into(), "fsl,imx8mm".into()],
    )?;
    fdt.property_u32("interrupt-parent", GIC)?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    let aliases = fdt.begin_node("aliases")?;
    fdt.property_string("serial1", "/soc@0/bus@30800000/serial@30890000")?;
    fdt.end_node(aliases)?;
    let chosen = fdt.begin_node("chosen")?;
    fdt.property_string("stdout-path", "serial1:115200n8")?;
    if let Some(SaidBundle { at, size }) = bundle {
        let (start, size) = (at.as_ref().0, size.as_ref().0);
        fdt.property_u64("linux,initrd-start", start)?;
        fdt.property_u64("linux,initrd-end", start.saturating_add(size))?;
    }
    fdt.end_node(chosen)?;
    cpus_and_timer(&mut fdt, cpus, "arm,cortex-a53")?;
    imx8mm_soc(&mut fdt)?;
    fdt.end_node(root)?;
    fdt.finish()
}

/// CPUs that PSCI starts, and the timer that each has.
fn cpus_and_timer(fdt: &mut FdtWriter, cpus: u32, compatible: &str) -> FdtWriterResult<()> {
    let all = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for cpu in 0..cpus {
        let node = fdt.begin_node(&format!("cpu@{cpu}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", compatible)?;
        fdt.property_u32("reg", cpu)?;
        fdt.property_string("enable-method", "psci")?;
        fdt.end_node(node)?;
    }
    fdt.end_node(all)?;
    let timer = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    let timers = [13, 14, 11, 10].map(|number| [PPI, number, HIGH]);
    fdt.property_array_u32("interrupts", timers.as_flattened())?;
    fdt.end_node(timer)
}

/// The part of the EVK that is in the chip.
fn imx8mm_soc(fdt: &mut FdtWriter) -> FdtWriterResult<()> {
    let soc = fdt.begin_node("soc@0")?;
    fdt.property_string("compatible", "simple-bus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 1)?;
    fdt.property_array_u32("ranges", &[0, 0, 0, 0x3e00_0000])?;
    let bus = fdt.begin_node("bus@30800000")?;
    fdt.property_string("compatible", "simple-bus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 1)?;
    fdt.property_array_u32("ranges", &[0x3080_0000, 0x3080_0000, 0x40_0000])?;
    for (address, interrupt) in [
        (0x3086_0000, 26),
        (0x3088_0000, 28),
        (0x3089_0000, 27),
        (0x30a6_0000, 29),
    ] {
        let uart = fdt.begin_node(&format!("serial@{address:x}"))?;
        fdt.property_string_list(
            "compatible",
            vec!["fsl,imx8mm-uart".into(), "fsl,imx6q-uart".into()],
        )?;
        fdt.property_array_u32("reg", &[address, 0x1_0000])?;
        fdt.property_array_u32("interrupts", &[SPI, interrupt, HIGH])?;
        fdt.end_node(uart)?;
    }
    fdt.end_node(bus)?;
    let gic = fdt.begin_node("interrupt-controller@38800000")?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_array_u32("reg", &[0x3880_0000, 0x1_0000, 0x3888_0000, 0xc_0000])?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_array_u32("interrupts", &[PPI, 9, HIGH])?;
    fdt.property_u32("phandle", GIC)?;
    fdt.end_node(gic)?;
    fdt.end_node(soc)
}

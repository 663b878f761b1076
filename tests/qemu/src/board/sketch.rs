//! Boards in few words: CPUs, a UART, an interrupt controller, and the timer.

use super::{GIC, HIGH, PPI, SPI, cpus_and_timer};
use crate::scenario::Board;
use vm_fdt::{FdtWriter, FdtWriterResult};

/// What a board has.
pub(crate) struct Sketch {
    compatible: &'static str,
    cpu: &'static str,
    uart: Uart,
    gic: Gic,
}

struct Uart {
    at: u64,
    size: u64,
    compatible: &'static str,
    /// `reg-shift`.
    shift: Option<u32>,
    /// The number of its shared interrupt. A UART whose interrupts come by way of another controller has none here.
    interrupt: Option<u32>,
}

struct Gic {
    compatible: &'static str,
    /// Address and size of each of its regions.
    reg: &'static [u64],
}

impl Board {
    /// The boards whose trees QEMU has not, but for the EVK.
    pub(super) fn sketch(self) -> Option<Sketch> {
        Some(match self {
            // QEMU's hw/arm/aspeed_ast27x0.c has Aspeed's map.
            Self::Ast2700 => Sketch {
                compatible: "aspeed,ast2700",
                cpu: "arm,cortex-a35",
                uart: Uart {
                    at: 0x14c3_3b00,
                    size: 0x100,
                    compatible: "ns16550a",
                    shift: Some(2),
                    interrupt: None,
                },
                gic: Gic {
                    compatible: "arm,gic-v3",
                    reg: &[0x1220_0000, 0x1_0000, 0x1228_0000, 0x10_0000],
                },
            },
            // The mini UART.
            Self::Raspi4b => Sketch {
                compatible: "raspberrypi,4-model-b\0brcm,bcm2711",
                cpu: "arm,cortex-a72",
                uart: Uart {
                    at: 0xfe21_5040,
                    size: 0x40,
                    compatible: "brcm,bcm2835-aux-uart",
                    shift: None,
                    interrupt: Some(93),
                },
                gic: Gic {
                    compatible: "arm,gic-400",
                    reg: &[0xff84_1000, 0x1000, 0xff84_2000, 0x2000],
                },
            },
            Self::Zcu102 => Sketch {
                compatible: "xlnx,zynqmp-zcu102\0xlnx,zynqmp",
                cpu: "arm,cortex-a53",
                uart: Uart {
                    at: 0xff00_0000,
                    size: 0x1000,
                    compatible: "xlnx,zynqmp-uart\0cdns,uart-r1p12",
                    shift: None,
                    interrupt: Some(21),
                },
                gic: Gic {
                    compatible: "arm,gic-400",
                    reg: &[0xf901_0000, 0x1_0000, 0xf902_0000, 0x2_0000],
                },
            },
            Self::Virt | Self::VirtGicv2 | Self::XlnxVersalVirt | Self::Imx8mmEvk => return None,
        })
    }
}

impl Sketch {
    /// The device tree. QEMU adds the memory, PSCI and `/chosen`'s words.
    pub(super) fn tree(&self, cpus: u32) -> FdtWriterResult<Vec<u8>> {
        let mut fdt = FdtWriter::new()?;
        let root = fdt.begin_node("")?;
        strings(&mut fdt, "compatible", self.compatible)?;
        fdt.property_u32("interrupt-parent", GIC)?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;
        let chosen = fdt.begin_node("chosen")?;
        fdt.property_string("stdout-path", &format!("/serial@{:x}", self.uart.at))?;
        fdt.end_node(chosen)?;
        cpus_and_timer(&mut fdt, cpus, self.cpu)?;
        self.devices(&mut fdt)?;
        fdt.end_node(root)?;
        fdt.finish()
    }

    fn devices(&self, fdt: &mut FdtWriter) -> FdtWriterResult<()> {
        let Uart { at, size, .. } = self.uart;
        let uart = fdt.begin_node(&format!("serial@{at:x}"))?;
        strings(fdt, "compatible", self.uart.compatible)?;
        fdt.property_array_u64("reg", &[at, size])?;
        if let Some(shift) = self.uart.shift {
            fdt.property_u32("reg-shift", shift)?;
        }
        if let Some(interrupt) = self.uart.interrupt {
            fdt.property_array_u32("interrupts", &[SPI, interrupt, HIGH])?;
        }
        fdt.end_node(uart)?;
        let at = self.gic.reg.first().copied().unwrap_or_default();
        let gic = fdt.begin_node(&format!("interrupt-controller@{at:x}"))?;
        fdt.property_string("compatible", self.gic.compatible)?;
        fdt.property_array_u64("reg", self.gic.reg)?;
        fdt.property_u32("#interrupt-cells", 3)?;
        fdt.property_null("interrupt-controller")?;
        fdt.property_array_u32("interrupts", &[PPI, 9, HIGH])?;
        fdt.property_u32("phandle", GIC)?;
        fdt.end_node(gic)
    }
}

/// A list of strings, which `text` has with NULs between them.
fn strings(fdt: &mut FdtWriter, name: &str, text: &str) -> FdtWriterResult<()> {
    fdt.property_string_list(name, text.split('\0').map(str::to_owned).collect())
}

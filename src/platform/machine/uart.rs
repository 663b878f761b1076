//! The console's UART, among those that there are drivers for.

use fdt::node::FdtNode;

use super::Machine;
use crate::addr::PaRange;
use crate::platform::dt;
use crate::platform::uart::ns16550::Layout;

/// Which driver a UART wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UartKind {
    /// Arm's PL011, or what Arm's server base says of it (`arm,sbsa-uart`).
    Pl011,
    /// NXP's i.MX UART.
    Imx,
    /// Cadence's UART.
    Cadence,
    /// A 16550, or what is compatible with one.
    Ns16550(Layout),
}

impl UartKind {
    /// By what the nodes of each are compatible with (`pl011.yaml`, `arm,sbsa-uart.txt`,
    /// `fsl-imx-uart.yaml`, `cdns,uart.yaml`, `8250.yaml`, `snps-dw-apb-uart.yaml`,
    /// `brcm,bcm2835-aux-uart.yaml`). A layout is that of a node that says nothing of it.
    const COMPATIBLE: [(&str, Self); 16] = [
        ("arm,pl011", Self::Pl011),
        ("arm,sbsa-uart", Self::Pl011),
        ("fsl,imx6q-uart", Self::Imx),
        ("fsl,imx21-uart", Self::Imx),
        ("cdns,uart-r1p8", Self::Cadence),
        ("cdns,uart-r1p12", Self::Cadence),
        ("xlnx,xuartps", Self::Cadence),
        ("ns16550a", Self::Ns16550(Layout::BYTES)),
        ("ns16550", Self::Ns16550(Layout::BYTES)),
        ("ns16450", Self::Ns16550(Layout::BYTES)),
        ("ns8250", Self::Ns16550(Layout::BYTES)),
        ("ns16850", Self::Ns16550(Layout::BYTES)),
        ("snps,dw-apb-uart", Self::Ns16550(Layout::BYTES)),
        ("nuvoton,npcm750-uart", Self::Ns16550(Layout::BYTES)),
        ("nvidia,tegra20-uart", Self::Ns16550(Layout::BYTES)),
        ("brcm,bcm2835-aux-uart", Self::Ns16550(Layout::WORDS)),
    ];

    /// The driver for `node`, if it is a UART that has one.
    pub(super) fn of(node: FdtNode<'_, '_>) -> Option<Self> {
        let list = dt::value(node, "compatible")?;
        let mut known = Self::COMPATIBLE.into_iter();
        let found = known.find(|(compatible, _)| dt::lists(list, compatible));
        match found?.1 {
            Self::Ns16550(usual) => layout(node, usual).map(Self::Ns16550),
            kind => Some(kind),
        }
    }

    /// The kind as a number, for where there is no room for more.
    pub const fn to_bits(self) -> u32 {
        match self {
            Self::Pl011 => 0,
            Self::Imx => 1,
            Self::Cadence => 2,
            Self::Ns16550(Layout { shift, words }) => {
                u32::from_le_bytes([3, shift, words as u8, 0])
            }
        }
    }

    /// The kind that became `bits`; of no other number anything in particular.
    pub const fn from_bits(bits: u32) -> Self {
        match bits.to_le_bytes() {
            [1, ..] => Self::Imx,
            [2, ..] => Self::Cadence,
            [3, shift, words, _] => Self::Ns16550(Layout {
                shift,
                words: words != 0,
            }),
            _ => Self::Pl011,
        }
    }
}

/// How a 16550's registers lie, by its node; `None` where there is no driver for that. `reg-offset` is not looked
/// at: nobody's is other than 0.
fn layout(node: FdtNode<'_, '_>, usual: Layout) -> Option<Layout> {
    let [shift, width] = ["reg-shift", "reg-io-width"].map(|name| dt::value(node, name));
    if shift.is_none() && width.is_none() {
        return Some(usual);
    }
    let number = |value: Option<&[u8]>, other| value.map_or(Some(other), dt::cell);
    Layout::new(number(shift, 0)?, number(width, 1)?)
}

/// A UART that Cordon can drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostUart {
    /// By which driver.
    pub kind: UartKind,
    /// Its registers.
    pub registers: PaRange,
}

impl Machine {
    /// Its UART, if it has one.
    pub fn host_uart(&self) -> Option<HostUart> {
        Some(HostUart {
            kind: self.uart_kind?,
            registers: self.uart?,
        })
    }
}

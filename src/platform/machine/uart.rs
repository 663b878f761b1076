//! The console's UART, among those that there are drivers for.

use fdt::node::FdtNode;

use super::Machine;
use crate::addr::PaRange;
use crate::platform::dt;

/// Which driver a UART wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UartKind {
    /// Arm's PL011, or what Arm's server base says of it (`arm,sbsa-uart`).
    Pl011,
    /// NXP's i.MX UART.
    Imx,
}

impl UartKind {
    /// By what the nodes of each are compatible with (`pl011.yaml`, `arm,sbsa-uart.txt`,
    /// `fsl-imx-uart.yaml`).
    const COMPATIBLE: [(&str, Self); 4] = [
        ("arm,pl011", Self::Pl011),
        ("arm,sbsa-uart", Self::Pl011),
        ("fsl,imx6q-uart", Self::Imx),
        ("fsl,imx21-uart", Self::Imx),
    ];

    /// The driver for `node`, if it is a UART that has one.
    pub(super) fn of(node: FdtNode<'_, '_>) -> Option<Self> {
        let list = dt::value(node, "compatible")?;
        let mut known = Self::COMPATIBLE.into_iter();
        let found = known.find(|(compatible, _)| dt::lists(list, compatible));
        found.map(|(_, kind)| kind)
    }
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
